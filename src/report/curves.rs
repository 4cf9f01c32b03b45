//! Learning curves, and metrics against the settings that are numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;

use super::plots::{Series, Value};
use crate::experiment::{ExperimentReport, PRIMARY, Row};

/// Points of a learning curve at most.
const MOST_POINTS: usize = 120;
/// Curves with a colour and a name; the others are grey.
pub(super) const NAMED: usize = 7;

/// A line of `metrics.jsonl`, as far as the report needs it.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Step {
    /// Number of the optimiser step, from 1.
    pub step: u64,
    /// Loss; null where it was not finite.
    pub loss: Option<f64>,
    /// Time of the step.
    pub seconds: f64,
}

/// Reads `metrics.jsonl`; a run without the file has no steps, and a line that was not written to
/// its end is left out.
pub(super) fn steps(run: &Path) -> Vec<Step> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Returns the loss of each row by step, the mean over its runs, and over neighbouring steps where
/// there are many. The best rows have a name.
pub(super) fn losses(root: &Path, report: &ExperimentReport) -> Vec<Series> {
    let named = best(report);
    let mut series: Vec<Series> = Vec::new();
    for row in &report.cells {
        let mut by_step: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for step in row.runs.iter().flat_map(|run| steps(&root.join(&run.dir))) {
            let Some(loss) = step.loss else { continue };
            let (sum, count) = by_step.entry(step.step).or_default();
            (*sum, *count) = (*sum + loss, *count + 1.0);
        }
        let means: Vec<(f64, f64)> =
            by_step.into_iter().map(|(step, (sum, count))| (step as f64, sum / count)).collect();
        if !means.is_empty() {
            let name = named.contains(&row.name.as_str()).then(|| row.name.clone());
            series.push(Series { name, points: thinned(&means) });
        }
    }
    series
}

/// Returns the names of the best cells by [`PRIMARY`], as many as there are colours.
fn best(report: &ExperimentReport) -> Vec<&str> {
    let value = |row: &&Row| row.metrics.get(PRIMARY).map_or(f64::MIN, |interval| interval.mean);
    let mut rows: Vec<&Row> = report.cells.iter().collect();
    rows.sort_by(|a, b| value(b).total_cmp(&value(a)));
    rows.into_iter().take(NAMED).map(|row| row.name.as_str()).collect()
}

/// Averages neighbours, so that at most [`MOST_POINTS`] are left.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, Value)> {
    let size = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        let (x, y) = chunk.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        (x / n, Value { mean: y / n, low: y / n, high: y / n })
    };
    points.chunks(size).map(mean).collect()
}

/// [`PRIMARY`] against a setting that is a number.
pub(super) struct Against {
    /// The key of the run file.
    pub key: String,
    /// A series for each combination of the other settings.
    pub series: Vec<Series>,
}

/// Returns [`PRIMARY`] against each key that has at least two numbers among the cells.
pub(super) fn against(report: &ExperimentReport) -> Vec<Against> {
    let mut keys: Vec<&String> = report.cells.iter().flat_map(|row| row.set.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter().filter_map(|key| against_key(report, key)).collect()
}

fn against_key(report: &ExperimentReport, key: &str) -> Option<Against> {
    let mut groups: BTreeMap<String, Vec<(f64, Value)>> = BTreeMap::new();
    for row in &report.cells {
        let (Some(x), Some(found)) = (row.set.get(key).and_then(Json::as_f64), row.metrics.get(PRIMARY)) else {
            continue;
        };
        // The cell's name has a part for each axis; this key's part is left out.
        let own = |part: &&str| {
            let named = part.split_once('=').filter(|(name, _)| *name == last(key) || *name == key);
            // A number is written in several ways: 0.00001 and 1e-5.
            named.is_some_and(|(_, number)| number.parse::<f64>().is_ok_and(|number| number == x))
        };
        let others: Vec<&str> = row.name.split(',').filter(|part| !own(part)).collect();
        let value = Value { mean: found.mean, low: found.low, high: found.high };
        groups.entry(others.join(", ")).or_default().push((x, value));
    }
    groups.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    groups.retain(|_, points| points.iter().any(|(x, _)| *x != points[0].0));
    let count = groups.len();
    let series = groups.into_iter().enumerate().map(|(index, (name, points))| {
        let name = if name.is_empty() { PRIMARY.to_uppercase() } else { name };
        Series { name: (index < NAMED || count <= NAMED).then_some(name), points }
    });
    let series: Vec<Series> = series.collect();
    (!series.is_empty()).then(|| Against { key: key.into(), series })
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Split;
    use crate::experiment::{Interval, RunResult, Spread, Status};

    fn row(name: &str, set: &[(&str, Json)], mean: f64) -> Row {
        let interval = Interval { mean, low: mean - 0.01, high: mean + 0.01 };
        let run = RunResult {
            seed: Some(1),
            dir: name.into(),
            key: "k".into(),
            corpus: "c".into(),
            status: Status::Done,
            why: None,
            summary: None,
        };
        Row {
            name: name.into(),
            set: set.iter().map(|(key, value)| (key.to_string(), value.clone())).collect(),
            seeds: vec![1],
            intervals: Spread::Users,
            metrics: BTreeMap::from([(PRIMARY.to_string(), interval)]),
            cold: BTreeMap::new(),
            warm: BTreeMap::new(),
            list_metrics: BTreeMap::new(),
            runs: vec![run],
        }
    }

    fn report(cells: Vec<Row>) -> ExperimentReport {
        ExperimentReport {
            run: "r".into(),
            split: Split::Test,
            limit: None,
            cells,
            baselines: Vec::new(),
            comparisons: Vec::new(),
            not_compared: Vec::new(),
        }
    }

    #[test]
    fn a_series_a_combination_of_the_other_settings() {
        let set = |kind: &str, temperature: Json| [("loss.kind", kind.into()), ("loss.temperature", temperature)];
        let report = report(vec![
            row("kind=msl,temperature=3", &set("msl", 3.into()), 0.3),
            row("kind=msl,temperature=1.5", &set("msl", 1.5.into()), 0.2),
            row("kind=lml,temperature=1", &set("lml", 1.into()), 0.1),
            row("kind=msl,temperature=adaptive", &set("msl", "adaptive".into()), 0.4),
        ]);
        let found = against(&report);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].key.as_str(), found[0].series.len()), ("loss.temperature", 1), "one point is no series");
        assert_eq!(found[0].series[0].name.as_deref(), Some("kind=msl"));
        let x: Vec<f64> = found[0].series[0].points.iter().map(|(x, _)| *x).collect();
        assert_eq!(x, [1.5, 3.0]);
        // As TOML and as JSON a small number is not written alike.
        let rate = |rate: f64| row(&format!("learning_rate={rate}"), &[("train.learning_rate", rate.into())], 0.1);
        let found = against(&self::report(vec![rate(1e-5), rate(5e-5)]));
        assert_eq!((found[0].series.len(), found[0].series[0].points.len()), (1, 2));
    }

    #[test]
    fn curves_are_means_over_seeds() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, losses: &[f64]| {
            fs::create_dir(dir.path().join(name)).unwrap();
            let line =
                |(step, loss): (usize, &f64)| format!("{{\"step\":{},\"loss\":{loss},\"seconds\":1}}\n", step + 1);
            let text: String = losses.iter().enumerate().map(line).collect();
            fs::write(dir.path().join(name).join("metrics.jsonl"), text + "{\"step\": 9").unwrap();
        };
        write("a", &[4.0, 2.0]);
        write("b", &[2.0, 1.0]);
        let mut both = row("a", &[], 0.5);
        both.runs.push(RunResult { dir: "b".into(), ..both.runs[0].clone() });
        let rows: Vec<Row> = (0..9).map(|n| row(&format!("absent {n}"), &[], 0.1)).chain([both]).collect();
        let curves = losses(dir.path(), &report(rows));
        assert_eq!((curves.len(), curves[0].name.as_deref()), (1, Some("a")));
        let means: Vec<f64> = curves[0].points.iter().map(|(_, value)| value.mean).collect();
        assert_eq!(means, [3.0, 1.5]);
        let many: Vec<(f64, f64)> = (0..1000).map(|n| (f64::from(n), 1.0)).collect();
        assert!(thinned(&many).len() <= MOST_POINTS);
    }
}
