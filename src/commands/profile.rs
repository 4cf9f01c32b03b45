//! `itemlm train RUN.toml --profile`: the time of each part of a step.

use burn::train::Interrupter;
use serde::Serialize;

use crate::Result;
use crate::config::{Precision, RunConfig};
use crate::core::profiler::{Part, Pass, ProfileTotals};
use crate::device::{BackendChoice, BackendName, MatmulRate, matmul_rate};
use crate::run::inputs::RunInputs;
use crate::run::training::{PreparedRun, TrainOptions};
use crate::run::verified_devices::verified_device;

/// Number of steps before the measured ones: the first steps compile kernels and fill the
/// allocator's pages.
const WARM_UP: usize = 2;
/// Number of measured steps.
const STEPS: usize = 5;

/// The report of `train --profile --json`. Seconds, operations and tokens are means over the
/// measured steps.
#[derive(Debug, Clone, Serialize)]
pub struct ProfileReport {
    /// The backend of the run.
    pub backend: BackendName,
    /// Number type of the LLM.
    pub precision: Precision,
    /// Threads that the CPU backend uses (RAYON_NUM_THREADS).
    pub threads: usize,
    /// Number of steps before the measured ones.
    pub warm_up: usize,
    /// Number of measured steps.
    pub steps: usize,
    /// Windows or rows of a step.
    pub samples_per_step: f64,
    /// Seconds of a step, with the clock's waiting for the device.
    pub seconds_per_step: f64,
    /// Number of tokens that a step ran.
    pub tokens: f64,
    /// Number of tokens of the same prompts and titles without shared prefixes, as in a plain
    /// batch.
    pub plain_tokens: f64,
    /// Operations of a step's matrix products: [`crate::model::ItemLanguageModel::flops`].
    pub flops: f64,
    /// The fastest matrix product measured on this machine in this precision, as `doctor` measures
    /// it.
    pub peak: MatmulRate,
    /// Operations a second, as a share of the peak.
    pub share_of_peak: f64,
    /// The parts, in the order of a step.
    pub parts: Vec<PartTime>,
    /// Loss of each step, from the first on.
    pub losses: Vec<f64>,
    /// Peak memory of this process, bytes.
    pub peak_memory_bytes: u64,
    /// An option of the run file that this run cannot follow, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
}

/// A part of a step.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PartTime {
    /// Name of the part.
    pub part: Part,
    /// The pass; null for a part that has no backward pass.
    pub pass: Option<Pass>,
    /// Seconds of a step.
    pub seconds: f64,
    /// Share of the step's seconds.
    pub share: f64,
    /// Operations of a step.
    pub flops: f64,
    /// Operations a second, as a share of the peak; null without operations.
    pub share_of_peak: Option<f64>,
}

/// Takes the first steps of a run as training does, and measures the time of their parts. It makes
/// no run directory and saves nothing.
///
/// # Errors
/// All errors of [`crate::commands::train`] about a run file; an interrupt before a step was
/// measured.
pub fn profile(config: &RunConfig, backend: BackendChoice, interrupter: Interrupter) -> Result<ProfileReport> {
    let (name, device) = (backend.name, verified_device(&backend)?);
    let options = TrainOptions::dry(backend, interrupter);
    let inputs = RunInputs::open(config, None, &device)?;
    let started = PreparedRun::open(config, &options, inputs, None, std::slice::from_ref(&device))?;
    let steps = crate::train::profile(started.model, started.run, WARM_UP, STEPS)?;
    let peak = matmul_rate(&device, config.llm.precision.dtype())?;

    let measured = &steps[WARM_UP..];
    let mean = |sum: f64| sum / measured.len() as f64;
    let mut sum = ProfileTotals::default();
    for step in measured {
        sum.seconds += step.recorded.seconds;
        sum.flops += step.recorded.flops;
    }
    let total = sum.seconds.sum();
    let rate = |flops: f64, seconds: f64| flops / seconds / (peak.gflops * 1e9);
    let part = |(part, pass): (Part, Option<Pass>)| {
        let of = |parts: &crate::core::profiler::Parts| match pass {
            Some(pass) => parts.get(part, pass),
            None => parts.get(part, Pass::Forward) + parts.get(part, Pass::Backward),
        };
        let (seconds, flops) = (of(&sum.seconds), of(&sum.flops));
        let share_of_peak = (flops > 0.0).then(|| rate(flops, seconds));
        PartTime { part, pass, seconds: mean(seconds), share: seconds / total, flops: mean(flops), share_of_peak }
    };
    let passes = |part: Part| match part {
        Part::Data | Part::Optimizer | Part::Rest => vec![(part, None)],
        _ => vec![(part, Some(Pass::Forward)), (part, Some(Pass::Backward))],
    };
    let flops = sum.flops.sum();
    Ok(ProfileReport {
        backend: name,
        precision: config.llm.precision,
        threads: rayon::current_num_threads(),
        warm_up: WARM_UP,
        steps: measured.len(),
        samples_per_step: mean(measured.iter().map(|step| step.samples as f64).sum()),
        seconds_per_step: mean(total),
        tokens: mean(measured.iter().map(|step| step.output.tokens as f64).sum()),
        plain_tokens: mean(measured.iter().map(|step| step.output.plain_tokens as f64).sum()),
        flops: mean(flops),
        peak,
        share_of_peak: rate(flops, total),
        parts: Part::ALL.into_iter().flat_map(passes).map(part).collect(),
        losses: steps.iter().map(|step| step.output.loss).collect(),
        peak_memory_bytes: crate::core::system::peak_bytes(),
        notice: started.notice,
    })
}
