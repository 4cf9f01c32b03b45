//! Mixtures of rankers.
//!
//! With p_k(item) = score_k(item) / Σ score_k, the distribution of part k after a history, a
//! mixture's distribution is p(item) = Σ_k w_k p_k(item) with weights w_k that add up to 1.
//!
//! The weights are those under which the targets of the validation windows are likeliest, by
//! expectation maximisation (Dempster, Laird, Rubin 1977). No part may reach every target, so a
//! uniform distribution over the catalogue takes part in the fit, as a prior's smoothing does; its
//! weight is then left out, and the other weights are scaled to add up to 1.

use std::sync::Arc;

use super::{Ranker, Scores};
use crate::data::{Corpus, Split, Window};

/// Most validation windows that weights are fitted on; they are drawn evenly.
const WINDOWS: usize = 5000;
/// Most scores that are in memory at once.
const SCORES: usize = 1 << 26;
/// Most steps of expectation maximisation.
const STEPS: usize = 2000;
/// Expectation maximisation ends when no weight changes more than this.
const CONVERGED: f64 = 1e-9;

/// Several rankers as one ranker.
#[derive(Clone, Debug)]
pub(crate) struct Mixture {
    /// The rankers with their weights; at least one.
    parts: Vec<(Arc<dyn Ranker>, f64)>,
}

impl Mixture {
    /// Mixes rankers of one catalogue.
    ///
    /// * `weights`: one for each ranker, at least 0, not all 0.
    pub(crate) fn new(rankers: Vec<Arc<dyn Ranker>>, weights: &[f64]) -> Self {
        Self { parts: rankers.into_iter().zip(weights.iter().copied()).collect() }
    }

    /// Sums the parts' distributions. A part without scores has no influence.
    fn mix(&self, scores: &[Scores]) -> Scores {
        let mut pairs: Vec<(u32, f64)> = Vec::new();
        let mut dense: Option<Vec<f64>> = None;
        for (scores, &(_, weight)) in scores.iter().zip(&self.parts) {
            let total = total(scores);
            if total == 0.0 || weight == 0.0 {
                continue;
            }
            let weighted = scores.positive().map(|(item, score)| (item, weight * (score / total)));
            match scores {
                Scores::Sparse(_) => pairs.extend(weighted),
                Scores::Dense(_) => {
                    let dense = dense.get_or_insert_with(|| vec![0.0; self.items()]);
                    weighted.for_each(|(item, score)| dense[item as usize] += score);
                }
            }
        }
        match dense {
            None => Scores::from_pairs(pairs),
            Some(mut dense) => {
                pairs.into_iter().for_each(|(item, score)| dense[item as usize] += score);
                Scores::Dense(dense)
            }
        }
    }
}

/// Returns the sum of all scores; 0 where it is not finite.
fn total(scores: &Scores) -> f64 {
    let total: f64 = scores.positive().map(|(_, score)| score).sum();
    if total.is_finite() { total } else { 0.0 }
}

impl Ranker for Mixture {
    fn items(&self) -> usize {
        self.parts.first().map_or(0, |(ranker, _)| ranker.items())
    }

    fn scores(&self, history: &[u32]) -> Scores {
        self.mix(&self.parts.iter().map(|(ranker, _)| ranker.scores(history)).collect::<Vec<_>>())
    }

    fn scores_before_target(&self, corpus: &Corpus, window: &Window) -> Scores {
        let scores = self.parts.iter().map(|(ranker, _)| ranker.scores_before_target(corpus, window));
        self.mix(&scores.collect::<Vec<_>>())
    }

    /// Items of the history are left out where every part leaves them out.
    fn excludes_history(&self) -> bool {
        self.parts.iter().all(|(ranker, _)| ranker.excludes_history())
    }
}

/// Returns the weight of each ranker, by the validation windows; equal weights where there are none
/// or no ranker reaches a target.
pub(crate) fn fit_weights(rankers: &[Arc<dyn Ranker>], corpus: &Corpus) -> Vec<f64> {
    let windows = corpus.windows(Split::Valid);
    let step = windows.len().div_ceil(WINDOWS).max(1);
    let windows: Vec<&Window> = windows.iter().step_by(step).collect();
    let uniform = 1.0 / corpus.items.len() as f64;
    // `[windows][rankers + 1]`: the target's probability by each ranker.
    let mut likelihoods: Vec<Vec<f64>> = Vec::with_capacity(windows.len());
    for windows in windows.chunks((SCORES / corpus.items.len()).clamp(1, 256)) {
        let histories: Vec<&[u32]> = windows.iter().map(|window| corpus.history(window)).collect();
        let first = likelihoods.len();
        likelihoods.resize_with(first + windows.len(), Vec::new);
        for ranker in rankers {
            for ((window, scores), row) in
                windows.iter().zip(ranker.scores_of_all(&histories)).zip(&mut likelihoods[first..])
            {
                let total = total(&scores);
                row.push(if total > 0.0 { scores.get(corpus.target(window)) / total } else { 0.0 });
            }
        }
        likelihoods[first..].iter_mut().for_each(|row| row.push(uniform));
    }
    let weights = likeliest_weights(&likelihoods, rankers.len() + 1);
    let (_, weights) = weights.split_last().unwrap_or((&0.0, &[]));
    let total: f64 = weights.iter().sum();
    // Six decimals: they read back from JSON exactly, and the fit is no finer.
    let rounded = |weight: f64| (weight * 1e6).round() / 1e6;
    match total > 1e-9 {
        true => weights.iter().map(|weight| rounded(weight / total)).collect(),
        false => vec![1.0 / rankers.len() as f64; rankers.len()],
    }
}

/// Returns the weights w that maximise Σ_n ln Σ_k w_k p_nk by expectation maximisation: each step
/// replaces w_k by the mean over n of w_k p_nk / Σ_j w_j p_nj.
///
/// # Shapes
/// `likelihoods`: `[windows][parts]`, each row with a number above 0. Returns `[parts]`.
fn likeliest_weights(likelihoods: &[Vec<f64>], parts: usize) -> Vec<f64> {
    let mut weights = vec![1.0 / parts as f64; parts];
    if likelihoods.is_empty() {
        return weights;
    }
    for _ in 0..STEPS {
        let mut next = vec![0.0; parts];
        for row in likelihoods {
            let sum: f64 = row.iter().zip(&weights).map(|(p, weight)| p * weight).sum();
            for ((next, p), weight) in next.iter_mut().zip(row).zip(&weights) {
                *next += weight * p / sum;
            }
        }
        next.iter_mut().for_each(|weight| *weight /= likelihoods.len() as f64);
        let change = next.iter().zip(&weights).map(|(new, old)| (new - old).abs()).fold(0.0, f64::max);
        weights = next;
        if change < CONVERGED {
            break;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::data::synthetic;
    use crate::rankers::testing::{fit, fit_mixture};

    /// At the maximum no step towards another part raises the likelihood (the slope there is the
    /// mean of p_k / p less 1), and the parts that have weight have slope 0.
    #[test]
    fn the_weights_are_the_likeliest() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for _ in 0..20 {
            let row =
                |_| (0..3).map(|k| if k < 2 && rng.random_bool(0.4) { 0.0 } else { rng.random::<f64>() }).collect();
            let rows: Vec<Vec<f64>> = (0..50).map(row).collect();
            let weights = likeliest_weights(&rows, 3);
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for k in 0..3 {
                let of = |row: &Vec<f64>| row[k] / row.iter().zip(&weights).map(|(p, w)| p * w).sum::<f64>();
                let slope = rows.iter().map(of).sum::<f64>() / rows.len() as f64 - 1.0;
                assert!(slope < 1e-4 && (weights[k] < 1e-3 || slope > -1e-4), "{weights:?}: {slope}");
            }
        }
    }

    #[test]
    fn a_mixture_is_the_weighted_sum_of_distributions() {
        let (corpus, _) = synthetic(1);
        let items = corpus.items.len();
        let history = corpus.history(&corpus.windows(Split::Test)[3]);
        for names in [["cooccurrence", "text"], ["popularity", "text"]] {
            let parts = names.map(|name| fit(name, &corpus));
            let mixture = Mixture::new(parts.to_vec(), &[0.3, 0.7]);
            let [a, b] = [&parts[0], &parts[1]].map(|part| part.scores(history).to_dense(items));
            let (sum_a, sum_b) = (a.iter().sum::<f64>(), b.iter().sum::<f64>());
            let scores = mixture.scores(history);
            assert_eq!(matches!(scores, Scores::Sparse(_)), names[0] == "cooccurrence");
            for (item, found) in scores.to_dense(items).into_iter().enumerate() {
                let expected = 0.3 * a[item] / sum_a + 0.7 * b[item] / sum_b;
                assert!((found - expected).abs() < 1e-12);
            }
            assert_eq!(mixture.excludes_history(), names[0] == "cooccurrence");
            // A part that has no scores after a history has no influence.
            let unseen = mixture.scores(&[]);
            assert_eq!(unseen.positive().count(), parts[0].scores(&[]).positive().count());
        }
        let fitted = fit_mixture("cooccurrence+text", &corpus);
        let weights = fitted.mixture.unwrap();
        assert!((weights["cooccurrence"] + weights["text"] - 1.0).abs() < 1e-5 && weights["text"] > 0.0);
    }
}
