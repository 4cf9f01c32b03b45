//! Dropout. Paper: JMLR 15, 1929–1958 (2014).

use burn::nn::Dropout;
use burn::prelude::*;
use burn::tensor::{Distribution, TensorData};
use rayon::prelude::*;

use super::cpu_op::{CpuOperation, floats_mut, is_cpu, primitive, run};
use super::simd::wide;

/// Sets each number to 0 with the probability `p = dropout.prob`, and divides the others by `1 -
/// p`; returns `x` where nothing trains.
///
/// On the CPU the choice is a hash of a number's index and of a seed, drawn once from the backend's
/// generator. The backward pass computes it again instead of keeping it.
///
/// # Shapes
/// `x` and the output: `[tokens, width]`.
pub fn dropout<B: Backend>(dropout: &Dropout, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let device = x.device();
    if !is_cpu(&x) || !B::ad_enabled(&device) || dropout.prob == 0.0 {
        return dropout.forward(x);
    }
    let drawn = Tensor::<B, 1>::random([2], Distribution::Default, &device).into_data();
    let seed = drawn.iter::<f32>().fold(0, |seed, d| (seed << 16) ^ (d * 16_777_216.0) as u32);
    run(Mask { seed, prob: dropout.prob }, [primitive(x)])
}

/// Number of values that one thread works on at a time.
const CHUNK: usize = 8192;

#[derive(Debug)]
struct Mask {
    seed: u32,
    prob: f64,
}

impl Mask {
    fn apply(&self, mut x: TensorData) -> TensorData {
        let dropped = (self.prob * 4_294_967_296.0) as u32;
        let scale = (1.0 / (1.0 - self.prob)) as f32;
        floats_mut(&mut x).par_chunks_mut(CHUNK).enumerate().for_each(|(n, values)| {
            let first = (n * CHUNK) as u32;
            wide(|| {
                for (value, place) in values.iter_mut().zip(0..) {
                    *value *= if hash((first + place) ^ self.seed) < dropped { 0.0 } else { scale };
                }
            });
        });
        x
    }
}

/// Computes the finaliser of MurmurHash3, after a step of Weyl's sequence.
#[inline(always)]
fn hash(n: u32) -> u32 {
    let n = n.wrapping_mul(0x9e37_79b9);
    let n = (n ^ (n >> 16)).wrapping_mul(0x85eb_ca6b);
    let n = (n ^ (n >> 13)).wrapping_mul(0xc2b2_ae35);
    n ^ (n >> 16)
}

impl CpuOperation<1> for Mask {
    type SavedForBackward = ();

    fn forward(&self, [x]: [TensorData; 1]) -> (TensorData, ()) {
        (self.apply(x), ())
    }

    fn backward(&self, _: &(), grad: TensorData, _: [bool; 1]) -> [Option<TensorData>; 1] {
        [Some(self.apply(grad))]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;

    use burn::nn::DropoutConfig;

    use super::*;
    use crate::device::{BackendName, Concrete, Training};
    use crate::tensor::AUTODIFF;

    #[test]
    fn drops_its_share_by_the_seed_and_the_gradient_likewise() {
        let _turn = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
        let device = BackendName::Cpu.device().unwrap();
        let (layer, n) = (DropoutConfig::new(0.25).init(), 40_000);
        let ones = Tensor::<Training, 2>::ones([n / 100, 100], &device).require_grad();
        let draw = |seed| {
            Training::seed(&device, seed);
            let dropped = dropout(&layer, ones.clone());
            let gradient = ones.grad(&dropped.clone().square().sum().backward()).unwrap();
            (dropped.into_data().to_vec::<f32>().unwrap(), gradient.into_data().to_vec::<f32>().unwrap())
        };
        let (values, gradient) = draw(7);
        let zeros = values.iter().filter(|&&v| v == 0.0).count() as f64 / n as f64;
        assert!((zeros - 0.25).abs() < 4.0 * (0.25 * 0.75 / n as f64).sqrt(), "{zeros}");
        let pairs = values.windows(2).filter(|pair| pair == &[0.0, 0.0]).count() as f64 / n as f64;
        assert!((pairs - 0.0625).abs() < 0.01, "neighbours fall apart: {pairs}");
        for (v, g) in values.iter().zip(&gradient) {
            assert!((*v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6) && (g - 2.0 * v * v).abs() < 1e-5, "{v}: {g}");
        }
        assert_eq!(draw(7), (values.clone(), gradient));
        assert_ne!(draw(8).0, values);
        let plain = Tensor::<Concrete, 2>::ones([2, 2], &device);
        assert_eq!(dropout(&layer, plain.clone()).into_data(), plain.into_data(), "outside training nothing drops");
    }
}
