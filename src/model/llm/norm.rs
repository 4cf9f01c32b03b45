//! The RMS norm of decoders.

use burn::module::Param;
use burn::prelude::*;

use crate::kernels::rms_norm;

/// `x / √(mean(x²) + ε) · γ` over the last dimension, or `· (1 + γ)` (Gemma).
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// `[width]`: factors γ.
    pub gamma: Param<Tensor<B, 1>>,
    /// ε, added to the mean square.
    #[module(skip)]
    pub epsilon: f64,
    /// Whether the factor is 1 + γ.
    #[module(skip)]
    pub offset: bool,
}

impl<B: Backend> Norm<B> {
    /// Normalises `x`.
    ///
    /// # Shapes
    /// `x` and the result: `[.., width]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let gamma = self.gamma.val();
        rms_norm(x, if self.offset { gamma + 1.0 } else { gamma }, self.epsilon)
    }
}
