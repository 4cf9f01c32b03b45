//! RMSNorm. Paper: arXiv 1910.07467.

use burn::prelude::*;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::cpu_op::{CpuOperation, floats, is_cpu, primitive, run};
use super::simd::{dot, wide};

/// Returns `x / √(mean(x²) + ε) · γ`, the mean taken over the last dimension.
///
/// # Shapes
/// `x`: `[.., width]`; `gamma`: `[width]`; the result has the shape of `x`.
pub fn rms_norm<B: Backend, const D: usize>(x: Tensor<B, D>, gamma: Tensor<B, 1>, epsilon: f64) -> Tensor<B, D> {
    match is_cpu(&x) {
        true => run(Norm { epsilon: epsilon as f32 }, [primitive(x), primitive(gamma)]),
        false => plain(x, gamma, epsilon),
    }
}

fn plain<B: Backend, const D: usize>(x: Tensor<B, D>, gamma: Tensor<B, 1>, epsilon: f64) -> Tensor<B, D> {
    let rms = (x.clone().square().mean_dim(D - 1) + epsilon).sqrt();
    (x / rms) * gamma.unsqueeze()
}

/// Number of rows that one thread works on at a time.
const ROWS: usize = 16;

#[derive(Debug)]
struct Norm {
    epsilon: f32,
}

#[derive(Debug)]
struct SavedNorm {
    x: TensorData,
    gamma: TensorData,
    /// `1 / √(mean(x²) + ε)` of each row.
    scales: Vec<f32>,
}

impl CpuOperation<2> for Norm {
    type SavedForBackward = SavedNorm;

    fn forward(&self, [x, gamma]: [TensorData; 2]) -> (TensorData, SavedNorm) {
        let (values, weights) = (floats(&x), floats(&gamma));
        let width = weights.len();
        let mut output = vec![0.0; values.len()];
        let mut scales = vec![0.0; values.len() / width];
        let rows =
            output.par_chunks_mut(ROWS * width).zip(values.par_chunks(ROWS * width)).zip(scales.par_chunks_mut(ROWS));
        rows.for_each(|((output, x), scales)| {
            wide(|| {
                for ((output, x), scale) in output.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(scales) {
                    *scale = 1.0 / (dot(x, x) / width as f32 + self.epsilon).sqrt();
                    for ((y, x), g) in output.iter_mut().zip(x).zip(weights) {
                        *y = x * *scale * g;
                    }
                }
            });
        });
        (TensorData::new(output, x.shape.clone()), SavedNorm { x, gamma, scales })
    }

    /// Computes the gradients. With r the saved scale, n the width and g = γ·dy: `dx = r (g − x r²
    /// (g·x) / n)` and `dγ = Σ dy x r` over the rows.
    fn backward(&self, saved: &SavedNorm, grad: TensorData, wanted: [bool; 2]) -> [Option<TensorData>; 2] {
        let (x, gamma, grads) = (floats(&saved.x), floats(&saved.gamma), floats(&grad));
        let width = gamma.len();
        let for_x = wanted[0].then(|| {
            let mut output = vec![0.0; x.len()];
            let inputs =
                x.par_chunks(ROWS * width).zip(grads.par_chunks(ROWS * width)).zip(saved.scales.par_chunks(ROWS));
            output.par_chunks_mut(ROWS * width).zip(inputs).for_each(|(output, ((x, grad), scales))| {
                wide(|| {
                    let inputs = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(scales);
                    for (output, ((x, grad), scale)) in output.chunks_exact_mut(width).zip(inputs) {
                        for ((g, d), gamma) in output.iter_mut().zip(grad).zip(gamma) {
                            *g = d * gamma;
                        }
                        let along = dot(output, x) * scale * scale / width as f32;
                        for (g, x) in output.iter_mut().zip(x) {
                            *g = scale * (*g - x * along);
                        }
                    }
                });
            });
            TensorData::new(output, grad.shape.clone())
        });
        let for_gamma = wanted[1].then(|| {
            let mut sums = vec![0.0; width];
            for ((x, grad), scale) in x.chunks_exact(width).zip(grads.chunks_exact(width)).zip(&saved.scales) {
                wide(|| {
                    for ((sum, x), d) in sums.iter_mut().zip(x).zip(grad) {
                        *sum += d * x * scale;
                    }
                });
            }
            TensorData::new(sums, [width])
        });
        [for_x, for_gamma]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same, numbers};

    #[test]
    fn equals_the_plain_operations() {
        for (rows, width) in [(1, 1), (3, 5), (70, 96)] {
            let inputs = [numbers([rows, width], 1, 2.0), numbers([1, width], 2, 1.0)];
            assert_same(
                inputs,
                |[x, gamma]| plain::<_, 2>(x.clone(), gamma.clone().reshape([width]), 1e-3),
                |[x, gamma]| rms_norm::<_, 2>(x.clone(), gamma.clone().reshape([width]), 1e-3),
            );
        }
    }
}
