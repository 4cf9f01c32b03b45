//! `itemlm train RUN.toml --plan`: what a run needs of memory, counted from sizes and from its own
//! prompts.

use std::rc::Rc;

use burn::train::Interrupter;
use serde::Serialize;

use super::TrainOptions;
use super::train::{TrainingData, lessons, loss, refuse_f16, tune};
use crate::Result;
use crate::batch::{Batch, Candidates, Example};
use crate::config::{MicroBatch, Precision, RunConfig, Scoring};
use crate::core::system;
use crate::decode::{TOKENS_PER_BEAM, common_prefix, prompts_per_pass};
use crate::device::{BackendChoice, BackendName};
use crate::model::{DecoderConfig, EncoderConfig, QuantizedSize};
use crate::run::prompt_context::PromptContext;
use crate::run::run_dir::RunInputs;
use crate::run::verified_devices::verified_devices;
use crate::text::{Catalogue, EntityTokens, ROOT};
use crate::train::{MemoryEstimator, ParameterCount, RankingBytes, StepBytes, WeightBytes};

/// Samples of the first epoch that are tokenised: of a larger epoch the rest is taken to be alike.
const SAMPLES: usize = 2048;
/// Of their steps, those with most tokens tell which micro-batch fits.
const STEPS: usize = 4;
/// In so many tokens the largest micro-batch is told.
const GRAIN: usize = 64;
/// mimalloc keeps freed pages (main.rs), cut to what was there before: of what is in use a sixth
/// more, measured over micro-batches of 500 to 2,000 tokens with and without gradient
/// checkpointing.
const ALLOCATOR: u64 = 6;

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

/// A device's memory, as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// What a run may have of it.
    pub bytes: Option<u64>,
    /// Which memory that is, or why it is not known.
    pub of: String,
    /// The largest tensor that the device takes, where it sets a limit.
    pub largest_tensor_bytes: Option<u64>,
}

/// A micro-batch that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LargestMicroBatch {
    /// With `train.gradient_checkpointing`?
    pub gradient_checkpointing: bool,
    /// `train.micro_batch_tokens`; null where not even a sample at a time fits.
    pub micro_batch_tokens: Option<usize>,
    /// Whether that is a whole optimiser step.
    pub whole_step: bool,
    /// The most that the run then holds.
    pub peak_bytes: u64,
}

/// Counts what a run would hold; of several devices, on the first, whose micro-batches may be cut
/// finer yet. It makes no run directory, and reads no weights but for their digest.
///
/// # Errors
/// All that [`crate::commands::train`] refuses of a run file before it loads the model.
pub fn plan(config: &RunConfig, backend: BackendChoice) -> Result<PlanReport> {
    // wgpu tells its adapters only before it has a device.
    let memory = memory(&backend)?;
    let (name, devices) = (backend.name, verified_devices(&backend)?);
    let device = &devices[0];
    crate::run::precision(config.llm.precision, device)?;
    refuse_f16(config)?;
    let options = TrainOptions::dry(backend, Interrupter::new());
    let RunInputs { ranking, llama, weights, quantized, entities, prompt_sets, text_tasks, .. } =
        RunInputs::open(config, None, device)?;
    // Its file is mapped into memory as far as it was read.
    drop(weights);
    let encoder = entities.map(|entities| entities.identity.encoder);
    let ranking = Rc::new(ranking);
    let lessons = match text_tasks {
        Some(rows) => rows.lessons(config, &ranking)?,
        None => lessons(config, &ranking, &prompt_sets, &options)?,
    };
    let sizes = sizes(config, &llama, quantized, encoder.as_ref(), &ranking);
    let counted = Counted::new(config, sizes, &ranking, &lessons, name == BackendName::Cpu, SAMPLES)?;
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
        steps_per_epoch: lessons.train.steps_per_epoch,
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
        largest: memory.bytes.map(|bytes| [false, true].map(|checkpointing| counted.fitting(bytes, checkpointing))),
        memory,
    })
}

/// What decides how much memory a run's model takes.
pub(crate) fn sizes<'a>(
    config: &'a RunConfig,
    llama: &'a DecoderConfig,
    quantized: Option<QuantizedSize>,
    encoder: Option<&'a EncoderConfig>,
    ranking: &PromptContext,
) -> MemoryEstimator<'a> {
    let entities = ranking.entities.map_or(0, |_| ranking.corpus.items.len() + ranking.corpus.users());
    MemoryEstimator {
        decoder: llama,
        tune: tune(config),
        precision: config.llm.precision,
        quantized,
        encoder,
        entities,
    }
}

/// Where a run on the CPU is likely not to fit, how much it may take.
pub(crate) fn warning(
    config: &RunConfig,
    sizes: MemoryEstimator,
    ranking: &PromptContext,
    lessons: &TrainingData,
    backend: &BackendChoice,
) -> Result<Option<String>> {
    if backend.name != BackendName::Cpu {
        return Ok(None);
    }
    let memory = memory(backend)?;
    let counted = Counted::new(config, sizes, ranking, lessons, true, config.train.batch_size)?;
    let step = counted.largest(config.train.micro_batch(), config.train.gradient_checkpointing, STEPS);
    // What the process holds already is no longer available.
    let more = counted.peak(&step).saturating_sub(counted.program);
    Ok(memory.bytes.filter(|&available| available < more).map(|available| {
        format!(
            "this run may take {} MiB of memory, and {} MiB is {}; train --plan tells what for, and what fits",
            more >> 20,
            available >> 20,
            memory.of
        )
    }))
}

/// A run's needs, and the first epoch's optimiser steps with how they are cut.
struct Counted<'a> {
    sizes: MemoryEstimator<'a>,
    /// Samples, each of some examples; the steps with most tokens first.
    steps: Vec<Vec<Vec<Example>>>,
    candidates: Candidates,
    catalogue: &'a Catalogue,
    entities: Option<EntityTokens>,
    ranking: Option<RankingBytes>,
    program: u64,
    on_host: bool,
}

impl<'a> Counted<'a> {
    /// * `samples`: how many are tokenised, at least.
    fn new(
        config: &RunConfig,
        sizes: MemoryEstimator<'a>,
        ranking: &'a PromptContext,
        lessons: &TrainingData,
        on_host: bool,
        samples: usize,
    ) -> Result<Self> {
        let ranks = lessons.validate.is_some();
        Ok(Self {
            sizes,
            steps: first_steps(lessons, samples)?,
            candidates: loss(config).0.candidates(),
            catalogue: &ranking.catalogue,
            entities: ranking.entities,
            ranking: ranks.then(|| ranking_bytes(config, &sizes, &ranking.catalogue, &lessons.valid)),
            program: if on_host { system::resident_bytes().unwrap_or(0) } else { 0 },
            on_host,
        })
    }

    /// Of the first `steps`, the one that needs most.
    fn largest(&self, micro: MicroBatch, gradient_checkpointing: bool, steps: usize) -> StepBytes {
        let of = |samples: &Vec<Vec<Example>>| {
            let batches = micro.batches(samples.clone(), self.catalogue, self.candidates);
            let batches: Vec<Batch> = batches.into_iter().filter(|batch| !batch.predictions.is_empty()).collect();
            self.sizes.step(&batches, self.entities, gradient_checkpointing)
        };
        self.steps.iter().take(steps).map(of).max_by_key(StepBytes::total).unwrap_or_default()
    }

    /// What the model holds, and the most that comes to it.
    fn used(&self, step: &StepBytes) -> u64 {
        let ranking = self.ranking.map_or(0, |ranking| ranking.cache + ranking.transient);
        let held = self.sizes.weights().total() + self.sizes.optimizer();
        held + step.total().max(self.sizes.between_steps()).max(ranking)
    }

    fn allocator(&self, step: &StepBytes) -> u64 {
        if self.on_host { self.used(step) / ALLOCATOR } else { 0 }
    }

    fn peak(&self, step: &StepBytes) -> u64 {
        self.program + self.used(step) + self.allocator(step)
    }

    fn fitting(&self, available: u64, gradient_checkpointing: bool) -> LargestMicroBatch {
        let of = |micro: MicroBatch| self.peak(&self.largest(micro, gradient_checkpointing, STEPS));
        let tokens = |samples: &Vec<Vec<Example>>| {
            let whole = MicroBatch::Samples(usize::MAX).batches(samples.clone(), self.catalogue, self.candidates);
            whole.iter().map(|batch| batch.token_trees.tokens.len()).sum::<usize>()
        };
        let whole = self.steps.iter().take(STEPS).map(tokens).max().unwrap_or(1);
        let (micro_batch_tokens, whole_step) =
            largest_that(whole, |tokens| of(MicroBatch::Tokens(tokens)) <= available);
        let peak_bytes = of(MicroBatch::Tokens(micro_batch_tokens.unwrap_or(1)));
        LargestMicroBatch { gradient_checkpointing, micro_batch_tokens, whole_step, peak_bytes }
    }
}

/// At least one step, and as many as have so many samples.
fn first_steps(lessons: &TrainingData, most: usize) -> Result<Vec<Vec<Vec<Example>>>> {
    let mut steps = Vec::new();
    let mut taken = 0;
    for samples in (lessons.train.epoch)(0) {
        if taken >= most {
            break;
        }
        taken += samples.len();
        steps.push(samples.into_iter().map(|sample| (lessons.train.examples)(sample)).collect::<Result<Vec<_>>>()?);
    }
    let tokens = |step: &Vec<Vec<Example>>| step.iter().flatten().map(|example| example.prompt.len()).sum::<usize>();
    steps.sort_by_key(|step| std::cmp::Reverse(tokens(step)));
    Ok(steps)
}

/// The largest number of at most `most` that `fits`, in steps of [`GRAIN`], and whether it is
/// `most`.
fn largest_that(most: usize, fits: impl Fn(usize) -> bool) -> (Option<usize>, bool) {
    if fits(most) {
        return (Some(most), true);
    }
    if !fits(1) {
        return (None, false);
    }
    // What fits, and what does not, in grains.
    let (mut low, mut high) = (0, most.div_ceil(GRAIN));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle * GRAIN) { low = middle } else { high = middle }
    }
    (Some((low * GRAIN).max(1)), false)
}

/// Of the longest prompts, which rank together first.
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

/// The memory of the device that a run would take.
fn memory(backend: &BackendChoice) -> Result<Memory> {
    if backend.name == BackendName::Cpu {
        let limit = system::limit_bytes();
        let known = [system::available_bytes(), limit].into_iter().flatten().min();
        let of = match known {
            None => "the system does not tell its memory",
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
