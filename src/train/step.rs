//! Gradients of one optimiser step, for any number of micro-batches and devices.

use std::collections::VecDeque;
use std::sync::PoisonError;

use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::data_parallel::{assign_micro_batches, reduce_gradients};
use super::optimizer::scale_gradients;
use crate::Result;
use crate::batch::Batch;
use crate::core::profiler;
use crate::core::profiler::{Part, Pass};
use crate::loss::{
    LinearLoss, Loss, OutputHead, TokenLoss, add_logit_bias, linear_token_loss, linear_token_loss_value,
};
use crate::model::{ItemLanguageModel, SharedPrefix};
use crate::tensor::{AUTODIFF, indices, scalar, to_vec};

/// Inputs of one optimiser step.
#[derive(Debug, Clone)]
pub struct Step {
    /// The micro-batches.
    pub batches: Vec<Batch>,
    /// The loss, with the state after the step before.
    pub token_loss: Loss,
    /// Seed of dropout; a micro-batch's own seed is derived from it.
    pub seed: u64,
}

/// Output of an optimiser step or a validation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutput {
    /// The loss over the whole step, in its kind's reduction.
    pub loss: f64,
    /// The loss's settings, with the state after this step.
    pub token_loss: Loss,
    /// Number of tokens run.
    pub tokens: usize,
    /// Number of tokens of the same examples without shared prefixes.
    pub plain_tokens: usize,
}

impl<B: Backend> ItemLanguageModel<B> {
    /// Computes the logits of a batch that has predictions, with its factor and the prior's biases.
    ///
    /// # Shapes
    /// Output: `[predictions, columns]`; the columns are those of [`Batch::candidate_ids`].
    pub fn batch_logits(&self, batch: &Batch) -> Tensor<B, 2> {
        let hidden = self.predicting(self.forward_trees(&batch.token_trees), batch);
        add_logit_bias(self.batch_head(batch).logits(hidden), &batch.predictions)
    }

    /// Selects, of the hidden states of a batch's nodes (`[nodes, hidden]`), those that predictions
    /// are made from: `[predictions, hidden]`.
    fn predicting(&self, nodes: Tensor<B, 2>, batch: &Batch) -> Tensor<B, 2> {
        let hidden = batch.predictions.iter().map(|prediction| prediction.hidden_index);
        let hidden = indices(hidden, nodes.dims()[0], &nodes.device());
        nodes.select(0, hidden)
    }

    /// Selects the rows of the output projection that a batch scores: `[columns, hidden]`.
    fn batch_head(&self, batch: &Batch) -> OutputHead<B> {
        let head = self.llm.head();
        let weight = match &batch.candidate_ids {
            None => head,
            Some(ids) => head.select(0, self.llm.token_ids(ids.iter().copied())),
        };
        OutputHead { weight, soft_cap: self.llm.logit_soft_cap(), factor: batch.logit_factor }
    }
}

/// Micro-batches with predictions, each with the device that runs it.
struct AssignedBatches<'a> {
    batches: Vec<&'a Batch>,
    /// `[batches]`: index of a model.
    devices: Vec<usize>,
    /// Number of models that have work; at least 1.
    models: usize,
    /// The tokens with which all batches begin.
    prefix: &'a [u32],
}

impl<'a> AssignedBatches<'a> {
    fn new(batches: &'a [Batch], models: usize) -> Self {
        let batches: Vec<&Batch> = batches.iter().filter(|batch| !batch.predictions.is_empty()).collect();
        let models = models.min(batches.len().max(1));
        let tokens: Vec<usize> = batches.iter().map(|batch| batch.token_trees.tokens.len()).collect();
        let (devices, prefix) = (assign_micro_batches(&tokens, models), common_prefix(&batches));
        Self { batches, devices, models, prefix }
    }

    fn iter(&self) -> impl Iterator<Item = (&'a Batch, usize)> {
        self.batches.iter().copied().zip(self.devices.iter().copied())
    }

    /// Returns the number of tokens run: the common prefix once for each device.
    fn run_tokens(&self) -> usize {
        let prefix = self.prefix.len();
        self.batches.iter().map(|batch| batch.token_trees.run_tokens() - prefix).sum::<usize>() + self.models * prefix
    }
}

/// Returns the tokens with which the shared prefixes of all `batches` begin.
fn common_prefix<'a>(batches: &[&'a Batch]) -> &'a [u32] {
    let Some(first) = batches.first() else { return &[] };
    let first = first.token_trees.shared_prefix.as_slice();
    let common = |prefix: &[u32]| prefix.iter().zip(first).take_while(|(a, b)| a == b).count();
    &first[..batches.iter().map(|batch| common(&batch.token_trees.shared_prefix)).min().unwrap_or(0)]
}

/// One device's part of an optimiser step.
struct DeviceShard<'a, B: AutodiffBackend> {
    model: &'a ItemLanguageModel<B>,
    /// The model with the common prefix cached.
    with_prefix: ItemLanguageModel<B>,
    prefix: SharedPrefix<B>,
    grads: GradientsAccumulator<ItemLanguageModel<B>>,
}

impl<'a, B: AutodiffBackend> DeviceShard<'a, B> {
    fn new(model: &'a ItemLanguageModel<B>, prefix: &[u32], seed: u64) -> Self {
        let (with_prefix, prefix) = model.with_shared_prefix(prefix, seed);
        Self { model, with_prefix, prefix, grads: GradientsAccumulator::new() }
    }

    /// Runs a micro-batch forward and backward. Returns its loss over `denominator`.
    ///
    /// * `observe`: whether the loss gets the logits and updates its state first.
    fn micro_batch(
        &mut self,
        batch: &Batch,
        (loss, observe): (&mut Loss, bool),
        denominator: f64,
        seed: u64,
    ) -> Result<LinearLoss<B::InnerBackend>> {
        let Self { model, with_prefix, prefix, grads: sum } = self;
        let (nodes, backward) = with_prefix.train_trees(&batch.token_trees, seed);
        let (hidden, head) = (model.predicting(nodes, batch), model.batch_head(batch));
        if observe {
            let OutputHead { soft_cap, factor, .. } = head;
            let head = OutputHead { weight: head.weight.clone().inner(), soft_cap, factor };
            let logits = head.logits(hidden.clone().inner());
            loss.observe(&to_vec(add_logit_bias(logits, &batch.predictions), "logits")?, batch);
            loss.update();
        }
        let head_trains = model.llm.head().is_require_grad();
        let LinearLoss { loss, weight } = linear_token_loss(hidden, head, head_trains, batch, loss);
        let loss = loss.div_scalar(denominator);
        let value = loss.clone().inner();
        profiler::backward(|| {
            backward.run(with_prefix, loss.backward(), &mut |mut grads| {
                profiler::begin(Part::Rest);
                prefix.take_gradients(&mut grads);
                sum.accumulate(*model, GradientsParams::from_grads(grads, *model));
            });
        });
        Ok(LinearLoss { loss: value, weight: weight.map(Tensor::inner) })
    }

    /// Returns the gradients, those through the common prefix included.
    fn finish(self) -> GradientsParams {
        let Self { model, prefix, mut grads, .. } = self;
        prefix.backward(model, &mut |more| grads.accumulate(model, GradientsParams::from_grads(more, model)));
        grads.grads()
    }
}

/// Computes the gradients of the loss of the whole step, on the device of the first of `models`.
///
/// Each micro-batch's sum is divided by the whole step's denominator, so the split makes no
/// difference except for the random masks of dropout. The prefix with which all micro-batches begin
/// is run once on each device ([`ItemLanguageModel::with_shared_prefix`]), with the same dropout on
/// all.
///
/// A loss that needs all logits before the first gradient ([`TokenLoss::needs_logits`]) gets them
/// from the same forward pass if there is one micro-batch. With several, all are run forward first,
/// without dropout and without a graph, which costs about a third of a step more.
///
/// Only this thread drives the devices (see [`AUTODIFF`]; burn-train's own strategies run a thread
/// for each device). GPUs work through their queues while the thread goes on to the next device, so
/// nothing is read from a device before all have their work.
///
/// * `models`: one, or copies of it on several devices ([`ItemLanguageModel::clone_to_device`]);
///   micro-batches are assigned to them by their tokens.
///
/// # Errors
/// A device that failed.
///
/// # Panics
/// Without a model.
pub fn train_step<B: AutodiffBackend>(
    models: &[ItemLanguageModel<B>],
    step: Step,
) -> Result<(GradientsParams, StepOutput)> {
    let _one_graph = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
    let Step { batches, mut token_loss, seed } = step;
    let assigned = AssignedBatches::new(&batches, models.len());
    let models = &models[..assigned.models];
    let seed = |part: usize| seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(part as u64);
    let observe = token_loss.needs_logits();
    let at_once = observe && assigned.batches.len() == 1;
    if observe && !at_once {
        observe_all(models, &assigned, &mut token_loss)?;
    }

    let denominator = token_loss.denominator(&batches).max(1) as f64;
    let mut shards: Vec<_> = models.iter().map(|model| DeviceShard::new(model, assigned.prefix, seed(0))).collect();
    let mut losses = Vec::with_capacity(assigned.batches.len());
    for (index, (batch, device)) in assigned.iter().enumerate() {
        if profiler::is_on() {
            profiler::count(models[device].flops(batch, index > 0));
        }
        losses.push(shards[device].micro_batch(batch, (&mut token_loss, at_once), denominator, seed(index + 1))?);
    }
    let grads = profiler::backward(|| shards.into_iter().map(DeviceShard::finish).collect());
    profiler::begin(Part::Rest);
    let mut grads = reduce_gradients(&models[0], grads)?;
    let (sum, weight) = sums(losses)?;
    // The sum of the weights takes the denominator's place.
    let rescale = weight.map_or(1.0, |weight| denominator / weight);
    if rescale != 1.0 {
        scale_gradients(&models[0], &mut grads, rescale);
    }
    let plain_tokens = batches.iter().map(|batch| batch.plain_tokens).sum();
    let tokens = assigned.run_tokens();
    Ok((grads, StepOutput { loss: sum * rescale, token_loss, tokens, plain_tokens }))
}

/// Runs all micro-batches forward, without dropout and without a graph, for a loss that needs their
/// logits.
fn observe_all<B: AutodiffBackend>(
    models: &[ItemLanguageModel<B>],
    assigned: &AssignedBatches,
    loss: &mut Loss,
) -> Result<()> {
    let plain: Vec<_> = models.iter().map(|model| model.valid().with_prefix_cache(assigned.prefix)).collect();
    let mut waiting = VecDeque::new();
    let mut observe = |logits, batch| {
        loss.observe(&to_vec(logits, "logits")?, batch);
        Ok::<_, crate::Error>(())
    };
    for (index, (batch, device)) in assigned.iter().enumerate() {
        if profiler::is_on() {
            profiler::count(models[device].flops(batch, index > 0).keep_pass(Pass::Forward));
        }
        waiting.push_back((plain[device].batch_logits(batch), batch));
        // As many micro-batches are in work as there are devices: more would hold the logits of the
        // whole step.
        if waiting.len() > models.len() - 1
            && let Some((logits, batch)) = waiting.pop_front()
        {
            observe(logits, batch)?;
        }
    }
    waiting.into_iter().try_for_each(|(logits, batch)| observe(logits, batch))?;
    loss.update();
    Ok(())
}

/// Reads the sums of the losses and of their weights.
fn sums<B: Backend>(losses: Vec<LinearLoss<B>>) -> Result<(f64, Option<f64>)> {
    let (mut sum, mut weights) = (0.0, None);
    for LinearLoss { loss, weight } in losses {
        sum += scalar(loss, "the loss")?;
        if let Some(weight) = weight {
            *weights.get_or_insert(0.0) += scalar(weight, "the loss's weights")?;
        }
    }
    Ok((sum, weights))
}

/// Computes the loss with its current state, without dropout.
///
/// * `models`: as for [`train_step`].
///
/// # Errors
/// A device that failed.
///
/// # Panics
/// Without a model.
pub fn validation_step<B: Backend>(models: &[ItemLanguageModel<B>], step: &Step) -> Result<StepOutput> {
    let Step { batches, token_loss, .. } = step;
    let assigned = AssignedBatches::new(batches, models.len());
    let models = &models[..assigned.models];
    let with_prefix: Vec<_> = models.iter().map(|model| model.clone().with_prefix_cache(assigned.prefix)).collect();
    let batch_loss = |(batch, device): (&Batch, usize)| {
        let model: &ItemLanguageModel<B> = &with_prefix[device];
        let hidden = model.predicting(model.forward_trees(&batch.token_trees), batch);
        linear_token_loss_value(hidden, model.batch_head(batch), batch, token_loss)
    };
    let losses: Vec<_> = assigned.iter().map(batch_loss).collect();
    let (sum, weight) = sums(losses)?;
    let loss = sum / weight.unwrap_or(token_loss.denominator(batches).max(1) as f64);
    let plain_tokens = batches.iter().map(|batch| batch.plain_tokens).sum();
    Ok(StepOutput { loss, token_loss: *token_loss, tokens: assigned.run_tokens(), plain_tokens })
}
