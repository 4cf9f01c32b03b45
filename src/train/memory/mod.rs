//! Estimates of the memory of training and of ranking on the CPU, in bytes, computed from sizes: no
//! weight is read.
//!
//! Autodiff keeps the tensors that the operations of [`crate::kernels`] save, and of a matrix
//! product its left side where its right side trains. An operation takes over an input that has no
//! other owner, and keeps a copy of others: so a norm keeps a copy of the residual stream, and
//! attention a copy of keys and values, which the cache holds as well. On other devices most of
//! these operations are burn's own, which keep more.

mod weights;

use serde::Serialize;

pub use weights::{ParameterCount, WeightBytes};

use crate::batch::Batch;
use crate::config::Precision;
use crate::loss::LOGITS_OF_A_BLOCK;
use crate::model::{DecoderConfig, ItemEncoderConfig, NormRole, Projection, QuantizedSize, Role, Tune};
use crate::text::EntityTokens;

/// Bytes of a number, except in frozen projections.
const F32: u64 = 4;

/// The sizes that decide how much memory a model takes.
#[derive(Debug, Clone, Copy)]
pub struct MemoryEstimator<'a> {
    /// The LLM's sizes.
    pub decoder: &'a DecoderConfig,
    /// The part of the LLM that trains.
    pub tune: Tune<'a>,
    /// Number type of the frozen projections and their products.
    pub precision: Precision,
    /// Size of the matrices that stay quantised, if any do.
    pub quantized: Option<QuantizedSize>,
    /// The encoder of items and users, if there is one.
    pub encoder: Option<&'a ItemEncoderConfig>,
    /// Number of items and users that have a vector.
    pub entities: usize,
}

/// Memory of an optimiser step where it needs most, beside weights and optimiser state; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StepBytes {
    /// Bytes of the gradients of all trainable parameters: those of earlier micro-batches and this
    /// one's.
    pub gradients: u64,
    /// Bytes that the forward passes of a micro-batch and of the shared prefix keep for the
    /// backward pass.
    pub activations: u64,
    /// Bytes of temporary tensors.
    #[serde(rename = "transient")]
    pub temporary: u64,
    /// Number of tokens of the micro-batch after the shared prefix.
    pub tokens: usize,
    /// Number of tokens of the shared prefix.
    #[serde(rename = "chain")]
    pub shared_prefix: usize,
    /// Bytes of the largest tensor, attention's scores included, which only other devices than the
    /// CPU form.
    pub largest_tensor: u64,
}

impl StepBytes {
    /// Returns the sum, bytes.
    pub fn total(&self) -> u64 {
        self.gradients + self.activations + self.temporary
    }
}

/// Memory of ranking several prompts together, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RankingBytes {
    /// Number of prompts that are ranked together.
    pub prompts: usize,
    /// Bytes of keys and values: of the prompts' shared prefix, of the prompts and of the search's
    /// own tokens.
    pub cache: u64,
    /// Bytes of temporary tensors.
    #[serde(rename = "transient")]
    pub temporary: u64,
}

/// Sizes of tokens that run together.
#[derive(Debug, Clone, Copy, Default)]
struct Pass {
    tokens: u64,
    rows: u64,
    /// Number of tokens with the padding of all rows to the longest.
    padded_tokens: u64,
    /// Number of earlier tokens that all of them see, and whether their keys and values are in the
    /// graph.
    past: u64,
    /// Number of entities among the tokens.
    entities: u64,
}

/// Numbers that a block keeps for the backward pass, and numbers of its temporary tensors.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    attention: u64,
    mlp: u64,
    forward: u64,
    backward_attention: u64,
    backward_mlp: u64,
}

/// Numbers of a whole pass.
#[derive(Debug, Clone, Copy, Default)]
struct PassBytes {
    kept: u64,
    /// The largest count of the forward pass, what is kept included.
    forward: u64,
    /// The largest count of the backward pass.
    backward: u64,
    /// Keys and values.
    cache: u64,
}

impl<'a> MemoryEstimator<'a> {
    /// Estimates the optimiser step of `batches`, micro-batch by micro-batch, where it needs most.
    ///
    /// * `entities`: the tokens that are items and users.
    pub fn step(&self, batches: &[Batch], entities: Option<EntityTokens>, checkpointing: bool) -> StepBytes {
        let present = |tokens: &[u32]| {
            let mut found: Vec<u32> = tokens.iter().filter_map(|&t| Some(entities.as_ref()?.locate(t)?.0)).collect();
            found.sort_unstable();
            found.dedup();
            found.len() as u64
        };
        let Some(first) = batches.first() else { return StepBytes::default() };
        let prefix =
            Pass::prefix(first.token_trees.shared_prefix.len() as u64, present(&first.token_trees.shared_prefix));
        // A frozen LLM's prefix of ordinary tokens is in no graph.
        let prefix_tracked = !matches!(self.tune, Tune::Frozen) || prefix.entities > 0;
        let above = match prefix.tokens {
            0 => PassBytes::default(),
            _ => self.pass(prefix, prefix_tracked, checkpointing),
        };
        let leaves = if prefix_tracked { above.cache } else { 0 };
        // The prefix's graph, its keys and values and, from the first micro-batch on, their
        // gradients.
        let (held, activations) = (above.kept + above.cache + leaves, above.kept + above.cache);
        let trained = self.parameters().trained;
        let of = |(index, batch): (usize, &Batch)| {
            let token_trees = &batch.token_trees;
            let rows = token_trees.tree_count() as u64;
            let longest = token_trees.parents.iter().map(Vec::len).max().unwrap_or(0) as u64;
            let pass = Pass {
                tokens: token_trees.tokens.len() as u64,
                rows,
                padded_tokens: rows * longest,
                past: prefix.tokens,
                entities: present(&token_trees.tokens),
            };
            let whole = self.pass(pass, true, checkpointing);
            let (at_loss, head) = self.loss(batch);
            let before = if index > 0 { trained } else { 0 };
            let gradients = before + trained;
            let hidden = 2 * pass.tokens * self.hidden();
            // At the end of the backward pass all new gradients exist and no activation does; in
            // between the one grows as the other falls. The embeddings' gradient is made of as many
            // zeros, the head's gradient added to it.
            let table = if self.is_full() { 2 * self.embedding_rows() } else { 0 };
            let peak = [
                before + whole.forward,
                before + whole.kept + hidden + at_loss,
                before + head + whole.backward + hidden,
                gradients + table + if self.is_full() { pass.tokens * self.hidden() } else { 0 },
            ];
            let most = held + peak.into_iter().max().unwrap_or(0);
            let shown = if self.is_full() { before + head } else { gradients };
            StepBytes {
                gradients: shown.min(most) * F32,
                activations: (activations + whole.kept) * F32,
                temporary: most.saturating_sub(shown + activations + whole.kept) * F32,
                tokens: token_trees.tokens.len(),
                shared_prefix: prefix.tokens as usize,
                largest_tensor: F32 * self.largest(pass, batch),
            }
        };
        let most = batches.iter().enumerate().map(of).max_by_key(StepBytes::total).unwrap_or_default();
        // A prefix can be longer than the tokens after it.
        let alone = above.forward.max(above.backward + above.cache + leaves + trained) * F32;
        let temporary = most.temporary + alone.saturating_sub(most.total());
        StepBytes { temporary, ..most }
    }

    /// Returns the memory of the optimiser's step, or of a checkpoint's copy of the optimiser's
    /// state, beside weights and state; bytes. Where every weight trains, the optimiser keeps the
    /// old weights until all new ones exist.
    pub fn between_steps(&self) -> u64 {
        let trained = self.parameters().trained;
        let largest = if self.is_full() { self.embedding_rows() } else { 0 };
        (trained + 3 * largest).max(2 * trained) * F32
    }

    /// Estimates the ranking of several prompts together.
    ///
    /// * `lengths`: number of tokens of each prompt after the shared prefix, which has `shared`
    ///   tokens.
    /// * `a_beam`: number of tokens that each of a prompt's `beams` adds.
    /// * `scored`: number of tokens of the vocabulary that are scored at once.
    pub fn ranking(
        &self,
        lengths: &[usize],
        shared: usize,
        beams: usize,
        a_beam: usize,
        scored: usize,
    ) -> RankingBytes {
        let (rows, tokens) = (lengths.len() as u64, lengths.iter().sum::<usize>() as u64);
        let longest = lengths.iter().copied().max().unwrap_or(0) as u64;
        let pass = Pass { tokens, rows, padded_tokens: rows * longest, past: shared as u64, entities: 0 };
        let keys = rows * (longest + (beams * a_beam) as u64) + shared as u64;
        let block = self.block(pass, false, true);
        let logits = rows * beams as u64 * scored as u64;
        RankingBytes {
            prompts: lengths.len(),
            cache: self.layers() * 2 * keys * self.keys() * F32,
            temporary: (block.forward + pass.tokens * self.hidden() + logits) * F32,
        }
    }

    /// Counts the numbers of a pass.
    ///
    /// * `tracked`: whether something that trains is in it or before it.
    fn pass(&self, pass: Pass, tracked: bool, checkpointing: bool) -> PassBytes {
        let (layers, residual) = (self.layers(), pass.tokens * self.hidden());
        let encoder = self.encoder.map_or(0, |encoder| pass.entities * encoder.activations(self.hidden() as usize));
        // The embeddings train where every weight does, or with an encoder among them.
        let first = self.block(pass, tracked, self.is_full() || pass.entities > 0 || checkpointing);
        let other = self.block(pass, tracked, tracked);
        let cache = layers * 2 * pass.padded_tokens * self.keys();
        if checkpointing {
            // The input of each block, which the norms then copy.
            let kept = layers * residual + encoder;
            let plain = self.block(pass, false, false);
            return PassBytes {
                kept,
                forward: kept + cache + plain.forward + residual,
                backward: kept + other.attention + other.mlp + 2 * residual + other.backward_mlp,
                cache,
            };
        }
        let kept = first.attention + first.mlp + (layers - 1) * (other.attention + other.mlp) + encoder;
        PassBytes {
            kept,
            forward: kept + cache + other.forward,
            backward: (kept + other.backward_mlp).max((kept + other.backward_attention).saturating_sub(other.mlp)),
            cache,
        }
    }

    /// Counts the numbers of a block.
    ///
    /// * `tracked`: whether anything in it or before it trains.
    /// * `input`: whether its input has a gradient.
    fn block(&self, pass: Pass, tracked: bool, input: bool) -> Block {
        let Pass { tokens, rows, padded_tokens, past, .. } = pass;
        let (h, inner, q, kv) = (self.hidden(), self.decoder.intermediate_size as u64, self.queries(), self.keys());
        let residual = tokens * h;
        let [mut norm, mut after] = [0, 0];
        for tensor in self.decoder.block_tensors() {
            // A norm keeps its input and the scale of each row.
            let rows = |width: u64| tokens * width / tensor.shape[0] as u64;
            match tensor.role {
                Role::Norm(NormRole::BeforeAttention) if tracked && input => norm += residual + tokens,
                Role::Norm(NormRole::Query) if tracked => norm += tokens * q + rows(q),
                Role::Norm(NormRole::Key) if tracked => norm += tokens * kv + rows(kv),
                Role::Norm(NormRole::AfterAttention) if tracked => norm += residual + tokens,
                Role::Norm(NormRole::BeforeMlp | NormRole::AfterMlp) if tracked => after += residual + tokens,
                _ => {}
            }
        }
        use Projection::{AttentionOutput, Down, Gate, GateUp, Key, Query, QueryKeyValue, Up, Value};
        let queries_keys_values = self.left_side(&[Query, Key, Value, QueryKeyValue], h);
        let attended = padded_tokens * (q + 2 * kv + self.decoder.num_attention_heads as u64) + 2 * past * kv;
        let attention = norm
            + tokens * (queries_keys_values + self.left_side(&[AttentionOutput], q))
            + if tracked { attended } else { 0 };
        let gates = if tracked { 2 * tokens * inner } else { 0 };
        let gate_up_down = self.left_side(&[Gate, Up, GateUp], h) + self.left_side(&[Down], inner);
        let mlp = after + gates + tokens * gate_up_down;
        // bf16 products run in f32: both factors and the result exist twice.
        let half = match self.precision {
            Precision::Bf16 if !self.is_full() => (3 * tokens * (h + inner) + 3 * h * inner) / 2,
            _ => 0,
        };
        // A matrix is dequantized while it is multiplied.
        let half = half + if self.quantized.is_some() { h * inner } else { 0 };
        // Parts of a fused projection's output are copies.
        let half = half + if self.decoder.switches.fused_projections { 2 * tokens * inner } else { 0 };
        let forward = 2 * residual + tokens * inner + half + if tracked { 0 } else { 2 * tokens * inner };
        // Each row and head has a part of the gradients, which are put together afterwards; of the
        // past each row has a part.
        let parts = 2 * padded_tokens * (q + 2 * kv) + padded_tokens * q + 2 * (rows + 1) * past * kv;
        let backward_mlp = residual + (3 * tokens * inner).max(2 * tokens * inner + half);
        Block { attention, mlp, forward, backward_attention: 2 * residual + parts, backward_mlp }
    }

    /// Counts the numbers for each token that the products of projections with one input of `width`
    /// keep: the input where one of the weights trains; with LoRA the input, or after dropout one
    /// input each, and the result between the two thin matrices.
    fn left_side(&self, projections: &[Projection], width: u64) -> u64 {
        match self.tune {
            Tune::Frozen => 0,
            Tune::Full => width,
            Tune::Lora(lora, _) => {
                let adapted = self.decoder.projections().into_iter();
                let adapted =
                    adapted.filter(|(projection, module, _)| projections.contains(projection) && lora.adapts(module));
                let adapted = adapted.count() as u64;
                let inputs = if lora.dropout > 0.0 { adapted } else { adapted.min(1) };
                inputs * width + adapted * lora.rank as u64
            }
        }
    }

    /// Counts the numbers that exist at once in a batch's loss, and those of the head's gradient.
    fn loss(&self, batch: &Batch) -> (u64, u64) {
        let (h, vocabulary) = (self.hidden(), self.decoder.vocab_size as u64);
        let predictions = batch.predictions.len() as u64;
        let rows = batch.candidate_ids.as_ref().map_or(vocabulary, |rows| rows.len() as u64);
        let together = predictions.min((LOGITS_OF_A_BLOCK as u64 / rows.max(1)).max(1));
        let logit_bias = batch.predictions.iter().any(|prediction| !prediction.logit_bias.is_empty());
        // The logits before and after masking, and the mask, a byte each, twice.
        let logits = together * rows * (2 + u64::from(logit_bias)) + together * rows / 2;
        let selected = if batch.candidate_ids.is_some() { rows * h } else { 0 };
        let states = predictions * h * 4;
        match self.is_full() {
            // The sum so far and a block's; then the product that carries it, and the table that
            // the selected rows came from.
            true => {
                let gradient = 3 * rows * h + if batch.candidate_ids.is_some() { self.embedding_rows() } else { 0 };
                (logits + selected + states + 2 * rows * h, gradient)
            }
            false => (logits + selected + states, 0),
        }
    }

    /// Counts the numbers of the largest tensor.
    fn largest(&self, pass: Pass, batch: &Batch) -> u64 {
        let seq = pass.padded_tokens / pass.rows.max(1);
        let scores = pass.padded_tokens * self.decoder.num_attention_heads as u64 * (seq + pass.past);
        let logits =
            batch.candidate_ids.as_ref().map_or(self.decoder.vocab_size, Vec::len).max(LOGITS_OF_A_BLOCK) as u64;
        let inner = pass.tokens * self.decoder.intermediate_size as u64;
        [scores, logits, inner, self.embedding_rows()].into_iter().max().unwrap_or(0)
    }

    fn is_full(&self) -> bool {
        matches!(self.tune, Tune::Full)
    }

    fn hidden(&self) -> u64 {
        self.decoder.hidden_size as u64
    }

    fn layers(&self) -> u64 {
        self.decoder.num_hidden_layers as u64
    }

    /// Returns the width of all query heads.
    fn queries(&self) -> u64 {
        (self.decoder.num_attention_heads * self.decoder.head_dim) as u64
    }

    /// Returns the width of all key heads, which is also that of the values.
    fn keys(&self) -> u64 {
        (self.decoder.num_key_value_heads * self.decoder.head_dim) as u64
    }
}

impl Pass {
    fn prefix(tokens: u64, entities: u64) -> Self {
        Self { tokens, rows: 1, padded_tokens: tokens, past: 0, entities }
    }
}

#[cfg(test)]
mod tests;
