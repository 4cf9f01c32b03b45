//! Floating-point operations of a training step, counted from sizes.

use burn::prelude::*;

use crate::batch::Batch;
use crate::core::profiler::{Part, Parts, Pass};
use crate::model::{DecoderBlock, ItemLanguageModel, LoraLinear, Projection};

impl<B: Backend> ItemLanguageModel<B> {
    /// Counts the operations of the matrix products of a forward and backward pass over `batch`, a
    /// multiplication and an addition being two.
    ///
    /// Forward: every token that runs (no padding, no token of the prefix cache) through every
    /// projection, LoRA's included, and two products of the heads' width for each pair of a query
    /// and a key that it sees; in the last layer of the shared prefix only keys and values; the
    /// logits that are scored. Backward: the gradient of a weight that trains, and of an input
    /// where something before it trains. Not counted: what an implementation computes again, masked
    /// scores, norms, activations, dropout and the optimiser.
    ///
    /// * `prefix_ran`: the shared prefix was run with an earlier batch of the step, and counted
    ///   there.
    pub fn flops(&self, batch: &Batch, prefix_ran: bool) -> Parts {
        let (token_trees, config) = (&batch.token_trees, self.llm.config());
        let known = self.cached_len(&token_trees.shared_prefix);
        let below = token_trees.shared_prefix.len() as u32;
        let counter = || Counter { flops: Parts::default(), width: config.num_attention_heads * config.head_dim };
        let (mut counter, mut of_prefix) = (counter(), counter());

        let prefix = &token_trees.shared_prefix[known..];
        let mut shared = Run::new((1..=prefix.len()).collect(), self.count_embedding(prefix, &mut of_prefix));
        let own = token_trees.positions.iter().map(|position| (position - below + 1) as usize).collect();
        let mut trees = Run::new(own, self.count_embedding(&token_trees.tokens, &mut counter));

        for (l, block) in self.llm.layers.iter().enumerate() {
            let (frozen, window) = ((known, [false; 2]), config.window(l));
            let last = l + 1 == self.llm.layers.len();
            let prefixes = (prefix.len(), of_prefix.block(block, &mut shared, &[frozen], window, last));
            counter.block(block, &mut trees, &[prefixes, frozen], window, false);
        }

        let head = self.llm.head();
        let rows = batch.candidate_ids.as_ref().map_or(config.vocab_size, Vec::len);
        let product = 2.0 * (batch.predictions.len() * rows * config.hidden_size) as f64;
        counter.add(Part::Loss, product, count([trees.tracked, head.is_require_grad()]) * product);
        if !prefix_ran {
            counter.flops += of_prefix.flops;
        }
        counter.flops
    }

    /// Adds the products of an item encoder. Returns whether the tokens' embeddings have gradients.
    fn count_embedding(&self, tokens: &[u32], counter: &mut Counter) -> bool {
        let present = self.entities_among(tokens).len();
        let Some(entities) = self.entities.as_ref().filter(|_| present > 0) else {
            return self.llm.embed_tokens.val().is_require_grad();
        };
        let [forward, backward] = entities.encoder.flops(present);
        counter.add(Part::Embedding, forward, backward);
        true
    }
}

/// Tokens that run together.
struct Run {
    tokens: f64,
    /// Each token's ancestors in the run, itself included.
    ancestors: Vec<usize>,
    /// Whether the input of the next layer has a gradient.
    tracked: bool,
}

impl Run {
    fn new(ancestors: Vec<usize>, tracked: bool) -> Self {
        Self { tokens: ancestors.len() as f64, ancestors, tracked }
    }

    /// Counts the pairs of a query and a key that it sees: in the run, then in each of `pasts`, the
    /// nearest first.
    fn pairs(&self, pasts: &[(usize, [bool; 2])], window: Option<usize>) -> Vec<f64> {
        let mut pairs = vec![0.0; 1 + pasts.len()];
        for &own in &self.ancestors {
            let mut left = window.unwrap_or(usize::MAX);
            let keys = std::iter::once(own).chain(pasts.iter().map(|(past, _)| *past));
            for (sum, keys) in pairs.iter_mut().zip(keys) {
                *sum += keys.min(left) as f64;
                left -= keys.min(left);
            }
        }
        pairs
    }
}

struct Counter {
    flops: Parts,
    /// Width of all query heads together.
    width: usize,
}

impl Counter {
    fn add(&mut self, part: Part, forward: f64, backward: f64) {
        self.flops.add(part, Pass::Forward, forward);
        self.flops.add(part, Pass::Backward, backward);
    }

    /// Adds a block's products. Returns whether its keys and values have gradients.
    ///
    /// * `pasts`: earlier tokens, the nearest first: their number, and whether their keys and
    ///   values have gradients.
    /// * `keys_only`: nothing uses the block's output.
    fn block<B: Backend>(
        &mut self,
        block: &DecoderBlock<B>,
        run: &mut Run,
        pasts: &[(usize, [bool; 2])],
        window: Option<usize>,
        keys_only: bool,
    ) -> [bool; 2] {
        let [q, k, v] = match block.find_linear(Projection::QueryKeyValue) {
            Some(fused) => [self.linear(Part::Attention, fused, run, run.tracked); 3],
            None => {
                let mut linear = |projection| self.linear(Part::Attention, block.linear(projection), run, run.tracked);
                let (k, v) = (linear(Projection::Key), linear(Projection::Value));
                [!keys_only && linear(Projection::Query), k, v]
            }
        };
        if keys_only {
            return [k, v];
        }
        let gradients = [[k, v]].into_iter().chain(pasts.iter().map(|(_, kv)| *kv));
        let sees = run.pairs(pasts, window).into_iter().zip(gradients).filter(|(pairs, _)| *pairs > 0.0);
        let sees: Vec<(f64, [bool; 2])> = sees.collect();
        let scores = q || sees.iter().any(|(_, [k, _])| *k);
        for &(pairs, [k, v]) in &sees {
            let product = 2.0 * pairs * self.width as f64;
            self.add(Part::Attention, 2.0 * product, count([scores, q, k, v]) * product);
        }
        let attended = scores || sees.iter().any(|(_, [_, v])| *v);
        run.tracked |= self.linear(Part::Attention, block.linear(Projection::AttentionOutput), run, attended);
        let inner = [Projection::Gate, Projection::Up, Projection::GateUp].into_iter();
        let inner = inner.filter_map(|projection| block.find_linear(projection));
        let mut inner_tracked = false;
        for linear in inner {
            inner_tracked |= self.linear(Part::Mlp, linear, run, run.tracked);
        }
        run.tracked |= self.linear(Part::Mlp, block.linear(Projection::Down), run, inner_tracked);
        [k, v]
    }

    /// Adds a projection's products. Returns whether the output has a gradient; `tracked` says
    /// whether the input has one.
    fn linear<B: Backend>(&mut self, part: Part, linear: &LoraLinear<B>, run: &Run, tracked: bool) -> bool {
        let [out, width] = linear.weight.dims();
        let product = |rows: usize, columns: usize| 2.0 * run.tokens * (rows * columns) as f64;
        let trains = linear.weight.is_require_grad();
        let dense = product(out, width);
        self.add(part, dense, count([tracked, trains]) * dense);
        if let Some(lora) = &linear.lora {
            let rank = lora.a.dims()[0];
            let (down, up) = (product(rank, width), product(out, rank));
            self.add(part, down + up, count([true, tracked]) * down + 2.0 * up);
        }
        tracked || trains || linear.lora.is_some()
    }
}

fn count<const N: usize>(wanted: [bool; N]) -> f64 {
    wanted.into_iter().filter(|&wanted| wanted).count() as f64
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::batch::{Candidates, Example, Target};
    use crate::config::{LoraConfig, Precision};
    use crate::device::{BackendName, Training};
    use crate::model::{Decoder, DecoderConfig, Tune, open_weights};
    use crate::text::{Catalogue, Trie};

    fn flops(tune: Tune) -> (Parts, DecoderConfig) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/llama-untied");
        let path = dir.join("config.json");
        let config = DecoderConfig::from_json(&path, &fs::read_to_string(&path).unwrap()).unwrap();
        let weights = open_weights(&dir, &config).unwrap();
        let llm =
            Decoder::<Training>::load(&config, weights, tune, Precision::F32, &BackendName::Cpu.device().unwrap())
                .unwrap();
        // Three shared tokens; after them a row of four nodes (two prompts that branch after two)
        // and one of a single node.
        let targets = vec![vec![1, 9], vec![2, 9]];
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let example = |prompt: &[u32]| Example { prompt: prompt.to_vec(), target: Target::Item(0), logit_bias: vec![] };
        let examples = [&[1, 2, 3, 4, 5, 6][..], &[1, 2, 3, 4, 5, 7], &[1, 2, 3, 8]].map(example);
        let batch = Batch::new(&examples, &catalogue, Candidates::Children);
        assert_eq!(
            (batch.token_trees.shared_prefix.len(), batch.token_trees.tree_count(), batch.token_trees.run_tokens()),
            (3, 2, 8)
        );
        (ItemLanguageModel::from(llm).flops(&batch, false), config)
    }

    /// Pairs of a query and a key: of the prefix's tokens 1 + 2 + 3; of the trees' own tokens 1 + 2
    /// + 3 + 3 and 1, and with the prefix 5 · 3.
    const PAIRS: f64 = 6.0 + 10.0 + 15.0;

    #[test]
    fn lora_by_hand() {
        let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
        let (flops, config) = flops(Tune::Lora(&lora, 1));
        let [hidden, inner, q, kv] = [
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        ]
        .map(|size| size as f64);
        let layers = config.num_hidden_layers as f64;
        let product = |tokens: f64, a: f64, b: f64| 2.0 * tokens * a * b;
        let adapter = |tokens: f64, out: f64| product(tokens, 2.0, hidden) + product(tokens, 2.0, out);

        // The last layer of the prefix is missing: only its keys and values are needed.
        let linears = |tokens: f64| 2.0 * product(tokens, hidden, q) + 2.0 * product(tokens, hidden, kv);
        let attention = |tokens: f64, pairs: f64| {
            linears(tokens) + adapter(tokens, q) + adapter(tokens, kv) + 2.0 * product(pairs, 1.0, q)
        };
        let unasked = attention(3.0, 6.0) - 2.0 * product(3.0, hidden, kv) - adapter(3.0, kv);
        assert_eq!(flops.get(Part::Attention, Pass::Forward), layers * attention(8.0, PAIRS) - unasked);
        let mlp = |tokens: f64| 3.0 * product(tokens, hidden, inner);
        assert_eq!(flops.get(Part::Mlp, Pass::Forward), layers * mlp(8.0) - mlp(3.0));
        // Three predictions of two candidates.
        assert_eq!(flops.get(Part::Loss, Pass::Forward), product(3.0, 2.0, hidden));
        assert_eq!(flops.get(Part::Embedding, Pass::Forward), 0.0);

        // No frozen weight has a gradient; nothing before the first layer's adapters has one, so
        // its keys have none either.
        let first = 2.0 * product(8.0, hidden, kv) + product(8.0, hidden, q) + product(8.0, 2.0, hidden) * 2.0;
        let first = first + product(PAIRS, 1.0, q);
        let gradients = |tokens: f64, pairs: f64| {
            let adapters = adapter(tokens, q) + adapter(tokens, kv);
            linears(tokens) + 2.0 * adapters + 4.0 * product(pairs, 1.0, q)
        };
        let unasked = gradients(3.0, 6.0) - 2.0 * product(3.0, hidden, kv) - 2.0 * adapter(3.0, kv);
        assert_eq!(flops.get(Part::Attention, Pass::Backward), layers * gradients(8.0, PAIRS) - unasked - first);
        assert_eq!(flops.get(Part::Mlp, Pass::Backward), flops.get(Part::Mlp, Pass::Forward));
        assert_eq!(flops.get(Part::Loss, Pass::Backward), flops.get(Part::Loss, Pass::Forward));
    }

    #[test]
    fn a_weight_that_trains_costs_as_much_again() {
        let (full, _) = flops(Tune::Full);
        assert_eq!(full.get(Part::Mlp, Pass::Backward), 2.0 * full.get(Part::Mlp, Pass::Forward));
        assert_eq!(full.get(Part::Loss, Pass::Backward), 2.0 * full.get(Part::Loss, Pass::Forward));
        let (frozen, _) = flops(Tune::Frozen);
        assert_eq!(frozen.total(Pass::Backward), 0.0);
        assert_eq!(frozen.total(Pass::Forward), full.total(Pass::Forward));
    }
}
