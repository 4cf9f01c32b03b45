//! Grouped-query attention (arXiv 2305.13245) over token trees.
//!
//! The scores are never kept: the backward pass computes them again from queries, keys and the log
//! of each query's sum (FlashAttention, arXiv 2205.14135). Unlike FlashAttention a block of queries
//! meets all its keys at once, since the keys of a prompt fit into the processor's cache.
//!
//! ```text
//!             shared keys, once       each row's own keys, in one block or several
//!            ┌──────────────────┐   ┌────────────────────────────────────┬────────┐
//!   query ──▶│ sees all of them │ + │ sees those that the mask lets it see        │
//!            └──────────────────┘   └────────────────────────────────────┴────────┘
//!                                     causal row, token tree, ancestors of a beam
//! ```
//!
//! So a search keeps the instruction once for all users, and the keys of each user's prompt without
//! a copy; only the block of the search's own tokens grows.

mod cpu;
mod mask;
mod product;

use burn::prelude::*;
use burn::tensor::activation::softmax;

use super::cpu_op::{is_cpu, may_be_tracked, primitive, run, with_cpu_data};
pub use mask::{AttentionMask, Mask};

/// Rotated keys, and values, each `[rows, kv_heads, keys, head_dim]`.
pub type Keys<B> = (Tensor<B, 4>, Tensor<B, 4>);

/// Keys and values of one layer that the queries of a pass attend to.
#[derive(Debug, Clone)]
pub struct LayerCache<B: Backend> {
    /// Keys and values that all queries of all rows see; one row, never copied for the others.
    pub shared: Option<Keys<B>>,
    /// Each row's own keys and values, block after block; the mask says which of them a query sees.
    pub own: Vec<Keys<B>>,
}

impl<B: Backend> Default for LayerCache<B> {
    fn default() -> Self {
        Self { shared: None, own: Vec::new() }
    }
}

impl<B: Backend> LayerCache<B> {
    /// Joins the own blocks from index `first` on into one block.
    pub fn join(&mut self, first: usize) {
        if self.own.len() > first + 1 {
            let (keys, values) = self.own.drain(first..).unzip();
            self.own.push((concat_keys(keys), concat_keys(values)));
        }
    }

    /// Joins the shared keys and the own keys of a single row.
    pub fn into_whole(self) -> Keys<B> {
        let (keys, values) = self.shared.into_iter().chain(self.own).unzip();
        (concat_keys(keys), concat_keys(values))
    }

    fn own_keys(&self) -> usize {
        self.own.iter().map(|(keys, _)| keys.dims()[2]).sum()
    }
}

/// Joins blocks of `[rows, kv_heads, keys, head_dim]` along the keys; the result is contiguous by
/// token, as the projections return it.
fn concat_keys<B: Backend>(blocks: Vec<Tensor<B, 4>>) -> Tensor<B, 4> {
    Tensor::cat(blocks.into_iter().map(|block| block.swap_dims(1, 2)).collect(), 1).swap_dims(1, 2)
}

/// Conversion of products of queries and keys to scores: `q·k / √query_scalar`, and with a soft cap
/// c `c tanh(s / c)` of that (Gemma 2, arXiv 2408.00118, section 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoreScaling {
    /// The head's dimension, or transformers' `query_pre_attn_scalar`.
    pub query_scalar: f64,
    /// Bound of the scores' absolute value.
    pub soft_cap: Option<f64>,
}

impl ScoreScaling {
    /// Returns `q·k / √head_dim`, uncapped.
    pub fn for_head_dim(head_dim: usize) -> Self {
        Self { query_scalar: head_dim as f64, soft_cap: None }
    }
}

/// Returns `softmax(scores) v` over the keys that each query sees, and the cache as it was given.
///
/// * `mask`: which of the own keys each query sees.
///
/// On the CPU it is fastest for tensors that are `[rows, tokens, heads, head_dim]` in memory, as
/// the projections return them, and copies no keys whose only owner is the cache. A query that sees
/// none of its own keys is padding; its output has no meaning.
///
/// # Shapes
/// `q` and the output: `[batch, heads, seq, head_dim]`; `heads / kv_heads` neighbouring heads share
/// a key.
pub fn attention<B: Backend>(
    q: Tensor<B, 4>,
    mut cache: LayerCache<B>,
    mask: &Mask<B>,
    scaling: ScoreScaling,
) -> (Tensor<B, 4>, LayerCache<B>) {
    let [batch, heads, seq, dim] = q.dims();
    let visible = match mask {
        Mask::Visible(visible) if is_cpu(&q) => visible.clone(),
        _ => return (plain(q, &cache, mask, scaling), cache),
    };
    visible.check(batch, seq, cache.own_keys());
    let kv_heads = cache.own[0].0.dims()[1];
    let operation = cpu::Attention { heads, kv_heads, dim, scaling, visible, shared: cache.shared.is_some() };
    let by_token = |tensor: Tensor<B, 4>| tensor.swap_dims(1, 2);
    if may_be_tracked::<B>() {
        cache.join(0);
        let (k, v) = cache.own[0].clone();
        let [q, k, v] = [q, k, v].map(|tensor| primitive(by_token(tensor)));
        let output: Tensor<B, 4> = match cache.shared.clone() {
            None => run(operation, [q, k, v]),
            Some((past_k, past_v)) => {
                run(operation, [q, k, v, primitive(by_token(past_k)), primitive(by_token(past_v))])
            }
        };
        return (output.swap_dims(1, 2), cache);
    }
    let blocks = cache.own.into_iter().chain(cache.shared).flat_map(|(k, v)| [k, v]);
    let tensors = std::iter::once(q).chain(blocks).map(by_token).collect();
    let (output, back) = with_cpu_data(tensors, |inputs| operation.attend(inputs).0);
    let mut back = back.into_iter().skip(1).map(|tensor| tensor.swap_dims(1, 2));
    let mut own = Vec::new();
    while let (Some(k), Some(v)) = (back.next(), back.next()) {
        own.push((k, v));
    }
    let shared = if operation.shared { own.pop() } else { None };
    (output.swap_dims(1, 2), LayerCache { shared, own })
}

fn plain<B: Backend>(q: Tensor<B, 4>, cache: &LayerCache<B>, mask: &Mask<B>, scaling: ScoreScaling) -> Tensor<B, 4> {
    let [batch, heads, seq, dim] = q.dims();
    let kv_heads = cache.own[0].0.dims()[1];
    // The query heads that share a key are neighbours, so one product serves the group.
    let q = q.mul_scalar(1.0 / scaling.query_scalar.sqrt()).reshape([batch, kv_heads, heads / kv_heads * seq, dim]);
    let blocks: Vec<&Keys<B>> = cache.shared.iter().chain(&cache.own).collect();
    let scores = Tensor::cat(blocks.iter().map(|(k, _)| q.clone().matmul(k.clone().transpose())).collect(), 3);
    let scores = match scaling.soft_cap {
        None => scores,
        Some(cap) => scores.div_scalar(cap).tanh().mul_scalar(cap),
    };
    let total = scores.dims()[3];
    let mask = mask.additive(total - cache.own_keys(), &scores.device());
    let scores = match mask.dims()[0] {
        // One mask for all rows: the CPU backend adds it to flat rows at full speed.
        1 => scores.reshape([batch * heads, seq * total]) + mask.reshape([1, seq * total]),
        _ => (scores.reshape([batch, heads, seq, total]) + mask).reshape([batch * heads, seq * total]),
    };
    let weights = softmax(scores.reshape([batch, kv_heads, heads / kv_heads * seq, total]), 3);
    let mut first = 0;
    let parts = blocks.iter().map(|(_, v)| {
        let keys = v.dims()[2];
        first += keys;
        weights.clone().narrow(3, first - keys, keys).matmul(v.clone())
    });
    let attended = parts.reduce(|a, b| a + b).expect("a query has keys of its own");
    attended.reshape([batch, heads, seq, dim])
}

#[cfg(test)]
mod tests;
