//! The weights of prior and LLM in `evaluate`: given, chosen from several, or fitted.

use super::EvaluateOptions;
use crate::config::{DecodeConfig, PriorConfig, Scoring, SearchKind};
use crate::core::log::log;
use crate::core::progress::Progress;
use crate::data::{Split, Window};
use crate::decode::PriorWeights;
use crate::evaluate::{RankedSplit, Summary};
use crate::run::prior_fit::fit_prior_weights;
use crate::run::{PriorFit, Session, TriedWeight};
use crate::{Error, Result};

/// Checks that the weights of prior and LLM can be fitted, if that is wanted.
///
/// # Errors
/// Another split than the validation windows; weights given as well; a run without a prior; full
/// scoring, whose mixture is no distribution over the items.
pub(super) fn check_fit(run: &Session, options: &EvaluateOptions, decode: &DecodeConfig) -> Result<()> {
    let refused = |why: &str| Err(Error::usage(format!("--fit-prior {why}")));
    match &run.context.prior {
        _ if !options.fit_prior => Ok(()),
        _ if options.split != Split::Valid => refused("fits to the validation windows: add --split valid"),
        _ if !options.prior_weights.is_empty() => refused("finds the weights itself: leave --prior-weight out"),
        None => refused("has nothing to fit: the run's run.toml has no [prior]"),
        _ if decode.scoring == Scoring::Full => refused("needs masked scoring: add --scoring masked"),
        Some(_) => Ok(()),
    }
}

/// Fits the weights of prior and LLM to `windows` of the validation split, and has the session rank
/// with them.
///
/// # Errors
/// Those of [`fit_prior_weights`].
pub(super) fn fit_prior(run: &mut Session, windows: &[(u32, Window)], show: bool) -> Result<PriorFit> {
    let progress = if show { Progress::new("fitting", windows.len()) } else { Progress::hidden() };
    let done = |done: usize| progress.set(done);
    let (weights, fit) = fit_prior_weights(&run.model, &run.context, windows, run.config.train.micro_batch(), &done)?;
    if let Some(prior) = &mut run.context.prior {
        prior.weights = weights;
    }
    Ok(fit)
}

/// Returns the run file's prior with the weights that the session ranks with.
pub(super) fn weighted_prior(run: &Session) -> Option<PriorConfig> {
    let now = run.context.prior.as_ref()?.weights;
    Some(run.config.prior.as_ref()?.with_weights(now.prior, now.llm))
}

/// Returns the weights to rank with, in order; one pair, without effect, for a run without a prior.
/// Beside a given weight of the prior the LLM has the run file's, not one fitted for another.
pub(super) fn weights_to_rank_with(run: &Session, options: &EvaluateOptions) -> Result<Vec<PriorWeights>> {
    let weights = &options.prior_weights;
    match &run.context.prior {
        _ if weights.len() > 1 && options.split != Split::Valid => Err(Error::usage(format!(
            "--prior-weight: of {} weights the best is chosen, by --split valid alone, not {}",
            weights.len(),
            options.split
        ))),
        None if !weights.is_empty() => Err(Error::usage("--prior-weight: the run's run.toml has no [prior]")),
        None => Ok(vec![PriorWeights { llm: 1.0, prior: 0.0 }]),
        Some(prior) if weights.is_empty() => Ok(vec![prior.weights]),
        Some(_) => {
            let llm = run.config.prior.as_ref().map_or(1.0, |prior| prior.llm_weight);
            weights.iter().try_for_each(|&weight| PriorConfig::check_weight(weight, "--prior-weight"))?;
            Ok(weights.iter().map(|&prior| PriorWeights { llm, prior }).collect())
        }
    }
}

/// The best ranking, and the weights that gave it.
pub(super) type BestRanking = (Summary, RankedSplit, PriorWeights);

/// Ranks with each pair of weights. Returns the best ranking by NDCG@10 (of equally good ones the
/// first) with its weights, and the metrics of all.
pub(super) fn best_weight(
    run: &mut Session,
    weights: &[PriorWeights],
    rank: impl Fn(&Session) -> Result<(Summary, RankedSplit)>,
) -> Result<(Option<BestRanking>, Vec<TriedWeight>)> {
    let mut tried: Vec<TriedWeight> = Vec::new();
    let mut best = None;
    for &weights in weights {
        run.context.prior.iter_mut().for_each(|prior| prior.weights = weights);
        let (summary, ranked) = rank(run)?;
        let ndcg_at_10 = summary.all.metric("ndcg@10").unwrap_or(0.0);
        if tried.iter().all(|other| other.ndcg_at_10 < ndcg_at_10) {
            best = Some((summary, ranked, weights));
        }
        tried.push(TriedWeight { weight: weights.prior, ndcg_at_10 });
    }
    Ok((best, tried))
}

/// Prints a note where the prior's weight was chosen under other conditions than those of this
/// evaluation.
pub(super) fn note_prior_choice(run: &Session, options: &EvaluateOptions, prompt: Option<&str>, decode: &DecodeConfig) {
    let Some(choice) = run.prior_choice.as_ref().filter(|_| options.prior_weights.is_empty() && !options.fit_prior)
    else {
        return;
    };
    let weight = choice.prior.weight;
    if choice.prompt.as_deref() != prompt {
        let (by, now) = (choice.prompt.as_deref().unwrap_or_default(), prompt.unwrap_or_default());
        log(format_args!("note: the prior's weight {weight} was chosen by {by}; this ranks by {now}"));
    }
    if choice.decode != *decode {
        let text = |decode: &DecodeConfig| {
            let scoring = if decode.scoring == Scoring::Full { "full" } else { "masked" };
            let search = if decode.search == SearchKind::Trie { "" } else { ", transformers' search" };
            let history = if decode.exclude_history { ", without the history's items" } else { "" };
            let DecodeConfig { beams, length_penalty, .. } = decode;
            format!("{scoring} scoring, {beams} beams and length penalty {length_penalty}{search}{history}")
        };
        let (by, now) = (text(&choice.decode), text(decode));
        log(format_args!("note: the prior's weight {weight} was chosen with {by}; this ranks with {now}"));
    }
}
