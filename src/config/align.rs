//! The run file of phase 1 (`itemlm align`).

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::extends::{Extended, read_extended};
use super::{Problems, from_table, from_toml};
use crate::{Context, Result};

/// A run file of phase 1, defaults filled in. Where ILM's paper is silent they are BLIP-2's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlignConfig {
    /// Seed of the choice of held-out items, of random weights, of the order of the data and of
    /// dropout.
    #[serde(default = "super::default_seed")]
    pub seed: u64,
    /// The training data.
    pub data: AlignDataConfig,
    /// The Q-Former that is trained.
    pub qformer: QFormerSettings,
    /// The losses and their weights.
    #[serde(default)]
    pub loss: AlignLossConfig,
    /// The optimiser and its schedule.
    #[serde(default)]
    pub train: AlignTrainConfig,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlignDataConfig {
    /// The directory that `prepare` wrote.
    pub corpus: String,
    /// Vectors of its items and users, as `cf` writes them.
    pub vectors: String,
    /// Share of the items that are held out: their text is not trained on, but retrieved after each
    /// epoch.
    #[serde(default = "default_held_out")]
    pub held_out: f64,
}

fn default_held_out() -> f64 {
    0.1
}

/// `[qformer]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QFormerSettings {
    /// A BERT directory: its tokenizer, its sizes and, with `init = "pretrained"`, the initial
    /// weights of the text branch.
    pub text: String,
    /// Initial weights of the text branch.
    #[serde(default)]
    pub init: Init,
    /// Number of learned queries: vectors that an item becomes.
    #[serde(default = "default_queries")]
    pub queries: usize,
    /// Number of layers, from the first one on; all of the directory's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Hidden width, for `init = "random"`; the directory's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Number of attention heads, for `init = "random"`; the directory's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_heads: Option<usize>,
    /// Width of the feed-forwards' inner layer, for `init = "random"`; the directory's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Distance of the layers with cross-attention to the item's vector; layer 0 is the first.
    #[serde(default = "default_cross_attention_every")]
    pub cross_attention_every: usize,
    /// Width of the projections that the contrastive losses compare.
    #[serde(default = "default_projection")]
    pub projection: usize,
    /// Longest text, in tokens, `[CLS]` and `[SEP]` included; the rest is cut.
    #[serde(default = "default_max_text_tokens")]
    pub max_text_tokens: usize,
    /// Probability of dropout while training, wherever BERT has dropout.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
}

fn default_queries() -> usize {
    4
}

fn default_cross_attention_every() -> usize {
    2
}

fn default_projection() -> usize {
    256
}

fn default_max_text_tokens() -> usize {
    32
}

fn default_dropout() -> f64 {
    0.1
}

/// `qformer.init`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The weights of the directory's BERT.
    #[default]
    Pretrained,
    /// Random weights.
    Random,
}

/// `[loss]`: weights of the losses (0 switches one off), and settings that the contrastive ones
/// share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlignLossConfig {
    /// ITC: an item and its text against the others of the batch.
    pub item_text_contrastive: f64,
    /// ITG: the text, generated from the item.
    pub item_grounded_generation: f64,
    /// ITM: whether an item and a text belong together, against hard negatives.
    pub item_text_matching: f64,
    /// II: items that follow one another in a user's training history.
    pub item_item: f64,
    /// UI: a user and an item of the training history.
    pub user_item: f64,
    /// Initial value of the learned temperatures.
    pub temperature: f64,
    /// Share of the target probability that is spread over all classes, in all losses but ITM.
    pub label_smoothing: f64,
}

impl Default for AlignLossConfig {
    fn default() -> Self {
        Self {
            item_text_contrastive: 1.0,
            item_grounded_generation: 1.0,
            item_text_matching: 1.0,
            item_item: 0.0,
            user_item: 0.0,
            temperature: 0.07,
            label_smoothing: 0.1,
        }
    }
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlignTrainConfig {
    /// Passes over the items with a text.
    pub epochs: usize,
    /// Items, or pairs, of an optimiser step.
    pub batch_size: usize,
    /// AdamW's learning rate after warm-up.
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine.
    pub min_learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Learning rate of the first step.
    pub warmup_learning_rate: f64,
    /// AdamW's decoupled decay, of matrices alone.
    pub weight_decay: f64,
    /// Largest norm of the gradient of all trainable parameters together; a larger one is scaled
    /// down.
    pub max_grad_norm: f64,
    /// Whether training writes TensorBoard's event files to `RUN_DIR/tensorboard/`, beside
    /// `metrics.jsonl`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tensorboard: bool,
}

impl Default for AlignTrainConfig {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 100,
            learning_rate: 1e-4,
            min_learning_rate: 1e-5,
            warmup_steps: 100,
            warmup_learning_rate: 1e-6,
            weight_decay: 0.05,
            max_grad_norm: 1.0,
            tensorboard: false,
        }
    }
}

impl AlignConfig {
    /// Reads a run file, and those that it extends, and applies `key.path=value` overrides, in
    /// order.
    ///
    /// # Errors
    /// An unreadable file (exit 1); bad TOML, an unknown key or a value out of range (exit 2).
    pub fn open(path: &Path, overrides: &[String]) -> Result<Self> {
        let Extended { table, name } = read_extended(path)?;
        from_table(table, overrides, &name, Self::validate)
    }

    /// Reads a run file from text, as [`AlignConfig::open`] does; `name` is its name in errors.
    pub fn parse(text: &str, overrides: &[String], name: &str) -> Result<Self> {
        from_toml(text, overrides, name, Self::validate)
    }

    /// Returns the run file as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("run file")
    }

    fn validate(&self) -> Result<()> {
        self.problems().first()
    }

    /// Returns all that is wrong with the values.
    pub(crate) fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let (q, loss, train) = (&self.qformer, &self.loss, &self.train);
        let sizes = [
            ("qformer.queries", q.queries, 1, 1 << 10),
            ("qformer.cross_attention_every", q.cross_attention_every, 1, 1 << 10),
            ("qformer.projection", q.projection, 1, 1 << 16),
            ("qformer.max_text_tokens", q.max_text_tokens, 3, 1 << 16),
            ("train.epochs", train.epochs, 1, 1 << 30),
            ("train.batch_size", train.batch_size, 2, 1 << 20),
        ];
        for (key, value, least, most) in sizes {
            if !(least..=most).contains(&value) {
                problems.add(format!("{key} is {value}, it must be between {least} and {most}"));
            }
        }
        let shares = [
            ("data.held_out", self.data.held_out),
            ("qformer.dropout", q.dropout),
            ("loss.label_smoothing", loss.label_smoothing),
        ];
        for (key, value) in shares {
            if !(0.0..1.0).contains(&value) {
                problems.add(format!("{key} is {value}, it must be at least 0 and below 1"));
            }
        }
        let weights = [
            ("loss.item_text_contrastive", loss.item_text_contrastive),
            ("loss.item_grounded_generation", loss.item_grounded_generation),
            ("loss.item_text_matching", loss.item_text_matching),
            ("loss.item_item", loss.item_item),
            ("loss.user_item", loss.user_item),
        ];
        let rates = [
            ("train.learning_rate", train.learning_rate),
            ("train.min_learning_rate", train.min_learning_rate),
            ("train.warmup_learning_rate", train.warmup_learning_rate),
            ("train.weight_decay", train.weight_decay),
        ];
        for (key, value) in weights.into_iter().chain(rates) {
            if !value.is_finite() || value < 0.0 {
                problems.add(format!("{key} is {value}, it must be a finite number of at least 0"));
            }
        }
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            problems.add("[loss]: every weight is 0, so nothing would train");
        }
        if !(0.001..=0.5).contains(&loss.temperature) {
            problems.add(format!("loss.temperature is {}, it must be between 0.001 and 0.5", loss.temperature));
        }
        if !(train.max_grad_norm > 0.0 && train.max_grad_norm.is_finite()) {
            problems.add(format!("train.max_grad_norm is {}, it must be above 0", train.max_grad_norm));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[data]\ncorpus = \"c\"\nvectors = \"v\"\n[qformer]\ntext = \"m\"\n";

    #[test]
    fn defaults_and_round_trip() {
        let sets = ["loss.item_item=0.5", "qformer.init=random", "qformer.layers=8"].map(String::from);
        let config = AlignConfig::parse(MINIMAL, &sets, "run.toml").unwrap();
        assert_eq!((config.seed, config.qformer.init, config.qformer.layers), (42, Init::Random, Some(8)));
        assert_eq!(config.loss, AlignLossConfig { item_item: 0.5, ..AlignLossConfig::default() });
        assert_eq!(AlignConfig::parse(&config.to_toml().unwrap(), &[], "again").unwrap(), config);
    }

    #[test]
    fn bad_configs_are_usage_errors_that_name_the_key() {
        for (assignment, named) in [
            ("train.epoch=1", "epoch"),
            ("train.batch_size=1", "train.batch_size"),
            ("data.held_out=1", "data.held_out"),
            ("loss.user_item=-1", "loss.user_item"),
            ("loss.temperature=0", "loss.temperature"),
            ("qformer.init=warm", "warm"),
            ("qformer.max_text_tokens=2", "qformer.max_text_tokens"),
            ("loss={ item_text_contrastive = 0, item_grounded_generation = 0, item_text_matching = 0 }", "[loss]"),
        ] {
            let error = AlignConfig::parse(MINIMAL, &[assignment.to_string()], "run.toml").unwrap_err();
            assert_eq!(error.exit_code(), 2, "{assignment}");
            assert!(error.to_string().contains(named), "{assignment}: {error}");
        }
    }
}
