//! Comparisons of two methods, or of all pairs of several.

use std::collections::HashMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::holm::holm;
use super::paired::{PairedDifferences, RESAMPLES};
use crate::evaluate::metric::{Metric, MetricKind};
use crate::evaluate::ranks::{RankedWindow, different_windows};
use crate::{Error, Result};

/// The test that gives a comparison's p.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PairedTest {
    /// Paired randomisation (sign-flip) test over users: [`PairedDifferences::randomisation`].
    #[default]
    Randomisation,
    /// Wilcoxon's signed-rank test over users: [`super::wilcoxon`].
    Wilcoxon,
}

impl FromStr for PairedTest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "randomisation" | "randomization" => Ok(Self::Randomisation),
            "wilcoxon" => Ok(Self::Wilcoxon),
            _ => Err(Error::usage(format!("no test {text:?}; there are randomisation and wilcoxon"))),
        }
    }
}

/// Options of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompareOptions {
    /// The metric that is compared.
    pub metric: Metric,
    /// The test that gives p.
    pub test: PairedTest,
    /// Bootstrap resamples, and random assignments of signs.
    pub resamples: usize,
    /// Seed of both.
    pub seed: u64,
}

impl Default for CompareOptions {
    fn default() -> Self {
        let metric = Metric { kind: MetricKind::Ndcg, k: 10 };
        Self { metric, test: PairedTest::default(), resamples: RESAMPLES, seed: 42 }
    }
}

/// A method, and how it ranked.
#[derive(Clone, Debug)]
pub struct RankedMethod<'a> {
    /// Its name.
    pub name: String,
    /// The ranked windows of each of its seeds, all of the same windows in the same order. A
    /// window's value is its mean over the seeds.
    pub seeds: Vec<&'a [RankedWindow]>,
}

/// A paired comparison of two methods, as `compare --json` and `experiment.json` hold it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The first method.
    pub a: String,
    /// The second method.
    pub b: String,
    /// The metric, such as `ndcg@10`.
    pub metric: String,
    /// The test that gave p.
    pub test: PairedTest,
    /// All windows.
    #[serde(flatten)]
    pub all: Difference,
    /// Windows with a cold target (one that is in no training window); null without any.
    pub cold: Option<Difference>,
    /// Windows with a warm target; null without any.
    pub warm: Option<Difference>,
}

/// The difference of two methods on some windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Number of users, the units of the test.
    pub users: usize,
    /// Number of windows.
    pub windows: usize,
    /// Mean of the first method over the windows.
    pub mean_a: f64,
    /// Mean of the second method over the windows.
    pub mean_b: f64,
    /// `mean_a - mean_b`
    pub difference: f64,
    /// Lower end of the difference's 95 % bootstrap interval over users.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Two-sided p that there is no difference.
    pub p: f64,
    /// p by Holm's correction over the comparisons of the table ([`correct`]).
    pub p_holm: f64,
    /// Cohen's d_z over users: mean difference in units of its standard deviation; null where that
    /// is 0.
    pub cohens_dz: Option<f64>,
}

impl Comparison {
    /// Compares two methods on the same windows; `p_holm` is `p` until [`correct`] is called.
    ///
    /// # Errors
    /// A usage error where a seed has other windows than the others, or there is no window.
    pub fn new(a: &RankedMethod, b: &RankedMethod, options: &CompareOptions) -> Result<Self> {
        let Some(&windows) = a.seeds.first() else {
            return Err(Error::usage(format!("{}: there is nothing to compare", a.name)));
        };
        for (method, seed) in [a, b].into_iter().flat_map(|method| method.seeds.iter().map(move |seed| (method, seed)))
        {
            if let Some(what) = different_windows(windows, seed) {
                return Err(Error::usage(format!("{} and {} ranked other windows: {what}", a.name, method.name)));
            }
        }
        let [of_a, of_b] = [a, b].map(|method| values(&method.seeds, options.metric));
        let mut users: HashMap<&str, u32> = HashMap::new();
        let rows: Vec<Row> = windows
            .iter()
            .zip(of_a.into_iter().zip(of_b))
            .map(|(window, (a, b))| {
                let next = users.len() as u32;
                Row { user: *users.entry(window.user.as_str()).or_insert(next), cold: window.cold, a, b }
            })
            .collect();
        let all = Difference::from_rows(&rows, options, |_| true);
        Ok(Self {
            a: a.name.clone(),
            b: b.name.clone(),
            metric: options.metric.to_string(),
            test: options.test,
            all: all.ok_or_else(|| Error::usage(format!("{}: there is no window to compare", a.name)))?,
            cold: Difference::from_rows(&rows, options, |row| row.cold),
            warm: Difference::from_rows(&rows, options, |row| !row.cold),
        })
    }
}

/// A window with its user's number and the values of both methods.
struct Row {
    user: u32,
    cold: bool,
    a: f64,
    b: f64,
}

/// Returns each window's value, the mean over the seeds.
fn values(seeds: &[&[RankedWindow]], metric: Metric) -> Vec<f64> {
    let mut values = vec![0.0; seeds.first().map_or(0, |seed| seed.len())];
    for seed in seeds {
        values.iter_mut().zip(*seed).for_each(|(value, window)| *value += metric.value(window.rank));
    }
    values.iter_mut().for_each(|value| *value /= seeds.len() as f64);
    values
}

impl Difference {
    fn from_rows(rows: &[Row], options: &CompareOptions, keep: fn(&Row) -> bool) -> Option<Self> {
        let kept = || rows.iter().filter(|row| keep(row));
        let paired = PairedDifferences::from_windows(kept().map(|row| (row.user, row.a - row.b)));
        let [low, high] = paired.bootstrap(options.resamples, options.seed)?;
        let windows = paired.windows();
        let mean = |value: fn(&Row) -> f64| kept().map(value).sum::<f64>() / windows as f64;
        let p = match options.test {
            PairedTest::Randomisation => paired.randomisation(options.resamples, options.seed),
            PairedTest::Wilcoxon => paired.wilcoxon(),
        };
        Some(Self {
            users: paired.users(),
            windows,
            mean_a: mean(|row| row.a),
            mean_b: mean(|row| row.b),
            difference: paired.mean(),
            low,
            high,
            p,
            p_holm: p,
            cohens_dz: paired.cohens_dz(),
        })
    }
}

/// Compares every pair of methods, each with all that stand after it, and corrects p over them.
///
/// # Errors
/// Those of [`Comparison::new`].
pub fn compare_all(methods: &[RankedMethod], options: &CompareOptions) -> Result<Vec<Comparison>> {
    let mut comparisons = Vec::new();
    for (before, b) in methods.iter().enumerate() {
        for a in &methods[..before] {
            comparisons.push(Comparison::new(a, b, options)?);
        }
    }
    correct(&mut comparisons);
    Ok(comparisons)
}

/// Sets `p_holm` of the comparisons of a table by [`holm`]: over all windows, and over those with a
/// cold and with a warm target, each a family of its own.
pub fn correct(comparisons: &mut [Comparison]) {
    let groups: [fn(&mut Comparison) -> Option<&mut Difference>; 3] =
        [|c| Some(&mut c.all), |c| c.cold.as_mut(), |c| c.warm.as_mut()];
    for group in groups {
        let p: Vec<f64> = comparisons.iter_mut().filter_map(group).map(|difference| difference.p).collect();
        comparisons.iter_mut().filter_map(group).zip(holm(&p)).for_each(|(difference, p)| difference.p_holm = p);
    }
}
