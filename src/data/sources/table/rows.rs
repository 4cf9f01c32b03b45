//! Rows of tables, whatever their format, before they go to the log and the catalogue.

use super::settings::Settings;
use crate::Result;
use crate::data::event_log::{EventLog, Events};
use crate::data::interner::StringArena;
use crate::data::sources::dataset::Catalogue;
use crate::data::sources::fields::{self, present, trim};
use crate::data::sources::lines::RecordResult;
use crate::data::sources::options::TitleChoice;
use crate::data::sources::times::{TimeParser, TimeValue};

/// A value of a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cell<'a> {
    Missing,
    Text(&'a str),
    Whole(i128),
    Float(f64),
    /// Unix time in milliseconds.
    Date(i64),
}

/// The cells of a row; empty texts are missing.
pub(super) struct Row<'a> {
    pub(super) user: &'a str,
    pub(super) item: &'a str,
    pub(super) time: Cell<'a>,
    pub(super) rating: Cell<'a>,
    pub(super) title: &'a str,
    pub(super) text: &'a str,
}

/// Kind of a table's rows.
pub(super) struct RowKind<'a> {
    /// Whether they are events; else they describe items.
    pub(super) log: bool,
    pub(super) rated: bool,
    /// Whether they have titles or texts.
    pub(super) described: bool,
    /// The times of a log; `None` without times.
    pub(super) times: Option<&'a TimeParser>,
    pub(super) settings: &'a Settings,
}

/// A block of rows. Those of a catalogue have no more than the item of an event.
#[derive(Default)]
pub(super) struct Block {
    events: Events,
    /// Titles and texts of the rows, if they describe items; empty where the row before has the
    /// same for the same item.
    titles: StringArena,
    texts: StringArena,
    /// Item, title and text of the last row that is described.
    last: [String; 3],
    /// Whether any JSON object has the keys of title and text.
    pub(super) found: [bool; 2],
}

/// Returns a cell as a time; `None` if it is missing.
pub(super) fn time_value(cell: Cell) -> RecordResult<Option<TimeValue>> {
    Ok(Some(match cell {
        Cell::Missing => return Ok(None),
        Cell::Text(text) if trim(text).is_empty() => return Ok(None),
        Cell::Text(text) => TimeValue::Text(text),
        Cell::Whole(number) => {
            TimeValue::Whole(i64::try_from(number).map_err(|_| format!("time {number} is not between 1970 and 2100"))?)
        }
        Cell::Float(number) => TimeValue::Float(number),
        Cell::Date(time) => TimeValue::Date(time),
    }))
}

/// Returns a rating; NaN where there is none, as databases and pandas write it.
fn rating(cell: Cell) -> RecordResult<f32> {
    const NONE: [&str; 6] = ["null", "none", "nan", "na", "n/a", "\\n"];
    let rating = match cell {
        Cell::Missing => return Ok(f32::NAN),
        Cell::Text(text) => {
            let text = trim(text);
            if text.is_empty() || NONE.iter().any(|none| text.eq_ignore_ascii_case(none)) {
                return Ok(f32::NAN);
            }
            fields::rating(text)?
        }
        Cell::Date(_) => return Err("the rating is a time".into()),
        Cell::Whole(number) => number as f32,
        Cell::Float(number) if number.is_nan() => return Ok(f32::NAN),
        Cell::Float(number) => number as f32,
    };
    if rating.is_finite() { Ok(rating) } else { Err(format!("rating {rating} is not finite")) }
}

impl Block {
    /// Adds a row; the error is what is wrong with it.
    pub(super) fn push(&mut self, row: &Row, kind: &RowKind) -> RecordResult<()> {
        if !kind.log {
            let item = present(row.item, "item")?;
            if !row.user.trim().is_empty() {
                return Err("a user, but the first rows of the file have none: a catalogue has no users".into());
            }
            self.events.items.push(item);
            self.describe(item, row, kind);
            return Ok(());
        }
        let user = present(row.user, "user")?;
        let item = present(row.item, "item")?;
        let time = match kind.times {
            None => 0,
            Some(times) => times.milliseconds(time_value(row.time)?.ok_or("no time")?)?,
        };
        let rating = if kind.rated { rating(row.rating)? } else { f32::NAN };
        let Some(separator) = &kind.settings.item_separator else {
            self.events.push(user, item, time, rating);
            self.describe(item, row, kind);
            return Ok(());
        };
        let parts = item.split(separator.as_str()).map(str::trim).filter(|part| !part.is_empty());
        let ids = parts.filter_map(|part| match &kind.settings.clicked_suffix {
            None => Some(part),
            Some(suffix) => part.strip_suffix(suffix.as_str()),
        });
        let ids = ids.map(|id| present(id, "item")).collect::<RecordResult<Vec<&str>>>()?;
        for id in ids {
            self.events.push(user, id, time, rating);
            self.describe(id, row, kind);
        }
        Ok(())
    }

    fn describe(&mut self, item: &str, row: &Row, kind: &RowKind) {
        if !kind.described {
            return;
        }
        // Logs are often sorted by item, and repeat its title.
        let repeats = (item, row.title, row.text) == (&*self.last[0], &*self.last[1], &*self.last[2]);
        let (title, text) = if repeats { ("", "") } else { (row.title, row.text) };
        self.titles.push(title);
        self.texts.push(text);
        if !repeats {
            for (last, new) in self.last.iter_mut().zip([item, row.title, row.text]) {
                last.clear();
                last.push_str(new);
            }
        }
    }

    /// Adds the rows to the log and the catalogue.
    pub(super) fn add_to(self, kind: &RowKind, log: &mut EventLog, catalogue: &mut Catalogue) -> Result<()> {
        let items = if kind.log { log.append_numbered(&self.events)? } else { Vec::new() };
        let described = self.events.items.iter().zip(self.titles.iter().zip(self.texts.iter()));
        for (index, (id, (title, text))) in described.enumerate() {
            if trim(title).is_empty() && trim(text).is_empty() {
                continue;
            }
            let item = if kind.log { items.get(index).copied() } else { log.items.find(id) };
            let Some(item) = item else {
                catalogue.count_unmatched(id);
                continue;
            };
            if !title.trim().is_empty() {
                catalogue.choose_title(item, title, kind.settings.title_choice == TitleChoice::Last);
            }
            if !text.trim().is_empty() {
                catalogue.set_attribute("text", item, text);
            }
        }
        Ok(())
    }
}
