//! Rows of Parquet files.

use super::Table;
use super::rows::{Block, Cell, Row, RowKind, time_value};
use crate::data::sources::fields::shorten;
use crate::data::sources::lines::RecordResult;
use crate::data::sources::parquet_columns::{ColumnPath, Kind, ParquetFile, Rows, Value};
use crate::data::sources::read_context::ReadContext;
use crate::data::sources::times::TimeSample;
use crate::{Error, Result};

/// Number of columns of a table, in the order user, item, time, rating, title, text.
const ROLES: usize = 6;

/// Finds the columns; those that the folders' names give are not the file's.
fn columns(table: &Table, parquet: &ParquetFile) -> Result<[Option<ColumnPath>; ROLES]> {
    let c = &table.columns;
    let names = [&c.user, &c.item, &c.time, &c.rating, &c.title, &c.text];
    let mut columns = [const { None }; ROLES];
    for (index, (column, name)) in columns.iter_mut().zip(names).enumerate() {
        let Some(name) = name.as_deref().filter(|name| parquet.has(name)) else { continue };
        let found = parquet.find(name)?;
        let fits = match (index, found.kind) {
            (_, Kind::Null) => true,
            (0 | 1, kind) => matches!(kind, Kind::Text | Kind::Whole),
            (2, _) => true,
            (3, kind) => matches!(kind, Kind::Text | Kind::Whole | Kind::Float),
            (_, kind) => matches!(kind, Kind::Text | Kind::Whole),
        };
        if !fits {
            let wanted = ["text or whole numbers", "text or whole numbers", "times", "numbers", "text", "text"];
            let wanted = wanted.get(index).copied().unwrap_or_default();
            return Err(Error::failed(format!(
                "{}: column `{}` holds {}, but should hold {wanted}",
                table.file,
                shorten(name),
                found.kind.describe()
            )));
        }
        *column = Some(found);
    }
    Ok(columns)
}

/// Adds the times of the first rows to a sample.
pub(super) fn sample_times(table: &Table, parquet: &ParquetFile, sample: &mut TimeSample) -> Result<()> {
    let [_, _, time, ..] = columns(table, parquet)?;
    if time.is_none() {
        if let Ok(Some(value)) = time_value(Cell::Text(table.constant(&table.columns.time))) {
            sample.add(value);
        }
        return Ok(());
    }
    parquet.read_rows(&[time], |rows| {
        for row in 0..rows.len {
            if let Ok(Some(value)) = cell(rows.get(0, row), "time").and_then(time_value)
                && !sample.add(value)
            {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Reads the rows of a table in blocks.
pub(super) fn read(
    table: &Table,
    parquet: &ParquetFile,
    kind: &RowKind,
    context: &mut ReadContext,
    mut sink: impl FnMut(&mut ReadContext, Block) -> Result<()> + Send,
) -> Result<()> {
    let columns = columns(table, parquet)?;
    let c = &table.columns;
    let constants = [&c.user, &c.item, &c.time, &c.rating, &c.title, &c.text].map(|name| table.constant(name));
    let missing = columns.each_ref().map(Option::is_none);
    let mut number = 0u64;
    parquet.read(&columns, context, |context, rows| {
        let mut block = Block::default();
        let mut ids = [const { String::new() }; ROLES];
        for at in 0..rows.len {
            number += 1;
            if let Err(what) = push(rows, at, &constants, &missing, &mut ids, kind, &mut block) {
                context.bad_row_at(&table.file, &format!("row {number}"), &what)?;
            }
        }
        context.progress.add(rows.len as u64)?;
        sink(context, block)
    })
}

/// Adds a row to a block; `ids` holds the digits of numbers.
fn push(
    rows: &Rows,
    at: usize,
    constants: &[&str; ROLES],
    missing: &[bool; ROLES],
    ids: &mut [String; ROLES],
    kind: &RowKind,
    block: &mut Block,
) -> RecordResult<()> {
    for (column, digits) in ids.iter_mut().enumerate() {
        if let Value::Whole(number) = rows.get(column, at) {
            digits.clear();
            digits.push_str(&number.to_string());
        }
    }
    let text = |column: usize, what: &str| -> RecordResult<&str> {
        match rows.get(column, at) {
            _ if missing[column] => Ok(constants[column]),
            Value::Null => Ok(""),
            Value::Text(text) => Ok(text),
            Value::Whole(_) => Ok(ids[column].as_str()),
            Value::Binary => Err(format!("the {what} is not UTF-8")),
            Value::Float(_) | Value::Date(_) => Err(format!("the {what} is neither text nor a whole number")),
        }
    };
    let of = |column: usize, what: &str| -> RecordResult<Cell> {
        if missing[column] { Ok(Cell::Text(constants[column])) } else { cell(rows.get(column, at), what) }
    };
    let row = Row {
        user: text(0, "user")?,
        item: text(1, "item")?,
        time: of(2, "time")?,
        rating: of(3, "rating")?,
        title: text(4, "title")?,
        text: text(5, "text")?,
    };
    block.push(&row, kind)
}

fn cell<'a>(value: Value<'a>, what: &str) -> RecordResult<Cell<'a>> {
    Ok(match value {
        Value::Null => Cell::Missing,
        Value::Text(text) => Cell::Text(text),
        Value::Binary => return Err(format!("the {what} is not UTF-8")),
        Value::Whole(number) => Cell::Whole(number),
        Value::Float(number) => Cell::Float(number),
        Value::Date(time) => Cell::Date(time),
    })
}

impl Kind {
    fn describe(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Whole => "whole numbers",
            Self::Float => "fractions",
            Self::Time { .. } | Self::Days => "times",
            Self::Null => "nothing",
        }
    }
}
