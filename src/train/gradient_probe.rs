//! Loss and gradients of one micro-batch of a run, read from the device.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::Run;
use super::language_model::LanguageModelTask;
use super::step::{Step, train_step};
use crate::model::ItemLanguageModel;
use crate::tensor::to_vec;
use crate::{Error, Result};

/// The loss and the gradients of one micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientProbe {
    /// The loss.
    pub loss: f64,
    /// Number of tokens that were run.
    pub tokens: usize,
    /// The gradient of every tensor that trains.
    pub gradients: Vec<TensorGradient>,
}

/// The gradient of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorGradient {
    /// Path of the tensor in the model.
    pub name: String,
    /// The gradient's values, flattened.
    pub values: Vec<f32>,
}

/// Runs, forward and backward, the micro-batch with most tokens of the run's first `steps` steps.
/// Nothing is updated.
///
/// # Errors
/// A run without a sample; a device that failed.
pub fn probe_gradients<B: AutodiffBackend>(
    model: ItemLanguageModel<B>,
    run: Run<B>,
    steps: usize,
) -> Result<GradientProbe> {
    let task = LanguageModelTask::without_checkpoints(model, run);
    let mut largest = None;
    for samples in (task.run.train.epoch)(0).into_iter().take(steps) {
        let examples =
            samples.into_iter().map(|sample| (task.run.train.examples)(sample)).collect::<Result<Vec<_>>>()?;
        let longest = task.batches(examples).into_iter().max_by_key(|batch| batch.token_trees.run_tokens());
        largest = largest.into_iter().chain(longest).max_by_key(|batch| batch.token_trees.run_tokens());
    }
    let Some(batch) = largest else { return Err(Error::failed("there is no sample to train on")) };
    let step = Step { batches: vec![batch], token_loss: task.run.token_loss, seed: task.run.seed };
    let (grads, output) = train_step(&task.models[..1], step)?;
    let mut read = ReadGradients { grads, path: Vec::new(), gradients: Ok(Vec::new()) };
    task.models[0].visit(&mut read);
    Ok(GradientProbe { loss: output.loss, tokens: output.tokens, gradients: read.gradients? })
}

struct ReadGradients {
    grads: GradientsParams,
    path: Vec<String>,
    gradients: Result<Vec<TensorGradient>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for ReadGradients {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else { return };
        let Ok(gradients) = &mut self.gradients else { return };
        let name = self.path.join(".");
        match to_vec(grad, "a gradient") {
            Ok(values) => gradients.push(TensorGradient { name, values }),
            Err(error) => self.gradients = Err(error),
        }
    }
}
