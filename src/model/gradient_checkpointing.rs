//! A forward pass that keeps each decoder block's input alone; the backward pass runs the blocks
//! again, the last one first.
//!
//! Paper: arXiv 1604.06174. Reference: transformers' `gradient_checkpointing_enable`
//! (torch.utils.checkpoint, a decoder layer at a time). There the generator's state is kept for
//! dropout; here each block draws from a seed of its own, both times.

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::item_encoder::Pass;
use crate::kernels::{Keys, LayerCache, Rotary};
use crate::model::llm::decoder::Decoder;
use crate::model::llm::kv_cache::KvCache;

/// A forward pass that can be run backward.
pub(crate) struct Checkpoints<B: AutodiffBackend> {
    pass: Pass<B>,
    rotary: Rotary<B>,
    /// Of each block, untracked: `[batch, seq, hidden]`.
    inputs: Vec<Tensor<B, 3>>,
    seed: u64,
}

impl<B: AutodiffBackend> Checkpoints<B> {
    /// Also returns the last block's output (before the last norm) and the cache that
    /// [`Decoder::forward_masked`] returns; they are in no graph.
    pub(crate) fn forward(llm: &Decoder<B>, pass: Pass<B>, seed: u64) -> (Self, Tensor<B, 3>, KvCache<B>) {
        let (seq, device) = (pass.embeddings.dims()[1], pass.embeddings.device());
        let rotary = llm.rotary(&pass.positions, seq);
        let untracked =
            |pair: &Keys<B>| (pair.0.clone().set_require_grad(false), pair.1.clone().set_require_grad(false));
        let untracked = |layer: &LayerCache<B>| LayerCache {
            shared: layer.shared.as_ref().map(untracked),
            own: layer.own.iter().map(untracked).collect(),
        };
        let mut x = pass.embeddings.clone().set_require_grad(false);
        let (mut inputs, mut layers) = (Vec::new(), Vec::new());
        // On the backend that trains, so that dropout is drawn.
        for (l, layer) in llm.layers.clone().no_grad().iter().enumerate() {
            B::seed(&device, block_seed(seed, l));
            let past = pass.past.layers.get(l).map(untracked).unwrap_or_default();
            inputs.push(x.clone());
            let (next, cache) = layer.forward(x, &rotary, &pass.mask, &pass.packing, past, llm.config());
            layers.push(cache);
            x = next;
        }
        (Self { pass, rotary, inputs, seed }, x, KvCache { layers })
    }

    /// Backward from the gradients of the last block's output and of each block's keys and values,
    /// where there are any. `each` is given the gradients that each block finds, and at last those
    /// of what the embeddings were computed from.
    pub(crate) fn backward(
        self,
        llm: &Decoder<B>,
        output: Option<Tensor<B::InnerBackend, 3>>,
        mut key_values: Vec<[Option<Tensor<B::InnerBackend, 4>>; 2]>,
        each: &mut impl FnMut(B::Gradients),
    ) {
        let device = self.pass.embeddings.device();
        let mut gradient = output;
        for (l, (layer, input)) in llm.layers.iter().zip(self.inputs).enumerate().rev() {
            let [for_keys, for_values] = key_values.pop().unwrap_or_default();
            B::seed(&device, block_seed(self.seed, l));
            let input = input.require_grad();
            let past = self.pass.past.layers.get(l).cloned().unwrap_or_default();
            let (next, cache) =
                layer.forward(input.clone(), &self.rotary, &self.pass.mask, &self.pass.packing, past, llm.config());
            let mut terms = vec![weighted(next, gradient.take())];
            if for_keys.is_some() || for_values.is_some() {
                let (keys, values) = cache.into_whole();
                terms.extend([weighted(keys, for_keys), weighted(values, for_values)]);
            }
            let Some(sum) = terms.into_iter().flatten().reduce(|a, b| a + b) else { continue };
            let mut grads = sum.backward();
            gradient = input.grad_remove(&mut grads);
            each(grads);
        }
        if let Some(sum) = weighted(self.pass.embeddings, gradient) {
            each(backward_if_tracked(sum));
        }
    }
}

fn block_seed(seed: u64, block: usize) -> u64 {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(block as u64)
}

/// A sum whose gradient with respect to `tensor` is `gradient`.
pub(crate) fn weighted<B: AutodiffBackend, const D: usize>(
    tensor: Tensor<B, D>,
    gradient: Option<Tensor<B::InnerBackend, D>>,
) -> Option<Tensor<B, 1>> {
    Some((tensor * Tensor::from_inner(gradient?)).sum())
}

/// Gradients of `sum`; none where nothing trains that it was computed from.
pub(crate) fn backward_if_tracked<B: AutodiffBackend>(sum: Tensor<B, 1>) -> B::Gradients {
    let tracked = Tensor::zeros([1], &sum.device()).require_grad();
    (sum + tracked).backward()
}
