//! log Σ exp of rows.

use burn::prelude::*;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::host::{HostOperation, floats, floats_mut, on_host, primitive, run};
use super::simd::{exp, exp_all, greatest, wide};

/// `[n, m]` → `[n, 1]`: log Σ exp of each row.
pub fn log_sum_exp<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    match on_host(&x) {
        true => run(LogSumExp, [primitive(x)]),
        false => plain(x),
    }
}

fn plain<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let max = x.clone().max_dim(1).detach();
    (x - max.clone()).exp().sum_dim(1).log() + max
}

/// Numbers of a row that are in the cache while their exponentials are summed.
const BLOCK: usize = 256;

#[derive(Debug)]
struct LogSumExp;

impl HostOperation<1> for LogSumExp {
    /// The inputs and the outputs.
    type Saved = [TensorData; 2];

    fn forward(&self, [x]: [TensorData; 1]) -> (TensorData, Self::Saved) {
        let (rows, width) = (x.shape[0], x.shape[1]);
        let mut sums = vec![0.0; rows];
        floats(&x).par_chunks(width.max(1)).zip(&mut sums).for_each(|(row, log_sum)| {
            let max = wide(|| greatest(row));
            let mut block = [0.0; BLOCK];
            let sum: f64 = row
                .chunks(BLOCK)
                .map(|values| {
                    let block = &mut block[..values.len()];
                    block.copy_from_slice(values);
                    f64::from(wide(|| exp_all(block, max)))
                })
                .sum();
            *log_sum = (f64::from(max) + sum.ln()) as f32;
        });
        let sums = TensorData::new(sums, [rows, 1]);
        (sums.clone(), [x, sums])
    }

    fn backward(&self, [x, sums]: &Self::Saved, mut grad: TensorData, _: [bool; 1]) -> [Option<TensorData>; 1] {
        let mut found = x.clone();
        let width = x.shape[1];
        let rows = floats_mut(&mut found).par_chunks_mut(width.max(1)).zip(floats(sums)).zip(floats_mut(&mut grad));
        rows.for_each(|((row, sum), grad)| wide(|| row.iter_mut().for_each(|x| *x = exp(*x - sum) * *grad)));
        [Some(found)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{numbers, same};
    use super::*;

    #[test]
    fn equals_the_plain_operations() {
        for shape in [[1, 1], [3, 7], [5, 600]] {
            same([numbers(shape, 1, 9.0)], |[x]| plain(x.clone()), |[x]| log_sum_exp(x.clone()));
        }
    }
}
