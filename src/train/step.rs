//! The model and its loss as burn-train's `TrainStep`: one call is one optimiser step, however many
//! micro-batches it takes, on however many devices.

use std::collections::VecDeque;
use std::slice;
use std::sync::PoisonError;

use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};

use super::data_parallel::{assign_micro_batches, reduce_gradients};
use crate::batch::Batch;
use crate::core::profiler;
use crate::core::profiler::{Part, Pass};
use crate::loss::{
    AdaptiveTemperature, Loss, RootStatistics, linear_cross_entropy, linear_cross_entropy_value, with_prior,
};
use crate::model::{ItemLanguageModel, SharedPrefix};
use crate::tensor::AUTODIFF;

/// An LLM that trains on a loss.
#[derive(Module, Debug)]
pub struct TrainableModel<B: Backend> {
    /// The language model, items and users included.
    pub model: ItemLanguageModel<B>,
    /// What it minimises.
    #[module(skip)]
    pub loss: Loss,
    /// The temperature of [`Loss::Msl`].
    pub fixed_temperature: f64,
    /// The root's children (m of ATS).
    pub root_children: usize,
}

/// One optimiser step's work.
#[derive(Debug, Clone)]
pub struct Step {
    /// The micro-batches.
    pub batches: Vec<Batch>,
    /// The moving average that the step before left.
    pub temperature: AdaptiveTemperature,
    /// Of dropout; a micro-batch's own seed is drawn from it.
    pub seed: u64,
}

/// What an optimiser step or a validation found.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepOutput {
    /// The loss over the whole step, as its kind's reduction says.
    pub loss: f64,
    /// The temperature it was computed at.
    pub temperature: AdaptiveTemperature,
    /// Tokens run.
    pub tokens: usize,
    /// Tokens that the same examples are side by side and whole.
    pub plain_tokens: usize,
    /// Before clipping; of a training step.
    pub grad_norm: f64,
    /// Of a training step.
    pub tokens_per_second: f64,
    /// Of a validation that ranks.
    pub ndcg_at_10: Option<f64>,
}

impl ItemLazy for StepOutput {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

impl<B: Backend> TrainableModel<B> {
    /// Logits `[predictions, rows]` of a batch that predicts something, its prior added.
    pub fn logits(&self, batch: &Batch) -> Tensor<B, 2> {
        with_prior(self.hidden(batch).matmul(self.head(batch).transpose()), batch)
    }

    /// `[predictions, hidden]`: the states that a batch predicts from.
    fn hidden(&self, batch: &Batch) -> Tensor<B, 2> {
        self.predicting(self.model.forward_trees(&batch.token_trees), batch)
    }

    /// Of the nodes' states, `[nodes, hidden]`, those that a batch predicts from.
    fn predicting(&self, hidden: Tensor<B, 2>, batch: &Batch) -> Tensor<B, 2> {
        hidden.select(0, self.indices(batch.predictions.iter().map(|p| p.hidden_index as i32).collect()))
    }

    /// `[rows, hidden]`: the rows of the output projection that a batch scores.
    fn head(&self, batch: &Batch) -> Tensor<B, 2> {
        let head = self.model.llm.head();
        match &batch.candidate_ids {
            None => head,
            Some(rows) => head.select(0, self.indices(rows.iter().map(|&t| t as i32).collect())),
        }
    }

    fn indices(&self, values: Vec<i32>) -> Tensor<B, 1, Int> {
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &self.model.device())
    }

    /// With the chain run, as far as the model's prefix does not stand for it.
    fn below(&self, chain: &[u32]) -> Self {
        Self { model: self.model.clone().with_prefix_cache(chain), ..*self }
    }
}

/// The beginning that the chains of all `batches` share.
fn common_chain<'a>(batches: &[&'a Batch]) -> &'a [u32] {
    let Some(first) = batches.first() else { return &[] };
    let first = first.token_trees.shared_prefix.as_slice();
    let common = |chain: &[u32]| chain.iter().zip(first).take_while(|(a, b)| a == b).count();
    &first[..batches.iter().map(|batch| common(&batch.token_trees.shared_prefix)).min().unwrap_or(0)]
}

/// Tokens run, the common `chain` once a device.
fn run_tokens(batches: &[&Batch], chain: &[u32], devices: usize) -> usize {
    batches.iter().map(|batch| batch.token_trees.run_tokens() - chain.len()).sum::<usize>() + devices * chain.len()
}

fn root_statistics<B: Backend>(logits: Tensor<B, 2>, batch: &Batch, statistics: &mut RootStatistics) {
    let values = logits.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
    if values.len() == batch.predictions.len() * batch.candidate_ids.as_ref().map_or(0, Vec::len) {
        statistics.add(&values, batch);
    }
}

/// What one device does of a step.
struct DeviceShard<'a, B: AutodiffBackend> {
    model: &'a TrainableModel<B>,
    rooted: ItemLanguageModel<B>,
    root: SharedPrefix<B>,
    grads: GradientsAccumulator<TrainableModel<B>>,
}

impl<B: AutodiffBackend> DeviceShard<'_, B> {
    /// Its gradients, those through the chain included.
    fn finish(self) -> GradientsParams {
        let Self { model, root, mut grads, .. } = self;
        root.backward(&model.model, &mut |more| grads.accumulate(model, GradientsParams::from_grads(more, model)));
        grads.grads()
    }
}

/// Gradients of the loss of the whole step, on the device of the first of `models`: each
/// micro-batch's sum is divided by the whole step's denominator, so the split makes no difference
/// but in what dropout draws. The chain that all micro-batches begin with is run once on each
/// device ([`ItemLanguageModel::with_shared_prefix`]), and draws the same dropout on all.
///
/// The adaptive temperature is one for the step (papers.md A2) and is needed before the first
/// gradient. With one micro-batch its statistics come from the same forward pass; with several,
/// from a forward pass over all of them first, without dropout and without a graph, which costs
/// about a third of a step more.
///
/// This thread alone drives all devices ([`AUTODIFF`] says why; burn-train's own strategies run a
/// thread a device). GPUs work on what is queued while it goes on to the next device, so nothing is
/// read from a device before all have their work.
///
/// * `models`: one, or copies of it on several devices ([`ItemLanguageModel::clone_to_device`]);
///   micro-batches are dealt to them by their tokens.
///
/// # Panics
/// Without a model.
pub fn train_step<B: AutodiffBackend>(models: &[TrainableModel<B>], step: Step) -> TrainOutput<StepOutput> {
    let _one_graph = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
    let batches: Vec<&Batch> = step.batches.iter().filter(|b| !b.predictions.is_empty()).collect();
    let chain = common_chain(&batches);
    let seed = |part: usize| step.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(part as u64);
    let Dealt { models, to } = dealt(models, &batches);
    let TrainableModel { loss: kind, fixed_temperature, root_children, .. } = models[0];

    let mut statistics = RootStatistics::default();
    let mut temperature = step.temperature;
    let adaptive = *kind == Loss::MslAts;
    let adapts = adaptive && AdaptiveTemperature::adapts(*root_children);
    if adapts && batches.len() > 1 {
        let plain: Vec<_> = models.iter().map(|model| model.valid().below(chain)).collect();
        let mut waiting = VecDeque::new();
        for (index, (&batch, &device)) in batches.iter().zip(&to).enumerate() {
            if profiler::is_on() {
                profiler::count(models[device].model.flops(batch, index > 0).only(Pass::Forward));
            }
            waiting.push_back((plain[device].logits(batch), batch));
            // As many at work as there are devices: more would hold the logits of the whole step.
            if waiting.len() > models.len() - 1
                && let Some((logits, batch)) = waiting.pop_front()
            {
                root_statistics(logits, batch, &mut statistics);
            }
        }
        waiting.into_iter().for_each(|(logits, batch)| root_statistics(logits, batch, &mut statistics));
        temperature.step(&statistics, *root_children);
    }

    let denominator = kind.denominator(&step.batches).max(1) as f64;
    let shares = models.iter().map(|&model| {
        let (rooted, root) = model.model.with_shared_prefix(chain, seed(0));
        DeviceShard { model, rooted, root, grads: GradientsAccumulator::new() }
    });
    let mut shares: Vec<DeviceShard<B>> = shares.collect();
    let mut losses = Vec::with_capacity(batches.len());
    for (index, (batch, &device)) in batches.iter().zip(&to).enumerate() {
        let DeviceShard { model, rooted, root, grads: accumulator } = &mut shares[device];
        if profiler::is_on() {
            profiler::count(model.model.flops(batch, index > 0));
        }
        let (nodes, backward) = rooted.train_trees(&batch.token_trees, seed(index + 1));
        let (hidden, head) = (model.predicting(nodes, batch), model.head(batch));
        if adapts && batches.len() == 1 {
            let logits = hidden.clone().inner().matmul(head.clone().inner().transpose());
            root_statistics(with_prior(logits, batch), batch, &mut statistics);
            temperature.step(&statistics, *root_children);
        }
        let tau = if adaptive { temperature.value } else { *fixed_temperature };
        let head_trains = model.model.llm.head().is_require_grad();
        let batch_loss = linear_cross_entropy(hidden, head, head_trains, batch, tau);
        let batch_loss = batch_loss.mul_scalar(kind.factor(tau) / denominator);
        losses.push(batch_loss.clone().inner());
        profiler::backward(|| {
            backward.run(rooted, batch_loss.backward(), &mut |mut grads| {
                profiler::begin(Part::Rest);
                root.take_gradients(&mut grads);
                accumulator.accumulate(*model, GradientsParams::from_grads(grads, *model));
            });
        });
    }
    let grads = profiler::backward(|| shares.into_iter().map(DeviceShard::finish).collect());
    profiler::begin(Part::Rest);
    let grads = reduce_gradients(models[0], grads);
    let loss = losses.into_iter().map(|loss| loss.into_scalar().elem::<f64>()).sum();
    if !adaptive {
        temperature = AdaptiveTemperature { value: *fixed_temperature };
    }
    let tokens = run_tokens(&batches, chain, models.len());
    let plain_tokens = step.batches.iter().map(|b| b.plain_tokens).sum();
    TrainOutput { grads, item: StepOutput { loss, temperature, tokens, plain_tokens, ..StepOutput::default() } }
}

/// The loss at the temperature in force, without dropout.
///
/// * `models`: as [`train_step`].
///
/// # Panics
/// Without a model.
pub fn validation_step<B: Backend>(models: &[TrainableModel<B>], step: Step) -> StepOutput {
    let batches: Vec<&Batch> = step.batches.iter().filter(|b| !b.predictions.is_empty()).collect();
    let chain = common_chain(&batches);
    let Dealt { models, to } = dealt(models, &batches);
    let TrainableModel { loss: kind, fixed_temperature, .. } = models[0];
    let tau = if *kind == Loss::MslAts { step.temperature.value } else { *fixed_temperature };
    let denominator = kind.denominator(&step.batches).max(1) as f64;
    let rooted: Vec<_> = models.iter().map(|model| model.below(chain)).collect();
    let of_batch = |(batch, &device): (&&Batch, &usize)| {
        let model: &TrainableModel<B> = &rooted[device];
        linear_cross_entropy_value(model.hidden(batch), model.head(batch), batch, tau)
    };
    let losses: Vec<_> = batches.iter().zip(&to).map(of_batch).collect();
    let sum: f64 = losses.into_iter().map(|loss| loss.into_scalar().elem::<f64>()).sum();
    let tokens = run_tokens(&batches, chain, models.len());
    let loss = sum * kind.factor(tau) / denominator;
    StepOutput { loss, temperature: AdaptiveTemperature { value: tau }, tokens, ..StepOutput::default() }
}

/// Those of some models that get a micro-batch (the first in any case), and which of them each
/// micro-batch goes to.
struct Dealt<'a, B: Backend> {
    models: Vec<&'a TrainableModel<B>>,
    to: Vec<usize>,
}

fn dealt<'a, B: Backend>(models: &'a [TrainableModel<B>], batches: &[&Batch]) -> Dealt<'a, B> {
    let models: Vec<_> = models.iter().take(batches.len().max(1)).collect();
    let tokens: Vec<usize> = batches.iter().map(|batch| batch.token_trees.tokens.len()).collect();
    Dealt { to: assign_micro_batches(&tokens, models.len()), models }
}

impl<B: AutodiffBackend> TrainStep for TrainableModel<B> {
    type Input = Step;
    type Output = StepOutput;

    /// [`train_step`] on one device.
    fn step(&self, step: Step) -> TrainOutput<StepOutput> {
        train_step(slice::from_ref(self), step)
    }
}

impl<B: Backend> InferenceStep for TrainableModel<B> {
    type Input = Step;
    type Output = StepOutput;

    /// [`validation_step`] on one device.
    fn step(&self, step: Step) -> StepOutput {
        validation_step(slice::from_ref(self), step)
    }
}
