//! The chain that all micro-batches of an optimiser step stand below, run once a step: forward
//! before them and, with the sum of the gradients that they have with respect to its keys and
//! values, backward after them.
//!
//! ```text
//!   chain ──▶ keys and values ═╤═▶ micro-batch 1 ─▶ loss        ═ cut: leaves of each micro-batch's graph
//!     ▲           ▲            ├─▶ micro-batch 2 ─▶ loss
//!     └───────────┴─ Σ gradients ◀─┘
//! ```

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::ItemLanguageModel;
use super::gradient_checkpointing::{Checkpoints, backward_if_tracked, weighted};
use super::item_encoder::PrefixCache;
use crate::batch::TokenTreeBatch;
use crate::core::profiler::Part;
use crate::kernels::{profile_scope, rms_norm};
use crate::model::llm::kv_cache::KvCache;

type Inner<B> = <B as AutodiffBackend>::InnerBackend;

/// Keys and values that micro-batches share, those of the first layer first.
pub struct Root<B: AutodiffBackend> {
    run: Run<B>,
    /// What the micro-batches see.
    leaves: Vec<[Tensor<B, 4>; 2]>,
    /// Summed over the micro-batches.
    grads: Vec<[Option<Tensor<Inner<B>, 4>>; 2]>,
}

enum Run<B: AutodiffBackend> {
    /// Keys and values in the graph of the chain.
    Graph(Vec<[Tensor<B, 4>; 2]>),
    Checkpoints(Checkpoints<B>),
}

impl<B: AutodiffBackend> ItemLanguageModel<B> {
    /// The model, for micro-batches that begin with `chain`, and what sums up their gradients.
    /// Nothing is run where the prefix stands for all of it. `seed` draws dropout.
    pub fn with_root(&self, chain: &[u32], seed: u64) -> (Self, Root<B>) {
        let mut model = self.clone();
        if self.known(chain) == chain.len() {
            return (model, Root { run: Run::Graph(vec![]), leaves: vec![], grads: vec![] });
        }
        // An encoder among the embeddings may draw as well.
        B::seed(&self.device(), seed);
        let pass = self.chain_pass(chain);
        let pairs = |cache: KvCache<B>| {
            let layers = cache.into_shared().layers.into_iter();
            layers.filter_map(|layer| layer.shared.map(|(k, v)| [k, v])).collect::<Vec<_>>()
        };
        let (run, seen) = match self.gradient_checkpointing {
            true => {
                let (checkpoints, _, cache) = Checkpoints::forward(&self.llm, pass, seed);
                (Run::Checkpoints(checkpoints), pairs(cache))
            }
            false => {
                let run = pairs(self.run(pass).cache);
                (Run::Graph(run.clone()), run)
            }
        };
        let leaves: Vec<_> = seen.into_iter().map(|pair| pair.map(|tensor| tensor.detach().require_grad())).collect();
        let (keys, values) = leaves.iter().map(|[k, v]| (k.clone(), v.clone())).unzip();
        model.prefix = Some(PrefixCache { keys, values, tokens: chain.to_vec() });
        let grads = leaves.iter().map(|_| [None, None]).collect();
        (model, Root { run, leaves, grads })
    }

    /// [`ItemLanguageModel::forward_forest`] of a micro-batch, to be run backward by
    /// [`Trees::backward`]. `seed` draws dropout.
    pub fn run_trees(&self, forest: &TokenTreeBatch, seed: u64) -> Trees<B> {
        B::seed(&self.device(), seed);
        let pass = self.trees_pass(forest);
        let (hidden, checkpoints) = match self.gradient_checkpointing {
            true => {
                let (checkpoints, output, _) = Checkpoints::forward(&self.llm, pass, seed);
                let output = output.require_grad();
                (rms_norm(&self.llm.norm, profile_scope(output.clone(), Part::Loss)), Some((checkpoints, output)))
            }
            false => (self.run(pass).hidden, None),
        };
        let [_, nodes, width] = hidden.dims();
        Trees { hidden: hidden.reshape([nodes, width]), checkpoints }
    }
}

/// Token trees that were run, and can be run backward.
pub struct Trees<B: AutodiffBackend> {
    /// Of the trees' nodes, `[nodes, hidden]`.
    pub hidden: Tensor<B, 2>,
    /// And the last block's output, a leaf.
    checkpoints: Option<(Checkpoints<B>, Tensor<B, 3>)>,
}

impl<B: AutodiffBackend> Trees<B> {
    /// Goes on from the gradients of a loss on `hidden` to those of all that it was computed from;
    /// `each` is given them in parts to be summed.
    pub fn backward(self, model: &ItemLanguageModel<B>, mut grads: B::Gradients, each: &mut impl FnMut(B::Gradients)) {
        let before = self.checkpoints.map(|(checkpoints, output)| (checkpoints, output.grad_remove(&mut grads)));
        each(grads);
        if let Some((checkpoints, gradient)) = before {
            checkpoints.backward(&model.llm, gradient, Vec::new(), each);
        }
    }
}

impl<B: AutodiffBackend> Root<B> {
    /// Takes a micro-batch's gradients with respect to the keys and values.
    pub fn take(&mut self, grads: &mut B::Gradients) {
        for (leaf, sum) in self.leaves.iter().flatten().zip(self.grads.iter_mut().flatten()) {
            *sum = match (leaf.grad_remove(grads), sum.take()) {
                (Some(grad), Some(sum)) => Some(sum + grad),
                (grad, sum) => grad.or(sum),
            };
        }
    }

    /// The gradients of what the chain was computed from, to `each` in parts to be summed.
    pub fn backward(self, model: &ItemLanguageModel<B>, each: &mut impl FnMut(B::Gradients)) {
        match self.run {
            Run::Checkpoints(checkpoints) => checkpoints.backward(&model.llm, None, self.grads, each),
            Run::Graph(run) => {
                let terms = run.into_iter().flatten().zip(self.grads.into_iter().flatten());
                let sum = terms.filter_map(|(tensor, grad)| weighted(tensor, grad)).reduce(|a, b| a + b);
                if let Some(sum) = sum {
                    each(backward_if_tracked(sum));
                }
            }
        }
    }
}
