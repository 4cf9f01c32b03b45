//! Rows as objects, one a line: JSON, or Python literals.

mod json;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{BufRead, Read};

use serde::de::{DeserializeSeed, IgnoredAny};

use self::json::Object;
use super::rows::{Block, Cell, Row, RowKind, time_value};
use super::settings::Settings;
use super::{Format, Table};
use crate::Result;
use crate::data::sources::input::Input;
use crate::data::sources::lines::{RecordResult, read_numbered_lines};
use crate::data::sources::options::Columns;
use crate::data::sources::python;
use crate::data::sources::read_context::ReadContext;
use crate::data::sources::source_file::SourceFile;
use crate::data::sources::times::TimeSample;

/// Number of columns of a table, in the order user, item, time, rating, title, text.
const ROLES: usize = 6;

/// The names of the selected columns. One such as `reviewer.user` is that of a key, or of a key in
/// the object under another.
type Names<'c> = [Option<&'c str>; ROLES];

/// Values of the columns.
struct Fields<'a>([Value<'a>; ROLES]);

#[derive(Clone, Debug)]
enum Value<'a> {
    /// The object lacks the key.
    Missing,
    Null,
    Text(Cow<'a, str>),
    Whole(i128),
    Float(f64),
    /// Unix time in milliseconds, as MongoDB writes it.
    Date(i64),
    Other,
}

impl Fields<'_> {
    /// Returns the row's cells; ids that are numbers become their digits.
    fn row(&self) -> RecordResult<Row<'_>> {
        let [user, item, time, rating, title, text] = &self.0;
        Ok(Row {
            user: user.text("user")?,
            item: item.text("item")?,
            time: time.cell("time")?,
            rating: rating.cell("rating")?,
            title: title.text("title")?,
            text: text.text("text")?,
        })
    }

    /// Returns whether the object has the keys of title and text.
    fn describes(&self) -> [bool; 2] {
        let [.., title, text] = &self.0;
        [title, text].map(|value| !matches!(value, Value::Missing))
    }

    /// Replaces the numbers of ids and texts by their digits.
    fn with_digits(mut self) -> Self {
        let [user, item, _, _, title, text] = &mut self.0;
        for value in [user, item, title, text] {
            if let Value::Whole(number) = value {
                *value = Value::Text(number.to_string().into());
            }
        }
        self
    }
}

impl Value<'_> {
    fn text(&self, what: &str) -> RecordResult<&str> {
        match self {
            Self::Missing | Self::Null => Ok(""),
            Self::Text(text) => Ok(text),
            _ => Err(format!("the {what} is neither text nor a whole number")),
        }
    }

    fn cell(&self, what: &str) -> RecordResult<Cell<'_>> {
        match self {
            Self::Missing | Self::Null => Ok(Cell::Missing),
            Self::Text(text) => Ok(Cell::Text(text)),
            Self::Whole(number) => Ok(Cell::Whole(*number)),
            Self::Float(number) => Ok(Cell::Float(*number)),
            Self::Date(time) => Ok(Cell::Date(*time)),
            Self::Other => Err(format!("the {what} is neither a number nor text")),
        }
    }

    /// Converts the value of `$date`: milliseconds, or a text.
    fn into_date(self) -> Self {
        match self {
            Self::Whole(time) => i64::try_from(time).map_or(Self::Other, Self::Date),
            Self::Text(text) => text.parse().map_or(Self::Text(text), Self::Date),
            other => other,
        }
    }
}

fn names(columns: &Columns) -> Names<'_> {
    let c = columns;
    [&c.user, &c.item, &c.time, &c.rating, &c.title, &c.text].map(|name| name.as_deref())
}

/// Reads the columns of a line.
fn parse<'a>(line: &'a str, format: Format, names: &Names) -> RecordResult<Fields<'a>> {
    if format == Format::Python {
        let object = python::parse(line).map_err(|what| format!("not a Python literal: {what}"))?;
        if !matches!(object, python::Value::Dict(_)) {
            return Err("not a Python dict".into());
        }
        return Ok(Fields(names.map(|name| from_python(&object, name))).with_digits());
    }
    let mut json = serde_json::Deserializer::from_str(line);
    let fields = Object(*names).deserialize(&mut json).and_then(|fields| json.end().map(|()| fields));
    let fields = fields.map_err(|error| {
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        format!("not a JSON object: {what} at column {}", error.column())
    })?;
    Ok(Fields(fields).with_digits())
}

/// Returns the keys of the first objects (any one may lack some), and of the selected names those
/// that are in them.
pub(super) fn keys(file: &SourceFile, format: Format, settings: &Settings) -> Result<Vec<String>> {
    let mut keys = BTreeSet::new();
    let mut lines = 0;
    let columns = settings.columns.clone();
    let in_catalogue = Columns { item: settings.catalogue_item.clone(), ..Columns::default() };
    look(file, settings, |line| {
        for columns in [&columns, &in_catalogue] {
            let names = names(columns);
            if let Ok(fields) = parse(line, format, &names) {
                let found = names.iter().zip(&fields.0).filter(|(_, value)| !matches!(value, Value::Missing));
                keys.extend(found.filter_map(|(name, _)| name.map(str::to_string)));
            }
        }
        if format == Format::Python {
            if let Ok(python::Value::Dict(pairs)) = python::parse(line) {
                keys.extend(pairs.into_iter().filter_map(|(key, _)| match key {
                    python::Value::Text(key) => Some(key.into_owned()),
                    _ => None,
                }));
            }
        } else if let Ok(object) = serde_json::from_str::<std::collections::BTreeMap<String, IgnoredAny>>(line) {
            keys.extend(object.into_keys());
        }
        lines += 1;
        lines < 100
    })?;
    Ok(keys.into_iter().collect())
}

/// Adds the times of the first rows to a sample.
pub(super) fn sample_times(table: &Table, settings: &Settings, sample: &mut TimeSample) -> Result<()> {
    let columns = Columns { time: table.columns.time.clone(), ..Columns::default() };
    let names = names(&columns);
    let constant = table.constant(&table.columns.time).to_string();
    look(&table.file, settings, |line| {
        let fields = parse(line, table.format, &names).unwrap_or(Fields([const { Value::Missing }; ROLES]));
        let cell = match fields.0.get(2) {
            None | Some(Value::Missing) => Cell::Text(&constant),
            Some(value) => value.cell("time").unwrap_or(Cell::Missing),
        };
        match time_value(cell) {
            Ok(Some(value)) => sample.add(value),
            _ => true,
        }
    })
}

/// Reads the rows of a table in blocks.
pub(super) fn read(
    table: &Table,
    kind: &RowKind,
    context: &mut ReadContext,
    sink: impl FnMut(&mut ReadContext, Block) -> Result<()> + Send,
) -> Result<()> {
    let names = names(&table.columns);
    let c = &table.columns;
    let constants = [&c.user, &c.item, &c.time, &c.rating, &c.title, &c.text].map(|name| table.constant(name));
    let parse_row = |_, line: &str, block: &mut Block| {
        let mut fields = parse(line, table.format, &names)?;
        for (value, constant) in fields.0.iter_mut().zip(constants) {
            if matches!(value, Value::Missing) && !constant.is_empty() {
                *value = Value::Text(constant.into());
            }
        }
        block.push(&fields.row()?, kind)?;
        block.found = super::or_each(block.found, fields.describes());
        Ok(())
    };
    read_numbered_lines(&table.file, kind.settings.encoding, 0, context, parse_row, sink)
}

/// Passes line after line to `each` until it returns false.
fn look(file: &SourceFile, settings: &Settings, mut each: impl FnMut(&str) -> bool) -> Result<()> {
    /// A longer line is an error when it is read.
    const MAX_LINE: u64 = 64 << 20;
    let mut input = Input::peek_as(file, settings.encoding)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = input.content().take(MAX_LINE).read_until(b'\n', &mut line);
        if read.map_err(|error| input.read_error(&error))? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        if !text.trim().is_empty() && !each(&text) {
            return Ok(());
        }
    }
}

/// Returns the value of a key in a Python dict, or of a key in the dict under another.
fn from_python<'a>(object: &python::Value<'a>, name: Option<&str>) -> Value<'a> {
    let Some(name) = name else { return Value::Missing };
    if let Some(value) = object.get(name) {
        return python_value(value);
    }
    match name.split_once('.').and_then(|(first, rest)| Some((object.get(first)?, rest))) {
        Some((inner, rest)) => from_python(inner, Some(rest)),
        None => Value::Missing,
    }
}

fn python_value<'a>(value: &python::Value<'a>) -> Value<'a> {
    match value {
        python::Value::None => Value::Null,
        python::Value::Text(text) => Value::Text(text.clone()),
        python::Value::Number(text) => {
            let text = text.trim_end_matches(['l', 'L']);
            let whole = text.parse().map(Value::Whole);
            whole.or_else(|_| text.parse().map(Value::Float)).unwrap_or(Value::Other)
        }
        python::Value::Dict(pairs) => match pairs.as_slice() {
            [(python::Value::Text(key), value)] if key == "$date" => python_value(value).into_date(),
            [(python::Value::Text(key), value)] if key.starts_with('$') => python_value(value),
            _ => Value::Other,
        },
        _ => Value::Other,
    }
}
