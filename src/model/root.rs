//! The chain that all micro-batches of an optimiser step stand below, run once a step: forward before them and, with the sum of the
//! gradients that they have with respect to its keys and values, backward after them.
//!
//! ```text
//!   chain ──▶ keys and values ═╤═▶ micro-batch 1 ─▶ loss        ═ cut: leaves of each micro-batch's graph
//!     ▲           ▲            ├─▶ micro-batch 2 ─▶ loss
//!     └───────────┴─ Σ gradients ◀─┘
//! ```

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::ItemLanguageModel;
use super::entities::Prefix;

/// Keys and values that micro-batches share, in the order key, value of each layer.
pub struct Root<B: AutodiffBackend> {
    /// In the graph of the chain.
    run: Vec<Tensor<B, 4>>,
    /// What the micro-batches see of them.
    leaves: Vec<Tensor<B, 4>>,
    /// Summed over the micro-batches.
    grads: Vec<Option<Tensor<B::InnerBackend, 4>>>,
}

impl<B: AutodiffBackend> ItemLanguageModel<B> {
    /// The model, for micro-batches that begin with `chain`, and what sums up their gradients. Nothing is run where the prefix
    /// stands for all of it.
    pub fn with_root(&self, chain: &[u32]) -> (Self, Root<B>) {
        let mut model = self.clone();
        let key_values = if self.known(chain) < chain.len() { self.chain(chain) } else { None };
        let Some(key_values) = key_values else { return (model, Root { run: vec![], leaves: vec![], grads: vec![] }) };
        let leaf = |tensor: &Tensor<B, 4>| tensor.clone().detach().require_grad();
        let (keys, values): (Vec<_>, Vec<_>) = key_values.0.iter().map(|(k, v)| (leaf(k), leaf(v))).unzip();
        let leaves = keys.iter().zip(&values).flat_map(|(k, v)| [k.clone(), v.clone()]).collect();
        model.prefix = Some(Prefix { keys, values, tokens: chain.to_vec() });
        let run: Vec<_> = key_values.0.into_iter().flat_map(|(k, v)| [k, v]).collect();
        let grads = vec![None; run.len()];
        (model, Root { run, leaves, grads })
    }
}

impl<B: AutodiffBackend> Root<B> {
    /// Takes a micro-batch's gradients with respect to the keys and values.
    pub fn take(&mut self, grads: &mut B::Gradients) {
        for (leaf, sum) in self.leaves.iter().zip(&mut self.grads) {
            *sum = match (leaf.grad_remove(grads), sum.take()) {
                (Some(grad), Some(sum)) => Some(sum + grad),
                (grad, sum) => grad.or(sum),
            };
        }
    }

    /// The gradients of what the chain was computed from; `None` if no micro-batch saw it.
    pub fn backward(self) -> Option<B::Gradients> {
        let pairs = self.run.into_iter().zip(self.grads);
        let terms = pairs.filter_map(|(tensor, grad)| Some((tensor * Tensor::from_inner(grad?)).sum()));
        let sum = terms.reduce(|a, b| a + b)?;
        // Of a chain in which nothing trains there is no graph to go back through.
        let tracked = Tensor::zeros([1], &sum.device()).require_grad();
        Some((sum + tracked).backward())
    }
}
