//! The item-language model: an LLM whose prompt holds vectors of items and users between ordinary
//! tokens.
//!
//! Paper: ILM, arXiv 2406.02844: an entity's collaborative vector passes a Q-Former and a linear
//! adapter, and its K vectors take the places of a placeholder. Beside it two plainer encoders:
//! CoLLM's MLP (arXiv 2310.19488; zyang1580/CoLLM, minigpt4/models/minigpt4rec_v2.py, `llama_proj`)
//! and LLaRA's projection (arXiv 2312.02445).
//!
//! Where this differs: the vectors of items, and those of users, are scaled together to a root mean
//! square of 1 (those that are zero left out), and the last layer starts so that what it gives has
//! about the root mean square of the LLM's own embeddings (all three start it as torch does,
//! whatever the scale of the vectors).

use std::path::Path;

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::relu;
use serde::{Deserialize, Serialize};

use super::bert::Linear;
use super::parameters::{Parameters, Start, load_module, renumber};
use super::{QFormer, QFormerConfig, QueryEncoder};
use crate::batch::TokenTreeBatch;
use crate::core::profiler;
use crate::core::profiler::Part;
use crate::kernels::{AttentionMask, LayerCache, Mask};
use crate::model::llm::decoder::{Decoder, Output};
use crate::model::llm::kv_cache::{KvCache, Packing};
use crate::text::EntityTokens;
use crate::{Error, Result};

/// Parameter ids of the encoder begin here, far above the LLM's.
const FIRST_ID: u64 = 1 << 40;
/// The MLP's inner layer is so many times as wide as a vector (CoLLM's `proj_mid_times`).
pub(crate) const MLP_WIDENING: usize = 10;

/// An encoder's kind and sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum EncoderConfig {
    /// One matrix.
    Linear {
        /// K.
        queries: usize,
        /// Width of a vector.
        vector_width: usize,
    },
    /// Two layers with a ReLU between.
    Mlp {
        /// K.
        queries: usize,
        /// Width of a vector.
        vector_width: usize,
    },
    /// A Q-Former and one matrix.
    QFormer(QFormerConfig),
}

impl EncoderConfig {
    /// K: vectors of an entity.
    pub fn queries(&self) -> usize {
        match self {
            Self::Linear { queries, .. } | Self::Mlp { queries, .. } => *queries,
            Self::QFormer(config) => config.queries,
        }
    }

    /// Width of a collaborative vector.
    pub fn vector_width(&self) -> usize {
        match self {
            Self::Linear { vector_width, .. } | Self::Mlp { vector_width, .. } => *vector_width,
            Self::QFormer(config) => config.vector_width,
        }
    }

    /// # Errors
    /// A size out of range, by name.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::QFormer(config) => config.check(),
            Self::Linear { queries, vector_width } | Self::Mlp { queries, vector_width } => {
                let sizes = [("queries", *queries, 1 << 10), ("vector_width", *vector_width, 1 << 16)];
                match sizes.into_iter().find(|&(_, size, most)| size == 0 || size > most) {
                    Some((key, size, most)) => {
                        Err(Error::failed(format!("{key} is {size}, it must be between 1 and {most}")))
                    }
                    None => Ok(()),
                }
            }
        }
    }
}

/// From collaborative vectors to the LLM's embedding space.
#[derive(Module, Debug)]
pub struct EntityEncoder<B: Backend> {
    /// Of the Q-Former, where it is one.
    pub qformer: Option<QueryEncoder<B>>,
    /// The MLP's first layer, where it is one.
    pub inner: Option<Linear<B>>,
    /// `[hidden, width]` behind a Q-Former, else `[K · hidden, width]`.
    pub projection: Linear<B>,
    /// K.
    pub queries: usize,
}

impl<B: Backend> EntityEncoder<B> {
    /// An encoder to train.
    ///
    /// * `qformer`: where the queries start, for a Q-Former (`config` has its sizes).
    /// * `seed` draws the rest; `scale` is the root mean square of what it gives at first; `hidden`
    ///   the LLM's width.
    ///
    /// # Errors
    /// Sizes out of range.
    pub fn new(
        config: &EncoderConfig,
        qformer: Option<&QFormer<B>>,
        hidden: usize,
        scale: f64,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self> {
        config.check()?;
        let (inputs, outputs) = match config {
            EncoderConfig::Linear { queries, vector_width } => (*vector_width, queries * hidden),
            EncoderConfig::Mlp { queries, vector_width } => (MLP_WIDENING * vector_width, queries * hidden),
            EncoderConfig::QFormer(config) => (config.text.hidden_size, hidden),
        };
        if inputs.saturating_mul(outputs) > 1 << 30 {
            return Err(Error::failed(format!(
                "an encoder from {inputs} to {outputs} numbers is too large; take fewer queries"
            )));
        }
        let mut from = Parameters { weights: None, seed, trains: true, device, made: FIRST_ID };
        // Of inputs with this root mean square.
        let last = |from: &mut Parameters<B>, out, width: usize, inputs: f64| {
            Linear::drawn(from, out, width, Start::Normal((scale / inputs / (width as f64).sqrt()) as f32))
        };
        let queries = config.queries();
        Ok(match config {
            EncoderConfig::Linear { vector_width, .. } => Self {
                qformer: None,
                inner: None,
                projection: last(&mut from, queries * hidden, *vector_width, 1.0),
                queries,
            },
            EncoderConfig::Mlp { vector_width, .. } => {
                let wide = MLP_WIDENING * vector_width;
                let inner =
                    Linear::drawn(&mut from, wide, *vector_width, Start::Uniform(1.0 / (*vector_width as f32).sqrt()));
                // Uniform weights give a third of the inputs' mean square, the ReLU leaves half of
                // that.
                let projection = last(&mut from, queries * hidden, wide, (1.0f64 / 6.0).sqrt());
                Self { qformer: None, inner: Some(inner), projection, queries }
            }
            EncoderConfig::QFormer(config) => {
                let drawn = match qformer {
                    Some(_) => None,
                    None => Some(QFormer::new(config, None, seed, device)?),
                };
                let encoder = qformer.or(drawn.as_ref()).map(QueryEncoder::new);
                let projection = last(&mut from, hidden, config.text.hidden_size, 1.0);
                // The projection has the first id.
                let encoder = encoder.map(|encoder| renumber(encoder, FIRST_ID + 1000));
                Self { qformer: encoder, inner: None, projection, queries }
            }
        })
    }

    /// `[n, vector_width]` → `[n · K, hidden]`.
    pub fn forward(&self, vectors: Tensor<B, 2>) -> Tensor<B, 2> {
        let [n, width] = vectors.dims();
        let x = match (&self.qformer, &self.inner) {
            (Some(qformer), _) => {
                let encoded = qformer.forward(vectors.reshape([n, 1, width]));
                let width = encoded.dims()[2];
                encoded.reshape([n * self.queries, width])
            }
            (None, Some(inner)) => relu(inner.forward(vectors)),
            (None, None) => vectors,
        };
        let projected = self.projection.forward(x);
        let numbers: usize = projected.dims().iter().product();
        projected.reshape([n * self.queries, numbers / (n * self.queries)])
    }
}

/// The items and users that a prompt may hold.
#[derive(Module, Debug)]
pub struct Entities<B: Backend> {
    /// What trains.
    pub encoder: EntityEncoder<B>,
    /// `[items + users, vector_width]`; they do not train.
    pub(crate) vectors: Tensor<B, 2>,
    #[module(skip)]
    tokens: EntityTokens,
}

impl<B: Backend> Entities<B> {
    /// * `vectors`: `[items + users, width]`, the users after the items, in the corpus's order.
    pub fn new(
        encoder: EntityEncoder<B>,
        mut vectors: Vec<f32>,
        width: usize,
        tokens: EntityTokens,
        device: &B::Device,
    ) -> Self {
        let (items, users) = vectors.split_at_mut(tokens.items() * width);
        for kind in [items, users] {
            let known = kind.chunks(width).filter(|vector| vector.iter().any(|v| *v != 0.0));
            let (count, squares) =
                known.flatten().fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + f64::from(*v).powi(2)));
            let scale: f64 = if count > 0.0 { f64::sqrt(squares / count) } else { 1.0 };
            kind.iter_mut().for_each(|v| *v = (f64::from(*v) / scale) as f32);
        }
        let shape = [vectors.len() / width, width];
        Self { encoder, vectors: Tensor::from_data(TensorData::new(vectors, shape), device), tokens }
    }

    /// Reads the encoder's parameters from a file that [`crate::model::save_module`] wrote.
    ///
    /// # Errors
    /// Missing, unexpected and misshapen tensors, by name.
    pub fn load_encoder(self, path: &Path) -> Result<Self> {
        Ok(Self { encoder: load_module(path, self.encoder)?, ..self })
    }
}

/// The beginning that prompts share, run once: its keys and values.
#[derive(Module, Debug)]
pub struct PrefixCache<B: Backend> {
    pub(crate) keys: Vec<Tensor<B, 4>>,
    pub(crate) values: Vec<Tensor<B, 4>>,
    #[module(skip)]
    pub(crate) tokens: Vec<u32>,
}

impl<B: Backend> PrefixCache<B> {
    /// Its first `tokens` tokens, shared by all rows.
    fn beginning(&self, tokens: usize) -> KvCache<B> {
        let cut = |t: &Tensor<B, 4>| t.clone().narrow(2, 0, tokens);
        let layer = |(k, v)| LayerCache { shared: Some((cut(k), cut(v))), own: Vec::new() };
        KvCache { layers: self.keys.iter().zip(&self.values).map(layer).collect() }
    }
}

/// An LLM, and what encodes items and users for it.
#[derive(Module, Debug)]
pub struct ItemLanguageModel<B: Backend> {
    /// The language model.
    pub llm: Decoder<B>,
    /// `None` for prompts of text alone.
    pub entities: Option<Entities<B>>,
    pub(crate) prefix: Option<PrefixCache<B>>,
    /// Training keeps each decoder block's input alone and runs the block again in the backward
    /// pass: less memory, more time.
    pub gradient_checkpointing: bool,
}

/// What the decoder is given: see [`Decoder::forward_masked`].
pub(crate) struct Pass<B: Backend> {
    pub embeddings: Tensor<B, 3>,
    pub positions: Vec<u32>,
    pub mask: Mask<B>,
    pub packing: Packing<B>,
    pub past: KvCache<B>,
}

/// What [`ItemLanguageModel::forward`] returns.
#[derive(Debug, Clone)]
pub struct PrefillOutput<B: Backend> {
    /// `[tokens, hidden]`, of each row's tokens after the first `skipped`, row after row.
    pub hidden: Tensor<B, 2>,
    /// All rows' tokens: the skipped ones shared, the others padded on the right to the longest
    /// row.
    pub cache: KvCache<B>,
    /// Tokens of every row that the prefix's cache stood for.
    pub skipped: usize,
    /// `[rows]`: where in `hidden` each row begins.
    starts: Vec<usize>,
}

impl<B: Backend> PrefillOutput<B> {
    /// Where in [`PrefillOutput::hidden`] the token at `position` of `row` stands.
    pub fn at(&self, row: usize, position: usize) -> usize {
        self.starts[row] + position - self.skipped
    }
}

impl<B: Backend> From<Decoder<B>> for ItemLanguageModel<B> {
    fn from(llm: Decoder<B>) -> Self {
        Self::new(llm, None)
    }
}

impl<B: Backend> ItemLanguageModel<B> {
    /// An LLM with items and users.
    pub fn new(llm: Decoder<B>, entities: Option<Entities<B>>) -> Self {
        Self { llm, entities, prefix: None, gradient_checkpointing: false }
    }

    /// The device of its weights.
    pub fn device(&self) -> B::Device {
        self.llm.embed_tokens.val().device()
    }

    /// The root mean square of the LLM's embeddings.
    pub fn embedding_scale(llm: &Decoder<B>) -> f64 {
        let table = llm.embed_tokens.val().detach();
        table.powi_scalar(2).mean().into_scalar().elem::<f64>().sqrt()
    }

    /// Runs the beginning that `tokens` is once, unless the prefix there is stands for it, for rows
    /// that begin with it or with a part of it. It holds while no weight of the LLM changes;
    /// entities among the tokens end it.
    pub fn with_prefix(mut self, tokens: &[u32]) -> Self {
        if self.known(tokens) == tokens.len() {
            return self;
        }
        self.prefix = None;
        let ordinary = tokens.iter().take_while(|&&token| self.place(token).is_none()).count();
        if ordinary == 0 {
            return self;
        }
        let run = self.forward(&[&tokens[..ordinary]], 0);
        let own = run.cache.layers.into_iter().flat_map(|layer| layer.own);
        let (keys, values) = own.map(|(k, v)| (k.detach(), v.detach())).unzip();
        self.prefix = Some(PrefixCache { keys, values, tokens: tokens[..ordinary].to_vec() });
        self
    }

    fn place(&self, token: u32) -> Option<(u32, u32)> {
        self.entities.as_ref().and_then(|entities| entities.tokens.place(token))
    }

    /// The entities among `tokens`, ascending.
    pub(crate) fn present(&self, tokens: &[u32]) -> Vec<u32> {
        let mut present: Vec<u32> = tokens.iter().filter_map(|&token| Some(self.place(token)?.0)).collect();
        present.sort_unstable();
        present.dedup();
        present
    }

    /// `[batch · seq]` tokens, ordinary ones and [`EntityTokens`], → `[batch, seq, hidden]`. Each
    /// entity is encoded once.
    pub fn embed(&self, tokens: &[u32], batch: usize, seq: usize) -> Tensor<B, 3> {
        profiler::begin(Part::Embedding);
        let device = self.device();
        let ints = |values: Vec<i32>| {
            let count = values.len();
            Tensor::<B, 1, Int>::from_data(TensorData::new(values, [count]), &device)
        };
        let present = self.present(tokens);
        let Some(entities) = self.entities.as_ref().filter(|_| !present.is_empty()) else {
            return self.llm.embed(ints(tokens.iter().map(|&t| t as i32).collect()).reshape([batch, seq]));
        };
        // The ordinary tokens' rows come first, then K rows an entity.
        let is_ordinary = |token: &&u32| self.place(**token).is_none();
        let ordinary: Vec<i32> = tokens.iter().filter(is_ordinary).map(|&t| t as i32).collect();
        let (first, per_entity) = (ordinary.len(), entities.tokens.per_entity() as usize);
        let mut next = 0..first as i32;
        let row = |&token: &u32| match self.place(token) {
            None => next.next().unwrap_or_default(),
            Some((entity, n)) => {
                let before = present.partition_point(|&other| other < entity);
                (first + before * per_entity + n as usize) as i32
            }
        };
        let at: Vec<i32> = tokens.iter().map(row).collect();
        let vectors = entities.vectors.clone().select(0, ints(present.iter().map(|&e| e as i32).collect()));
        let encoded = entities.encoder.forward(vectors);
        let width = encoded.dims()[1];
        let rows = match first {
            0 => encoded,
            _ => Tensor::cat(
                vec![self.llm.embed(ints(ordinary).reshape([1, first])).reshape([first, width]), encoded],
                0,
            ),
        };
        rows.select(0, ints(at)).reshape([batch, seq, width])
    }

    /// Runs rows of tokens from their beginning, as far as the prefix does not stand for it.
    ///
    /// * `needed`: the first position of a row whose hidden state is asked for.
    ///
    /// # Panics
    /// On an empty row.
    pub fn forward(&self, rows: &[&[u32]], needed: usize) -> PrefillOutput<B> {
        let device = self.device();
        let skipped = rows.iter().map(|row| self.known(row)).min().unwrap_or(0).min(needed);
        let own: Vec<u32> = rows.iter().flat_map(|row| &row[skipped..]).copied().collect();
        let positions: Vec<u32> = rows.iter().flat_map(|row| skipped as u32..row.len() as u32).collect();
        let lengths: Vec<usize> = rows.iter().map(|row| row.len() - skipped).collect();
        let packing = Packing::new(&lengths, &device);
        let mask = Mask::new(AttentionMask::causal(packing.seq()), skipped, &device);
        let embeddings = self.embed(&own, 1, own.len());
        let output = self.llm.forward_masked(embeddings, &positions, &mask, &packing, self.beginning(skipped));
        let mut next = 0;
        let start = |length: usize| {
            next += length;
            next - length
        };
        let starts = lengths.into_iter().map(start).collect();
        let width = output.hidden.dims()[2];
        PrefillOutput { hidden: output.hidden.reshape([own.len(), width]), cache: output.cache, skipped, starts }
    }

    /// How many of the first tokens the prefix stands for.
    pub(crate) fn known(&self, tokens: &[u32]) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count())
    }

    /// The cache of the prefix's first `tokens` tokens.
    fn beginning(&self, tokens: usize) -> KvCache<B> {
        self.prefix.as_ref().filter(|_| tokens > 0).map_or_else(KvCache::default, |prefix| prefix.beginning(tokens))
    }

    /// Runs token trees: their shared chain once, as far as the prefix does not stand for it, then
    /// the trees below it. The hidden states of the trees' nodes, `[nodes, hidden]`.
    pub fn forward_forest(&self, forest: &TokenTreeBatch) -> Tensor<B, 2> {
        let hidden = self.run(self.trees_pass(forest)).hidden;
        let [_, nodes, width] = hidden.dims();
        hidden.reshape([nodes, width])
    }

    pub(crate) fn run(&self, pass: Pass<B>) -> Output<B> {
        self.llm.forward_masked(pass.embeddings, &pass.positions, &pass.mask, &pass.packing, pass.past)
    }

    /// Of the trees below their shared chain.
    pub(crate) fn trees_pass(&self, forest: &TokenTreeBatch) -> Pass<B> {
        let chain = &forest.shared;
        let lengths: Vec<usize> = forest.parents.iter().map(Vec::len).collect();
        let known = self.known(chain);
        let past = match known < chain.len() {
            true => self.run(self.chain_pass(chain)).cache.into_shared(),
            false => self.beginning(known),
        };
        profiler::begin(Part::Attention);
        Pass {
            mask: Mask::new(AttentionMask::trees(&forest.parents), chain.len(), &self.device()),
            embeddings: self.embed(&forest.tokens, 1, forest.tokens.len()),
            positions: forest.positions.clone(),
            packing: Packing::new(&lengths, &self.device()),
            past,
        }
    }

    /// Of what of a chain the prefix does not stand for.
    pub(crate) fn chain_pass(&self, chain: &[u32]) -> Pass<B> {
        let known = self.known(chain);
        let rest = chain.len() - known;
        Pass {
            embeddings: self.embed(&chain[known..], 1, rest),
            positions: (known as u32..chain.len() as u32).collect(),
            mask: Mask::new(AttentionMask::causal(rest), known, &self.device()),
            packing: Packing::even(1, rest),
            past: self.beginning(known),
        }
    }
}
