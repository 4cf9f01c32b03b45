//! A few steps of a run, under the clock of [`crate::core::profiler`].

use burn::tensor::backend::AutodiffBackend;

use super::language_model::LanguageModelTask;
use super::{Run, StepOutput};
use crate::core::profiler::{ProfileTotals, record};
use crate::model::ItemLanguageModel;
use crate::{Error, Result};

/// An optimiser step, and where its time went.
#[derive(Debug, Clone, Copy)]
pub struct ProfiledStep {
    /// Output of the step: the same, to the last bit, as without a clock.
    pub output: StepOutput,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// Number of windows or rows.
    pub samples: usize,
    /// Seconds and operations.
    pub recorded: ProfileTotals,
}

/// Takes the run's first `warm_up` + `steps` steps (fewer if it is interrupted), epoch after epoch
/// if necessary, and saves nothing.
///
/// # Errors
/// Those of [`super::run`]; an interrupt before the first step after `warm_up` has ended.
pub fn profile<B: AutodiffBackend>(
    model: ItemLanguageModel<B>,
    run: Run<B>,
    warm_up: usize,
    steps: usize,
) -> Result<Vec<ProfiledStep>> {
    let device = model.device();
    let first = run.progress.step + 1;
    let mut task = LanguageModelTask::without_checkpoints(model, run);
    let mut taken = Vec::with_capacity(warm_up + steps);
    let epochs: Vec<Vec<usize>> =
        (0..warm_up + steps).flat_map(|epoch| (task.run.train.epoch)(epoch)).take(warm_up + steps).collect();
    for (number, samples) in (first..).zip(epochs) {
        if task.run.interrupter.should_stop() {
            break;
        }
        let device = device.clone();
        let sync = move || {
            // A device that fails is reported by the step.
            let _ = B::sync(&device);
        };
        let (output, recorded) = record(sync, || task.take(number, &samples));
        let (output, grad_norm) = output?;
        taken.push(ProfiledStep { output, grad_norm, samples: samples.len(), recorded });
    }
    match taken.len() > warm_up {
        true => Ok(taken),
        false => Err(Error::failed(format!("only {} steps were taken; a profile needs {}", taken.len(), warm_up + 1))),
    }
}
