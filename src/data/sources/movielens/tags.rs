//! Tags that people gave the movies.

use std::collections::{BTreeMap, HashMap};

use super::{
    Catalogue, DelimitedFile, Dialect, ReadContext, SourceFile, encoding, present, read_numbered_lines, wrong_fields,
};
use crate::Result;
use crate::data::interner::Interner;

/// Most tags that an item keeps.
const MOST: usize = 20;

/// The number of times that each item was given each tag.
#[derive(Default)]
pub(super) struct Tags {
    counts: BTreeMap<u32, HashMap<String, u64>>,
}

impl Tags {
    /// Reads `tags.csv`, or `user::item::tag::timestamp` whose tag may hold `::`. A few published
    /// tags are empty; they count for nothing. A `|` in a tag, which separates the tags of an item,
    /// becomes a space.
    pub(super) fn read(
        &mut self,
        path: &SourceFile,
        csv: bool,
        items: &Interner,
        context: &mut ReadContext,
    ) -> Result<()> {
        let parse = |id: &str, tag: &str, tags: &mut Vec<(u32, String)>| -> std::result::Result<(), String> {
            let item = items.find(present(id, "movie")?);
            let tag = tag.replace('|', " ");
            if let Some(item) = item.filter(|_| !tag.trim().is_empty()) {
                tags.push((item, tag.trim().to_string()));
            }
            Ok(())
        };
        let count = |_: &mut ReadContext, tags: Vec<(u32, String)>| {
            for (item, tag) in tags {
                *self.counts.entry(item).or_default().entry(tag).or_default() += 1;
            }
            Ok(())
        };
        if csv {
            let records = DelimitedFile::open(path, Dialect::CSV)?;
            let (item, tag) = (records.column("movieId")?, records.column("tag")?);
            return records.read(context, |_, record, tags| parse(record.get(item), record.get(tag), tags), count);
        }
        let split = |line: &str, tags: &mut Vec<(u32, String)>| {
            let mut ends = line.splitn(3, "::");
            let (_, item, rest) = (ends.next(), ends.next(), ends.next());
            let (Some(item), Some((tag, _))) = (item, rest.and_then(|rest| rest.rsplit_once("::"))) else {
                return Err(wrong_fields(4, "::", line.split("::").count()));
            };
            parse(item, tag, tags)
        };
        read_numbered_lines(path, encoding(path)?, 0, context, |_, line, tags| split(line, tags), count)
    }

    /// Gives the items their tags, the most frequent first, then by the alphabet.
    pub(super) fn describe(self, catalogue: &mut Catalogue) {
        for (item, counts) in self.counts {
            let mut tags: Vec<(String, u64)> = counts.into_iter().collect();
            tags.sort_by(|(a, often), (b, other)| other.cmp(often).then_with(|| a.cmp(b)));
            let names: Vec<&str> = tags.iter().take(MOST).map(|(tag, _)| tag.as_str()).collect();
            catalogue.set_attribute("tags", item, &names.join("|"));
        }
    }
}
