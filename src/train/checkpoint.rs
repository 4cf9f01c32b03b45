//! Checkpoints of what trains and of nothing else: adapter (or weights), optimiser, temperature,
//! place in the run.
//!
//! A checkpoint is a directory `step-<n>`, written beside its place, synced and renamed, so it is
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
use crate::config::{LlmConfig, LoraConfig, Precision, TuneKind};
use crate::core::files::{sha256, write_atomic, write_atomic_with};
use crate::core::panic::DeviceGuard;
use crate::loss::LossState;
use crate::model::{Decoder, ItemLanguageModel, export_merged, load_adapter, save_adapter, save_module};
use crate::text::Tokenizer;
use crate::{Context, Error, Result};

/// Where a run is, and what it has found so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress<S> {
    /// Optimiser steps done.
    pub step: usize,
    /// Epochs done, validation included.
    pub epoch: usize,
    /// Optimiser steps done in the current epoch.
    pub position: usize,
    /// What the loss carries from step to step, after the last step.
    #[serde(default, alias = "temperature", skip_serializing_if = "LossState::is_empty")]
    pub loss_state: LossState,
    /// The epoch that validated best.
    #[serde(default = "Option::default")]
    pub best: Option<Best<S>>,
    /// The loss of the first step.
    pub first_loss: Option<f64>,
    /// Samples trained on.
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
    /// What the validation found.
    #[serde(flatten)]
    pub score: S,
}

/// What trains, and so what a checkpoint holds: of the LLM this; beside it the encoder of items and
/// users, if there is one, in [`ENCODER`].
#[derive(Debug, Clone)]
pub enum Trained {
    /// Nothing.
    Encoder,
    /// An adapter, in PEFT's format; with the base model's path.
    Adapter(LoraConfig, String),
    /// Every weight, as a Hugging Face directory.
    Weights(Box<Tokenizer>),
}

/// The encoder's file: every parameter of [`crate::model::ItemEncoder`], f32, named by its
/// fields.
pub const ENCODER: &str = "entity_encoder.safetensors";

impl Trained {
    /// Returns what a run file's `[llm]` trains of the LLM.
    pub fn of(config: &LlmConfig, tokenizer: &Tokenizer) -> Self {
        match config.tune {
            TuneKind::Full => Self::Weights(Box::new(tokenizer.clone())),
            TuneKind::Lora => Self::Adapter(config.lora.clone(), config.path.clone()),
            TuneKind::Frozen => Self::Encoder,
        }
    }

    /// Writes it to `dir`.
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

    /// Reads it from `dir` into a model of the same shape.
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

    /// Reads the LLM's part alone.
    pub fn load_llm<B: Backend>(&self, dir: &Path, llm: Decoder<B>, device: &B::Device) -> Result<Decoder<B>> {
        match self {
            Self::Encoder => Ok(llm),
            Self::Adapter(..) => load_adapter(dir, llm, device),
            Self::Weights(_) => {
                let opened = crate::model::open_llm(dir)?;
                let tune = match llm.embed_tokens.val().is_require_grad() {
                    true => crate::model::Tune::Full,
                    false => crate::model::Tune::Frozen,
                };
                let precision = llm.layers.first().map_or(Precision::F32, |layer| layer.q_proj.precision);
                // Before the one that takes its place is read.
                drop(llm);
                Decoder::load(&opened.config, opened.weights, tune, precision, device)
            }
        }
    }
}

const OPTIMIZER: &str = "optimizer.bin";
/// TOML, for serde_json reads a float only to within a unit in its last place and the temperature
/// must be exact.
const STATE: &str = "state.toml";

const WRITING: &str = ".writing-";
const REPLACED: &str = ".replaced-";
const REMOVED: &str = ".removed-";

#[derive(Serialize, Deserialize)]
struct State<P> {
    optimizer_sha256: String,
    progress: P,
}

/// What of any run's progress decides which checkpoints stay.
#[derive(Deserialize)]
struct Kept {
    step: usize,
    best: Option<KeptBest>,
}

#[derive(Deserialize)]
struct KeptBest {
    step: usize,
}

/// The checkpoints of one run, in `RUN_DIR/checkpoints`.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Of the run in `run_dir`.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let dir = run_dir.join("checkpoints");
        fs::create_dir_all(&dir).context(dir.display())?;
        Ok(Self { dir })
    }

    /// As [`Checkpoints::open`], without what a killed process left half-written or half-removed,
    /// and with what it was about to replace. Only for the process that trains the run: another's
    /// checkpoint in the making looks the same.
    pub fn recovered(run_dir: &Path) -> Result<Self> {
        let checkpoints = Self::open(run_dir)?;
        checkpoints.recover()?;
        Ok(checkpoints)
    }

    fn recover(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).context(self.dir.display())?.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let replaced = name.strip_prefix(REPLACED).and_then(|step| step.parse().ok()).map(|step| self.place(step));
            match replaced.filter(|place| !place.exists()) {
                Some(place) => fs::rename(&path, place).context(path.display())?,
                None if [WRITING, REPLACED, REMOVED].iter().any(|prefix| name.starts_with(prefix)) => {
                    fs::remove_dir_all(&path).context(path.display())?
                }
                None => {}
            }
        }
        Ok(())
    }

    fn place(&self, step: usize) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// All steps with a checkpoint, ascending.
    fn steps(&self) -> Result<Vec<usize>> {
        let entries = fs::read_dir(&self.dir).context(self.dir.display())?.flatten();
        let mut steps: Vec<usize> =
            entries.filter_map(|e| e.file_name().to_string_lossy().strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes the checkpoint of `step`, then removes those before the last two, the best one
    /// excepted. `progress` is where the run is: it has the fields `step` and, once there is a best
    /// one, `best.step`; `weights` writes what trains into a directory.
    pub fn save<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        step: usize,
        progress: &impl Serialize,
        optimizer: &AdamW<M, B>,
        weights: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let temporary = tempfile::Builder::new().prefix(WRITING).tempdir_in(&self.dir).context(self.dir.display())?;
        weights(temporary.path()).context(format_args!("step {step}"))?;
        // As BinBytesRecorder makes it in memory, in a vector that doubles (burn-core's
        // src/record/memory.rs), and reads it.
        let record = optimizer.to_record().into_item::<FullPrecisionSettings>();
        // In the order of the parameters' ids, so that equal runs write equal files.
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
        // Reading the weights back waited for the device: a thread of it that died by now has
        // spoilt them.
        if let Some(panic) = DeviceGuard::current().panic() {
            return Err(Error::device(format!(
                "a thread of the device died ({panic}); the last good checkpoint is kept"
            )));
        }

        let place = self.place(step);
        let replaced = self.dir.join(format!("{REPLACED}{step}"));
        if place.exists() {
            fs::rename(&place, &replaced).context(place.display())?;
        }
        let written = temporary.keep();
        fs::rename(&written, &place).context(place.display())?;
        File::open(&self.dir).and_then(|d| d.sync_all()).context(self.dir.display())?;
        let _ = fs::remove_dir_all(replaced);

        let steps = self.steps()?;
        let newest = steps.iter().rev().take(2);
        let best: Vec<usize> = newest
            .filter_map(|&step| read_state::<Kept>(&self.place(step)).ok()?.progress.best)
            .map(|best| best.step)
            .collect();
        for &step in steps.iter().rev().skip(2).filter(|step| !best.contains(step)) {
            // Renamed first, so that no half-removed one is ever taken for a checkpoint.
            let (place, removed) = (self.place(step), self.dir.join(format!("{REMOVED}{step}")));
            fs::rename(&place, &removed).context(place.display())?;
            fs::remove_dir_all(&removed).context(removed.display())?;
        }
        Ok(())
    }

    /// The newest checkpoint: its directory and place in the run.
    pub fn latest<P: DeserializeOwned>(&self) -> Result<Option<(PathBuf, P)>> {
        let Some(&step) = self.steps()?.last() else { return Ok(None) };
        let dir = self.place(step);
        let state = read_state::<P>(&dir)?;
        Ok(Some((dir, state.progress)))
    }

    /// The directory to rank with: the best validated step's, else the newest.
    pub fn selected(&self) -> Result<Option<(PathBuf, usize)>> {
        let Some((latest, progress)) = self.latest::<Kept>()? else { return Ok(None) };
        Ok(Some(match progress.best {
            Some(best) if self.place(best.step).exists() => (self.place(best.step), best.step),
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
        if sha256(&bytes) != read_state::<Kept>(dir)?.optimizer_sha256 {
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
