//! MSL with the adaptive temperature strategy (ATS).
//!
//! Source: arXiv 2504.04178, Lemma 2 and Eq. 11, 12, 22, in the order of the released
//! `train_msl_ats.py`. The paper prints the root of the quadratic with a minus, the code takes the
//! plus; both solve it, but only the plus root tends to d/C as the variance vanishes (the minus
//! root tends to 0, always the clamp's floor), so it is the plus here.

use burn::prelude::*;

use super::softmax::Softmax;
use super::{BlockLoss, LossState, TokenLoss};
use crate::batch::{Batch, Candidates, Prediction};

/// The probability to which the target token is steered.
const ETA: f64 = 0.25;
/// Weight of a step's new temperature in the moving average.
const ALPHA: f64 = 0.05;
/// The temperature's bounds before averaging; it starts at the floor.
const BOUNDS: (f64, f64) = (1.5, 5.0);

/// `τ · mean over target tokens with more than one child of -log softmax(f/τ) over the trie's
/// children`, with one temperature τ an optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ats {
    /// The moving average: the current temperature.
    temperature: f64,
    /// m, the number of children of the trie's root.
    root_children: usize,
    /// Statistics of the current step so far.
    statistics: RootStatistics,
}

/// Sums over the root positions of an optimiser step, over all its micro-batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct RootStatistics {
    positions: f64,
    label_sum: f64,
    valid: f64,
    valid_sum: f64,
    valid_squares: f64,
}

impl Ats {
    /// The temperature of the first step, until its logits are computed.
    pub const START: f64 = BOUNDS.0;

    /// Starts at the lower bound.
    ///
    /// * `root_children`: m, the number of children of the trie's root (as in the code; the paper's
    ///   text has the average number of valid tokens).
    pub fn new(root_children: usize) -> Self {
        Self { temperature: Self::START, root_children, statistics: RootStatistics::default() }
    }

    /// Returns whether the equation has an answer for a root of `m` children: m·η > 1. A tokenizer
    /// that makes the opening quote a token of its own leaves the root with one child (SmolLM2's on
    /// office) or a few, and then the temperature stays where it starts.
    pub fn adapts(m: usize) -> bool {
        m as f64 * ETA > 1.0
    }
}

impl TokenLoss for Ats {
    fn candidates(&self) -> Candidates {
        Candidates::Children
    }

    fn denominator(&self, batches: &[Batch]) -> usize {
        batches.iter().map(|batch| batch.branching_tokens).sum()
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn block<B: Backend>(&self, logits: Tensor<B, 2>, predictions: &[Prediction]) -> BlockLoss<B> {
        Softmax::new(logits, predictions, self.temperature).cross_entropy(self.temperature, None)
    }

    fn needs_logits(&self) -> bool {
        Self::adapts(self.root_children)
    }

    fn observe(&mut self, logits: &[f32], batch: &Batch) {
        let columns = batch.candidate_ids.as_ref().map_or(0, Vec::len);
        let s = &mut self.statistics;
        for (p, prediction) in batch.predictions.iter().enumerate().filter(|(_, p)| p.is_root_position) {
            let logits = &logits[p * columns..(p + 1) * columns];
            s.positions += 1.0;
            s.label_sum += f64::from(logits[prediction.label]);
            for &column in &prediction.valid {
                let logit = f64::from(logits[column]);
                s.valid += 1.0;
                s.valid_sum += logit;
                s.valid_squares += logit * logit;
            }
        }
    }

    /// Updates the temperature. It stays as it is where the equation has no answer: m·η ≤ 1 (the
    /// target is to be no likelier than under a uniform choice), no root position in the step,
    /// fewer than two valid logits, or logits that are not finite.
    fn update(&mut self) {
        let s = std::mem::take(&mut self.statistics);
        let c = (self.root_children as f64 * ETA).ln();
        if Self::adapts(self.root_children) && s.positions > 0.0 && s.valid > 1.0 {
            let mean = s.valid_sum / s.valid;
            let variance = ((s.valid_squares - s.valid * mean * mean) / (s.valid - 1.0)).max(0.0);
            let d = s.label_sum / s.positions - mean;
            let discriminant = (d * d - 2.0 * c * variance).max(0.0);
            let temperature = (d + discriminant.sqrt()) / (2.0 * c);
            if temperature.is_finite() {
                self.temperature = (1.0 - ALPHA) * self.temperature + ALPHA * temperature.clamp(BOUNDS.0, BOUNDS.1);
            }
        }
    }

    fn state(&self) -> LossState {
        LossState::from([("temperature".to_string(), self.temperature)])
    }

    fn restore(&mut self, state: &LossState) {
        // Checkpoints of earlier versions call it "value".
        if let Some(&temperature) = state.get("temperature").or_else(|| state.get("value")) {
            self.temperature = temperature;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update_temperature(temperature: f64, statistics: RootStatistics, root_children: usize) -> f64 {
        let mut loss = Ats { temperature, root_children, statistics };
        loss.update();
        assert_eq!(loss.statistics, RootStatistics::default());
        loss.temperature()
    }

    #[test]
    fn no_update_where_the_equation_says_nothing() {
        let some = RootStatistics { positions: 2.0, label_sum: 8.0, valid: 6.0, valid_sum: 3.0, valid_squares: 30.0 };
        for (statistics, m) in [(some, 4), (some, 1), (RootStatistics::default(), 50)] {
            assert_eq!(update_temperature(2.0, statistics, m), 2.0, "m = {m}");
        }
        assert_eq!(update_temperature(2.0, RootStatistics { label_sum: f64::NAN, ..some }, 50), 2.0);
    }

    /// With no variance the root is d / C: d = 6, C = ln(20 · 0.25) by hand.
    #[test]
    fn plus_root_without_variance() {
        let equal = RootStatistics { positions: 1.0, label_sum: 6.0, valid: 3.0, valid_sum: 0.0, valid_squares: 0.0 };
        let expected = 0.95 * 2.0 + 0.05 * (6.0 / (20f64 * 0.25).ln());
        assert!((update_temperature(2.0, equal, 20) - expected).abs() < 1e-12);
    }

    #[test]
    fn state_of_this_and_of_earlier_versions() {
        let mut loss = Ats::new(9);
        loss.restore(&LossState::from([("value".into(), 3.25)]));
        assert_eq!(loss.temperature(), 3.25);
        let mut other = Ats::new(9);
        other.restore(&loss.state());
        assert_eq!(other, loss);
    }
}
