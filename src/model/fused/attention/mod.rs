//! Grouped-query attention (arXiv 2305.13245) over token trees, which never keeps the scores: backward computes them again from
//! queries, keys and the log of each query's sum (FlashAttention, arXiv 2205.14135; here a block of queries meets all its keys at
//! once, since a prompt's keys fit the cache).
//!
//! ```text
//!             shared past, once       each row's own keys
//!            ┌──────────────────┐   ┌─────────────────────┐
//!   query ──▶│ sees all of them │ + │ sees those `Visible`│      a causal row, a tree, a beam's ancestors
//!            └──────────────────┘   └─────────────────────┘
//! ```

mod host;
mod product;
mod visible;

use burn::prelude::*;
use burn::tensor::activation::softmax;

use super::host::{on_host, primitive, run};
pub use visible::{Mask, Visible};

/// Keys (rotated) and values, each `[rows, kv_heads, keys, head_dim]`.
pub type Keys<B> = (Tensor<B, 4>, Tensor<B, 4>);

/// `softmax(q kᵀ / √head_dim) v` over the keys that each query sees: `[batch, heads, seq, head_dim]`.
///
/// * `q`: `[batch, heads, seq, head_dim]`; `heads / kv_heads` neighbours share a key.
/// * `own`: the rows' own keys, `[batch, kv_heads, keys, head_dim]`, of which the queries see what `mask` says.
/// * `past`: keys before them, `[1, kv_heads, past, head_dim]`, shared by all rows and never copied for them.
///
/// On the CPU it is fastest for tensors that are `[rows, tokens, heads, head_dim]` in memory, as the projections make them.
/// A query that sees nothing gets 0 there, and the mean of the values elsewhere.
pub fn attention<B: Backend>(q: Tensor<B, 4>, own: Keys<B>, past: Option<Keys<B>>, mask: &Mask<B>) -> Tensor<B, 4> {
    let [batch, heads, seq, dim] = q.dims();
    let visible = match mask {
        Mask::Visible(visible) if on_host(&q) => visible.clone(),
        _ => return plain(q, own, past, mask),
    };
    visible.check(batch, seq, own.0.dims()[2]);
    let operation = host::Attention { heads, kv_heads: own.0.dims()[1], dim, visible };
    let by_token = |tensor: Tensor<B, 4>| primitive(tensor.swap_dims(1, 2));
    let (q, k, v) = (by_token(q), by_token(own.0), by_token(own.1));
    let output: Tensor<B, 4> = match past {
        None => run(operation, [q, k, v]),
        Some((past_k, past_v)) => run(operation, [q, k, v, by_token(past_k), by_token(past_v)]),
    };
    output.swap_dims(1, 2)
}

fn plain<B: Backend>(q: Tensor<B, 4>, (k, v): Keys<B>, past: Option<Keys<B>>, mask: &Mask<B>) -> Tensor<B, 4> {
    let [batch, heads, seq, dim] = q.dims();
    let [_, kv_heads, own, _] = k.dims();
    // The query heads that share a key stand together, so one product serves the group.
    let q = q.mul_scalar(1.0 / (dim as f64).sqrt()).reshape([batch, kv_heads, heads / kv_heads * seq, dim]);
    let (scores, past) = match past {
        None => (q.matmul(k.transpose()), None),
        Some((past_k, past_v)) => {
            let before = past_k.dims()[2];
            let scores = Tensor::cat(vec![q.clone().matmul(past_k.transpose()), q.matmul(k.transpose())], 3);
            (scores, Some((before, past_v)))
        }
    };
    let total = scores.dims()[3];
    let mask = mask.additive(total - own, &scores.device());
    let scores = match mask.dims()[0] {
        // One mask for all rows: over flat ones the CPU backend adds it at full speed.
        1 => scores.reshape([batch * heads, seq * total]) + mask.reshape([1, seq * total]),
        _ => (scores.reshape([batch, heads, seq, total]) + mask).reshape([batch * heads, seq * total]),
    };
    let weights = softmax(scores.reshape([batch, kv_heads, heads / kv_heads * seq, total]), 3);
    let attended = match past {
        None => weights.matmul(v),
        Some((before, past_v)) => {
            weights.clone().narrow(3, 0, before).matmul(past_v) + weights.narrow(3, before, own).matmul(v)
        }
    };
    attended.reshape([batch, heads, seq, dim])
}

#[cfg(test)]
mod tests;
