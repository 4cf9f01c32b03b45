//! The losses of phase 2, each in a file with its hyper-parameters and its state ([`TokenLoss`]),
//! and the losses of phase 1 ([`contrastive`]).
//!
//! A further token loss is a file like `msl.rs`, a line in `losses!` and one in [`Loss::new`],
//! which reads `[loss]` of the run file. The loop over blocks of logits ([`linear_token_loss`]) and
//! the training step work with any of them.

mod ats;
mod bear;
mod blocked;
mod contrastive;
mod lml;
mod msl;
mod softmax;

use std::collections::BTreeMap;

use burn::prelude::*;

use crate::batch::{Batch, Candidates, Prediction};
use crate::config::{LossConfig, LossKind, Temperature};
use crate::text::{Catalogue, ROOT};

pub use ats::Ats;
pub use bear::Bear;
pub(crate) use blocked::LOGITS_OF_A_BLOCK;
pub use blocked::{LinearLoss, OutputHead, linear_token_loss, linear_token_loss_value};
pub use contrastive::{
    Negatives, contrastive, hard_negatives, query_query_similarity, query_text_similarity, smoothed_cross_entropy,
};
pub use lml::Lml;
pub use msl::Msl;
pub use softmax::{add_logit_bias, cross_entropy};

/// State of a loss that lasts from one optimiser step to the next, by name: part of a checkpoint.
pub type LossState = BTreeMap<String, f64>;

/// A loss over the tokens that an optimiser step predicts.
///
/// The loss of a step is the sum of its blocks' losses over [`TokenLoss::denominator`] or, where
/// the blocks have weights, over the sum of the weights. So the split of a step into blocks,
/// micro-batches and devices makes no difference.
pub trait TokenLoss {
    /// Returns over which tokens the softmax is computed.
    fn candidates(&self) -> Candidates;

    /// Returns the number that divides the sum over an optimiser step. Where blocks have weights,
    /// the sum of the weights takes its place at the end of the step.
    fn denominator(&self, batches: &[Batch]) -> usize;

    /// Returns the temperature τ, by which logits are divided.
    fn temperature(&self) -> f64;

    /// Computes the summed loss of some predictions, and its gradient.
    ///
    /// # Shapes
    /// `logits`: `[predictions, columns]`, biases added, not divided by a temperature; the columns
    /// are the vocabulary's, or those of [`Batch::candidate_ids`].
    fn block<B: Backend>(&self, logits: Tensor<B, 2>, predictions: &[Prediction]) -> BlockLoss<B>;

    /// Returns whether [`TokenLoss::observe`] must get all logits of a step before the step's first
    /// gradient. With several micro-batches this costs one more forward pass over each.
    fn needs_logits(&self) -> bool {
        false
    }

    /// Collects statistics of the logits (`[predictions, columns]`, as [`TokenLoss::block`] gets
    /// them) of one of the step's micro-batches.
    fn observe(&mut self, _logits: &[f32], _batch: &Batch) {}

    /// Updates the state from the statistics of this step.
    fn update(&mut self) {}

    /// Returns the state, for a checkpoint.
    fn state(&self) -> LossState {
        LossState::new()
    }

    /// Restores a state that [`TokenLoss::state`] returned.
    fn restore(&mut self, _state: &LossState) {}
}

/// The result of [`TokenLoss::block`].
#[derive(Debug, Clone)]
pub struct BlockLoss<B: Backend> {
    /// The loss, summed over the predictions: `[1]`.
    pub loss: Tensor<B, 1>,
    /// Sum of the predictions' weights, `[1]`, if the loss is a weighted mean.
    pub weight: Option<Tensor<B, 1>>,
    /// Gradient of `loss` with respect to the logits.
    pub gradient: LogitGradient<B>,
}

/// The gradient with respect to a block's logits: `row_scale · dense`, plus `at_label` in each
/// label's column. In this form a softmax's gradient takes no pass over the logits.
#[derive(Debug, Clone)]
pub struct LogitGradient<B: Backend> {
    /// The dense part, `[predictions, columns]`.
    pub dense: Tensor<B, 2>,
    /// Factor of each row, `[predictions, 1]`.
    pub row_scale: Tensor<B, 2>,
    /// Number that is added in the label's column, `[predictions, 1]`.
    pub at_label: Tensor<B, 2>,
}

/// Facts about a run, beside `[loss]`, that some losses need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossContext {
    /// Number of children of the root of the titles' trie.
    pub root_children: usize,
    /// Number of beams of the search, `decode.beams`.
    pub beams: usize,
}

impl LossContext {
    /// Collects the facts from the titles and `decode.beams`.
    pub fn new(catalogue: &Catalogue, beams: usize) -> Self {
        Self { root_children: catalogue.trie.valid_tokens(ROOT).len(), beams }
    }
}

/// Makes the enum of all losses, which is a [`TokenLoss`] itself.
macro_rules! losses {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// One of the token losses.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub enum Loss {
            $($(#[$doc])* $name($name)),+
        }

        impl TokenLoss for Loss {
            fn candidates(&self) -> Candidates {
                match self { $(Self::$name(loss) => loss.candidates()),+ }
            }

            fn denominator(&self, batches: &[Batch]) -> usize {
                match self { $(Self::$name(loss) => loss.denominator(batches)),+ }
            }

            fn temperature(&self) -> f64 {
                match self { $(Self::$name(loss) => loss.temperature()),+ }
            }

            fn block<B: Backend>(&self, logits: Tensor<B, 2>, predictions: &[Prediction]) -> BlockLoss<B> {
                match self { $(Self::$name(loss) => loss.block(logits, predictions)),+ }
            }

            fn needs_logits(&self) -> bool {
                match self { $(Self::$name(loss) => loss.needs_logits()),+ }
            }

            fn observe(&mut self, logits: &[f32], batch: &Batch) {
                match self { $(Self::$name(loss) => loss.observe(logits, batch)),+ }
            }

            fn update(&mut self) {
                match self { $(Self::$name(loss) => loss.update()),+ }
            }

            fn state(&self) -> LossState {
                match self { $(Self::$name(loss) => loss.state()),+ }
            }

            fn restore(&mut self, state: &LossState) {
                match self { $(Self::$name(loss) => loss.restore(state)),+ }
            }
        }
    };
}

losses! {
    /// Language-model loss.
    Lml,
    /// Masked softmax loss at a fixed temperature.
    Msl,
    /// Masked softmax loss with the adaptive temperature.
    Ats,
    /// Masked softmax loss reweighted by the beam's edge.
    Bear,
}

impl Loss {
    /// Returns the loss that `[loss]` of a run file names.
    pub fn new(config: &LossConfig, context: &LossContext) -> Self {
        let fixed = match config.temperature {
            Temperature::Fixed(temperature) => temperature,
            Temperature::Adaptive => 1.0,
        };
        match (config.kind, config.temperature) {
            (LossKind::Lml, _) => Self::Lml(Lml { temperature: fixed }),
            (LossKind::Msl, Temperature::Adaptive) => Self::Ats(Ats::new(context.root_children)),
            (LossKind::Msl, Temperature::Fixed(temperature)) => Self::Msl(Msl { temperature }),
            (LossKind::Bear, _) => Self::Bear(Bear {
                temperature: fixed,
                lambda: config.lambda.unwrap_or(LossConfig::LAMBDA),
                xi: config.xi.unwrap_or(LossConfig::XI),
                beams: context.beams,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
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
        let priors: Vec<_> =
            windows.iter().map(|window| prior.mass_for_window(&corpus, Split::Train, window)).collect();
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
            let found = cross_entropy(add_logit_bias(logits.clone(), &batch.predictions), &batch, tau);
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
        let same = add_logit_bias(logits, &bare.predictions).into_data().to_vec::<f32>().unwrap();
        assert_eq!(same, values, "without a prior nothing is added");
    }
}
