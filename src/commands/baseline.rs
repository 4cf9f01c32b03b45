//! `itemlm baseline NAME CORPUS`

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::config::settings_table;
use crate::data::{Corpus, Manifest, Split};
use crate::device::BackendChoice;
use crate::evaluate::{ListReport, Summary, cutoffs, measure, rank_split, summarise_at, valid_ndcg, write_trec};
use crate::rankers::{FitContext, RankerSpec, TopK};
use crate::run::dir::is_run;
use crate::run::verified_devices::{check_one_device, verified_device};
use crate::run::{write_evaluation, write_rankings};
use crate::{Context, Error, Result};

/// Options of `baseline`.
#[derive(Debug, Clone)]
pub struct BaselineOptions {
    /// The windows to rank.
    pub split: Split,
    /// Number of windows to rank, the first ones; all by default.
    pub limit: Option<usize>,
    /// Settings of the ranker as `key=value`, over their defaults.
    pub set: Vec<String>,
    /// Further k of the metrics.
    pub at: Vec<u32>,
    /// The directory for the files that `evaluate` writes into a run directory.
    pub out: Option<PathBuf>,
    /// The directory for TREC's files ([`write_trec`]).
    pub trec: Option<PathBuf>,
    /// The backend of rankers with tensors.
    pub backend: BackendChoice,
}

/// The report of `baseline --json`.
#[derive(Debug, Clone, Serialize)]
pub struct BaselineReport {
    /// The metrics of all, cold and warm targets.
    #[serde(flatten)]
    pub summary: Summary,
    /// Measures of the lists, and the metrics by the length of the history.
    #[serde(flatten)]
    pub lists: ListReport,
    /// The windows that were ranked.
    pub split: Split,
    /// Ranked windows a second, training not counted.
    pub users_per_second: f64,
    /// Name of the ranker.
    pub scoring: String,
    /// The weight of each part of a mixture, fitted on the validation windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixture: Option<BTreeMap<String, f64>>,
    /// Number of beams: null, as there is no beam search.
    pub beams: Option<usize>,
    /// Number of items of a list, at most.
    pub depth: usize,
    /// SHA-256 of the corpus's `corpus.toml`.
    pub corpus: String,
}

/// Fits the ranker `name` to a corpus's training windows and ranks a split.
///
/// # Errors
/// A ranker that is not there, settings that it does not have, a run directory to write to (usage);
/// those of [`Corpus::open`] and [`RankerSpec::fit`]; a split without windows.
pub fn baseline(
    corpus_dir: &Path,
    name: &str,
    options: &BaselineOptions,
    say: &mut dyn FnMut(&str),
) -> Result<BaselineReport> {
    // The name is checked before a large corpus is read.
    let cutoffs = cutoffs(&options.at)?;
    let depth = cutoffs.iter().max().map_or(0, |&k| k as usize);
    if let Some(out) = options.out.as_ref().filter(|out| is_run(out)) {
        return Err(Error::usage(format!("{} is a run directory; choose another --out", out.display())));
    }
    let spec = RankerSpec::new(name, settings_table(&options.set)?)?;
    check_one_device(&options.backend)?;
    // Rankers that count need no device; a backend that this build or machine lacks is refused all
    // the same.
    options.backend.devices()?;
    let corpus = Corpus::open(corpus_dir)?;
    let (split, limit) = (options.split, options.limit);
    if corpus.windows(split).is_empty() {
        return Err(Error::failed(format!("{}: the {split} split has no window", corpus_dir.display())));
    }
    let top_k = TopK::new(&corpus);
    let mut context = FitContext {
        corpus: &corpus,
        device: &|| verified_device(&options.backend),
        validate: &|ranker| valid_ndcg(ranker, &top_k, &corpus),
        metrics: None,
        say,
    };
    let fitted = spec.fit(&mut context).context(corpus_dir.display())?;
    spec.summaries().iter().for_each(|line| say(line));
    if let Some(mixture) = &fitted.mixture {
        let weights: Vec<String> = mixture.iter().map(|(name, weight)| format!("{name} {weight:.3}")).collect();
        say(&format!("weights of the mixture, by the validation windows: {}", weights.join(", ")));
    }
    let started = Instant::now();
    let ranked = rank_split(&*fitted.ranker, &top_k, &corpus, split, limit, depth);
    let users_per_second = ranked.outcomes.len() as f64 / started.elapsed().as_secs_f64();
    let report = BaselineReport {
        summary: summarise_at(&ranked.outcomes, &cutoffs, 0),
        lists: measure(&ranked, &corpus, split, &cutoffs)?,
        split,
        users_per_second,
        scoring: spec.to_string(),
        mixture: fitted.mixture,
        beams: None,
        depth,
        corpus: Manifest::digest(corpus_dir)?,
    };
    if let Some(out) = &options.out {
        fs::create_dir_all(out).context(out.display())?;
        write_rankings(out, split, &ranked, &ranked.outcomes, &[], &corpus)?;
        write_evaluation(out, split, &report)?;
    }
    if let Some(trec) = &options.trec {
        write_trec(trec, &ranked, &corpus, split, &report.scoring)?;
    }
    Ok(report)
}
