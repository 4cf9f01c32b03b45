//! The losses: language-model loss (LML), masked softmax loss (MSL), and MSL with the adaptive temperature (ATS).
//!
//! Source: arXiv 2504.04178, Eq. 1–12, and its released code where the two differ; each difference is said where it is.

mod align;
mod temperature;

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::batch::Batch;

pub use align::{
    Negatives, contrastive, hard_negatives, query_query_similarity, query_text_similarity, smoothed_cross_entropy,
};
pub use temperature::{AdaptiveTemperature, RootStatistics};

/// Kind of loss, with its reduction over an optimiser step as released.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// `mean over target tokens of -log softmax over the vocabulary`.
    Lml,
    /// `mean over ALL target tokens of -log softmax(f/τ) over the valid tokens`, without a factor τ in front (as released;
    /// the paper's Eq. 9 has one). Tokens with one child add 0 and count in the mean.
    Msl,
    /// `τ · mean over target tokens with more than one child of -log softmax(f/τ) over the valid tokens`.
    MslAts,
}

impl Loss {
    /// What the summed loss of a whole optimiser step is divided by.
    pub fn denominator(self, batches: &[Batch]) -> usize {
        let count = |b: &Batch| match self {
            Self::Lml | Self::Msl => b.target_tokens,
            Self::MslAts => b.branching_tokens,
        };
        batches.iter().map(count).sum()
    }

    /// The factor in front of the summed cross-entropies.
    pub fn factor(self, temperature: f64) -> f64 {
        match self {
            Self::Lml | Self::Msl => 1.0,
            Self::MslAts => temperature,
        }
    }
}

/// `Σ -log softmax(logits / τ)[label]` over the batch's predictions, among each one's valid tokens; `[1]`, in f32.
///
/// * `logits`: `[predictions, rows]`, the columns in the order of [`Batch::rows`].
///
/// The maximum is subtracted before exponentiating (the released code does not, and overflows).
pub fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, batch: &Batch, temperature: f64) -> Tensor<B, 1> {
    let device = logits.device();
    let [predictions, rows] = logits.dims();
    let logits = logits.div_scalar(temperature);
    let labels: Vec<i32> = batch.predictions.iter().map(|p| p.label as i32).collect();
    let labels = Tensor::<B, 2, Int>::from_data(TensorData::new(labels, [predictions, 1]), &device);
    let label_logits = logits.clone().gather(1, labels);
    let valid = match batch.rows {
        None => logits,
        Some(_) => {
            let mut invalid = vec![true; predictions * rows];
            for (p, prediction) in batch.predictions.iter().enumerate() {
                for &place in &prediction.valid {
                    invalid[p * rows + place] = false;
                }
            }
            let invalid = Tensor::<B, 2, Bool>::from_data(TensorData::new(invalid, [predictions, rows]), &device);
            logits.mask_fill(invalid, f32::MIN / 2.0)
        }
    };
    let max = valid.clone().detach().max_dim(1);
    let log_sum = (valid - max.clone()).exp().sum_dim(1).log() + max;
    (log_sum - label_logits).sum()
}
