//! `itemlm train RUN.toml --plan`: what a run needs of memory, counted from sizes and from its own
//! prompts.

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

/// Samples of the first epoch that are tokenised: of a larger epoch the rest is taken to be alike.
const SAMPLES: usize = 2048;

/// What `train --plan --json` prints. Bytes are those of the CPU backend, whatever is asked for:
/// other devices run some operations as several, and keep more.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// Where it would run.
    pub backend: BackendName,
    /// What the LLM computes in.
    pub precision: Precision,
    /// Numbers.
    pub parameters: ParameterCount,
    /// Of the model.
    pub weights: WeightBytes,
    /// AdamW's two moments.
    pub optimizer_bytes: u64,
    /// What the process holds beside: program, corpus, titles, tokenizer. As now; 0 for a device of
    /// its own memory, and where the system does not tell.
    pub program_bytes: u64,
    /// Optimiser steps of an epoch, and those of the first one that were looked at.
    pub steps_per_epoch: usize,
    /// See `steps_per_epoch`.
    pub steps_planned: usize,
    /// `train.gradient_checkpointing`
    pub gradient_checkpointing: bool,
    /// `train.micro_batch_tokens`; null where `train.micro_batch_size` cuts.
    pub micro_batch_tokens: Option<usize>,
    /// The micro-batch that needs most.
    pub step: StepBytes,
    /// Between steps, in the same place: the optimiser, and the copy of its state that a checkpoint
    /// is made of.
    pub between_steps_bytes: u64,
    /// Ranking of the validation windows, where they are ranked.
    pub ranking: Option<RankingBytes>,
    /// What the allocator keeps and nothing uses, as measured; 0 for a device of its own memory.
    pub allocator_bytes: u64,
    /// The most that the run holds.
    pub peak_bytes: u64,
    /// What a run may have.
    pub memory: Memory,
    /// Whether the peak fits; null where the memory is not known, and on other devices than the CPU
    /// where the CPU's count would fit.
    pub fits: Option<bool>,
    /// The largest micro-batches that fit (on other devices than the CPU: none larger does),
    /// without and with gradient checkpointing; null where the memory is not known.
    pub largest: Option<[LargestMicroBatch; 2]>,
}

/// Counts what a run would hold; of several devices, on the first, whose micro-batches may be cut
/// finer yet. It makes no run directory, and reads no weights but for their digest.
///
/// # Errors
/// All that [`crate::commands::train`] refuses of a run file before it loads the model.
pub fn plan(config: &RunConfig, backend: BackendChoice) -> Result<PlanReport> {
    // wgpu tells its adapters only before it has a device.
    let memory = memory::device_memory(&backend)?;
    let (name, devices) = (backend.name, verified_devices(&backend)?);
    let device = &devices[0];
    check_precision(config.llm.precision, device)?;
    config.llm.check_trainable()?;
    let options = TrainOptions::dry(backend, Interrupter::new());
    let RunInputs { ranking, llama, weights, quantized, entities, prompt_sets, text_tasks, .. } =
        RunInputs::open(config, None, device)?;
    // Its file is mapped into memory as far as it was read.
    drop(weights);
    let encoder = entities.map(|entities| entities.identity.encoder);
    let ranking = Rc::new(ranking);
    let data = match text_tasks {
        Some(tasks) => tasks.training_data(config, &ranking)?,
        None => training_windows(config, &ranking, &prompt_sets, &options)?,
    };
    let sizes = memory::estimator(config, &llama, quantized, encoder.as_ref(), &ranking);
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
            // It takes no less than the CPU.
            false => memory.bytes.filter(|&available| peak_bytes > available).map(|_| false),
        },
        largest: memory
            .bytes
            .map(|bytes| [false, true].map(|checkpointing| counted.largest_fitting(bytes, checkpointing))),
        memory,
    })
}
