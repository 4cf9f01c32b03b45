//! The item-language model: an LLM whose prompt holds vectors of items and users between ordinary
//! tokens.
//!
//! Paper: ILM, arXiv 2406.02844: an entity's collaborative vector passes a Q-Former and a linear
//! adapter, and its K vectors stand where the prompt has a placeholder.

use burn::prelude::*;

use super::entities::Entities;
use super::prefix_cache::PrefixCache;
use crate::batch::TokenTreeBatch;
use crate::core::profiler;
use crate::core::profiler::Part;
use crate::kernels::{AttentionMask, Mask};
use crate::model::llm::decoder::{Decoder, Output};
use crate::model::llm::kv_cache::{KvCache, Packing};
use crate::tensor::indices;

/// An LLM, with the encoder of items and users.
#[derive(Module, Debug)]
pub struct ItemLanguageModel<B: Backend> {
    /// The language model.
    pub llm: Decoder<B>,
    /// `None` for prompts of text alone.
    pub entities: Option<Entities<B>>,
    pub(crate) prefix: Option<PrefixCache<B>>,
    /// Whether training keeps only each decoder block's input and runs the block again in the
    /// backward pass: less memory, more time.
    pub gradient_checkpointing: bool,
    /// Whether the embedded input is tracked although nothing before it trains: its gradient is not
    /// used, but some GPUs lose those of an adapter without it (tracel-ai/burn#5162).
    pub track_input: bool,
}

/// The input of one forward pass of the decoder; see [`Decoder::forward_masked`].
pub(crate) struct Pass<B: Backend> {
    /// Tokens, row after row, without padding: ordinary tokens and [`crate::text::EntityTokens`].
    pub tokens: Vec<u32>,
    /// `[tokens]`: positions.
    pub positions: Vec<u32>,
    pub mask: Mask<B>,
    pub packing: Packing<B>,
    /// Number of tokens before them whose keys and values the model's prefix cache has.
    pub cached_len: usize,
}

/// The result of [`ItemLanguageModel::forward`].
#[derive(Debug, Clone)]
pub struct PrefillOutput<B: Backend> {
    /// `[tokens, hidden]`: hidden states of each row's tokens after the first `cached_len`, row
    /// after row.
    pub hidden: Tensor<B, 2>,
    /// Keys and values of all tokens: the first `cached_len` shared by all rows, the others padded
    /// on the right to the longest row.
    pub cache: KvCache<B>,
    /// Number of tokens at the beginning of every row that came from the prefix cache.
    pub cached_len: usize,
    /// `[rows]`: index in `hidden` of each row's first token.
    starts: Vec<usize>,
}

impl<B: Backend> PrefillOutput<B> {
    /// Returns the index in [`PrefillOutput::hidden`] of the token at `position` of `row`.
    pub fn hidden_index(&self, row: usize, position: usize) -> usize {
        self.starts[row] + position - self.cached_len
    }
}

impl<B: Backend> From<Decoder<B>> for ItemLanguageModel<B> {
    fn from(llm: Decoder<B>) -> Self {
        Self::new(llm, None)
    }
}

impl<B: Backend> ItemLanguageModel<B> {
    /// Makes a model of an LLM and, if its prompts hold vectors, of items and users.
    pub fn new(llm: Decoder<B>, entities: Option<Entities<B>>) -> Self {
        Self { llm, entities, prefix: None, gradient_checkpointing: false, track_input: false }
    }

    /// Returns the device of its weights.
    pub fn device(&self) -> B::Device {
        self.llm.embed_tokens.val().device()
    }

    /// Returns the root mean square of the LLM's embeddings, as they enter its first block.
    pub fn embedding_scale(llm: &Decoder<B>) -> f64 {
        let table = llm.embed_tokens.val().detach();
        let rms = table.powi_scalar(2).mean().into_scalar().elem::<f64>().sqrt();
        rms * llm.config().embedding_factor().unwrap_or(1.0)
    }

    /// Runs `tokens` once and keeps their keys and values, for rows that begin with some of them.
    /// Does nothing if they are cached already. The cache is valid as long as no weight of the LLM
    /// changes, and ends before the first entity among `tokens`.
    pub fn with_prefix_cache(mut self, tokens: &[u32]) -> Self {
        if self.cached_len(tokens) == tokens.len() {
            return self;
        }
        self.prefix = None;
        let ordinary = tokens.iter().take_while(|&&token| self.entity_vector(token).is_none()).count();
        if ordinary == 0 {
            return self;
        }
        let run = self.forward(&[&tokens[..ordinary]], 0);
        let own = run.cache.layers.into_iter().flat_map(|layer| layer.own);
        let (keys, values) = own.map(|(k, v)| (k.detach(), v.detach())).unzip();
        self.prefix = Some(PrefixCache::new(keys, values, tokens[..ordinary].to_vec()));
        self
    }

    /// Returns the model with another prefix cache.
    pub(crate) fn with_prefix(self, prefix: PrefixCache<B>) -> Self {
        Self { prefix: Some(prefix), ..self }
    }

    /// Returns the prefix cache.
    pub(crate) fn prefix(&self) -> Option<&PrefixCache<B>> {
        self.prefix.as_ref()
    }

    /// Runs those of `tokens` that the prefix cache does not have, together, and caches all of
    /// them. Unlike [`Self::with_prefix_cache`] it takes entities too, so it is for a model that
    /// does not train.
    ///
    /// # Panics
    /// If the cache has all of them.
    pub(crate) fn with_longer_prefix(self, tokens: &[u32]) -> Self {
        let run = self.forward(&[tokens], self.cached_len(tokens));
        let shared = run.cache.into_shared().layers.into_iter().filter_map(|layer| layer.shared);
        let (keys, values) = shared.unzip();
        self.with_prefix(PrefixCache::new(keys, values, tokens.to_vec()))
    }

    /// Returns how many of the first `tokens` the prefix cache has.
    pub(crate) fn cached_len(&self, tokens: &[u32]) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.common_prefix_len(tokens))
    }

    /// Returns keys and values of the first `len` tokens of the prefix cache.
    pub(crate) fn cached_prefix(&self, len: usize) -> KvCache<B> {
        self.prefix.as_ref().filter(|_| len > 0).map_or_else(KvCache::default, |prefix| prefix.first(len))
    }

    /// Returns the entity that `token` is a vector of, and the number of the vector; `None` for an
    /// ordinary token.
    fn entity_vector(&self, token: u32) -> Option<(u32, u32)> {
        self.entities.as_ref().and_then(|entities| entities.tokens.locate(token))
    }

    /// Returns the entities among `tokens`, ascending.
    pub(crate) fn entities_among(&self, tokens: &[u32]) -> Vec<u32> {
        let mut found: Vec<u32> = tokens.iter().filter_map(|&token| Some(self.entity_vector(token)?.0)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Embeds ordinary tokens and [`crate::text::EntityTokens`]; each entity is encoded once.
    ///
    /// # Shapes
    /// `tokens`: `[batch · seq]`; the result: `[batch, seq, hidden]`.
    pub fn embed(&self, tokens: &[u32], batch: usize, seq: usize) -> Tensor<B, 3> {
        profiler::begin(Part::Embedding);
        let present = self.entities_among(tokens);
        let Some(entities) = self.entities.as_ref().filter(|_| !present.is_empty()) else {
            return self.llm.embed(self.llm.token_ids(tokens.iter().copied()).reshape([batch, seq]));
        };
        // The rows of ordinary tokens come first, then K rows for each entity.
        let is_ordinary = |token: &&u32| self.entity_vector(**token).is_none();
        let ordinary: Vec<u32> = tokens.iter().filter(is_ordinary).copied().collect();
        let (first, per_entity) = (ordinary.len(), entities.tokens.per_entity() as usize);
        let mut next = 0..first;
        let row = |&token: &u32| match self.entity_vector(token) {
            None => next.next().unwrap_or_default(),
            Some((entity, n)) => {
                let before = present.partition_point(|&other| other < entity);
                first + before * per_entity + n as usize
            }
        };
        let rows: Vec<usize> = tokens.iter().map(row).collect();
        let device = self.device();
        let present = indices(present.iter().map(|&e| e as usize), entities.vectors.dims()[0], &device);
        let encoded = entities.encoder.forward(entities.vectors.clone().select(0, present));
        let width = encoded.dims()[1];
        let table = match first {
            0 => encoded,
            _ => {
                let ordinary = self.llm.embed(self.llm.token_ids(ordinary).reshape([1, first]));
                Tensor::cat(vec![ordinary.reshape([first, width]), encoded], 0)
            }
        };
        let rows = indices(rows, table.dims()[0], &device);
        table.select(0, rows).reshape([batch, seq, width])
    }

    /// Runs rows of tokens, without the tokens at their beginning that the prefix cache has.
    ///
    /// * `needed`: the first position of a row whose hidden state the caller needs.
    ///
    /// # Panics
    /// On an empty row.
    pub fn forward(&self, rows: &[&[u32]], needed: usize) -> PrefillOutput<B> {
        let device = self.device();
        let cached_len = rows.iter().map(|row| self.cached_len(row)).min().unwrap_or(0).min(needed);
        let lengths: Vec<usize> = rows.iter().map(|row| row.len() - cached_len).collect();
        let packing = Packing::new(&lengths, &device);
        let output = self.run(&Pass {
            tokens: rows.iter().flat_map(|row| &row[cached_len..]).copied().collect(),
            positions: rows.iter().flat_map(|row| cached_len as u32..row.len() as u32).collect(),
            mask: Mask::new(AttentionMask::causal(packing.seq()), cached_len, &device),
            packing,
            cached_len,
        });
        let mut next = 0;
        let start = |length: usize| {
            next += length;
            next - length
        };
        let starts = lengths.into_iter().map(start).collect();
        let [_, tokens, width] = output.hidden.dims();
        PrefillOutput { hidden: output.hidden.reshape([tokens, width]), cache: output.cache, cached_len, starts }
    }

    /// Runs token trees: first the prefix that they share, unless the prefix cache has it.
    ///
    /// # Shapes
    /// `[nodes, hidden]`: the hidden states of the trees' nodes.
    pub fn forward_trees(&self, trees: &TokenTreeBatch) -> Tensor<B, 2> {
        let past = match self.cached_len(&trees.shared_prefix) < trees.shared_prefix.len() {
            true => self.run(&self.prefix_pass(&trees.shared_prefix)).cache.into_shared(),
            false => self.cached_prefix(trees.shared_prefix.len()),
        };
        let hidden = self.run_with_past(&self.trees_pass(trees), past).hidden;
        let [_, nodes, width] = hidden.dims();
        hidden.reshape([nodes, width])
    }

    pub(crate) fn run(&self, pass: &Pass<B>) -> Output<B> {
        self.run_with_past(pass, self.cached_prefix(pass.cached_len))
    }

    /// Runs `pass` after tokens whose keys and values are `past`.
    fn run_with_past(&self, pass: &Pass<B>, past: KvCache<B>) -> Output<B> {
        let mut embeddings = self.embed(&pass.tokens, 1, pass.tokens.len());
        // A tensor that depends on something tracked is no leaf, and is tracked already.
        if self.track_input && self.entities.is_none() && !self.llm.embed_tokens.val().is_require_grad() {
            embeddings = embeddings.require_grad();
        }
        self.llm.forward_masked(embeddings, &pass.positions, &pass.mask, &pass.packing, past)
    }

    /// Lays out the nodes of `trees`, without their shared prefix.
    pub(crate) fn trees_pass(&self, trees: &TokenTreeBatch) -> Pass<B> {
        profiler::begin(Part::Attention);
        let lengths: Vec<usize> = trees.parents.iter().map(Vec::len).collect();
        Pass {
            mask: Mask::new(AttentionMask::trees(&trees.parents), trees.shared_prefix.len(), &self.device()),
            tokens: trees.tokens.clone(),
            positions: trees.positions.clone(),
            packing: Packing::new(&lengths, &self.device()),
            cached_len: trees.shared_prefix.len(),
        }
    }

    /// Lays out the part of `tokens` that the prefix cache does not have, as one row.
    pub(crate) fn prefix_pass(&self, tokens: &[u32]) -> Pass<B> {
        let cached_len = self.cached_len(tokens);
        let rest = tokens.len() - cached_len;
        Pass {
            tokens: tokens[cached_len..].to_vec(),
            positions: (cached_len as u32..tokens.len() as u32).collect(),
            mask: Mask::new(AttentionMask::causal(rest), cached_len, &self.device()),
            packing: Packing::even(1, rest),
            cached_len,
        }
    }
}
