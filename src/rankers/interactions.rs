//! The interactions that training windows hold, each once: one user's windows overlap, and counting
//! window by window would count the middle of a long sequence up to as often as a window is long.

use crate::core::files::sha256;
use crate::data::{Corpus, Split};
use crate::{Error, Result};

/// The training interactions. Items are numbered by their place in `items`, so that a model holds
/// no row for an item it cannot know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interactions {
    /// The dense catalogue index of each item that some training window holds, ascending.
    pub items: Vec<u32>,
    /// Interactions of each of `items`.
    pub counts: Vec<u32>,
    /// Users of the corpus, those without training windows included.
    pub users: usize,
    /// By user, then by time.
    pub runs: Vec<Run>,
    /// The place in `items` of each item of the catalogue.
    places: Vec<Option<u32>>,
}

/// Consecutive interactions of a user, all in training windows; a user has several runs where some
/// in between are in none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Dense user index.
    pub user: u32,
    /// Places in [`Interactions::items`], oldest first; at least one.
    pub items: Vec<u32>,
}

impl Interactions {
    /// Collects what the training windows hold.
    ///
    /// # Errors
    /// A corpus without training windows.
    pub fn of_training(corpus: &Corpus) -> Result<Self> {
        let mut held = vec![false; corpus.interactions.len()];
        for window in corpus.windows(Split::Train) {
            held[window.range()].fill(true);
        }
        let mut counts = vec![0u32; corpus.items.len()];
        for (&item, _) in corpus.interactions.iter().zip(&held).filter(|(_, held)| **held) {
            counts[item as usize] += 1;
        }
        let items: Vec<u32> = (0..corpus.items.len() as u32).filter(|&item| counts[item as usize] > 0).collect();
        if items.is_empty() {
            return Err(Error::failed("the corpus has no training window to learn from"));
        }
        let mut places = vec![None; corpus.items.len()];
        for (&item, place) in items.iter().zip(0..) {
            places[item as usize] = Some(place);
        }

        let mut runs: Vec<Run> = Vec::new();
        let mut row = 0;
        for user in 0..corpus.users() as u32 {
            let mut run = Run { user, items: Vec::new() };
            for &item in corpus.user_interactions(user) {
                match places[item as usize].filter(|_| held[row]) {
                    Some(place) => run.items.push(place),
                    None if run.items.is_empty() => {}
                    None => runs.push(std::mem::replace(&mut run, Run { user, items: Vec::new() })),
                }
                row += 1;
            }
            if !run.items.is_empty() {
                runs.push(run);
            }
        }
        let counts = items.iter().map(|&item| counts[item as usize]).collect();
        Ok(Self { items, counts, users: corpus.users(), runs, places })
    }

    /// Items of the catalogue, those without training interactions included.
    pub fn catalogue(&self) -> usize {
        self.places.len()
    }

    /// How often training has an item of the catalogue.
    pub fn count(&self, item: u32) -> u32 {
        self.place(item).map_or(0, |place| self.counts[place as usize])
    }

    /// SHA-256 of who took what in which order, by dense indices.
    pub fn digest(&self) -> String {
        let mut bytes = Vec::new();
        for run in &self.runs {
            bytes.extend(run.user.to_le_bytes());
            bytes.extend((run.items.len() as u32).to_le_bytes());
            bytes.extend(run.items.iter().flat_map(|&place| self.items[place as usize].to_le_bytes()));
        }
        sha256(&bytes)
    }

    /// The places in `items` of a history's known items, in its order.
    pub fn known(&self, history: &[u32]) -> Vec<u32> {
        history.iter().filter_map(|&item| self.place(item)).collect()
    }

    fn place(&self, item: u32) -> Option<u32> {
        self.places.get(item as usize).copied().flatten()
    }

    /// For each user of the corpus the last run; empty for one without training interactions.
    pub fn last_runs(&self) -> Vec<&[u32]> {
        let mut last: Vec<&[u32]> = vec![&[]; self.users];
        for run in &self.runs {
            last[run.user as usize] = &run.items;
        }
        last
    }

    /// For each user the items, ascending, with how often: the matrix R by rows.
    pub fn by_user(&self) -> Vec<Vec<(u32, u32)>> {
        let mut items: Vec<Vec<u32>> = vec![Vec::new(); self.users];
        for run in &self.runs {
            items[run.user as usize].extend(&run.items);
        }
        items.into_iter().map(counted).collect()
    }
}

/// Distinct values, ascending, with how often each is there.
pub(crate) fn counted(mut values: Vec<u32>) -> Vec<(u32, u32)> {
    values.sort_unstable();
    values.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u32)).collect()
}
