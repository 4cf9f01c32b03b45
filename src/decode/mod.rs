//! Ranking: log-probabilities of items, and beam search over the trie. And free text.

mod batched_search;
mod batching;
mod beam;
mod generate;
mod score;
mod trie_prior;

pub use batched_search::BatchedSearch;
pub use batching::{TOKENS_PER_BEAM, common_prefix, prompts_per_pass};
pub use beam::{Ranked, search};
pub use generate::{generate, log_likelihoods};
pub use score::{ItemScore, score};
pub use trie_prior::{PrefixMass, TriePrior};

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::config::Scoring;
use crate::model::Decoder;
use crate::text::{Node, Trie};
use crate::{Error, Result};

/// Checks log-probabilities that a device computed.
///
/// # Errors
/// A NaN, as of damaged weights; a panic on a device's own thread, after which its numbers are
/// garbage.
pub fn check_log_probs(mut log_probs: impl Iterator<Item = f64>) -> Result<()> {
    if let Some(panic) = crate::core::panic::recorded_panic() {
        return Err(Error::failed(format!("a thread of the device died ({panic}); its numbers cannot be trusted")));
    }
    match log_probs.any(f64::is_nan) {
        true => Err(Error::failed(
            "the model's log-probabilities are NaN: its weights are damaged, or llm.precision = \"f16\" overflows",
        )),
        false => Ok(()),
    }
}

/// Logits on the host after some nodes, at the tokens that may follow any of them.
struct NodeLogits {
    /// Of each token that may follow any of the nodes, up to the last such: its column.
    column: Vec<u32>,
    columns: usize,
    /// `[nodes, columns]`.
    logits: Vec<f32>,
    /// `[nodes]`: log Σ exp over the whole vocabulary, if asked for.
    log_sum_vocabulary: Vec<f32>,
}

impl NodeLogits {
    /// * `hidden`: `[nodes, hidden]`, of the last token before each node's children.
    fn new<B: Backend>(llm: &Decoder<B>, hidden: Tensor<B, 2>, trie: &Trie, nodes: &[Node], vocabulary: bool) -> Self {
        let mut distinct = nodes.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let last = distinct.iter().filter_map(|&node| trie.valid_tokens(node).last()).max();
        let mut column = vec![u32::MAX; last.map_or(0, |&last| last as usize + 1)];
        let mut tokens: Vec<i32> = Vec::new();
        for &token in distinct.iter().flat_map(|&node| trie.valid_tokens(node)) {
            let column = &mut column[token as usize];
            if *column == u32::MAX {
                *column = tokens.len() as u32;
                tokens.push(token as i32);
            }
        }
        let log_sum_vocabulary = if vocabulary { host(llm.log_sum_vocabulary(hidden.clone())) } else { Vec::new() };
        let columns = tokens.len();
        let tokens = Tensor::<B, 1, Int>::from_data(TensorData::new(tokens, [columns]), &hidden.device());
        let logits = host(llm.logits(hidden, Some(tokens)));
        Self { column, columns, logits, log_sum_vocabulary }
    }

    /// Log-probabilities of the tokens that may follow `node`, the `n`-th of this set, in the
    /// trie's order.
    ///
    /// A prior's gains are added to the logits before the softmax over the children, and to the
    /// log-probabilities after the one over the vocabulary: before it they would hand the
    /// children's probability to tokens that continue no title.
    ///
    /// # Panics
    /// Under full scoring, if the vocabulary was not asked for.
    fn log_probs(&self, n: usize, node: Node, trie: &Trie, scoring: Scoring, prior: Option<&PrefixMass>) -> Vec<f64> {
        let row = &self.logits[n * self.columns..(n + 1) * self.columns];
        let logit = |&token: &u32| f64::from(row[self.column[token as usize] as usize]);
        let mut logits: Vec<f64> = trie.valid_tokens(node).iter().map(logit).collect();
        if let Some(prior) = prior {
            logits.iter_mut().zip(prior.logit_bias(trie, node)).for_each(|(logit, gain)| *logit += gain);
        }
        let log_sum = match scoring {
            Scoring::Full => f64::from(self.log_sum_vocabulary[n]),
            Scoring::Masked => {
                let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() + max
            }
        };
        logits.iter_mut().for_each(|logit| *logit -= log_sum);
        logits
    }
}

/// The first position of any prompt whose hidden state is asked for: the shortest prompt's last.
fn first_needed(prompts: &[&[u32]]) -> usize {
    prompts.iter().map(|prompt| prompt.len() - 1).min().unwrap_or(0)
}

fn host<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec::<f32>().expect("converted to f32 above")
}

fn ints<B: Backend>(
    values: impl Iterator<Item = usize>,
    batch: usize,
    seq: usize,
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    let values: Vec<i32> = values.map(|v| v as i32).collect();
    Tensor::from_data(TensorData::new(values, [batch, seq]), device)
}

/// Rows `at` of `[n, hidden]`.
fn select<B: Backend>(hidden: Tensor<B, 2>, at: Vec<usize>) -> Tensor<B, 2> {
    let (count, device) = (at.len(), hidden.device());
    let at: Vec<i32> = at.into_iter().map(|at| at as i32).collect();
    hidden.select(0, Tensor::from_data(TensorData::new(at, [count]), &device))
}

fn slices(sequences: &[Vec<u32>]) -> Vec<&[u32]> {
    sequences.iter().map(Vec::as_slice).collect()
}

#[cfg(test)]
mod tests;
