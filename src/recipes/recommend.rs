//! `itemlm recommend RUN_DIR --history TITLE …`

use std::path::Path;

use serde::Serialize;

use super::open_run;
use crate::backend::BackendName;
use crate::decode::search;
use crate::{Context, Error, Result};

/// One recommended item.
#[derive(Debug, Clone, Serialize)]
pub struct Recommendation {
    /// From 1.
    pub rank: usize,
    /// The item's title.
    pub title: String,
    /// Sum over its tokens, under the run's scoring.
    pub log_prob: f64,
}

/// The `k` best items after a history of titles, oldest first. Titles need not be in the catalogue; the prior
/// passes over those that are not.
pub fn recommend(dir: &Path, history: &[String], k: usize, backend: BackendName) -> Result<Vec<Recommendation>> {
    if history.is_empty() || k == 0 {
        return Err(Error::usage("recommend needs at least one --history TITLE and -k of at least 1"));
    }
    let device = backend.device()?;
    let run = open_run(dir, &device)?;
    let mut decode = run.config.decode.clone();
    decode.beams = decode.beams.max(k);
    let prompt = run.ranking.prompt_tokens(history.iter().map(String::as_str))?;
    let items = run.ranking.items_of(history);
    let priors: Vec<_> = run.ranking.prior.iter().map(|prior| prior.after(&items)).collect();
    let ranked = search(&run.llm, &run.ranking.catalogue, &[prompt], &priors, &decode, &device).pop().unwrap_or_default();
    super::trustworthy(ranked.iter().map(|found| found.log_prob)).context(dir.display())?;
    let recommendation = |(place, found): (usize, crate::decode::Ranked)| {
        let item = run.ranking.catalogue.trie.items(found.leaf).next()?;
        let title = run.ranking.corpus.title(item).to_string();
        Some(Recommendation { rank: place + 1, title, log_prob: found.log_prob })
    };
    Ok(ranked.into_iter().take(k).enumerate().filter_map(recommendation).collect())
}
