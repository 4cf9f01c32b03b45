//! The run file: everything that decides a run, in TOML. Unknown keys are errors.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod align;
mod prior;

pub use align::{AlignConfig, AlignDataConfig, AlignLossConfig, AlignTrainConfig, Init, QFormerSettings};
pub use prior::{PriorConfig, RankerName};

use crate::batch::MicroBatch;
use crate::model::{LoraConfig, Precision};
use crate::{Context, Error, Result};

/// A run file, defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Of the sample, the order, the adapter's start and dropout.
    #[serde(default = "seed")]
    pub seed: u64,
    /// What is learnt from.
    pub data: DataConfig,
    /// What learns.
    pub llm: LlmConfig,
    /// How items enter the prompt.
    #[serde(default)]
    pub items: ItemsConfig,
    /// What is minimised.
    #[serde(default)]
    pub loss: LossConfig,
    /// How it is minimised.
    #[serde(default)]
    pub train: TrainConfig,
    /// How items are ranked.
    #[serde(default)]
    pub decode: DecodeConfig,
    /// What a ranker without text says beside the LLM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<PriorConfig>,
}

fn seed() -> u64 {
    42
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The directory that `prepare` wrote.
    pub corpus: String,
    /// An embedded prompt template or a file with `{history}` or `{user}`; by default the one of the corpus's name, or `items`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// In place of one prompt: tasks with prompts of their own, [`crate::text::PromptSet`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Of every task's seen prompts so many, drawn anew each epoch, ask of each window; [`DataConfig::PROMPTS_PER_WINDOW`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts_per_window: Option<usize>,
    /// In place of windows a file of rows of ELM's tasks, as [`crate::data::read_tasks`] reads it: the model learns their texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
    /// How often the rows' tasks come: alpha of [`crate::train::mix`], 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixing: Option<f64>,
    /// Train on a seeded sample of this many windows or rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_samples: Option<usize>,
}

impl DataConfig {
    /// OpenP5's, where it samples.
    pub const PROMPTS_PER_WINDOW: usize = 3;

    fn validate(&self) -> Result<()> {
        if self.prompts_per_window.is_some() && self.tasks.is_empty() {
            return Err(Error::usage("data.prompts_per_window is only for data.tasks"));
        }
        if self.prompt.is_some() && !self.tasks.is_empty() {
            return Err(Error::usage("data.prompt and data.tasks exclude each other: tasks have prompts of their own"));
        }
        match self.tasks.iter().enumerate().find(|(n, task)| self.tasks[..*n].contains(task)) {
            Some((_, task)) => Err(Error::usage(format!("data.tasks: {task:?} is there twice"))),
            None => Ok(()),
        }
    }
}

/// `[llm]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmConfig {
    /// A Hugging Face directory or one `.gguf` file.
    pub path: String,
    /// What trains.
    #[serde(default)]
    pub tune: TuneKind,
    /// The adapter, for `tune = "lora"`.
    #[serde(default)]
    pub lora: LoraConfig,
    /// A PEFT adapter directory to start from, of the same rank and targets, in place of a fresh one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// What its products are computed in, and its frozen weights kept in.
    #[serde(default)]
    pub precision: Precision,
    /// Keeps the decoder's frozen matrices in the 4- and 8-bit blocks of the `.gguf` file and unpacks each where it is multiplied with:
    /// the same numbers in less memory and more time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quantized: bool,
}

/// `llm.tune`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TuneKind {
    /// Adapters.
    #[default]
    Lora,
    /// Every weight.
    Full,
    /// Nothing of the LLM.
    Frozen,
}

/// `[items]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemsConfig {
    /// What an item is called, in prompts and as a target: its title, or an attribute of the corpus such as `random_id`.
    #[serde(default = "title", skip_serializing_if = "is_title")]
    pub text: String,
    /// What encodes items and users beside their text.
    #[serde(default)]
    pub encoder: Encoder,
    /// Their collaborative vectors, as `cf` writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<String>,
    /// Whether their text stands before their vectors, or the vectors alone.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub beside_text: bool,
    /// Vectors that an item or user becomes, of the linear encoder and the MLP; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<usize>,
    /// The run directory of `align` whose Q-Former to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aligned: Option<String>,
    /// Or a Q-Former that saw no phase 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qformer: Option<QFormerSettings>,
}

impl Default for ItemsConfig {
    fn default() -> Self {
        let (text, encoder) = (title(), Encoder::None);
        Self { text, encoder, vectors: None, beside_text: true, queries: None, aligned: None, qformer: None }
    }
}

const TITLE: &str = "title";

fn title() -> String {
    TITLE.into()
}

fn is_title(text: &str) -> bool {
    text == TITLE
}

fn yes() -> bool {
    true
}

impl ItemsConfig {
    /// The attribute that names an item; `None` for its title.
    pub fn attribute(&self) -> Option<&str> {
        Some(self.text.as_str()).filter(|text| *text != TITLE)
    }

    fn validate(&self) -> Result<()> {
        let needs = |key: &str, given: bool, wanted: bool| match (given, wanted) {
            (false, true) => {
                Err(Error::usage(format!("items.{key} is missing: items.encoder = {:?} needs it", self.encoder.name())))
            }
            (true, false) => Err(Error::usage(format!("items.{key} is not for items.encoder = {:?}", self.encoder.name()))),
            _ => Ok(()),
        };
        let qformer = self.encoder == Encoder::Qformer;
        needs("vectors", self.vectors.is_some(), self.encoder != Encoder::None)?;
        if !matches!(self.encoder, Encoder::Linear | Encoder::Mlp) {
            needs("queries", self.queries.is_some(), false)?;
        }
        if self.encoder == Encoder::None && !self.beside_text {
            return Err(Error::usage("items.beside_text = false is for an items.encoder: without one there is only text"));
        }
        if self.aligned.is_some() && self.qformer.is_some() {
            return Err(Error::usage(
                "items.aligned and items.qformer exclude each other: a Q-Former of phase 1, or one without",
            ));
        }
        needs("aligned", self.aligned.is_some() || self.qformer.is_some(), qformer)?;
        match self.queries {
            Some(queries) if queries == 0 || queries > 1 << 10 => {
                Err(Error::usage(format!("items.queries is {queries}, it must be between 1 and 1024")))
            }
            _ => Ok(()),
        }
    }
}

/// `items.encoder`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// Text alone.
    #[default]
    None,
    /// LLaRA's: one matrix.
    Linear,
    /// CoLLM's: two layers.
    Mlp,
    /// ILM's.
    Qformer,
}

impl Encoder {
    /// As the run file has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Linear => "linear",
            Self::Mlp => "mlp",
            Self::Qformer => "qformer",
        }
    }
}

/// `[loss]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Which tokens compete.
    #[serde(default = "msl")]
    pub kind: LossKind,
    /// `"adaptive"` or a number; LML ignores it.
    #[serde(default)]
    pub temperature: Temperature,
}

fn msl() -> LossKind {
    LossKind::Msl
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { kind: LossKind::Msl, temperature: Temperature::Adaptive }
    }
}

/// `loss.kind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Softmax over the vocabulary.
    Lml,
    /// Softmax over the trie's children.
    Msl,
}

/// `loss.temperature`
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Temperature {
    /// ATS.
    #[default]
    Adaptive,
    /// Fixed.
    Fixed(f64),
}

impl Serialize for Temperature {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Adaptive => serializer.serialize_str("adaptive"),
            Self::Fixed(value) => serializer.serialize_f64(*value),
        }
    }
}

impl<'de> Deserialize<'de> for Temperature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(s) if s == "adaptive" => Ok(Self::Adaptive),
            toml::Value::Float(value) => Ok(Self::Fixed(value)),
            toml::Value::Integer(value) => Ok(Self::Fixed(value as f64)),
            other => Err(serde::de::Error::custom(format!("temperature is {other}, it must be \"adaptive\" or a number"))),
        }
    }
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the (sampled) windows.
    pub epochs: usize,
    /// Windows an optimiser step.
    pub batch_size: usize,
    /// Windows a forward pass; in place of `micro_batch_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Or as many windows as make so many tokens: what a forward pass needs of memory. By default
    /// [`TrainConfig::MICRO_BATCH_TOKENS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
    /// Keeps each decoder block's input alone and runs the block again in the backward pass: less memory, more time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// AdamW's, after warm-up.
    pub learning_rate: f64,
    /// Steps of linear warm-up from 0; then linear decay to 0 at the last step.
    pub warmup_steps: usize,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient of all that trains together is scaled down to this norm.
    pub max_grad_norm: f64,
    /// A new seeded order each epoch; false keeps the corpus's.
    pub shuffle: bool,
    /// Which items of a window are asked for.
    pub targets: Targets,
    /// Steps between two checkpoints; an epoch's end always has one.
    pub checkpoint_steps: usize,
    /// Validation windows ranked after each epoch, a seeded sample; the epoch with the best NDCG@10 is kept. 0: none, the last is kept.
    /// Of rows as many, and the lowest loss on them.
    pub valid_windows: usize,
}

impl Default for TrainConfig {
    /// The MSL paper's (papers.md A6).
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
        }
    }
}

impl TrainConfig {
    /// SmolLM2-135M trains on that many in some 3 GB, Llama 3 8B in some 25 GB beside its weights; more makes a CPU no faster.
    pub const MICRO_BATCH_TOKENS: usize = 2048;

    /// What one forward pass takes.
    pub fn micro_batch(&self) -> MicroBatch {
        match self.micro_batch_size {
            Some(samples) => MicroBatch::Samples(samples),
            None => MicroBatch::Tokens(self.micro_batch_tokens.unwrap_or(Self::MICRO_BATCH_TOKENS)),
        }
    }
}

/// `train.targets`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Targets {
    /// The last one, as the papers do.
    Last,
    /// Each one after the first, from those before it: branches of one token tree. Each counts as much.
    Every,
}

/// `[decode]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeConfig {
    /// Beams, and items returned.
    pub beams: usize,
    /// Which tokens share the probability.
    pub scoring: Scoring,
    /// An item's log-probability is divided by (target tokens, EOS included) to this power.
    pub length_penalty: f64,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self { beams: 10, scoring: Scoring::Masked, length_penalty: 0.0 }
    }
}

/// `decode.scoring`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// Softmax over the trie's children (the released "customised CBS").
    Masked,
    /// Softmax over the vocabulary, then masked (transformers' `prefix_allowed_tokens_fn`).
    Full,
}

impl RunConfig {
    /// Reads a run file and applies `key.path=value` overrides, in order.
    ///
    /// # Errors
    /// An unreadable file (exit 1); bad TOML, an unknown key or a value out of range (exit 2).
    pub fn open(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = fs::read_to_string(path).context(path.display())?;
        Self::parse(&text, overrides, &path.display().to_string())
    }

    /// As [`RunConfig::open`], from text; `place` names it in errors.
    pub fn parse(text: &str, overrides: &[String], place: &str) -> Result<Self> {
        let mut config: Self = from_toml(text, overrides, place)?;
        config.validate().map_err(|e| Error::usage(format!("{place}: {e}")))?;
        if config.train.micro_batch_size.is_none() {
            config.train.micro_batch_tokens.get_or_insert(TrainConfig::MICRO_BATCH_TOKENS);
        }
        Ok(config)
    }

    /// As TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("run file")
    }

    fn validate(&self) -> Result<()> {
        let positive = [
            ("train.epochs", self.train.epochs),
            ("train.batch_size", self.train.batch_size),
            ("train.micro_batch_size", self.train.micro_batch_size.unwrap_or(1)),
            ("train.micro_batch_tokens", self.train.micro_batch_tokens.unwrap_or(1)),
            ("train.checkpoint_steps", self.train.checkpoint_steps),
            ("decode.beams", self.decode.beams),
            ("data.train_samples", self.data.train_samples.unwrap_or(1)),
            ("data.prompts_per_window", self.data.prompts_per_window.unwrap_or(1)),
        ];
        for (key, value) in positive {
            if value == 0 || value > 1 << 30 {
                return Err(Error::usage(format!("{key} is {value}, it must be between 1 and 2^30")));
            }
        }
        let at_least_zero = [
            ("train.learning_rate", self.train.learning_rate),
            ("train.weight_decay", self.train.weight_decay),
            ("decode.length_penalty", self.decode.length_penalty),
        ];
        for (key, value) in at_least_zero {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::usage(format!("{key} is {value}, it must be a finite number of at least 0")));
            }
        }
        let above_zero = [
            ("train.max_grad_norm", self.train.max_grad_norm),
            ("loss.temperature", if let Temperature::Fixed(t) = self.loss.temperature { t } else { 1.0 }),
        ];
        for (key, value) in above_zero {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::usage(format!("{key} is {value}, it must be a finite number above 0")));
            }
        }
        if self.train.micro_batch_size.is_some() && self.train.micro_batch_tokens.is_some() {
            return Err(Error::usage(
                "train.micro_batch_size and train.micro_batch_tokens exclude each other: count windows or tokens",
            ));
        }
        if self.llm.quantized && self.llm.tune == TuneKind::Full {
            return Err(Error::usage("llm.quantized is for frozen matrices: with llm.tune = \"full\" all of them train"));
        }
        if self.llm.adapter.is_some() && self.llm.tune != TuneKind::Lora {
            return Err(Error::usage("llm.adapter is only for llm.tune = \"lora\""));
        }
        if let Some(prior) = &self.prior {
            prior.validate()?;
            if prior.in_loss && self.loss.kind == LossKind::Lml {
                return Err(Error::usage(
                    "prior.in_loss is for loss.kind = \"msl\": lml's softmax is over the vocabulary, most of which no ranker knows",
                ));
            }
        }
        self.data.validate()?;
        self.validate_rows()?;
        self.items.validate()?;
        if self.llm.tune == TuneKind::Frozen && self.items.encoder == Encoder::None {
            return Err(Error::usage("llm.tune = \"frozen\" with items.encoder = \"none\": nothing would train"));
        }
        self.llm.lora.validate()
    }

    fn validate_rows(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::usage(what));
        let data = &self.data;
        match data.mixing {
            Some(alpha) if !(0.0..=1.0).contains(&alpha) => {
                return refuse(&format!("data.mixing is {alpha}, it must be between 0 and 1"));
            }
            Some(_) if data.rows.is_none() => return refuse("data.mixing is for data.rows: windows are of one task"),
            _ if data.rows.is_none() => return Ok(()),
            _ => {}
        }
        if data.prompt.is_some() || !data.tasks.is_empty() {
            return refuse("data.rows excludes data.prompt and data.tasks: rows are asked by their own tasks' templates");
        }
        if self.train.targets == Targets::Every {
            return refuse("train.targets = \"every\" is for windows: a row has one text");
        }
        if self.loss.kind != LossKind::Lml {
            return refuse("data.rows needs loss.kind = \"lml\": msl's softmax is over the titles' trie, and texts are free");
        }
        if self.prior.is_some() {
            return refuse("[prior] is for ranking: a run with data.rows writes texts");
        }
        match self.train.shuffle {
            true => Ok(()),
            false => refuse("train.shuffle = false is not for data.rows: the mixing rule orders them"),
        }
    }
}

/// Parses TOML with `key.path=value` overrides, in order; `place` names it in errors, all of them usage errors.
fn from_toml<T: DeserializeOwned>(text: &str, overrides: &[String], place: &str) -> Result<T> {
    let usage = |e: toml::de::Error| Error::usage(format!("{place}: {e}"));
    let mut table: toml::Table = text.parse().map_err(usage)?;
    for assignment in overrides {
        set(&mut table, assignment)?;
    }
    table.try_into().map_err(usage)
}

/// Sets `a.b.c=value`; the value is TOML, or a bare string where it is not.
pub(crate) fn set(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let bad = |why: &str| Error::usage(format!("--set {assignment}: {why}; write key.path=value"));
    let (path, value) = assignment.split_once('=').ok_or_else(|| bad("no '='"))?;
    let value = match format!("value = {value}").parse::<toml::Table>() {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("value").ok_or_else(|| bad("no value"))?,
        _ => toml::Value::String(value.to_string()),
    };
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| bad("no key"))?;
    let mut table = table;
    for key in keys {
        let entry = table.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = entry.as_table_mut().ok_or_else(|| bad("a part of the path is a value, not a table"))?;
    }
    // Of two keys that say the same, the override's counts.
    let replaced = match last {
        "micro_batch_size" => Some("micro_batch_tokens"),
        "micro_batch_tokens" => Some("micro_batch_size"),
        _ => None,
    };
    replaced.map(|other| table.remove(other));
    table.insert(last.to_string(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prior::Baseline;

    const MINIMAL: &str = "[data]\ncorpus = \"c\"\n[llm]\npath = \"m\"\n";

    #[test]
    fn defaults_are_the_papers() {
        let config = RunConfig::parse(MINIMAL, &[], "run.toml").unwrap();
        assert_eq!((config.seed, config.train.batch_size, config.train.warmup_steps), (42, 128, 20));
        assert_eq!(config.loss, LossConfig { kind: LossKind::Msl, temperature: Temperature::Adaptive });
        assert_eq!(config.llm.lora, LoraConfig::default());
        assert_eq!((config.train.micro_batch_size, config.train.micro_batch_tokens), (None, Some(2048)));
        let again = RunConfig::parse(&config.to_toml().unwrap(), &[], "again").unwrap();
        assert_eq!(again, config);
        let windows = RunConfig::parse(MINIMAL, &["train.micro_batch_size=4".to_string()], "run.toml").unwrap();
        assert_eq!(windows.train.micro_batch(), MicroBatch::Samples(4));
        assert_eq!(RunConfig::parse(&windows.to_toml().unwrap(), &[], "again").unwrap(), windows);
    }

    #[test]
    fn overrides() {
        let sets = ["loss.temperature=4.5", "llm.path=models/x", "train.epochs=1", "loss.kind=\"lml\""].map(String::from);
        let config = RunConfig::parse(MINIMAL, &sets, "run.toml").unwrap();
        assert_eq!(config.loss, LossConfig { kind: LossKind::Lml, temperature: Temperature::Fixed(4.5) });
        assert_eq!((config.llm.path.as_str(), config.train.epochs), ("models/x", 1));
    }

    #[test]
    fn bad_configs_are_usage_errors_that_name_the_key() {
        let cases = [
            ("train.epoch=1", "epoch"),
            ("train.batch_size=0", "train.batch_size"),
            ("train.micro_batch_tokens=0", "train.micro_batch_tokens"),
            ("train={ micro_batch_tokens = 512, micro_batch_size = 4 }", "exclude each other"),
            ("train.learning_rate=-1", "train.learning_rate"),
            ("loss.temperature=0", "loss.temperature"),
            ("loss.temperature=warm", "adaptive"),
            ("loss.kind=mse", "mse"),
            ("llm.lora.rank=0", "rank"),
            ("llm.lora.targets=[\"z\"]", "z"),
            ("items.encoder=bert", "bert"),
            ("items.encoder=qformer", "items.vectors"),
            ("items={ encoder = \"qformer\", vectors = \"v\" }", "items.aligned"),
            ("items={ encoder = \"mlp\", vectors = \"v\", queries = 0 }", "items.queries"),
            ("items.vectors=v", "items.vectors"),
            ("items.beside_text=false", "beside_text"),
            ("llm.tune=frozen", "nothing would train"),
            ("data={ corpus = \"c\", prompts_per_window = 2 }", "data.prompts_per_window"),
            ("data={ corpus = \"c\", tasks = [\"a\"], prompts_per_window = 0 }", "data.prompts_per_window"),
            ("data={ corpus = \"c\", tasks = [\"a\"], prompt = \"items\" }", "data.tasks"),
            ("data={ corpus = \"c\", tasks = [\"a\", \"b\", \"a\"] }", "twice"),
            ("prior.ranker=lda", "lda"),
            ("prior.ranker=als", "itemlm cf als"),
            ("prior={ ranker = \"markov\", vectors = \"f\" }", "prior.vectors"),
            ("prior={ ranker = \"sasrec\", vectors = \"f\", in_loss = true }", "prior.in_loss"),
            ("prior.weight=1", "ranker"),
            ("prior={ ranker = \"markov\", weight = -1 }", "prior.weight"),
            ("prior={ ranker = \"markov\", weight = nan }", "prior.weight"),
            ("prior={ ranker = \"markov\", smoothing = 0 }", "prior.smoothing"),
            ("data={ corpus = \"c\", rows = \"r\" }", "loss.kind = \"lml\""),
            ("data={ corpus = \"c\", rows = \"r\", prompt = \"p\" }", "data.prompt"),
            ("data={ corpus = \"c\", rows = \"r\", mixing = 1.5 }", "data.mixing"),
            ("data.mixing=nan", "data.mixing"),
            ("data.mixing=0.5", "data.rows"),
            ("decode", "="),
            ("seed.x=1", "seed"),
        ];
        for (assignment, named) in cases {
            let error = RunConfig::parse(MINIMAL, &["seed=1".to_string(), assignment.to_string()], "run.toml").unwrap_err();
            assert_eq!(error.exit_code(), 2, "{assignment}");
            assert!(error.to_string().contains(named), "{assignment}: {error}");
        }
    }

    #[test]
    fn a_prior() {
        let set = ["prior.ranker=cooccurrence".to_string()];
        let config = RunConfig::parse(MINIMAL, &set, "run.toml").unwrap();
        let ranker = RankerName::Counting(Baseline::Cooccurrence);
        let expected = PriorConfig { ranker, vectors: None, weight: 1.0, smoothing: 0.5, in_loss: false };
        assert_eq!(config.prior, Some(expected));
        assert_eq!(RunConfig::parse(&config.to_toml().unwrap(), &[], "again").unwrap(), config);
        let set = ["prior={ ranker = \"markov\", in_loss = true }", "loss.kind=lml"].map(String::from);
        assert!(RunConfig::parse(MINIMAL, &set, "run.toml").unwrap_err().to_string().contains("prior.in_loss"));
        assert!(RunConfig::parse(MINIMAL, &set[..1], "run.toml").is_ok());
    }

    #[test]
    fn rows_of_tasks() {
        let set = ["data.rows=r", "data.mixing=0.5", "loss.kind=lml"].map(String::from);
        let config = RunConfig::parse(MINIMAL, &set, "run.toml").unwrap();
        assert_eq!((config.data.rows.as_deref(), config.data.mixing), (Some("r"), Some(0.5)));
        assert_eq!(RunConfig::parse(&config.to_toml().unwrap(), &[], "again").unwrap(), config);
        for (more, named) in [("train.shuffle=false", "train.shuffle"), ("prior.ranker=markov", "[prior]")] {
            let set = [&set[..], &[more.to_string()]].concat();
            assert!(RunConfig::parse(MINIMAL, &set, "run.toml").unwrap_err().to_string().contains(named));
        }
    }

    /// Random bytes and mutations of a good file never panic.
    #[test]
    fn fuzz() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let good = RunConfig::parse(MINIMAL, &[], "x").unwrap().to_toml().unwrap().into_bytes();
        for _ in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            let _ = RunConfig::parse(&String::from_utf8_lossy(&bytes), &[], "fuzz");
        }
    }
}
