//! Raw files → an event log and a catalogue. One file a source; a source finds its format by the
//! files' content.

pub(super) mod amazon;
mod fields;
mod input;
pub(super) mod movielens;
mod msl;
pub(super) mod openp5;
mod python;
mod records;
pub(super) mod table;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use input::{Encoding, Input, read_lines, read_numbered_lines};
pub(crate) use msl::read_msl;

use serde::Deserialize;

use super::FileDigest;
use super::events::EventLog;
use super::progress::Progress;
use crate::{Context, Error, Result};

/// What a source gives.
pub(crate) struct Raw {
    /// Who met what when.
    pub(crate) log: EventLog,
    /// What is known of the items of the log.
    pub(crate) catalogue: Catalogue,
    /// The format found, in a few words: "Amazon 2014".
    pub(crate) format: String,
}

/// What the user asked of a source.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadOptions {
    /// The format, rather than the one found in the files' content.
    pub(crate) format: Option<String>,
    /// Memory to work in, in bytes.
    pub(crate) memory: u64,
    /// Where temporary files go.
    pub(crate) scratch: PathBuf,
    /// Names of a table's columns.
    pub(crate) columns: Columns,
}

/// Names of the columns of a `table` source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// Who.
    pub user: Option<String>,
    /// What.
    pub item: Option<String>,
    /// When: Unix seconds, or milliseconds.
    pub time: Option<String>,
    /// The item's title.
    pub title: Option<String>,
    /// A rating.
    pub rating: Option<String>,
    /// More text on the item.
    pub text: Option<String>,
}

impl Columns {
    /// These names, and for want of one the other's.
    pub(crate) fn or(self, other: &Self) -> Self {
        Self {
            user: self.user.or(other.user.clone()),
            item: self.item.or(other.item.clone()),
            time: self.time.or(other.time.clone()),
            title: self.title.or(other.title.clone()),
            rating: self.rating.or(other.rating.clone()),
            text: self.text.or(other.text.clone()),
        }
    }
}

/// The files of the inputs: a folder stands for the files in it, by name.
pub(crate) fn files(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for input in inputs {
        let kind = fs::metadata(input).context(input.display())?;
        if kind.is_dir() {
            let mut inside = Vec::new();
            for entry in fs::read_dir(input).context(input.display())? {
                let path = entry.context(input.display())?.path();
                if path.is_file() {
                    inside.push(path);
                }
            }
            inside.sort();
            files.extend(inside);
        } else {
            files.push(input.clone());
        }
    }
    Ok(files)
}

/// About how many events `files` may hold at most, if each takes `bytes` bytes or more before
/// compression.
pub(crate) fn at_most(files: &[PathBuf], bytes: u64) -> Result<u64> {
    let mut total = 0u64;
    for file in files {
        let size = fs::metadata(file).context(file.display())?.len();
        // Logs as JSON or CSV shrink to a fifth or an eighth.
        total = total.saturating_add(if input::is_packed(file)? { size.saturating_mul(12) } else { size });
    }
    Ok(total / bytes.max(1) + 1)
}

/// The unit of a source's Unix times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    /// Milliseconds; times before 1970 or after 2100 are refused.
    pub(crate) fn milliseconds(self, time: i64) -> std::result::Result<i64, String> {
        const END: i64 = 4_102_444_800;
        let end = if self == Self::Seconds { END } else { END * 1000 };
        if !(0..end).contains(&time) {
            let unit = if self == Self::Seconds { "seconds" } else { "milliseconds" };
            return Err(format!("timestamp {time} is not between 1970 and 2100 in {unit}"));
        }
        Ok(if self == Self::Seconds { time * 1000 } else { time })
    }
}

/// Titles and other texts of the items of a log, by dense index.
#[derive(Default)]
pub(crate) struct Catalogue {
    titles: Vec<Option<Box<str>>>,
    /// Other columns of `items.parquet`, such as `genres`, by name.
    pub(crate) attributes: BTreeMap<&'static str, Vec<Option<Box<str>>>>,
}

impl Catalogue {
    /// Sets a title. An item may be described twice, but not by two titles: the error says both.
    pub(crate) fn set_title(&mut self, item: u32, title: &str) -> std::result::Result<(), String> {
        let place = place(&mut self.titles, item);
        match place {
            Some(known) if **known != *title => {
                Err(format!("two titles for one item: `{}` and `{}`", short(known), short(title)))
            }
            Some(_) => Ok(()),
            None => {
                *place = Some(title.into());
                Ok(())
            }
        }
    }

    /// [`Catalogue::set_title`], where a blank text is no title.
    pub(crate) fn describe(&mut self, item: u32, title: &str) -> std::result::Result<(), String> {
        if title.trim().is_empty() { Ok(()) } else { self.set_title(item, title) }
    }

    /// An item's title, if it has one.
    pub(crate) fn title(&self, item: u32) -> Option<&str> {
        self.titles.get(item as usize)?.as_deref()
    }

    /// Replaces a title.
    pub(crate) fn replace_title(&mut self, item: u32, title: String) {
        *place(&mut self.titles, item) = Some(title.into());
    }

    /// Sets an attribute; the last one counts.
    pub(crate) fn set_attribute(&mut self, name: &'static str, item: u32, text: &str) {
        *place(self.attributes.entry(name).or_default(), item) = Some(text.into());
    }
}

fn place(column: &mut Vec<Option<Box<str>>>, item: u32) -> &mut Option<Box<str>> {
    let at = item as usize;
    if column.len() <= at {
        column.resize(at + 1, None);
    }
    &mut column[at]
}

/// The start of a text, for an error line.
pub(crate) fn short(text: &str) -> String {
    let mut start: String = text.chars().take(60).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

/// Reading under way: bad rows, digests, progress.
pub(crate) struct Job {
    /// So many bad rows are left out before one is an error.
    pub(crate) skip_bad: u64,
    /// Bad rows left out.
    pub(crate) skipped: u64,
    /// The files read.
    pub(crate) inputs: Vec<FileDigest>,
    /// Rows read, for people.
    pub(crate) progress: Progress,
}

impl Job {
    /// Reading `total` stored bytes.
    pub(crate) fn new(skip_bad: u64, total: u64) -> Self {
        Self { skip_bad, skipped: 0, inputs: Vec::new(), progress: Progress::new("reading", total) }
    }

    #[cfg(test)]
    pub(crate) fn quiet() -> Self {
        Self::new(0, 0)
    }

    /// Counts a bad row; an error if too many are.
    pub(crate) fn bad(&mut self, path: &Path, line: u64, what: &str) -> Result<()> {
        self.bad_at(path, &format!("line {line}"), what)
    }

    /// [`Job::bad`] of a file that has no lines.
    pub(crate) fn bad_at(&mut self, path: &Path, place: &str, what: &str) -> Result<()> {
        if self.skipped >= self.skip_bad {
            let beyond =
                if self.skip_bad > 0 { format!(" (bad rows before it: {})", self.skipped) } else { String::new() };
            return Err(Error::failed(format!("{}: {place}: {what}{beyond}", path.display())));
        }
        self.skipped += 1;
        Ok(())
    }
}
