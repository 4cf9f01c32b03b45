//! The adaptive temperature strategy (ATS).
//!
//! Source: arXiv 2504.04178, Lemma 2 and Eq. 11, 12, 22, in the order of the released
//! `train_msl_ats.py`. The paper prints the root of the quadratic with a minus, the code takes the
//! plus; both solve it, but only the plus root tends to d/C as the variance vanishes (the minus
//! root tends to 0, always the clamp's floor), so it is the plus here.

use serde::{Deserialize, Serialize};

use crate::batch::Batch;

/// The probability the target token is steered to.
const ETA: f64 = 0.25;
/// Weight of a step's temperature in the moving average.
const ALPHA: f64 = 0.05;
/// The temperature's bounds before averaging; it starts at the floor.
const BOUNDS: (f64, f64) = (1.5, 5.0);

/// Sums over the root positions of an optimiser step, over all its micro-batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RootStatistics {
    positions: f64,
    label_sum: f64,
    valid: f64,
    valid_sum: f64,
    valid_squares: f64,
}

impl RootStatistics {
    /// Adds the root positions of `batch`; `logits` is the host copy of `[predictions, rows]`, not
    /// divided by a temperature.
    pub fn add(&mut self, logits: &[f32], batch: &Batch) {
        let rows = batch.candidate_ids.as_ref().map_or(0, Vec::len);
        for (p, prediction) in batch.predictions.iter().enumerate().filter(|(_, p)| p.is_root_position) {
            let logits = &logits[p * rows..(p + 1) * rows];
            self.positions += 1.0;
            self.label_sum += f64::from(logits[prediction.label]);
            for &place in &prediction.valid {
                let logit = f64::from(logits[place]);
                self.valid += 1.0;
                self.valid_sum += logit;
                self.valid_squares += logit * logit;
            }
        }
    }
}

/// The temperature, one for a whole optimiser step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdaptiveTemperature {
    /// The moving average: the temperature in force.
    pub value: f64,
}

impl Default for AdaptiveTemperature {
    fn default() -> Self {
        Self { value: BOUNDS.0 }
    }
}

impl AdaptiveTemperature {
    /// Whether the equation has an answer for a root of `m` children: m·η > 1. A tokenizer that
    /// makes the opening quote a token of its own leaves the root with one child (SmolLM2's on
    /// office) or a few, and then the temperature stays where it starts.
    pub fn adapts(m: usize) -> bool {
        m as f64 * ETA > 1.0
    }

    /// Moves on by one step and returns the temperature to use in it.
    ///
    /// `m` is the number of the root's children (as the code has it; the paper's text says the
    /// average number of valid tokens). The temperature stays as it was where the equation says
    /// nothing: m·η ≤ 1 (the target is to be no likelier than a uniform choice makes it), no root
    /// position in the step, fewer than two valid logits, or logits that are not finite.
    pub fn step(&mut self, statistics: &RootStatistics, m: usize) -> f64 {
        let s = statistics;
        let c = (m as f64 * ETA).ln();
        if Self::adapts(m) && s.positions > 0.0 && s.valid > 1.0 {
            let mean = s.valid_sum / s.valid;
            let variance = ((s.valid_squares - s.valid * mean * mean) / (s.valid - 1.0)).max(0.0);
            let d = s.label_sum / s.positions - mean;
            let discriminant = (d * d - 2.0 * c * variance).max(0.0);
            let temperature = (d + discriminant.sqrt()) / (2.0 * c);
            if temperature.is_finite() {
                self.value = (1.0 - ALPHA) * self.value + ALPHA * temperature.clamp(BOUNDS.0, BOUNDS.1);
            }
        }
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_update_where_the_equation_says_nothing() {
        let some = RootStatistics { positions: 2.0, label_sum: 8.0, valid: 6.0, valid_sum: 3.0, valid_squares: 30.0 };
        for (statistics, m) in [(some, 4), (some, 1), (RootStatistics::default(), 50)] {
            let mut temperature = AdaptiveTemperature { value: 2.0 };
            assert_eq!(temperature.step(&statistics, m), 2.0, "m = {m}");
        }
        let nan = RootStatistics { label_sum: f64::NAN, ..some };
        assert_eq!(AdaptiveTemperature { value: 2.0 }.step(&nan, 50), 2.0);
    }

    /// With no variance the root is d / C: d = 6, C = ln(20 · 0.25) by hand.
    #[test]
    fn plus_root_without_variance() {
        let equal = RootStatistics { positions: 1.0, label_sum: 6.0, valid: 3.0, valid_sum: 0.0, valid_squares: 0.0 };
        let mut temperature = AdaptiveTemperature { value: 2.0 };
        let expected = 0.95 * 2.0 + 0.05 * (6.0 / (20f64 * 0.25).ln());
        assert!((temperature.step(&equal, 20) - expected).abs() < 1e-12);
    }
}
