//! Ranking: log-probabilities of items, and beam search over the trie. And free text.

mod beam;
mod generate;
mod score;

pub use beam::{Ranked, search};
pub use generate::{generate, log_likelihoods};
pub use score::{ItemScore, score};

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::model::Llama;
use crate::prior::UserPrior;
use crate::text::{Node, Trie};

/// Logits on the host after some nodes, at the tokens that may follow any of them.
struct NodeLogits {
    /// Ascending token ids: the columns.
    rows: Vec<u32>,
    /// `[nodes, rows]`.
    logits: Vec<f32>,
    /// `[nodes]`: log Σ exp over the whole vocabulary, if asked for.
    log_sum_vocabulary: Option<Vec<f32>>,
}

impl NodeLogits {
    /// * `hidden`: `[nodes, hidden]`, of the last token before each node's children.
    fn new<B: Backend>(llm: &Llama<B>, hidden: Tensor<B, 2>, trie: &Trie, nodes: &[Node], vocabulary: bool) -> Self {
        let mut rows: Vec<u32> = nodes.iter().flat_map(|&node| trie.valid_tokens(node)).copied().collect();
        rows.sort_unstable();
        rows.dedup();
        let log_sum_vocabulary = vocabulary.then(|| host(log_sum_exp(llm.logits(hidden.clone(), None))));
        let index = TensorData::new(rows.iter().map(|&t| t as i32).collect::<Vec<i32>>(), [rows.len()]);
        let index = Tensor::<B, 1, Int>::from_data(index, &hidden.device());
        let logits = host(llm.logits(hidden, Some(index)));
        Self { rows, logits, log_sum_vocabulary }
    }

    /// Log-probabilities of the tokens that may follow `node`, the `n`-th of this set: `(masked, full)`, in the trie's order.
    /// `full` is empty unless the vocabulary was asked for.
    ///
    /// A prior's gains are added to the logits before the softmax over the children, and to the log-probabilities after the one over the
    /// vocabulary: before it they would hand the children's probability to tokens that continue no title.
    fn log_probs(&self, n: usize, node: Node, trie: &Trie, prior: Option<&UserPrior>) -> (Vec<f64>, Vec<f64>) {
        let row = &self.logits[n * self.rows.len()..(n + 1) * self.rows.len()];
        let mut logits: Vec<f64> = trie
            .valid_tokens(node)
            .iter()
            .map(|token| self.rows.binary_search(token).map_or(f64::NEG_INFINITY, |at| f64::from(row[at])))
            .collect();
        let mut full: Vec<f64> = match &self.log_sum_vocabulary {
            None => Vec::new(),
            Some(sums) => logits.iter().map(|l| l - f64::from(sums[n])).collect(),
        };
        if let Some(prior) = prior {
            logits.iter_mut().zip(prior.gains(trie, node)).for_each(|(logit, gain)| *logit += gain);
            full.iter_mut().zip(prior.gains(trie, node)).for_each(|(log_prob, gain)| *log_prob += gain);
        }
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() + max;
        (logits.iter().map(|l| l - log_sum).collect(), full)
    }
}

/// `[n, vocab]` → `[n, 1]`: log Σ exp of each row.
fn log_sum_exp<B: Backend>(logits: Tensor<B, 2>) -> Tensor<B, 2> {
    let max = logits.clone().max_dim(1);
    (logits - max.clone()).exp().sum_dim(1).log() + max
}

/// The first position of any prompt whose hidden state is asked for: the shortest prompt's last.
fn first_needed<'a>(prompts: impl Iterator<Item = &'a [u32]>) -> usize {
    prompts.map(|prompt| prompt.len() - 1).min().unwrap_or(0)
}

/// `[sequences · width]`, 0 where padded.
fn padded<'a>(sequences: impl Iterator<Item = &'a [u32]>, width: usize) -> Vec<u32> {
    sequences.flat_map(|s| (0..width).map(|t| s.get(t).copied().unwrap_or(0))).collect()
}

fn host<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec::<f32>().expect("converted to f32 above")
}

fn ints<B: Backend>(values: impl Iterator<Item = usize>, batch: usize, seq: usize, device: &B::Device) -> Tensor<B, 2, Int> {
    let values: Vec<i32> = values.map(|v| v as i32).collect();
    Tensor::from_data(TensorData::new(values, [batch, seq]), device)
}

#[cfg(test)]
mod tests;
