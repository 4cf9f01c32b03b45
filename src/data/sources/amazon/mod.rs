//! Amazon's reviews and item metadata, as McAuley's group publishes them.
//!
//! | edition | reviews | ratings alone | metadata |
//! |---|---|---|---|
//! | 2014 | JSON lines: `reviewerID`, `asin`, `unixReviewTime` (s), `overall` | CSV, no header: user, item, rating, time | Python literals: `asin`, `title` |
//! | 2018 | the same keys, and `verified` | CSV, no header: item, user, rating, time | JSON lines: `asin`, `title` |
//! | 2023 | JSON lines: `user_id`, `parent_asin`, `timestamp` (ms), `rating` | CSV: `user_id,parent_asin,rating,timestamp`, perhaps `history` | JSON lines or Parquet: `parent_asin`, `title` |
//!
//! In 2023 the item is `parent_asin` (`asin` is its variant), and a review's own `title` is not the
//! item's.
//!
//! Sources of this, and what else is known of the files:
//! - 2014: LlamaRec's `DATASET.md` and DSXiangLi/CTR's `data/amazon/readme.md` repeat the owners'
//!   page and show its files.
//! - The CSVs of 2014 and 2018 differ in the order of columns: LensKit's `data/sources/amazon.py`,
//!   which tells them apart by the `A` that 2014's rows begin with. We look at which field has the
//!   form of an item's id.
//! - 2018's metadata has "titles" that are pieces of a page's script or HTML. The owners' notebook
//!   drops them by the word `getTime` (as many who copied it show), common preprocessing by `<span
//!   id` (AkaliKong/MiniOneRec issue 20). Here they are no titles.
//! - Reviews and metadata lines come twice in all editions (LensKit's `docs/guide/data/amazon.rst`;
//!   in 2023 hyp1231/AmazonReviews2023 issue 20, which also has a rating of 0.0), and a quarter of
//!   2023's items has no metadata (its issue 15).
//! - 2023's CSVs: amazon-reviews-2023.github.io/data_processing/0core.html. Those with a `history`
//!   column hold each event once over train, valid and test, and the script that writes them
//!   (`benchmark_scripts/last_out_split.py`) wrote no header yet.

mod detect;
mod parquet;

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use self::detect::{DetectedFile, Edition, Role, Syntax};
use super::dataset::{Catalogue, RawDataset};
use super::encoding::Encoding;
use super::fields::shorten;
use super::files::max_rows;
use super::lines::{read_lines, read_numbered_lines};
use super::options::ReadOptions;
use super::python;
use super::python::Value;
use super::read_context::ReadContext;
use super::source_file::SourceFile;
use super::times::Unit;
use crate::data::event_log::{EventLog, Events};
use crate::data::interner::{Interner, StringArena};
use crate::{Error, Result};

/// Least bytes of a review and of a CSV row, as published.
const REVIEW_BYTES: u64 = 200;
const ROW_BYTES: u64 = 36;
/// Texts that mark a "title" of 2018 as a piece of a page's script or HTML.
const NO_TITLE: [&str; 2] = ["getTime", "<span id"];

/// A parsed line, or what is wrong with it.
type Line<T> = std::result::Result<T, String>;

/// Reads Amazon files: the reviews, in the order of the files and their lines, then titles for
/// their items.
///
/// Each file's role is detected from its first line, and the edition from all of them together;
/// `options.format` (`2014`, `2018`, `2023`) forces the edition. Titles are as the metadata has
/// them, HTML entities included; of two different titles for one item the second is a bad line.
/// Reviews and metadata that come twice are left for later steps.
///
/// Each file's role is found from its first line, and the edition from all of them together;
/// `options.format` (`2014`, `2018`, `2023`) forces the edition. Titles are as the metadata has
/// them, HTML entities included; of two different titles for one item the second is a bad line.
/// Reviews and metadata that come twice are left for later steps.
///
/// # Errors
/// Usage: an unknown format, files of two editions, no review file, no metadata file. Failed: a
/// file that is neither, and more bad lines than the job allows.
pub(crate) fn read(files: &[SourceFile], options: &ReadOptions, context: &mut ReadContext) -> Result<RawDataset> {
    let found = files.iter().map(detect::role).collect::<Result<Vec<_>>>()?;
    let edition = match &options.format {
        Some(name) => Edition::from_name(name)?,
        None => detect::edition(&found)?,
    };
    let (reviews, metadata): (Vec<&DetectedFile>, Vec<&DetectedFile>) =
        found.iter().partition(|f| f.role == Role::Reviews);
    if reviews.is_empty() {
        return Err(Error::usage(
            "no review file among the inputs: add Amazon's reviews (JSON lines) or ratings (CSV)",
        ));
    }
    if metadata.is_empty() {
        return Err(Error::usage(
            "no metadata file among the inputs, so items would have no titles: add Amazon's metadata of the same \
             category \
             (meta_*.json.gz or meta_*.jsonl.gz)",
        ));
    }

    let mut events = 0;
    for file in &reviews {
        let bytes = if matches!(file.syntax, Syntax::Csv(_)) { ROW_BYTES } else { REVIEW_BYTES };
        events += max_rows(std::slice::from_ref(&file.path), bytes)?;
    }
    let mut log = EventLog::new(events, &options.workspace, true, true)?;
    for file in &reviews {
        read_reviews(file, edition, &mut log, context)?;
    }
    log.finish()?;
    let mut catalogue = Catalogue::default();
    for file in &metadata {
        read_titles(file, edition, &log.items, &mut catalogue, context)?;
    }
    let format = format!("Amazon {edition} (reviews as {}, metadata as {})", kinds(&reviews), kinds(&metadata));
    Ok(RawDataset { log, catalogue, format })
}

/// Returns the syntaxes of files, for people.
fn kinds(files: &[&DetectedFile]) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    for file in files {
        let kind = file.syntax.name();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.join(" and ")
}

fn read_reviews(file: &DetectedFile, edition: Edition, log: &mut EventLog, context: &mut ReadContext) -> Result<()> {
    if file.syntax == Syntax::Parquet {
        return parquet::read_reviews(file, log, context);
    }
    let sink = |events: Events| log.append(&events);
    let unit = edition.unit();
    match &file.syntax {
        Syntax::Csv(header) => {
            let columns = match header {
                Some(header) => header_columns(&file.path, header)?,
                None => edition.columns(),
            };
            let skip = u64::from(header.is_some());
            read_lines(
                &file.path,
                Encoding::Utf8,
                skip,
                context,
                |line, events| row(line, &columns, unit, events),
                sink,
            )
        }
        _ if edition == Edition::Y2023 => read_lines(
            &file.path,
            Encoding::Utf8,
            0,
            context,
            |line, events| {
                let Review2023 { user_id, parent_asin, rating, timestamp } =
                    serde_json::from_str(line).map_err(json_error)?;
                event(
                    events,
                    &user_id,
                    &parent_asin,
                    rating.real(),
                    unit.milliseconds(timestamp.whole_number("timestamp")?)?,
                )
            },
            sink,
        ),
        _ => read_lines(
            &file.path,
            Encoding::Utf8,
            0,
            context,
            |line, events| {
                let Review { reviewer, asin, overall, time } = serde_json::from_str(line).map_err(json_error)?;
                event(
                    events,
                    &reviewer,
                    &asin,
                    overall.real(),
                    unit.milliseconds(time.whole_number("unixReviewTime")?)?,
                )
            },
            sink,
        ),
    }
}

/// A review of 2014 or 2018.
#[derive(Deserialize)]
struct Review<'a> {
    #[serde(borrow, rename = "reviewerID")]
    reviewer: Cow<'a, str>,
    #[serde(borrow)]
    asin: Cow<'a, str>,
    overall: Number,
    #[serde(rename = "unixReviewTime")]
    time: Number,
}

#[derive(Deserialize)]
struct Review2023<'a> {
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow)]
    parent_asin: Cow<'a, str>,
    rating: Number,
    timestamp: Number,
}

/// A number, also one that is written in quotes.
#[derive(Clone, Copy)]
enum Number {
    Whole(i64),
    Real(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        text.parse().map(Self::Whole).or_else(|_| text.parse().map(Self::Real)).ok()
    }

    fn real(self) -> f32 {
        match self {
            Self::Whole(number) => number as f32,
            Self::Real(number) => number as f32,
        }
    }

    /// Returns a whole number, also if it is written as 5.0.
    fn whole_number(self, name: &str) -> Line<i64> {
        match self {
            Self::Whole(number) => Ok(number),
            Self::Real(number) if number.fract() == 0.0 && number.abs() < 1e15 => Ok(number as i64),
            Self::Real(number) => Err(format!("{name} {number} is not a whole number")),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct NumberVisitor;
        impl Visitor<'_> for NumberVisitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_i64<E>(self, number: i64) -> std::result::Result<Number, E> {
                Ok(Number::Whole(number))
            }

            fn visit_u64<E>(self, number: u64) -> std::result::Result<Number, E> {
                Ok(i64::try_from(number).map_or(Number::Real(number as f64), Number::Whole))
            }

            fn visit_f64<E>(self, number: f64) -> std::result::Result<Number, E> {
                Ok(Number::Real(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Number, E> {
                Number::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(NumberVisitor)
    }
}

/// Returns serde's message with the column in place of its "line 1 column 7", which is no line of
/// the file.
fn json_error(error: serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    let cut = if error.is_eof() { "; is the line cut?" } else { "" };
    format!("column {}: {what}{cut}", error.column())
}

/// Adds an event, if it is a good one.
fn event(events: &mut Events, user: &str, item: &str, rating: f32, time: i64) -> Line<()> {
    for (id, what) in [(user, "user"), (item, "item")] {
        if id.trim().is_empty() {
            return Err(format!("the {what} id is empty"));
        }
    }
    if !rating.is_finite() {
        return Err("the rating is not a finite number".into());
    }
    events.push(user, item, time, rating);
    Ok(())
}

/// Index of user, item, rating and time in a CSV's row, and its number of fields.
struct Columns {
    indices: [usize; 4],
    fields: usize,
}

fn header_columns(path: &SourceFile, header: &str) -> Result<Columns> {
    let names: Vec<&str> = header.split(',').map(str::trim).collect();
    let mut indices = [0; 4];
    for (index, wanted) in indices.iter_mut().zip(["user_id", "parent_asin", "rating", "timestamp"]) {
        *index = names.iter().position(|name| *name == wanted).ok_or_else(|| {
            let what = "needs user_id,parent_asin,rating,timestamp";
            Error::failed(format!("{}: line 1: column {wanted} is missing ({what})", path))
        })?;
    }
    Ok(Columns { indices, fields: names.len() })
}

fn row(line: &str, columns: &Columns, unit: Unit, events: &mut Events) -> Line<()> {
    let mut values = [""; 4];
    let mut fields = 0;
    for field in line.split(',') {
        for (value, index) in values.iter_mut().zip(columns.indices) {
            if index == fields {
                *value = field;
            }
        }
        fields += 1;
    }
    if fields != columns.fields {
        return Err(format!("{fields} fields between commas, not {}", columns.fields));
    }
    let [user, item, rating, time] = values;
    let number = |name: &str, text: &str| {
        Number::parse(text).ok_or_else(|| format!("{name} `{}` is not a number", shorten(text)))
    };
    let time = unit.milliseconds(number("timestamp", time)?.whole_number("timestamp")?)?;
    event(events, user, item, number("rating", rating)?.real(), time)
}

/// Titles of items of the log.
#[derive(Default)]
struct Titles {
    lines: Vec<u64>,
    items: Vec<u32>,
    titles: StringArena,
    /// An item that the log does not have.
    unmatched: Option<String>,
}

impl Titles {
    /// Adds the title of an item, if the log has the item; a blank title is none.
    fn push(&mut self, line: u64, id: &str, title: Option<&str>, items: &Interner) {
        match (items.find(id), title.filter(|title| !title.trim().is_empty())) {
            (Some(item), Some(title)) => {
                self.lines.push(line);
                self.items.push(item);
                self.titles.push(title);
            }
            (None, _) if self.unmatched.is_none() => self.unmatched = Some(id.to_string()),
            _ => {}
        }
    }
}

/// Gives the catalogue its titles. Of two different ones for an item the second is a bad row.
fn take_titles(
    found: Titles,
    file: &SourceFile,
    row: &str,
    items: &Interner,
    catalogue: &mut Catalogue,
    context: &mut ReadContext,
) -> Result<()> {
    if let Some(id) = &found.unmatched {
        catalogue.count_unmatched(id);
    }
    for ((line, item), title) in found.lines.into_iter().zip(found.items).zip(found.titles.iter()) {
        if let Err(what) = catalogue.set_title(item, title) {
            context.bad_row_at(
                file,
                &format!("{row} {line}"),
                &format!("item {}: {what}", shorten(items.get(item))),
            )?;
        }
    }
    Ok(())
}

fn read_titles(
    file: &DetectedFile,
    edition: Edition,
    items: &Interner,
    catalogue: &mut Catalogue,
    context: &mut ReadContext,
) -> Result<()> {
    if file.syntax == Syntax::Parquet {
        return parquet::read_titles(file, items, catalogue, context);
    }
    let path = &file.path;
    let parse = |number: u64, line: &str, out: &mut Titles| -> Line<()> {
        let (id, title) = if file.syntax == Syntax::Python { literal(line)? } else { item_and_title(line, edition)? };
        if id.trim().is_empty() {
            return Err("the item id is empty".into());
        }
        let junk = |title: &str| edition == Edition::Y2018 && NO_TITLE.iter().any(|mark| title.contains(mark));
        out.push(number, &id, title.as_deref().filter(|title| !junk(title)), items);
        Ok(())
    };
    read_numbered_lines(path, Encoding::Utf8, 0, context, parse, |context, found| {
        take_titles(found, path, "line", items, catalogue, context)
    })
}

/// Returns an item's id and title from a line of JSON.
fn item_and_title(line: &str, edition: Edition) -> Line<(Cow<'_, str>, Option<Cow<'_, str>>)> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    #[derive(Deserialize)]
    struct Item<'a> {
        #[serde(borrow)]
        asin: Option<Text<'a>>,
        #[serde(borrow)]
        parent_asin: Option<Text<'a>>,
        #[serde(borrow)]
        title: Option<Text<'a>>,
    }

    let Item { asin, parent_asin, title } = serde_json::from_str(line).map_err(json_error)?;
    let (id, key) = if edition == Edition::Y2023 { (parent_asin, "parent_asin") } else { (asin, "asin") };
    let id = id.ok_or_else(|| format!("missing field `{key}`"))?;
    Ok((id.0, title.map(|t| t.0)))
}

/// Returns an item's id and title from a line that is a Python literal.
fn literal(line: &str) -> Line<(Cow<'_, str>, Option<Cow<'_, str>>)> {
    let mut item = python::parse(line)?;
    let Some(Value::Text(id)) = item.take("asin") else { return Err("not a dict with a text under `asin`".into()) };
    match item.take("title") {
        None | Some(Value::None) => Ok((id, None)),
        Some(Value::Text(title)) => Ok((id, Some(title))),
        Some(_) => Err("`title` is not a text".into()),
    }
}

#[cfg(test)]
mod tests;
