//! A few steps of a run, under the clock of [`crate::core::profiler`].

use std::sync::{Arc, Mutex};

use burn::tensor::backend::AutodiffBackend;
use burn::train::Learner;

use super::strategy::{Components, Strategy};
use super::{Outcome, Run, StepOutput, TrainableModel};
use crate::core::profiler::{Recorded, record};
use crate::{Error, Result};

/// An optimiser step, and where its time went.
#[derive(Debug, Clone, Copy)]
pub struct ProfiledStep {
    /// As of a step without a clock, to the last bit.
    pub output: StepOutput,
    /// Windows or rows.
    pub samples: usize,
    /// Seconds and operations.
    pub recorded: Recorded,
}

/// Takes the run's first `warm_up` + `steps` steps (fewer if it is interrupted), epoch after epoch
/// if need be, and saves nothing.
///
/// # Errors
/// As [`super::run`]; an interrupt before the first step after `warm_up` has ended.
pub fn profile<B: AutodiffBackend>(
    recommender: TrainableModel<B>,
    run: Run<B>,
    warm_up: usize,
    steps: usize,
) -> Result<Vec<ProfiledStep>> {
    let schedule = run.schedule();
    let total_steps = schedule.total;
    let mut learner = Learner::<Components<B>>::new(recommender, run.optimizer.clone(), schedule);
    let mut outcome = Outcome { progress: run.progress.clone(), ..Outcome::default() };
    let strategy = Strategy { run, total_steps, result: Arc::new(Mutex::new(Ok(Outcome::default()))) };

    let mut models = strategy.run.models(learner.model());
    let device = models[0].model.device();
    let mut taken = Vec::with_capacity(warm_up + steps);
    let epochs = (0..warm_up + steps).flat_map(|epoch| (strategy.run.train.epoch)(epoch));
    for samples in epochs.take(warm_up + steps) {
        if strategy.run.interrupter.should_stop() {
            break;
        }
        let device = device.clone();
        let sync = move || {
            // A device that fails is found by the step.
            let _ = B::sync(&device);
        };
        let (output, recorded) = record(sync, || strategy.take(&mut learner, &mut models, &samples, &mut outcome));
        taken.push(ProfiledStep { output: output?, samples: samples.len(), recorded });
    }
    match taken.len() > warm_up {
        true => Ok(taken),
        false => Err(Error::failed(format!("only {} steps were taken; a profile needs {}", taken.len(), warm_up + 1))),
    }
}
