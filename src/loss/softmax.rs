//! The softmax cross-entropy of a block of predictions, on which most token losses are built.

use burn::prelude::*;
use burn::tensor::TensorData;

use super::{BlockLoss, LogitGradient};
use crate::batch::{Batch, Prediction};
use crate::tensor::indices;

/// A softmax over each prediction's candidates, before it is normalised.
pub(super) struct Softmax<B: Backend> {
    /// `exp(logit / τ - maximum)`, 0 for a token that is no candidate: `[n, columns]`.
    exp: Tensor<B, 2>,
    /// The sum over the candidates: `[n, 1]`.
    sum: Tensor<B, 2>,
    /// `logit / τ` of the candidates, a very low number elsewhere: `[n, columns]`.
    pub(super) scaled: Tensor<B, 2>,
    /// `logit / τ` of the labels: `[n, 1]`.
    pub(super) of_labels: Tensor<B, 2>,
    /// `-log softmax(logit / τ)[label]`: `[n, 1]`.
    losses: Tensor<B, 2>,
    temperature: f64,
}

impl<B: Backend> Softmax<B> {
    /// Computes the softmax of `logits / temperature`. The maximum is subtracted before
    /// exponentiating (the code that the paper released does not, and overflows).
    ///
    /// # Shapes
    /// `logits`: `[n, columns]`.
    pub(super) fn new(logits: Tensor<B, 2>, predictions: &[Prediction], temperature: f64) -> Self {
        let labels = labels::<B>(predictions, logits.dims()[1], &logits.device());
        let logits = logits.div_scalar(temperature);
        let of_labels = logits.clone().gather(1, labels.unsqueeze_dim(1));
        let scaled = mask_invalid(logits, predictions);
        let max = scaled.clone().max_dim(1);
        let exp = (scaled.clone() - max.clone()).exp();
        let sum = exp.clone().sum_dim(1);
        let losses = sum.clone().log() + max - of_labels.clone();
        Self { exp, sum, scaled, of_labels, losses, temperature }
    }

    /// Returns `factor · Σ weight · -log softmax[label]` and its gradient,
    /// `factor · weight / τ · (softmax - one-hot of the label)`.
    ///
    /// * `weights`: constants; 1 for `None`.
    ///
    /// # Shapes
    /// `weights`: `[n, 1]`; the loss: `[1]`; the gradient: `[n, columns]`.
    pub(super) fn cross_entropy(self, factor: f64, weights: Option<Tensor<B, 2>>) -> BlockLoss<B> {
        let weight = weights.clone().map(Tensor::sum);
        let (losses, scale) = match weights {
            Some(weights) => (self.losses * weights.clone(), weights.mul_scalar(factor / self.temperature)),
            None => (self.losses, Tensor::full(self.sum.shape(), factor / self.temperature, &self.sum.device())),
        };
        BlockLoss {
            loss: losses.sum().mul_scalar(factor),
            weight,
            gradient: LogitGradient { dense: self.exp, row_scale: scale.clone() / self.sum, at_label: scale.neg() },
        }
    }
}

/// Returns `Σ -log softmax(logits / τ)[label]` over the batch's predictions, among each one's valid
/// tokens, by operations that autodiff can follow.
///
/// Autodiff keeps several tensors of the logits' shape; [`super::linear_token_loss`] never has them
/// all.
///
/// # Shapes
/// `logits`: `[predictions, columns]`, the columns in the order of [`Batch::candidate_ids`]; the
/// result: `[1]`.
pub fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, batch: &Batch, temperature: f64) -> Tensor<B, 1> {
    let logits = logits.div_scalar(temperature);
    let labels = labels(&batch.predictions, logits.dims()[1], &logits.device()).unsqueeze_dim(1);
    let label_logits = logits.clone().gather(1, labels);
    let valid = mask_invalid(logits, &batch.predictions);
    let max = valid.clone().detach().max_dim(1);
    let log_sum = (valid - max.clone()).exp().sum_dim(1).log() + max;
    (log_sum - label_logits).sum()
}

/// Returns `logits` with each prediction's bias added to its valid tokens; unchanged where no
/// prediction has a bias.
///
/// The sum is what the loss divides by τ, what the adaptive temperature is computed from, and what
/// ranks.
///
/// # Shapes
/// `logits` and the output: `[predictions, columns]`.
pub fn add_logit_bias<B: Backend>(logits: Tensor<B, 2>, predictions: &[Prediction]) -> Tensor<B, 2> {
    if predictions.iter().all(|prediction| prediction.logit_bias.is_empty()) {
        return logits;
    }
    let shape = logits.dims();
    let mut bias = vec![0f32; shape[0] * shape[1]];
    for (row, prediction) in bias.chunks_exact_mut(shape[1]).zip(predictions) {
        prediction.valid.iter().zip(&prediction.logit_bias).for_each(|(&column, &value)| row[column] = value);
    }
    let device = logits.device();
    logits + Tensor::<B, 2>::from_data(TensorData::new(bias, shape), &device)
}

/// Sets the logits of tokens that are no candidates far below the others.
fn mask_invalid<B: Backend>(logits: Tensor<B, 2>, predictions: &[Prediction]) -> Tensor<B, 2> {
    if predictions.iter().all(|prediction| prediction.valid.is_empty()) {
        return logits;
    }
    let shape = logits.dims();
    let mut invalid = vec![true; shape[0] * shape[1]];
    for (row, prediction) in invalid.chunks_exact_mut(shape[1]).zip(predictions) {
        prediction.valid.iter().for_each(|&column| row[column] = false);
    }
    let invalid = Tensor::<B, 2, Bool>::from_data(TensorData::new(invalid, shape), &logits.device());
    logits.mask_fill(invalid, f32::MIN / 2.0)
}

/// Returns the labels' columns, of `columns`.
///
/// # Shapes
/// Returns `[predictions]`.
pub(super) fn labels<B: Backend>(predictions: &[Prediction], columns: usize, device: &B::Device) -> Tensor<B, 1, Int> {
    indices(predictions.iter().map(|prediction| prediction.label), columns, device)
}
