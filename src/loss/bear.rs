//! BEAR: MSL whose weights depend on the edge of the beam.
//!
//! Source: arXiv 2601.22925 v3 and its released code. A position's weight depends on how far the
//! target's probability stands above the beam's edge, the K-th largest probability there. (In the
//! code the weight grows with that distance, while the paper speaks of a penalty on it; this is the
//! code's.)

use burn::prelude::*;
use burn::tensor::activation::sigmoid;

use super::softmax::Softmax;
use super::{BlockLoss, TokenLoss};
use crate::batch::{Batch, Candidates, Prediction};
use crate::tensor::indices;

/// `Σ w · -log softmax(f/τ) / Σ w` over the optimiser step's target tokens with more than one
/// child, with `w = 1 + λ · sigmoid((ln p_target - ln q) / ξ)`, a constant; q is the K-th largest
/// probability among the children, the smallest one where there are fewer than K.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bear {
    /// The temperature τ.
    pub temperature: f64,
    /// λ, the size of the weights above 1.
    pub lambda: f64,
    /// ξ, the softness of the beam's edge.
    pub xi: f64,
    /// K, the number of beams of the search that ranks.
    pub beams: usize,
}

impl Bear {
    /// Returns each prediction's weight, `[n, 1]`. Both logarithms have the same normaliser, so
    /// their difference is that of the logits.
    fn weights<B: Backend>(&self, softmax: &Softmax<B>, predictions: &[Prediction]) -> Tensor<B, 2> {
        let [_, columns] = softmax.scaled.dims();
        let largest = softmax.scaled.clone().sort_descending(1).narrow(1, 0, self.beams.min(columns));
        let edge = predictions.iter().map(|p| p.valid.len().min(self.beams) - 1);
        let edge = indices(edge, self.beams.min(columns), &softmax.scaled.device()).unsqueeze_dim(1);
        let margin = softmax.of_labels.clone() - largest.gather(1, edge);
        sigmoid(margin.div_scalar(self.xi)).mul_scalar(self.lambda).add_scalar(1.0)
    }
}

impl TokenLoss for Bear {
    fn candidates(&self) -> Candidates {
        Candidates::Children
    }

    /// Returns the number of target tokens; the sum of the weights, which is not known yet, takes
    /// its place.
    fn denominator(&self, batches: &[Batch]) -> usize {
        batches.iter().map(|batch| batch.branching_tokens).sum()
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn block<B: Backend>(&self, logits: Tensor<B, 2>, predictions: &[Prediction]) -> BlockLoss<B> {
        let softmax = Softmax::new(logits, predictions, self.temperature);
        let weights = self.weights(&softmax, predictions);
        softmax.cross_entropy(1.0, Some(weights))
    }
}
