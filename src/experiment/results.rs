//! `experiment.json`: what came out of the cells and baselines, and their comparisons.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::core::files::sha256;
use crate::data::Split;
use crate::evaluate::statistics::{CompareOptions, Comparison, MeanInterval, RankedMethod, correct};
use crate::evaluate::{Group, Summary};
use crate::run::dir::{is_run, read_config, read_identity};
use crate::run::identity::Identity;
use crate::run::{EvaluatedRun, evaluation_file};
use crate::{Context, Error, Result};

/// The file's name in an experiment's directory.
pub const RESULTS: &str = "experiment.json";
/// The metric by which rows are compared.
pub const PRIMARY: &str = "ndcg@10";
/// Rows up to which all pairs are compared; of more, each with the best alone, so that Holm's
/// correction leaves the tests some power.
const MOST_COMPARED: usize = 20;

/// The report of `experiment --json`.
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
    /// Unit of the intervals: the seeds, or of one seed the users.
    pub intervals: Spread,
    /// All windows.
    pub metrics: BTreeMap<String, Interval>,
    /// Windows with a cold target.
    pub cold: BTreeMap<String, Interval>,
    /// Windows with a warm target.
    pub warm: BTreeMap<String, Interval>,
    /// Measures of the lists, such as `coverage@10`: means over the seeds.
    #[serde(default)]
    pub list_metrics: BTreeMap<String, f64>,
    /// Its runs, one a seed; one for a baseline.
    pub runs: Vec<RunResult>,
}

/// Unit of an interval.
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
    /// Reason of a failure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// Its metrics, with intervals over the users; of a run that is done.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub summary: Option<Summary>,
}

/// Progress of a run.
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
    /// The difference that forbids a comparison.
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

/// The part of `evaluation-<split>.json` that the table needs.
#[derive(Debug, Clone, Deserialize)]
struct Measured {
    #[serde(flatten)]
    summary: Summary,
    /// Absent in evaluations of versions before lists were kept.
    #[serde(default)]
    list_metrics: BTreeMap<String, f64>,
}

/// A row's runs as they were ranked.
pub(super) struct RankedRow {
    name: String,
    runs: Vec<EvaluatedRun>,
}

/// Reads the results of a row's runs that are done.
///
/// # Errors
/// Results that cannot be read.
pub(super) fn read_row(
    root: &Path,
    name: &str,
    set: BTreeMap<String, serde_json::Value>,
    mut runs: Vec<RunResult>,
    split: Split,
) -> Result<(Row, RankedRow)> {
    let (mut measured, mut ranked) = (Vec::new(), Vec::new());
    for run in runs.iter_mut().filter(|run| run.status == Status::Done) {
        let dir = root.join(&run.dir);
        let path = dir.join(evaluation_file(split));
        let text = fs::read_to_string(&path).context(path.display())?;
        let found: Measured = serde_json::from_str(&text).context(path.display())?;
        run.summary = Some(found.summary.clone());
        measured.push(found);
        ranked.push(EvaluatedRun::open(&dir, split).context(name)?);
    }
    let groups = |group: fn(&Summary) -> &Group| {
        intervals(&measured.iter().map(|measured| group(&measured.summary)).collect::<Vec<_>>())
    };
    let mut lists: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
    for (metric, value) in measured.iter().flat_map(|measured| &measured.list_metrics) {
        lists.entry(metric).or_default().push(*value);
    }
    // Lists of one item have no similarity: of such runs a mean is over the others.
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let list_metrics = lists.into_iter().map(|(metric, values)| (metric.clone(), mean(values))).collect();
    let row = Row {
        name: name.into(),
        set,
        seeds: runs.iter().filter(|run| run.status == Status::Done).filter_map(|run| run.seed).collect(),
        intervals: if ranked.len() > 1 { Spread::Seeds } else { Spread::Users },
        metrics: groups(|summary| &summary.all),
        cold: groups(|summary| &summary.cold),
        warm: groups(|summary| &summary.warm),
        list_metrics,
        runs,
    };
    Ok((row, RankedRow { name: name.into(), runs: ranked }))
}

/// Returns each metric's mean over the runs and its interval: over the runs, or of one run over the
/// users.
fn intervals(groups: &[&Group]) -> BTreeMap<String, Interval> {
    let Some(first) = groups.first() else { return BTreeMap::new() };
    let of = |name: &String| {
        let values: Vec<f64> = groups.iter().filter_map(|group| group.metric(name)).collect();
        let over_seeds = MeanInterval::from_values(&values)?;
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
    let rows: Vec<&RankedRow> = rows.iter().filter(|row| !row.runs.is_empty()).collect();
    let options = CompareOptions::default();
    let (mut comparisons, mut not_compared) = (Vec::new(), Vec::new());
    for (after, a) in rows.iter().enumerate() {
        for b in &rows[after + 1..] {
            let with_best = best.is_none_or(|best| a.name == best || b.name == best);
            if rows.len() > MOST_COMPARED && !with_best {
                continue;
            }
            match a.runs[0].check_comparable(&b.runs[0], options.metric) {
                Err(error) => {
                    let why = error.to_string();
                    // Without the directories, which the rows' names stand for.
                    let why = why.split_once(" cannot be compared: ").map_or(why.as_str(), |(_, why)| why).into();
                    not_compared.push(NotCompared { a: a.name.clone(), b: b.name.clone(), why });
                }
                // Nobody asked for this pair, so it is no error of usage.
                Ok(()) => comparisons.push(
                    Comparison::new(&a.method(), &b.method(), &options).map_err(|e| Error::failed(e.to_string()))?,
                ),
            }
        }
    }
    correct(&mut comparisons);
    Ok((comparisons, not_compared))
}

impl RankedRow {
    fn method(&self) -> RankedMethod<'_> {
        RankedMethod { name: self.name.clone(), seeds: self.runs.iter().map(|run| run.ranks.as_slice()).collect() }
    }
}

/// A directory that `evaluate` or `baseline` wrote results into, as a row of a report.
#[derive(Debug, Clone)]
pub struct RunFiles {
    /// Name of the row.
    pub name: String,
    /// The directory, relative to the report's.
    pub dir: PathBuf,
    /// Whether it is of a ranker without a language model.
    pub is_baseline: bool,
}

/// Makes the results of some evaluated directories in `root`, each a row of its own.
///
/// * `evaluated`: whether they hold results; without, the rows have no values.
///
/// # Errors
/// Results that cannot be read.
pub fn run_report(root: &Path, files: &[RunFiles], split: Split, evaluated: bool) -> Result<ExperimentReport> {
    let mut rows = Vec::new();
    for RunFiles { name, dir, .. } in files {
        let folder = root.join(dir);
        let corpus = match evaluated {
            true => EvaluatedRun::open(&folder, split)?.corpus,
            false => read_identity::<Identity>(&folder)?.corpus,
        };
        let config = if is_run(&folder) { Some(read_config(&folder)?) } else { None };
        let toml = config.as_ref().map_or_else(|| Ok(name.clone()), |config| config.to_toml())?;
        let run = RunResult {
            seed: config.map(|config| config.seed),
            dir: dir.clone(),
            key: run_key(&toml, &corpus),
            corpus,
            status: if evaluated { Status::Done } else { Status::Open },
            why: None,
            summary: None,
        };
        rows.push(read_row(root, name, BTreeMap::new(), vec![run], split)?);
    }
    let (rows, ranked): (Vec<Row>, Vec<RankedRow>) = rows.into_iter().unzip();
    let (comparisons, not_compared) = compare(&ranked, best(&rows))?;
    let (baselines, cells): (Vec<_>, Vec<_>) = rows.into_iter().zip(files).partition(|(_, files)| files.is_baseline);
    let rows = |pairs: Vec<(Row, &RunFiles)>| pairs.into_iter().map(|(row, _)| row).collect();
    let (baselines, cells) = (rows(baselines), rows(cells));
    Ok(ExperimentReport { run: PathBuf::new(), split, limit: None, cells, baselines, comparisons, not_compared })
}

/// Returns the name of the best row by [`PRIMARY`].
pub(super) fn best(rows: &[Row]) -> Option<&str> {
    let value = |row: &&Row| row.metrics.get(PRIMARY).map_or(f64::MIN, |interval| interval.mean);
    rows.iter().max_by(|a, b| value(a).total_cmp(&value(b))).map(|row| row.name.as_str())
}

/// Returns the SHA-256 of a run file, defaults filled in, and its corpus.
pub(super) fn run_key(toml: &str, corpus: &str) -> String {
    sha256(format!("{toml}\n{corpus}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{Outcome, summarise, write_ranks};

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

    /// Writes what `evaluate` leaves: 12 users with one window each, all hits or none.
    fn evaluated(root: &Path, name: &str, search: Option<(&str, usize)>, corpus: &str, hit: bool) -> RunFiles {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        let (data, _) = crate::data::synthetic(1);
        let outcome = |window: u32| Outcome { window, user: window, target: 0, cold: false, rank: hit.then_some(0) };
        let outcomes: Vec<Outcome> = (0..12).map(outcome).collect();
        write_ranks(&dir.join("ranks-test.parquet"), &outcomes, &[], &data).unwrap();
        let mut value = serde_json::to_value(summarise(&outcomes, 1)).unwrap();
        value["split"] = "test".into();
        value["corpus"] = corpus.into();
        value["scoring"] = search.map_or(name, |(scoring, _)| scoring).into();
        value["beams"] = search.map(|(_, beams)| beams).into();
        fs::write(dir.join("evaluation-test.json"), value.to_string()).unwrap();
        RunFiles { name: name.into(), dir: name.into(), is_baseline: search.is_none() }
    }

    #[test]
    fn only_what_is_comparable_is_compared() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let files = [
            evaluated(root, "counts", None, "c", false),
            evaluated(root, "full", Some(("full", 10)), "c", true),
            evaluated(root, "masked", Some(("masked", 10)), "c", true),
            evaluated(root, "five", Some(("full", 20)), "c", true),
            evaluated(root, "other", Some(("full", 10)), "d", true),
        ];
        let report = run_report(root, &files, Split::Test, true).unwrap();
        let pairs: Vec<(&str, &str)> = report.comparisons.iter().map(|c| (c.a.as_str(), c.b.as_str())).collect();
        assert_eq!(pairs, [("counts", "full"), ("counts", "masked"), ("counts", "five")]);
        let reasons = |what: &str| report.not_compared.iter().filter(|pair| pair.why.contains(what)).count();
        assert_eq!((reasons("corpora"), reasons("scoring"), reasons("beams")), (4, 2, 1));
        assert!(report.not_compared.iter().all(|pair| !pair.why.contains(&root.display().to_string())));
        // All 12 users differ: of the 2^12 assignments of signs 2 are as far from 0, exactly.
        assert!((report.comparisons[0].all.p - 2.0 / 4096.0).abs() < 1e-12);
        assert!((report.comparisons[0].all.p_holm - 6.0 / 4096.0).abs() < 1e-12);
        assert!(report.beats("full", "counts") && !report.beats("counts", "full") && !report.beats("full", "five"));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<ExperimentReport>(&text).unwrap(), report);
        assert_eq!((report.baselines.len(), report.cells.len()), (1, 4));
    }

    #[test]
    fn of_many_rows_each_is_compared_with_the_best() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<RunFiles> =
            (0..22).map(|n| evaluated(folder.path(), &format!("r{n}"), None, "c", n == 7)).collect();
        let report = run_report(folder.path(), &files, Split::Test, true).unwrap();
        assert_eq!(report.comparisons.len(), 21);
        assert!(report.comparisons.iter().all(|c| c.a == "r7" || c.b == "r7"));
    }
}
