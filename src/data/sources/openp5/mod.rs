//! OpenP5 (arXiv 2306.11134): users' sequences without times, and its item indexings.
//!
//! | file | line |
//! |---|---|
//! | `user_sequence.txt` | user, then items, oldest first, divided by spaces |
//! | `asin_title.tsv` or MovieLens `movies.dat` | titles |
//! | `*plots*.dat` | plots, directors and actors of MovieLens' movies |
//! | `item_random_indexing.txt`, `item_sequential_indexing_original.txt`, `item_collaborative_indexing_*.txt` | item, index |

use std::collections::HashSet;

use super::dataset::{Catalogue, RawDataset};
use super::encoding::Encoding;
use super::fields::present;
use super::files::max_rows;
use super::lines::read_numbered_lines;
use super::movielens::{holds_plots, read_movies_dat, read_plots, wrong_fields};
use super::options::ReadOptions;
use super::read_context::ReadContext;
use super::source_file::SourceFile;
use crate::data::event_log::{EventLog, Events};
use crate::data::interner::{Interner, StringArena};
use crate::{Error, Result};

/// Bytes of the shortest id and its space.
const EVENT_BYTES: u64 = 2;

/// Reads sequences, titles and indexings.
pub(crate) fn read(files: &[SourceFile], options: &ReadOptions, context: &mut ReadContext) -> Result<RawDataset> {
    if let Some(name) = options.format.as_deref().filter(|name| *name != "openp5") {
        return Err(Error::usage(format!("openp5 has no format `{name}`: its only one is openp5")));
    }
    let of = |start: &'static str, end: &'static str| {
        files.iter().filter(move |path| {
            let name = path.plain_name();
            name.starts_with(start) && name.ends_with(end)
        })
    };
    let sequences: Vec<SourceFile> = of("", "user_sequence.txt").cloned().collect();
    if sequences.is_empty() {
        return Err(Error::usage("openp5: no user_sequence.txt among the inputs"));
    }
    let mut log = EventLog::new(max_rows(&sequences, EVENT_BYTES)?, &options.workspace, false, false)?;
    for path in &sequences {
        read_sequences(path, &mut log, context)?;
    }
    log.finish()?;

    let mut catalogue = Catalogue::default();
    let mut format = "OpenP5".to_string();
    for path in of("", "asin_title.tsv") {
        read_titles(path, &log.items, &mut catalogue, context)?;
        format.push_str(", titles by ASIN");
    }
    for path in of("", "movies.dat") {
        let encoding = read_movies_dat(path, &log.items, &mut catalogue, context)?;
        format.push_str(", titles of MovieLens in ");
        format.push_str(if encoding == Encoding::Utf8 { "UTF-8" } else { "ISO 8859-1" });
    }
    for path in files.iter().filter(|path| holds_plots(path)) {
        read_plots(path, &log.items, &mut catalogue, context)?;
        format.push_str(", with plots");
    }
    for (attribute, start, end) in [
        ("random_id", "item_random_indexing", ".txt"),
        ("sequential_id", "item_sequential_indexing_original", ".txt"),
        ("collaborative_id", "item_collaborative_indexing_", ".txt"),
    ] {
        let mut indexings = of(start, end);
        if let Some(path) = indexings.next() {
            read_indexing(path, attribute, &log.items, &mut catalogue, context)?;
        }
        if let Some(path) = indexings.next() {
            return Err(Error::usage(format!("{}: a second {start}: give one of them", path)));
        }
    }
    Ok(RawDataset { log, catalogue, format })
}

/// The sequences of a block of lines.
#[derive(Default)]
struct Sequences {
    users: StringArena,
    lines: Vec<u64>,
    /// Items of all sequences; sequence i has `lengths[i]` of them.
    items: StringArena,
    lengths: Vec<usize>,
}

fn read_sequences(path: &SourceFile, log: &mut EventLog, context: &mut ReadContext) -> Result<()> {
    read_numbered_lines(
        path,
        Encoding::Utf8,
        0,
        context,
        |number, line, sequences: &mut Sequences| {
            let mut ids = line.split_ascii_whitespace();
            let user = ids.next().unwrap_or_default();
            let before = sequences.items.len();
            ids.for_each(|item| sequences.items.push(item));
            let length = sequences.items.len() - before;
            if length == 0 {
                return Err("a user and items divided by spaces expected, one field found".to_string());
            }
            sequences.users.push(user);
            sequences.lines.push(number);
            sequences.lengths.push(length);
            Ok(())
        },
        |context, block| {
            let mut events = Events::default();
            let mut items = block.items.iter();
            let mut users = HashSet::new();
            for ((user, line), length) in block.users.iter().zip(&block.lines).zip(&block.lengths) {
                let items = items.by_ref().take(*length);
                if log.users.find(user).is_some() || !users.insert(user) {
                    items.for_each(drop);
                    context.bad_row(path, *line, &format!("user {user} has a sequence already"))?;
                } else {
                    items.for_each(|item| events.push(user, item, 0, f32::NAN));
                }
            }
            log.append(&events)
        },
    )
}

fn read_titles(
    path: &SourceFile,
    items: &Interner,
    catalogue: &mut Catalogue,
    context: &mut ReadContext,
) -> Result<()> {
    read_numbered_lines(
        path,
        Encoding::Utf8,
        0,
        context,
        |number, line, titles: &mut Vec<(u64, u32, String)>| {
            let (id, title) = line.split_once('\t').ok_or_else(|| wrong_fields(2, "\t", 1))?;
            if title.contains('\t') {
                return Err(wrong_fields(2, "\t", line.split('\t').count()));
            }
            if let Some(item) = items.find(present(id, "item")?) {
                titles.push((number, item, title.to_string()));
            }
            Ok(())
        },
        |context, titles| {
            for (line, item, title) in titles {
                if let Err(what) = catalogue.describe(item, &title) {
                    context.bad_row(path, line, &what)?;
                }
            }
            Ok(())
        },
    )
}

fn read_indexing(
    path: &SourceFile,
    attribute: &'static str,
    items: &Interner,
    catalogue: &mut Catalogue,
    context: &mut ReadContext,
) -> Result<()> {
    read_numbered_lines(
        path,
        Encoding::Utf8,
        0,
        context,
        |_, line, indices: &mut Vec<(u32, String)>| {
            let mut fields = line.split_ascii_whitespace();
            let (Some(id), Some(index), None) = (fields.next(), fields.next(), fields.next()) else {
                return Err(wrong_fields(2, " ", line.split_ascii_whitespace().count()));
            };
            if let Some(item) = items.find(id) {
                indices.push((item, index.to_string()));
            }
            Ok(())
        },
        |_, indices| {
            indices.iter().for_each(|(item, index)| catalogue.set_attribute(attribute, *item, index));
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests;
