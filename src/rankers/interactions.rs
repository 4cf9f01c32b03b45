//! The interactions that training windows hold, each once: one user's windows overlap, and counting
//! window by window would count the middle of a long sequence up to as often as a window is long.

use crate::core::files::sha256;
use crate::data::{Corpus, Split};
use crate::{Error, Result};

/// The training interactions. Items have a row each, so that a model has none for an item that it
/// cannot learn about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interactions {
    /// `[rows]`: dense catalogue index of each row's item, ascending.
    pub items: Vec<u32>,
    /// `[rows]`: number of training interactions of each row's item.
    pub counts: Vec<u32>,
    /// Number of users of the corpus, those without training windows included.
    pub users: usize,
    /// The sequences, by user, then by time.
    pub sequences: Vec<UserSequence>,
    /// `[items of the catalogue]`: the row of each item.
    rows: Vec<Option<u32>>,
}

/// Consecutive interactions of a user, all of them in training windows; a user has several such
/// sequences where some interactions in between are in none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSequence {
    /// Dense user index.
    pub user: u32,
    /// Rows of [`Interactions::items`], oldest first; at least one.
    pub rows: Vec<u32>,
}

impl Interactions {
    /// Collects the interactions of the training windows; items without training interactions get
    /// no row.
    ///
    /// # Errors
    /// A corpus without training windows.
    pub fn from_training(corpus: &Corpus) -> Result<Self> {
        let counts = Self::counts(corpus);
        let items = (0..corpus.items.len() as u32).filter(|&item| counts[item as usize] > 0).collect();
        Self::with_rows(corpus, items, &counts)
    }

    /// Collects the interactions of the training windows; all items of the catalogue get a row.
    ///
    /// # Errors
    /// A corpus without training windows.
    pub fn from_training_with_all_items(corpus: &Corpus) -> Result<Self> {
        Self::with_rows(corpus, (0..corpus.items.len() as u32).collect(), &Self::counts(corpus))
    }

    fn with_rows(corpus: &Corpus, items: Vec<u32>, counts: &[u32]) -> Result<Self> {
        if counts.iter().all(|&count| count == 0) {
            return Err(Error::failed("the corpus has no training window to learn from"));
        }
        let mut rows = vec![None; corpus.items.len()];
        for (&item, row) in items.iter().zip(0..) {
            rows[item as usize] = Some(row);
        }
        let in_training = in_training(corpus);
        let mut sequences: Vec<UserSequence> = Vec::new();
        let mut interaction = 0;
        for user in 0..corpus.users() as u32 {
            let mut sequence = UserSequence { user, rows: Vec::new() };
            for &item in corpus.user_interactions(user) {
                match rows[item as usize].filter(|_| in_training[interaction]) {
                    Some(row) => sequence.rows.push(row),
                    None if sequence.rows.is_empty() => {}
                    None => {
                        sequences.push(std::mem::replace(&mut sequence, UserSequence { user, rows: Vec::new() }));
                    }
                }
                interaction += 1;
            }
            if !sequence.rows.is_empty() {
                sequences.push(sequence);
            }
        }
        let counts = items.iter().map(|&item| counts[item as usize]).collect();
        Ok(Self { items, counts, users: corpus.users(), sequences, rows })
    }

    /// Returns the training interactions of each item of the catalogue, `[items]`.
    pub fn counts(corpus: &Corpus) -> Vec<u32> {
        let mut counts = vec![0u32; corpus.items.len()];
        for (&item, _) in corpus.interactions.iter().zip(in_training(corpus)).filter(|(_, counted)| *counted) {
            counts[item as usize] += 1;
        }
        counts
    }

    /// Returns the number of items in the catalogue, those without a row included.
    pub fn catalogue(&self) -> usize {
        self.rows.len()
    }

    /// Returns the training interactions of an item of the catalogue.
    pub fn count(&self, item: u32) -> u32 {
        self.row(item).map_or(0, |row| self.counts[row as usize])
    }

    /// Returns the SHA-256 of the users' sequences of items, by dense indices.
    pub fn digest(&self) -> String {
        let mut bytes = Vec::new();
        for sequence in &self.sequences {
            bytes.extend(sequence.user.to_le_bytes());
            bytes.extend((sequence.rows.len() as u32).to_le_bytes());
            bytes.extend(sequence.rows.iter().flat_map(|&row| self.items[row as usize].to_le_bytes()));
        }
        sha256(&bytes)
    }

    /// Returns the rows of a history's items, in its order; items without a row are left out.
    pub fn rows(&self, history: &[u32]) -> Vec<u32> {
        history.iter().filter_map(|&item| self.row(item)).collect()
    }

    fn row(&self, item: u32) -> Option<u32> {
        self.rows.get(item as usize).copied().flatten()
    }

    /// Returns the last sequence of each user of the corpus, `[users]`; empty for a user without
    /// training interactions.
    pub fn last_sequences(&self) -> Vec<&[u32]> {
        let mut last: Vec<&[u32]> = vec![&[]; self.users];
        for sequence in &self.sequences {
            last[sequence.user as usize] = &sequence.rows;
        }
        last
    }

    /// Returns each user's rows, ascending, with their number of interactions: the matrix R of
    /// users by items, sparse.
    pub fn by_user(&self) -> Vec<Vec<(u32, u32)>> {
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); self.users];
        for sequence in &self.sequences {
            rows[sequence.user as usize].extend(&sequence.rows);
        }
        rows.into_iter().map(with_counts).collect()
    }
}

/// Returns, for each interaction, whether some training window holds it.
fn in_training(corpus: &Corpus) -> Vec<bool> {
    let mut in_training = vec![false; corpus.interactions.len()];
    for window in corpus.windows(Split::Train) {
        in_training[window.range()].fill(true);
    }
    in_training
}

/// Returns the distinct values, ascending, each with its number.
pub(crate) fn with_counts(mut values: Vec<u32>) -> Vec<(u32, u32)> {
    values.sort_unstable();
    values.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u32)).collect()
}
