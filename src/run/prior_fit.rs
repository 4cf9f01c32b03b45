//! The weights of LLM and prior that are the likeliest on the validation windows of a run.

use serde::{Deserialize, Serialize};

use super::prompt_context::PromptContext;
use super::samples::example;
use crate::batch::Candidates;
use crate::config::MicroBatch;
use crate::core::panic::check_device;
use crate::data::{Split, Window};
use crate::decode::{Branching, PriorWeights, check_log_probs};
use crate::device::Concrete;
use crate::model::ItemLanguageModel;
use crate::tensor::to_vec;
use crate::{Context, Error, Result};

/// The largest number of windows that are fitted to: two weights need no more, and each window is
/// kept with the logits and shares of its branchings.
const MOST_WINDOWS: usize = 5000;

/// A fit of the weights of LLM and prior, with losses in nats a window: the mean of -ln of
/// the target's probability under masked scoring.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PriorFit {
    /// Number of windows.
    pub windows: usize,
    /// The loss with the fitted weights.
    pub loss: f64,
    /// The loss of the LLM alone, of weight 1.
    pub llm_alone: f64,
    /// The loss of the ranker alone, of weight 1.
    pub ranker_alone: f64,
}

/// Fits the weights of LLM and prior to the targets of the first 5,000 of `windows`, which belong
/// to the validation split, by masked scoring ([`PriorWeights::fit`]). Each window runs once.
///
/// * `micro_batch`: what runs together.
///
/// # Errors
/// A context without a prior; a prompt that leaves no room for a title; logits that are not finite.
pub(crate) fn fit_prior_weights(
    model: &ItemLanguageModel<Concrete>,
    context: &PromptContext,
    windows: &[(u32, Window)],
    micro_batch: MicroBatch,
    progress: &dyn Fn(usize),
) -> Result<(PriorWeights, PriorFit)> {
    let Some(prior) = &context.prior else { return Err(Error::usage("the run's run.toml has no [prior]")) };
    let windows = &windows[..windows.len().min(MOST_WINDOWS)];
    let plain = prior.clone().with_weights(PriorWeights { llm: 1.0, prior: 1.0 });
    let examples = windows.iter().map(|(index, window)| {
        let example = example(context, &context.prompt, Split::Valid, window, false);
        let mut example = example.context(context.window_place(Split::Valid, *index, window))?;
        let mass = plain.mass_for_window(&context.corpus, Split::Valid, window);
        example.logit_bias = mass.logit_bias_to(&context.catalogue.trie, context.corpus.target(window));
        Ok(vec![example])
    });
    let examples = examples.collect::<Result<Vec<_>>>()?;
    let mut branchings = Vec::new();
    let mut done = 0;
    for mut batch in micro_batch.batches(examples, &context.catalogue, Candidates::Children) {
        let log_shares: Vec<Vec<f32>> =
            batch.predictions.iter_mut().map(|prediction| std::mem::take(&mut prediction.logit_bias)).collect();
        let columns = batch.candidate_ids.as_ref().map_or(0, Vec::len);
        let logits = to_vec(model.batch_logits(&batch), "logits")?;
        check_log_probs(logits.iter().map(|&logit| f64::from(logit)))?;
        let rows = logits.chunks_exact(columns.max(1));
        for ((row, prediction), log_shares) in rows.zip(&batch.predictions).zip(log_shares) {
            let target = prediction.valid.iter().position(|&column| column == prediction.label);
            let target = target.ok_or_else(|| Error::failed("a target is not among the trie's children"))?;
            let logits = prediction.valid.iter().map(|&column| row[column]).collect();
            branchings.push(Branching { logits, log_shares, target });
        }
        done += batch.token_trees.tree_count();
        progress(done);
    }
    check_device()?;
    let mean = |llm, prior| PriorWeights { llm, prior }.loss(&branchings) / windows.len().max(1) as f64;
    let weights = PriorWeights::fit(&branchings);
    let fit = PriorFit {
        windows: windows.len(),
        loss: mean(weights.llm, weights.prior),
        llm_alone: mean(1.0, 0.0),
        ranker_alone: mean(0.0, 1.0),
    };
    Ok((weights, fit))
}
