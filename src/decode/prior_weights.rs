//! The weights of the LLM and of a ranker's prior, fitted by maximum likelihood.
//!
//! Beside a prior ([`super::TriePrior`]) the probability of a node's child is the softmax of
//! llm_weight · logit + weight · ln share over the node's children. The mean over some windows of
//! -ln of this probability, summed over the branching nodes on the way to the target, is convex in
//! the two weights. Newton's method finds its minimum over weights of at least 0.
//!
//! The log-linear mixture of experts with weights by likelihood is Heskes's (Selecting weighting
//! factors in logarithmic opinion pools, NIPS 1997); its place in a trie is itemlm's own.

use serde::Serialize;

/// A branching node on the way to a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Branching {
    /// `[children]`: the LLM's logits.
    pub logits: Vec<f32>,
    /// `[children]`: ln of the prior's share of each child.
    pub log_shares: Vec<f32>,
    /// The index of the child on the way to the target.
    pub target: usize,
}

/// The weights of the LLM and of the prior, each at least 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PriorWeights {
    /// The factor of the LLM's logits.
    pub llm: f64,
    /// The factor of the logarithm of the prior's share.
    pub prior: f64,
}

/// The largest weight.
const LARGEST: f64 = 1000.0;

impl PriorWeights {
    /// Fits the weights to `branchings`: those under which the targets are likeliest, each from 0
    /// to 1000.
    pub fn fit(branchings: &[Branching]) -> Self {
        let mut at = [1.0, 1.0];
        let mut now = Slope::new(branchings, at);
        for _ in 0..100 {
            // A weight at a bound that the loss pushes against stays there.
            let free = [0, 1].map(|n| {
                let held = (at[n] <= 0.0 && now.gradient[n] >= 0.0) || (at[n] >= LARGEST && now.gradient[n] <= 0.0);
                !held
            });
            let direction = now.newton(free);
            let step = |length: f64| [0, 1].map(|n| (at[n] + length * direction[n]).clamp(0.0, LARGEST));
            let lengths = std::iter::successors(Some(1.0), |length| Some(length / 2.0)).take(40);
            let tried = lengths.map(|length| (step(length), Slope::new(branchings, step(length))));
            // Armijo's condition: a fraction of what the slope promises.
            let mut enough = tried.filter(|(to, next)| {
                let promised: f64 = (0..2).map(|n| now.gradient[n] * (to[n] - at[n])).sum();
                next.loss <= now.loss + 1e-4 * promised && promised < 0.0
            });
            let Some((to, next)) = enough.next() else { break };
            let gain = now.loss - next.loss;
            (at, now) = (to, next);
            if gain <= 1e-12 * now.loss.abs() {
                break;
            }
        }
        Self { llm: at[0], prior: at[1] }
    }

    /// Returns the sum of -ln of the targets' probabilities.
    pub fn loss(self, branchings: &[Branching]) -> f64 {
        Slope::new(branchings, [self.llm, self.prior]).loss
    }
}

/// The loss, its gradient and its second derivatives by the weights of LLM and prior.
struct Slope {
    loss: f64,
    gradient: [f64; 2],
    /// The derivatives by llm·llm, llm·prior and prior·prior.
    hessian: [f64; 3],
}

impl Slope {
    fn new(branchings: &[Branching], weights: [f64; 2]) -> Self {
        let mut sums = Self { loss: 0.0, gradient: [0.0; 2], hessian: [0.0; 3] };
        for Branching { logits, log_shares, target } in branchings {
            let features = || logits.iter().zip(log_shares).map(|(&z, &s)| [f64::from(z), f64::from(s)]);
            let score = |[z, s]: [f64; 2]| weights[0] * z + weights[1] * s;
            let max = features().map(score).fold(f64::NEG_INFINITY, f64::max);
            let (mut sum, mut mean, mut square) = (0.0, [0.0; 2], [0.0; 3]);
            for feature in features() {
                let ([z, s], p) = (feature, (score(feature) - max).exp());
                sum += p;
                mean = [mean[0] + p * z, mean[1] + p * s];
                square = [square[0] + p * z * z, square[1] + p * z * s, square[2] + p * s * s];
            }
            let [z, s] = mean.map(|x| x / sum);
            let label = [f64::from(logits[*target]), f64::from(log_shares[*target])];
            sums.loss += sum.ln() + max - score(label);
            sums.gradient = [sums.gradient[0] + z - label[0], sums.gradient[1] + s - label[1]];
            let products = [z * z, z * s, s * s];
            (0..3).for_each(|n| sums.hessian[n] += square[n] / sum - products[n]);
        }
        sums
    }

    /// Returns Newton's step of the `free` weights; 0 for the others.
    fn newton(&self, free: [bool; 2]) -> [f64; 2] {
        let [g, h] = self.gradient;
        // A weight that changes nothing has a second derivative of 0.
        let ridge = 1e-9 * (self.hessian[0] + self.hessian[2]) + f64::MIN_POSITIVE;
        let [a, b, c] = [self.hessian[0] + ridge, self.hessian[1], self.hessian[2] + ridge];
        match free {
            [true, true] => {
                let determinant = a * c - b * b;
                [(b * h - c * g) / determinant, (b * g - a * h) / determinant]
            }
            [true, false] => [-g / a, 0.0],
            [false, true] => [0.0, -h / c],
            [false, false] => [0.0, 0.0],
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Branchings whose targets are drawn from the softmax of `weights`.
    fn sample(weights: PriorWeights, count: usize) -> Vec<Branching> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let branching = |_| {
            let children = rng.random_range(2..20);
            let logits: Vec<f32> = (0..children).map(|_| rng.random_range(-3.0..3.0)).collect();
            let shares: Vec<f32> = (0..children).map(|_| rng.random_range(0.01..1.0f32).powi(3)).collect();
            let sum: f32 = shares.iter().sum();
            let log_shares: Vec<f32> = shares.iter().map(|share| (share / sum).ln()).collect();
            let exp = |n: usize| (weights.llm * f64::from(logits[n]) + weights.prior * f64::from(log_shares[n])).exp();
            let mut left = rng.random_range(0.0..1.0) * (0..children).map(exp).sum::<f64>();
            let target = (0..children - 1).find(|&n| {
                left -= exp(n);
                left < 0.0
            });
            Branching { target: target.unwrap_or(children - 1), logits, log_shares }
        };
        (0..count).map(branching).collect()
    }

    /// No other pair of weights on a fine grid around the fit has a lower loss, and the weights
    /// that drew the targets are near: 20,000 draws tell them to about .02.
    #[test]
    fn the_fit_is_the_likeliest_pair() {
        for (llm, prior) in [(0.4, 0.9), (1.0, 1.0), (0.0, 1.0), (0.7, 0.0)] {
            let branchings = sample(PriorWeights { llm, prior }, 20_000);
            let fit = PriorWeights::fit(&branchings);
            assert!((fit.llm - llm).abs() < 0.05 && (fit.prior - prior).abs() < 0.05, "{fit:?} of {llm}, {prior}");
            let least = fit.loss(&branchings);
            for (x, y) in (-5..=5).flat_map(|x| (-5..=5).map(move |y| (x, y))) {
                let near = |weight: f64, n: i32| (weight + f64::from(n) * 1e-3).max(0.0);
                let other = PriorWeights { llm: near(fit.llm, x), prior: near(fit.prior, y) };
                assert!(other.loss(&branchings) >= least - 1e-9 * least, "{other:?} is likelier than {fit:?}");
            }
        }
    }

    /// An LLM that is sure of wrong targets gets no weight, one that tells nothing apart any, and
    /// targets that the prior never misses the largest: the loss has no minimum then.
    #[test]
    fn bounds() {
        let branching =
            |logits: [f32; 2], target| Branching { logits: logits.into(), log_shares: vec![-0.1, -2.3], target };
        let wrong = [branching([-9.0, 9.0], 0), branching([-9.0, 9.0], 0), branching([-1.0, 1.0], 1)];
        let fit = PriorWeights::fit(&wrong);
        assert_eq!(fit.llm, 0.0);
        assert!(fit.prior > 0.1 && fit.prior < 10.0, "{fit:?}");
        let constant = PriorWeights::fit(&[branching([4.0, 4.0], 0), branching([4.0, 4.0], 1)]);
        assert!(constant.llm.is_finite() && constant.prior < 1e-3, "{constant:?}");
        let certain = PriorWeights::fit(&[branching([0.0, 0.0], 0)]);
        assert!(certain.prior > 5.0 && certain.prior <= LARGEST, "{certain:?}");
        assert_eq!(PriorWeights::fit(&[]), PriorWeights { llm: 1.0, prior: 1.0 });
    }
}
