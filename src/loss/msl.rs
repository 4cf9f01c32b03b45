//! The masked softmax loss (MSL) at a fixed temperature.
//!
//! Source: arXiv 2504.04178, Eq. 4 to 9, in the reduction of its released code: a mean over all
//! target tokens, of which those with one child add 0, and without the factor τ in front that the
//! paper's Eq. 9 has.

use burn::prelude::*;

use super::softmax::Softmax;
use super::{BlockLoss, TokenLoss};
use crate::batch::{Batch, Candidates, Prediction};

/// `mean over all target tokens of -log softmax(f/τ) over the trie's children`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Msl {
    /// The temperature τ.
    pub temperature: f64,
}

impl TokenLoss for Msl {
    fn candidates(&self) -> Candidates {
        Candidates::Children
    }

    fn denominator(&self, batches: &[Batch]) -> usize {
        batches.iter().map(|batch| batch.target_tokens).sum()
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn block<B: Backend>(&self, logits: Tensor<B, 2>, predictions: &[Prediction]) -> BlockLoss<B> {
        Softmax::new(logits, predictions, self.temperature).cross_entropy(1.0, None)
    }
}
