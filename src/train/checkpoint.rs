//! Checkpoints of the trainable parameters alone: adapter (or weights), optimiser, the loss's state
//! and the progress of the run.
//!
//! A checkpoint is a directory `step-<n>`, written under another name, synced and renamed, so it is
//! whole or absent. The order of the windows and dropout's masks are functions of the seed and the
//! step, so there is no generator state to keep.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bincode::error::EncodeError;
use burn::module::AutodiffModule;
use burn::optim::Optimizer;
use burn::record::{BinBytesRecorder, BurnRecord, FullPrecisionSettings, Record, Recorder};
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::optimizer::AdamW;
use crate::config::{LlmConfig, LoraConfig, TuneKind};
use crate::core::files::{sha256, write_atomic, write_atomic_with};
use crate::core::panic::DeviceGuard;
use crate::loss::LossState;
use crate::model::{
    Decoder, ItemLanguageModel, export_merged, load_adapter, read_adapter_config, save_adapter, save_module,
};
use crate::text::Tokenizer;
use crate::{Context, Error, ErrorKind, Result};

/// Progress of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress<S> {
    /// Optimiser steps done.
    pub step: usize,
    /// Epochs done, validation included.
    pub epoch: usize,
    /// Optimiser steps done in the current epoch.
    pub position: usize,
    /// State of the loss after the last step.
    #[serde(default, alias = "temperature", skip_serializing_if = "LossState::is_empty")]
    pub loss_state: LossState,
    /// The epoch that validated best.
    #[serde(default = "Option::default")]
    pub best: Option<Best<S>>,
    /// Epochs validated after that one.
    #[serde(default)]
    pub epochs_since_best: usize,
    /// The loss of the first step.
    pub first_loss: Option<f64>,
    /// Number of samples trained on.
    pub samples: usize,
    /// Time spent in optimiser steps, seconds.
    pub seconds: f64,
}

impl<S> Default for Progress<S> {
    fn default() -> Self {
        Self {
            step: 0,
            epoch: 0,
            position: 0,
            loss_state: LossState::new(),
            best: None,
            epochs_since_best: 0,
            first_loss: None,
            samples: 0,
            seconds: 0.0,
        }
    }
}

/// The end of the epoch that validated best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best<S> {
    /// The optimiser step.
    pub step: usize,
    /// Score of the validation.
    #[serde(flatten)]
    pub score: S,
}

/// The weights of the LLM that train, which a checkpoint holds. Beside them is the encoder of items
/// and users, if there is one, in the file [`ENCODER`].
#[derive(Debug, Clone)]
pub enum TrainedWeights {
    /// No weight of the LLM.
    Encoder,
    /// An adapter, in PEFT's format; with the base model's path.
    Adapter(LoraConfig, String),
    /// All weights, as a Hugging Face directory.
    Weights(Box<Tokenizer>),
}

/// The encoder's file: every parameter of [`crate::model::ItemEncoder`], f32, named by its
/// fields.
pub const ENCODER: &str = "entity_encoder.safetensors";

impl TrainedWeights {
    /// Returns the weights of the LLM that a run file's `[llm]` trains.
    pub fn from_config(config: &LlmConfig, tokenizer: &Tokenizer) -> Self {
        match config.tune {
            TuneKind::Full => Self::Weights(Box::new(tokenizer.clone())),
            TuneKind::Lora => Self::Adapter(config.lora.clone(), config.path.clone()),
            TuneKind::Frozen => Self::Encoder,
        }
    }

    /// Writes the trainable parameters to `dir`.
    pub fn save<B: Backend>(&self, dir: &Path, model: &ItemLanguageModel<B>) -> Result<()> {
        match self {
            Self::Encoder => {}
            Self::Adapter(config, base) => save_adapter(dir, &model.llm, config, base)?,
            Self::Weights(tokenizer) => {
                fs::create_dir_all(dir).context(dir.display())?;
                export_merged(dir, &model.llm, tokenizer)?;
            }
        }
        match &model.entities {
            Some(entities) => save_module(&dir.join(ENCODER), &entities.encoder),
            None => Ok(()),
        }
    }

    /// Reads the trainable parameters from `dir` into a model of the same shape.
    pub fn load<B: Backend>(
        &self,
        dir: &Path,
        model: ItemLanguageModel<B>,
        device: &B::Device,
    ) -> Result<ItemLanguageModel<B>> {
        let llm = self.load_llm(dir, model.llm, device)?;
        let entities = match model.entities {
            Some(entities) => Some(entities.load_encoder(&dir.join(ENCODER))?),
            None => None,
        };
        Ok(ItemLanguageModel::new(llm, entities))
    }

    /// Reads the parameters of the LLM alone.
    pub fn load_llm<B: Backend>(&self, dir: &Path, llm: Decoder<B>, device: &B::Device) -> Result<Decoder<B>> {
        match self {
            Self::Encoder => Ok(llm),
            Self::Adapter(config, _) => {
                check_adapter(dir, config)?;
                load_adapter(dir, llm, device)
            }
            Self::Weights(_) => {
                let opened = crate::model::open_llm(dir)?;
                let tune = match llm.embed_tokens.val().is_require_grad() {
                    true => crate::model::Tune::Full,
                    false => crate::model::Tune::Frozen,
                };
                let precision = llm.precision();
                // Its memory is freed before the new one is read.
                drop(llm);
                Decoder::load(&opened.config, opened.weights, tune, precision, device)
            }
        }
    }
}

/// Checks that the adapter in `dir` was trained with the sizes of `llm.lora`: another alpha would
/// silently change its scale.
fn check_adapter(dir: &Path, config: &LoraConfig) -> Result<()> {
    let found = read_adapter_config(dir)?;
    for (key, trained, given) in [("rank", found.rank as f64, config.rank as f64), ("alpha", found.alpha, config.alpha)]
    {
        if trained != given {
            return Err(Error::failed(format!(
                "{}: the adapter was trained with llm.lora.{key} = {trained}, but the run file says {given}",
                dir.display()
            )));
        }
    }
    Ok(())
}

const OPTIMIZER: &str = "optimizer.bin";
/// File of the progress. It is TOML, because serde_json reads a float only to within a unit in its
/// last place and the temperature must be exact.
const STATE: &str = "state.toml";

const WRITING: &str = ".writing-";
const REPLACED: &str = ".replaced-";
const REMOVED: &str = ".removed-";

#[derive(Serialize, Deserialize)]
struct State<P> {
    optimizer_sha256: String,
    progress: P,
}

/// The part of any run's progress that decides which checkpoints are kept.
#[derive(Deserialize)]
struct AnyProgress {
    step: usize,
    best: Option<AnyBest>,
}

#[derive(Deserialize)]
struct AnyBest {
    step: usize,
}

/// The checkpoints of one run, in `RUN_DIR/checkpoints`.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Opens the checkpoints of the run in `run_dir`.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let dir = run_dir.join("checkpoints");
        fs::create_dir_all(&dir).context(dir.display())?;
        Ok(Self { dir })
    }

    /// Opens the checkpoints of a run, removes what a killed process left half-written or
    /// half-removed, and restores what it was about to replace. Only for the process that trains
    /// the run: a checkpoint that another process is writing looks the same.
    pub fn open_and_recover(run_dir: &Path) -> Result<Self> {
        let checkpoints = Self::open(run_dir)?;
        checkpoints.recover()?;
        Ok(checkpoints)
    }

    fn recover(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).context(self.dir.display())?.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let replaced =
                name.strip_prefix(REPLACED).and_then(|step| step.parse().ok()).map(|step| self.step_dir(step));
            match replaced.filter(|dir| !dir.exists()) {
                Some(dir) => fs::rename(&path, dir).context(path.display())?,
                None if [WRITING, REPLACED, REMOVED].iter().any(|prefix| name.starts_with(prefix)) => {
                    fs::remove_dir_all(&path).context(path.display())?
                }
                None => {}
            }
        }
        Ok(())
    }

    fn step_dir(&self, step: usize) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// Returns all steps with a checkpoint, ascending.
    fn steps(&self) -> Result<Vec<usize>> {
        let entries = fs::read_dir(&self.dir).context(self.dir.display())?.flatten();
        let mut steps: Vec<usize> =
            entries.filter_map(|e| e.file_name().to_string_lossy().strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes the checkpoint of `step`, then removes those before the last two, except the best
    /// one. `progress` is the progress of the run: it has the fields `step` and, once there is a
    /// best epoch, `best.step`; `weights` writes the trainable parameters into a directory.
    pub fn save<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        step: usize,
        progress: &impl Serialize,
        optimizer: &AdamW<M, B>,
        weights: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let temporary = tempfile::Builder::new().prefix(WRITING).tempdir_in(&self.dir).context(self.dir.display())?;
        weights(temporary.path()).or_else(|error| match error.kind() {
            ErrorKind::Io => Err(error).context(self.dir.display()),
            _ => Err(error).context(format_args!("step {step}")),
        })?;
        // As BinBytesRecorder makes it in memory, in a vector that doubles (burn-core's
        // src/record/memory.rs), and reads it.
        let record = optimizer.to_record().into_item::<FullPrecisionSettings>();
        // The order is that of the parameters' ids, so that equal runs write equal files.
        let record: BTreeMap<_, _> = record.into_iter().collect();
        let record = BurnRecord::<_, B>::new::<BinBytesRecorder<FullPrecisionSettings>>(record);
        let optimizer_sha256 = write_atomic_with(&temporary.path().join(OPTIMIZER), |file| {
            match bincode::serde::encode_into_std_write(record, file, bincode::config::standard()) {
                Ok(_) => Ok(()),
                Err(EncodeError::Io { inner, .. }) => Err(inner),
                Err(other) => Err(io::Error::other(other)),
            }
        })?;
        let state = State { optimizer_sha256, progress };
        let state = toml::to_string(&state).context(STATE)?;
        write_atomic(&temporary.path().join(STATE), state.as_bytes())?;
        // The weights have been read back from the device: if one of its threads has died by now,
        // they are spoilt.
        if let Some(panic) = DeviceGuard::current().panic() {
            return Err(Error::device(format!(
                "a thread of the device died ({panic}); the last good checkpoint is kept"
            )));
        }

        let dir = self.step_dir(step);
        let replaced = self.dir.join(format!("{REPLACED}{step}"));
        if dir.exists() {
            fs::rename(&dir, &replaced).context(dir.display())?;
        }
        let written = temporary.keep();
        fs::rename(&written, &dir).context(dir.display())?;
        File::open(&self.dir).and_then(|d| d.sync_all()).context(self.dir.display())?;
        let _ = fs::remove_dir_all(replaced);

        let steps = self.steps()?;
        let newest = steps.iter().rev().take(2);
        let best: Vec<usize> = newest
            .filter_map(|&step| read_state::<AnyProgress>(&self.step_dir(step)).ok()?.progress.best)
            .map(|best| best.step)
            .collect();
        for &step in steps.iter().rev().skip(2).filter(|step| !best.contains(step)) {
            // It is renamed first, so that one that is half removed is never taken for a
            // checkpoint.
            let (dir, removed) = (self.step_dir(step), self.dir.join(format!("{REMOVED}{step}")));
            fs::rename(&dir, &removed).context(dir.display())?;
            fs::remove_dir_all(&removed).context(removed.display())?;
        }
        Ok(())
    }

    /// Returns the newest checkpoint: its directory and the run's progress.
    pub fn latest_checkpoint<P: DeserializeOwned>(&self) -> Result<Option<(PathBuf, P)>> {
        let Some(&step) = self.steps()?.last() else { return Ok(None) };
        let dir = self.step_dir(step);
        let state = read_state::<P>(&dir)?;
        Ok(Some((dir, state.progress)))
    }

    /// Returns the directory of the checkpoint to rank with, and its step: the best validated one,
    /// else the newest.
    pub fn selected_checkpoint(&self) -> Result<Option<(PathBuf, usize)>> {
        let Some((latest, progress)) = self.latest_checkpoint::<AnyProgress>()? else { return Ok(None) };
        Ok(Some(match progress.best {
            Some(best) if self.step_dir(best.step).exists() => (self.step_dir(best.step), best.step),
            _ => (latest, progress.step),
        }))
    }

    /// Loads the optimiser's state of the checkpoint in `dir`.
    pub fn load_optimizer<B: AutodiffBackend, M: AutodiffModule<B>>(
        dir: &Path,
        optimizer: AdamW<M, B>,
        device: &B::Device,
    ) -> Result<AdamW<M, B>> {
        let path = dir.join(OPTIMIZER);
        let bytes = fs::read(&path).context(path.display())?;
        if sha256(&bytes) != read_state::<AnyProgress>(dir)?.optimizer_sha256 {
            return Err(Error::failed(format!(
                "{}: damaged; delete this checkpoint to resume from the one before",
                path.display()
            )));
        }
        let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
        let record = Recorder::<B>::load(&recorder, bytes, device).context(path.display())?;
        Ok(optimizer.load_record(record))
    }
}

fn read_state<P: DeserializeOwned>(dir: &Path) -> Result<State<P>> {
    let path = dir.join(STATE);
    let text = fs::read_to_string(&path).context(path.display())?;
    toml::from_str(&text).context(path.display())
}
