//! The run file: everything that decides a run, in TOML. Unknown keys are errors.
//!
//! Each table has a file of its own, and so has the run file of phase 1. This file checks what
//! depends on several tables.

use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod align;
mod check;
mod data;
mod decode;
mod extends;
mod items;
mod llm;
mod loss;
mod prior;
mod problems;
mod schema;
mod shipped;
mod train;

pub use align::{AlignConfig, AlignDataConfig, AlignLossConfig, AlignTrainConfig, Init, QFormerSettings};
pub use check::{Problem, RunFileKind, check_run_file};
pub use data::{DataConfig, TooLong};
pub use decode::{DecodeConfig, Scoring, SearchKind};
pub(crate) use extends::{Extended, inherited_keys, read_extended};
pub use items::{Encoder, ItemsConfig};
pub use llm::{LlmConfig, LoraConfig, Precision, TuneKind};
pub use loss::{LossConfig, LossKind, Temperature};
pub use prior::PriorConfig;
pub(crate) use problems::Problems;
pub use schema::run_file_schema;
pub use shipped::{SHIPPED, ShippedConfig};
pub use train::{MicroBatch, Targets, TrainConfig};

use crate::{Context, Error, Result};

/// A run file, defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Seed of the training sample, of the order, of the adapter's initial weights and of dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The training data.
    pub data: DataConfig,
    /// The language model, and which of its weights train.
    pub llm: LlmConfig,
    /// The form of items in prompts.
    #[serde(default)]
    pub items: ItemsConfig,
    /// The loss.
    #[serde(default)]
    pub loss: LossConfig,
    /// The optimiser and its schedule.
    #[serde(default)]
    pub train: TrainConfig,
    /// The search that ranks items.
    #[serde(default)]
    pub decode: DecodeConfig,
    /// The prior beside the LLM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<PriorConfig>,
}

fn default_seed() -> u64 {
    42
}

/// The texts that a run learns to write after a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective<'a> {
    /// Titles of the catalogue: the run ranks items.
    Items,
    /// The texts of this file of text tasks: the run ranks no items.
    Texts(&'a str),
}

impl RunConfig {
    /// Returns what the run learns to write.
    pub fn objective(&self) -> Objective<'_> {
        match &self.data.text_tasks {
            None => Objective::Items,
            Some(rows) => Objective::Texts(rows),
        }
    }

    /// Reads a run file, and those that it extends, and applies `key.path=value` overrides, in
    /// order.
    ///
    /// # Errors
    /// An unreadable file (exit 1); bad TOML, an unknown key or a value out of range (exit 2).
    pub fn open(path: &Path, overrides: &[String]) -> Result<Self> {
        let Extended { table, name } = read_extended(path)?;
        Ok(from_table(table, overrides, &name, Self::validate)?.with_micro_batch())
    }

    /// Reads a run file from text, as [`RunConfig::open`] does, but for `extends`; `place` names
    /// it in errors.
    pub fn parse(text: &str, overrides: &[String], place: &str) -> Result<Self> {
        Ok(from_toml(text, overrides, place, Self::validate)?.with_micro_batch())
    }

    /// Fills in the default of two keys that exclude each other.
    fn with_micro_batch(mut self) -> Self {
        if self.train.micro_batch_size.is_none() {
            self.train.micro_batch_tokens.get_or_insert(TrainConfig::MICRO_BATCH_TOKENS);
        }
        self
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
        let positive = [
            ("train.epochs", self.train.epochs),
            ("train.batch_size", self.train.batch_size),
            ("train.micro_batch_size", self.train.micro_batch_size.unwrap_or(1)),
            ("train.micro_batch_tokens", self.train.micro_batch_tokens.unwrap_or(1)),
            ("train.checkpoint_steps", self.train.checkpoint_steps),
            ("decode.beams", self.decode.beams),
            ("data.train_samples", self.data.train_samples.unwrap_or(1)),
            ("data.prompts_per_window", self.data.prompts_per_window.unwrap_or(1)),
            ("data.history", self.data.history.unwrap_or(1)),
        ];
        for (key, value) in positive {
            if value == 0 || value > 1 << 30 {
                problems.add(format!("{key} is {value}, it must be between 1 and 2^30"));
            }
        }
        let at_least_zero = [
            ("train.learning_rate", self.train.learning_rate),
            ("train.weight_decay", self.train.weight_decay),
            ("decode.length_penalty", self.decode.length_penalty),
        ];
        for (key, value) in at_least_zero {
            if !value.is_finite() || value < 0.0 {
                problems.add(format!("{key} is {value}, it must be a finite number of at least 0"));
            }
        }
        self.loss.validate(&mut problems);
        self.train.validate(&mut problems);
        self.llm.validate(&mut problems);
        if let Some(prior) = &self.prior {
            prior.validate(&mut problems);
            if prior.in_loss && self.loss.kind == LossKind::Lml {
                problems.add(
                    "prior.in_loss is for loss.kind = \"msl\": lml's softmax is over the vocabulary, most of which \
                     no ranker knows",
                );
            }
        }
        self.data.validate(&mut problems);
        self.validate_text_tasks(&mut problems);
        self.items.validate(&mut problems);
        if self.llm.tune == TuneKind::Frozen && self.items.encoder == Encoder::None {
            problems.add("llm.tune = \"frozen\" with items.encoder = \"none\": nothing would train");
        }
        self.llm.lora.collect_problems(&mut problems);
        problems
    }

    fn validate_text_tasks(&self, problems: &mut Problems) {
        let data = &self.data;
        match data.mixing {
            Some(alpha) if !(0.0..=1.0).contains(&alpha) => {
                problems.add(format!("data.mixing is {alpha}, it must be between 0 and 1"));
            }
            Some(_) if data.text_tasks.is_none() => problems.add("data.mixing is only for data.text_tasks"),
            _ => {}
        }
        if data.text_tasks.is_none() {
            return;
        }
        if data.prompt.is_some() || !data.prompt_sets.is_empty() {
            problems.add(
                "data.text_tasks excludes data.prompt and data.prompt_sets: text tasks have templates of their own \
                 (data.text_task_prompts)",
            );
        }
        if self.train.targets == Targets::Every {
            problems.add("train.targets = \"every\" is for windows: a row has one text");
        }
        if self.loss.kind != LossKind::Lml {
            problems.add(
                "data.text_tasks needs loss.kind = \"lml\": the other losses' softmax is over the titles' trie, and \
                 texts are free",
            );
        }
        if self.prior.is_some() {
            problems.add("[prior] is for ranking: a run with data.text_tasks writes texts");
        }
        if !self.train.shuffle {
            problems.add("train.shuffle = false is not for data.text_tasks: the mixing rule orders them");
        }
    }
}

/// Parses TOML with `key.path=value` overrides, in order, and validates it; `place` is its name in
/// errors, all of them usage errors.
fn from_toml<T: DeserializeOwned>(
    text: &str,
    overrides: &[String],
    place: &str,
    validate: impl FnOnce(&T) -> Result<()>,
) -> Result<T> {
    let table: toml::Table = text.parse().map_err(|e| Error::usage(format!("{place}: {e}")))?;
    from_table(table, overrides, place, validate)
}

/// Reads a configuration from a table of TOML, as [`from_toml`] does from text.
fn from_table<T: DeserializeOwned>(
    mut table: toml::Table,
    overrides: &[String],
    place: &str,
    validate: impl FnOnce(&T) -> Result<()>,
) -> Result<T> {
    for assignment in overrides {
        set(&mut table, assignment)?;
    }
    let config = table.try_into().map_err(|e: toml::de::Error| Error::usage(format!("{place}: {e}")))?;
    validate(&config).map_err(|e| Error::usage(format!("{place}: {e}")))?;
    Ok(config)
}

/// Makes a table of `key=value` settings, in order; a later one replaces an earlier one.
///
/// # Errors
/// A usage error where there is no `=` or no key.
pub fn settings_table(assignments: &[String]) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    assignments.iter().try_for_each(|assignment| set(&mut table, assignment))?;
    Ok(table)
}

/// Sets `a.b.c=value`; the value is TOML, or a bare string where it is not.
pub(crate) fn set(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let bad = |why: &str| Error::usage(format!("option `set` {assignment}: {why}; write key.path=value"));
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
    replaced_key(last).map(|other| table.remove(other));
    table.insert(last.to_string(), value);
    Ok(())
}

/// Returns the key that says the same as `key`, or excludes it: of the two the later one counts.
fn replaced_key(key: &str) -> Option<&'static str> {
    match key {
        "micro_batch_size" => Some("micro_batch_tokens"),
        "micro_batch_tokens" => Some("micro_batch_size"),
        // Keys and their older spellings.
        "text_tasks" => Some("rows"),
        "rows" => Some("text_tasks"),
        "prompt_sets" => Some("tasks"),
        "tasks" => Some("prompt_sets"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const MINIMAL: &str = "[data]\ncorpus = \"c\"\n[llm]\npath = \"m\"\n";

    #[test]
    fn defaults_are_the_papers() {
        let config = RunConfig::parse(MINIMAL, &[], "run.toml").unwrap();
        assert_eq!((config.seed, config.train.batch_size, config.train.warmup_steps), (42, 128, 20));
        assert_eq!(config.loss, LossConfig::default());
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
        let sets =
            ["loss.temperature=4.5", "llm.path=models/x", "train.epochs=1", "loss.kind=\"lml\""].map(String::from);
        let config = RunConfig::parse(MINIMAL, &sets, "run.toml").unwrap();
        assert_eq!((config.loss.kind, config.loss.temperature), (LossKind::Lml, Temperature::Fixed(4.5)));
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
            ("data={ corpus = \"c\", prompt_sets = [\"a\"], prompts_per_window = 0 }", "data.prompts_per_window"),
            ("data={ corpus = \"c\", prompt_sets = [\"a\"], prompt = \"items\" }", "data.prompt_sets"),
            ("data={ corpus = \"c\", prompt_sets = [\"a\", \"b\", \"a\"] }", "twice"),
            ("prior.weight=1", "ranker"),
            ("prior={ ranker = \"markov\", weight = -1 }", "prior.weight"),
            ("prior={ ranker = \"markov\", weight = nan }", "prior.weight"),
            ("prior={ ranker = \"markov\", smoothing = 0 }", "prior.smoothing"),
            ("data={ corpus = \"c\", text_tasks = \"r\" }", "loss.kind = \"lml\""),
            ("data={ corpus = \"c\", text_tasks = \"r\", prompt = \"p\" }", "data.prompt"),
            ("data={ corpus = \"c\", text_tasks = \"r\", mixing = 1.5 }", "data.mixing"),
            ("data.mixing=nan", "data.mixing"),
            ("data.history=0", "data.history"),
            ("data.too_long=cut", "cut"),
            ("data.mixing=0.5", "data.text_tasks"),
            ("data.text_task_prompts=x", "data.text_tasks"),
            ("data={ corpus = \"c\", tasks = [\"a\"], prompt_sets = [\"b\"] }", "duplicate"),
            ("decode", "="),
            ("seed.x=1", "seed"),
        ];
        for (assignment, named) in cases {
            let error =
                RunConfig::parse(MINIMAL, &["seed=1".to_string(), assignment.to_string()], "run.toml").unwrap_err();
            assert_eq!(error.exit_code(), 2, "{assignment}");
            assert!(error.to_string().contains(named), "{assignment}: {error}");
        }
    }

    #[test]
    fn renamed_keys_are_read_by_their_old_spelling() {
        let old = "[data]\ncorpus = \"c\"\nrows = \"r\"\ntasks = [\"a\"]\n[llm]\npath = \"m\"\n";
        let parse = |sets: &[&str]| {
            from_toml::<RunConfig>(old, &sets.iter().map(|s| s.to_string()).collect::<Vec<_>>(), "x", |_| Ok(()))
        };
        let data = parse(&[]).unwrap().data;
        assert_eq!((data.text_tasks.as_deref(), data.prompt_sets.as_slice()), (Some("r"), &["a".to_string()][..]));
        let data = parse(&["data.text_tasks=s", "data.prompt_sets=[]"]).unwrap().data;
        assert_eq!((data.text_tasks.as_deref(), data.prompt_sets.len()), (Some("s"), 0));
        assert_eq!(parse(&["data.rows=s"]).unwrap().data.text_tasks.as_deref(), Some("s"));
    }

    #[test]
    fn rows_of_text_tasks() {
        let set = ["data.text_tasks=r", "data.mixing=0.5", "loss.kind=lml"].map(String::from);
        let config = RunConfig::parse(MINIMAL, &set, "run.toml").unwrap();
        assert_eq!((config.data.text_tasks.as_deref(), config.data.mixing), (Some("r"), Some(0.5)));
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
