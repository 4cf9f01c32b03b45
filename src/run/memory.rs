//! The memory that a run needs, estimated from sizes and from its own prompts.

use serde::Serialize;

use super::dataset::TrainingData;
use super::prompt_context::PromptContext;
use crate::Result;
use crate::batch::{Batch, Candidates, Example};
use crate::config::{MicroBatch, RunConfig, Scoring};
use crate::core::system;
use crate::decode::{TOKENS_PER_BEAM, common_prefix, prompts_per_pass};
use crate::device::{BackendChoice, BackendName};
use crate::loss::{Loss, LossContext, TokenLoss};
use crate::model::{DecoderConfig, ItemEncoderConfig, QuantizedSize, Tune};
use crate::text::{Catalogue, EntityTokens, ROOT};
use crate::train::{MemoryEstimator, RankingBytes, StepBytes};

/// Number of steps that decide which micro-batch fits: those with most tokens.
const STEPS: usize = 4;
/// Granularity, in tokens, of the search for the largest micro-batch that fits.
const GRAIN: usize = 64;
/// The allocator's overhead: one in so many bytes of the memory in use. mimalloc keeps freed pages
/// (main.rs), cut to what was there before: a sixth, measured over micro-batches of 500 to 2,000
/// tokens with and without gradient checkpointing.
const ALLOCATOR: u64 = 6;

/// A device's memory, if it is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// Bytes that a run may use.
    pub bytes: Option<u64>,
    /// Name of that memory, or why it is unknown.
    pub of: String,
    /// Largest tensor that the device allows, bytes, where it sets a limit.
    pub largest_tensor_bytes: Option<u64>,
}

/// A micro-batch that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LargestMicroBatch {
    /// Whether with `train.gradient_checkpointing`.
    pub gradient_checkpointing: bool,
    /// `train.micro_batch_tokens`; null if not even a single sample fits.
    pub micro_batch_tokens: Option<usize>,
    /// Whether that is a whole optimiser step.
    pub whole_step: bool,
    /// Peak memory of the run with it, bytes.
    pub peak_bytes: u64,
}

/// Returns the estimator of the memory that a run's model takes.
pub(crate) fn estimator<'a>(
    config: &'a RunConfig,
    decoder: &'a DecoderConfig,
    quantized: Option<QuantizedSize>,
    encoder: Option<&'a ItemEncoderConfig>,
    ranking: &PromptContext,
) -> MemoryEstimator<'a> {
    let entities = ranking.entities.map_or(0, |_| ranking.corpus.items.len() + ranking.corpus.users());
    MemoryEstimator {
        decoder,
        tune: Tune::training(&config.llm, config.seed),
        precision: config.llm.precision,
        quantized,
        encoder,
        entities,
    }
}

/// Returns a warning where a run on the CPU is likely not to fit into memory.
pub(crate) fn warning(
    config: &RunConfig,
    sizes: MemoryEstimator,
    ranking: &PromptContext,
    data: &TrainingData,
    backend: &BackendChoice,
) -> Result<Option<String>> {
    if backend.name != BackendName::Cpu {
        return Ok(None);
    }
    let memory = device_memory(backend)?;
    let counted = RunMemory::new(config, sizes, ranking, data, true, config.train.batch_size)?;
    let step = counted.largest(config.train.micro_batch(), config.train.gradient_checkpointing, STEPS);
    // The memory that the process already holds is no longer available.
    let more = counted.peak(&step).saturating_sub(counted.program);
    Ok(memory.bytes.filter(|&available| available < more).map(|available| {
        format!(
            "this run may take {} MiB of memory, and {} MiB is {}; `train` can plan it: what it takes memory for, and \
             what fits",
            more >> 20,
            available >> 20,
            memory.of
        )
    }))
}

/// The memory needs of a run, and the first epoch's optimiser steps.
pub(crate) struct RunMemory<'a> {
    sizes: MemoryEstimator<'a>,
    /// `[steps][samples][examples]`: the steps with most tokens first.
    pub steps: Vec<Vec<Vec<Example>>>,
    candidates: Candidates,
    catalogue: &'a Catalogue,
    entities: Option<EntityTokens>,
    pub ranking: Option<RankingBytes>,
    /// Resident bytes of the process at present.
    pub program: u64,
    /// Whether the model is in this machine's memory.
    pub on_host: bool,
}

impl<'a> RunMemory<'a> {
    /// Lays out the first steps of a run.
    ///
    /// * `samples`: how many are tokenised, at least.
    pub fn new(
        config: &RunConfig,
        sizes: MemoryEstimator<'a>,
        ranking: &'a PromptContext,
        data: &TrainingData,
        on_host: bool,
        samples: usize,
    ) -> Result<Self> {
        let ranks = data.validate.is_some();
        Ok(Self {
            sizes,
            steps: first_steps(data, samples)?,
            candidates: Loss::new(&config.loss, &LossContext::new(&ranking.catalogue, config.decode.beams))
                .candidates(),
            catalogue: &ranking.catalogue,
            entities: ranking.entities,
            ranking: ranks.then(|| ranking_bytes(config, &sizes, &ranking.catalogue, &data.valid)),
            program: if on_host { system::resident_bytes().unwrap_or(0) } else { 0 },
            on_host,
        })
    }

    /// Returns the estimate of that one of the first `steps` steps that needs most.
    pub fn largest(&self, micro: MicroBatch, gradient_checkpointing: bool, steps: usize) -> StepBytes {
        let of = |samples: &Vec<Vec<Example>>| {
            let batches = micro.batches(samples.clone(), self.catalogue, self.candidates);
            let batches: Vec<Batch> = batches.into_iter().filter(|batch| !batch.predictions.is_empty()).collect();
            self.sizes.step(&batches, self.entities, gradient_checkpointing)
        };
        self.steps.iter().take(steps).map(of).max_by_key(StepBytes::total).unwrap_or_default()
    }

    /// Returns the bytes of the model and of a step's tensors.
    fn step_bytes(&self, step: &StepBytes) -> u64 {
        let ranking = self.ranking.map_or(0, |ranking| ranking.cache + ranking.temporary);
        let held = self.sizes.weights().total() + self.sizes.optimizer();
        held + step.total().max(self.sizes.between_steps()).max(ranking)
    }

    pub fn allocator(&self, step: &StepBytes) -> u64 {
        if self.on_host { self.step_bytes(step) / ALLOCATOR } else { 0 }
    }

    pub fn peak(&self, step: &StepBytes) -> u64 {
        self.program + self.step_bytes(step) + self.allocator(step)
    }

    pub fn largest_fitting(&self, available: u64, gradient_checkpointing: bool) -> LargestMicroBatch {
        let of = |micro: MicroBatch| self.peak(&self.largest(micro, gradient_checkpointing, STEPS));
        let tokens = |samples: &Vec<Vec<Example>>| {
            let whole = MicroBatch::Samples(usize::MAX).batches(samples.clone(), self.catalogue, self.candidates);
            whole.iter().map(|batch| batch.token_trees.tokens.len()).sum::<usize>()
        };
        let whole = self.steps.iter().take(STEPS).map(tokens).max().unwrap_or(1);
        let (micro_batch_tokens, whole_step) =
            largest_fitting(whole, |tokens| of(MicroBatch::Tokens(tokens)) <= available);
        let peak_bytes = of(MicroBatch::Tokens(micro_batch_tokens.unwrap_or(1)));
        LargestMicroBatch { gradient_checkpointing, micro_batch_tokens, whole_step, peak_bytes }
    }
}

/// Returns the first steps: at least one, and as many as have so many samples.
fn first_steps(data: &TrainingData, most: usize) -> Result<Vec<Vec<Vec<Example>>>> {
    let mut steps = Vec::new();
    let mut taken = 0;
    for samples in (data.train.epoch)(0) {
        if taken >= most {
            break;
        }
        taken += samples.len();
        steps.push(samples.into_iter().map(|sample| (data.train.examples)(sample)).collect::<Result<Vec<_>>>()?);
    }
    let tokens = |step: &Vec<Vec<Example>>| step.iter().flatten().map(|example| example.prompt.len()).sum::<usize>();
    steps.sort_by_key(|step| std::cmp::Reverse(tokens(step)));
    Ok(steps)
}

/// Returns the largest number, at most `most`, that `fits`, in steps of [`GRAIN`], and whether it
/// is `most`.
fn largest_fitting(most: usize, fits: impl Fn(usize) -> bool) -> (Option<usize>, bool) {
    if fits(most) {
        return (Some(most), true);
    }
    if !fits(1) {
        return (None, false);
    }
    // In grains: `low` fits, `high` does not.
    let (mut low, mut high) = (0, most.div_ceil(GRAIN));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle * GRAIN) { low = middle } else { high = middle }
    }
    (Some((low * GRAIN).max(1)), false)
}

/// Returns the bytes of ranking the longest prompts, which run first and together.
fn ranking_bytes(
    config: &RunConfig,
    sizes: &MemoryEstimator,
    catalogue: &Catalogue,
    valid: &[Example],
) -> RankingBytes {
    let prompts: Vec<Vec<u32>> = valid.iter().map(|example| example.prompt.clone()).collect();
    let shared = common_prefix(&prompts).len();
    let mut lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len() - shared).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.truncate(prompts_per_pass(lengths.first().unwrap_or(&0) + TOKENS_PER_BEAM * config.decode.beams));
    let scored = match config.decode.scoring {
        Scoring::Masked => catalogue.trie.valid_tokens(ROOT).len(),
        Scoring::Full => sizes.decoder.vocab_size,
    };
    sizes.ranking(&lengths, shared, config.decode.beams, TOKENS_PER_BEAM, scored)
}

/// Returns the memory of the device on which a run would be.
pub(crate) fn device_memory(backend: &BackendChoice) -> Result<Memory> {
    if backend.name == BackendName::Cpu {
        let limit = system::limit_bytes();
        let known = [system::available_bytes(), limit].into_iter().flatten().min();
        let of = match known {
            None => "the system does not report its memory",
            bytes if bytes == limit => "the limit on this container",
            _ => "available on this machine now",
        };
        return Ok(Memory { bytes: known, of: of.into(), largest_tensor_bytes: None });
    }
    let adapter = backend.adapter()?;
    let of = match adapter.memory_bytes {
        Some(_) => adapter.name.clone(),
        None => format!("{}, whose memory {} does not tell", adapter.name, adapter.api),
    };
    Ok(Memory { bytes: adapter.memory_bytes, of, largest_tensor_bytes: adapter.largest_buffer_bytes })
}
