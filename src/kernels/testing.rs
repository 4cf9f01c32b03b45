//! Comparison of an operation with the plain one: output and the gradient of every input, tracked
//! and untracked.

use std::sync::PoisonError;

use burn::prelude::*;
use burn::tensor::TensorData;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::device::{BackendName, Training};
use crate::tensor::AUTODIFF;

/// Returns random numbers between -`scale` and `scale`.
///
/// # Shapes
/// Returns `shape`.
pub fn numbers<const D: usize>(shape: [usize; D], seed: u64, scale: f32) -> TensorData {
    let mut rng = StdRng::seed_from_u64(seed);
    let values = (0..shape.iter().product()).map(|_| rng.random_range(-scale..scale)).collect::<Vec<f32>>();
    TensorData::new(values, shape)
}

/// A function from inputs with gradients to an output.
type Operation<'a, const N: usize, const D: usize> = &'a dyn Fn(&[Tensor<Training, D>; N]) -> Tensor<Training, D>;

/// Asserts that the two operations agree in output and gradients, for every subset of the inputs
/// that has gradients.
///
/// # Shapes
/// * `inputs`: any shapes that both operations take.
/// * `plain` and `fused` return the same shape.
pub fn assert_same<const N: usize, const D: usize>(
    inputs: [TensorData; N],
    plain: impl Fn(&[Tensor<Training, D>; N]) -> Tensor<Training, D>,
    fused: impl Fn(&[Tensor<Training, D>; N]) -> Tensor<Training, D>,
) {
    for tracked in 0..1 << N {
        let expected = differentiate(&inputs, tracked, &plain);
        let found = differentiate(&inputs, tracked, &fused);
        assert_eq!(expected.len(), found.len());
        for (n, (expected, found)) in expected.iter().zip(&found).enumerate() {
            let what = format!(
                "{} (tracked inputs: {tracked:b})",
                if n == 0 { "output".into() } else { format!("gradient {n}") }
            );
            let greatest = expected.iter().fold(1.0f32, |a, b| a.max(b.abs()));
            assert_eq!(expected.len(), found.len(), "{what}");
            for (e, f) in expected.iter().zip(found) {
                assert!((e - f).abs() < 1e-5 * greatest, "{what}: {f} instead of {e}, of at most {greatest}");
            }
        }
    }
}

/// Returns the output, then the gradients of a weighted sum of it, for the inputs whose bit is set.
fn differentiate<const N: usize, const D: usize>(
    inputs: &[TensorData; N],
    tracked: usize,
    of: Operation<N, D>,
) -> Vec<Vec<f32>> {
    let _turn = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
    let device = BackendName::Cpu.device().unwrap();
    let input = |n: usize| Tensor::from_data(inputs[n].clone(), &device).set_require_grad((tracked >> n) & 1 == 1);
    let inputs: [Tensor<Training, D>; N] = std::array::from_fn(input);
    let output = of(&inputs);
    let mut found = vec![output.to_data().to_vec().unwrap()];
    if tracked > 0 {
        let weights = Tensor::from_data(numbers(output.dims(), 99, 1.0), &device);
        let gradients = (output * weights).sum().backward();
        let tracked = inputs.iter().filter(|input| input.is_require_grad());
        found.extend(tracked.map(|input| input.grad(&gradients).unwrap().to_data().to_vec().unwrap()));
    }
    found
}
