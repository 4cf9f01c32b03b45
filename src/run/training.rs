//! A run that is ready to train: its model, its optimiser and its training data.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use burn::DispatchDevice;
use burn::train::Interrupter;
use serde::Serialize;

use super::dataset::training_windows;
use super::inputs::RunInputs;
use super::memory;
use super::precision::check_precision;
use crate::config::{Objective, RunConfig, TuneKind};
use crate::core::log::log;
use crate::device::{BackendChoice, Training};
use crate::loss::{Ats, Loss, LossContext};
use crate::model::{Decoder, ItemLanguageModel, QuantizedSize, Tune, load_adapter, read_adapter_config};
use crate::train::{Checkpoints, Progress, Run, TrainedWeights, Ui, ValidationScore, adamw};
use crate::{Error, Result};

/// Options of the command line beside a run file.
pub struct TrainOptions {
    /// The run directory.
    pub out: PathBuf,
    /// The devices; of several each takes a share of each step (`align` runs on one).
    pub backend: BackendChoice,
    /// Whether to resume from the last checkpoint.
    pub resume: bool,
    /// Number of optimiser steps of the run after which it stops.
    pub max_steps: Option<usize>,
    /// The display.
    pub ui: Ui,
    /// Stops the run after the current step.
    pub interrupter: Interrupter,
    /// Whether a GPU's gradients are taken for right without a comparison with the CPU's.
    pub trust_device: bool,
}

impl TrainOptions {
    /// Returns the options of a run that is only inspected: it writes nothing.
    pub(crate) fn dry(backend: BackendChoice, interrupter: Interrupter) -> Self {
        Self {
            out: PathBuf::new(),
            backend,
            resume: false,
            max_steps: None,
            ui: Ui::None,
            interrupter,
            trust_device: false,
        }
    }
}

/// The first and the last loss.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FirstLast {
    /// Loss of the run's first step.
    pub first: Option<f64>,
    /// Loss of the last step of this call.
    pub last: Option<f64>,
}

/// A run that is ready to begin, or to resume.
pub(crate) struct PreparedRun {
    /// The model, at the state to continue from.
    pub model: ItemLanguageModel<Training>,
    /// The other inputs of training.
    pub run: Run<Training>,
    /// The number types of the LLM, in words.
    pub precision: String,
    /// An option of the run file that this run cannot follow, and why.
    pub notice: Option<String>,
    /// Size of the training data, in words.
    pub train_size: String,
    /// Description of the validation data, in words.
    pub validation: String,
}

impl PreparedRun {
    /// Loads the model, new or from `checkpoint`, and its training data.
    ///
    /// * `devices`: at least one; the model is loaded onto the first.
    pub fn open(
        config: &RunConfig,
        options: &TrainOptions,
        inputs: RunInputs,
        checkpoint: Option<(PathBuf, Progress<ValidationScore>)>,
        devices: &[DispatchDevice],
    ) -> Result<Self> {
        let device = &devices[0];
        let mut precision = check_precision(config.llm.precision, device)?;
        for other in &devices[1..] {
            check_precision(config.llm.precision, other)?;
        }
        let RunInputs { ranking, decoder, weights, quantized, entities, prompt_sets, text_tasks, .. } = inputs;
        if let Some(QuantizedSize { matrices, bytes, plain_bytes }) = quantized {
            let [kept, plain] = [bytes, plain_bytes].map(|bytes| bytes as f64 / 1e6);
            precision += &format!("; {matrices} matrices stay quantised, {kept:.0} MB in place of {plain:.0} MB");
        }
        if options.max_steps != Some(0) {
            config.llm.check_trainable()?;
        }
        if let Some(note) = config.decode.advice().filter(|_| config.objective() == Objective::Items) {
            log(format_args!("note: {note}"));
        }
        let ranking = Rc::new(ranking);
        let data = match text_tasks {
            Some(tasks) => tasks.training_data(config, &ranking)?,
            None => training_windows(config, &ranking, &prompt_sets, options)?,
        };
        let encoder = entities.as_ref().map(|entities| &entities.identity.encoder);
        let sizes = memory::estimator(config, &decoder, quantized, encoder, &ranking);
        if let Some(warning) = memory::warning(config, sizes, &ranking, &data, &options.backend)? {
            log(format_args!("note: {warning}"));
        }

        let trained = TrainedWeights::from_config(&config.llm, &ranking.tokenizer);
        let llm = Decoder::<Training>::load(
            &decoder,
            weights,
            Tune::training(&config.llm, config.seed),
            config.llm.precision,
            device,
        )?;
        let mut optimizer = adamw(config.train.weight_decay);
        let mut progress = Progress::default();
        let mut model = match (entities, &checkpoint) {
            (Some(entities), Some(_)) => entities.blank(llm, device)?,
            (Some(entities), None) => entities.start(llm, &config.items, config.seed, device)?,
            (None, _) => llm.into(),
        };
        if let Some((checkpoint, found)) = checkpoint {
            model = trained.load(&checkpoint, model, device)?;
            optimizer = Checkpoints::load_optimizer(&checkpoint, optimizer, device)?;
            progress = found;
        } else if let Some(adapter) = &config.llm.adapter {
            model.llm = with_adapter(Path::new(adapter), config, model.llm, device)?;
        }
        model.gradient_checkpointing = config.train.gradient_checkpointing;
        if config.llm.tune == TuneKind::Frozen {
            // The tokens before the first vector depend on nothing that trains.
            model = model.with_prefix_cache(&data.common_prefix);
        }

        let context = LossContext::new(&ranking.catalogue, config.decode.beams);
        let token_loss = Loss::new(&config.loss, &context);
        let run = Run {
            other_devices: devices[1..].to_vec(),
            optimizer,
            token_loss,
            logit_factor: config.prior.as_ref().filter(|prior| prior.in_loss).map_or(1.0, |prior| prior.llm_weight),
            device_check: None,
            progress,
            config: config.train.clone(),
            seed: config.seed,
            train: data.train,
            valid: data.valid,
            catalogue: Arc::new(ranking.catalogue.clone()),
            validate: data.validate,
            trained,
            dir: options.out.clone(),
            ui: options.ui,
            max_steps: options.max_steps,
            interrupter: options.interrupter.clone(),
        };
        let notice = notice(&token_loss, &context);
        Ok(PreparedRun { model, run, precision, notice, train_size: data.train_size, validation: data.validation })
    }
}

/// Returns the options of `[loss]` that this catalogue does not allow, in words.
fn notice(token_loss: &Loss, context: &LossContext) -> Option<String> {
    let stays = matches!(token_loss, Loss::Ats(_)) && !Ats::adapts(context.root_children);
    stays.then(|| {
        format!(
            "the adaptive temperature stays at {}: with this tokenizer the root of the titles' trie has {} children, \
             and \
             ATS has an answer only above 4; set loss.temperature to a number to choose another",
            Ats::START,
            context.root_children
        )
    })
}

fn with_adapter(
    adapter: &Path,
    config: &RunConfig,
    llm: Decoder<Training>,
    device: &DispatchDevice,
) -> Result<Decoder<Training>> {
    let (found, lora) = (read_adapter_config(adapter)?, &config.llm.lora);
    let sorted = |targets: &[String]| targets.iter().cloned().collect::<BTreeSet<_>>();
    let same = (found.rank, found.alpha) == (lora.rank, lora.alpha) && sorted(&found.targets) == sorted(&lora.targets);
    if !same {
        return Err(Error::usage(format!(
            "llm.adapter: {} has rank {}, alpha {} and targets {:?}; set llm.lora to the same",
            adapter.display(),
            found.rank,
            found.alpha,
            found.targets
        )));
    }
    load_adapter(adapter, llm, device)
}
