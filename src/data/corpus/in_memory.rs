//! The corpus in memory: catalogue, interaction log, windows.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::layout::{INTERACTIONS, ITEMS, windows_file};
use super::window::{Split, Window};
use crate::{Error, Result};

/// One item of the catalogue. Its dense index is its position in [`Corpus::items`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The source's id.
    pub id: String,
    /// The title, byte for byte as the source has it. Not unique; in one released catalogue, empty.
    pub title: String,
}

/// One user's interactions in time order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserLog {
    /// The source's id.
    pub id: String,
    /// Dense item index and, where the source tells it, the time in the source's unit.
    pub events: Vec<(u32, Option<i64>)>,
}

/// A catalogue, an interaction log sorted by user then time, and windows on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// The data set's name.
    pub name: String,
    /// The catalogue; positions are the dense item indices.
    pub items: Vec<Item>,
    /// Further texts of the items, such as `genres`, by name.
    pub attributes: BTreeMap<String, Vec<Option<String>>>,
    /// The item of each interaction, sorted by user, then by time.
    pub interactions: Vec<u32>,
    /// The time of each interaction, where the source tells it.
    pub timestamps: Vec<Option<i64>>,
    /// All training windows as released, in the source's order, including those that validate.
    pub released_train: Vec<Window>,
    /// Sentence about how the validation windows were chosen.
    pub validation: String,
    pub(super) users: Vec<String>,
    /// User u owns the interactions `bounds[u]..bounds[u + 1]`.
    pub(super) bounds: Vec<u32>,
    pub(super) train: Vec<Window>,
    pub(super) valid: Vec<Window>,
    pub(super) test: Vec<Window>,
    pub(super) valid_from_train: u32,
}

impl Corpus {
    /// Builds a corpus from users' logs and windows on their concatenation.
    ///
    /// Without `valid` windows the latest tenth of `train` (rounded down; by the target's time,
    /// ties by their order) validates and is no longer trained on.
    pub fn new(
        name: impl Into<String>,
        items: Vec<Item>,
        users: Vec<UserLog>,
        train: Vec<Window>,
        valid: Option<Vec<Window>>,
        test: Vec<Window>,
    ) -> Result<Self> {
        let total: usize = users.iter().map(|u| u.events.len()).sum();
        if total >= u32::MAX as usize || items.len() >= u32::MAX as usize {
            return Err(Error::failed("a corpus holds fewer than 2^32 - 1 interactions and items"));
        }
        let mut corpus = Corpus {
            name: name.into(),
            items,
            attributes: BTreeMap::new(),
            interactions: Vec::with_capacity(total),
            timestamps: Vec::with_capacity(total),
            released_train: train,
            validation: String::new(),
            users: Vec::with_capacity(users.len()),
            bounds: vec![0],
            train: Vec::new(),
            valid: valid.clone().unwrap_or_default(),
            test,
            valid_from_train: 0,
        };
        for user in users {
            for (item, time) in user.events {
                corpus.interactions.push(item);
                corpus.timestamps.push(time);
            }
            corpus.users.push(user.id);
            corpus.bounds.push(corpus.interactions.len() as u32);
        }
        corpus.check(Path::new(""))?;
        if valid.is_some() {
            corpus.validation = format!(
                "The {} validation windows of the source validate; all {} training windows train.",
                corpus.valid.len(),
                corpus.released_train.len()
            );
        } else {
            corpus.valid = corpus.latest_tenth();
            corpus.valid_from_train = corpus.valid.len() as u32;
            corpus.validation = format!(
                "The source has no validation windows: the latest tenth of its {} training windows \
                 ({}) validates, the other {} train.",
                corpus.released_train.len(),
                corpus.valid.len(),
                corpus.released_train.len() - corpus.valid.len()
            );
        }
        corpus.exclude_validation();
        Ok(corpus)
    }

    fn latest_tenth(&self) -> Vec<Window> {
        let mut order: Vec<usize> = (0..self.released_train.len()).collect();
        order.sort_by_key(|&i| self.timestamp(&self.released_train[i]));
        let mut latest = order.split_off(order.len() - order.len() / 10);
        latest.sort_unstable();
        latest.into_iter().map(|i| self.released_train[i]).collect()
    }

    /// Sets the windows to train on: the released ones, without those that validate if they came
    /// from there.
    pub(super) fn exclude_validation(&mut self) {
        self.train = self.released_train.clone();
        if self.valid_from_train > 0 {
            let held: HashSet<Window> = self.valid.iter().copied().collect();
            self.train.retain(|w| !held.contains(w));
        }
    }

    /// Returns the windows of a split, in the source's order. Those of `Train` never include the
    /// ones that validate; [`Corpus::released_train`] does.
    pub fn windows(&self, split: Split) -> &[Window] {
        match split {
            Split::Train => &self.train,
            Split::Valid => &self.valid,
            Split::Test => &self.test,
        }
    }

    /// Returns the items before the target, oldest first. It is empty for a window that is not of
    /// this corpus.
    pub fn history(&self, window: &Window) -> &[u32] {
        match self.interactions.get(window.range()) {
            Some([history @ .., _]) => history,
            _ => &[],
        }
    }

    /// Returns the window's last item.
    ///
    /// # Panics
    /// If the window is not one of this corpus.
    pub fn target(&self, window: &Window) -> u32 {
        self.interactions[window.range().end - 1]
    }

    /// Returns the time of the window's target, where the source tells it.
    pub fn timestamp(&self, window: &Window) -> Option<i64> {
        let last = window.range().end.checked_sub(1)?;
        self.timestamps.get(last).copied().flatten()
    }

    /// Returns an item's title.
    ///
    /// # Panics
    /// If the item is not in the catalogue.
    pub fn title(&self, item: u32) -> &str {
        &self.items[item as usize].title
    }

    /// Returns the number of users.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// Returns a user's id in the source.
    ///
    /// # Panics
    /// If there is no such user.
    pub fn user_id(&self, user: u32) -> &str {
        &self.users[user as usize]
    }

    /// Returns a user's interactions, oldest first.
    ///
    /// # Panics
    /// If there is no such user.
    pub fn user_interactions(&self, user: u32) -> &[u32] {
        let user = user as usize;
        &self.interactions[self.bounds[user] as usize..self.bounds[user + 1] as usize]
    }

    /// Returns, for each item, whether it is in no training window, neither in a history nor as a
    /// target. For test all released training windows count, as published; for validation those
    /// that do not validate.
    pub fn cold_items(&self, split: Split) -> Vec<bool> {
        let mut cold = vec![true; self.items.len()];
        let windows = if split == Split::Test { &self.released_train } else { &self.train };
        for window in windows {
            for &item in &self.interactions[window.range()] {
                cold[item as usize] = false;
            }
        }
        cold
    }

    /// Checks every index that the accessors rely on. Rows count from 0; `dir` only names the
    /// files.
    pub(super) fn check(&self, dir: &Path) -> Result<()> {
        let at = |file: &str, row: usize, what: String| {
            Error::failed(format!("{}: row {row}: {what}", dir.join(file).display()))
        };
        if self.items.is_empty() {
            let file = dir.join(ITEMS);
            return Err(Error::failed(format!("{}: the catalogue is empty", file.display())));
        }
        let mut ids = HashSet::with_capacity(self.items.len());
        for (row, item) in self.items.iter().enumerate() {
            if !ids.insert(item.id.as_str()) {
                return Err(at(ITEMS, row, format!("the id `{}` is there twice", item.id)));
            }
        }
        for (row, &item) in self.interactions.iter().enumerate() {
            if item as usize >= self.items.len() {
                let what = format!("item {item} is not in the catalogue of {}", self.items.len());
                return Err(at(INTERACTIONS, row, what));
            }
        }
        for (split, windows) in
            [(Split::Train, &self.released_train), (Split::Valid, &self.valid), (Split::Test, &self.test)]
        {
            let file = windows_file(split);
            for (row, w) in windows.iter().enumerate() {
                let user = w.user as usize;
                let (Some(&low), Some(&high)) = (self.bounds.get(user), self.bounds.get(user + 1)) else {
                    let what = format!("user {user} is not one of the {}", self.users.len());
                    return Err(at(&file, row, what));
                };
                if w.len < 2 {
                    let what = format!("a window needs 2 items or more, this one has {}", w.len);
                    return Err(at(&file, row, what));
                }
                if w.start < low || w.range().end > high as usize {
                    let what = format!(
                        "the window {}..{} leaves the interactions {low}..{high} of user {user}",
                        w.start,
                        w.range().end
                    );
                    return Err(at(&file, row, what));
                }
            }
        }
        if self.valid_from_train > 0 {
            let file = windows_file(Split::Valid);
            let train: HashSet<Window> = self.released_train.iter().copied().collect();
            if let Some(row) = self.valid.iter().position(|w| !train.contains(w)) {
                let what = "it should be a training window (corpus.toml: valid_from_train)";
                return Err(at(&file, row, what.into()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Users "a" with the items 0..12 at times 0.., "b" with 3, 2, 1; ten titles, two of them
    /// equal.
    pub(crate) fn small() -> Corpus {
        let titles = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "A"];
        let items =
            titles.iter().enumerate().map(|(i, t)| Item { id: format!("i{i}"), title: (*t).to_string() }).collect();
        let a = (0..8).map(|i| (i, Some(i64::from(i)))).collect();
        let b = vec![(3, None), (2, None), (8, Some(50))];
        let users = vec![UserLog { id: "a".into(), events: a }, UserLog { id: "b".into(), events: b }];
        let window = |user, start, len| Window { user, start, len };
        let train = vec![window(0, 0, 3), window(0, 1, 3)];
        Corpus::new("small", items, users, train, Some(vec![window(0, 4, 4)]), vec![window(1, 8, 3)]).unwrap()
    }

    #[test]
    fn reads_windows() {
        let corpus = small();
        let test = corpus.windows(Split::Test)[0];
        assert_eq!(corpus.history(&test), [3, 2]);
        assert_eq!(corpus.target(&test), 8);
        assert_eq!(corpus.timestamp(&test), Some(50));
        assert_eq!(corpus.user_id(test.user), "b");
        assert_eq!(corpus.user_interactions(1), [3, 2, 8]);
        let cold: Vec<usize> =
            corpus.cold_items(Split::Test).iter().enumerate().filter(|(_, c)| **c).map(|(i, _)| i).collect();
        assert_eq!(cold, [4, 5, 6, 7, 8, 9]);
        assert_eq!(corpus.history(&Window { user: 0, start: 9, len: 9 }), [0u32; 0]);
    }

    #[test]
    fn latest_tenth_validates() {
        let items = vec![Item { id: "1".into(), title: "t".into() }];
        // Times 0, 9, 9, 9, …: of the ties the last in order are the latest.
        let events = (0..22).map(|i| (0, Some(if i < 2 { 0 } else { 9 }))).collect();
        let users = vec![UserLog { id: "u".into(), events }];
        let mut train: Vec<Window> = (1..22).map(|i| Window { user: 0, start: i - 1, len: 2 }).collect();
        train.rotate_left(1); // The earliest window is now the last row.
        let corpus = Corpus::new("n", items, users, train.clone(), None, vec![]).unwrap();
        assert_eq!(corpus.windows(Split::Valid), &train[18..20]);
        let mut rest = train.clone();
        rest.drain(18..20);
        assert_eq!(corpus.windows(Split::Train), rest);
        assert_eq!(corpus.released_train.len(), 21);
        assert!(corpus.validation.contains("latest tenth"));
    }

    #[test]
    fn refuses_bad_windows() {
        let mut corpus = small();
        corpus.test[0].len = 1;
        let text = corpus.check(Path::new("d")).unwrap_err().to_string();
        assert!(text.contains("windows-test.parquet: row 0: a window needs 2 items"), "{text}");
        corpus.test[0] = Window { user: 1, start: 7, len: 3 };
        assert!(corpus.check(Path::new("d")).is_err());
        corpus.test[0] = Window { user: 2, start: 8, len: 2 };
        assert!(corpus.check(Path::new("d")).is_err());
        corpus.test[0] = Window { user: 1, start: u32::MAX, len: u32::MAX };
        assert!(corpus.check(Path::new("d")).is_err());
        corpus.test.clear();
        corpus.interactions[3] = 10;
        assert!(corpus.check(Path::new("d")).unwrap_err().to_string().contains("row 3"));
        corpus.items.clear();
        assert!(corpus.check(Path::new("d")).unwrap_err().to_string().contains("empty"));
    }
}
