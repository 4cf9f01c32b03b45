//! The losses: language-model loss (LML), masked softmax loss (MSL), and MSL with the adaptive
//! temperature (ATS).
//!
//! Source: arXiv 2504.04178, Eq. 1–12, and its released code where the two differ; each difference
//! is said where it is.

mod blocked;
mod contrastive;
mod temperature;

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::batch::{Batch, Candidates, Prediction};
use crate::config::{LossConfig, LossKind, Temperature};

pub(crate) use blocked::LOGITS_OF_A_BLOCK;
pub use blocked::{linear_cross_entropy, linear_cross_entropy_value};
pub use contrastive::{
    Negatives, contrastive, hard_negatives, query_query_similarity, query_text_similarity, smoothed_cross_entropy,
};
pub use temperature::{AdaptiveTemperature, RootStatistics};

/// Kind of loss, with its reduction over an optimiser step as released.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// `mean over target tokens of -log softmax over the vocabulary`.
    Lml,
    /// `mean over ALL target tokens of -log softmax(f/τ) over the valid tokens`, without a factor τ
    /// in front (as released; the paper's Eq. 9 has one). Tokens with one child add 0 and count in
    /// the mean.
    Msl,
    /// `τ · mean over target tokens with more than one child of -log softmax(f/τ) over the valid
    /// tokens`.
    MslAts,
}

impl Loss {
    /// Returns the loss that a run file asks for, and the temperature of [`Loss::Msl`].
    pub fn of(config: &LossConfig) -> (Self, f64) {
        match (config.kind, config.temperature) {
            (LossKind::Lml, _) => (Self::Lml, 1.0),
            (LossKind::Msl, Temperature::Adaptive) => (Self::MslAts, 1.0),
            (LossKind::Msl, Temperature::Fixed(temperature)) => (Self::Msl, temperature),
        }
    }

    /// The tokens that compete.
    pub fn candidates(self) -> Candidates {
        match self {
            Self::Lml => Candidates::Vocabulary,
            Self::Msl | Self::MslAts => Candidates::Children,
        }
    }

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

/// `logits`, `[predictions, rows]`, with each prediction's gains added to its valid tokens;
/// themselves where no prediction has any.
///
/// The sum is what the loss divides by τ and what the adaptive temperature is computed from, as it
/// is what ranks.
pub fn with_prior<B: Backend>(logits: Tensor<B, 2>, batch: &Batch) -> Tensor<B, 2> {
    add_logit_bias(logits, &batch.predictions)
}

fn add_logit_bias<B: Backend>(logits: Tensor<B, 2>, predictions: &[Prediction]) -> Tensor<B, 2> {
    if predictions.iter().all(|prediction| prediction.logit_bias.is_empty()) {
        return logits;
    }
    let shape = logits.dims();
    let mut logit_bias = vec![0f32; shape[0] * shape[1]];
    for (row, prediction) in logit_bias.chunks_exact_mut(shape[1]).zip(predictions) {
        prediction.valid.iter().zip(&prediction.logit_bias).for_each(|(&place, &gain)| row[place] = gain);
    }
    let logit_bias = Tensor::<B, 2>::from_data(TensorData::new(logit_bias, shape), &logits.device());
    logits + logit_bias
}

/// `logits` with those that do not compete far below the others.
fn among_valid<B: Backend>(logits: Tensor<B, 2>, predictions: &[Prediction]) -> Tensor<B, 2> {
    if predictions.iter().all(|prediction| prediction.valid.is_empty()) {
        return logits;
    }
    let shape = logits.dims();
    let mut invalid = vec![true; shape[0] * shape[1]];
    for (row, prediction) in invalid.chunks_exact_mut(shape[1]).zip(predictions) {
        prediction.valid.iter().for_each(|&place| row[place] = false);
    }
    let invalid = Tensor::<B, 2, Bool>::from_data(TensorData::new(invalid, shape), &logits.device());
    logits.mask_fill(invalid, f32::MIN / 2.0)
}

/// `[predictions]`: the labels' places among the rows.
fn labels<B: Backend>(predictions: &[Prediction], device: &B::Device) -> Tensor<B, 1, Int> {
    let labels: Vec<i32> = predictions.iter().map(|prediction| prediction.label as i32).collect();
    Tensor::from_data(TensorData::new(labels, [predictions.len()]), device)
}

/// `Σ -log softmax(logits / τ)[label]` over the batch's predictions, among each one's valid tokens;
/// `[1]`, in f32.
///
/// * `logits`: `[predictions, rows]`, the columns in the order of [`Batch::rows`].
///
/// The maximum is subtracted before exponentiating (the released code does not, and overflows).
/// Autodiff keeps several tensors of the logits' shape; [`linear_cross_entropy`] never has them
/// all.
pub fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, batch: &Batch, temperature: f64) -> Tensor<B, 1> {
    let logits = logits.div_scalar(temperature);
    let labels = labels(&batch.predictions, &logits.device()).unsqueeze_dim(1);
    let label_logits = logits.clone().gather(1, labels);
    let valid = among_valid(logits, &batch.predictions);
    let max = valid.clone().detach().max_dim(1);
    let log_sum = (valid - max.clone()).exp().sum_dim(1).log() + max;
    (log_sum - label_logits).sum()
}

#[cfg(test)]
mod tests {
    use burn::{Dispatch, DispatchDevice};
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::batch::{Candidates, Example, Target};
    use crate::data::{Split, synthetic};
    use crate::decode::TriePrior;
    use crate::device::BackendName;
    use crate::rankers::testing::fit;
    use crate::text::{Catalogue, Trie};

    /// Loss and gradient, softmax with the prior minus target, against sums over the trie's
    /// children, prediction by prediction.
    #[test]
    fn with_a_prior() {
        let _turn = crate::tensor::AUTODIFF.lock().unwrap();
        let device = DispatchDevice::autodiff(BackendName::Cpu.device().unwrap());
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let (corpus, _) = synthetic(1);
        let targets: Vec<Vec<u32>> = (0..corpus.items.len())
            .map(|_| (0..rng.random_range(1..5)).map(|_| rng.random_range(0..5)).chain([9]).collect())
            .collect();
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let prior = TriePrior::new(fit("cooccurrence", &corpus), &catalogue.trie, 0.6, 0.1);
        let windows = &corpus.windows(Split::Train)[..5];
        let priors: Vec<_> = windows.iter().map(|window| prior.of_window(&corpus, Split::Train, window)).collect();
        let example = |logit_bias| Example { prompt: vec![1, 2], target: Target::Item(0), logit_bias };
        let examples = windows.iter().zip(&priors).map(|(window, user)| {
            let item = corpus.target(window);
            Example { target: Target::Item(item), ..example(user.logit_bias_to(&catalogue.trie, item)) }
        });
        // The last one has no prior.
        let examples: Vec<Example> = examples.chain([example(vec![])]).collect();
        let batch = Batch::new(&examples, &catalogue, Candidates::Children);
        let (predictions, rows) = (batch.predictions.len(), batch.candidate_ids.as_ref().unwrap().len());
        let values: Vec<f32> = (0..predictions * rows).map(|_| rng.random_range(-3.0..3.0)).collect();

        for tau in [1.0, 2.5] {
            let mut loss = 0.0;
            let mut gradient = vec![0f64; predictions * rows];
            let mut p = 0;
            for (n, example) in examples.iter().enumerate() {
                let Target::Item(item) = example.target else { unreachable!("all are items") };
                let path = catalogue.trie.path(catalogue.trie.leaf(item));
                let nodes = std::iter::once(crate::text::ROOT).chain(path.iter().copied());
                for (node, &label) in nodes.zip(&path).filter(|(node, _)| catalogue.trie.children(*node).len() > 1) {
                    let row = |token| p * rows + batch.candidate_ids.as_ref().unwrap().binary_search(&token).unwrap();
                    let logit = |child| {
                        let gain = priors.get(n).map_or(0.0, |user| 0.6 * (user.mass(child) / user.mass(node)).ln());
                        (f64::from(values[row(catalogue.trie.token(child))]) + gain) / tau
                    };
                    let sum: f64 = catalogue.trie.children(node).map(|child| logit(child).exp()).sum();
                    loss += sum.ln() - logit(label);
                    for child in catalogue.trie.children(node) {
                        let target = if child == label { 1.0 } else { 0.0 };
                        gradient[row(catalogue.trie.token(child))] = (logit(child).exp() / sum - target) / tau;
                    }
                    p += 1;
                }
            }
            assert_eq!(p, predictions);
            let logits =
                Tensor::<Dispatch, 2>::from_data(TensorData::new(values.clone(), [predictions, rows]), &device);
            let logits = logits.require_grad();
            let found = cross_entropy(with_prior(logits.clone(), &batch), &batch, tau);
            let value = found.clone().into_scalar().elem::<f64>();
            assert!((value - loss).abs() < 1e-4 * loss, "{value} instead of {loss}");
            let found = logits.grad(&found.backward()).unwrap().into_data().convert::<f32>().to_vec::<f32>().unwrap();
            for (found, expected) in found.iter().zip(&gradient) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} instead of {expected}");
            }
        }

        let bare: Vec<Example> = examples.iter().map(|e| Example { logit_bias: vec![], ..e.clone() }).collect();
        let bare = Batch::new(&bare, &catalogue, Candidates::Children);
        let logits = Tensor::<Dispatch, 2>::from_data(TensorData::new(values.clone(), [predictions, rows]), &device);
        let same = with_prior(logits, &bare).into_data().to_vec::<f32>().unwrap();
        assert_eq!(same, values, "without a prior nothing is added");
    }
}
