//! Decoders of the families that [`super::config::FAMILIES`] lists: Llama and its descendants.
//!
//! Papers: LLaMA, arXiv 2302.13971; grouped-query attention, arXiv 2305.13245. Reference:
//! transformers/models/*/modeling_*.py (rotation of halves; norms in f32).
//!
//! The forward pass takes embeddings, position ids, a mask and a cache of earlier tokens. With
//! these the caller decides about item vectors in a prompt, trees of tokens and cached decoding.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;

use super::block::{BlockInputs, DecoderBlock};
use super::config::DecoderConfig;
use super::kv_cache::{KvCache, Packing};
use super::lora_linear::LoraLinear;
use super::norm::Norm;
use crate::config::{LlmConfig, LoraConfig, Precision, TuneKind};
use crate::core::profiler::Part;
use crate::kernels::{AttentionMask, MASKED, Mask, Rotary, RotaryFrequencies, log_sum_exp, profile_scope};
use crate::tensor::indices;

/// The part of the LLM that trains.
#[derive(Debug, Clone, Copy)]
pub enum Tune<'a> {
    /// No parameter.
    Frozen,
    /// LoRA adapters on the chosen projections, with the seed of their initial values.
    Lora(&'a LoraConfig, u64),
    /// All parameters.
    Full,
}

impl<'a> Tune<'a> {
    /// Returns the part that trains, by a run file's `[llm]` and `seed`.
    pub fn training(config: &'a LlmConfig, seed: u64) -> Self {
        match config.tune {
            TuneKind::Full => Self::Full,
            TuneKind::Lora => Self::Lora(&config.lora, seed),
            TuneKind::Frozen => Self::Frozen,
        }
    }

    /// Returns the form of a model that only ranks, with room for the weights that
    /// [`Tune::training`] trained.
    pub fn inference(config: &'a LlmConfig, seed: u64) -> Self {
        match config.tune {
            TuneKind::Lora => Self::Lora(&config.lora, seed),
            TuneKind::Full | TuneKind::Frozen => Self::Frozen,
        }
    }
}

/// A decoder.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// `[vocab, hidden]`.
    pub embed_tokens: Param<Tensor<B, 2>>,
    /// The blocks.
    pub layers: Vec<DecoderBlock<B>>,
    /// The norm after the last block.
    pub norm: Norm<B>,
    /// The output projection; absent where the embedding serves as both.
    pub lm_head: Option<LoraLinear<B>>,
    pub(crate) half_turn: Tensor<B, 2>,
    #[module(skip)]
    pub(super) rotary: RotaryFrequencies,
    /// Angles of windowed layers, where they have their own.
    #[module(skip)]
    pub(super) window_rotary: Option<RotaryFrequencies>,
    #[module(skip)]
    pub(super) config: DecoderConfig,
}

/// The result of a forward pass.
#[derive(Debug, Clone)]
pub struct Output<B: Backend> {
    /// Hidden states after the last norm, of the shape of the embeddings.
    pub hidden: Tensor<B, 3>,
    /// The given cache, with this pass's keys and values as a further own block.
    pub cache: KvCache<B>,
}

/// Number of tokens of the vocabulary that are scored at once, where only the sum over all of them
/// is needed. Tests' vocabularies have two blocks and a part of one.
const VOCABULARY_BLOCK: usize = if cfg!(test) { 40 } else { 4096 };

impl<B: Backend> Decoder<B> {
    /// Returns the architecture.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Returns the number type of the blocks' frozen products.
    pub fn precision(&self) -> Precision {
        let linear = self.layers.first().and_then(|block| block.linears.first());
        linear.map_or(Precision::F32, |linear| linear.precision)
    }

    /// Copies token ids to the model's device.
    ///
    /// # Shapes
    /// The result: `[tokens]`.
    ///
    /// # Panics
    /// On an id that is not in the vocabulary.
    pub fn token_ids(&self, tokens: impl IntoIterator<Item = u32>) -> Tensor<B, 1, Int> {
        let embeddings = self.embed_tokens.val();
        indices(tokens.into_iter().map(|token| token as usize), embeddings.dims()[0], &embeddings.device())
    }

    /// Embeds token ids.
    ///
    /// # Shapes
    /// `ids`: `[batch, seq]`; the result: `[batch, seq, hidden]`.
    pub fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, seq] = ids.dims();
        let rows = self.embed_tokens.val().select(0, ids.reshape([batch * seq]));
        let rows = match self.config.embedding_factor() {
            None => rows,
            Some(factor) => rows.mul_scalar(factor),
        };
        rows.reshape([batch, seq, self.config.hidden_size])
    }

    /// Runs the decoder on rows of equal length.
    ///
    /// # Shapes
    ///
    /// * `embeddings`: `[batch, seq, hidden]`.
    /// * `positions`: `[batch · seq]`, row after row.
    /// * `mask`: `[batch or 1, 1, seq, shared + own + seq]`, added to the scores: 0 where a token
    ///   may attend, [`MASKED`] where not. All tokens see the keys that rows share.
    /// * `past`: the cache of earlier tokens.
    pub fn forward(
        &self,
        embeddings: Tensor<B, 3>,
        positions: &[u32],
        mask: Tensor<B, 4>,
        past: Option<KvCache<B>>,
    ) -> Output<B> {
        let [batch, seq, _] = embeddings.dims();
        let past = past.unwrap_or_default();
        let mask = Mask::from_additive(mask, past.shared_tokens());
        self.forward_masked(embeddings, positions, &mask, &Packing::even(batch, seq), past)
    }

    /// Runs the decoder, with a [`Mask`], on rows of any lengths.
    ///
    /// # Shapes
    ///
    /// * `embeddings`: `[.., .., hidden]`, the tokens that `packing` says.
    /// * `positions`: one a token.
    pub fn forward_masked(
        &self,
        embeddings: Tensor<B, 3>,
        positions: &[u32],
        mask: &Mask<B>,
        packing: &Packing<B>,
        past: KvCache<B>,
    ) -> Output<B> {
        let [batch, seq, _] = embeddings.dims();
        assert_eq!(positions.len(), batch * seq, "a position a token");
        let inputs = self.block_inputs(positions, mask, packing, &past);
        let own_positions = self.config.any_window().map(|_| past.positions_with(packing.padded_positions(positions)));
        let mut x = profile_scope(embeddings, Part::Attention);
        let mut past = past.layers.into_iter();
        let mut layers = Vec::with_capacity(self.layers.len());
        for (l, block) in self.layers.iter().enumerate() {
            let (next, cache) = block.forward(x, l, &inputs, past.next().unwrap_or_default(), &self.config);
            layers.push(cache);
            x = next;
        }
        let cache = KvCache { layers, own_positions: own_positions.unwrap_or_default() };
        Output { hidden: self.norm.forward(profile_scope(x, Part::Loss)), cache }
    }

    /// Returns what all blocks of a pass have in common.
    ///
    /// * `positions`: one a token.
    /// * `mask`: which of a row's own keys a query sees that has no window.
    /// * `past`: the cache that the pass continues.
    pub(crate) fn block_inputs(
        &self,
        positions: &[u32],
        mask: &Mask<B>,
        packing: &Packing<B>,
        past: &KvCache<B>,
    ) -> BlockInputs<B> {
        let seq = packing.even_seq().unwrap_or(positions.len());
        let rotary = |angles: &RotaryFrequencies| {
            let heads = [self.config.num_attention_heads, self.config.num_key_value_heads];
            Rotary::new(positions, seq, angles, heads, &self.half_turn)
        };
        let window_mask = self.config.any_window().map(|window| {
            let queries = packing.padded_positions(positions);
            let keys = past.positions_with(queries.clone());
            mask.intersect(&AttentionMask::window(&queries, &keys, window), past.shared_tokens())
        });
        BlockInputs {
            packing: packing.clone(),
            mask: mask.clone(),
            rotary: rotary(&self.rotary),
            window_mask,
            window_rotary: self.window_rotary.as_ref().map(rotary),
        }
    }

    /// Scores tokens of the vocabulary.
    ///
    /// # Shapes
    /// `hidden`: `[n, hidden]`; `rows`: the `[r]` tokens to score, or `None` for all; the result:
    /// logits `[n, r]`.
    pub fn logits(&self, hidden: Tensor<B, 2>, rows: Option<Tensor<B, 1, Int>>) -> Tensor<B, 2> {
        let head = match rows {
            Some(rows) => self.head().select(0, rows),
            None => self.head(),
        };
        self.cap_logits(hidden.matmul(head.transpose()))
    }

    /// Returns the soft cap of the logits, if the family has one: `cap · tanh(logit / cap)`.
    pub fn logit_soft_cap(&self) -> Option<f64> {
        self.config.switches.logit_soft_cap
    }

    fn cap_logits(&self, logits: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.logit_soft_cap() {
            None => logits,
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        }
    }

    /// Returns log Σ exp of the logits of the whole vocabulary, of which only a block at a time is
    /// formed.
    ///
    /// # Shapes
    /// `hidden`: `[n, hidden]`; the result: `[n, 1]`.
    pub fn log_sum_vocabulary(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let (head, vocabulary) = (self.head(), self.config.vocab_size);
        let block = |first: usize| {
            let rows = head.clone().narrow(0, first, VOCABULARY_BLOCK.min(vocabulary - first));
            log_sum_exp(self.cap_logits(hidden.clone().matmul(rows.transpose())))
        };
        log_sum_exp(Tensor::cat((0..vocabulary).step_by(VOCABULARY_BLOCK).map(block).collect(), 1))
    }

    /// Returns the output projection's weight.
    ///
    /// # Shapes
    /// Output: `[vocab, hidden]`.
    pub fn head(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.weight.dense(),
            None => self.embed_tokens.val(),
        }
    }
}

/// Returns the additive causal mask: a token attends to itself and to those before it.
///
/// # Shapes
/// Output: `[1, 1, seq, seq]`.
pub fn causal_mask<B: Backend>(seq: usize, device: &B::Device) -> Tensor<B, 4> {
    let values = (0..seq).flat_map(|q| (0..seq).map(move |k| if k <= q { 0.0 } else { MASKED })).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(values, [1, 1, seq, seq]), device)
}
