//! Reviews and metadata of 2023 as Parquet, as Hugging Face publishes them.

use super::detect::{DetectedFile, Role};
use super::{Titles, take_titles};
use crate::Result;
use crate::data::event_log::{EventLog, Events};
use crate::data::interner::Interner;
use crate::data::sources::dataset::Catalogue;
use crate::data::sources::parquet_columns::{ParquetFile, Rows, Value};
use crate::data::sources::read_context::ReadContext;
use crate::data::sources::source_file::SourceFile;
use crate::data::sources::times::Unit;

/// Returns the role of a Parquet file, by its columns.
pub(super) fn role(file: &SourceFile) -> Result<Option<Role>> {
    let parquet = ParquetFile::open(file)?;
    let all = |names: &[&str]| names.iter().all(|name| parquet.names.iter().any(|column| column == name));
    Ok(if all(&["user_id", "parent_asin", "rating", "timestamp"]) {
        Some(Role::Reviews)
    } else if all(&["parent_asin", "title"]) {
        Some(Role::Metadata)
    } else {
        None
    })
}

fn text<'a>(rows: &'a Rows, column: usize, row: usize, what: &str) -> std::result::Result<&'a str, String> {
    match rows.get(column, row) {
        Value::Null => Ok(""),
        Value::Text(text) => Ok(text),
        _ => Err(format!("the {what} is no text")),
    }
}

/// Reads the reviews of a file.
pub(super) fn read_reviews(found: &DetectedFile, log: &mut EventLog, context: &mut ReadContext) -> Result<()> {
    let parquet = ParquetFile::open(&found.path)?;
    let mut columns = Vec::new();
    for name in ["user_id", "parent_asin", "rating", "timestamp"] {
        columns.push(Some(parquet.find(name)?));
    }
    let mut number = 0u64;
    parquet.read(&columns, context, |context, rows| {
        let mut events = Events::default();
        for row in 0..rows.len {
            number += 1;
            if let Err(what) = review(rows, row, &mut events) {
                context.bad_row_at(&found.path, &format!("row {number}"), &what)?;
            }
        }
        context.progress.add(rows.len as u64)?;
        log.append(&events)
    })
}

fn review(rows: &Rows, row: usize, events: &mut Events) -> std::result::Result<(), String> {
    let (user, item) = (text(rows, 0, row, "user id")?, text(rows, 1, row, "item id")?);
    let rating = match rows.get(2, row) {
        Value::Float(number) => number as f32,
        Value::Whole(number) => number as f32,
        _ => return Err("the rating is not a number".into()),
    };
    let time = match rows.get(3, row) {
        Value::Date(time) => time,
        Value::Whole(time) => i64::try_from(time).map_err(|_| format!("timestamp {time} is no time"))?,
        _ => return Err("the timestamp is not a whole number".into()),
    };
    super::event(events, user, item, rating, Unit::Milliseconds.milliseconds(time)?)
}

/// Reads the titles of a file for the items of a log.
pub(super) fn read_titles(
    found: &DetectedFile,
    items: &Interner,
    catalogue: &mut Catalogue,
    context: &mut ReadContext,
) -> Result<()> {
    let parquet = ParquetFile::open(&found.path)?;
    let columns = [Some(parquet.find("parent_asin")?), Some(parquet.find("title")?)];
    let mut number = 0u64;
    parquet.read(&columns, context, |context, rows| {
        let mut titles = Titles::default();
        for row in 0..rows.len {
            number += 1;
            let pair = text(rows, 0, row, "item id").and_then(|id| Ok((id, text(rows, 1, row, "title")?)));
            match pair {
                Ok((id, _)) if id.trim().is_empty() => {
                    context.bad_row_at(&found.path, &format!("row {number}"), "the item id is empty")?;
                }
                Ok((id, title)) => titles.push(number, id, Some(title), items),
                Err(what) => context.bad_row_at(&found.path, &format!("row {number}"), &what)?,
            }
        }
        context.progress.add(rows.len as u64)?;
        take_titles(titles, &found.path, "row", items, catalogue, context)
    })
}
