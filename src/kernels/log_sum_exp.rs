//! Log of the sum of exponentials of each row.

use burn::prelude::*;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::cpu_op::{floats, is_cpu, may_be_tracked, with_cpu_data};
use super::simd::{exp_all, max_of, wide};

/// Returns log Σ exp of each row of `x`. It is native on the CPU where there is no autodiff: only
/// ranking and generation need it, as the losses have [their own](crate::loss).
///
/// # Shapes
/// `x`: `[n, m]`; output: `[n, 1]`.
pub fn log_sum_exp<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    match is_cpu(&x) && !may_be_tracked::<B>() {
        true => with_cpu_data(vec![x], |x| native(&x[0])).0,
        false => plain(x),
    }
}

fn plain<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let max = x.clone().max_dim(1);
    (x - max.clone()).exp().sum_dim(1).log() + max
}

/// Number of values of a row that stay in the cache while their exponentials are summed.
const BLOCK: usize = 256;

fn native(x: &TensorData) -> TensorData {
    let (rows, width) = (x.shape[0], x.shape[1]);
    let mut sums = vec![0.0; rows];
    floats(x).par_chunks(width.max(1)).zip(&mut sums).for_each(|(row, log_sum)| {
        let max = wide(|| max_of(row));
        let mut block = [0.0; BLOCK];
        let of_block = |values: &[f32]| {
            let block = &mut block[..values.len()];
            block.copy_from_slice(values);
            f64::from(wide(|| exp_all(block, max)))
        };
        let sum: f64 = row.chunks(BLOCK).map(of_block).sum();
        *log_sum = (f64::from(max) + sum.ln()) as f32;
    });
    TensorData::new(sums, [rows, 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BackendName, Concrete};
    use crate::kernels::testing::numbers;

    #[test]
    fn equals_the_plain_operations() {
        let device = BackendName::Cpu.device().unwrap();
        for shape in [[1, 1], [3, 7], [5, 600]] {
            let x = Tensor::<Concrete, 2>::from_data(numbers(shape, 1, 9.0), &device);
            let [found, expected] =
                [log_sum_exp(x.clone()), plain(x)].map(|sums| sums.into_data().to_vec::<f32>().unwrap());
            assert_eq!(found.len(), shape[0]);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found} instead of {expected}");
            }
        }
    }
}
