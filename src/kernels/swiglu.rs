//! SwiGLU, the gate of the feed-forward block. Paper: arXiv 2002.05202.

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::silu;
use rayon::prelude::*;

use super::cpu_op::{CpuOperation, floats, is_cpu, primitive, run};
use super::simd::{exp, wide};

/// Returns `silu(gate) · up`, elementwise; all of one shape, `[tokens, width]`.
pub fn swiglu<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(gate.dims(), up.dims(), "gate and up are of one shape");
    match is_cpu(&gate) {
        true => run(SwiGlu, [primitive(gate), primitive(up)]),
        false => silu(gate) * up,
    }
}

/// Number of values that one thread works on at a time.
const CHUNK: usize = 8192;

#[derive(Debug)]
struct SwiGlu;

impl CpuOperation<2> for SwiGlu {
    /// The inputs gate and up.
    type Saved = [TensorData; 2];

    fn forward(&self, inputs: [TensorData; 2]) -> (TensorData, Self::Saved) {
        let [gate, up] = inputs.each_ref().map(floats);
        let mut output = vec![0.0; gate.len()];
        let chunks = output.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        chunks.for_each(|((output, gate), up)| {
            wide(|| {
                for ((y, &g), &u) in output.iter_mut().zip(gate).zip(up) {
                    *y = g * sigmoid(g) * u;
                }
            });
        });
        (TensorData::new(output, inputs[0].shape.clone()), inputs)
    }

    fn backward(&self, saved: &Self::Saved, grad: TensorData, wanted: [bool; 2]) -> [Option<TensorData>; 2] {
        let [gate, up] = saved.each_ref().map(floats);
        let (mut for_gate, mut for_up) = (vec![0.0; gate.len()], vec![0.0; up.len()]);
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(floats(&grad).par_chunks(CHUNK));
        let outputs = for_gate.par_chunks_mut(CHUNK).zip(for_up.par_chunks_mut(CHUNK));
        outputs.zip(inputs).for_each(|((for_gate, for_up), ((gate, up), grad))| {
            wide(|| {
                let inputs = gate.iter().zip(up).zip(grad);
                for ((for_gate, for_up), ((&g, &u), &d)) in for_gate.iter_mut().zip(for_up).zip(inputs) {
                    let s = sigmoid(g);
                    *for_gate = d * u * s * (1.0 + g * (1.0 - s));
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
    use crate::kernels::testing::{numbers, same};

    #[test]
    fn equals_the_plain_operations() {
        for shape in [[1, 1], [3, 5], [40, 300]] {
            let inputs = [numbers(shape, 1, 4.0), numbers(shape, 2, 1.0)];
            same(inputs, |[gate, up]| silu(gate.clone()) * up.clone(), |[gate, up]| swiglu(gate.clone(), up.clone()));
        }
    }
}
