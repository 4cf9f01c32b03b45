//! Gradient checkpointing: the forward pass keeps only the input of each decoder block; the
//! backward pass runs the blocks again, from the last to the first, and embeds the tokens again.
//!
//! Paper: arXiv 1604.06174. Reference: transformers' `gradient_checkpointing_enable`
//! (torch.utils.checkpoint, a decoder layer at a time). There the generator's state is kept for
//! dropout; here the embeddings and each block draw from a seed of their own, both times.
//!
//! No autodiff graph may live while another one is run backward: burn 0.21 then loses gradients, at
//! random (its `backward` removes the parameters' nodes, and then the graphs that use them). So
//! nothing here keeps a tensor that is in a graph: the embeddings are computed again at the end of
//! the backward pass, and the cached prefix is detached where it is used.

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::ItemLanguageModel;
use super::item_language_model::Pass;
use crate::model::llm::block::BlockInputs;
use crate::model::llm::kv_cache::KvCache;

/// A forward pass that can be run backward.
pub(crate) struct Checkpoints<B: AutodiffBackend> {
    pass: Pass<B>,
    block_inputs: BlockInputs<B>,
    /// Each block's input, in no graph: `[1, tokens, hidden]`.
    inputs: Vec<Tensor<B, 3>>,
    seed: u64,
}

impl<B: AutodiffBackend> Checkpoints<B> {
    /// Runs `pass`. Also returns the last block's output (before the last norm) and the cache that
    /// [`crate::model::Decoder::forward_masked`] returns; neither is in a graph.
    ///
    /// # Shapes
    /// Returns `[1, tokens, hidden]`.
    pub(crate) fn forward(model: &ItemLanguageModel<B>, pass: Pass<B>, seed: u64) -> (Self, Tensor<B, 3>, KvCache<B>) {
        let device = model.device();
        // The copy is on the backend that trains, so that dropout is drawn.
        let model = model.without_grad();
        let cached = model.cached_prefix(pass.cached_len);
        let block_inputs = model.llm.block_inputs(&pass.positions, &pass.mask, &pass.packing, &cached);
        let mut x = embed(&model, &pass, seed);
        let (mut inputs, mut layers) = (Vec::new(), Vec::new());
        for (l, layer) in model.llm.layers.iter().enumerate() {
            B::seed(&device, block_seed(seed, l));
            inputs.push(x.clone());
            let past = model.cached_layer(l, pass.cached_len);
            let (next, cache) = layer.forward(x, l, &block_inputs, past, model.llm.config());
            layers.push(cache);
            x = next;
        }
        (Self { pass, block_inputs, inputs, seed }, x, KvCache::from_shared(layers))
    }

    /// Runs backward from the gradients of the last block's output and of each block's keys and
    /// values, where there are any. `accumulate` receives the gradients in parts to be summed: each
    /// block's, and at last those of the embeddings' parameters.
    ///
    /// * `model`: the model of [`Checkpoints::forward`].
    pub(crate) fn backward(
        self,
        model: &ItemLanguageModel<B>,
        output: Option<Tensor<B::InnerBackend, 3>>,
        mut key_values: Vec<[Option<Tensor<B::InnerBackend, 4>>; 2]>,
        accumulate: &mut impl FnMut(B::Gradients),
    ) {
        let (device, llm, pass) = (model.device(), &model.llm, &self.pass);
        let mut gradient = output;
        for (l, (layer, input)) in llm.layers.iter().zip(self.inputs).enumerate().rev() {
            let [for_keys, for_values] = key_values.pop().unwrap_or_default();
            B::seed(&device, block_seed(self.seed, l));
            let input = input.require_grad();
            let past = model.cached_layer(l, pass.cached_len);
            let (next, cache) = layer.forward(input.clone(), l, &self.block_inputs, past, llm.config());
            let mut terms = vec![weighted_sum(next, gradient.take())];
            if for_keys.is_some() || for_values.is_some() {
                let (keys, values) = cache.into_whole();
                terms.extend([weighted_sum(keys, for_keys), weighted_sum(values, for_values)]);
            }
            let Some(sum) = terms.into_iter().flatten().reduce(|a, b| a + b) else { continue };
            let mut grads = sum.backward();
            gradient = input.grad_remove(&mut grads);
            accumulate(grads);
        }
        if gradient.is_some()
            && let Some(sum) = weighted_sum(embed(model, pass, self.seed), gradient)
        {
            accumulate(backward_if_tracked(sum));
        }
    }
}

/// Embeds the tokens of a pass: `[1, tokens, hidden]`, with the dropout that `seed` draws in an
/// item encoder.
fn embed<B: AutodiffBackend>(model: &ItemLanguageModel<B>, pass: &Pass<B>, seed: u64) -> Tensor<B, 3> {
    B::seed(&model.device(), seed);
    model.embed(&pass.tokens, 1, pass.tokens.len())
}

fn block_seed(seed: u64, block: usize) -> u64 {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(block as u64)
}

/// Returns a sum whose gradient with respect to `tensor` is `gradient`.
///
/// # Shapes
/// `tensor` and `gradient` have one shape; the result: `[1]`.
pub(crate) fn weighted_sum<B: AutodiffBackend, const D: usize>(
    tensor: Tensor<B, D>,
    gradient: Option<Tensor<B::InnerBackend, D>>,
) -> Option<Tensor<B, 1>> {
    Some((tensor * Tensor::from_inner(gradient?)).sum())
}

/// Returns the gradients of `sum`: none if it was computed from nothing that trains.
///
/// # Shapes
/// `sum`: `[1]`.
pub(crate) fn backward_if_tracked<B: AutodiffBackend>(sum: Tensor<B, 1>) -> B::Gradients {
    let tracked = Tensor::zeros([1], &sum.device()).require_grad();
    (sum + tracked).backward()
}

impl<B: AutodiffBackend> ItemLanguageModel<B> {
    /// Returns a copy, on the same backend, whose passes make no graph.
    pub(crate) fn without_grad(&self) -> Self {
        let mut model = self.clone().no_grad();
        model.prefix = model.prefix.map(|prefix| prefix.without_grad());
        model
    }
}
