//! Ranking metrics with one relevant item a window, and their bootstrap intervals.
//!
//! With the target at 0-based rank r (none when it is not among the returned items):
//!
//! - HR@k = 1 if r < k, else 0
//! - NDCG@k = 1 / log2(r + 2) if r < k, else 0 (the ideal ranking's DCG is 1)
//!
//! A metric is the mean over the windows. A hit is an equal title, as in the published evaluation,
//! so another item of the same title counts.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use polars::prelude::Column;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::core::files;
use crate::data::{Corpus, parquet_bytes};

/// The k of NDCG@k and HR@k.
pub const CUTOFFS: [u32; 3] = [1, 5, 10];
const RESAMPLES: usize = 1000;

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
/// serialises to the keys `users`, `metrics`, `intervals`, `cold` and `warm` of `evaluate --json`,
/// and is flattened into the document with the other keys.
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
    /// `ndcg@1`, `hr@1`, `ndcg@5`, … Empty without windows.
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

/// Averages the outcomes. The intervals are percentiles of 1,000 seeded bootstrap resamples of
/// users, each with all windows, because one user's windows overlap.
pub fn summarise(outcomes: &[Outcome], seed: u64) -> Summary {
    let group = |keep: fn(&Outcome) -> bool| {
        let kept: Vec<Outcome> = outcomes.iter().copied().filter(keep).collect();
        summarise_group(&kept, seed)
    };
    Summary { all: group(|_| true), cold: group(|o| o.cold), warm: group(|o| !o.cold) }
}

type Values = [f64; 2 * CUTOFFS.len()];

/// Returns NDCG@k and HR@k for each k.
fn values(rank: Option<u32>) -> Values {
    let mut values = Values::default();
    for (pair, k) in values.chunks_exact_mut(2).zip(CUTOFFS) {
        if let (Some(rank), [ndcg, hr]) = (rank.filter(|r| *r < k), pair) {
            *ndcg = 1.0 / (f64::from(rank) + 2.0).log2();
            *hr = 1.0;
        }
    }
    values
}

fn names() -> impl Iterator<Item = String> {
    CUTOFFS.into_iter().flat_map(|k| [format!("ndcg@{k}"), format!("hr@{k}")])
}

/// Sums of the metrics over some windows, and the number of windows.
#[derive(Clone, Copy, Default)]
struct Sum {
    values: Values,
    windows: f64,
}

impl Sum {
    fn add(&mut self, values: &Values, windows: f64) {
        for (sum, value) in self.values.iter_mut().zip(values) {
            *sum += value;
        }
        self.windows += windows;
    }

    fn mean(&self) -> Values {
        self.values.map(|sum| sum / self.windows)
    }
}

fn summarise_group(outcomes: &[Outcome], seed: u64) -> Group {
    if outcomes.is_empty() {
        return Group::default();
    }
    let mut total = Sum::default();
    let mut users: Vec<Sum> = Vec::new();
    let mut index: HashMap<u32, usize> = HashMap::new();
    for outcome in outcomes {
        let values = values(outcome.rank);
        total.add(&values, 1.0);
        let user = *index.entry(outcome.user).or_insert(users.len());
        if user == users.len() {
            users.push(Sum::default());
        }
        users[user].add(&values, 1.0);
    }

    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut samples: [Vec<f64>; 2 * CUTOFFS.len()] = Default::default();
    for _ in 0..RESAMPLES {
        let mut sum = Sum::default();
        for _ in 0..users.len() {
            let drawn = &users[rng.random_range(0..users.len() as u32) as usize];
            sum.add(&drawn.values, drawn.windows);
        }
        for (sample, mean) in samples.iter_mut().zip(sum.mean()) {
            sample.push(mean);
        }
    }
    let intervals = samples.map(|mut sample| {
        sample.sort_unstable_by(f64::total_cmp);
        [percentile(&sample, 0.025), percentile(&sample, 0.975)]
    });
    Group {
        users: outcomes.len(),
        metrics: names().zip(total.mean()).collect(),
        intervals: names().zip(intervals).collect(),
    }
}

/// Interpolates linearly between the order statistics, as NumPy does by default.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = p * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Writes one row a window, in the outcomes' order, as Parquet: `window` u32, `user_id`, `target`
/// (its title), `cold`, `rank` (u32 from 0, null if not returned); `task` and `prompt` as well
/// where `by` has them for each outcome.
pub fn write_ranks(path: &Path, outcomes: &[Outcome], by: &[(String, String)], corpus: &Corpus) -> Result<()> {
    let windows: Vec<u32> = outcomes.iter().map(|o| o.window).collect();
    let users: Vec<&str> = outcomes.iter().map(|o| corpus.user_id(o.user)).collect();
    let targets: Vec<&str> = outcomes.iter().map(|o| corpus.title(o.target)).collect();
    let cold: Vec<bool> = outcomes.iter().map(|o| o.cold).collect();
    let ranks: Vec<Option<u32>> = outcomes.iter().map(|o| o.rank).collect();
    let mut columns = vec![
        Column::new("window".into(), windows),
        Column::new("user_id".into(), users),
        Column::new("target".into(), targets),
        Column::new("cold".into(), cold),
        Column::new("rank".into(), ranks),
    ];
    if !by.is_empty() {
        let (tasks, prompts): (Vec<&str>, Vec<&str>) =
            by.iter().map(|(task, prompt)| (task.as_str(), prompt.as_str())).unzip();
        columns.push(Column::new("task".into(), tasks));
        columns.push(Column::new("prompt".into(), prompts));
    }
    files::write_atomic(path, &parquet_bytes(columns)?)
}

#[cfg(test)]
mod tests {
    use polars::prelude::{ParquetReader, SerReader};

    use super::*;
    use crate::data::synthetic;

    fn outcome(user: u32, cold: bool, rank: Option<u32>) -> Outcome {
        Outcome { window: user, user, target: 0, cold, rank }
    }

    /// Ranks 0, 2, 9, 10 and none, computed by hand.
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
        assert_eq!((summary.all.users, summary.cold.users, summary.warm.users), (5, 1, 4));
        assert_eq!(summary.cold.metric("hr@10"), Some(1.0));
        assert_eq!(summary.warm.metric("hr@5"), Some(0.5));
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
        // A user's windows are drawn together: ten equal ones have no more information than one.
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

    #[test]
    fn writes_ranks() {
        let (corpus, _) = synthetic(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranks.parquet");
        let outcomes = [outcome(2, true, Some(3)), outcome(1, false, None)];
        let by = ["seen:0", "unseen"].map(|prompt| ("sequential".to_string(), prompt.to_string()));
        write_ranks(&path, &outcomes, &by, &corpus).unwrap();
        let frame = ParquetReader::new(std::fs::File::open(&path).unwrap()).finish().unwrap();
        let ranks: Vec<Option<u32>> = frame.column("rank").unwrap().u32().unwrap().iter().collect();
        assert_eq!(ranks, [Some(3), None]);
        let users = frame.column("user_id").unwrap();
        assert_eq!(users.str().unwrap().get(0), Some(corpus.user_id(2)));
        assert_eq!(frame.column("prompt").unwrap().str().unwrap().get(1), Some("unseen"));
        write_ranks(&path, &outcomes, &[], &corpus).unwrap();
        let frame = ParquetReader::new(std::fs::File::open(&path).unwrap()).finish().unwrap();
        assert!(frame.column("task").is_err());
    }
}
