//! `[train]` of the run file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problems;

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the (sampled) windows. In each, every target that `targets` names comes once.
    pub epochs: usize,
    /// Windows of an optimiser step.
    pub batch_size: usize,
    /// Windows of a forward pass, in place of `micro_batch_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Tokens of a forward pass, which decide how much memory it needs. By default
    /// [`TrainConfig::MICRO_BATCH_TOKENS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
    /// Keeps each decoder block's input alone and runs the block again in the backward pass: less
    /// memory, more time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// AdamW's learning rate after warm-up.
    pub learning_rate: f64,
    /// Steps of linear warm-up from 0; then linear decay to 0 at the last step.
    pub warmup_steps: usize,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient of all trainable parameters together; a larger one is scaled
    /// down.
    pub max_grad_norm: f64,
    /// Whether each epoch has a new seeded order; else it has the corpus's.
    pub shuffle: bool,
    /// The items of a window that are its targets.
    pub targets: Targets,
    /// Steps between two checkpoints; an epoch's end always has one.
    pub checkpoint_steps: usize,
    /// Number of validation windows that are ranked after each epoch, a seeded sample; the epoch
    /// with the best NDCG@10 is kept. With 0 the last epoch is kept. Of text tasks as many rows are
    /// read, and the epoch with the lowest loss on them is kept.
    pub valid_windows: usize,
    /// Whether training writes TensorBoard's event files to `RUN_DIR/tensorboard/`, beside
    /// `metrics.jsonl`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tensorboard: bool,
}

impl Default for TrainConfig {
    /// Returns the hyper-parameters of the MSL paper (arXiv 2504.04178).
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 128,
            micro_batch_size: None,
            micro_batch_tokens: None,
            gradient_checkpointing: false,
            learning_rate: 1e-4,
            warmup_steps: 20,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            shuffle: true,
            targets: Targets::Last,
            checkpoint_steps: 20,
            valid_windows: 200,
            tensorboard: false,
        }
    }
}

impl TrainConfig {
    /// Default of `micro_batch_tokens`. SmolLM2-135M trains with it in about 3 GB, Llama 3 8B in
    /// about 25 GB beside its weights; more makes training on a CPU no faster.
    pub const MICRO_BATCH_TOKENS: usize = 2048;

    /// Returns how much one forward pass takes.
    pub fn micro_batch(&self) -> MicroBatch {
        match self.micro_batch_size {
            Some(samples) => MicroBatch::Samples(samples),
            None => MicroBatch::Tokens(self.micro_batch_tokens.unwrap_or(Self::MICRO_BATCH_TOKENS)),
        }
    }

    pub(super) fn validate(&self, problems: &mut Problems) {
        if !self.max_grad_norm.is_finite() || self.max_grad_norm <= 0.0 {
            problems.add(format!("train.max_grad_norm is {}, it must be a finite number above 0", self.max_grad_norm));
        }
        if self.micro_batch_size.is_some() && self.micro_batch_tokens.is_some() {
            problems
                .add("train.micro_batch_size and train.micro_batch_tokens exclude each other: count windows or tokens");
        }
    }
}

/// `train.targets`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Targets {
    /// The last item, as in the papers. An epoch has every window once.
    Last,
    /// Each item after the first, predicted from those before it: branches of one token tree. An
    /// epoch has every interaction (user and position) that some window has after its first once,
    /// however many windows hold it; windows whose targets others have taken are left out. All
    /// targets count the same.
    Every,
}

/// Size of one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroBatch {
    /// A fixed number of samples.
    Samples(usize),
    /// The largest number of samples that have at most this number of tokens after the prefix that
    /// all prompts of the step share. A larger sample runs alone.
    Tokens(usize),
}
