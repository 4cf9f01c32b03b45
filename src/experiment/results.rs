//! `experiment.json`: what came out of the cells and baselines, and their comparisons.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::Split;
use crate::evaluate::statistics::{CompareOptions, Comparison, MeanInterval, RankedMethod, correct};
use crate::evaluate::{Group, RankedWindow, Summary, read_ranks};
use crate::{Context, Error, Result};

/// The file's name in an experiment's directory.
pub const RESULTS: &str = "experiment.json";
/// The metric by which rows are compared.
pub const PRIMARY: &str = "ndcg@10";
/// Rows up to which all pairs are compared; of more, each with the best alone, so that Holm's
/// correction leaves the tests some power.
const MOST_COMPARED: usize = 20;

/// What `experiment --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExperimentReport {
    /// The run file that all cells start from.
    pub run: PathBuf,
    /// The split that was ranked.
    pub split: Split,
    /// Number of windows asked for; null for all.
    pub limit: Option<usize>,
    /// A row a combination of the axes' values.
    pub cells: Vec<Row>,
    /// A row a ranker without a language model.
    pub baselines: Vec<Row>,
    /// The rows that are comparable, in pairs, by [`PRIMARY`].
    pub comparisons: Vec<Comparison>,
    /// The pairs that are not comparable.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub not_compared: Vec<NotCompared>,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name, and that of its directory.
    pub name: String,
    /// The keys of the run file that the cell sets; empty for a baseline.
    pub set: BTreeMap<String, serde_json::Value>,
    /// Seeds of the runs that are done.
    pub seeds: Vec<u64>,
    /// What an interval is over: the seeds, or of one seed the users.
    pub intervals: Spread,
    /// All windows.
    pub metrics: BTreeMap<String, Interval>,
    /// Windows with a cold target.
    pub cold: BTreeMap<String, Interval>,
    /// Windows with a warm target.
    pub warm: BTreeMap<String, Interval>,
    /// Its runs, one a seed; one for a baseline.
    pub runs: Vec<RunResult>,
}

/// What an interval is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// A 95 % t-interval over the seeds.
    Seeds,
    /// A 95 % bootstrap interval over the users.
    Users,
}

/// A mean and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Mean over the seeds.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A run of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The seed; null for a baseline.
    pub seed: Option<u64>,
    /// Its directory, relative to the experiment's.
    pub dir: PathBuf,
    /// SHA-256 of its run file and corpus.
    pub key: String,
    /// SHA-256 of the corpus's `corpus.toml`.
    pub corpus: String,
    /// Whether it is done.
    pub status: Status,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// Its metrics, with intervals over the users; of a run that is done.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub summary: Option<Summary>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Trained and evaluated.
    Done,
    /// It ended with an error.
    Failed,
    /// It has not begun, or was stopped.
    Open,
}

/// Two rows that are not comparable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCompared {
    /// The first row.
    pub a: String,
    /// The second row.
    pub b: String,
    /// What differs.
    pub why: String,
}

impl ExperimentReport {
    /// Reads `experiment.json` of an experiment's directory.
    ///
    /// # Errors
    /// A file that cannot be read, or that is none.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(RESULTS);
        let text = fs::read_to_string(&path).context(path.display())?;
        serde_json::from_str(&text).context(path.display())
    }

    /// Returns the baselines' and the cells' rows, in the order of the table.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.baselines.iter().chain(&self.cells)
    }

    /// Returns all runs that failed, with the names of their rows.
    pub fn failures(&self) -> Vec<(&str, &RunResult)> {
        let runs = self.rows().flat_map(|row| row.runs.iter().map(move |run| (row.name.as_str(), run)));
        runs.filter(|(_, run)| run.status == Status::Failed).collect()
    }

    /// Returns how many runs have not begun or were stopped.
    pub fn open_runs(&self) -> usize {
        self.rows().flat_map(|row| &row.runs).filter(|run| run.status == Status::Open).count()
    }

    /// Returns whether row `a` is significantly better than row `b` by [`PRIMARY`]: Holm's p below
    /// 0.05.
    pub fn beats(&self, a: &str, b: &str) -> bool {
        self.comparisons.iter().filter(|c| c.all.p_holm < 0.05).any(|c| {
            (c.a == a && c.b == b && c.all.difference > 0.0) || (c.a == b && c.b == a && c.all.difference < 0.0)
        })
    }
}

/// What `evaluation-<split>.json` tells of a comparison.
#[derive(Debug, Clone, Deserialize)]
struct Evaluated {
    #[serde(flatten)]
    summary: Summary,
    scoring: String,
    beams: Option<usize>,
    #[serde(default)]
    exclude_history: bool,
}

/// A row's runs as they were ranked.
pub(super) struct RankedRow {
    name: String,
    seeds: Vec<Vec<RankedWindow>>,
    corpora: Vec<String>,
    /// Scoring and beams; none for a baseline, which has neither.
    search: Option<(String, Option<usize>)>,
    exclude_history: bool,
}

/// Reads the results of a row's runs that are done.
///
/// # Errors
/// Results that cannot be read.
pub(super) fn read_row(
    dir: &Path,
    name: &str,
    set: BTreeMap<String, serde_json::Value>,
    mut runs: Vec<RunResult>,
    split: Split,
) -> Result<(Row, RankedRow)> {
    let (mut evaluated, mut ranks) = (Vec::new(), Vec::new());
    for run in runs.iter_mut().filter(|run| run.status == Status::Done) {
        let path = dir.join(&run.dir).join(format!("evaluation-{split}.json"));
        let text = fs::read_to_string(&path).context(path.display())?;
        let found: Evaluated = serde_json::from_str(&text).context(path.display())?;
        run.summary = Some(found.summary.clone());
        evaluated.push(found);
        ranks.push(read_ranks(&dir.join(&run.dir).join(format!("ranks-{split}.parquet")))?);
    }
    let groups = |group: fn(&Summary) -> &Group| {
        intervals(&evaluated.iter().map(|evaluated| group(&evaluated.summary)).collect::<Vec<_>>())
    };
    let done: Vec<&RunResult> = runs.iter().filter(|run| run.status == Status::Done).collect();
    let first = evaluated.first();
    let ranked = RankedRow {
        name: name.into(),
        seeds: ranks,
        corpora: done.iter().map(|run| run.corpus.clone()).collect(),
        search: first.filter(|e| e.beams.is_some()).map(|e| (e.scoring.clone(), e.beams)),
        exclude_history: first.is_some_and(|e| e.exclude_history),
    };
    let row = Row {
        name: name.into(),
        set,
        seeds: done.iter().filter_map(|run| run.seed).collect(),
        intervals: if done.len() > 1 { Spread::Seeds } else { Spread::Users },
        metrics: groups(|summary| &summary.all),
        cold: groups(|summary| &summary.cold),
        warm: groups(|summary| &summary.warm),
        runs,
    };
    Ok((row, ranked))
}

/// Returns each metric's mean over the runs and its interval: over the runs, or of one run over the
/// users.
fn intervals(groups: &[&Group]) -> BTreeMap<String, Interval> {
    let Some(first) = groups.first() else { return BTreeMap::new() };
    let of = |name: &String| {
        let values: Vec<f64> = groups.iter().filter_map(|group| group.metric(name)).collect();
        let over_seeds = MeanInterval::of(&values)?;
        let [low, high] = match (over_seeds.low, over_seeds.high) {
            (Some(low), Some(high)) => [low, high],
            _ => first.intervals.get(name).copied()?,
        };
        Some((name.clone(), Interval { mean: over_seeds.mean, low, high }))
    };
    first.metrics.keys().filter_map(of).collect()
}

/// Compares the rows in pairs: all of up to [`MOST_COMPARED`] rows, of more each with the best.
///
/// # Errors
/// Runs of a row that ranked other windows.
pub(super) fn compare(rows: &[RankedRow], best: Option<&str>) -> Result<(Vec<Comparison>, Vec<NotCompared>)> {
    let rows: Vec<&RankedRow> = rows.iter().filter(|row| !row.seeds.is_empty()).collect();
    let options = CompareOptions::default();
    let (mut comparisons, mut not_compared) = (Vec::new(), Vec::new());
    for (after, a) in rows.iter().enumerate() {
        for b in &rows[after + 1..] {
            let with_best = best.is_none_or(|best| a.name == best || b.name == best);
            if rows.len() > MOST_COMPARED && !with_best {
                continue;
            }
            match difference(a, b) {
                Some(why) => not_compared.push(NotCompared { a: a.name.clone(), b: b.name.clone(), why }),
                None => comparisons.push(Comparison::of(&a.method(), &b.method(), &options).map_err(failed)?),
            }
        }
    }
    correct(&mut comparisons);
    Ok((comparisons, not_compared))
}

/// Makes of a usage error one of work: nobody asked for this pair.
fn failed(error: Error) -> Error {
    Error::failed(error.to_string())
}

impl RankedRow {
    fn method(&self) -> RankedMethod<'_> {
        RankedMethod { name: self.name.clone(), seeds: self.seeds.iter().map(Vec::as_slice).collect() }
    }
}

/// Returns why two rows are not comparable; `None` where they are.
fn difference(a: &RankedRow, b: &RankedRow) -> Option<String> {
    let corpora = a.corpora.iter().chain(&b.corpora).collect::<std::collections::BTreeSet<_>>();
    if corpora.len() > 1 {
        return Some("other corpora".into());
    }
    if a.exclude_history != b.exclude_history {
        return Some("items of the history are left out of one".into());
    }
    let (Some((scoring_a, beams_a)), Some((scoring_b, beams_b))) = (&a.search, &b.search) else { return None };
    if scoring_a != scoring_b {
        return Some(format!("{scoring_a} and {scoring_b} scoring"));
    }
    let number = |beams: &Option<usize>| beams.map_or("no".into(), |beams| beams.to_string());
    (beams_a != beams_b).then(|| format!("{} and {} beams", number(beams_a), number(beams_b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(value: f64) -> Group {
        let name = "ndcg@10".to_string();
        Group {
            users: 9,
            metrics: BTreeMap::from([(name.clone(), value)]),
            intervals: BTreeMap::from([(name, [0.1, 0.4])]),
        }
    }

    #[test]
    fn an_interval_is_over_seeds_or_of_one_seed_over_users() {
        let one = intervals(&[&group(0.25)]);
        assert_eq!(one["ndcg@10"], Interval { mean: 0.25, low: 0.1, high: 0.4 });
        // t(0.975, 1) = 12.7062; the standard deviation of 0.2 and 0.4 over the root of 2 is 0.1.
        let two = intervals(&[&group(0.2), &group(0.4)])["ndcg@10"];
        assert!((two.mean - 0.3).abs() < 1e-12 && (two.high - (0.3 + 1.27062)).abs() < 1e-5, "{two:?}");
        assert!(intervals(&[]).is_empty());
    }

    fn ranked(name: &str, search: Option<(&str, usize)>, ranks: [Option<u32>; 12]) -> RankedRow {
        let window = |(window, rank): (usize, Option<u32>)| RankedWindow {
            window: window as u32,
            user: format!("u{window}"),
            target: "t".into(),
            cold: false,
            rank,
        };
        RankedRow {
            name: name.into(),
            seeds: vec![ranks.into_iter().enumerate().map(window).collect()],
            corpora: vec!["c".into()],
            search: search.map(|(scoring, beams)| (scoring.into(), Some(beams))),
            exclude_history: false,
        }
    }

    #[test]
    fn only_what_is_comparable_is_compared() {
        let (good, bad) = ([Some(0); 12], [None; 12]);
        let rows = [
            ranked("counts", None, bad),
            ranked("full", Some(("full", 10)), good),
            ranked("masked", Some(("masked", 10)), good),
            ranked("five", Some(("full", 5)), good),
            RankedRow { corpora: vec!["d".into()], ..ranked("other", Some(("full", 10)), good) },
            RankedRow { seeds: Vec::new(), ..ranked("failed", None, good) },
        ];
        let (comparisons, not) = compare(&rows, None).unwrap();
        let pairs: Vec<(&str, &str)> = comparisons.iter().map(|c| (c.a.as_str(), c.b.as_str())).collect();
        assert_eq!(pairs, [("counts", "full"), ("counts", "masked"), ("counts", "five")]);
        assert_eq!((not.len(), not[0].why.as_str()), (7, "other corpora"));
        assert!(not.iter().any(|n| n.why == "full and masked scoring") && not.iter().any(|n| n.why == "10 and 5 beams"));
        // All 12 users differ: of the 2^12 assignments of signs 2 are as far from 0, exactly.
        assert!((comparisons[0].all.p - 2.0 / 4096.0).abs() < 1e-12);
        assert!((comparisons[0].all.p_holm - 6.0 / 4096.0).abs() < 1e-12);
        let report = ExperimentReport {
            run: "r".into(),
            split: Split::Test,
            limit: None,
            cells: Vec::new(),
            baselines: Vec::new(),
            comparisons,
            not_compared: not,
        };
        assert!(report.beats("full", "counts") && !report.beats("counts", "full") && !report.beats("full", "five"));
        let many: Vec<RankedRow> = (0..30).map(|n| ranked(&n.to_string(), None, good)).collect();
        assert_eq!(compare(&many, Some("7")).unwrap().0.len(), 29);
    }
}
