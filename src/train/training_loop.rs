//! The training loop of `train`, `align` and `cf`: epochs of optimiser steps, with a checkpoint, a
//! line of a metrics file and a guard against numbers that cannot be trusted.
//!
//! burn's own strategies checkpoint whole epochs with the whole model; this loop checkpoints steps
//! with the trainable parameters, stops at a signal, and refuses to continue with numbers that are
//! not finite.

use std::path::PathBuf;
use std::time::Instant;

use burn::train::Interrupter;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::checkpoint::{Best, Progress};
use super::dashboard::{Dashboard, Phase, Ui};
use super::guard::check_device_alive;
use super::metrics_log::MetricsLog;
use super::tensorboard::TensorBoard;
use crate::Result;
use crate::core::log::log;
use crate::loss::LossState;

/// The file of a run directory with a line for each optimiser step.
pub const METRICS: &str = "metrics.jsonl";

/// A model that is trained, one optimiser step at a time.
pub trait Task {
    /// The work of one optimiser step.
    type Work;
    /// The score of the validation after an epoch.
    type Score: Score;

    /// Returns how many optimiser steps an epoch has; the first one, where their number differs.
    fn steps_per_epoch(&self) -> usize;

    /// Returns the work of an epoch's steps. It depends on the epoch (from 0) alone, because a
    /// resumed run calls it again.
    fn epoch(&self, epoch: usize) -> Vec<Self::Work>;

    /// Takes an optimiser step.
    ///
    /// * `number`: the step of the run, from 1.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, detected before it is used ([`super::check_finite`]);
    /// data that cannot be read.
    fn step(&mut self, number: usize, work: Self::Work) -> Result<StepReport>;

    /// Measures how good the model is at the end of an epoch.
    ///
    /// * `epoch`: the epoch that has ended, from 1.
    /// * `step`: number of optimiser steps done.
    fn validate(&mut self, epoch: usize, step: usize) -> Result<Validation<Self::Score>>;

    /// Writes a checkpoint, or keeps the model in memory.
    fn save(&mut self, progress: &Progress<Self::Score>) -> Result<()>;

    /// Returns the state of the loss that lasts from step to step.
    fn loss_state(&self) -> LossState {
        LossState::new()
    }
}

/// A score by which an epoch is chosen.
pub trait Score: Clone + Serialize + DeserializeOwned {
    /// Returns whether this epoch is to be kept in place of `other`'s.
    fn is_better_than(&self, other: &Self) -> bool;

    /// Returns a few words for the log.
    fn describe(&self) -> String;

    /// Returns numbers for the dashboard, by name.
    fn curves(&self) -> Vec<(&'static str, f64)>;
}

/// The result of [`Task::validate`].
pub enum Validation<S> {
    /// There is nothing to validate on.
    None,
    /// The user interrupted it: the end of the epoch is repeated when the run is resumed.
    Interrupted,
    /// The score of the epoch.
    Measured(S),
}

/// Report of an optimiser step.
#[derive(Debug, Clone, Default)]
pub struct StepReport {
    /// The loss.
    pub loss: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// Number of windows, rows or pairs in the step.
    pub samples: usize,
    /// Number of tokens run.
    pub tokens: usize,
    /// Further numbers for the log, the dashboard and `metrics.jsonl`.
    pub metrics: Vec<(&'static str, f64)>,
    /// Further values for `metrics.jsonl` alone.
    pub log_only: Vec<(&'static str, Value)>,
}

/// Options of a run.
pub struct LoopOptions {
    /// The file that gets a line an optimiser step; no file for `None`.
    pub metrics: Option<PathBuf>,
    /// Number of passes over the training data, at most.
    pub epochs: usize,
    /// Validated epochs in a row without a better score after which the run ends; `None`: it never
    /// ends early.
    pub patience: Option<usize>,
    /// Steps between two checkpoints; an epoch's end always has one. With `None` only that.
    pub checkpoint_steps: Option<usize>,
    /// Number of optimiser steps of the run after which it stops.
    pub max_steps: Option<usize>,
    /// The folder of TensorBoard's event files, if they are written.
    pub tensorboard: Option<PathBuf>,
    /// Display of the run.
    pub ui: Ui,
    /// Stops the run after the current step.
    pub interrupter: Interrupter,
}

/// Outcome of a call of [`train`].
#[derive(Debug, Clone)]
pub struct Outcome<S> {
    /// Progress at the end.
    pub progress: Progress<S>,
    /// The loss of the last step of this call.
    pub last_loss: Option<f64>,
    /// Number of steps of the whole run as configured.
    pub total_steps: usize,
    /// Seconds spent in the optimiser steps of this call.
    pub seconds: f64,
    /// Number of samples of this call.
    pub samples: usize,
}

impl<S> Outcome<S> {
    /// Returns the samples a second of this call's optimiser steps; 0 where there was none.
    pub fn samples_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.samples as f64 / self.seconds } else { 0.0 }
    }
}

/// Trains from `progress` to the end, to `max_steps`, or to an interrupt; writes a checkpoint in
/// every case.
///
/// # Errors
/// Those of `task`; a panic on any thread; a file that cannot be written. The last good checkpoint
/// stays.
pub fn train<T: Task>(task: &mut T, progress: Progress<T::Score>, options: &LoopOptions) -> Result<Outcome<T::Score>> {
    let metrics = options.metrics.clone().map(|path| MetricsLog::open(path, progress.step)).transpose()?;
    let total_steps = task.steps_per_epoch() * options.epochs;
    let outcome = Outcome { progress, last_loss: None, total_steps, seconds: 0.0, samples: 0 };
    let step = outcome.progress.step;
    let tensorboard = options.tensorboard.as_ref().map(|dir| TensorBoard::create(dir, step)).transpose()?;
    let dashboard = Dashboard::open(options.ui, &options.interrupter);
    Loop { task, options, metrics, tensorboard, dashboard, outcome }.run()
}

struct Loop<'a, T: Task> {
    task: &'a mut T,
    options: &'a LoopOptions,
    metrics: Option<MetricsLog>,
    tensorboard: Option<TensorBoard>,
    dashboard: Dashboard,
    outcome: Outcome<T::Score>,
}

impl<T: Task> Loop<'_, T> {
    fn run(mut self) -> Result<Outcome<T::Score>> {
        let stop_at = self.options.max_steps.unwrap_or(usize::MAX);
        while self.outcome.progress.epoch < self.options.epochs && !self.is_out_of_patience() {
            let Progress { epoch, position, .. } = self.outcome.progress;
            for work in self.task.epoch(epoch).into_iter().skip(position) {
                if self.outcome.progress.step >= stop_at || self.options.interrupter.should_stop() {
                    self.task.save(&self.outcome.progress)?;
                    return Ok(self.outcome);
                }
                self.step(work)?;
                let every = self.options.checkpoint_steps;
                if every.is_some_and(|every| self.outcome.progress.step.is_multiple_of(every)) {
                    self.task.save(&self.outcome.progress)?;
                }
            }
            if !self.validate()? {
                self.task.save(&self.outcome.progress)?;
                return Ok(self.outcome);
            }
            self.outcome.progress.epoch += 1;
            self.outcome.progress.position = 0;
            self.task.save(&self.outcome.progress)?;
        }
        Ok(self.outcome)
    }

    fn is_out_of_patience(&self) -> bool {
        self.options.patience.is_some_and(|patience| self.outcome.progress.epochs_since_best >= patience)
    }

    fn step(&mut self, work: T::Work) -> Result<()> {
        let started = Instant::now();
        let number = self.outcome.progress.step + 1;
        let report = self.task.step(number, work)?;
        check_device_alive(number)?;
        let seconds = started.elapsed().as_secs_f64();
        let Outcome { progress, .. } = &mut self.outcome;
        progress.step = number;
        progress.position += 1;
        progress.loss_state = self.task.loss_state();
        progress.first_loss.get_or_insert(report.loss);
        progress.samples += report.samples;
        progress.seconds += seconds;
        self.outcome.last_loss = Some(report.loss);
        self.outcome.samples += report.samples;
        self.outcome.seconds += seconds;
        self.report(&report, seconds)
    }

    fn report(&mut self, report: &StepReport, seconds: f64) -> Result<()> {
        let Outcome { progress, total_steps, .. } = &self.outcome;
        let epoch = progress.epoch + 1;
        let mut line: Map<String, Value> = Map::new();
        let mut add = |name: &str, value: Value| line.insert(name.to_string(), value);
        add("step", json!(progress.step));
        add("epoch", json!(epoch));
        add("loss", json!(report.loss));
        add("lr", json!(report.learning_rate));
        add("grad_norm", json!(report.grad_norm));
        add("tokens", json!(report.tokens));
        add("seconds", json!(seconds));
        report.metrics.iter().for_each(|(name, value)| drop(add(name, json!(value))));
        report.log_only.iter().for_each(|(name, value)| drop(add(name, value.clone())));
        if let Some(tensorboard) = &mut self.tensorboard {
            let skipped = ["step", "epoch"];
            let numbers = line.iter().filter(|(name, _)| !skipped.contains(&name.as_str()));
            let numbers = numbers.filter_map(|(name, value)| Some((format!("train/{name}"), value.as_f64()?)));
            tensorboard.write(progress.step, &numbers.collect::<Vec<_>>())?;
        }
        self.metrics.as_ref().map_or(Ok(()), |metrics| metrics.append(&Value::Object(line)))?;

        let tokens_per_second = report.tokens as f64 / seconds;
        if self.options.ui == Ui::Plain {
            let shown: String = report.metrics.iter().map(|(name, value)| format!("  {name} {value:.4}")).collect();
            log(format_args!(
                "step {}/{total_steps}  epoch {epoch}  loss {:.4}{shown}  lr {:.2e}  gradient norm {:.3}  {}",
                progress.step,
                report.loss,
                report.learning_rate,
                report.grad_norm,
                if report.tokens > 0 { format!("{tokens_per_second:.0} tokens/s") } else { format!("{seconds:.2} s") }
            ));
        }
        let mut curves = vec![
            ("Loss", report.loss),
            ("Learning rate", report.learning_rate),
            ("Gradient norm", report.grad_norm),
            ("Tokens per second", tokens_per_second),
        ];
        curves.extend(&report.metrics);
        let steps = [progress.position, self.task.steps_per_epoch()];
        self.dashboard.show(Phase::Train, &curves, steps, [epoch, self.options.epochs], progress.step);
        Ok(())
    }

    /// Runs the validation; returns false if the user interrupted it.
    fn validate(&mut self) -> Result<bool> {
        let (epoch, step) = (self.outcome.progress.epoch + 1, self.outcome.progress.step);
        let score = match self.task.validate(epoch, step)? {
            Validation::None => return Ok(true),
            Validation::Interrupted => return Ok(false),
            Validation::Measured(score) => score,
        };
        check_device_alive(step)?;
        if self.options.ui == Ui::Plain {
            log(format_args!("epoch {epoch}  {}", score.describe()));
        }
        self.dashboard.show(Phase::Valid, &score.curves(), [1, 1], [epoch, self.options.epochs], step);
        if let Some(tensorboard) = &mut self.tensorboard {
            let curves = score.curves().into_iter().map(|(name, value)| (format!("valid/{name}"), value));
            tensorboard.write(step, &curves.collect::<Vec<_>>())?;
        }
        let Progress { best, epochs_since_best, .. } = &mut self.outcome.progress;
        *epochs_since_best += 1;
        if best.as_ref().is_none_or(|best| score.is_better_than(&best.score)) {
            *best = Some(Best { step, score });
            *epochs_since_best = 0;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde::Deserialize;

    use super::*;
    use crate::Error;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Height {
        height: f64,
    }

    impl Score for Height {
        fn is_better_than(&self, other: &Self) -> bool {
            self.height > other.height
        }

        fn describe(&self) -> String {
            format!("height {}", self.height)
        }

        fn curves(&self) -> Vec<(&'static str, f64)> {
            vec![("Height", self.height)]
        }
    }

    /// Three steps an epoch; the second epoch is the best.
    #[derive(Default)]
    struct Climb {
        taken: Vec<usize>,
        saved: Vec<Progress<Height>>,
        fails_at: Option<usize>,
    }

    impl Task for Climb {
        type Work = usize;
        type Score = Height;

        fn steps_per_epoch(&self) -> usize {
            3
        }

        fn epoch(&self, epoch: usize) -> Vec<usize> {
            (0..3).map(|step| 10 * epoch + step).collect()
        }

        fn step(&mut self, number: usize, work: usize) -> Result<StepReport> {
            if self.fails_at == Some(number) {
                return Err(Error::failed("lost its footing"));
            }
            self.taken.push(work);
            Ok(StepReport { loss: 1.0 / number as f64, samples: 2, tokens: 5, ..StepReport::default() })
        }

        fn validate(&mut self, epoch: usize, _: usize) -> Result<Validation<Height>> {
            Ok(Validation::Measured(Height { height: if epoch == 2 { 2.0 } else { 1.0 } }))
        }

        fn save(&mut self, progress: &Progress<Height>) -> Result<()> {
            self.saved.push(progress.clone());
            Ok(())
        }
    }

    fn options(dir: &std::path::Path, max_steps: Option<usize>) -> LoopOptions {
        LoopOptions {
            metrics: Some(dir.join(METRICS)),
            epochs: 3,
            patience: None,
            checkpoint_steps: Some(2),
            max_steps,
            tensorboard: None,
            ui: Ui::None,
            interrupter: Interrupter::new(),
        }
    }

    #[test]
    fn a_resumed_run_takes_the_steps_of_one_that_was_not_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = Climb::default();
        let outcome = train(&mut whole, Progress::default(), &options(dir.path(), None)).unwrap();
        assert_eq!((outcome.total_steps, outcome.samples, outcome.last_loss), (9, 18, Some(1.0 / 9.0)));
        assert_eq!(outcome.progress.best, Some(Best { step: 6, score: Height { height: 2.0 } }));
        let saved: Vec<usize> = whole.saved.iter().map(|progress| progress.step).collect();
        assert_eq!(saved, [2, 3, 4, 6, 6, 8, 9]);

        for stop in 0..9 {
            let dir = tempfile::tempdir().unwrap();
            let mut first = Climb::default();
            let stopped = train(&mut first, Progress::default(), &options(dir.path(), Some(stop))).unwrap();
            assert_eq!(stopped.progress.step, stop);
            let mut second = Climb::default();
            let resumed = train(&mut second, stopped.progress, &options(dir.path(), None)).unwrap();
            assert_eq!([first.taken, second.taken].concat(), whole.taken);
            let untimed = |progress: &Progress<Height>| Progress { seconds: 0.0, ..progress.clone() };
            assert_eq!(untimed(&resumed.progress), untimed(&outcome.progress));
            assert_eq!(fs::read_to_string(dir.path().join(METRICS)).unwrap().lines().count(), 9);
        }
    }

    #[test]
    fn a_failed_step_ends_the_run_without_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let mut climb = Climb { fails_at: Some(4), ..Climb::default() };
        let error = train(&mut climb, Progress::default(), &options(dir.path(), None)).unwrap_err();
        assert!(error.to_string().contains("lost its footing"));
        assert_eq!(climb.saved.last().unwrap().step, 3);
    }
}
