//! Encoders of items and users: from a collaborative vector to K vectors in the space of an LLM's
//! embeddings.
//!
//! ILM's (arXiv 2406.02844) is a Q-Former and a linear adapter. Beside it two plainer ones:
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

/// What the vectors of items and of users are divided by: the root mean square of each kind.
///
/// Phase 1 and phase 2 divide alike, so that neither depends on the unit of the vectors, and an
/// encoder finds in phase 2 what it learnt from in phase 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorScale {
    /// Of the items' vectors.
    pub items: f64,
    /// Of the users' vectors.
    pub users: f64,
}

impl VectorScale {
    /// Measures `items` and `users`, vectors of `width` numbers each. Vectors that are zero are left
    /// out; a kind without others has the scale 1.
    pub fn of(items: &[f32], users: &[f32], width: usize) -> Self {
        Self { items: root_mean_square(items, width), users: root_mean_square(users, width) }
    }

    /// Divides the vectors by their scale.
    pub fn apply(&self, items: &mut [f32], users: &mut [f32]) {
        for (vectors, scale) in [(items, self.items), (users, self.users)] {
            vectors.iter_mut().for_each(|v| *v = (f64::from(*v) / scale) as f32);
        }
    }
}

fn root_mean_square(vectors: &[f32], width: usize) -> f64 {
    let nonzero = vectors.chunks(width).filter(|vector| vector.iter().any(|v| *v != 0.0));
    let (count, squares) = nonzero.flatten().fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + f64::from(*v).powi(2)));
    if count > 0.0 { f64::sqrt(squares / count) } else { 1.0 }
}

/// The items and users that a prompt may hold.
#[derive(Module, Debug)]
pub struct Entities<B: Backend> {
    /// What encodes them, and may train.
    pub encoder: EntityEncoder<B>,
    /// `[items + users, vector_width]`, scaled; they do not train.
    pub(crate) vectors: Tensor<B, 2>,
    #[module(skip)]
    pub(crate) tokens: EntityTokens,
}

impl<B: Backend> Entities<B> {
    /// Scales the vectors and puts them on `device`.
    ///
    /// * `vectors`: `[items + users, width]`, the users after the items, in the corpus's order.
    /// * `scale`: the one of the Q-Former's phase 1; `None` measures it, which gives the same.
    pub fn new(
        encoder: EntityEncoder<B>,
        mut vectors: Vec<f32>,
        width: usize,
        tokens: EntityTokens,
        scale: Option<VectorScale>,
        device: &B::Device,
    ) -> Self {
        let (items, users) = vectors.split_at_mut(tokens.items() * width);
        scale.unwrap_or_else(|| VectorScale::of(items, users, width)).apply(items, users);
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
