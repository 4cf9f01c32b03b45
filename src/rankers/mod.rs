//! Rankers without a language model: counts and collaborative models. They are the yardstick of the
//! LLM, and its prior.

use std::fmt::Debug;

use crate::data::{Corpus, Window};

pub mod als;
pub mod bpr;
mod collaborative;
mod counts;
mod distribution;
mod interactions;
pub mod sasrec;
mod settings;
mod vectors_file;

pub use collaborative::{Method, Model, Trained, Validate, train};
pub(crate) use counts::twins;
pub use counts::{Baseline, CountRanker, fit};
pub use distribution::Distribution;
pub use interactions::{Interactions, Run};
pub use settings::Settings;
pub use vectors_file::Vectors;

/// A ranker that knows no text, as a prior needs it; one prior serves the threads of several
/// devices.
pub trait Ranker: Debug + Send + Sync {
    /// Items of the catalogue.
    fn items(&self) -> usize;

    /// The score of each item of the catalogue after a history (oldest first), at least 0.
    fn scores(&self, history: &[u32]) -> Vec<f64>;

    /// As [`Ranker::scores`] of a training window's history, without what the ranker knows of the
    /// window's target; of rankers that cannot tell, with it.
    fn scores_before_target(&self, corpus: &Corpus, window: &Window) -> Vec<f64> {
        self.scores(corpus.history(window))
    }
}

#[cfg(test)]
mod tests;
