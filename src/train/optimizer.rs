//! AdamW with PyTorch's defaults, and two functions that burn does not have: clipping by the global
//! norm, and weight decay of matrices alone.

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{self, AdamWConfig, GradientsParams};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use crate::Result;
use crate::tensor::scalar;

/// The optimiser of all training tasks.
pub type AdamW<M, B> = OptimizerAdaptor<optim::AdamW, M, B>;

/// Makes an AdamW with β = (0.9, 0.999) and ε = 1e-8 as `torch.optim.AdamW`; burn's own default ε
/// is 1e-5.
pub fn adamw<M: AutodiffModule<B>, B: AutodiffBackend>(weight_decay: f64) -> AdamW<M, B> {
    AdamWConfig::new()
        .with_beta_1(0.9)
        .with_beta_2(0.999)
        .with_epsilon(1e-8)
        .with_weight_decay(weight_decay as f32)
        .init()
}

/// Scales all gradients together so that their norm is at most `max_norm`; returns the norm before.
/// burn's own clipping treats each tensor by itself.
///
/// Reference: `torch.nn.utils.clip_grad_norm_` (the factor is max_norm / (norm + 1e-6), at most 1).
///
/// # Errors
/// A device that failed.
pub fn clip_grad_norm<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    grads: &mut GradientsParams,
    max_norm: f64,
) -> Result<f64> {
    let mut squares = Squares { grads, sum: None };
    module.visit(&mut squares);
    let Some(sum) = squares.sum else { return Ok(0.0) };
    let norm = scalar(sum, "the gradient's norm")?.sqrt();
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        scale_gradients(module, grads, factor);
    }
    Ok(norm)
}

/// Multiplies all gradients by `factor`.
pub(super) fn scale_gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    grads: &mut GradientsParams,
    factor: f64,
) {
    module.visit(&mut Scale { grads, factor });
}

struct Squares<'a, B: AutodiffBackend> {
    grads: &'a GradientsParams,
    sum: Option<Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Squares<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            let square = grad.square().sum();
            self.sum = Some(match self.sum.take() {
                None => square,
                Some(sum) => sum + square,
            });
        }
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            self.grads.register(param.id, grad.mul_scalar(self.factor));
        }
    }
}

/// AdamW's weight decay for matrices and larger tensors that have a gradient: not for biases, norms
/// and temperatures. burn's AdamW decays all or none.
///
/// Reference: LAVIS, lavis/runners/runner_base.py (`optimizer`).
pub struct WeightDecay<'a> {
    grads: &'a GradientsParams,
    factor: f64,
}

impl<'a> WeightDecay<'a> {
    /// Shrinks these parameters by the share `decay` (learning rate times weight decay), before the
    /// optimiser's step.
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
