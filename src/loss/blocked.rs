//! The cross-entropy from hidden states and the output projection, without ever having all logits:
//! as many predictions at a time as make a fixed number of logits, whose gradients are computed at
//! once and the logits forgotten. Memory does not depend on the vocabulary, nor on the number of
//! predictions.
//!
//! Source: Liger Kernel's `fused_linear_cross_entropy` (arXiv 2410.10989;
//! liger_kernel/ops/fused_linear_cross_entropy.py), which cuts the predictions likewise; here in
//! tensor operations, with temperature, valid tokens and a prior.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use burn::tensor::backend::AutodiffBackend;

use super::{add_logit_bias, among_valid, labels};
use crate::batch::{Batch, Prediction};

/// Logits of a block: 32 MB. On a CPU smaller blocks read the projection too often, larger ones
/// leave its caches.
pub(crate) const LOGITS_OF_A_BLOCK: usize = 1 << 23;

/// [`cross_entropy`](crate::loss::cross_entropy) of `hidden headᵀ`, the batch's
/// [prior](crate::loss::with_prior) added; `[1]`.
///
/// * `hidden`: `[predictions, width]`.
/// * `head`: `[rows, width]`, in the order of [`Batch::rows`]; it gets a gradient where it
///   `trains`.
pub fn linear_cross_entropy<B: AutodiffBackend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    trains: bool,
    batch: &Batch,
    temperature: f64,
) -> Tensor<B, 1> {
    let inner = (hidden.clone().inner(), head.clone().inner());
    let sums = in_blocks(inner, &batch.predictions, temperature, LOGITS_OF_A_BLOCK, [true, trains]);
    let carriers = [hidden, head].into_iter().zip(sums.gradients);
    let carriers = carriers.filter_map(|(tensor, grad)| Some((tensor * Tensor::from_inner(grad?)).sum()));
    let loss = Tensor::from_inner(sums.loss);
    // What a carrier adds to the loss is its gradient alone.
    carriers.fold(loss, |loss, carrier| loss + (carrier.clone() - carrier.detach()))
}

/// The value of [`linear_cross_entropy`], where nothing is differentiated.
pub fn linear_cross_entropy_value<B: Backend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    batch: &Batch,
    temperature: f64,
) -> Tensor<B, 1> {
    in_blocks((hidden, head), &batch.predictions, temperature, LOGITS_OF_A_BLOCK, [false, false]).loss
}

struct Sums<B: Backend> {
    loss: Tensor<B, 1>,
    /// With respect to the hidden states and to the head, as far as they are wanted.
    gradients: [Option<Tensor<B, 2>>; 2],
}

/// `logits`: how many a block has at most, if it has more than one prediction.
fn in_blocks<B: Backend>(
    (hidden, head): (Tensor<B, 2>, Tensor<B, 2>),
    predictions: &[Prediction],
    temperature: f64,
    logits: usize,
    [for_hidden, for_head]: [bool; 2],
) -> Sums<B> {
    let (device, rows) = (hidden.device(), head.dims()[0]);
    let mut loss = Tensor::zeros([1], &device);
    let mut hidden_gradients = Vec::new();
    let mut head_gradient = for_head.then(|| Tensor::zeros(head.shape(), &device));
    let mut first = 0;
    for predictions in predictions.chunks((logits / rows.max(1)).max(1)) {
        let x = hidden.clone().narrow(0, first, predictions.len());
        first += predictions.len();
        let labels = labels::<B>(predictions, &device);
        let logits = add_logit_bias(x.clone().matmul(head.clone().transpose()), predictions).div_scalar(temperature);
        let of_labels = logits.clone().gather(1, labels.clone().unsqueeze_dim(1));
        let valid = among_valid(logits, predictions);
        let max = valid.clone().max_dim(1);
        let exp = (valid - max.clone()).exp();
        let sum = exp.clone().sum_dim(1);
        loss = loss + (sum.clone().log() + max - of_labels).sum();
        // The gradient with respect to the logits is (exp / sum - 1 at the label) / temperature.
        if for_hidden {
            let expected = exp.clone().matmul(head.clone()) / sum.clone();
            hidden_gradients.push((expected - head.clone().select(0, labels.clone())).div_scalar(temperature));
        }
        head_gradient = head_gradient.map(|gradient| {
            let x = x.div_scalar(temperature);
            let gradient = gradient + exp.transpose().matmul(x.clone() / sum);
            gradient.select_assign(0, labels, x.neg(), IndexingUpdateOp::Add)
        });
    }
    let hidden_gradient = (!hidden_gradients.is_empty()).then(|| Tensor::cat(hidden_gradients, 0));
    Sums { loss, gradients: [hidden_gradient, head_gradient] }
}

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;

    use burn::tensor::TensorData;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::batch::TokenTreeBatch;
    use crate::device::{BackendName, Training};
    use crate::loss::{cross_entropy, with_prior};
    use crate::tensor::AUTODIFF;

    fn close(what: &str, found: &Tensor<impl Backend, 2>, expected: &Tensor<impl Backend, 2>) {
        let [found, expected] = [found.to_data(), expected.to_data()].map(|data| data.to_vec::<f32>().unwrap());
        let largest = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        for (f, e) in found.iter().zip(&expected) {
            assert!((f - e).abs() <= 1e-5 * largest, "{what}: {f} instead of {e}, of at most {largest}");
        }
    }

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
                };
                let mut leaf = |shape: [usize; 2]| {
                    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.random_range(-1.5..1.5)).collect();
                    Tensor::<Training, 2>::from_data(TensorData::new(values, shape), &device).require_grad()
                };
                let (hidden, head) = (leaf([count, width]), leaf([rows, width]));
                for temperature in [1.0, 2.5] {
                    let logits = with_prior(hidden.clone().matmul(head.clone().transpose()), &batch);
                    let plain = cross_entropy(logits, &batch, temperature);
                    let grads = plain.clone().mul_scalar(0.3).backward();
                    let expected = [&hidden, &head].map(|tensor| tensor.grad(&grads).unwrap());
                    let value = |loss: Tensor<Training, 1>| loss.into_scalar().elem::<f64>();
                    let plain = value(plain);

                    for trains in [true, false] {
                        let found = linear_cross_entropy(
                            hidden.clone(),
                            head.clone().set_require_grad(trains),
                            trains,
                            &batch,
                            temperature,
                        );
                        assert!((value(found.clone()) - plain).abs() <= 1e-5 * plain);
                        let grads = found.mul_scalar(0.3).backward();
                        close("hidden", &hidden.grad(&grads).unwrap(), &expected[0]);
                    }
                    let found = linear_cross_entropy(hidden.clone(), head.clone(), true, &batch, temperature);
                    let grads = found.mul_scalar(0.3).backward();
                    close("head", &head.grad(&grads).unwrap(), &expected[1]);

                    for logits in [1, rows, 3 * rows + 1] {
                        let inner = (hidden.clone().inner(), head.clone().inner());
                        let sums = in_blocks(inner, &batch.predictions, temperature, logits, [true, true]);
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
