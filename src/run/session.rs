//! Sessions: trained runs that answer requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use burn::DispatchDevice;

use super::dir::{read_config, read_identity};
use super::identity::{Identity, check_identity};
use super::inputs::RunInputs;
use super::item_index::ItemIndex;
use super::precision::check_precision;
use super::prior_choice::ChosenPrior;
use super::prompt_cache::{PromptCache, PromptTokens};
use super::prompt_context::PromptContext;
use super::text_tasks::TextTaskData;
use crate::config::RunConfig;
use crate::core::files::sha256;
use crate::core::panic::{DeviceGuard, catch};
use crate::decode::PriorWeights;
use crate::device::Concrete;
use crate::model::{Decoder, ItemLanguageModel, Tune};
use crate::text::PromptSet;
use crate::train::{Checkpoints, TrainedWeights};
use crate::{Context, Error, Result};

/// A trained run, loaded once, that answers requests through `&self`.
///
/// It is `Send` and `Sync`, and locks only the cache of prompts, for moments. Requests of several
/// threads share the device: on a GPU they wait in its queue, on the CPU they share the threads of
/// rayon.
pub struct Session {
    /// The run directory.
    pub dir: PathBuf,
    /// The run file.
    pub config: RunConfig,
    /// Corpus, prompt, tokenizer, catalogue and prior.
    pub context: PromptContext,
    /// The run's prompt sets; empty for a run with one prompt. The context's prompt is then the
    /// first seen prompt of the first set.
    pub prompt_sets: Vec<PromptSet>,
    /// The rows of text tasks that the run was trained on in place of windows.
    pub text_tasks: Option<TextTaskData>,
    /// The tuned model.
    pub model: ItemLanguageModel<Concrete>,
    /// The device of the model.
    pub device: DispatchDevice,
    /// The optimiser step of the model's weights.
    pub step: usize,
    /// SHA-256 of the prior's vectors, if it has any.
    pub prior_vectors: Option<String>,
    /// The choice of the prior's weight, if there was one.
    pub prior_choice: Option<ChosenPrior>,
    index: OnceLock<ItemIndex>,
    pub(super) prompts: PromptCache,
    guard: DeviceGuard,
    /// The panic after which the device is useless.
    died: Arc<OnceLock<String>>,
}

impl Session {
    /// Opens the run in `dir` with the weights of its best validated step, or else of its newest
    /// checkpoint; its prior, if it has one, with the weight chosen for that step, or else the run
    /// file's.
    ///
    /// # Errors
    /// A directory without a run, a run without a checkpoint, or one of another model or corpus
    /// than the files at its run file's paths now.
    pub fn open(dir: &Path, device: &DispatchDevice) -> Result<Self> {
        Self::open_as(dir, read_config(dir)?, device)
    }

    /// Opens a run as [`Session::open`] does, with `config` in place of its run file.
    pub(crate) fn open_as(dir: &Path, config: RunConfig, device: &DispatchDevice) -> Result<Self> {
        let guard = DeviceGuard::new();
        let started: Identity = read_identity(dir)?;
        let inputs = RunInputs::open(&config, Some(&started), device)?;
        check_identity(dir, &inputs.identity, &config)?;
        let trained = TrainedWeights::from_config(&config.llm, &inputs.ranking.tokenizer);
        let Some((weights, step)) = Checkpoints::open(dir)?.selected_checkpoint()? else {
            return Err(Error::failed(format!("{}: no checkpoint yet; train it first", dir.display())));
        };
        let tune = Tune::inference(&config.llm, config.seed);
        check_precision(config.llm.precision, device)?;
        let llm = Decoder::load(&inputs.decoder, inputs.weights, tune, config.llm.precision, device)?;
        let model = match inputs.entities {
            Some(entities) => entities.blank(llm, device)?,
            None => llm.into(),
        };
        let model = trained.load(&weights, model, device)?;
        let mut context = inputs.ranking;
        // Keys and values of the instruction are computed once.
        let model = match inputs.text_tasks {
            None if context.corpus.users() > 0 => model.with_prefix_cache(&context.instruction_tokens()?),
            _ => model,
        };
        let path = config.prior.as_ref().and_then(|prior| prior.vectors.as_deref());
        let prior_vectors = path.map(|path| Ok::<_, Error>(sha256(&fs::read(path).context(path)?))).transpose()?;
        let mut prior_choice: Option<ChosenPrior> = None;
        if let (Some(config), Some(prior)) = (&config.prior, &mut context.prior) {
            prior_choice = ChosenPrior::read(dir, config, &prior_vectors, step)?;
            if let Some(ChosenPrior { prior: chosen, .. }) = &prior_choice {
                prior.weights = PriorWeights { llm: chosen.llm_weight, prior: chosen.weight };
            }
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            config,
            context,
            prompt_sets: inputs.prompt_sets,
            text_tasks: inputs.text_tasks,
            model,
            device: device.clone(),
            step,
            prior_vectors,
            prior_choice,
            index: OnceLock::new(),
            prompts: PromptCache::default(),
            guard,
            died: Arc::default(),
        })
    }

    /// Returns the same run with another context. It shares the model and the fate of the device.
    pub(super) fn with_context(&self, context: PromptContext) -> Self {
        Self {
            dir: self.dir.clone(),
            config: self.config.clone(),
            context,
            prompt_sets: self.prompt_sets.clone(),
            // With such rows a run has no catalogue to rank.
            text_tasks: None,
            model: self.model.clone(),
            device: self.device.clone(),
            step: self.step,
            prior_vectors: self.prior_vectors.clone(),
            prior_choice: self.prior_choice.clone(),
            index: OnceLock::new(),
            prompts: PromptCache::default(),
            guard: self.guard,
            died: self.died.clone(),
        }
    }

    /// Returns a copy of the session on another device. If one of the two devices dies, the other
    /// session still answers.
    ///
    /// # Errors
    /// A device that does not compute in the run's precision.
    pub fn clone_to_device(&self, device: &DispatchDevice) -> Result<Self> {
        check_precision(self.config.llm.precision, device)?;
        let copy = self.with_context(self.context.clone());
        let model = self.model.clone_to_device(device);
        // Rows of text tasks belong to a run without a catalogue, which ranks nothing.
        Ok(Self { model, device: device.clone(), died: Arc::default(), ..copy })
    }

    /// Checks that the device has not died: a session whose device died answers nothing any more.
    ///
    /// # Errors
    /// A device that died.
    pub fn check(&self) -> Result<()> {
        match self.died.get() {
            Some(why) => Err(Error::device(format!("the device died ({why}); open the run again"))),
            None => self.guard.check(),
        }
    }

    /// Runs `work` on the session's device.
    ///
    /// # Errors
    /// Those of `work`; a device that died, now or before.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check()?;
        let done = catch(|| self.guard.scope(work));
        let done = done.unwrap_or_else(|panic| {
            let why = self.died.get_or_init(|| self.guard.panic().unwrap_or(panic.message));
            Err(Error::device(format!("the device died ({why})")))
        });
        self.check().and(done)
    }

    /// Returns the numbers of tokens of the prompts that were answered alone since the last call.
    pub fn take_prompt_tokens(&self) -> PromptTokens {
        self.prompts.take_tokens()
    }

    /// Returns the index of items and users by id and name, made when it is first needed.
    pub(super) fn index(&self) -> &ItemIndex {
        self.index.get_or_init(|| ItemIndex::new(&self.context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_serves_several_threads() {
        fn is_send_and_sync<T: Send + Sync>() {}
        is_send_and_sync::<Session>();
    }
}
