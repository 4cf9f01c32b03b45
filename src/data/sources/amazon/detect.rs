//! Detects what a file is, from its first line, and which edition several files are of.

use std::fmt;

use super::{Columns, Number, Unit, parquet};
use crate::data::sources::fields::shorten;
use crate::data::sources::input::{Input, signature};
use crate::data::sources::signature::Signature;
use crate::data::sources::source_file::SourceFile;
use crate::{Error, Result};

/// A release of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edition {
    Y2014,
    Y2018,
    Y2023,
}

use Edition::{Y2014, Y2018, Y2023};

impl Edition {
    pub(super) fn from_name(name: &str) -> Result<Self> {
        let all = [Y2014, Y2018, Y2023];
        let found = all.into_iter().find(|edition| edition.to_string() == name);
        found.ok_or_else(|| Error::usage(format!("`{name}` is no format of Amazon's data: use 2014, 2018 or 2023")))
    }

    pub(super) fn unit(self) -> Unit {
        if self == Y2023 { Unit::Milliseconds } else { Unit::Seconds }
    }

    /// Returns the columns of a CSV without a header.
    pub(super) fn columns(self) -> Columns {
        let indices = if self == Y2018 { [1, 0, 2, 3] } else { [0, 1, 2, 3] };
        Columns { indices, fields: 4 }
    }
}

impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Y2014 => "2014",
            Y2018 => "2018",
            Y2023 => "2023",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Reviews,
    Metadata,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Json,
    Python,
    /// Delimited text, with its header if it has one.
    Csv(Option<String>),
    Parquet,
}

impl Syntax {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Json => "JSON lines",
            Self::Python => "Python literals",
            Self::Csv(_) => "CSV",
            Self::Parquet => "Parquet",
        }
    }
}

/// A file and what it is.
pub(super) struct DetectedFile {
    pub(super) path: SourceFile,
    pub(super) role: Role,
    pub(super) syntax: Syntax,
    /// The editions that have such files.
    editions: &'static [Edition],
}

/// Keys of reviews and items; `_2014`, `_2018`: those that only one of these editions has.
const REVIEW: [&str; 4] = ["reviewerID", "unixReviewTime", "overall", "reviewText"];
const REVIEW_2014: [&str; 1] = ["helpful"];
const REVIEW_2018: [&str; 4] = ["verified", "style", "vote", "image"];
const REVIEW_2023: [&str; 4] = ["user_id", "timestamp", "rating", "verified_purchase"];
const ITEM: [&str; 1] = ["asin"];
const ITEM_2014: [&str; 4] = ["imUrl", "related", "salesRank", "categories"];
const ITEM_2018: [&str; 6] = ["also_buy", "also_view", "main_cat", "category", "tech1", "similar_item"];
const ITEM_2023: [&str; 4] = ["parent_asin", "main_category", "average_rating", "rating_number"];

/// Detects what a file is.
pub(super) fn role(path: &SourceFile) -> Result<DetectedFile> {
    if signature(path)? == Signature::Parquet {
        let Some(role) = parquet::role(path)? else {
            let what = "neither Amazon's reviews of 2023 (user_id, parent_asin, rating, timestamp) nor its metadata \
                        (parent_asin, title), by its columns";
            return Err(Error::failed(format!("{path}: {what}")));
        };
        return Ok(DetectedFile { path: path.clone(), role, syntax: Syntax::Parquet, editions: &[Y2023] });
    }
    let line = &Input::first_line(path)?;
    let found = if line.trim_start().starts_with('{') { object(line) } else { csv(line) };
    let (role, syntax, editions) = found.ok_or_else(|| {
        Error::failed(format!(
            "{}: line 1 is neither of Amazon's reviews nor of its metadata; expected are JSON lines with reviewerID \
             or user_id, \
             a CSV of four columns with or without the header user_id,parent_asin,rating,timestamp, or items as JSON \
             lines or \
             Python literals with asin or parent_asin, not `{}`",
            path,
            shorten(line)
        ))
    })?;
    Ok(DetectedFile { path: path.clone(), role, syntax, editions })
}

type FileKind = (Role, Syntax, &'static [Edition]);

fn object(line: &str) -> Option<FileKind> {
    let (keys, python) = keys(line);
    let any = |of: &[&str]| keys.iter().any(|key| of.contains(key));
    let by_key = |of_2014: &[&str], of_2018: &[&str]| -> &'static [Edition] {
        match (any(of_2014), any(of_2018)) {
            (true, false) => &[Y2014],
            (false, true) => &[Y2018],
            _ => &[Y2014, Y2018],
        }
    };
    let (role, editions): (Role, &'static [Edition]) = if any(&REVIEW) {
        (Role::Reviews, by_key(&REVIEW_2014, &REVIEW_2018))
    } else if any(&REVIEW_2023) {
        (Role::Reviews, &[Y2023])
    } else if any(&ITEM_2023) {
        (Role::Metadata, &[Y2023])
    } else if python && (any(&ITEM) || any(&ITEM_2014)) {
        (Role::Metadata, &[Y2014])
    } else if any(&ITEM) || any(&ITEM_2014) || any(&ITEM_2018) {
        (Role::Metadata, by_key(&ITEM_2014, &ITEM_2018))
    } else {
        return None;
    };
    Some((role, if python { Syntax::Python } else { Syntax::Json }, editions))
}

/// Returns the keys of the JSON object or Python dict that a line begins, as far as it goes (a line
/// may be cut or broken), and whether it is Python, by its quotes.
fn keys(line: &str) -> (Vec<&str>, bool) {
    let bytes = line.as_bytes();
    let (mut keys, mut python) = (Vec::new(), false);
    let (mut at, mut depth) = (0, 0usize);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth = depth.saturating_sub(1),
            b'"' | b'\'' => {
                let start = at;
                while let Some(inside) = bytes.get(at).filter(|b| *b != byte) {
                    at += if *inside == b'\\' { 2 } else { 1 };
                }
                python |= *byte == b'\'';
                let end = at;
                at += 1;
                let after = bytes.get(at..).unwrap_or_default().iter().find(|b| !b.is_ascii_whitespace());
                if depth == 1 && after == Some(&b':') {
                    keys.extend(line.get(start..end));
                }
            }
            _ => {}
        }
    }
    (keys, python)
}

fn csv(line: &str) -> Option<FileKind> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    if fields.contains(&"user_id") && fields.contains(&"parent_asin") {
        return Some((Role::Reviews, Syntax::Csv(Some(line.to_string())), &[Y2023]));
    }
    let [first, second, rating, time] = fields[..] else { return None };
    Number::parse(rating)?;
    let time = Number::parse(time)?.whole_number("timestamp").ok()?;
    // Items are ISBNs or begin with B; reviewers begin with A.
    let item = |id: &str| id.len() == 10 && id.starts_with(|c: char| c == 'B' || c.is_ascii_digit());
    let editions: &'static [Edition] =
        if Unit::Seconds.milliseconds(time).is_err() && Unit::Milliseconds.milliseconds(time).is_ok() {
            &[Y2023]
        } else if item(second) && !item(first) {
            &[Y2014]
        } else if item(first) && !item(second) {
            &[Y2018]
        } else {
            &[Y2014, Y2018]
        };
    Some((Role::Reviews, Syntax::Csv(None), editions))
}

/// Returns the one edition that all files can be of.
pub(super) fn edition(found: &[DetectedFile]) -> Result<Edition> {
    let mut common = vec![Y2014, Y2018, Y2023];
    for (at, file) in found.iter().enumerate() {
        common.retain(|edition| file.editions.contains(edition));
        if common.is_empty() {
            let name = |file: &DetectedFile| {
                let editions: Vec<String> = file.editions.iter().map(Edition::to_string).collect();
                format!("{} is of Amazon {}", file.path, editions.join(" or "))
            };
            let apart = |other: &&DetectedFile| !other.editions.iter().any(|edition| file.editions.contains(edition));
            let other = found.iter().take(at).find(apart).unwrap_or(file);
            return Err(Error::usage(format!(
                "{}, but {}: give files of one edition, or say which with option `format`",
                name(other),
                name(file)
            )));
        }
    }
    match common[..] {
        [edition] => Ok(edition),
        // What is left is read alike, but for a CSV's columns.
        _ => match found.iter().find(|file| file.syntax == Syntax::Csv(None)) {
            None => Ok(Y2018),
            Some(file) => Err(Error::usage(format!(
                "{}: 2014's user,item,rating,time cannot be told from 2018's item,user,rating,time: say which with \
                 option `format`",
                file.path
            ))),
        },
    }
}
