//! The cleaning steps.

use std::collections::HashSet;

use polars::prelude::{LazyFrame, UniqueKeepStrategy, col, cols, lit};
use sha2::{Digest, Sha256};

use super::config::CleaningStep;
use crate::data::Step;
use crate::data::event_log::EventLog;
use crate::data::progress::check_stop;
use crate::data::sources::{Catalogue, RawDataset, shorten};
use crate::{Error, Result};

/// Users and items that have an event.
pub(super) struct PresentIds {
    pub(super) users: Vec<bool>,
    pub(super) items: Vec<bool>,
}

impl PresentIds {
    pub(super) fn collect(log: &EventLog) -> Result<Self> {
        let mut present = Self { users: vec![false; log.users.len()], items: vec![false; log.items.len()] };
        log.pairs(|user, item| {
            present.users[user as usize] = true;
            present.items[item as usize] = true;
        })?;
        Ok(present)
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        let count = |flags: &[bool]| flags.iter().filter(|f| **f).count();
        (count(&self.users), count(&self.items))
    }
}

/// Runs a cleaning step, and returns its line of the report.
pub(super) fn clean(raw: &mut RawDataset, step: &CleaningStep) -> Result<Step> {
    check_stop()?;
    let RawDataset { log, catalogue, .. } = raw;
    let before = log.shards.rows();
    let what = match *step {
        CleaningStep::Rating { min } => {
            if !log.rated {
                return Err(Error::failed("step rating: this source has no ratings"));
            }
            log.transform(|frame| frame.filter(col("rating").gt_eq(lit(min)).and(col("rating").is_not_nan())))?;
            format!("kept events rated {min} or more")
        }
        CleaningStep::Duplicates {} => {
            if !log.timed {
                return Err(Error::failed(
                    "step duplicates: this source has no times, so two equal events may both have happened",
                ));
            }
            log.transform(keep_first_of_equals)?;
            "kept the first of events with the same user, item and time".into()
        }
        CleaningStep::Titled {} => {
            let titled = titles(log, catalogue, |title| title.is_some_and(|t| !t.trim().is_empty()));
            let present = PresentIds::collect(log)?.items;
            let with_title = titled.iter().zip(&present).filter(|(titled, present)| **titled && **present).count();
            if with_title == 0 {
                return Err(Error::failed(no_titles(log, catalogue, &present)));
            }
            log.retain(|_, item| titled[item as usize])?;
            "dropped items without a title".into()
        }
        CleaningStep::CleanTitles { entities, control } => {
            let changed = rewrite_titles(log, catalogue, entities, control);
            let mut done = Vec::new();
            if entities {
                done.push("HTML entities decoded");
            }
            if control {
                done.push("control characters replaced, white space collapsed");
            }
            format!("{}; {changed} titles changed", done.join(", "))
        }
        CleaningStep::TitleLength { min, max } => {
            let fits = titles(log, catalogue, |title| (min..=max).contains(&title.map_or(0, |t| t.chars().count())));
            log.retain(|_, item| fits[item as usize])?;
            let most = if max == usize::MAX { "any number of".into() } else { max.to_string() };
            format!("kept titles of {min} to {most} characters")
        }
        CleaningStep::SampleItems { count, seed } => {
            let kept = sample_items(log, count, seed)?;
            log.retain(|_, item| kept[item as usize])?;
            format!("kept {count} items, drawn with seed {seed}")
        }
        CleaningStep::KCore { user, item } => {
            let passes = k_core(log, user, item)?;
            format!(
                "kept users of {user} events or more and items of {item} or more; {passes} passes to the fixed point"
            )
        }
    };
    let after = log.shards.rows();
    if after == 0 {
        return Err(Error::failed(format!("step {}: none of the {before} events is left; loosen it", step.name())));
    }
    let (users, items) = PresentIds::collect(log)?.counts();
    Ok(Step { name: step.name().into(), before, after, users: Some(users), items: Some(items), what })
}

/// Returns what is wrong where no item of the log has a title.
pub(super) fn no_titles(log: &EventLog, catalogue: &Catalogue, present: &[bool]) -> String {
    let events = log.shards.rows();
    let start = format!("step titled: none of the {events} events is left, for no item has a title: ");
    if let Some(reason) = catalogue.missing {
        return start + reason;
    }
    start
        + &match ids_apart(log, catalogue, present) {
            Some(ids) => format!("{ids}: do the ids differ?"),
            None => "the files of titles describe none; give them among the inputs".into(),
        }
}

/// Returns how many items of the log have a title, and an id of each side; `None` if all items with
/// a title are of the log.
pub(super) fn ids_apart(log: &EventLog, catalogue: &Catalogue, present: &[bool]) -> Option<String> {
    let other = catalogue.unmatched.as_deref()?;
    let items = present.iter().filter(|present| **present).count();
    let titled = (0u32..).zip(present).filter(|(item, present)| **present && catalogue.title(*item).is_some()).count();
    let (own, _) = (0u32..).zip(present).find(|(item, present)| **present && catalogue.title(*item).is_none())?;
    let (own, other) = (shorten(log.items.get(own)), shorten(other));
    Some(format!(
        "{titled} of the log's {items} items have a title; the log has item `{own}`, the titles have `{other}`"
    ))
}

fn keep_first_of_equals(frame: LazyFrame) -> LazyFrame {
    frame.unique_stable(Some(cols(["user", "item", "time"])), UniqueKeepStrategy::First)
}

fn titles(log: &EventLog, catalogue: &Catalogue, fits: impl Fn(Option<&str>) -> bool) -> Vec<bool> {
    (0..log.items.len() as u32).map(|item| fits(catalogue.title(item))).collect()
}

fn rewrite_titles(log: &EventLog, catalogue: &mut Catalogue, entities: bool, control: bool) -> usize {
    let mut changed = 0;
    for item in 0..log.items.len() as u32 {
        let Some(title) = catalogue.title(item) else { continue };
        let mut new = title.to_string();
        if entities {
            new = html_escape::decode_html_entities(&new).into_owned();
        }
        if control {
            let spaced: String = new.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            new = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        if new != title {
            changed += 1;
            catalogue.replace_title(item, new);
        }
    }
    changed
}

/// Returns which items stay: a bottom-k sample by hash depends neither on the order of the input
/// nor on a generator's version.
fn sample_items(log: &EventLog, count: usize, seed: u64) -> Result<Vec<bool>> {
    let present = PresentIds::collect(log)?.items;
    let items = (0..log.items.len() as u32).filter(|item| present[*item as usize]);
    let mut hashes: Vec<([u8; 32], u32)> =
        items.map(|item| (Sha256::digest(format!("{seed}:{}", log.items.get(item))).into(), item)).collect();
    hashes.sort_unstable();
    let kept: HashSet<u32> = hashes.into_iter().take(count).map(|(_, item)| item).collect();
    Ok((0..log.items.len() as u32).map(|item| kept.contains(&item)).collect())
}

/// Drops users and items with too few events until there are none. Each pass counts the events
/// whose user and item are still in.
fn k_core(log: &mut EventLog, user_min: u32, item_min: u32) -> Result<usize> {
    let mut users = vec![true; log.users.len()];
    let mut items = vec![true; log.items.len()];
    let mut passes = 0;
    loop {
        passes += 1;
        let mut degrees = (vec![0u32; users.len()], vec![0u32; items.len()]);
        log.pairs(|user, item| {
            let (user, item) = (user as usize, item as usize);
            if users[user] && items[item] {
                degrees.0[user] += 1;
                degrees.1[item] += 1;
            }
        })?;
        let mut dropped = false;
        for (degrees, least, alive) in [(&degrees.0, user_min, &mut users), (&degrees.1, item_min, &mut items)] {
            for (alive, degree) in alive.iter_mut().zip(degrees) {
                // One whose events are all gone already is no reason for another pass.
                dropped |= *alive && *degree > 0 && *degree < least;
                *alive &= *degree >= least.max(1);
            }
        }
        if !dropped {
            log.retain(|user, item| users[user as usize] && items[item as usize])?;
            return Ok(passes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::event_log::Events;
    use crate::data::sharded_table::{Workspace, i64s, u32s};

    /// Events (user, item, time, rating) and titles; a memory limit of 1 byte gives many shards.
    fn raw(
        events: &[(&str, &str, i64, f32)],
        titles: &[(&str, &str)],
        memory: u64,
        scratch: &std::path::Path,
    ) -> RawDataset {
        let workspace = Workspace { memory, scratch: scratch.into() };
        let mut log = EventLog::new(7, &workspace, true, true).unwrap();
        let mut all = Events::default();
        for (user, item, time, rating) in events {
            all.push(user, item, *time, *rating);
        }
        log.append(&all).unwrap();
        log.finish().unwrap();
        let mut catalogue = Catalogue::default();
        for (id, title) in titles {
            catalogue.set_title(log.items.find(id).unwrap(), title).unwrap();
        }
        RawDataset { log, catalogue, format: "made up".into() }
    }

    /// Returns the events that a step leaves, as user, item and time, sorted.
    fn left(events: &[(&str, &str, i64, f32)], titles: &[(&str, &str)], step: &CleaningStep) -> Vec<String> {
        let scratch = tempfile::tempdir().unwrap();
        let [whole, sharded] = [u64::MAX, 1].map(|memory| {
            let mut raw = raw(events, titles, memory, scratch.path());
            assert_eq!(raw.log.shards.len() > 1, memory == 1);
            clean(&mut raw, step).unwrap();
            let mut left = Vec::new();
            for shard in 0..raw.log.shards.len() {
                let frame = crate::data::sharded_table::collect(raw.log.shards.lazy(shard).unwrap()).unwrap();
                if frame.width() == 0 {
                    continue;
                }
                let users = u32s(&frame, "user").unwrap().into_iter();
                for ((user, item), time) in users.zip(u32s(&frame, "item").unwrap()).zip(i64s(&frame, "time").unwrap())
                {
                    left.push(format!("{}{}{time}", raw.log.users.get(user), raw.log.items.get(item)));
                }
            }
            left.sort();
            left
        });
        assert_eq!(whole, sharded);
        whole
    }

    const EVENTS: [(&str, &str, i64, f32); 6] = [
        ("u", "a", 1, 5.0),
        ("v", "a", 2, 2.0),
        ("u", "b", 1, f32::NAN),
        ("u", "a", 1, 1.0),
        ("w", "c", 3, 4.0),
        ("v", "c", 3, 3.5),
    ];
    const TITLES: [(&str, &str); 2] = [("a", "Tom &amp; J"), ("b", " \t")];

    #[test]
    fn each_step() {
        assert_eq!(left(&EVENTS, &TITLES, &CleaningStep::Rating { min: 3.5 }), ["ua1", "vc3", "wc3"]);
        assert_eq!(left(&EVENTS, &TITLES, &CleaningStep::Duplicates {}), ["ua1", "ub1", "va2", "vc3", "wc3"]);
        assert_eq!(left(&EVENTS, &TITLES, &CleaningStep::Titled {}), ["ua1", "ua1", "va2"]);
        assert_eq!(left(&EVENTS, &TITLES, &CleaningStep::TitleLength { min: 1, max: 3 }), ["ub1"]);
        // w and b go for want of a second event; nobody else then has too few.
        assert_eq!(
            left(&EVENTS, &TITLES, &CleaningStep::KCore { user: 2, item: 1 }),
            ["ua1", "ua1", "ub1", "va2", "vc3"]
        );
        // c loses w, so it goes; then v has one event left, and goes.
        assert_eq!(left(&EVENTS, &TITLES, &CleaningStep::KCore { user: 2, item: 2 }), ["ua1", "ua1"]);
        let one = left(&EVENTS, &TITLES, &CleaningStep::SampleItems { count: 1, seed: 3 });
        let mut reversed = EVENTS;
        reversed.reverse();
        assert_eq!(left(&reversed, &TITLES, &CleaningStep::SampleItems { count: 1, seed: 3 }), one);
        assert_eq!(left(&EVENTS, &TITLES, &CleaningStep::SampleItems { count: 3, seed: 3 }).len(), 6);
    }

    #[test]
    fn titles_are_rewritten() {
        let scratch = tempfile::tempdir().unwrap();
        let mut raw = raw(&EVENTS, &[("a", "A &amp; B\u{7}\n &quot;C&#39;"), ("b", "plain")], u64::MAX, scratch.path());
        let step = clean(&mut raw, &CleaningStep::CleanTitles { entities: true, control: true }).unwrap();
        assert_eq!(raw.catalogue.title(0), Some("A & B \"C'"));
        assert!(step.what.contains("1 titles changed"), "{}", step.what);
        let step = clean(&mut raw, &CleaningStep::CleanTitles { entities: true, control: false }).unwrap();
        assert!(step.what.contains("0 titles changed"), "{}", step.what);
    }

    /// All events of such a source have time 0: the second `a` of `a b a` would go.
    #[test]
    fn duplicates_need_times() {
        let scratch = tempfile::tempdir().unwrap();
        let mut raw = raw(&EVENTS, &TITLES, u64::MAX, scratch.path());
        raw.log.timed = false;
        let error = clean(&mut raw, &CleaningStep::Duplicates {}).unwrap_err().to_string();
        assert!(error.contains("step duplicates: this source has no times"), "{error}");
        assert_eq!(raw.log.shards.rows(), EVENTS.len());
    }

    #[test]
    fn a_step_that_leaves_nothing_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let mut raw = raw(&EVENTS, &TITLES, u64::MAX, scratch.path());
        let error = clean(&mut raw, &CleaningStep::KCore { user: 9, item: 9 }).unwrap_err().to_string();
        assert!(error.contains("k_core: none of the 6 events"), "{error}");
    }
}
