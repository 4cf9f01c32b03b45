//! Gated linear units of the feed-forward block: SwiGLU and GeGLU. Paper: arXiv 2002.05202.

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::silu;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cpu_op::{CpuOperation, floats, is_cpu, primitive, run};
use super::simd::{exp, wide};

/// The activation of a gated linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x σ(x)`: SwiGLU.
    Silu,
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, PyTorch's `gelu(approximate="tanh")`: GeGLU.
    GeluTanh,
}

/// Returns `activation(gate) · up`, elementwise.
///
/// # Shapes
/// `gate`, `up` and the output: `[tokens, width]`.
pub fn gated_linear_unit<B: Backend>(activation: Activation, gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(gate.dims(), up.dims(), "gate and up are of one shape");
    match (is_cpu(&gate), activation) {
        (true, Activation::Silu) => run(Glu::<false>, [primitive(gate), primitive(up)]),
        (true, Activation::GeluTanh) => run(Glu::<true>, [primitive(gate), primitive(up)]),
        (false, _) => plain(activation, gate, up),
    }
}

fn plain<B: Backend>(activation: Activation, gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    match activation {
        Activation::Silu => silu(gate) * up,
        Activation::GeluTanh => {
            let cube = gate.clone() * gate.clone() * gate.clone();
            let inner = (gate.clone() + cube.mul_scalar(0.044715)).mul_scalar((2.0 / std::f64::consts::PI).sqrt());
            gate * (inner.tanh() + 1.0) * up * 0.5
        }
    }
}

/// Number of values that one thread works on at a time.
const CHUNK: usize = 8192;

/// `gate · σ(u(gate)) · up`: with u(x) = x for SwiGLU, and for GeGLU u(x) = √(8/π) (x + 0.044715
/// x³), since (1 + tanh(z)) / 2 = σ(2z).
#[derive(Debug)]
struct Glu<const GELU: bool>;

impl<const GELU: bool> Glu<GELU> {
    /// Returns u(x).
    #[inline(always)]
    fn argument(x: f32) -> f32 {
        if GELU { GELU_SCALE * (x + 0.044_715 * x * x * x) } else { x }
    }

    /// Returns the derivative of u at x.
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if GELU { GELU_SCALE * (1.0 + 3.0 * 0.044_715 * x * x) } else { 1.0 }
    }
}

/// √(8/π)
const GELU_SCALE: f32 = 1.595_769_2;

impl<const GELU: bool> CpuOperation<2> for Glu<GELU> {
    /// The inputs gate and up.
    type SavedForBackward = [TensorData; 2];

    fn forward(&self, inputs: [TensorData; 2]) -> (TensorData, Self::SavedForBackward) {
        let [gate, up] = inputs.each_ref().map(floats);
        let mut output = vec![0.0; gate.len()];
        let chunks = output.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        chunks.for_each(|((output, gate), up)| {
            wide(|| {
                for ((y, &g), &u) in output.iter_mut().zip(gate).zip(up) {
                    *y = g * sigmoid(Self::argument(g)) * u;
                }
            });
        });
        (TensorData::new(output, inputs[0].shape.clone()), inputs)
    }

    fn backward(&self, saved: &Self::SavedForBackward, grad: TensorData, wanted: [bool; 2]) -> [Option<TensorData>; 2] {
        let [gate, up] = saved.each_ref().map(floats);
        let (mut for_gate, mut for_up) = (vec![0.0; gate.len()], vec![0.0; up.len()]);
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(floats(&grad).par_chunks(CHUNK));
        let outputs = for_gate.par_chunks_mut(CHUNK).zip(for_up.par_chunks_mut(CHUNK));
        outputs.zip(inputs).for_each(|((for_gate, for_up), ((gate, up), grad))| {
            wide(|| {
                let inputs = gate.iter().zip(up).zip(grad);
                for ((for_gate, for_up), ((&g, &u), &d)) in for_gate.iter_mut().zip(for_up).zip(inputs) {
                    let s = sigmoid(Self::argument(g));
                    *for_gate = d * u * s * (1.0 + g * (1.0 - s) * Self::slope(g));
                    *for_up = d * g * s;
                }
            });
        });
        let data = |values| TensorData::new(values, grad.shape.clone());
        [wanted[0].then(|| data(for_gate)), wanted[1].then(|| data(for_up))]
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same, numbers};

    #[test]
    fn equals_the_plain_operations() {
        for shape in [[1, 1], [3, 5], [40, 300]] {
            let inputs = [numbers(shape, 1, 4.0), numbers(shape, 2, 1.0)];
            for activation in [Activation::Silu, Activation::GeluTanh] {
                assert_same(
                    inputs.clone(),
                    |[gate, up]| plain(activation, gate.clone(), up.clone()),
                    |[gate, up]| gated_linear_unit(activation, gate.clone(), up.clone()),
                );
            }
        }
    }
}
