//! Speed of a device's products and copies, and whether its products round.

use std::time::Instant;

use burn::DispatchDevice;
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::Serialize;

use super::Concrete;
use crate::{Context, Result};

/// Number of timed repetitions of a product or copy, of which the median counts.
const REPETITIONS: usize = 5;
/// Rows of the square matrices that are multiplied: doubled from the smallest while a product takes
/// less than [`LONG_ENOUGH`].
const ROWS: [usize; 5] = [256, 512, 1024, 2048, 4096];
/// Seconds; far more than it takes to start work on a device.
const LONG_ENOUGH: f64 = 0.05;
/// Number of values copied, 64 MiB: more than a CPU's cache.
const COPIED: usize = 16 << 20;
/// Number of copies that are timed together.
const COPIES: usize = 4;
/// Products `[m, k] · [k, n]` of a training step of SmolLM2-135M (hidden 576, feed-forward 1536,
/// vocabulary 49152) with a micro-batch of 2048 tokens: attention's output, the feed-forward block
/// up and down, and a block of logits.
const STEP_PRODUCTS: [[usize; 3]; 4] = [[2048, 576, 576], [2048, 576, 1536], [2048, 1536, 576], [170, 576, 49152]];

/// A product of two square f32 matrices.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MatmulRate {
    /// Rows and columns.
    pub rows: usize,
    /// 10⁹ additions and multiplications a second.
    pub gflops: f64,
    /// Whether f32 inputs are rounded to the 11 bits of TF32, as burn's products on NVIDIA's tensor
    /// cores do (cubek-matmul 0.2, `definition/blueprint.rs`, `adjust_dtypes`; PyTorch's
    /// `torch.backends.cuda.matmul.allow_tf32`). burn 0.21 has no switch for it.
    pub tf32: bool,
}

/// Speed of one f32 product `[m, k] · [k, n]`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ProductRate {
    /// Rows of the first matrix.
    pub m: usize,
    /// Columns of the first matrix, rows of the second.
    pub k: usize,
    /// Columns of the second matrix.
    pub n: usize,
    /// 10⁹ additions and multiplications a second.
    pub gflops: f64,
}

/// A pass over f32 numbers within the device's memory that writes them, doubled, elsewhere.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CopyRate {
    /// Bytes read by a pass; as many are written.
    pub bytes: usize,
    /// 10⁹ bytes a second, read and written together.
    pub gb_per_second: f64,
}

/// Measures the largest product that takes no longer than 0.05 s, or the first that does.
///
/// # Errors
/// A device that fails.
pub fn matmul_rate(device: &DispatchDevice, dtype: FloatDType) -> Result<MatmulRate> {
    let mut rate = MatmulRate { rows: 0, gflops: 0.0, tf32: false };
    for rows in ROWS {
        let matrix = Tensor::<Concrete, 2>::ones([rows, rows], device).cast(dtype);
        let seconds = median_seconds(device, || matrix.clone().matmul(matrix.clone()))?;
        rate = MatmulRate { rows, gflops: 2.0 * (rows as f64).powi(3) / seconds / 1e9, tf32: false };
        if seconds > LONG_ENOUGH {
            break;
        }
    }
    rate.tf32 = rounds_to_tf32(device, rate.rows, rate.rows);
    Ok(rate)
}

/// Measures the products of a training step of SmolLM2-135M, with a micro-batch of 2048 tokens.
///
/// # Errors
/// A device that fails.
pub fn step_product_rates(device: &DispatchDevice) -> Result<Vec<ProductRate>> {
    let rate = |[m, k, n]: [usize; 3]| {
        let [left, right] = [[m, k], [n, k]].map(|shape| Tensor::<Concrete, 2>::ones(shape, device));
        // As a linear layer multiplies: by the transpose of a weight `[out, in]`.
        let seconds = median_seconds(device, || left.clone().matmul(right.clone().transpose()))?;
        Ok(ProductRate { m, k, n, gflops: 2.0 * (m * k * n) as f64 / seconds / 1e9 })
    };
    STEP_PRODUCTS.into_iter().map(rate).collect()
}

/// Returns whether products round their f32 inputs to TF32.
///
/// It multiplies `[rows, width]` and `[width, rows]`: sums of numbers that f32 holds and TF32 does
/// not, all of whose partial sums are exact in f32.
pub fn rounds_to_tf32(device: &DispatchDevice, rows: usize, width: usize) -> bool {
    let above_one = f32::EPSILON * 2048.0;
    let numbers = Tensor::<Concrete, 2>::full([rows, width], 1.0 + above_one, device);
    let sums = numbers.clone().matmul(numbers.ones_like().transpose());
    (sums.max().into_scalar().elem::<f32>() - width as f32) < width as f32 * above_one / 2.0
}

/// Measures copies within the device's memory.
///
/// # Errors
/// A device that fails.
pub fn copy_rate(device: &DispatchDevice) -> Result<CopyRate> {
    // Each copy has numbers of its own, which it must read, and all are kept until they are there:
    // fusion leaves out what nobody awaits.
    let numbers: Vec<_> = (0..COPIES).map(|_| Tensor::<Concrete, 1>::ones([COPIED], device)).collect();
    let bytes = COPIED * size_of::<f32>();
    let copy = || numbers.iter().map(|numbers| numbers.clone().mul_scalar(2.0)).collect::<Vec<_>>();
    let seconds = median_seconds(device, copy)? / COPIES as f64;
    Ok(CopyRate { bytes, gb_per_second: 2.0 * bytes as f64 / seconds / 1e9 })
}

/// Returns the median seconds of [`REPETITIONS`] runs of `work`, after one run that compiles the
/// kernels.
fn median_seconds<T>(device: &DispatchDevice, work: impl Fn() -> T) -> Result<f64> {
    let mut seconds = Vec::with_capacity(REPETITIONS);
    for repetition in 0..=REPETITIONS {
        let started = Instant::now();
        let _made = work();
        Concrete::sync(device).map_err(|e| format!("{e:?}")).context("the device fails")?;
        if repetition > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds.get(REPETITIONS / 2).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::BackendName;

    #[test]
    fn the_cpu_rounds_no_input() {
        let device = BackendName::Cpu.device().unwrap();
        assert!(!rounds_to_tf32(&device, ROWS[0], ROWS[0]) && !rounds_to_tf32(&device, 33, 64));
    }
}
