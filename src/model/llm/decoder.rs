//! The Llama family of decoders: Llama 2 and 3, SmolLM2, TinyLlama.
//!
//! Paper: LLaMA, arXiv 2302.13971; grouped-query attention, arXiv 2305.13245. Reference:
//! transformers/models/llama/modeling_llama.py (rotation of halves; norms in f32) and
//! transformers/modeling_rope_utils.py (`_compute_llama3_parameters`).
//!
//! The forward pass takes ready embeddings, position ids, a mask and a cache of tokens that ran
//! before, so that item vectors in a prompt, trees of tokens and cached decoding are all the
//! caller's choice of those four.

use burn::module::Param;
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::prelude::*;
use burn::tensor::TensorData;

use super::kv_cache::{KvCache, Packing};
use super::lora_linear::{LoraLinear, Weight};
use super::peft::lora;
use super::quantized::Quantized;
use crate::Result;
use crate::config::{LlmConfig, LoraConfig, Precision, TuneKind};
use crate::core::profiler::Part;
use crate::kernels::{
    LayerCache, MASKED, Mask, Rotary, attention, half_turn, log_sum_exp, profile_scope, rms_norm, swiglu,
};
use crate::model::{DecoderConfig, Weights};

/// What of the LLM trains.
#[derive(Debug, Clone, Copy)]
pub enum Tune<'a> {
    /// Nothing.
    Frozen,
    /// LoRA adapters on the chosen projections; the seed draws their start.
    Lora(&'a LoraConfig, u64),
    /// Every weight.
    Full,
}

impl<'a> Tune<'a> {
    /// Returns what trains by a run file's `[llm]` and `seed`.
    pub fn training(config: &'a LlmConfig, seed: u64) -> Self {
        match config.tune {
            TuneKind::Full => Self::Full,
            TuneKind::Lora => Self::Lora(&config.lora, seed),
            TuneKind::Frozen => Self::Frozen,
        }
    }

    /// Returns the shape of a model that is to read what [`Tune::training`] trained, and only ranks.
    pub fn inference(config: &'a LlmConfig, seed: u64) -> Self {
        match config.tune {
            TuneKind::Lora => Self::Lora(&config.lora, seed),
            TuneKind::Full | TuneKind::Frozen => Self::Frozen,
        }
    }
}

/// A Llama decoder.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// `[vocab, hidden]`.
    pub embed_tokens: Param<Tensor<B, 2>>,
    /// The decoder's blocks.
    pub layers: Vec<DecoderBlock<B>>,
    /// After the last block.
    pub norm: RmsNorm<B>,
    /// The output projection; absent where the embedding serves as both.
    pub lm_head: Option<LoraLinear<B>>,
    pub(crate) half_turn: Tensor<B, 2>,
    /// `[head_dim / 2]`: the rotation's angle per position, Llama 3's scaling applied.
    #[module(skip)]
    inverse_frequencies: Vec<f32>,
    #[module(skip)]
    config: DecoderConfig,
}

/// One decoder block.
#[derive(Module, Debug)]
pub struct DecoderBlock<B: Backend> {
    /// Before attention.
    pub input_layernorm: RmsNorm<B>,
    /// `[heads · head_dim, hidden]`.
    pub q_proj: LoraLinear<B>,
    /// `[kv_heads · head_dim, hidden]`.
    pub k_proj: LoraLinear<B>,
    /// `[kv_heads · head_dim, hidden]`.
    pub v_proj: LoraLinear<B>,
    /// `[hidden, heads · head_dim]`.
    pub o_proj: LoraLinear<B>,
    /// Before the feed-forward.
    pub post_attention_layernorm: RmsNorm<B>,
    /// `[intermediate, hidden]`.
    pub gate_proj: LoraLinear<B>,
    /// `[intermediate, hidden]`.
    pub up_proj: LoraLinear<B>,
    /// `[hidden, intermediate]`.
    pub down_proj: LoraLinear<B>,
}

/// What a forward pass returns.
#[derive(Debug, Clone)]
pub struct Output<B: Backend> {
    /// After the last norm, of the shape of the embeddings.
    pub hidden: Tensor<B, 3>,
    /// The cache that was given, and this pass's keys and values as a further own block.
    pub cache: KvCache<B>,
}

/// Columns of the vocabulary that are scored at once, where only the sum over all of them is
/// wanted. Tests' vocabularies have two blocks and a part.
const VOCABULARY_BLOCK: usize = if cfg!(test) { 40 } else { 4096 };

impl<B: Backend> Decoder<B> {
    /// Reads every weight onto `device`: the projections of the blocks that do not train in
    /// `precision`, or as they are on disk where [`Weights::keep_quantized`] says so, all else in
    /// f32.
    ///
    /// Parameter ids are their order in the model, so that an optimiser's state can be stored by
    /// id.
    ///
    /// # Errors
    /// Missing, misshapen and unexpected tensors, by file and name.
    pub fn load(
        config: &DecoderConfig,
        mut weights: Weights,
        tune: Tune,
        precision: Precision,
        device: &B::Device,
    ) -> Result<Self> {
        let mut loader = Loader { config, weights: &mut weights, tune, precision, device, next_id: 0 };
        let (h, inner) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);

        let embed_tokens = loader.param("model.embed_tokens.weight", [config.vocab_size, h])?;
        let layers = (0..config.num_hidden_layers)
            .map(|l| {
                Ok(DecoderBlock {
                    input_layernorm: loader.norm(&format!("model.layers.{l}.input_layernorm"))?,
                    q_proj: loader.linear(l, "self_attn.q_proj", q, h)?,
                    k_proj: loader.linear(l, "self_attn.k_proj", kv, h)?,
                    v_proj: loader.linear(l, "self_attn.v_proj", kv, h)?,
                    o_proj: loader.linear(l, "self_attn.o_proj", h, q)?,
                    post_attention_layernorm: loader.norm(&format!("model.layers.{l}.post_attention_layernorm"))?,
                    gate_proj: loader.linear(l, "mlp.gate_proj", inner, h)?,
                    up_proj: loader.linear(l, "mlp.up_proj", inner, h)?,
                    down_proj: loader.linear(l, "mlp.down_proj", h, inner)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let norm = loader.norm("model.norm")?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => {
                let weight = Weight::Plain(loader.param("lm_head.weight", [config.vocab_size, h])?);
                Some(LoraLinear { weight, lora: None, precision: Precision::F32 })
            }
        };
        weights.finish()?;
        Ok(Self {
            embed_tokens,
            layers,
            norm,
            lm_head,
            half_turn: half_turn(config.head_dim, device),
            inverse_frequencies: inverse_frequencies(config),
            config: config.clone(),
        })
    }

    /// The model's sizes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// `[batch, seq]` token ids → `[batch, seq, hidden]`.
    pub fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, seq] = ids.dims();
        let rows = self.embed_tokens.val().select(0, ids.reshape([batch * seq]));
        rows.reshape([batch, seq, self.config.hidden_size])
    }

    /// Runs the decoder on rows of equal length.
    ///
    /// * `embeddings`: `[batch, seq, hidden]`.
    /// * `positions`: `[batch · seq]`, row after row.
    /// * `mask`: `[batch or 1, 1, seq, shared + own + seq]`, added to the scores: 0 where a token
    ///   may attend, [`MASKED`] where not. Keys that rows share all tokens see.
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

    /// Runs the decoder, with who sees whom as a [`Mask`], on rows of any lengths.
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
        let rotary = self.rotary(positions, seq);
        let mut x = profile_scope(embeddings, Part::Attention);
        let mut past = past.layers.into_iter();
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (next, cache) = layer.forward(x, &rotary, mask, packing, past.next().unwrap_or_default(), &self.config);
            layers.push(cache);
            x = next;
        }
        Output { hidden: rms_norm(&self.norm, profile_scope(x, Part::Loss)), cache: KvCache { layers } }
    }

    /// The rotation of rows of `seq` tokens at `positions`.
    pub(crate) fn rotary(&self, positions: &[u32], seq: usize) -> Rotary<B> {
        let heads = [self.config.num_attention_heads, self.config.num_key_value_heads];
        Rotary::new(positions, seq, &self.inverse_frequencies, heads, &self.half_turn)
    }

    /// `[n, hidden]` → logits `[n, rows]` of the vocabulary's `rows`, or of all of it (`[n,
    /// vocab]`) for `None`.
    pub fn logits(&self, hidden: Tensor<B, 2>, rows: Option<Tensor<B, 1, Int>>) -> Tensor<B, 2> {
        let head = match rows {
            Some(rows) => self.head().select(0, rows),
            None => self.head(),
        };
        hidden.matmul(head.transpose())
    }

    /// `[n, hidden]` → `[n, 1]`: log Σ exp of the logits of the whole vocabulary, of which only a
    /// block at a time is formed.
    pub fn log_sum_vocabulary(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let (head, vocabulary) = (self.head(), self.config.vocab_size);
        let block = |first: usize| {
            let rows = head.clone().narrow(0, first, VOCABULARY_BLOCK.min(vocabulary - first));
            log_sum_exp(hidden.clone().matmul(rows.transpose()))
        };
        log_sum_exp(Tensor::cat((0..vocabulary).step_by(VOCABULARY_BLOCK).map(block).collect(), 1))
    }

    /// `[vocab, hidden]`: the output projection's weight.
    pub fn head(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.weight.dense(),
            None => self.embed_tokens.val(),
        }
    }
}

/// `[1, 1, seq, seq]`: a token attends to itself and to those before it.
pub fn causal_mask<B: Backend>(seq: usize, device: &B::Device) -> Tensor<B, 4> {
    let values = (0..seq).flat_map(|q| (0..seq).map(move |k| if k <= q { 0.0 } else { MASKED })).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(values, [1, 1, seq, seq]), device)
}

impl<B: Backend> DecoderBlock<B> {
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &Mask<B>,
        packing: &Packing<B>,
        mut cache: LayerCache<B>,
        config: &DecoderConfig,
    ) -> (Tensor<B, 3>, LayerCache<B>) {
        let [batch, seq, hidden] = x.dims();
        let (heads, kv_heads, dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);

        let x = profile_scope(x, Part::Attention);
        let normed = rms_norm(&self.input_layernorm, x.clone()).reshape([batch * seq, hidden]);
        let q = packing.pad(rotary.queries(self.q_proj.forward(normed.clone())), heads, dim);
        let k = packing.pad(rotary.keys(self.k_proj.forward(normed.clone())), kv_heads, dim);
        cache.own.push((k, packing.pad(self.v_proj.forward(normed), kv_heads, dim)));
        let (attended, cache) = attention(q, cache, mask);
        let x =
            profile_scope(x + self.o_proj.forward(packing.unpad(attended)).reshape([batch, seq, hidden]), Part::Mlp);

        let normed = rms_norm(&self.post_attention_layernorm, x.clone()).reshape([batch * seq, hidden]);
        let inner = swiglu(self.gate_proj.forward(normed.clone()), self.up_proj.forward(normed));
        (x + self.down_proj.forward(inner).reshape([batch, seq, hidden]), cache)
    }
}

/// `theta^(-2i / head_dim)`, slowed for long wavelengths where the config asks for Llama 3's
/// scaling.
fn inverse_frequencies(config: &DecoderConfig) -> Vec<f32> {
    let pairs = config.head_dim / 2;
    let stretch = match &config.rope_scaling {
        Some(scaling) => scaling.stretch(config.rope_theta, config.head_dim),
        None => vec![1.0; pairs],
    };
    let frequency = |i: usize| config.rope_theta.powf(-2.0 * i as f64 / config.head_dim as f64);
    (0..pairs).map(|i| (frequency(i) / stretch[i]) as f32).collect()
}

/// Takes tensors from the files and makes parameters of them, trainable or not.
struct Loader<'a, B: Backend> {
    config: &'a DecoderConfig,
    weights: &'a mut Weights,
    tune: Tune<'a>,
    precision: Precision,
    device: &'a B::Device,
    next_id: u64,
}

impl<B: Backend> Loader<'_, B> {
    fn id(&mut self) -> burn::module::ParamId {
        self.next_id += 1;
        self.next_id.into()
    }

    fn param<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Result<Param<Tensor<B, D>>> {
        let values = self.weights.take(name, &shape)?;
        let tensor = Tensor::from_data(TensorData::new(values, shape), self.device);
        let tensor = tensor.set_require_grad(matches!(self.tune, Tune::Full));
        Ok(Param::initialized(self.id(), tensor))
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Param<Tensor<B, 2>>> {
        let matrix = self.param(name, [rows, columns])?;
        Ok(match self.tune {
            Tune::Full => matrix,
            _ => matrix.map(|weight| weight.cast(self.precision.dtype())),
        })
    }

    fn norm(&mut self, name: &str) -> Result<RmsNorm<B>> {
        let gamma = self.param(&format!("{name}.weight"), [self.config.hidden_size])?;
        let mut norm =
            RmsNormConfig::new(self.config.hidden_size).with_epsilon(self.config.rms_norm_eps).init(self.device);
        norm.gamma = gamma;
        Ok(norm)
    }

    fn linear(&mut self, layer: usize, name: &str, rows: usize, columns: usize) -> Result<LoraLinear<B>> {
        let full_name = format!("model.layers.{layer}.{name}.weight");
        let weight = match self.weights.take_blocks(&full_name, [rows, columns])? {
            Some(blocks) => {
                // As many ids as without, so that an optimiser's state fits either.
                self.id();
                Weight::Quantized(Quantized::new(blocks, [rows, columns], self.device))
            }
            None => Weight::Plain(self.matrix(&full_name, rows, columns)?),
        };
        let (a_id, b_id) = (self.id(), self.id());
        let lora = match self.tune {
            Tune::Lora(config, seed) if config.adapts(name) => {
                Some(lora(config, seed, (a_id, b_id), rows, columns, self.device))
            }
            _ => None,
        };
        Ok(LoraLinear { weight, lora, precision: self.precision })
    }
}
