//! The language-model loss (LML): a softmax over the vocabulary at every target token.
//!
//! Source: arXiv 2504.04178, Eq. 1; the temperature is that of the paper's ablation ("LML + tuned
//! τ").

use burn::prelude::*;

use super::softmax::Softmax;
use super::{BlockLoss, TokenLoss};
use crate::batch::{Batch, Candidates, Prediction};

/// `mean over target tokens of -log softmax(f/τ) over the vocabulary`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lml {
    /// The temperature τ; 1 in the papers.
    pub temperature: f64,
}

impl TokenLoss for Lml {
    fn candidates(&self) -> Candidates {
        Candidates::Vocabulary
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
