//! The training loop as a learning strategy of burn-train's, which keeps its dashboard.
//!
//! burn's own strategies checkpoint whole epochs with the whole model; this one checkpoints steps
//! with what trains, stops at a signal, and refuses to go on from numbers that are not finite.
//! Several devices share each step ([`super::train_step`]).

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::data::dataloader::{self, DataLoader, DataLoaderIterator};
use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::logger::InMemoryMetricLogger;
use burn::train::metric::LearningRateMetric;
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::{
    EventProcessorTraining, Interrupter, Learner, LearnerEvent, LearningComponentsMarker, SupervisedLearningStrategy,
    SupervisedTraining, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, TrainingItem,
    TrainingStrategy, ValidLoader,
};
use serde_json::json;

use super::dashboard::{Curve, Silent, keyboard_signals};
use super::data_parallel::broadcast_parameters;
use super::{
    AdamW, Best, Checkpoints, LinearSchedule, Progress, Samples, Step, StepOutput, TrainableModel, Trained, Ui,
    clip_grad_norm, train_step, validation_step,
};
use crate::batch::{Batch, Example};
use crate::config::TrainConfig;
use crate::core::files::write_atomic;
use crate::core::log::log;
use crate::core::panic::DeviceGuard;
use crate::core::profiler;
use crate::core::profiler::Part;
use crate::text::Catalogue;
use crate::{Context, Error, Result};

/// Ranks the validation windows with a model and its copies on other devices: NDCG@10, or `None` if
/// interrupted.
pub type Validate<B> = Box<dyn Fn(&[TrainableModel<B>]) -> Result<Option<f64>>>;

/// All that a training run needs, but for the model.
pub struct Run<B: AutodiffBackend> {
    /// Devices that share the work beside the model's own.
    pub other_devices: Vec<B::Device>,
    /// The optimiser, at the state to go on from.
    pub optimizer: AdamW<TrainableModel<B>, B>,
    /// Where to go on from.
    pub progress: Progress,
    /// Hyper-parameters.
    pub config: TrainConfig,
    /// Of dropout.
    pub seed: u64,
    /// What is trained on.
    pub train: Samples,
    /// What validates after each epoch: its loss, and the ranking. Nothing where it is empty.
    pub valid: Vec<Example>,
    /// The catalogue they point into.
    pub catalogue: Arc<Catalogue>,
    /// Ranks the validation windows; `None` where the validation loss alone chooses the epoch.
    pub validate: Option<Validate<B::InnerBackend>>,
    /// What trains.
    pub trained: Trained,
    /// The run directory.
    pub dir: PathBuf,
    /// What is shown.
    pub ui: Ui,
    /// Stop after this many optimiser steps of the run.
    pub max_steps: Option<usize>,
    /// Stops the run after the step at hand.
    pub interrupter: Interrupter,
}

impl<B: AutodiffBackend> Run<B> {
    /// The model, and a copy on each of the other devices.
    pub(super) fn models(&self, recommender: TrainableModel<B>) -> Vec<TrainableModel<B>> {
        let copy = |device| TrainableModel { model: recommender.model.clone_to_device(device), ..recommender };
        let copies: Vec<_> = self.other_devices.iter().map(copy).collect();
        std::iter::once(recommender).chain(copies).collect()
    }

    pub(super) fn schedule(&self) -> LinearSchedule {
        LinearSchedule {
            peak: self.config.learning_rate,
            warmup: self.config.warmup_steps,
            total: self.train.steps_per_epoch * self.config.epochs,
            next: self.progress.step,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// Where it is.
    pub progress: Progress,
    /// The loss of the last step.
    pub last_loss: Option<f64>,
    /// Steps of the whole run as configured.
    pub total_steps: usize,
    /// Seconds spent in the optimiser steps of this call, and windows in them.
    pub seconds: f64,
    /// Windows trained on in this call.
    pub samples: usize,
}

pub(super) type Components<B> =
    LearningComponentsMarker<B, LinearSchedule, TrainableModel<B>, AdamW<TrainableModel<B>, B>>;

/// Trains `recommender`, at the state to go on from, to the end, to `max_steps`, or to an
/// interrupt; a checkpoint is written in every case.
///
/// # Errors
/// A loss or gradient that is not finite, a panic on any thread, a file that cannot be written. The
/// last good checkpoint stays.
pub fn run<B: AutodiffBackend>(recommender: TrainableModel<B>, run: Run<B>) -> Result<Outcome> {
    let schedule = run.schedule();
    let total_steps = schedule.total;
    truncate_metrics(&run.dir.join("metrics.jsonl"), run.progress.step)?;

    let learner = Learner::<Components<B>>::new(recommender, run.optimizer.clone(), schedule);
    let (dir, interrupter, ui, epochs) = (run.dir.clone(), run.interrupter.clone(), run.ui, run.config.epochs);
    let ranks = run.validate.is_some();
    let result = Arc::new(Mutex::new(Ok(Outcome::default())));
    let strategy = Strategy { run, total_steps, result: result.clone() };
    type Value = fn(&StepOutput) -> f64;
    let curves: [(&str, bool, Value); 4] = [
        ("Loss", false, |o| o.loss),
        ("Temperature", false, |o| o.temperature.value),
        ("Gradient norm", false, |o| o.grad_norm),
        ("Tokens per second", true, |o| o.tokens_per_second),
    ];
    let mut training = SupervisedTraining::<Components<B>>::new(&dir, Arc::new(NoLoader), Arc::new(NoLoader))
        .num_epochs(epochs)
        .with_application_logger(None)
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_interrupter(interrupter.clone())
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
        .metric_train_numeric(LearningRateMetric::new())
        .metric_valid_numeric(Curve::new("Loss", false, |o| o.loss));
    if ranks {
        training = training.metric_valid_numeric(Curve::new("NDCG@10", true, |o| o.ndcg_at_10.unwrap_or_default()));
    }
    for (name, higher, value) in curves {
        training = training.metric_train_numeric(Curve::new(name, higher, value));
    }
    let training = match ui {
        Ui::Tui => training.renderer(TuiMetricsRendererWrapper::new(interrupter, None)),
        Ui::Plain | Ui::None => training.renderer(Silent),
    };
    training.launch(learner);
    result.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(super) struct Strategy<B: AutodiffBackend> {
    pub(super) run: Run<B>,
    pub(super) total_steps: usize,
    pub(super) result: Arc<Mutex<Result<Outcome>>>,
}

impl<B: AutodiffBackend> SupervisedLearningStrategy<Components<B>> for Strategy<B> {
    fn fit(
        &self,
        components: TrainingComponents<Components<B>>,
        mut learner: Learner<Components<B>>,
        _: TrainLoader<Components<B>>,
        _: ValidLoader<Components<B>>,
        _: usize,
    ) -> (TrainableModel<B>, SupervisedTrainingEventProcessor<Components<B>>) {
        let mut events = components.event_processor;
        let result = self.train(&mut learner, &mut events);
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
        (learner.model(), events)
    }
}

impl<B: AutodiffBackend> Strategy<B> {
    fn train(
        &self,
        learner: &mut Learner<Components<B>>,
        events: &mut SupervisedTrainingEventProcessor<Components<B>>,
    ) -> Result<Outcome> {
        let run = &self.run;
        let mut models = run.models(learner.model());
        let checkpoints = Checkpoints::open(&run.dir)?;
        let mut outcome =
            Outcome { progress: run.progress.clone(), total_steps: self.total_steps, ..Outcome::default() };
        let save = |learner: &Learner<Components<B>>, progress: &Progress| {
            let weights = |dir: &Path| run.trained.save(dir, &learner.model().model);
            checkpoints.save(progress.step, progress, &run.optimizer, weights)
        };
        if run.ui == Ui::Tui {
            // The dashboard's thread sets the terminal up meanwhile.
            std::thread::sleep(Duration::from_millis(300));
            keyboard_signals();
        }
        let stop_at = run.max_steps.unwrap_or(usize::MAX).min(self.total_steps);

        while outcome.progress.epoch < run.config.epochs {
            let epoch = outcome.progress.epoch;
            for samples in (run.train.epoch)(epoch).into_iter().skip(outcome.progress.position) {
                if outcome.progress.step >= stop_at || run.interrupter.should_stop() {
                    save(learner, &outcome.progress)?;
                    return Ok(outcome);
                }
                self.step(learner, &mut models, events, &samples, &mut outcome)?;
                if outcome.progress.step.is_multiple_of(run.config.checkpoint_steps) {
                    save(learner, &outcome.progress)?;
                }
            }
            events.process_train(LearnerEvent::EndEpoch(epoch + 1));

            if !run.valid.is_empty() {
                let models: Vec<_> = models.iter().map(TrainableModel::valid).collect();
                let ndcg_at_10 = match &run.validate {
                    None => None,
                    Some(validate) => {
                        let Some(ndcg_at_10) = validate(&models)? else {
                            save(learner, &outcome.progress)?;
                            return Ok(outcome);
                        };
                        Some(ndcg_at_10)
                    }
                };
                let step = Step {
                    batches: self.batches(&models, run.valid.iter().map(|example| vec![example.clone()]).collect()),
                    temperature: outcome.progress.temperature,
                    seed: 0,
                };
                let loss = validation_step(&models, step);
                check_device_alive(outcome.progress.step)?;
                finite(outcome.progress.step, "validation loss", loss.loss)?;
                self.validated(events, StepOutput { ndcg_at_10, ..loss }, &mut outcome.progress);
            }
            outcome.progress.epoch += 1;
            outcome.progress.position = 0;
            save(learner, &outcome.progress)?;
        }
        Ok(outcome)
    }

    fn step(
        &self,
        learner: &mut Learner<Components<B>>,
        models: &mut [TrainableModel<B>],
        events: &mut SupervisedTrainingEventProcessor<Components<B>>,
        samples: &[usize],
        outcome: &mut Outcome,
    ) -> Result<()> {
        let before = outcome.seconds;
        let item = self.take(learner, models, samples, outcome)?;
        let (progress, lr) = (&outcome.progress, learner.lr_current());
        self.report(&item, progress, lr, outcome.seconds - before)?;
        let items = dataloader::Progress::new(progress.position, self.run.train.steps_per_epoch);
        let epochs = dataloader::Progress::new(progress.epoch + 1, self.run.config.epochs);
        let event = TrainingItem::new(item, items, epochs, Some(progress.step), Some(lr));
        events.process_train(LearnerEvent::ProcessedItem(event));
        Ok(())
    }

    /// The step itself; `outcome` and `models`, the first of which is the learner's, are brought up
    /// to date.
    pub(super) fn take(
        &self,
        learner: &mut Learner<Components<B>>,
        models: &mut [TrainableModel<B>],
        samples: &[usize],
        outcome: &mut Outcome,
    ) -> Result<StepOutput> {
        let (run, progress) = (&self.run, &mut outcome.progress);
        let started = Instant::now();
        profiler::begin(Part::Data);
        let examples = samples.iter().map(|&sample| (run.train.examples)(sample)).collect::<Result<Vec<_>>>()?;
        let step = Step {
            batches: self.batches(models, examples),
            temperature: progress.temperature,
            seed: run.seed.wrapping_add((progress.step as u64) << 20),
        };
        profiler::begin(Part::Rest);
        learner.lr_step();
        let mut trained = train_step(models, step);
        let number = progress.step + 1;
        check_device_alive(number)?;
        finite(number, "loss", trained.item.loss)?;
        profiler::begin(Part::Optimizer);
        let grad_norm = clip_grad_norm(&learner.model(), &mut trained.grads, run.config.max_grad_norm);
        finite(number, "gradient norm", grad_norm)?;
        learner.optimizer_step(trained.grads);
        models[0] = learner.model();
        broadcast_parameters(models);
        profiler::begin(Part::Rest);
        check_device_alive(number)?;

        let seconds = started.elapsed().as_secs_f64();
        let item = StepOutput { grad_norm, tokens_per_second: trained.item.tokens as f64 / seconds, ..trained.item };
        progress.step = number;
        progress.position += 1;
        progress.temperature = item.temperature;
        progress.first_loss.get_or_insert(item.loss);
        progress.samples += samples.len();
        progress.seconds += seconds;
        outcome.last_loss = Some(item.loss);
        outcome.samples += samples.len();
        outcome.seconds += seconds;
        Ok(item)
    }

    fn report(&self, item: &StepOutput, progress: &Progress, lr: f64, seconds: f64) -> Result<()> {
        let line = json!({
            "step": progress.step, "epoch": progress.epoch + 1, "loss": item.loss, "lr": lr,
            "temperature": item.temperature.value, "grad_norm": item.grad_norm, "tokens": item.tokens, "plain_tokens": item.plain_tokens, "seconds": seconds,
        });
        let path = self.run.dir.join("metrics.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).context(path.display())?;
        if self.run.ui == Ui::Plain {
            log(format_args!(
                "step {}/{}  epoch {}  loss {:.4}  temperature {:.3}  lr {:.2e}  gradient norm {:.3}  {:.0} tokens/s",
                progress.step,
                self.total_steps,
                progress.epoch + 1,
                item.loss,
                item.temperature.value,
                lr,
                item.grad_norm,
                item.tokens_per_second
            ));
        }
        Ok(())
    }

    fn validated(
        &self,
        events: &mut SupervisedTrainingEventProcessor<Components<B>>,
        item: StepOutput,
        progress: &mut Progress,
    ) {
        let epoch = progress.epoch + 1;
        let better = |best: Best| (item.ndcg_at_10, -item.loss) > (best.ndcg_at_10, -best.loss);
        if progress.best.is_none_or(better) {
            progress.best = Some(Best { step: progress.step, ndcg_at_10: item.ndcg_at_10, loss: item.loss });
        }
        if self.run.ui == Ui::Plain {
            let ranking = item.ndcg_at_10.map(|ndcg| format!("  NDCG@10 {ndcg:.4}")).unwrap_or_default();
            log(format_args!("epoch {epoch}  validation loss {:.4}{ranking}", item.loss));
        }
        let windows = dataloader::Progress::new(self.run.valid.len(), self.run.valid.len());
        let epochs = dataloader::Progress::new(epoch, self.run.config.epochs);
        events.process_valid(LearnerEvent::ProcessedItem(TrainingItem::new(
            item,
            windows,
            epochs,
            Some(progress.step),
            None,
        )));
        events.process_valid(LearnerEvent::EndEpoch(epoch));
    }

    /// Micro-batches, for a model a device.
    fn batches<C: Backend>(&self, models: &[TrainableModel<C>], samples: Vec<Vec<Example>>) -> Vec<Batch> {
        let candidates = models[0].loss.candidates();
        self.run.config.micro_batch().batches_for(models.len(), samples, &self.run.catalogue, candidates)
    }
}

fn finite(step: usize, what: &str, value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "step {step}: the {what} is {value}; the run stopped before using it and its last checkpoint is kept; \
         start a new one with a lower train.learning_rate (of llm.tune = \"lora\" without vectors, llm.adapter = \
         \"RUN_DIR/checkpoints/step-N\" keeps the adapter)"
    )))
}

/// Checks the device after `step`.
///
/// # Errors
/// A panic on one of its threads.
pub fn check_device_alive(step: usize) -> Result<()> {
    match DeviceGuard::current().panic() {
        None => Ok(()),
        Some(panic) => Err(Error::device(format!(
            "step {step}: a thread of the device died ({panic}); its numbers cannot be trusted; the last checkpoint is kept"
        ))),
    }
}

/// Drops the lines after `step`, that a killed process wrote beyond its last checkpoint.
pub fn truncate_metrics(path: &Path, step: usize) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
    let keep = |line: &&str| {
        let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
        value.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step as u64)
    };
    let kept: String = text.lines().filter(keep).flat_map(|line| [line, "\n"]).collect();
    write_atomic(path, kept.as_bytes())
}

/// The strategy draws its own batches: burn's loader can neither resume inside an epoch nor repeat
/// an order.
struct NoLoader;

impl<B: Backend> DataLoader<B, Step> for NoLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Step> + 'a> {
        Box::new(NoItems)
    }

    fn num_items(&self) -> usize {
        0
    }

    fn to_device(&self, _: &B::Device) -> Arc<dyn DataLoader<B, Step>> {
        Arc::new(Self)
    }

    fn slice(&self, _: usize, _: usize) -> Arc<dyn DataLoader<B, Step>> {
        Arc::new(Self)
    }
}

struct NoItems;

impl Iterator for NoItems {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        None
    }
}

impl DataLoaderIterator<Step> for NoItems {
    fn progress(&self) -> dataloader::Progress {
        dataloader::Progress::new(0, 0)
    }
}
