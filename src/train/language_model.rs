//! Training of an item-language model: the [`Task`] of `itemlm train`. Several devices share each
//! step ([`train_step`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::AutodiffModule;
use burn::optim::Optimizer;
use burn::tensor::backend::AutodiffBackend;
use burn::train::Interrupter;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::data_parallel::broadcast_parameters;
use super::tensorboard::TENSORBOARD;
use super::training_loop::{LoopOptions, METRICS, Score, StepReport, Task, Validation};
use super::{
    AdamW, Checkpoints, LinearSchedule, Outcome, Progress, Samples, Step, StepOutput, TrainedWeights, Ui,
    check_device_alive, check_finite, clip_grad_norm, train_step, validation_step,
};
use crate::Result;
use crate::batch::{Batch, Example};
use crate::config::TrainConfig;
use crate::core::profiler;
use crate::core::profiler::Part;
use crate::loss::{Loss, LossState, TokenLoss};
use crate::model::ItemLanguageModel;
use crate::text::Catalogue;

/// A function that ranks the validation windows with a model and its copies on other devices:
/// NDCG@10, or `None` if interrupted.
pub type Validate<B> = Box<dyn Fn(&[ItemLanguageModel<B>]) -> Result<Option<f64>>>;

/// Inputs of a training run, except the model.
pub struct Run<B: AutodiffBackend> {
    /// Devices that share the work with the model's own.
    pub other_devices: Vec<B::Device>,
    /// The optimiser, with the state to resume from.
    pub optimizer: AdamW<ItemLanguageModel<B>, B>,
    /// The loss; its state is restored from `progress`.
    pub token_loss: Loss,
    /// Factor of the logits, before a prior's biases are added: the LLM's weight beside the prior.
    pub logit_factor: f64,
    /// Comparison of the device's gradients with the CPU's, for the first line of
    /// `metrics.jsonl`; `None` on the CPU.
    pub device_check: Option<Value>,
    /// Progress to resume from.
    pub progress: Progress<ValidationScore>,
    /// Hyper-parameters.
    pub config: TrainConfig,
    /// Seed of dropout.
    pub seed: u64,
    /// Samples to train on.
    pub train: Samples,
    /// Examples for the validation loss after each epoch; without any there is no validation.
    pub valid: Vec<Example>,
    /// The catalogue that the examples point into.
    pub catalogue: Arc<Catalogue>,
    /// Ranks the validation windows; with `None` the validation loss alone chooses the epoch.
    pub validate: Option<Validate<B::InnerBackend>>,
    /// The weights that train, which a checkpoint holds.
    pub trained: TrainedWeights,
    /// The run directory.
    pub dir: PathBuf,
    /// Display of the run.
    pub ui: Ui,
    /// Number of optimiser steps of the run after which it stops.
    pub max_steps: Option<usize>,
    /// Stops the run after the current step.
    pub interrupter: Interrupter,
}

/// The validation score of a language model at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidationScore {
    /// NDCG@10 on the validation windows, if they are ranked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ndcg_at_10: Option<f64>,
    /// The validation loss: it decides where NDCG@10 is equal or absent.
    pub loss: f64,
}

impl Score for ValidationScore {
    fn is_better_than(&self, other: &Self) -> bool {
        (self.ndcg_at_10, -self.loss) > (other.ndcg_at_10, -other.loss)
    }

    fn describe(&self) -> String {
        let ranking = self.ndcg_at_10.map(|ndcg| format!("  NDCG@10 {ndcg:.4}")).unwrap_or_default();
        format!("validation loss {:.4}{ranking}", self.loss)
    }

    fn curves(&self) -> Vec<(&'static str, f64)> {
        let ranking = self.ndcg_at_10.map(|ndcg| ("NDCG@10", ndcg));
        std::iter::once(("Loss", self.loss)).chain(ranking).collect()
    }
}

/// Trains `model`, from `run.progress` on, to the end, to `max_steps`, or to an interrupt; a
/// checkpoint is written in every case.
///
/// # Errors
/// A loss or gradient that is not finite, a panic on any thread, a file that cannot be written. The
/// last good checkpoint stays.
pub fn run<B: AutodiffBackend>(model: ItemLanguageModel<B>, run: Run<B>) -> Result<Outcome<ValidationScore>> {
    let options = LoopOptions {
        metrics: Some(run.dir.join(METRICS)),
        epochs: run.config.epochs,
        patience: None,
        checkpoint_steps: Some(run.config.checkpoint_steps),
        max_steps: run.max_steps,
        tensorboard: run.config.tensorboard.then(|| run.dir.join(TENSORBOARD)),
        ui: run.ui,
        interrupter: run.interrupter.clone(),
    };
    let progress = run.progress.clone();
    let mut task = LanguageModelTask::new(model, run)?;
    super::training_loop::train(&mut task, progress, &options)
}

/// The training task of a language model.
pub(super) struct LanguageModelTask<B: AutodiffBackend> {
    /// `[devices]`: `run.optimizer` updates the first, whose parameters the others copy.
    pub(super) models: Vec<ItemLanguageModel<B>>,
    token_loss: Loss,
    checkpoints: Option<Checkpoints>,
    pub(super) run: Run<B>,
}

impl<B: AutodiffBackend> LanguageModelTask<B> {
    fn new(model: ItemLanguageModel<B>, run: Run<B>) -> Result<Self> {
        let checkpoints = Checkpoints::open(&run.dir)?;
        Ok(Self { checkpoints: Some(checkpoints), ..Self::without_checkpoints(model, run) })
    }

    /// Makes a task that saves nothing.
    pub(super) fn without_checkpoints(model: ItemLanguageModel<B>, run: Run<B>) -> Self {
        let copies: Vec<_> = run.other_devices.iter().map(|device| model.clone_to_device(device)).collect();
        let mut token_loss = run.token_loss;
        token_loss.restore(&run.progress.loss_state);
        Self { models: std::iter::once(model).chain(copies).collect(), token_loss, checkpoints: None, run }
    }

    fn schedule(&self) -> LinearSchedule {
        LinearSchedule {
            peak: self.run.config.learning_rate,
            warmup: self.run.config.warmup_steps,
            total: self.run.train.steps_per_epoch * self.run.config.epochs,
        }
    }

    /// Lays out samples as micro-batches, at least one for each device.
    pub(super) fn batches(&self, samples: Vec<Vec<Example>>) -> Vec<Batch> {
        let (micro_batch, candidates) = (self.run.config.micro_batch(), self.token_loss.candidates());
        let mut batches = micro_batch.batches_for(self.models.len(), samples, &self.run.catalogue, candidates);
        batches.iter_mut().for_each(|batch| batch.logit_factor = self.run.logit_factor);
        batches
    }

    /// Takes step `number`, from 1. Returns its output and the gradient's norm before clipping.
    pub(super) fn take(&mut self, number: usize, samples: &[usize]) -> Result<(StepOutput, f64)> {
        profiler::begin(Part::Data);
        let examples = samples.iter().map(|&sample| (self.run.train.examples)(sample)).collect::<Result<Vec<_>>>()?;
        let step = Step {
            batches: self.batches(examples),
            token_loss: self.token_loss,
            seed: self.run.seed.wrapping_add(((number - 1) as u64) << 20),
        };
        profiler::begin(Part::Rest);
        let (mut grads, output) = train_step(&self.models, step)?;
        check_device_alive(number)?;
        check_finite(number, "loss", output.loss, REMEDY)?;
        profiler::begin(Part::Optimizer);
        let grad_norm = clip_grad_norm(&self.models[0], &mut grads, self.run.config.max_grad_norm)?;
        check_finite(number, "gradient norm", grad_norm, REMEDY)?;
        let lr = self.schedule().learning_rate(number - 1);
        // It is moved out, so that its tensors are updated in place.
        let model = self.models.remove(0);
        self.models.insert(0, self.run.optimizer.step(lr, model, grads));
        broadcast_parameters(&mut self.models)?;
        profiler::begin(Part::Rest);
        check_device_alive(number)?;
        self.token_loss = output.token_loss;
        Ok((output, grad_norm))
    }
}

/// The remedy for a loss that is not finite.
const REMEDY: &str = "its last checkpoint is kept; start a new one with a lower train.learning_rate (of llm.tune = \
                      \"lora\" without vectors, llm.adapter = \"RUN_DIR/checkpoints/step-N\" keeps the adapter)";

impl<B: AutodiffBackend> Task for LanguageModelTask<B> {
    type Work = Vec<usize>;
    type Score = ValidationScore;

    fn steps_per_epoch(&self) -> usize {
        self.run.train.steps_per_epoch
    }

    fn epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        (self.run.train.epoch)(epoch)
    }

    fn step(&mut self, number: usize, samples: Vec<usize>) -> Result<StepReport> {
        let (output, grad_norm) = self.take(number, &samples)?;
        Ok(StepReport {
            loss: output.loss,
            learning_rate: self.schedule().learning_rate(number - 1),
            grad_norm,
            samples: samples.len(),
            tokens: output.tokens,
            metrics: vec![("temperature", output.token_loss.temperature())],
            log_only: std::iter::once(("plain_tokens", json!(output.plain_tokens)))
                .chain(self.run.device_check.take().map(|check| ("device_check", check)))
                .collect(),
        })
    }

    fn validate(&mut self, _: usize, step: usize) -> Result<Validation<ValidationScore>> {
        if self.run.valid.is_empty() {
            return Ok(Validation::None);
        }
        let models: Vec<_> = self.models.iter().map(AutodiffModule::valid).collect();
        let ndcg_at_10 = match &self.run.validate {
            None => None,
            Some(validate) => match validate(&models)? {
                None => return Ok(Validation::Interrupted),
                found => found,
            },
        };
        let batches = self.batches(self.run.valid.iter().map(|example| vec![example.clone()]).collect());
        let loss = validation_step(&models, &Step { batches, token_loss: self.token_loss, seed: 0 })?.loss;
        check_device_alive(step)?;
        check_finite(step, "validation loss", loss, REMEDY)?;
        Ok(Validation::Measured(ValidationScore { ndcg_at_10, loss }))
    }

    fn save(&mut self, progress: &Progress<ValidationScore>) -> Result<()> {
        let Some(checkpoints) = &self.checkpoints else { return Ok(()) };
        let weights = |dir: &Path| self.run.trained.save(dir, &self.models[0]);
        checkpoints.save(progress.step, progress, &self.run.optimizer, weights)
    }

    fn loss_state(&self) -> LossState {
        self.token_loss.state()
    }
}
