//! Rankers without a language model: counts, titles and learnt vectors. They are the yardstick of
//! the LLM, and its prior.
//!
//! All of them implement [`Ranker`]. [`registry`] lists them by name; `itemlm baseline`, `itemlm
//! cf` and `[prior]` of a run file find them there. One more ranker is one file with an
//! [`registry::Entry`] and one line in [`registry::REGISTRY`].

use std::fmt::Debug;

use rayon::prelude::*;

use crate::data::{Corpus, Window};

pub mod als;
pub mod bpr;
mod counts;
mod interactions;
mod mixture;
pub mod registry;
pub mod sasrec;
mod scores;
mod settings;
mod temperature;
mod text;
mod top_k;
mod training;
mod vector_ranker;
mod vectors_file;

pub use interactions::{Interactions, UserSequence};
pub use registry::{FitContext, FittedRanker, RankerSpec};
pub use scores::Scores;
pub(crate) use text::Tfidf;
pub use top_k::TopK;
pub(crate) use top_k::first_with_same_title;
pub use vector_ranker::{VectorMethod, VectorModel, VectorRanker};
pub use vectors_file::Vectors;

/// Scores the items of a catalogue after a history. One ranker serves the threads of several
/// devices.
pub trait Ranker: Debug + Send + Sync {
    /// Number of items in the catalogue.
    fn items(&self) -> usize;

    /// Returns the scores of the items after a history of dense item indices, oldest first. Items
    /// of the history score 0 where [`Ranker::excludes_history`].
    fn scores(&self, history: &[u32]) -> Scores;

    /// Returns [`Ranker::scores`] of each history, on all cores.
    fn scores_of_all(&self, histories: &[&[u32]]) -> Vec<Scores> {
        histories.par_iter().map(|history| self.scores(history)).collect()
    }

    /// Returns the scores after a training window's history, without what the ranker learnt from
    /// the window's target and what followed it. A ranker that learns from no interaction has
    /// nothing to leave out.
    fn scores_before_target(&self, corpus: &Corpus, window: &Window) -> Scores {
        self.scores(corpus.history(window))
    }

    /// Whether items of the history are left out of the ranking.
    fn excludes_history(&self) -> bool {
        true
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors_tests;
