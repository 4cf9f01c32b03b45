//! The Q-Former: learned queries that read an entity's vectors and share self-attention with a
//! text.
//!
//! Paper: BLIP-2, arXiv 2301.12597; in ILM (arXiv 2406.02844) the entity is an item, or a user
//! treated as one, and what is read is its collaborative vector. Reference: LAVIS,
//! lavis/models/blip2_models/{Qformer,blip2,blip2_qformer}.py.
//!
//! Where this differs: the first token type's vector is added to the positions (LAVIS drops it, so
//! that a pretrained BERT no longer computes what it was trained to); text generation runs queries
//! and text together under the causal mask (LAVIS runs the queries first and keeps their keys and
//! values, with the same result); values and outputs of cross-attention start from N(0, 1 /
//! inputs): with N(0, 0.02) an entity would decide 0.1 % of the queries' hidden states at widths of
//! 64, 2 % at MiniLM's.

pub mod aligner;
pub mod query_encoder;

use std::path::Path;

use burn::module::Param;
use burn::nn::{DropoutConfig, LayerNorm};
use burn::prelude::*;
use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

use super::bert::{Attention, BERT_INIT, BertConfig, Embeddings, FeedForward, Linear, MOST_PARAMETERS, gelu, norm};
use super::parameters::{BertTensors, Init, Parameters};
use crate::batch::TextBatch;
use crate::kernels::MASKED;
use crate::model::qformer::query_encoder::QueryEncoder;
use crate::{Error, Result};

/// Sizes of a Q-Former.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QFormerConfig {
    /// Number of learned queries, K: vectors that an entity becomes.
    pub queries: usize,
    /// Width of the vectors that the queries read.
    pub vector_width: usize,
    /// Distance n of the layers with cross-attention, which are 0, n, 2n, …; 2 in BLIP-2.
    pub cross_attention_every: usize,
    /// Sizes of the text branch; the queries have the same width and depth.
    pub text: BertConfig,
}

impl QFormerConfig {
    /// Refuses sizes that no Q-Former has.
    ///
    /// # Errors
    /// A size out of range, by name.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("queries", self.queries, 1 << 10),
            ("vector_width", self.vector_width, 1 << 16),
            ("cross_attention_every", self.cross_attention_every, 1 << 10),
        ];
        if let Some((key, size, most)) = sizes.into_iter().find(|&(_, size, most)| size == 0 || size > most) {
            return Err(Error::failed(format!("{key} is {size}, it must be between 1 and {most}")));
        }
        self.text.check()?;
        match self.parameters() > MOST_PARAMETERS {
            true => Err(Error::failed(format!(
                "a Q-Former of {} parameters, at most 2^30 are supported",
                self.parameters()
            ))),
            false => Ok(()),
        }
    }

    /// Counts the numbers in the matrices.
    fn parameters(&self) -> u64 {
        let text = &self.text;
        let [hidden, inner, width] = [text.hidden_size, text.intermediate_size, self.vector_width].map(|n| n as u64);
        let (layers, cross) = (text.num_hidden_layers, text.num_hidden_layers.div_ceil(self.cross_attention_every));
        let of_queries = layers as u64 * 2 * hidden * inner + cross as u64 * 2 * hidden * (hidden + width);
        text.parameters() + self.queries as u64 * hidden + of_queries
    }

    /// Returns the token that begins a text to be generated, `[DEC]`: one more than BERT's.
    pub fn dec(&self) -> u32 {
        self.text.vocab_size as u32
    }
}

/// The mask where queries and a text run together: which positions attend to which. Padding is
/// never attended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QFormerMask {
    /// Queries attend to queries, text to text: for the contrastive loss.
    Unimodal,
    /// All attend to all: for the matching loss.
    Bidirectional,
    /// Queries attend to queries, a token of the text to queries and to the text up to itself: for
    /// the generation loss.
    Causal,
}

impl QFormerMask {
    /// Makes the mask that is added to scores.
    ///
    /// # Shapes
    /// `[batch, 1, queries + seq, queries + seq]`.
    fn tensor<B: Backend>(self, queries: usize, text: &TextBatch, device: &B::Device) -> Tensor<B, 4> {
        let total = queries + text.seq;
        let mut values = Vec::with_capacity(text.lengths.len() * total * total);
        for &length in &text.lengths {
            for q in 0..total {
                values.extend((0..total).map(|k| {
                    let same = (q < queries) == (k < queries);
                    let seen = match self {
                        Self::Unimodal => same,
                        Self::Bidirectional => true,
                        Self::Causal => k < queries || (same && k <= q),
                    };
                    if seen && k < queries + length { 0.0 } else { MASKED }
                }));
            }
        }
        Tensor::from_data(TensorData::new(values, [text.lengths.len(), 1, total, total]), device)
    }
}

/// A Q-Former with its text branch and the head that generates text.
#[derive(Module, Debug)]
pub struct QFormer<B: Backend> {
    /// Learned queries, `[1, K, hidden]`; they have no positions.
    pub query_tokens: Param<Tensor<B, 3>>,
    /// Norm of each of the entity's vectors (LAVIS's `ln_vision`).
    pub vector_norm: LayerNorm<B>,
    /// Embeddings of the text; their norm and dropout also apply to the queries.
    pub embeddings: Embeddings<B>,
    /// The blocks, first to last.
    pub layers: Vec<QFormerLayer<B>>,
    /// Head that predicts the next token.
    pub head: LanguageHead<B>,
    #[module(skip)]
    config: QFormerConfig,
}

/// One block.
#[derive(Module, Debug)]
pub struct QFormerLayer<B: Backend> {
    /// Self-attention, shared by queries and text.
    pub attention: Attention<B>,
    /// Attention from the queries to the entity's vectors, in some of the blocks.
    pub cross_attention: Option<Attention<B>>,
    /// Feed-forward of the queries.
    pub query_feed_forward: FeedForward<B>,
    /// Feed-forward of the text.
    pub text_feed_forward: FeedForward<B>,
}

/// BERT's masked-language head; its output projection is the embedding table.
#[derive(Module, Debug)]
pub struct LanguageHead<B: Backend> {
    /// Linear layer before GELU and norm, `[hidden, hidden]`.
    pub transform: Linear<B>,
    /// Norm after the GELU.
    pub norm: LayerNorm<B>,
    /// Bias of the logits, `[vocab + 1]`.
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> QFormer<B> {
    /// Makes a Q-Former to train: the text branch is read from the BERT directory, or new for
    /// `None`; the queries' feed-forwards begin as the text's where that is pretrained; all other
    /// parameters are new, drawn by the seed (N(0, 0.02)).
    ///
    /// # Errors
    /// Sizes out of range; missing and misshapen tensors, by file and name.
    pub fn new(config: &QFormerConfig, bert: Option<&Path>, seed: u64, device: &B::Device) -> Result<Self> {
        let weights = bert.map(BertTensors::open).transpose()?;
        Self::build(config, &mut Parameters { weights, seed, trains: true, device, count: 0 })
    }

    pub(crate) fn build(config: &QFormerConfig, from: &mut Parameters<B>) -> Result<Self> {
        config.check()?;
        let (sizes, hidden) = (&config.text, config.text.hidden_size);
        let query_tokens = from.init([1, config.queries, hidden], BERT_INIT);
        let vector_norm = norm(from, None, config.vector_width, 1e-5)?;
        let embeddings = Embeddings::new(from, sizes, 1)?;
        let layers = (0..sizes.num_hidden_layers)
            .map(|l| {
                let attention = Attention::new(from, sizes, &format!("encoder.layer.{l}.attention"))?;
                let cross = l.is_multiple_of(config.cross_attention_every);
                let cross_attention = cross.then(|| cross_attention(from, config)).transpose()?;
                let text_feed_forward = FeedForward::new(from, sizes, &format!("encoder.layer.{l}"))?;
                let query_feed_forward = query_feed_forward(from, config, &text_feed_forward)?;
                Ok(QFormerLayer { attention, cross_attention, query_feed_forward, text_feed_forward })
            })
            .collect::<Result<_>>()?;
        let head = LanguageHead::new(from, sizes)?;
        Ok(Self { query_tokens, vector_norm, embeddings, layers, head, config: config.clone() })
    }

    /// Returns the sizes.
    pub fn config(&self) -> &QFormerConfig {
        &self.config
    }

    /// Runs the queries alone over an entity's vectors.
    ///
    /// # Shapes
    /// `[batch, n, vector_width]` → `[batch, K, hidden]`.
    pub fn encode(&self, vectors: Tensor<B, 3>) -> Tensor<B, 3> {
        QueryEncoder::new(self).forward(vectors)
    }

    /// Runs a text alone, as BERT itself.
    ///
    /// # Shapes
    /// `[batch, seq, hidden]`.
    pub fn encode_text(&self, text: &TextBatch) -> Tensor<B, 3> {
        let device = self.query_tokens.val().device();
        let x = self.embeddings.normalise(self.embeddings.look_up(text));
        self.run(x, 0, None, Some(QFormerMask::Unimodal.tensor(0, text, &device)))
    }

    /// Runs queries and a text together.
    ///
    /// # Shapes
    /// `vectors` `[batch, n, vector_width]`; the result: `[batch, K, hidden]` of the queries and
    /// `[batch, seq, hidden]` of the text.
    pub fn forward(&self, vectors: Tensor<B, 3>, text: &TextBatch, mask: QFormerMask) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let (k, batch) = (self.config.queries, text.lengths.len());
        let mask = mask.tensor(k, text, &self.query_tokens.val().device());
        let x = Tensor::cat(vec![self.queries(batch), self.embeddings.look_up(text)], 1);
        let x = self.run(self.embeddings.normalise(x), k, Some(vectors), Some(mask));
        (x.clone().narrow(1, 0, k), x.narrow(1, k, text.seq))
    }

    fn queries(&self, batch: usize) -> Tensor<B, 3> {
        self.query_tokens.val().repeat_dim(0, batch)
    }

    fn run(
        &self,
        x: Tensor<B, 3>,
        queries: usize,
        vectors: Option<Tensor<B, 3>>,
        mask: Option<Tensor<B, 4>>,
    ) -> Tensor<B, 3> {
        let vectors = vectors.map(|vectors| self.vector_norm.forward(vectors));
        self.layers.iter().fold(x, |x, layer| layer.forward(x, queries, vectors.as_ref(), mask.clone()))
    }

    /// Computes the logits of the tokens after those with these hidden states.
    ///
    /// # Shapes
    /// `[n, hidden]` → `[n, vocab + 1]`.
    pub fn next_tokens(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let head = &self.head;
        let hidden = head.norm.forward(gelu(head.transform.forward(hidden)));
        hidden.matmul(self.embeddings.words.val().transpose()) + head.bias.val().unsqueeze()
    }
}

impl<B: Backend> QFormerLayer<B> {
    fn forward(
        &self,
        x: Tensor<B, 3>,
        queries: usize,
        vectors: Option<&Tensor<B, 3>>,
        mask: Option<Tensor<B, 4>>,
    ) -> Tensor<B, 3> {
        let attended = self.attention.forward(x, None, mask);
        let [_, total, _] = attended.dims();
        let query_branch = |x: Tensor<B, 3>| {
            let read = match (&self.cross_attention, vectors) {
                (Some(cross), Some(vectors)) => cross.forward(x, Some(vectors.clone()), None),
                _ => x,
            };
            self.query_feed_forward.forward(read)
        };
        if queries == 0 {
            return self.text_feed_forward.forward(attended);
        }
        let text = self.text_feed_forward.forward(attended.clone().narrow(1, queries, total - queries));
        Tensor::cat(vec![query_branch(attended.narrow(1, 0, queries)), text], 1)
    }
}

impl<B: Backend> LanguageHead<B> {
    /// Reads the directory's head, or makes a new one if it has none.
    fn new(from: &mut Parameters<B>, config: &BertConfig) -> Result<Self> {
        const TRANSFORM: &str = "cls.predictions.transform";
        let hidden = config.hidden_size;
        let saved = from.weights.as_ref().is_some_and(|w| w.holds(&format!("{TRANSFORM}.dense.weight")));
        let mut bias = vec![0.0; config.vocab_size + 1];
        let (transform, norm) = if saved {
            let transform = Linear::new(from, &format!("{TRANSFORM}.dense"), hidden, hidden)?;
            let norm = norm(from, Some(&format!("{TRANSFORM}.LayerNorm")), hidden, config.layer_norm_eps)?;
            let values = from.read_values("cls.predictions.bias", &[config.vocab_size], Init::Constant(0.0))?;
            bias[..config.vocab_size].copy_from_slice(&values);
            (transform, norm)
        } else {
            let transform = Linear::init(from, hidden, hidden, BERT_INIT);
            (transform, norm(from, None, hidden, config.layer_norm_eps)?)
        };
        let bias = from.param(bias, [config.vocab_size + 1]);
        Ok(Self { transform, norm, bias })
    }
}

fn cross_attention<B: Backend>(from: &mut Parameters<B>, config: &QFormerConfig) -> Result<Attention<B>> {
    let (sizes, h, width) = (&config.text, config.text.hidden_size, config.vector_width);
    let init = |inputs: usize| Init::Normal(1.0 / (inputs as f32).sqrt());
    Ok(Attention {
        query: Linear::init(from, h, h, BERT_INIT),
        key: Linear::init(from, h, width, BERT_INIT),
        value: Linear::init(from, h, width, init(width)),
        output: Linear::init(from, h, h, init(h)),
        norm: norm(from, None, h, sizes.layer_norm_eps)?,
        attention_dropout: DropoutConfig { prob: sizes.attention_probs_dropout_prob }.init(),
        dropout: DropoutConfig { prob: sizes.hidden_dropout_prob }.init(),
        heads: sizes.num_attention_heads,
    })
}

/// Makes the queries' feed-forward: a copy of the text's where that is pretrained.
fn query_feed_forward<B: Backend>(
    from: &mut Parameters<B>,
    config: &QFormerConfig,
    text: &FeedForward<B>,
) -> Result<FeedForward<B>> {
    let (sizes, h, inner) = (&config.text, config.text.hidden_size, config.text.intermediate_size);
    let mut own = FeedForward {
        intermediate: Linear::init(from, inner, h, BERT_INIT),
        output: Linear::init(from, h, inner, BERT_INIT),
        norm: norm(from, None, h, sizes.layer_norm_eps)?,
        dropout: text.dropout.clone(),
    };
    if from.weights.is_some() {
        own.intermediate = copy_linear(own.intermediate, &text.intermediate);
        own.output = copy_linear(own.output, &text.output);
        own.norm.gamma = copy_value(own.norm.gamma, &text.norm.gamma);
        own.norm.beta = own.norm.beta.zip(text.norm.beta.as_ref()).map(|(own, text)| copy_value(own, text));
    }
    Ok(own)
}

fn copy_linear<B: Backend>(own: Linear<B>, other: &Linear<B>) -> Linear<B> {
    Linear { weight: copy_value(own.weight, &other.weight), bias: copy_value(own.bias, &other.bias) }
}

fn copy_value<B: Backend, const D: usize>(
    own: Param<Tensor<B, D>>,
    other: &Param<Tensor<B, D>>,
) -> Param<Tensor<B, D>> {
    own.map(|_| other.val().detach().require_grad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(mask: QFormerMask) -> Vec<String> {
        let text = TextBatch::new([&[1u32, 2, 3][..], &[1, 2]]);
        let device = crate::device::BackendName::Cpu.device().unwrap();
        let values = mask.tensor::<burn::Dispatch>(2, &text, &device).into_data().to_vec::<f32>().unwrap();
        values[25..].chunks(5).map(|row| row.iter().map(|v| if *v == 0.0 { '1' } else { '.' }).collect()).collect()
    }

    /// Two queries and a text of two tokens, padded to three.
    #[test]
    fn masks_by_hand() {
        assert_eq!(seen(QFormerMask::Unimodal), ["11...", "11...", "..11.", "..11.", "..11."]);
        assert_eq!(seen(QFormerMask::Bidirectional), ["1111."; 5]);
        assert_eq!(seen(QFormerMask::Causal), ["11...", "11...", "111..", "1111.", "1111."]);
    }
}
