//! The model and its loss as burn-train's `TrainStep`: one call is one optimiser step, however many micro-batches it takes.

use std::sync::{Mutex, PoisonError};

use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};

use crate::batch::Batch;
use crate::loss::{AdaptiveTemperature, Loss, RootStatistics, cross_entropy, with_prior};
use crate::model::ItemLanguageModel;
use crate::profile::{self, Part, Pass};

/// An LLM that trains on a loss.
#[derive(Module, Debug)]
pub struct Recommender<B: Backend> {
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

/// burn 0.21's `backward` frees autodiff steps that another thread is still building, and a gradient is silently lost
/// (tracel-ai/burn#5573; seen here in one run of twenty). So one training step at a time in a process; code that
/// differentiates beside it must take turns as well.
pub static AUTODIFF: Mutex<()> = Mutex::new(());

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
    /// Tokens run, padding not counted.
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

impl<B: Backend> Recommender<B> {
    /// Logits `[predictions, rows]` of a batch that predicts something, its prior added.
    pub fn logits(&self, batch: &Batch) -> Tensor<B, 2> {
        let device = self.model.device();
        let ints = |values: Vec<i32>, shape| TensorData::new(values, Shape::from(shape));
        let at: Vec<i32> = batch.predictions.iter().map(|p| p.at as i32).collect();
        let at = Tensor::<B, 1, Int>::from_data(ints(at, vec![batch.predictions.len()]), &device);
        let hidden = self.model.forward_forest(&batch.forest).select(0, at);
        let scored = batch.rows.as_ref().map(|rows| {
            let values = rows.iter().map(|&t| t as i32).collect();
            Tensor::<B, 1, Int>::from_data(ints(values, vec![rows.len()]), &device)
        });
        with_prior(self.model.llm.logits(hidden, scored), batch)
    }

    fn root_statistics(&self, logits: Tensor<B, 2>, batch: &Batch, statistics: &mut RootStatistics) {
        if AdaptiveTemperature::adapts(self.root_children) {
            let values = logits.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
            if values.len() == batch.predictions.len() * batch.rows.as_ref().map_or(0, Vec::len) {
                statistics.add(&values, batch);
            }
        }
    }
}

impl<B: AutodiffBackend> TrainStep for Recommender<B> {
    type Input = Step;
    type Output = StepOutput;

    /// Gradients of the loss of the whole step: each micro-batch's sum is divided by the whole step's denominator, so the split
    /// makes no difference.
    ///
    /// The adaptive temperature is one for the step (papers.md A2) and is needed before the first gradient. With one
    /// micro-batch its statistics come from the same forward pass; with several, from a forward pass over all of them first,
    /// without dropout and without a graph, which costs about a third of a step more.
    fn step(&self, step: Step) -> TrainOutput<StepOutput> {
        let _one_graph = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
        let batches: Vec<&Batch> = step.batches.iter().filter(|b| !b.predictions.is_empty()).collect();
        let device = self.model.device();
        let forward = |index: usize, batch: &Batch| {
            B::seed(&device, step.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index as u64));
            self.logits(batch)
        };

        let mut statistics = RootStatistics::default();
        let mut temperature = step.temperature;
        let adaptive = self.loss == Loss::MslAts;
        if adaptive && batches.len() > 1 && AdaptiveTemperature::adapts(self.root_children) {
            let model = self.valid();
            for batch in &batches {
                if profile::is_on() {
                    profile::count(self.model.flops(batch).only(Pass::Forward));
                }
                model.root_statistics(model.logits(batch), batch, &mut statistics);
            }
            temperature.step(&statistics, self.root_children);
        }

        let denominator = self.loss.denominator(&step.batches).max(1) as f64;
        let mut accumulator = GradientsAccumulator::new();
        let mut loss = 0.0;
        for (index, batch) in batches.iter().enumerate() {
            if profile::is_on() {
                profile::count(self.model.flops(batch));
            }
            let logits = forward(index, batch);
            if adaptive && batches.len() == 1 {
                self.root_statistics(logits.clone(), batch, &mut statistics);
                temperature.step(&statistics, self.root_children);
            }
            let tau = if adaptive { temperature.value } else { self.fixed_temperature };
            let batch_loss = cross_entropy(logits, batch, tau).mul_scalar(self.loss.factor(tau) / denominator);
            loss += batch_loss.clone().into_scalar().elem::<f64>();
            let gradients = profile::backward(|| batch_loss.backward());
            profile::begin(Part::Rest);
            accumulator.accumulate(self, GradientsParams::from_grads(gradients, self));
        }
        if !adaptive {
            temperature = AdaptiveTemperature { value: self.fixed_temperature };
        }
        let tokens = step.batches.iter().map(|b| b.forest.run_tokens()).sum();
        let plain_tokens = step.batches.iter().map(|b| b.plain_tokens).sum();
        let item = StepOutput { loss, temperature, tokens, plain_tokens, ..StepOutput::default() };
        TrainOutput { grads: accumulator.grads(), item }
    }
}

impl<B: Backend> InferenceStep for Recommender<B> {
    type Input = Step;
    type Output = StepOutput;

    /// The loss at the temperature in force, without dropout.
    fn step(&self, step: Step) -> StepOutput {
        let tau = if self.loss == Loss::MslAts { step.temperature.value } else { self.fixed_temperature };
        let denominator = self.loss.denominator(&step.batches).max(1) as f64;
        let batches = step.batches.iter().filter(|b| !b.predictions.is_empty());
        let sum: f64 = batches.map(|b| cross_entropy(self.logits(b), b, tau).into_scalar().elem::<f64>()).sum();
        let tokens = step.batches.iter().map(|b| b.forest.run_tokens()).sum();
        let loss = sum * self.loss.factor(tau) / denominator;
        StepOutput { loss, temperature: AdaptiveTemperature { value: tau }, tokens, ..StepOutput::default() }
    }
}
