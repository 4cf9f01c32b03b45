//! Loops that the compiler turns into SIMD instructions, of the best set that the processor has.

use std::sync::LazyLock;

/// Instruction set that loops are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// AVX-512 (F, BW, DQ, VL) with FMA: 16 numbers at once.
    Avx512,
    /// AVX2 with FMA: 8 numbers at once.
    Avx2,
    /// The instruction set of the build: SSE2 on x86-64, NEON on ARM.
    Baseline,
}

impl InstructionSet {
    /// Returns the best instruction set that this processor has. It is detected once, since every
    /// loop needs it.
    #[inline(always)]
    pub fn detect() -> Self {
        static BEST: LazyLock<InstructionSet> = LazyLock::new(InstructionSet::best);
        *BEST
    }

    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Baseline
    }
}

impl std::fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2",
            Self::Baseline if cfg!(target_arch = "aarch64") => "NEON",
            Self::Baseline => "SSE2",
        })
    }
}

/// Runs a loop compiled for the best instruction set of this processor. Functions that `work` calls
/// must be inlined. The result is the same with each set: all sums have [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn wide<R>(work: impl FnOnce() -> R) -> R {
    wide_for(InstructionSet::detect(), work)
}

/// Runs a loop compiled for `set`, or for the baseline on another kind of processor.
///
/// The caller must have `set` from [`InstructionSet::detect`], or one below it.
#[inline(always)]
fn wide_for<R>(set: InstructionSet, work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        match set {
            // SAFETY: the processor has it: `detect` found it.
            InstructionSet::Avx512 => return unsafe { avx512(work) },
            // SAFETY: the processor has AVX2 and FMA, as has every processor with AVX-512.
            InstructionSet::Avx2 => return unsafe { avx2(work) },
            InstructionSet::Baseline => {}
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = set;
    work()
}

/// Number of partial sums of a loop: a sum in order could not use SIMD.
const LANES: usize = 16;

/// Returns e^x within 2 ulp: 0 below -87, where it leaves the normal numbers; finite above 88; NaN
/// for NaN. After Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let power_of_two = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.0 { 0.0 } else { p * power_of_two }
}

/// Returns the dot product Σ aᵢ bᵢ.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; LANES];
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Returns the greatest value; -∞ of an empty slice. NaN is skipped: it shows in whatever is
/// computed next.
#[inline(always)]
pub(crate) fn max_of(values: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, greater);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = greater(*lane, value);
        }
    }
    lanes.into_iter().fold(rest, greater)
}

/// Replaces each value by `e^(value - shift)` and returns their sum.
#[inline(always)]
pub(crate) fn exp_all(values: &mut [f32], shift: f32) -> f32 {
    let mut sums = [0.0; LANES];
    let mut chunks = values.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (value, sum) in chunk.iter_mut().zip(&mut sums) {
            *value = exp(*value - shift);
            *sum += *value;
        }
    }
    let mut sum = 0.0;
    for value in chunks.into_remainder() {
        *value = exp(*value - shift);
        sum += *value;
    }
    sums.iter().sum::<f32>() + sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_ulp_and_keeps_the_special_cases() {
        let mut x = -86.9;
        while x < 88.0 {
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 2.5e-7, "e^{x}: {} instead of {expected}", exp(x));
            x += 0.003_7;
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn sums_and_maxima_of_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let expected: f32 = a.iter().map(|a| a * a).sum();
            assert!((dot(&a, &a) - expected).abs() < 1e-4);
            assert_eq!(max_of(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut powers = a.clone();
            let sum = exp_all(&mut powers, 0.5);
            let expected: f32 = a.iter().map(|a| (a - 0.5).exp()).sum();
            assert!((sum - expected).abs() < 1e-4);
        }
    }

    /// The numbers do not depend on the processor.
    #[test]
    fn instruction_sets_agree_to_the_bit() {
        let values: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
        let run = |set| {
            let mut powers = values.clone();
            let sum = wide_for(set, || exp_all(&mut powers, 3.0));
            let dot = wide_for(set, || dot(&values, &powers));
            let greatest = wide_for(set, || max_of(&values));
            (powers, sum, dot, greatest)
        };
        let expected = run(InstructionSet::Baseline);
        let sets = match InstructionSet::detect() {
            InstructionSet::Avx512 => vec![InstructionSet::Avx2, InstructionSet::Avx512],
            InstructionSet::Avx2 => vec![InstructionSet::Avx2],
            InstructionSet::Baseline => vec![],
        };
        for set in sets {
            assert_eq!(run(set), expected, "{set}");
        }
    }
}
