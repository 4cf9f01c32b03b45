//! Prompts that begin with the same tokens: those tokens' keys and values, computed once
//! ([`PrefixCache`]), and in training their gradients, too ([`SharedPrefix`]).
//!
//! In an optimiser step all micro-batches begin with the same prefix. It is run forward once,
//! before them, without a graph; after them it is run once more, with a graph, and backward from
//! the sum of the gradients that they have with respect to its keys and values:
//!
//! ```text
//!   prefix ──▶ keys and values ═╤═▶ micro-batch 1 ─▶ loss       ═ cut: leaves of each micro-batch's graph
//!     ▲            ▲            ├─▶ micro-batch 2 ─▶ loss
//!     └────────────┴─ Σ gradients ◀─┘
//! ```
//!
//! Its graph is not kept in between, because graphs that outlive another one's backward pass lose
//! gradients ([`super::gradient_checkpointing`]).

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::ItemLanguageModel;
use super::gradient_checkpointing::{Checkpoints, backward_if_tracked, weighted_sum};
use crate::batch::TokenTreeBatch;
use crate::core::profiler::Part;
use crate::kernels::{LayerCache, profile_scope};
use crate::model::llm::kv_cache::KvCache;

type Inner<B> = <B as AutodiffBackend>::InnerBackend;

/// Keys and values of the tokens that prompts begin with.
#[derive(Module, Debug)]
pub struct PrefixCache<B: Backend> {
    /// `[layers]`: keys, `[1, heads, tokens, head_dim]` each.
    pub(crate) keys: Vec<Tensor<B, 4>>,
    /// `[layers]`: values, `[1, heads, tokens, head_dim]` each.
    pub(crate) values: Vec<Tensor<B, 4>>,
    #[module(skip)]
    pub(crate) tokens: Vec<u32>,
}

impl<B: Backend> PrefixCache<B> {
    /// Makes the cache of `tokens`.
    ///
    /// # Shapes
    /// `keys`, `values`: `[layers]`, each `[1, heads, tokens, head_dim]`.
    pub(crate) fn new(keys: Vec<Tensor<B, 4>>, values: Vec<Tensor<B, 4>>, tokens: Vec<u32>) -> Self {
        Self { keys, values, tokens }
    }

    /// Returns the cached tokens.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns the number of cached tokens.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Returns the bytes of keys and values.
    pub(crate) fn bytes(&self) -> usize {
        let tensors = self.keys.iter().chain(&self.values);
        tensors.map(|tensor| tensor.shape().num_elements() * tensor.dtype().size()).sum()
    }

    /// Returns the cache of the first `len` tokens.
    pub(crate) fn first_tokens(&self, len: usize) -> Self {
        let cut = |tensors: &[Tensor<B, 4>]| tensors.iter().map(|tensor| tensor.clone().narrow(2, 0, len)).collect();
        Self { keys: cut(&self.keys), values: cut(&self.values), tokens: self.tokens[..len].to_vec() }
    }

    /// Returns how many of the first `tokens` are cached.
    pub(crate) fn common_prefix_len(&self, tokens: &[u32]) -> usize {
        self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// Returns keys and values of the first `len` tokens, shared by all rows.
    pub(crate) fn first(&self, len: usize) -> KvCache<B> {
        KvCache::from_shared((0..self.keys.len()).map(|layer| self.layer(layer, len)).collect())
    }

    /// Returns one layer's keys and values of the first `len` tokens, shared by all rows.
    fn layer(&self, layer: usize, len: usize) -> LayerCache<B> {
        let cut = |tensor: &Tensor<B, 4>| tensor.clone().narrow(2, 0, len);
        LayerCache { shared: Some((cut(&self.keys[layer]), cut(&self.values[layer]))), own: Vec::new() }
    }

    /// Returns the same cache, in no graph.
    pub(crate) fn without_grad(self) -> Self {
        let untracked =
            |tensors: Vec<Tensor<B, 4>>| tensors.into_iter().map(|tensor| tensor.set_require_grad(false)).collect();
        Self { keys: untracked(self.keys), values: untracked(self.values), tokens: self.tokens }
    }
}

impl<B: Backend> ItemLanguageModel<B> {
    /// Returns one layer's keys and values of the first `len` tokens of the prefix cache; empty for
    /// 0.
    pub(crate) fn cached_layer(&self, layer: usize, len: usize) -> LayerCache<B> {
        self.prefix.as_ref().filter(|_| len > 0).map_or_else(LayerCache::default, |prefix| prefix.layer(layer, len))
    }
}

/// The shared prefix of all micro-batches of an optimiser step.
pub struct SharedPrefix<B: AutodiffBackend> {
    tokens: Vec<u32>,
    seed: u64,
    /// Inputs of the blocks, if these run again in the backward pass.
    checkpoints: Option<Checkpoints<B>>,
    /// `[layers]`: keys and values that the micro-batches attend to.
    leaves: Vec<[Tensor<B, 4>; 2]>,
    /// `[layers]`: their gradients, summed over the micro-batches.
    grads: Vec<[Option<Tensor<Inner<B>, 4>>; 2]>,
}

/// The backward pass of token trees that [`ItemLanguageModel::train_trees`] ran.
pub struct TreesBackward<B: AutodiffBackend> {
    checkpointed: Option<CheckpointedTrees<B>>,
}

struct CheckpointedTrees<B: AutodiffBackend> {
    checkpoints: Checkpoints<B>,
    /// The last block's output, a leaf.
    output: Tensor<B, 3>,
    /// The part of the trees' shared prefix that was not cached, with the model that has it cached.
    prefix: Option<(ItemLanguageModel<B>, SharedPrefix<B>)>,
}

impl<B: AutodiffBackend> ItemLanguageModel<B> {
    /// Runs `tokens`, with which all micro-batches begin. Returns the model with their keys and
    /// values cached, and the prefix that sums up the gradients of these. Nothing is run if all of
    /// them are cached already.
    ///
    /// * `seed`: of dropout.
    pub fn with_shared_prefix(&self, tokens: &[u32], seed: u64) -> (Self, SharedPrefix<B>) {
        let mut model = self.clone();
        let mut prefix =
            SharedPrefix { tokens: tokens.to_vec(), seed, checkpoints: None, leaves: vec![], grads: vec![] };
        if self.cached_len(tokens) == tokens.len() {
            return (model, prefix);
        }
        let cache = match self.gradient_checkpointing {
            true => {
                let (checkpoints, _, cache) = Checkpoints::forward(self, self.prefix_pass(tokens), seed);
                prefix.checkpoints = Some(checkpoints);
                cache
            }
            false => self.without_grad().run_prefix(tokens, seed),
        };
        prefix.leaves = pairs(cache).map(|pair| pair.map(|tensor| tensor.detach().require_grad())).collect();
        prefix.grads = prefix.leaves.iter().map(|_| [None, None]).collect();
        let (keys, values) = prefix.leaves.iter().map(|[k, v]| (k.clone(), v.clone())).unzip();
        model.prefix = Some(PrefixCache { keys, values, tokens: tokens.to_vec() });
        (model, prefix)
    }

    fn run_prefix(&self, tokens: &[u32], seed: u64) -> KvCache<B> {
        // An item encoder among the embeddings may draw dropout as well.
        B::seed(&self.device(), seed);
        self.run(&self.prefix_pass(tokens)).cache
    }

    /// Runs token trees as [`ItemLanguageModel::forward_trees`] does, for a backward pass. Returns
    /// the hidden states of their nodes, and the rest of a loss's backward pass.
    ///
    /// * `seed`: of dropout.
    ///
    /// # Shapes
    /// Output: `[nodes, hidden]`.
    pub fn train_trees(&self, trees: &TokenTreeBatch, seed: u64) -> (Tensor<B, 2>, TreesBackward<B>) {
        if !self.gradient_checkpointing {
            B::seed(&self.device(), seed);
            return (self.forward_trees(trees), TreesBackward { checkpointed: None });
        }
        let uncached = self.cached_len(&trees.shared_prefix) < trees.shared_prefix.len();
        let prefix = uncached.then(|| self.with_shared_prefix(&trees.shared_prefix, seed));
        let model = prefix.as_ref().map_or(self, |(model, _)| model);
        let (checkpoints, output, _) = Checkpoints::forward(model, model.trees_pass(trees), seed);
        let output = output.require_grad();
        let hidden = self.llm.norm.forward(profile_scope(output.clone(), Part::Loss));
        let [_, nodes, width] = hidden.dims();
        let checkpointed = CheckpointedTrees { checkpoints, output, prefix };
        (hidden.reshape([nodes, width]), TreesBackward { checkpointed: Some(checkpointed) })
    }
}

impl<B: AutodiffBackend> TreesBackward<B> {
    /// Continues the backward pass from `grads`, those of a loss on the trees' hidden states, to
    /// the gradients of all parameters before these. `accumulate` receives them in parts to be
    /// summed.
    ///
    /// * `model`: the model that ran the trees.
    pub fn run(self, model: &ItemLanguageModel<B>, mut grads: B::Gradients, accumulate: &mut impl FnMut(B::Gradients)) {
        let Some(CheckpointedTrees { checkpoints, output, prefix }) = self.checkpointed else {
            return accumulate(grads);
        };
        let gradient = output.grad_remove(&mut grads);
        accumulate(grads);
        let Some((longer, mut prefix)) = prefix else {
            return checkpoints.backward(model, gradient, Vec::new(), accumulate);
        };
        checkpoints.backward(&longer, gradient, Vec::new(), &mut |mut grads| {
            prefix.take_gradients(&mut grads);
            accumulate(grads);
        });
        prefix.backward(model, accumulate);
    }
}

impl<B: AutodiffBackend> SharedPrefix<B> {
    /// Removes from `grads` a micro-batch's gradients with respect to the prefix's keys and values,
    /// and adds them to the sum.
    pub fn take_gradients(&mut self, grads: &mut B::Gradients) {
        for (leaf, sum) in self.leaves.iter().flatten().zip(self.grads.iter_mut().flatten()) {
            *sum = match (leaf.grad_remove(grads), sum.take()) {
                (Some(grad), Some(sum)) => Some(sum + grad),
                (grad, sum) => grad.or(sum),
            };
        }
    }

    /// Runs the prefix backward. `accumulate` receives the gradients in parts to be summed.
    ///
    /// * `model`: the model of [`ItemLanguageModel::with_shared_prefix`].
    pub fn backward(self, model: &ItemLanguageModel<B>, accumulate: &mut impl FnMut(B::Gradients)) {
        if self.grads.iter().flatten().all(Option::is_none) {
            return;
        }
        if let Some(checkpoints) = self.checkpoints {
            return checkpoints.backward(model, None, self.grads, accumulate);
        }
        let keys_and_values = pairs(model.run_prefix(&self.tokens, self.seed)).flatten();
        let terms = keys_and_values.zip(self.grads.into_iter().flatten());
        let sum = terms.filter_map(|(tensor, grad)| weighted_sum(tensor, grad)).reduce(|a, b| a + b);
        if let Some(sum) = sum {
            accumulate(backward_if_tracked(sum));
        }
    }
}

/// Returns each layer's keys and values of the one row of `cache`, those before it included.
fn pairs<B: Backend>(cache: KvCache<B>) -> impl Iterator<Item = [Tensor<B, 4>; 2]> {
    cache.layers.into_iter().map(|layer| {
        let (keys, values) = layer.into_whole();
        [keys, values]
    })
}
