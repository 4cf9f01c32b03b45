//! `itemlm train RUN.toml --plan`: the memory that a run needs, estimated from sizes and from its
//! own prompts.

use std::rc::Rc;

use burn::train::Interrupter;
use serde::Serialize;

use crate::Result;
use crate::config::{Precision, RunConfig};
use crate::device::{BackendChoice, BackendName};
use crate::run::dataset::training_windows;
use crate::run::inputs::RunInputs;
use crate::run::memory::{self, LargestMicroBatch, Memory, RunMemory};
use crate::run::precision::check_precision;
use crate::run::training::TrainOptions;
use crate::run::verified_devices::verified_devices;
use crate::train::{ParameterCount, RankingBytes, StepBytes, WeightBytes};

/// Number of samples of the first epoch that are tokenised: of a larger epoch the rest is assumed
/// to be alike.
const SAMPLES: usize = 2048;

/// The report of `train --plan --json`. Bytes are those of the CPU backend, whichever backend is
/// chosen: other devices run some operations as several, and keep more.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The backend of the run.
    pub backend: BackendName,
    /// Number type of the LLM.
    pub precision: Precision,
    /// Number of parameters.
    pub parameters: ParameterCount,
    /// Bytes of the model's weights.
    pub weights: WeightBytes,
    /// Bytes of AdamW's two moments.
    pub optimizer_bytes: u64,
    /// Bytes that the process holds beside, at present: program, corpus, titles, tokenizer. 0 for a
    /// device with its own memory, and where the system does not tell.
    pub program_bytes: u64,
    /// Number of optimiser steps of an epoch.
    pub steps_per_epoch: usize,
    /// Number of steps of the first epoch that were estimated.
    pub steps_planned: usize,
    /// `train.gradient_checkpointing`
    pub gradient_checkpointing: bool,
    /// `train.micro_batch_tokens`; null with `train.micro_batch_size`.
    pub micro_batch_tokens: Option<usize>,
    /// The estimate of the micro-batch that needs most.
    pub step: StepBytes,
    /// Bytes between steps: the optimiser's step, or the copy of its state for a checkpoint.
    pub between_steps_bytes: u64,
    /// Ranking of the validation windows, if they are ranked.
    pub ranking: Option<RankingBytes>,
    /// Bytes that the allocator keeps unused, as measured; 0 for a device with its own memory.
    pub allocator_bytes: u64,
    /// Peak memory of the run, bytes.
    pub peak_bytes: u64,
    /// The memory that a run may use.
    pub memory: Memory,
    /// Whether the peak fits; null where the memory is unknown, and on other devices than the CPU
    /// where the CPU's estimate would fit.
    pub fits: Option<bool>,
    /// The largest micro-batches that fit (on other devices than the CPU: no larger one does),
    /// without and with gradient checkpointing; null where the memory is unknown.
    pub largest: Option<[LargestMicroBatch; 2]>,
}

/// Estimates the memory of a run; of several devices, on the first, whose micro-batches may be cut
/// still finer. It makes no run directory, and reads the weights only for their digest.
///
/// All errors of [`crate::commands::train`] about a run file before it loads the model.
pub fn plan(config: &RunConfig, backend: BackendChoice) -> Result<PlanReport> {
    // wgpu lists its adapters only before it has a device.
    let memory = memory::device_memory(&backend)?;
    let (name, devices) = (backend.name, verified_devices(&backend)?);
    let device = &devices[0];
    check_precision(config.llm.precision, device)?;
    config.llm.check_trainable()?;
    let options = TrainOptions::dry(backend, Interrupter::new());
    let RunInputs { ranking, decoder, weights, quantized, entities, prompt_sets, text_tasks, .. } =
        RunInputs::open(config, None, device)?;
    // Its file is mapped into memory as far as it was read.
    drop(weights);
    let encoder = entities.map(|entities| entities.identity.encoder);
    let ranking = Rc::new(ranking);
    let data = match text_tasks {
        Some(tasks) => tasks.training_data(config, &ranking)?,
        None => training_windows(config, &ranking, &prompt_sets, &options)?,
    };
    let sizes = memory::estimator(config, &decoder, quantized, encoder.as_ref(), &ranking);
    let counted = RunMemory::new(config, sizes, &ranking, &data, name == BackendName::Cpu, SAMPLES)?;
    let gradient_checkpointing = config.train.gradient_checkpointing;
    let step = counted.largest(config.train.micro_batch(), gradient_checkpointing, usize::MAX);
    let peak_bytes = counted.peak(&step);
    Ok(PlanReport {
        backend: name,
        precision: config.llm.precision,
        parameters: sizes.parameters(),
        weights: sizes.weights(),
        optimizer_bytes: sizes.optimizer(),
        program_bytes: counted.program,
        steps_per_epoch: data.train.steps_per_epoch,
        steps_planned: counted.steps.len(),
        gradient_checkpointing,
        micro_batch_tokens: config.train.micro_batch_tokens.filter(|_| config.train.micro_batch_size.is_none()),
        step,
        between_steps_bytes: sizes.between_steps(),
        ranking: counted.ranking,
        allocator_bytes: counted.allocator(&step),
        peak_bytes,
        fits: match counted.on_host {
            true => memory.bytes.map(|available| peak_bytes <= available),
            // Another device needs no less than the CPU.
            false => memory.bytes.filter(|&available| peak_bytes > available).map(|_| false),
        },
        largest: memory
            .bytes
            .map(|bytes| [false, true].map(|checkpointing| counted.largest_fitting(bytes, checkpointing))),
        memory,
    })
}
