//! Encoders of items and users: from a collaborative vector to K vectors in the space of an LLM's
//! embeddings.
//!
//! ILM's (arXiv 2406.02844) is a Q-Former and a linear adapter. Beside it two plainer ones: CoLLM's
//! MLP (arXiv 2310.19488; zyang1580/CoLLM, minigpt4/models/minigpt4rec_v2.py, `llama_proj`) and
//! LLaRA's projection (arXiv 2312.02445).
//!
//! Where this differs: the vectors of items, and those of users, are scaled together
//! ([`super::VectorScale`]), and the last layer starts so that its output has about the root mean
//! square of the LLM's own embeddings (all three start it as torch does, whatever the scale of the
//! vectors).
//!
//! One more encoder is a variant of [`ItemEncoderConfig`], with its sizes and counts, and one of
//! [`ItemEncoder`].

use burn::module::{Module, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::activation::relu;
use serde::{Deserialize, Serialize};

use super::bert::Linear;
use super::parameters::{Init, Parameters, renumber};
use super::{QFormer, QFormerConfig, QueryEncoder};
use crate::{Error, Result};

/// Parameter ids of the encoder begin here, far above the LLM's.
const FIRST_ID: u64 = 1 << 40;
/// The MLP's inner layer is so many times as wide as a vector (CoLLM's `proj_mid_times`).
const MLP_WIDENING: usize = 10;
/// Most numbers of an encoder's last matrix.
const LARGEST_MATRIX: usize = 1 << 30;

/// An encoder's kind and sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ItemEncoderConfig {
    /// One matrix.
    Linear {
        /// K, the number of vectors that an entity becomes.
        queries: usize,
        /// Width of a vector.
        vector_width: usize,
    },
    /// Two layers with a ReLU between.
    Mlp {
        /// K, the number of vectors that an entity becomes.
        queries: usize,
        /// Width of a vector.
        vector_width: usize,
    },
    /// A Q-Former and one matrix.
    QFormer(QFormerConfig),
}

impl ItemEncoderConfig {
    /// Returns K: how many vectors an entity becomes.
    pub fn queries(&self) -> usize {
        match self {
            Self::Linear { queries, .. } | Self::Mlp { queries, .. } => *queries,
            Self::QFormer(config) => config.queries,
        }
    }

    /// Returns the width of a collaborative vector.
    pub fn vector_width(&self) -> usize {
        match self {
            Self::Linear { vector_width, .. } | Self::Mlp { vector_width, .. } => *vector_width,
            Self::QFormer(config) => config.vector_width,
        }
    }

    /// Returns whether training drops values out, which each device draws differently.
    pub fn has_dropout(&self) -> bool {
        match self {
            Self::Linear { .. } | Self::Mlp { .. } => false,
            Self::QFormer(QFormerConfig { text, .. }) => {
                text.hidden_dropout_prob > 0.0 || text.attention_probs_dropout_prob > 0.0
            }
        }
    }

    /// Checks the sizes.
    ///
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

    /// Returns the numbers of inputs and of outputs of the last matrix.
    ///
    /// * `hidden`: width of the LLM.
    fn projection(&self, hidden: usize) -> [usize; 2] {
        match self {
            Self::Linear { queries, vector_width } => [*vector_width, queries * hidden],
            Self::Mlp { queries, vector_width } => [MLP_WIDENING * vector_width, queries * hidden],
            Self::QFormer(config) => [config.text.hidden_size, hidden],
        }
    }

    /// Counts the numbers of all parameters.
    ///
    /// * `hidden`: width of the LLM.
    pub fn num_params(&self, hidden: usize) -> u64 {
        let dense = |[width, out]: [usize; 2]| out as u64 * (width as u64 + 1);
        let projection = dense(self.projection(hidden));
        match self {
            Self::Linear { .. } => projection,
            Self::Mlp { vector_width, .. } => projection + dense([*vector_width, MLP_WIDENING * vector_width]),
            Self::QFormer(config) => {
                let (h, inner) = (config.text.hidden_size, config.text.intermediate_size);
                let (blocks, norm) = (config.text.num_hidden_layers, 2 * h as u64);
                let own = 4 * dense([h, h]) + norm + dense([h, inner]) + dense([inner, h]) + norm;
                let cross = 2 * dense([h, h]) + 2 * dense([config.vector_width, h]) + norm;
                let crossed = blocks.div_ceil(config.cross_attention_every.max(1)) as u64;
                let queries = (config.queries * h + 2 * config.vector_width) as u64;
                projection + queries + norm + blocks as u64 * own + crossed * cross
            }
        }
    }

    /// Counts the numbers that an encoder keeps for the backward pass of an entity.
    ///
    /// For a Q-Former, whose operations are burn's own, the count is approximate: for attention and
    /// cross-attention the factors of the products, and what dropout and norm keep; for the
    /// feed-forward what a GELU of five operations keeps.
    ///
    /// Of a Q-Former, whose operations are burn's own, about as many: of attention and of
    /// cross-attention the products' sides, dropout's and the norm's parts; of the feed-forward
    /// those of a GELU made of five operations.
    ///
    /// * `hidden`: width of the LLM.
    pub fn activations(&self, hidden: usize) -> u64 {
        let output = (self.queries() * hidden) as u64;
        match self {
            Self::Linear { vector_width, .. } => *vector_width as u64 + output,
            Self::Mlp { vector_width, .. } => ((1 + 2 * MLP_WIDENING) * vector_width) as u64 + output,
            Self::QFormer(config) => {
                let (h, inner) = (config.text.hidden_size, config.text.intermediate_size);
                let scores = 3 * config.text.num_attention_heads * config.queries;
                output + (config.text.num_hidden_layers * config.queries * (28 * h + 5 * inner + scores)) as u64
            }
        }
    }
}

/// A module from collaborative vectors to the LLM's embedding space.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a run has one")]
pub enum ItemEncoder<B: Backend> {
    /// LLaRA's encoder.
    Linear(LinearEncoder<B>),
    /// CoLLM's encoder.
    Mlp(MlpEncoder<B>),
    /// ILM's encoder.
    QFormer(QFormerEncoder<B>),
}

/// One matrix.
#[derive(Module, Debug)]
pub struct LinearEncoder<B: Backend> {
    /// `[K · hidden, vector_width]`.
    pub projection: Linear<B>,
    queries: usize,
}

/// Two layers with a ReLU between.
#[derive(Module, Debug)]
pub struct MlpEncoder<B: Backend> {
    /// `[10 · vector_width, vector_width]`.
    pub inner: Linear<B>,
    /// `[K · hidden, 10 · vector_width]`.
    pub projection: Linear<B>,
    queries: usize,
}

/// A Q-Former, and the matrix that each of its queries passes.
#[derive(Module, Debug)]
pub struct QFormerEncoder<B: Backend> {
    /// The Q-Former without its text branch.
    pub qformer: QueryEncoder<B>,
    /// `[hidden, width of the Q-Former]`.
    pub projection: Linear<B>,
    queries: usize,
}

impl<B: Backend> ItemEncoder<B> {
    /// Makes an encoder to train.
    ///
    /// * `qformer`: initial weights of the queries, for a Q-Former (`config` has its sizes); `None`
    ///   draws them.
    /// * `hidden`: width of the LLM.
    /// * `scale`: root mean square of the output at the start.
    /// * `seed`: of all random weights.
    ///
    /// # Errors
    /// Sizes out of range.
    pub fn new(
        config: &ItemEncoderConfig,
        qformer: Option<&QFormer<B>>,
        hidden: usize,
        scale: f64,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self> {
        config.check()?;
        let [width, out] = config.projection(hidden);
        if width.saturating_mul(out) > LARGEST_MATRIX {
            return Err(Error::failed(format!(
                "an encoder from {width} to {out} numbers is too large; take fewer queries"
            )));
        }
        let mut from = Parameters { weights: None, seed, trains: true, device, count: FIRST_ID };
        // The inputs have this root mean square.
        let projection = |from: &mut Parameters<B>, inputs: f64| {
            Linear::init(from, out, width, Init::Normal((scale / inputs / (width as f64).sqrt()) as f32))
        };
        let queries = config.queries();
        Ok(match config {
            ItemEncoderConfig::Linear { .. } => {
                Self::Linear(LinearEncoder { projection: projection(&mut from, 1.0), queries })
            }
            ItemEncoderConfig::Mlp { vector_width, .. } => {
                let bound = 1.0 / (*vector_width as f32).sqrt();
                let inner = Linear::init(&mut from, MLP_WIDENING * vector_width, *vector_width, Init::Uniform(bound));
                // Uniform weights give a third of the inputs' mean square, the ReLU leaves half of
                // that.
                let projection = projection(&mut from, (1.0f64 / 6.0).sqrt());
                Self::Mlp(MlpEncoder { inner, projection, queries })
            }
            ItemEncoderConfig::QFormer(config) => {
                let encoder = match qformer {
                    Some(qformer) => QueryEncoder::new(qformer),
                    None => QueryEncoder::new(&QFormer::new(config, None, seed, device)?),
                };
                // The projection has the first id.
                let projection = projection(&mut from, 1.0);
                let qformer = renumber(encoder, FIRST_ID + 1000);
                Self::QFormer(QFormerEncoder { qformer, projection, queries })
            }
        })
    }

    /// Encodes entities.
    ///
    /// # Shapes
    /// `vectors`: `[n, vector_width]`; the result: `[n · K, hidden]`.
    pub fn forward(&self, vectors: Tensor<B, 2>) -> Tensor<B, 2> {
        let [n, width] = vectors.dims();
        let (projected, queries) = match self {
            Self::Linear(encoder) => (encoder.projection.forward(vectors), encoder.queries),
            Self::Mlp(encoder) => (encoder.projection.forward(relu(encoder.inner.forward(vectors))), encoder.queries),
            Self::QFormer(encoder) => {
                let encoded = encoder.qformer.forward(vectors.reshape([n, 1, width]));
                let [_, queries, width] = encoded.dims();
                (encoder.projection.forward(encoded.reshape([n * queries, width])), queries)
            }
        };
        let numbers: usize = projected.dims().iter().product();
        projected.reshape([n * queries, numbers / (n * queries)])
    }

    /// Returns the last layer.
    pub fn projection(&self) -> &Linear<B> {
        match self {
            Self::Linear(encoder) => &encoder.projection,
            Self::Mlp(encoder) => &encoder.projection,
            Self::QFormer(encoder) => &encoder.projection,
        }
    }

    /// Counts the operations of the matrix products of a forward and of a backward pass over
    /// `entities` of them, a multiplication and an addition being two. A Q-Former counts as if each
    /// of its matrices met every query.
    pub fn flops(&self, entities: usize) -> [f64; 2] {
        let mut matrices = Matrices(0);
        self.visit(&mut matrices);
        // The vectors themselves do not train, so the first matrix needs no gradient of its input.
        let (rows, first) = match self {
            Self::Linear(encoder) => (entities, encoder.projection.weight.shape().num_elements()),
            Self::Mlp(encoder) => (entities, encoder.inner.weight.shape().num_elements()),
            Self::QFormer(encoder) => (entities * encoder.queries, 0),
        };
        [matrices.0, 2 * matrices.0 - first].map(|numbers| 2.0 * (rows * numbers) as f64)
    }
}

/// Counts the numbers in all matrices of a module.
struct Matrices(usize);

impl<B: Backend> ModuleVisitor<B> for Matrices {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if D == 2 {
            self.0 += param.dims().iter().product::<usize>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BackendName, Concrete};
    use crate::model::{BertConfig, load_module, save_module};
    use crate::tensor::to_vec;

    fn configs() -> [ItemEncoderConfig; 3] {
        let text = BertConfig {
            vocab_size: 20,
            hidden_size: 8,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            intermediate_size: 12,
            ..BertConfig::default()
        };
        [
            ItemEncoderConfig::Linear { queries: 3, vector_width: 5 },
            ItemEncoderConfig::Mlp { queries: 2, vector_width: 5 },
            ItemEncoderConfig::QFormer(QFormerConfig { queries: 4, vector_width: 6, cross_attention_every: 2, text }),
        ]
    }

    #[test]
    fn encoders_have_as_many_numbers_as_are_counted() {
        let device = BackendName::Cpu.device().unwrap();
        for config in configs() {
            let encoder = ItemEncoder::<Concrete>::new(&config, None, 16, 1.0, 1, &device).unwrap();
            assert_eq!(config.num_params(16), encoder.num_params() as u64, "{config:?}");
        }
    }

    /// Files of a run hold the names of the fields, without the encoder's kind.
    #[test]
    fn files_name_fields_without_the_kind() {
        let device = BackendName::Cpu.device().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("encoder.safetensors");
        for (config, names) in configs().into_iter().zip([
            &["projection.bias", "projection.weight"][..],
            &["inner.bias", "inner.weight", "projection.bias", "projection.weight"],
            &["projection.bias", "projection.weight", "qformer.query_tokens"],
        ]) {
            let encoder = |seed| ItemEncoder::<Concrete>::new(&config, None, 16, 1.0, seed, &device).unwrap();
            save_module(&path, &encoder(1)).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let tensors = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert!(names.iter().all(|name| tensors.names().iter().any(|found| found == name)), "{config:?}");
            let loaded: ItemEncoder<Concrete> = load_module(&path, encoder(2)).unwrap();
            let vectors = Tensor::ones([2, config.vector_width()], &device);
            let outputs =
                [encoder(1), loaded].map(|encoder| to_vec(encoder.forward(vectors.clone()), "output").unwrap());
            assert_eq!(outputs[0], outputs[1], "{config:?}");
        }
    }
}
