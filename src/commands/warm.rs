//! `itemlm doctor --warm RUN.toml`: selects a run's kernels before it begins, and compares them
//! with the CPU at the run's own sizes.

use std::path::PathBuf;
use std::time::Instant;

use burn::DispatchDevice;
use burn::module::AutodiffModule;
use burn::train::Interrupter;
use serde::Serialize;

use crate::config::{Precision, RunConfig};
use crate::core::panic::DeviceGuard;
use crate::device::{BackendChoice, BackendName, TUNED, kernels_dir};
use crate::run::catch_out_of_memory;
use crate::run::inputs::RunInputs;
use crate::run::precision::products_round;
use crate::run::self_check::no_cpu;
use crate::run::training::{PreparedRun, TrainOptions};
use crate::run::verified_devices::verified_device;
use crate::train::ProfiledStep;
use crate::{Error, Result};

/// Number of optimiser steps, without learning-rate warm-up: from the second one on the losses
/// depend on earlier gradients.
const STEPS: usize = 3;
/// Number of validation windows that are ranked: as many as run together, or more.
const WINDOWS: usize = 32;
/// Largest difference of a step's loss and gradient norm that passes, as a share of the CPU's. The
/// tests allow devices 1e-5 for 20 steps of small models; these sums are longer.
const TOLERANCE: f64 = 1e-3;
/// Tolerance where products round their inputs to 8 or 11 bits.
const ROUNDED_TOLERANCE: f64 = 5e-2;

/// The report of `doctor --warm --json`.
#[derive(Debug, Clone, Serialize)]
pub struct WarmReport {
    /// The backend of the run.
    pub backend: BackendName,
    /// Whether kernels are fused, and selected by timing them.
    pub tuned: bool,
    /// Folder in which the selected kernels are kept: [`kernels_dir`].
    pub kernels: Option<PathBuf>,
    /// Number type of the LLM.
    pub precision: Precision,
    /// The run's first optimiser steps on the device, at the peak learning rate and without the
    /// adapter's dropout.
    pub steps: Vec<WarmStep>,
    /// Steps on the CPU; empty where a Q-Former has dropout, which each device draws differently.
    pub cpu: Vec<WarmStep>,
    /// The largest difference between the two, of a loss or a gradient norm, as a share of the
    /// CPU's; null without a comparison.
    pub max_relative_difference: Option<f64>,
    /// The largest difference that passes.
    pub tolerance: f64,
    /// Seconds of ranking validation windows with the untrained model; null for a run that ranks
    /// none.
    pub ranking_seconds: Option<f64>,
    /// Whether the difference is within the tolerance; null without a comparison.
    pub passed: Option<bool>,
}

/// An optimiser step.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct WarmStep {
    /// Loss before the step.
    pub loss: f64,
    /// Global norm of the gradient, before it is clipped.
    pub grad_norm: f64,
    /// Seconds of the step, with the compiling and tuning of kernels.
    pub seconds: f64,
}

/// Ranks a few windows and takes the run's first steps on a GPU, then takes the same steps on the
/// CPU. It makes no run directory.
///
/// # Errors
/// A CPU, which has no kernels to select; all errors of [`crate::commands::train`] about a run
/// file.
pub fn warm(config: &RunConfig, backend: BackendChoice, interrupter: Interrupter) -> Result<WarmReport> {
    if backend.name == BackendName::Cpu {
        return Err(Error::usage(
            "--warm is for GPUs, the CPU has no kernels to compile or tune: name --backend wgpu or cuda",
        ));
    }
    let cpu = BackendName::Cpu.device().map_err(|_| no_cpu())?;
    let device = verified_device(&backend)?;
    let mut config = config.clone();
    // Each device draws its own dropout.
    config.llm.lora.dropout = 0.0;
    config.train.warmup_steps = 0;
    config.train.valid_windows = WINDOWS;
    let name = backend.name;
    let options = TrainOptions::dry(backend, interrupter);
    let advice = || "while the run was warmed: lower train.micro_batch_tokens or decode.beams".to_string();
    let warmed = || {
        let rounds = products_round(config.llm.precision, &device);
        Ok((first_steps(&config, &options, &device, true)?, rounds))
    };
    let (FirstSteps { steps: warmed, comparable, ranking_seconds }, rounds) =
        DeviceGuard::new().run(|| catch_out_of_memory(&options.backend, advice, warmed))?;
    let cpu = if comparable { first_steps(&config, &options, &cpu, false)?.steps } else { Vec::new() };
    let tolerance = if rounds { ROUNDED_TOLERANCE } else { TOLERANCE };
    let max_relative_difference = largest_difference(&warmed, &cpu);
    Ok(WarmReport {
        backend: name,
        tuned: TUNED,
        kernels: kernels_dir(),
        precision: config.llm.precision,
        passed: max_relative_difference.map(|difference| difference <= tolerance),
        steps: warmed,
        cpu,
        max_relative_difference,
        tolerance,
        ranking_seconds,
    })
}

impl WarmReport {
    /// Returns an error if the device's numbers differ from the CPU's.
    ///
    /// # Errors
    /// A run whose numbers on the device differ from the CPU's.
    pub fn verdict(&self) -> Result<()> {
        if self.passed != Some(false) {
            return Ok(());
        }
        let (name, difference) = (self.backend, self.max_relative_difference.unwrap_or(f64::NAN));
        let advice =
            if self.tuned { "take a build without the feature `tuned`, or" } else { "do not use it for this run, or" };
        Err(Error::failed(format!(
            "{name}: the losses and gradient norms of the run's first {} steps are {difference:.1e} from the CPU's, \
             more than {:e}; {advice} update \
             its driver",
            self.steps.len(),
            self.tolerance
        )))
    }
}

struct FirstSteps {
    steps: Vec<WarmStep>,
    /// Whether another device's steps must equal these.
    comparable: bool,
    ranking_seconds: Option<f64>,
}

fn first_steps(config: &RunConfig, options: &TrainOptions, device: &DispatchDevice, rank: bool) -> Result<FirstSteps> {
    let interrupted = || Error::failed("interrupted");
    let inputs = RunInputs::open(config, None, device)?;
    let comparable = inputs.entities.as_ref().is_none_or(|entities| !entities.identity.encoder.has_dropout());
    let PreparedRun { model, run, .. } =
        PreparedRun::open(config, options, inputs, None, std::slice::from_ref(device))?;
    let mut ranking_seconds = None;
    if let Some(validate) = run.validate.as_ref().filter(|_| rank) {
        let started = Instant::now();
        validate(&[model.valid()])?.ok_or_else(interrupted)?;
        ranking_seconds = Some(started.elapsed().as_secs_f64());
    }
    let steps = crate::train::profile(model, run, 0, STEPS)?;
    if steps.len() < STEPS {
        return Err(interrupted());
    }
    let step = |step: &ProfiledStep| WarmStep {
        loss: step.output.loss,
        grad_norm: step.grad_norm,
        seconds: step.recorded.seconds.sum(),
    };
    Ok(FirstSteps { steps: steps.iter().map(step).collect(), comparable, ranking_seconds })
}

fn largest_difference(found: &[WarmStep], expected: &[WarmStep]) -> Option<f64> {
    let pairs = found.iter().zip(expected);
    let differences = pairs.flat_map(|(a, b)| [(a.loss, b.loss), (a.grad_norm, b.grad_norm)]);
    differences.map(|(a, b)| (a - b).abs() / b.abs()).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_differs_is_one_line() {
        let step = |loss, grad_norm| WarmStep { loss, grad_norm, seconds: 1.0 };
        let cpu = [step(2.0, 0.5), step(1.5, 0.25)];
        assert_eq!(largest_difference(&[step(2.0, 0.5), step(1.5, 0.375)], &cpu), Some(0.5));
        assert_eq!(largest_difference(&cpu, &[]), None);
        let report = WarmReport {
            backend: BackendName::Wgpu,
            tuned: true,
            kernels: None,
            precision: Precision::F32,
            steps: cpu.to_vec(),
            cpu: cpu.to_vec(),
            max_relative_difference: Some(0.25),
            tolerance: TOLERANCE,
            ranking_seconds: None,
            passed: Some(false),
        };
        let error = report.verdict().unwrap_err();
        let expected = "wgpu: the losses and gradient norms of the run's first 2 steps are 2.5e-1 from the \
                        CPU's, more than 1e-3; take a build without the feature `tuned`, or update its \
                        driver";
        assert_eq!((error.exit_code(), error.to_string().as_str()), (1, expected));
        assert!(WarmReport { passed: Some(true), ..report }.verdict().is_ok());
    }
}
