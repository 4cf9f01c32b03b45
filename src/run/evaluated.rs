//! Results that `evaluate` and `baseline --out` write into a directory, and reading them for
//! comparisons.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dir::read_identity;
use super::identity::Identity;
use crate::core::files::write_json;
use crate::data::{Corpus, Split};
use crate::evaluate::{
    Metric, Outcome, RankedMethod, RankedSplit, RankedWindow, different_windows, read_ranks, write_lists, write_ranks,
};
use crate::{Context, Error, Result};

/// Returns the file with the metrics of a split.
pub fn evaluation_file(split: Split) -> String {
    format!("evaluation-{split}.json")
}

/// Writes `ranks-<split>.parquet` of `outcomes` and `lists-<split>.parquet` of `ranked` into `dir`.
///
/// * `ranked`: the windows ranked with the first prompt.
/// * `outcomes`: those of all prompts, one prompt after the other; `by` has the task and prompt of
///   each, or is empty.
///
/// # Errors
/// A file that cannot be written.
pub fn write_rankings(
    dir: &Path,
    split: Split,
    ranked: &RankedSplit,
    outcomes: &[Outcome],
    by: &[(String, String)],
    corpus: &Corpus,
) -> Result<()> {
    write_lists(&dir.join(format!("lists-{split}.parquet")), ranked)?;
    write_ranks(&dir.join(format!("ranks-{split}.parquet")), outcomes, by, corpus)
}

/// Writes `evaluation-<split>.json` into a directory; after the rankings, so that a directory with
/// it has them.
///
/// # Errors
/// A file that cannot be written.
pub fn write_evaluation(dir: &Path, split: Split, evaluation: &impl Serialize) -> Result<()> {
    write_json(&dir.join(evaluation_file(split)), evaluation)
}

/// The keys of `evaluation-<split>.json` that decide what it may be compared with.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Written {
    split: Split,
    users: usize,
    scoring: String,
    /// `None` for a ranker without beam search.
    beams: Option<usize>,
    /// Absent in evaluations of versions before lists were kept: as many as beams.
    depth: Option<usize>,
    /// Absent in evaluations of versions before `compare`: that of `identity.json`.
    corpus: Option<String>,
    length_penalty: Option<f64>,
    search: Option<String>,
    exclude_history: Option<bool>,
    task: Option<String>,
    prompt: Option<String>,
}

/// An evaluated directory: a run directory, or one that `baseline --out` wrote.
#[derive(Debug, Clone)]
pub struct EvaluatedRun {
    /// The directory.
    pub dir: PathBuf,
    /// SHA-256 of the corpus's `corpus.toml`.
    pub corpus: String,
    /// The ranked windows, in the split's order.
    pub ranks: Vec<RankedWindow>,
    written: Written,
}

impl EvaluatedRun {
    /// Reads `evaluation-<split>.json` and `ranks-<split>.parquet` of `dir`.
    ///
    /// # Errors
    /// A directory that has not been evaluated on the split, or writes texts (usage); files that
    /// cannot be read or do not belong together.
    pub fn open(dir: &Path, split: Split) -> Result<Self> {
        let path = dir.join(evaluation_file(split));
        if !path.exists() {
            return Err(Error::usage(format!(
                "{}: not evaluated on {split} (no {}); run `itemlm evaluate`, or \
                 `itemlm baseline` with option `out`, first",
                dir.display(),
                evaluation_file(split)
            )));
        }
        let text = fs::read_to_string(&path).context(path.display())?;
        let value: serde_json::Value = serde_json::from_str(&text).context(path.display())?;
        if value.get("metrics").is_none() && value.get("mean").is_some() {
            return Err(Error::usage(format!(
                "{}: this run writes texts; there are no ranks to compare",
                dir.display()
            )));
        }
        let written: Written = serde_json::from_value(value).context(path.display())?;
        let corpus = match &written.corpus {
            Some(corpus) => corpus.clone(),
            None => read_identity::<Identity>(dir)?.corpus,
        };
        let ranks_path = dir.join(format!("ranks-{split}.parquet"));
        let ranks = read_ranks(&ranks_path)?;
        if written.split != split || ranks.len() != written.users {
            return Err(Error::failed(format!(
                "{}: has {} windows, {} says {} of {}; evaluate again",
                ranks_path.display(),
                ranks.len(),
                evaluation_file(split),
                written.users,
                written.split
            )));
        }
        Ok(Self { dir: dir.to_path_buf(), corpus, ranks, written })
    }

    /// Returns the run as a method of one seed, called by its directory.
    pub fn method(&self) -> RankedMethod<'_> {
        RankedMethod { name: self.dir.display().to_string(), seeds: vec![&self.ranks] }
    }

    /// Returns the number of items of a list, at most; `None` where the file does not say.
    fn depth(&self) -> Option<usize> {
        self.written.depth.or(self.written.beams)
    }

    /// Checks that a metric of two evaluations may be compared: the same corpus, split and windows,
    /// and between two beam searches the same scoring and beams. Against a ranker without beam
    /// search the lists must be as long as the metric reads, or equally long.
    ///
    /// # Errors
    /// A usage error that says what differs.
    pub fn check_comparable(&self, other: &Self, metric: Metric) -> Result<()> {
        let differ = |what: String| {
            Err(Error::usage(format!("{} and {} cannot be compared: {what}", self.dir.display(), other.dir.display())))
        };
        let (a, b) = (&self.written, &other.written);
        if self.corpus != other.corpus {
            let short = |digest: &str| digest.chars().take(12).collect::<String>();
            return differ(format!("they rank other corpora ({} and {})", short(&self.corpus), short(&other.corpus)));
        }
        if a.split != b.split {
            return differ(format!("they rank other splits ({} and {})", a.split, b.split));
        }
        if let (Some(of_a), Some(of_b)) = (a.beams, b.beams) {
            if a.scoring != b.scoring {
                return differ(format!("they rank with other scoring ({} and {})", a.scoring, b.scoring));
            }
            if of_a != of_b {
                return differ(format!("they rank with other beams ({of_a} and {of_b})"));
            }
        }
        if let (Some(of_a), Some(of_b)) = (self.depth(), other.depth())
            && of_a != of_b
            && metric.k as usize > of_a.min(of_b)
        {
            return differ(format!("{metric} reads more of their lists than both have ({of_a} and {of_b} items)"));
        }
        match different_windows(&self.ranks, &other.ranks) {
            Some(what) => {
                differ(format!("they rank other windows: {what}; evaluate both with the same option `limit`"))
            }
            None => Ok(()),
        }
    }

    /// Returns what else differs between two evaluations, which may be what is compared or an
    /// oversight.
    pub fn notes(&self, other: &Self) -> Vec<String> {
        let (a, b) = (&self.written, &other.written);
        let text = |value: Option<String>| value.unwrap_or_else(|| "none".into());
        let pairs = [
            ("length_penalty", a.length_penalty.map(|x| x.to_string()), b.length_penalty.map(|x| x.to_string())),
            ("search", a.search.clone(), b.search.clone()),
            ("exclude_history", a.exclude_history.map(|x| x.to_string()), b.exclude_history.map(|x| x.to_string())),
            ("task", a.task.clone(), b.task.clone()),
            ("prompt", a.prompt.clone(), b.prompt.clone()),
        ];
        // A ranker without beam search has none of these.
        let both = a.beams.is_some() && b.beams.is_some();
        let differing = pairs.into_iter().filter(|(_, a, b)| both && a != b);
        let note = |(key, a, b): (&str, Option<String>, Option<String>)| {
            let (a, b) = (text(a), text(b));
            format!("{} and {} differ in {key}: {a} and {b}", self.dir.display(), other.dir.display())
        };
        differing.map(note).collect()
    }
}
