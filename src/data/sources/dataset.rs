//! The raw data of a source: an event log and texts of its items.

use std::collections::{BTreeMap, HashSet};

use super::fields::shorten;
use crate::data::event_log::EventLog;

/// The raw data of a source.
pub(crate) struct RawDataset {
    /// The events.
    pub(crate) log: EventLog,
    /// Titles and other texts of the log's items.
    pub(crate) catalogue: Catalogue,
    /// The detected format, in a few words: "Amazon 2014".
    pub(crate) format: String,
}

/// Titles and other texts of the items of a log, by dense index.
#[derive(Default)]
pub(crate) struct Catalogue {
    titles: Vec<Option<Box<str>>>,
    /// Items with more than one title.
    retitled: HashSet<u32>,
    /// An id that has a title, but is none of the log's.
    pub(crate) unmatched: Option<String>,
    /// Reason why there are no titles at all, where that is known.
    pub(crate) missing: Option<&'static str>,
    /// Other columns of `items.parquet`, such as `genres`, by name.
    pub(crate) attributes: BTreeMap<&'static str, Vec<Option<Box<str>>>>,
}

impl Catalogue {
    /// Sets a title. An item may have its title twice, but not two titles: the error has both.
    pub(crate) fn set_title(&mut self, item: u32, title: &str) -> std::result::Result<(), String> {
        let known = entry(&mut self.titles, item);
        match known {
            Some(known) if **known != *title => {
                Err(format!("two titles for one item: `{}` and `{}`", shorten(known), shorten(title)))
            }
            Some(_) => Ok(()),
            None => {
                *known = Some(title.into());
                Ok(())
            }
        }
    }

    /// Sets the first or the last title of an item.
    pub(crate) fn choose_title(&mut self, item: u32, title: &str, last: bool) {
        let known = entry(&mut self.titles, item);
        match known {
            None => *known = Some(title.into()),
            Some(known) if **known == *title => {}
            Some(known) => {
                self.retitled.insert(item);
                if last {
                    *known = title.into();
                }
            }
        }
    }

    /// Returns the number of items with more than one title.
    pub(crate) fn retitled_items(&self) -> usize {
        self.retitled.len()
    }

    /// Keeps an id that is none of the log's, for a message.
    pub(crate) fn count_unmatched(&mut self, id: &str) {
        if self.unmatched.is_none() {
            self.unmatched = Some(id.to_string());
        }
    }

    /// Sets a title as [`Catalogue::set_title`]; a blank text is no title.
    pub(crate) fn describe(&mut self, item: u32, title: &str) -> std::result::Result<(), String> {
        if title.trim().is_empty() { Ok(()) } else { self.set_title(item, title) }
    }

    /// Returns an item's title, if it has one.
    pub(crate) fn title(&self, item: u32) -> Option<&str> {
        self.titles.get(item as usize)?.as_deref()
    }

    /// Replaces a title.
    pub(crate) fn replace_title(&mut self, item: u32, title: String) {
        *entry(&mut self.titles, item) = Some(title.into());
    }

    /// Sets an attribute; the last one counts.
    pub(crate) fn set_attribute(&mut self, name: &'static str, item: u32, text: &str) {
        *entry(self.attributes.entry(name).or_default(), item) = Some(text.into());
    }
}

fn entry(column: &mut Vec<Option<Box<str>>>, item: u32) -> &mut Option<Box<str>> {
    let index = item as usize;
    if column.len() <= index {
        column.resize(index + 1, None);
    }
    &mut column[index]
}
