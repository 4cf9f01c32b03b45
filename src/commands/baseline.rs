//! `itemlm baseline NAME CORPUS`

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::config::RankerName;
use crate::data::{Corpus, Split};
use crate::device::BackendChoice;
use crate::evaluate::{Summary, evaluate_baseline, evaluate_collaborative, summarise};
use crate::rankers::Settings;
use crate::rankers::fit;
use crate::run::collaborative;
use crate::{Error, Result};

/// What the command line decides.
#[derive(Debug, Clone)]
pub struct BaselineOptions {
    /// Which windows.
    pub split: Split,
    /// The first so many windows.
    pub limit: Option<usize>,
    /// als, bpr, sasrec: `key=value`, over their defaults.
    pub set: Vec<String>,
    /// Where BPR and SASRec train.
    pub backend: BackendChoice,
}

/// What `baseline --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct BaselineReport {
    /// All, cold and warm targets.
    #[serde(flatten)]
    pub summary: Summary,
    /// Which windows.
    pub split: Split,
    /// Ranked windows a second, training not counted.
    pub users_per_second: f64,
    /// The ranker.
    pub scoring: RankerName,
    /// Null: there is no beam search.
    pub beams: Option<usize>,
}

/// Fits a ranker to a corpus's training windows and ranks a split.
///
/// # Errors
/// Settings that cannot be, or of a ranker without any (usage); those of [`Corpus::open`] and
/// [`crate::rankers::train`]; a split without windows.
pub fn baseline(
    corpus_dir: &Path,
    ranker: RankerName,
    options: &BaselineOptions,
    say: &mut dyn FnMut(&str),
) -> Result<BaselineReport> {
    // Before a large corpus is read.
    match (ranker, options.set.first()) {
        (RankerName::Counting(name), Some(set)) => {
            return Err(Error::usage(format!("--set {set}: {name} has no settings")));
        }
        (RankerName::Counting(_), None) => {
            // Counts need no device; what this build or machine lacks is refused all the same.
            options.backend.devices()?;
        }
        (RankerName::Collaborative(method), _) => {
            Settings::parse(method, &options.set)?;
        }
    }
    let corpus = Corpus::open(corpus_dir)?;
    let (split, limit) = (options.split, options.limit);
    if corpus.windows(split).is_empty() {
        return Err(Error::failed(format!("{}: the {split} split has no window", corpus_dir.display())));
    }
    let started;
    let outcomes = match ranker {
        RankerName::Counting(name) => {
            let counts = fit(name, &corpus);
            started = Instant::now();
            evaluate_baseline(&counts, &corpus, split, limit)
        }
        RankerName::Collaborative(method) => {
            let settings = Settings::parse(method, &options.set)?;
            let trained = collaborative::fit(&settings, &corpus, corpus_dir, &options.backend, say)?;
            started = Instant::now();
            evaluate_collaborative(&trained.model, &corpus, split, limit)
        }
    };
    let users_per_second = outcomes.len() as f64 / started.elapsed().as_secs_f64();
    Ok(BaselineReport { summary: summarise(&outcomes, 0), split, users_per_second, scoring: ranker, beams: None })
}
