//! Any log as a table: CSV, TSV, JSON lines or Parquet, whose columns are named by the user.
//!
//! A file with the user column is a log and may tell titles too; a file with the item column and
//! titles, but no users, is a catalogue.

mod jsonl;
mod parquet;

use std::io::Read;
use std::path::{Path, PathBuf};

use super::delimited::{DelimitedReader, Record, missing_column};
use super::fields;
use super::fields::{Time, present};
use super::input::read_numbered_lines;
use super::{Catalogue, Columns, Encoding, Input, RawDataset, ReadContext, ReadOptions, Unit, at_most};
use crate::data::event_log::{EventLog, Events};
use crate::data::interner::StringArena;
use crate::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Csv,
    Tsv,
    Jsonl,
    Parquet,
}

impl Format {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "jsonl" => Ok(Self::Jsonl),
            "parquet" => Ok(Self::Parquet),
            _ => Err(Error::usage(format!("table has no format `{name}`: use csv, tsv, jsonl or parquet"))),
        }
    }

    fn find(path: &Path) -> Result<Self> {
        let line = Input::first_line(path)?;
        Ok(if line.starts_with("PAR1") {
            Self::Parquet
        } else if line.trim_start().starts_with('{') {
            Self::Jsonl
        } else if line.split('\t').count() > line.split(',').count() {
            Self::Tsv
        } else {
            Self::Csv
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Jsonl => "JSON lines",
            Self::Parquet => "Parquet",
        }
    }

    /// What its rows are counted in.
    fn row(self) -> &'static str {
        if self == Self::Parquet { "row" } else { "line" }
    }
}

/// An input and what it tells.
struct Table {
    path: PathBuf,
    format: Format,
    /// Is it a log, or a catalogue?
    log: bool,
    /// The columns asked for, of those it has.
    columns: Columns,
    /// About so many rows.
    rows: u64,
}

impl Table {
    fn open(path: &Path, forced: Option<Format>, asked: &Columns) -> Result<Self> {
        let format = forced.map_or_else(|| Format::find(path), Ok)?;
        let (names, rows) = match format {
            Format::Csv | Format::Tsv => (DelimitedReader::header_of(path, delimiter(format))?, text_rows(path)?),
            Format::Jsonl => (jsonl::keys(path)?, text_rows(path)?),
            Format::Parquet => parquet::columns(path, asked)?,
        };
        let has = |name: &Option<String>| name.clone().filter(|name| names.contains(name));
        let mut columns = Columns {
            user: has(&asked.user),
            item: has(&asked.item),
            time: has(&asked.time),
            title: has(&asked.title),
            rating: has(&asked.rating),
            text: has(&asked.text),
        };
        let describes = columns.title.is_some() || columns.text.is_some();
        let log = columns.user.is_some() || columns.item.is_none() || !describes;
        let needed: &[_] = if log {
            &[
                (&asked.user, &columns.user),
                (&asked.item, &columns.item),
                (&asked.time, &columns.time),
                (&asked.rating, &columns.rating),
            ]
        } else {
            &[]
        };
        for (asked, found) in needed {
            if let (Some(name), None) = (asked, found) {
                return Err(missing_column(path, name, &names));
            }
        }
        if format == Format::Jsonl {
            // Later objects may hold what the first ones lack.
            columns.title.clone_from(&asked.title);
            columns.text.clone_from(&asked.text);
        }
        Ok(Self { path: path.to_path_buf(), format, log, columns, rows })
    }

    /// Has it the columns of titles and of texts, or may it have them?
    fn describes(&self) -> [bool; 2] {
        [self.columns.title.is_some(), self.columns.text.is_some()]
    }

    /// Reads the rows; the first time of the first log sets `unit`. Has it the columns of titles
    /// and of texts?
    fn read(&self, raw: &mut RawDataset, unit: &mut Option<Unit>, context: &mut ReadContext) -> Result<[bool; 2]> {
        let RawDataset { log, catalogue, .. } = raw;
        let mut found = if self.format == Format::Jsonl { [false; 2] } else { self.describes() };
        let sink = |context: &mut ReadContext, block: Block| {
            found = either(found, block.found);
            block.hand_on(self, log, catalogue, context)
        };
        match self.format {
            Format::Csv | Format::Tsv => {
                let records = DelimitedReader::open(&self.path, delimiter(self.format), context)?;
                let place = |name: &Option<String>| name.as_deref().map(|name| records.column(name)).transpose();
                let c = &self.columns;
                let (user, item, time) = (place(&c.user)?, place(&c.item)?, place(&c.time)?);
                let (rating, title, text) = (place(&c.rating)?, place(&c.title)?, place(&c.text)?);
                let parse = |line, record: Record, block: &mut Block| {
                    let field = |at: Option<usize>| at.map_or("", |at| record.get(at));
                    let row = Row {
                        user: field(user),
                        item: field(item),
                        time: Cell::Text(field(time)),
                        rating: Cell::Text(field(rating)),
                        title: field(title),
                        text: field(text),
                    };
                    block.push(line, &row, self, unit)
                };
                records.read(context, parse, sink)?;
            }
            Format::Jsonl => {
                if self.log && unit.is_none() {
                    *unit = jsonl::unit(self)?;
                }
                let unit = *unit;
                let parse = |line, text: &str, block: &mut Block| {
                    let fields = jsonl::parse(text, &self.columns)?;
                    block.push(line, &fields.row()?, self, &mut { unit })?;
                    block.found = either(block.found, fields.describes());
                    Ok(())
                };
                read_numbered_lines(&self.path, Encoding::Utf8, 0, context, parse, sink)?;
            }
            Format::Parquet => parquet::read(self, unit, context, sink)?,
        }
        Ok(found)
    }
}

fn either(a: [bool; 2], b: [bool; 2]) -> [bool; 2] {
    [a[0] || b[0], a[1] || b[1]]
}

fn delimiter(format: Format) -> u8 {
    if format == Format::Tsv { b'\t' } else { b',' }
}

/// About how many rows a text file has, by its first 64 KiB.
fn text_rows(path: &Path) -> Result<u64> {
    let mut start = Vec::new();
    let mut input = Input::peek(path)?;
    input.content().take(1 << 16).read_to_end(&mut start).map_err(|error| input.broken(&error))?;
    let lines = start.iter().filter(|b| **b == b'\n').count().max(1);
    at_most(&[path.to_path_buf()], (start.len() / lines) as u64)
}

/// A value of a row.
#[derive(Clone, Copy)]
enum Cell<'a> {
    Missing,
    Text(&'a str),
    Whole(i64),
    Float(f64),
    /// Unix time in milliseconds.
    Date(i64),
}

/// What a row tells; empty texts are missing.
struct Row<'a> {
    user: &'a str,
    item: &'a str,
    time: Cell<'a>,
    rating: Cell<'a>,
    title: &'a str,
    text: &'a str,
}

/// A block of rows. Those of a catalogue have no more than the item of an event.
#[derive(Default)]
struct Block {
    events: Events,
    /// Titles, texts and numbers of the rows, if the table describes items.
    titles: StringArena,
    texts: StringArena,
    numbers: Vec<u64>,
    /// Has any JSON object the keys of title and text?
    found: [bool; 2],
}

impl Block {
    fn push(
        &mut self,
        number: u64,
        row: &Row,
        table: &Table,
        unit: &mut Option<Unit>,
    ) -> std::result::Result<(), String> {
        if table.log {
            let user = present(row.user, "user")?;
            let item = present(row.item, "item")?;
            let time = if table.columns.time.is_some() { time(row.time, unit)? } else { 0 };
            let rating = if table.columns.rating.is_some() { rating(row.rating)? } else { f32::NAN };
            self.events.push(user, item, time, rating);
        } else {
            self.events.items.push(present(row.item, "item")?);
        }
        if table.columns.title.is_some() || table.columns.text.is_some() {
            self.titles.push(row.title);
            self.texts.push(row.text);
            self.numbers.push(number);
        }
        Ok(())
    }

    /// Adds the rows to the log and the catalogue, but those that give an item a second title.
    fn hand_on(
        mut self,
        table: &Table,
        log: &mut EventLog,
        catalogue: &mut Catalogue,
        context: &mut ReadContext,
    ) -> Result<()> {
        let mut bad = Vec::new();
        let described = self.events.items.iter().zip(self.titles.iter().zip(self.texts.iter())).zip(&self.numbers);
        for (at, ((id, (title, text)), number)) in described.enumerate() {
            if title.trim().is_empty() && text.trim().is_empty() {
                continue;
            }
            let item = if table.log { Some(log.items.intern(id)?) } else { log.items.find(id) };
            let Some(item) = item else { continue };
            if let Err(what) = catalogue.describe(item, title) {
                context.bad_at(&table.path, &format!("{} {number}", table.format.row()), &what)?;
                bad.push(at);
            } else if !text.trim().is_empty() {
                catalogue.set_attribute("text", item, text);
            }
        }
        if !table.log {
            return Ok(());
        }
        if !bad.is_empty() {
            let all = std::mem::take(&mut self.events);
            let ids = all.users.iter().zip(all.items.iter());
            for (at, ((user, item), (time, rating))) in ids.zip(all.times.iter().zip(&all.ratings)).enumerate() {
                if bad.binary_search(&at).is_err() {
                    self.events.push(user, item, *time, *rating);
                }
            }
        }
        log.append(&self.events)
    }
}

fn time(cell: Cell, unit: &mut Option<Unit>) -> std::result::Result<i64, String> {
    let time = match cell {
        Cell::Missing => return Err("no time".into()),
        Cell::Text(text) => fields::time(text)?,
        Cell::Whole(number) => Time::Number(number),
        Cell::Float(number) => {
            Time::Number(fields::whole(number).ok_or_else(|| format!("time {number} is not whole"))?)
        }
        Cell::Date(time) => Time::Date(time),
    };
    time.milliseconds(unit)
}

fn rating(cell: Cell) -> std::result::Result<f32, String> {
    let rating = match cell {
        Cell::Missing | Cell::Date(_) => return Err("no rating".into()),
        Cell::Text(text) => fields::rating(text)?,
        Cell::Whole(number) => number as f32,
        Cell::Float(number) => number as f32,
    };
    if rating.is_finite() { Ok(rating) } else { Err(format!("rating {rating} is not finite")) }
}

/// Reads the logs in their order, then the catalogues.
pub(crate) fn read(files: &[PathBuf], options: &ReadOptions, context: &mut ReadContext) -> Result<RawDataset> {
    let asked = &options.columns;
    if asked.user.is_none() || asked.item.is_none() {
        return Err(Error::usage("table: name the columns of users and of items (--user COLUMN --item COLUMN)"));
    }
    let forced = options.format.as_deref().map(Format::parse).transpose()?;
    let tables = files.iter().map(|path| Table::open(path, forced, asked)).collect::<Result<Vec<Table>>>()?;
    let (logs, catalogues): (Vec<Table>, Vec<Table>) = tables.into_iter().partition(|table| table.log);
    if logs.is_empty() {
        let user = asked.user.as_deref().unwrap_or_default();
        return Err(Error::usage(format!("table: no log among the inputs: a file with the column `{user}`")));
    }
    let perhaps = logs.iter().chain(&catalogues).map(Table::describes).fold([false; 2], either);
    described(asked, perhaps, &logs)?;

    let rows = logs.iter().map(|table| table.rows).sum();
    let log = EventLog::new(rows, &options.workspace, asked.time.is_some(), asked.rating.is_some())?;
    let mut raw = RawDataset { log, catalogue: Catalogue::default(), format: String::new() };
    let mut unit = None;
    let mut found = [false; 2];
    for table in &logs {
        found = either(found, table.read(&mut raw, &mut unit, context)?);
    }
    raw.log.finish()?;
    for table in &catalogues {
        found = either(found, table.read(&mut raw, &mut unit, context)?);
    }
    described(asked, found, &logs)?;
    let times = match (&asked.time, unit) {
        (None, _) => "no times",
        (Some(_), Some(Unit::Seconds)) => "times in seconds",
        (Some(_), Some(Unit::Milliseconds)) => "times in milliseconds",
        (Some(_), None) => "times as dates",
    };
    raw.format = format!("{}, {times}", formats(&logs));
    if !catalogues.is_empty() {
        raw.format.push_str(&format!("; catalogue: {}", formats(&catalogues)));
    }
    Ok(raw)
}

/// Refuses columns of titles or texts that no input has.
fn described(asked: &Columns, found: [bool; 2], logs: &[Table]) -> Result<()> {
    for (name, found) in [&asked.title, &asked.text].into_iter().zip(found) {
        if let (Some(name), false, Some(first)) = (name, found, logs.first()) {
            return Err(Error::failed(format!(
                "{}: column `{name}` is missing, here as in all inputs",
                first.path.display()
            )));
        }
    }
    Ok(())
}

fn formats(tables: &[Table]) -> String {
    let mut names: Vec<&str> = tables.iter().map(|table| table.format.name()).collect();
    names.dedup();
    names.join(" and ")
}

#[cfg(test)]
mod tests;
