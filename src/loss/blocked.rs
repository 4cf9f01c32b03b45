//! A token loss from hidden states and the output projection, without all logits at once: as many
//! predictions at a time as make a fixed number of logits, whose gradients are computed at once;
//! then the logits are dropped. Memory depends neither on the vocabulary nor on the number of
//! predictions.
//!
//! Source: Liger Kernel's `fused_linear_cross_entropy` (arXiv 2410.10989;
//! liger_kernel/ops/fused_linear_cross_entropy.py), which cuts the predictions in the same way;
//! here in tensor operations, and for any [`TokenLoss`].

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use burn::tensor::backend::AutodiffBackend;

use super::softmax::labels;
use super::{TokenLoss, add_logit_bias};
use crate::batch::{Batch, Prediction};

/// Number of logits of a block: 32 MB. On a CPU smaller blocks read the projection too often,
/// larger ones do not fit the caches.
pub(crate) const LOGITS_OF_A_BLOCK: usize = 1 << 23;

/// The summed loss of a batch.
#[derive(Debug, Clone)]
pub struct LinearLoss<B: Backend> {
    /// The loss, `[1]`.
    pub loss: Tensor<B, 1>,
    /// Sum of the predictions' weights, `[1]`, if the loss is a weighted mean.
    pub weight: Option<Tensor<B, 1>>,
}

/// The output projection of a model, or some of its rows.
#[derive(Debug, Clone)]
pub struct OutputHead<B: Backend> {
    /// `[columns, width]`: a row for each token that is scored.
    pub weight: Tensor<B, 2>,
    /// Soft cap c of the logits, which are `c tanh(z / c)` of the products z (Gemma 2).
    pub soft_cap: Option<f64>,
    /// Factor of the logits, after the soft cap.
    pub factor: f64,
}

impl<B: Backend> From<Tensor<B, 2>> for OutputHead<B> {
    fn from(weight: Tensor<B, 2>) -> Self {
        Self { weight, soft_cap: None, factor: 1.0 }
    }
}

impl<B: Backend> OutputHead<B> {
    /// Computes logits.
    ///
    /// # Shapes
    /// `hidden`: `[n, width]`; output: `[n, columns]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let products = hidden.matmul(self.weight.clone().transpose());
        let logits = match self.soft_cap {
            None => products,
            Some(cap) => products.div_scalar(cap).tanh().mul_scalar(cap),
        };
        if self.factor == 1.0 { logits } else { logits.mul_scalar(self.factor) }
    }
}

/// Computes `token_loss` of the logits of `head` and `hidden`, with the predictions' biases added.
///
/// * `trains`: whether `head` gets a gradient.
///
/// # Shapes
/// * `hidden`: `[predictions, width]`.
/// * `head`: `[columns, width]`, in the order of [`Batch::candidate_ids`].
pub fn linear_token_loss<B: AutodiffBackend>(
    hidden: Tensor<B, 2>,
    head: impl Into<OutputHead<B>>,
    trains: bool,
    batch: &Batch,
    token_loss: &impl TokenLoss,
) -> LinearLoss<B> {
    let OutputHead { weight: head, soft_cap, factor } = head.into();
    let inner = (hidden.clone().inner(), OutputHead { weight: head.clone().inner(), soft_cap, factor });
    let sums = sum_over_blocks(inner, &batch.predictions, token_loss, LOGITS_OF_A_BLOCK, [true, trains]);
    let carriers = [hidden, head].into_iter().zip(sums.gradients);
    let carriers = carriers.filter_map(|(tensor, grad)| Some((tensor * Tensor::from_inner(grad?)).sum()));
    let loss = Tensor::from_inner(sums.loss);
    // A carrier adds nothing to the loss but its gradient.
    let loss = carriers.fold(loss, |loss, carrier| loss + (carrier.clone() - carrier.detach()));
    LinearLoss { loss, weight: sums.weight.map(Tensor::from_inner) }
}

/// Computes the value of [`linear_token_loss`], without a gradient.
///
/// # Shapes
/// Those of [`linear_token_loss`].
pub fn linear_token_loss_value<B: Backend>(
    hidden: Tensor<B, 2>,
    head: impl Into<OutputHead<B>>,
    batch: &Batch,
    token_loss: &impl TokenLoss,
) -> LinearLoss<B> {
    let sums =
        sum_over_blocks((hidden, head.into()), &batch.predictions, token_loss, LOGITS_OF_A_BLOCK, [false, false]);
    LinearLoss { loss: sums.loss, weight: sums.weight }
}

struct Sums<B: Backend> {
    loss: Tensor<B, 1>,
    weight: Option<Tensor<B, 1>>,
    /// Gradients with respect to the hidden states and to the head, where the caller needs them.
    gradients: [Option<Tensor<B, 2>>; 2],
}

/// Sums a loss over blocks of predictions.
///
/// * `logits`: most logits of a block, if it has more than one prediction.
fn sum_over_blocks<B: Backend>(
    (hidden, output): (Tensor<B, 2>, OutputHead<B>),
    predictions: &[Prediction],
    token_loss: &impl TokenLoss,
    logits: usize,
    [for_hidden, for_head]: [bool; 2],
) -> Sums<B> {
    let head = output.weight.clone();
    let (device, columns) = (hidden.device(), head.dims()[0]);
    let mut loss = Tensor::zeros([1], &device);
    let mut weight: Option<Tensor<B, 1>> = None;
    let mut hidden_gradients = Vec::new();
    let mut head_gradient = for_head.then(|| Tensor::zeros(head.shape(), &device));
    let mut first = 0;
    for predictions in predictions.chunks((logits / columns.max(1)).max(1)) {
        let x = hidden.clone().narrow(0, first, predictions.len());
        first += predictions.len();
        let logits = output.logits(x.clone());
        let slopes = output.soft_cap.map(|cap| logits.clone().div_scalar(cap * output.factor).square().neg() + 1.0);
        let block = token_loss.block(add_logit_bias(logits, predictions), predictions);
        loss = loss + block.loss;
        weight = match (weight, block.weight) {
            (Some(sum), Some(more)) => Some(sum + more),
            (sum, more) => sum.or(more),
        };
        let (mut gradient, labels) = (block.gradient, labels::<B>(predictions, columns, &device));
        if let Some(slopes) = slopes {
            gradient.at_label = gradient.at_label * slopes.clone().gather(1, labels.clone().unsqueeze_dim(1));
            gradient.dense = gradient.dense * slopes;
        }
        if output.factor != 1.0 {
            gradient.row_scale = gradient.row_scale.mul_scalar(output.factor);
            gradient.at_label = gradient.at_label.mul_scalar(output.factor);
        }
        if for_hidden {
            let dense = gradient.dense.clone().matmul(head.clone()) * gradient.row_scale.clone();
            hidden_gradients.push(dense + head.clone().select(0, labels.clone()) * gradient.at_label.clone());
        }
        head_gradient = head_gradient.map(|sum| {
            let sum = sum + gradient.dense.transpose().matmul(x.clone() * gradient.row_scale);
            sum.select_assign(0, labels, x * gradient.at_label, IndexingUpdateOp::Add)
        });
    }
    let hidden_gradient = (!hidden_gradients.is_empty()).then(|| Tensor::cat(hidden_gradients, 0));
    Sums { loss, weight, gradients: [hidden_gradient, head_gradient] }
}

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;

    use burn::tensor::TensorData;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::batch::TokenTreeBatch;
    use crate::device::{BackendName, Training};
    use crate::loss::{Lml, Msl, cross_entropy};
    use crate::tensor::AUTODIFF;

    fn close(what: &str, found: &Tensor<impl Backend, 2>, expected: &Tensor<impl Backend, 2>) {
        let [found, expected] = [found.to_data(), expected.to_data()].map(|data| data.to_vec::<f32>().unwrap());
        let largest = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        for (f, e) in found.iter().zip(&expected) {
            assert!((f - e).abs() <= 1e-5 * largest, "{what}: {f} instead of {e}, of at most {largest}");
        }
    }

    /// Temperatures of the loss, with soft caps and factors of the logits.
    const LOGITS: [(f64, Option<f64>, f64); 4] =
        [(1.0, None, 1.0), (2.5, None, 0.3), (1.0, Some(2.0), 1.0), (1.0, Some(2.0), 0.3)];

    /// In blocks of every size, against all logits at once under autodiff: value, and gradients of
    /// both factors.
    #[test]
    fn equals_the_plain_version() {
        let _turn = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let devices =
            BackendName::ALL.into_iter().filter(|name| name.is_compiled()).filter_map(|name| name.device().ok());
        for device in devices {
            for (count, rows, vocabulary, logit_bias) in
                [(1, 3, false, true), (7, 11, false, true), (9, 50, false, false), (13, 300, true, false)]
            {
                let width = 8;
                let predictions: Vec<Prediction> = (0..count)
                    .map(|_| {
                        let label = rng.random_range(0..rows);
                        let valid: Vec<usize> = match vocabulary {
                            true => vec![],
                            false => (0..rows).filter(|&row| row == label || rng.random_bool(0.4)).collect(),
                        };
                        let logit_bias = if logit_bias {
                            valid.iter().map(|_| rng.random_range(-4.0..0.0)).collect()
                        } else {
                            vec![]
                        };
                        Prediction { hidden_index: 0, label, valid, logit_bias, is_root_position: false }
                    })
                    .collect();
                let batch = Batch {
                    token_trees: TokenTreeBatch::new(&[], 0).0,
                    predictions,
                    candidate_ids: (!vocabulary).then(|| (0..rows as u32).collect()),
                    target_tokens: count,
                    branching_tokens: count,
                    plain_tokens: 0,
                    logit_factor: 1.0,
                };
                let mut leaf = |shape: [usize; 2]| {
                    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.random_range(-1.5..1.5)).collect();
                    Tensor::<Training, 2>::from_data(TensorData::new(values, shape), &device).require_grad()
                };
                let (hidden, head) = (leaf([count, width]), leaf([rows, width]));
                for (temperature, soft_cap, factor) in LOGITS {
                    let output = |weight: &Tensor<Training, 2>| OutputHead { weight: weight.clone(), soft_cap, factor };
                    let token_loss = Msl { temperature };
                    let logits = add_logit_bias(output(&head).logits(hidden.clone()), &batch.predictions);
                    let plain = cross_entropy(logits, &batch, temperature);
                    let grads = plain.clone().mul_scalar(0.3).backward();
                    let expected = [&hidden, &head].map(|tensor| tensor.grad(&grads).unwrap());
                    let value = |loss: Tensor<Training, 1>| loss.into_scalar().elem::<f64>();
                    let plain = value(plain);

                    for trains in [true, false] {
                        let found = linear_token_loss(
                            hidden.clone(),
                            output(&head.clone().set_require_grad(trains)),
                            trains,
                            &batch,
                            &token_loss,
                        )
                        .loss;
                        assert!((value(found.clone()) - plain).abs() <= 1e-5 * plain);
                        let grads = found.mul_scalar(0.3).backward();
                        close("hidden", &hidden.grad(&grads).unwrap(), &expected[0]);
                    }
                    let found =
                        linear_token_loss(hidden.clone(), output(&head), true, &batch, &Lml { temperature }).loss;
                    let grads = found.mul_scalar(0.3).backward();
                    close("head", &head.grad(&grads).unwrap(), &expected[1]);

                    for logits in [1, rows, 3 * rows + 1] {
                        let head = OutputHead { weight: head.clone().inner(), soft_cap, factor };
                        let inner = (hidden.clone().inner(), head);
                        let sums = sum_over_blocks(inner, &batch.predictions, &token_loss, logits, [true, true]);
                        assert!(
                            (sums.loss.into_scalar().elem::<f64>() - plain).abs() <= 1e-5 * plain,
                            "blocks of {logits}"
                        );
                        for (found, expected) in sums.gradients.into_iter().zip(&expected) {
                            close(&format!("blocks of {logits}"), &found.unwrap().mul_scalar(0.3), expected);
                        }
                    }
                }
            }
        }
    }
}
