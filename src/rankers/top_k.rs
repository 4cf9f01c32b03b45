//! Conversion of scores to a list of items.

use std::collections::{HashMap, HashSet};

use super::{Interactions, Scores};
use crate::data::Corpus;

/// The order of a catalogue's items with equal scores, and which of them have the same title.
#[derive(Clone, Debug)]
pub struct TopK {
    /// `[items]`: training interactions of each item.
    counts: Vec<u32>,
    /// `[items]`: all items, by descending number of training interactions, then by index.
    by_popularity: Vec<u32>,
    /// `[items]`: the first item with the title of each item.
    first_with_same_title: Vec<u32>,
}

impl TopK {
    /// Counts a corpus's training windows.
    pub fn new(corpus: &Corpus) -> Self {
        let counts = Interactions::counts(corpus);
        let mut by_popularity: Vec<u32> = (0..counts.len() as u32).collect();
        by_popularity.sort_by_key(|&item| std::cmp::Reverse(counts[item as usize]));
        Self { counts, by_popularity, first_with_same_title: first_with_same_title(corpus) }
    }

    /// Returns the `k` best items, best first, without those of `excluded`. Each title is there
    /// once, with the best of its items. Equal scores, 0 among them, are ordered by popularity,
    /// then by item index. There are fewer than `k` only if the catalogue without `excluded` has
    /// fewer titles.
    pub fn rank(&self, scores: &Scores, excluded: &[u32], k: usize) -> Vec<u32> {
        self.rank_allowed(scores, &|item| !excluded.contains(&item), k)
    }

    /// Returns the `k` best of the items that `allowed` allows, as [`TopK::rank`] does.
    pub fn rank_allowed(&self, scores: &Scores, allowed: &dyn Fn(u32) -> bool, k: usize) -> Vec<u32> {
        let mut scored: Vec<(u32, f64)> = scores.positive().filter(|(item, _)| allowed(*item)).collect();
        let order = |a: &(u32, f64), b: &(u32, f64)| {
            let count = |item: u32| self.counts[item as usize];
            b.1.total_cmp(&a.1).then(count(b.0).cmp(&count(a.0))).then(a.0.cmp(&b.0))
        };
        let mut list = List { items: Vec::new(), titles: HashSet::new(), k };
        // This is enough for k titles unless many are equal; then all are sorted.
        let first = scored.len().min(2 * k + 8);
        if first < scored.len() {
            scored.select_nth_unstable_by(first, order);
        }
        let (best, others) = scored.split_at_mut(first);
        best.sort_unstable_by(order);
        best.iter().for_each(|&(item, _)| list.push(item, &self.first_with_same_title));
        if !list.is_full() {
            others.sort_unstable_by(order);
            others.iter().for_each(|&(item, _)| list.push(item, &self.first_with_same_title));
        }
        for &item in &self.by_popularity {
            if list.is_full() {
                break;
            }
            if allowed(item) {
                list.push(item, &self.first_with_same_title);
            }
        }
        list.items
    }
}

/// A ranking under construction.
struct List {
    items: Vec<u32>,
    /// The first item of each title in `items`.
    titles: HashSet<u32>,
    k: usize,
}

impl List {
    fn is_full(&self) -> bool {
        self.items.len() >= self.k
    }

    /// Appends an item whose title is not there yet, while there is room.
    fn push(&mut self, item: u32, first_with_same_title: &[u32]) {
        if !self.is_full() && self.titles.insert(first_with_same_title[item as usize]) {
            self.items.push(item);
        }
    }
}

/// Returns the first item with the title of each item, `[items]`.
pub(crate) fn first_with_same_title(corpus: &Corpus) -> Vec<u32> {
    let mut first: HashMap<&str, u32> = HashMap::new();
    let indexed = corpus.items.iter().zip(0..);
    indexed.map(|(item, index)| *first.entry(item.title.as_str()).or_insert(index)).collect()
}
