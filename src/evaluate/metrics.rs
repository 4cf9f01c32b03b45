//! Ranking metrics with one relevant item a window, and their bootstrap intervals.
//!
//! A metric ([`Metric`]) is the mean over the windows. A hit is an equal title, as in the published
//! evaluation, so another item of the same title counts.

use std::collections::{BTreeMap, HashMap};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::metric::Metric;
use super::statistics::percentile;
use crate::data::Corpus;
use crate::{Error, Result};

/// The k of the metrics that are always stated.
pub const CUTOFFS: [u32; 3] = [1, 5, 10];
/// The largest k.
pub const MAX_CUTOFF: u32 = 1000;
const RESAMPLES: usize = 1000;

/// Returns [`CUTOFFS`] and those of `at`, ascending, each once.
///
/// # Errors
/// A usage error for a k of 0 or above [`MAX_CUTOFF`].
pub fn cutoffs(at: &[u32]) -> Result<Vec<u32>> {
    if let Some(k) = at.iter().find(|k| !(1..=MAX_CUTOFF).contains(*k)) {
        return Err(Error::usage(format!("option `at`: {k} is not between 1 and {MAX_CUTOFF}")));
    }
    let mut cutoffs: Vec<u32> = CUTOFFS.iter().chain(at).copied().collect();
    cutoffs.sort_unstable();
    cutoffs.dedup();
    Ok(cutoffs)
}

/// The result of one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Index in the split's windows.
    pub window: u32,
    /// Dense user index.
    pub user: u32,
    /// Dense index of the target item.
    pub target: u32,
    /// The target item is among [`crate::data::Corpus::cold_items`].
    pub cold: bool,
    /// 0-based rank of the target's title; none if it was not returned.
    pub rank: Option<u32>,
}

/// The metrics of all windows, of those with a cold target and of those with a warm one. It
/// serialises to `evaluate --json`'s keys `users`, `metrics`, `intervals`, `cold` and `warm`;
/// flatten it into the document that adds the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// All windows.
    #[serde(flatten)]
    pub all: Group,
    /// Windows whose target is among [`crate::data::Corpus::cold_items`].
    pub cold: Group,
    /// Windows whose target is not cold.
    pub warm: Group,
}

/// The metrics of some windows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Number of ranked windows (the papers say users; one user may have several windows).
    pub users: usize,
    /// `ndcg@1`, `hr@1`, `mrr@1`, `ndcg@5`, … Empty without windows.
    pub metrics: BTreeMap<String, f64>,
    /// The 95 % interval of each metric, from its 2.5 % to its 97.5 % percentile. Empty without
    /// windows.
    pub intervals: BTreeMap<String, [f64; 2]>,
}

impl Group {
    /// Returns a metric such as `ndcg@10`; none without windows.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.get(name).copied()
    }
}

/// Returns the position of the target's title in a ranking, from 0.
pub fn rank_of(corpus: &Corpus, target: u32, ranking: &[u32]) -> Option<u32> {
    let title = corpus.title(target);
    ranking.iter().position(|&item| corpus.title(item) == title).map(|rank| rank as u32)
}

/// Averages the outcomes at [`CUTOFFS`], as [`summarise_at`] does.
pub fn summarise(outcomes: &[Outcome], seed: u64) -> Summary {
    summarise_at(outcomes, &CUTOFFS, seed)
}

/// Averages the outcomes at these cutoffs. The intervals are percentiles of 1,000 seeded bootstrap
/// resamples of users, each with all windows, because one user's windows overlap.
pub fn summarise_at(outcomes: &[Outcome], cutoffs: &[u32], seed: u64) -> Summary {
    let metrics = Metric::all(cutoffs);
    let group = |keep: fn(&Outcome) -> bool| {
        let kept: Vec<Outcome> = outcomes.iter().copied().filter(keep).collect();
        summarise_group(&kept, &metrics, seed)
    };
    Summary { all: group(|_| true), cold: group(|o| o.cold), warm: group(|o| !o.cold) }
}

fn summarise_group(outcomes: &[Outcome], metrics: &[Metric], seed: u64) -> Group {
    if outcomes.is_empty() {
        return Group::default();
    }
    // `[users, metrics]`: sums over each user's windows; `[users]`: their numbers.
    let (mut sums, mut windows): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut index: HashMap<u32, usize> = HashMap::new();
    let mut total = vec![0.0; metrics.len()];
    for outcome in outcomes {
        let user = *index.entry(outcome.user).or_insert(windows.len());
        if user == windows.len() {
            windows.push(0.0);
            sums.resize(sums.len() + metrics.len(), 0.0);
        }
        windows[user] += 1.0;
        let of_user = &mut sums[user * metrics.len()..][..metrics.len()];
        for ((sum, total), metric) in of_user.iter_mut().zip(&mut total).zip(metrics) {
            let value = metric.value(outcome.rank);
            *sum += value;
            *total += value;
        }
    }

    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut samples: Vec<Vec<f64>> = vec![Vec::with_capacity(RESAMPLES); metrics.len()];
    let mut sum = vec![0.0; metrics.len()];
    for _ in 0..RESAMPLES {
        sum.fill(0.0);
        let mut drawn_windows = 0.0;
        for _ in 0..windows.len() {
            let drawn = rng.random_range(0..windows.len() as u32) as usize;
            let of_user = &sums[drawn * metrics.len()..][..metrics.len()];
            sum.iter_mut().zip(of_user).for_each(|(sum, value)| *sum += value);
            drawn_windows += windows[drawn];
        }
        samples.iter_mut().zip(&sum).for_each(|(sample, sum)| sample.push(sum / drawn_windows));
    }
    let intervals = samples.into_iter().map(|mut sample| {
        sample.sort_unstable_by(f64::total_cmp);
        [percentile(&sample, 0.025), percentile(&sample, 0.975)]
    });
    let names = || metrics.iter().map(Metric::to_string);
    Group {
        users: outcomes.len(),
        metrics: names().zip(total.iter().map(|total| total / outcomes.len() as f64)).collect(),
        intervals: names().zip(intervals).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(user: u32, cold: bool, rank: Option<u32>) -> Outcome {
        Outcome { window: user, user, target: 0, cold, rank }
    }

    /// Ranks 0, 2, 9, 10 and none by hand.
    #[test]
    fn equals_the_hand_worked_means() {
        let ranks = [Some(0), Some(2), Some(9), Some(10), None];
        let outcomes: Vec<Outcome> = ranks.iter().enumerate().map(|(i, r)| outcome(i as u32, i == 2, *r)).collect();
        let summary = summarise(&outcomes, 1);
        let close = |name, value: f64| {
            let got = summary.all.metric(name).unwrap();
            assert!((got - value).abs() < 1e-12, "{name}: {got}, not {value}");
        };
        close("ndcg@1", 1.0 / 5.0);
        close("hr@1", 1.0 / 5.0);
        close("ndcg@5", (1.0 + 0.5) / 5.0); // 1/log2(4) = 0.5
        close("hr@5", 2.0 / 5.0);
        close("ndcg@10", (1.5 + 0.289_064_826_317_888) / 5.0); // 1/log2(11)
        close("hr@10", 3.0 / 5.0);
        close("mrr@5", (1.0 + 1.0 / 3.0) / 5.0);
        close("mrr@10", (1.0 + 1.0 / 3.0 + 0.1) / 5.0);
        assert_eq!((summary.all.users, summary.cold.users, summary.warm.users), (5, 1, 4));
        assert_eq!(summary.cold.metric("hr@10"), Some(1.0));
        assert_eq!(summary.warm.metric("hr@5"), Some(0.5));
        let deeper = summarise_at(&outcomes, &[5, 20], 1);
        assert_eq!(deeper.all.metrics.len(), 6);
        assert_eq!(cutoffs(&[20, 5, 3, 20]).unwrap(), [1, 3, 5, 10, 20]);
        assert!(cutoffs(&[0]).is_err() && cutoffs(&[1001]).is_err());
        assert_eq!(deeper.all.metric("hr@20"), Some(0.8));
        assert_eq!(deeper.all.intervals["ndcg@5"], summary.all.intervals["ndcg@5"]);
    }

    #[test]
    fn intervals_are_seeded_and_cover_the_mean() {
        // 1,000 users with hit rate 0.2: the standard error is sqrt(0.2 * 0.8 / 1000) = 0.01265.
        let outcomes: Vec<Outcome> = (0..1000).map(|i| outcome(i, false, (i % 5 == 0).then_some(0))).collect();
        let summary = summarise(&outcomes, 7);
        let [low, high] = summary.all.intervals["hr@10"];
        assert!((low - (0.2 - 1.96 * 0.01265)).abs() < 0.004, "{low}");
        assert!((high - (0.2 + 1.96 * 0.01265)).abs() < 0.004, "{high}");
        assert_eq!(summary, summarise(&outcomes, 7));
        assert_ne!(summary, summarise(&outcomes, 8));
        // A user's windows are drawn together: ten equal ones tell no more than one.
        let repeated: Vec<Outcome> = outcomes.iter().flat_map(|o| std::iter::repeat_n(*o, 10)).collect();
        assert_eq!(summarise(&repeated, 7).all.intervals["hr@10"], [low, high]);
    }

    #[test]
    fn serialises_to_the_fixed_keys() {
        let summary = summarise(&[outcome(0, true, Some(4))], 1);
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["users"], 1);
        assert_eq!(json["metrics"]["hr@5"], 1.0);
        assert_eq!(json["intervals"]["hr@1"][1], 0.0);
        assert_eq!(json["cold"]["users"], 1);
        assert_eq!(json["warm"]["metrics"], serde_json::json!({}));
        assert_eq!(serde_json::from_value::<Summary>(json).unwrap(), summary);
        assert_eq!(summarise(&[], 1).all, Group::default());
    }
}
