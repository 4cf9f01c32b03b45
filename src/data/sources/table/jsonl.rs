//! Rows as JSON objects, one a line.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Cell, Columns, Input, Row, Table, Unit, time};
use crate::Result;

/// Values of the columns user, item, time, rating, title and text.
pub(super) struct Record<'a>([Value<'a>; 6]);

#[derive(Clone)]
enum Value<'a> {
    /// No such key.
    Missing,
    Null,
    Text(Cow<'a, str>),
    Whole(i64),
    Float(f64),
    Other,
}

impl Record<'_> {
    /// The row's cells; ids that are numbers turn into their digits.
    pub(super) fn row(&self) -> std::result::Result<Row<'_>, String> {
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

    /// Has the object the keys of title and text?
    pub(super) fn describes(&self) -> [bool; 2] {
        let [.., title, text] = &self.0;
        [title, text].map(|value| !matches!(value, Value::Missing))
    }
}

impl Value<'_> {
    fn text(&self, what: &str) -> std::result::Result<&str, String> {
        match self {
            Self::Missing | Self::Null => Ok(""),
            Self::Text(text) => Ok(text),
            _ => Err(format!("the {what} is neither text nor a whole number")),
        }
    }

    fn cell(&self, what: &str) -> std::result::Result<Cell<'_>, String> {
        match self {
            Self::Missing | Self::Null => Ok(Cell::Missing),
            Self::Text(text) => Ok(Cell::Text(text)),
            Self::Whole(number) => Ok(Cell::Whole(*number)),
            Self::Float(number) => Ok(Cell::Float(*number)),
            Self::Other => Err(format!("the {what} is neither a number nor text")),
        }
    }
}

/// Reads the columns of a line.
pub(super) fn parse<'a>(line: &'a str, columns: &Columns) -> std::result::Result<Record<'a>, String> {
    let c = columns;
    let names = [&c.user, &c.item, &c.time, &c.rating, &c.title, &c.text].map(|name| name.as_deref());
    let mut json = serde_json::Deserializer::from_str(line);
    let fields = Object(names).deserialize(&mut json).and_then(|fields| json.end().map(|()| fields));
    let mut fields = fields.map_err(|error| {
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        format!("not a JSON object: {what} at column {}", error.column())
    })?;
    // Ids and texts.
    for at in [0, 1, 4, 5] {
        if let Some(value) = fields.0.get_mut(at)
            && let Value::Whole(number) = value
        {
            *value = Value::Text(number.to_string().into());
        }
    }
    Ok(fields)
}

/// The keys of the first objects: any one may lack some.
pub(super) fn keys(path: &Path) -> Result<Vec<String>> {
    let mut keys = BTreeSet::new();
    let mut lines = 0;
    look(path, |line| {
        let object: Option<BTreeMap<String, IgnoredAny>> = serde_json::from_str(line).ok();
        keys.extend(object.into_iter().flat_map(BTreeMap::into_keys));
        lines += 1;
        lines == 100
    })?;
    Ok(keys.into_iter().collect())
}

/// The unit of the first time that is one.
pub(super) fn unit(table: &Table) -> Result<Option<Unit>> {
    let mut unit = None;
    if table.columns.time.is_some() {
        look(&table.path, |line| {
            let fields = parse(line, &table.columns);
            fields.and_then(|fields| time(fields.row()?.time, &mut unit)).is_ok()
        })?;
    }
    Ok(unit)
}

/// Shows `enough` line after line until it is.
fn look(path: &Path, mut enough: impl FnMut(&str) -> bool) -> Result<()> {
    /// A longer line is an error when it is read.
    const MAX_LINE: u64 = 64 << 20;
    let mut input = Input::peek(path)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = input.content().take(MAX_LINE).read_until(b'\n', &mut line);
        if read.map_err(|error| input.broken(&error))? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        if enough(text.trim_start_matches('\u{feff}')) {
            return Ok(());
        }
    }
}

/// An object of which the fields of these names are wanted; of equal keys the last one counts.
struct Object<'c>([Option<&'c str>; 6]);

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Record<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Record<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Record<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Record<'de>, A::Error> {
        let mut values = [const { Value::Missing }; 6];
        while let Some(wanted) = map.next_key_seed(Key(&self.0))? {
            if !wanted.contains(&true) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = map.next_value_seed(Any)?;
            for (place, _) in values.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
                place.clone_from(&value);
            }
        }
        Ok(Record(values))
    }
}

/// Which of the names a key is.
struct Key<'a, 'c>(&'a [Option<&'c str>; 6]);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = [bool; 6];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<[bool; 6], D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = [bool; 6];

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> std::result::Result<[bool; 6], E> {
        Ok(self.0.map(|name| name == Some(key)))
    }
}

struct Any;

impl<'de> DeserializeSeed<'de> for Any {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok(Value::Text(text.to_string().into()))
    }

    fn visit_i64<E>(self, number: i64) -> std::result::Result<Self::Value, E> {
        Ok(Value::Whole(number))
    }

    fn visit_u64<E>(self, number: u64) -> std::result::Result<Self::Value, E> {
        Ok(i64::try_from(number).map_or_else(|_| Value::Text(number.to_string().into()), Value::Whole))
    }

    fn visit_f64<E>(self, number: f64) -> std::result::Result<Self::Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Self::Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}
