//! `itemlm recommend RUN_DIR --history TITLE …`

use std::path::Path;

use serde::Serialize;

use crate::decode::{ItemFilter, Query, check_log_probs, search};
use crate::device::BackendChoice;
use crate::run::dir::{check_ranks, read_config};
use crate::run::open_run;
use crate::run::prompt_selection::PromptSelection;
use crate::run::verified_devices::verified_device;
use crate::text::{PromptValue, PromptValues};
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

/// The `k` best items after a history of titles, oldest first. Titles need not be in the catalogue,
/// unless the run's prompts show items by vectors alone; the prior passes over those that are not.
/// `user` is one of the corpus, by the source's id, for prompts that show them. `choice` is of a
/// run with tasks.
///
/// # Errors
/// A user that is missing, not asked for or unknown; a history that nothing reads; those of
/// [`open_run`].
pub fn recommend(
    dir: &Path,
    history: &[String],
    user: Option<&str>,
    choice: &PromptSelection,
    k: usize,
    backend: BackendChoice,
) -> Result<Vec<Recommendation>> {
    if k == 0 {
        return Err(Error::usage("recommend needs a -k of at least 1"));
    }
    let device = verified_device(&backend)?;
    check_ranks(dir, &read_config(dir)?)?;
    let mut run = open_run(dir, &device)?;
    if let Some(asked) = choice.one(&run.prompt_sets)? {
        run.ranking.prompt = asked.template;
    }
    let mut decode = run.config.decode.clone();
    decode.beams = decode.beams.max(k);
    let ranking = &run.ranking;
    if history.is_empty() && ranking.prompt.has_history() {
        return Err(Error::usage("recommend needs at least one --history TITLE"));
    }
    if !history.is_empty() && !ranking.prompt.has_history() && ranking.prior.is_none() {
        return Err(Error::usage("--history: this prompt shows no history, and the run has no prior that reads one"));
    }
    let user = match (user, ranking.prompt.has_user()) {
        (None, false) => PromptValue::default(),
        (Some(id), true) => {
            let mut users = 0..ranking.corpus.users() as u32;
            let user = users.find(|&user| ranking.corpus.user_id(user) == id);
            ranking.user(user.ok_or_else(|| Error::failed(format!("--user {id}: the corpus has no such user")))?)
        }
        (None, true) => return Err(Error::usage("this run's prompt shows the user: add --user ID")),
        (Some(_), false) => return Err(Error::usage("--user: this run's prompt shows no user")),
    };
    let shown = ranking.history(history.iter().map(String::as_str))?;
    let filling = PromptValues { history: shown, items: Vec::new(), user, dataset: &ranking.corpus.name };
    let prompt = ranking.tokens(&ranking.prompt, &filling)?;
    let items: Vec<u32> = history.iter().filter_map(|name| ranking.item_of(name)).collect();
    let priors: Vec<_> = run.ranking.prior.iter().map(|prior| prior.after(&items)).collect();
    let trie = &run.ranking.catalogue.trie;
    let filter = decode.exclude_history.then(|| ItemFilter::without_titles(trie, &items));
    let query = Query { prompt: &prompt, prior: priors.first(), filter: filter.as_ref() };
    let ranked = search(&run.model, &run.ranking.catalogue, &[query], &decode, &device)?.pop().unwrap_or_default();
    check_log_probs(ranked.iter().map(|found| found.log_prob)).context(dir.display())?;
    let recommendation = |(place, found): (usize, crate::decode::Ranked)| {
        let item = run.ranking.catalogue.trie.items(found.leaf).next()?;
        let title = run.ranking.name(item).to_string();
        Some(Recommendation { rank: place + 1, title, log_prob: found.log_prob })
    };
    Ok(ranked.into_iter().take(k).enumerate().filter_map(recommendation).collect())
}
