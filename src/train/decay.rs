//! Decoupled weight decay of some parameters; burn's AdamW decays all or none.

use burn::module::{AutodiffModule, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

/// AdamW's weight decay for matrices and larger tensors that have a gradient: not for biases, norms
/// and temperatures.
///
/// Reference: LAVIS, lavis/runners/runner_base.py (`optimizer`).
pub struct WeightDecay<'a> {
    grads: &'a GradientsParams,
    factor: f64,
}

impl<'a> WeightDecay<'a> {
    /// Shrinks them by the share `decay` (learning rate times weight decay), before the optimiser's
    /// step.
    pub fn apply<B: AutodiffBackend, M: AutodiffModule<B>>(module: M, grads: &'a GradientsParams, decay: f64) -> M {
        module.map(&mut WeightDecay { grads, factor: 1.0 - decay })
    }
}

impl<B: AutodiffBackend> ModuleMapper<B> for WeightDecay<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if D < 2 || self.grads.get::<B::InnerBackend, D>(param.id).is_none() {
            return param;
        }
        param.map(|tensor| {
            let trains = tensor.is_require_grad();
            Tensor::from_inner(tensor.inner().mul_scalar(self.factor)).set_require_grad(trains)
        })
    }
}
