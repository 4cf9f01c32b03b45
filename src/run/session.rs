//! A trained run, opened to rank with.

use std::fs;
use std::path::Path;

use burn::DispatchDevice;

use super::dir::{read_config, read_identity};
use super::identity::{Identity, check_identity};
use super::inputs::RunInputs;
use super::precision::check_precision;
use super::prior_choice::ChosenPrior;
use super::prompt_context::PromptContext;
use super::text_tasks::TextTaskData;
use crate::config::RunConfig;
use crate::core::files::sha256;
use crate::device::Concrete;
use crate::model::{Decoder, ItemLanguageModel, Tune};
use crate::text::PromptSet;
use crate::train::{Checkpoints, Trained};
use crate::{Context, Error, Result};

/// A trained run, ready to rank.
pub struct OpenRun {
    /// Its run file.
    pub config: RunConfig,
    /// Its corpus, prompt, tokenizer and catalogue.
    pub ranking: PromptContext,
    /// The run's prompt sets; empty for a run with one prompt. The ranking's prompt is then the
    /// first seen prompt of the first set.
    pub prompt_sets: Vec<PromptSet>,
    /// The rows of text tasks that the run learnt in place of windows.
    pub text_tasks: Option<TextTaskData>,
    /// The tuned model.
    pub model: ItemLanguageModel<Concrete>,
    /// The optimiser step it is of.
    pub step: usize,
    /// SHA-256 of its prior's vectors, if it has any.
    pub prior_vectors: Option<String>,
    /// How its prior's weight was chosen, if it was.
    pub chosen: Option<ChosenPrior>,
}

/// Opens the run in `dir` with its best validated step's weights, or else its newest checkpoint's;
/// its prior, if it has one, with the weight chosen for that step, or else the run file's.
///
/// # Errors
/// Not a run, a run without a checkpoint, or one of another model or corpus than its run file's
/// paths now hold.
pub fn open_run(dir: &Path, device: &DispatchDevice) -> Result<OpenRun> {
    open_run_as(dir, read_config(dir)?, device)
}

/// As [`open_run`], by `config` in place of its run file.
pub(crate) fn open_run_as(dir: &Path, config: RunConfig, device: &DispatchDevice) -> Result<OpenRun> {
    let started: Identity = read_identity(dir)?;
    let material = RunInputs::open(&config, Some(&started), device)?;
    check_identity(dir, &material.identity, &config)?;
    let trained = Trained::of(&config.llm, &material.ranking.tokenizer);
    let Some((weights, step)) = Checkpoints::open(dir)?.selected()? else {
        return Err(Error::failed(format!("{}: no checkpoint yet; train it first", dir.display())));
    };
    let tune = Tune::inference(&config.llm, config.seed);
    check_precision(config.llm.precision, device)?;
    let llm = Decoder::load(&material.llama, material.weights, tune, config.llm.precision, device)?;
    let model = match material.entities {
        Some(entities) => entities.blank(llm, device)?,
        None => llm.into(),
    };
    let model = trained.load(&weights, model, device)?;
    let mut ranking = material.ranking;
    let path = config.prior.as_ref().and_then(|prior| prior.vectors.as_deref());
    let prior_vectors = path.map(|path| Ok::<_, Error>(sha256(&fs::read(path).context(path)?))).transpose()?;
    let mut chosen = None;
    if let (Some(config), Some(prior)) = (&config.prior, &mut ranking.prior) {
        chosen = ChosenPrior::read(dir, config, &prior_vectors, step)?;
        prior.weight = chosen.as_ref().map_or(prior.weight, |chosen| chosen.prior.weight);
    }
    Ok(OpenRun {
        config,
        ranking,
        prompt_sets: material.prompt_sets,
        text_tasks: material.text_tasks,
        model,
        step,
        prior_vectors,
        chosen,
    })
}
