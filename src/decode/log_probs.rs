//! Log-probabilities of the tokens that may follow nodes of the trie, from hidden states.

use burn::prelude::*;

use super::PrefixMass;
use crate::config::Scoring;
use crate::core::panic::check_device;
use crate::model::Decoder;
use crate::tensor::to_vec;
use crate::text::{Node, Trie};
use crate::{Error, Result};

/// Checks log-probabilities that a device computed.
///
/// # Errors
/// A NaN, as of damaged weights; a panic on a device's own thread, after which its numbers are
/// garbage.
pub fn check_log_probs(mut log_probs: impl Iterator<Item = f64>) -> Result<()> {
    check_device()?;
    match log_probs.any(f64::is_nan) {
        true => Err(Error::model(
            "the model's log-probabilities are NaN: its weights are damaged, or llm.precision = \"f16\" overflows",
        )),
        false => Ok(()),
    }
}

/// Logits of the tokens that may follow some nodes, read from the device.
pub(super) struct NodeLogits {
    /// The column of each token that may follow any of the nodes; indexed by token id.
    column: Vec<u32>,
    columns: usize,
    /// `[nodes, columns]`.
    logits: Vec<f32>,
    /// `[nodes]`: log Σ exp over the whole vocabulary; empty if it is not needed.
    log_sum_vocabulary: Vec<f32>,
}

impl NodeLogits {
    /// Computes the logits of all tokens that may follow any of `nodes`, and with `vocabulary` the
    /// log Σ exp over the whole vocabulary.
    ///
    /// # Shapes
    /// `hidden`: `[nodes, hidden]`, of the last token before each node's children.
    ///
    /// # Errors
    /// A device that failed.
    pub fn new<B: Backend>(
        llm: &Decoder<B>,
        hidden: Tensor<B, 2>,
        trie: &Trie,
        nodes: &[Node],
        vocabulary: bool,
    ) -> Result<Self> {
        let mut distinct = nodes.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let last = distinct.iter().filter_map(|&node| trie.valid_tokens(node).last()).max();
        let mut column = vec![u32::MAX; last.map_or(0, |&last| last as usize + 1)];
        let mut tokens: Vec<u32> = Vec::new();
        for &token in distinct.iter().flat_map(|&node| trie.valid_tokens(node)) {
            let column = &mut column[token as usize];
            if *column == u32::MAX {
                *column = tokens.len() as u32;
                tokens.push(token);
            }
        }
        let log_sum_vocabulary = match vocabulary {
            true => to_vec(llm.log_sum_vocabulary(hidden.clone()), "log-sums of the vocabulary")?,
            false => Vec::new(),
        };
        let columns = tokens.len();
        let logits = to_vec(llm.logits(hidden, Some(llm.token_ids(tokens))), "logits")?;
        Ok(Self { column, columns, logits, log_sum_vocabulary })
    }

    /// Returns the log-probabilities of the tokens that may follow `node`, the `n`-th of this set,
    /// in the trie's order.
    ///
    /// A prior's weights apply to the logits before the softmax over the children, and to the
    /// log-probabilities after the softmax over the vocabulary: before it, the bias would give the
    /// children's probability to tokens that continue no title.
    ///
    /// # Panics
    /// Under full scoring, without the log-sums of the vocabulary.
    pub fn log_probs(
        &self,
        n: usize,
        node: Node,
        trie: &Trie,
        scoring: Scoring,
        prior: Option<&PrefixMass>,
    ) -> Vec<f64> {
        let row = &self.logits[n * self.columns..(n + 1) * self.columns];
        let logit = |&token: &u32| f64::from(row[self.column[token as usize] as usize]);
        let mut logits: Vec<f64> = trie.valid_tokens(node).iter().map(logit).collect();
        let add_prior = |logits: &mut [f64]| {
            let Some(prior) = prior else { return };
            let bias = prior.logit_bias(trie, node);
            logits.iter_mut().zip(bias).for_each(|(logit, bias)| *logit = prior.weights.llm * *logit + bias);
        };
        match scoring {
            Scoring::Full => {
                let log_sum = f64::from(self.log_sum_vocabulary[n]);
                logits.iter_mut().for_each(|logit| *logit -= log_sum);
                add_prior(&mut logits);
            }
            Scoring::Masked => {
                add_prior(&mut logits);
                let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log_sum = logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() + max;
                logits.iter_mut().for_each(|logit| *logit -= log_sum);
            }
        }
        logits
    }
}

/// Returns the first position of any prompt whose hidden state is needed: the last one of the
/// shortest prompt.
pub(super) fn first_needed(prompts: &[&[u32]]) -> usize {
    prompts.iter().map(|prompt| prompt.len() - 1).min().unwrap_or(0)
}

/// Selects rows of hidden states.
///
/// # Shapes
/// `hidden`: `[n, hidden]`; the result: `[indices, hidden]`.
pub(super) fn select<B: Backend>(hidden: Tensor<B, 2>, indices: Vec<usize>) -> Tensor<B, 2> {
    let indices = crate::tensor::indices(indices, hidden.dims()[0], &hidden.device());
    hidden.select(0, indices)
}

pub(super) fn slices(sequences: &[Vec<u32>]) -> Vec<&[u32]> {
    sequences.iter().map(Vec::as_slice).collect()
}
