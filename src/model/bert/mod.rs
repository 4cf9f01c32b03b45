//! BERT encoders, as sentence encoders and as the parts that the Q-Former is made of.
//!
//! Paper: BERT, arXiv 1810.04805. Reference: transformers/models/bert/modeling_bert.py
//! (`BertModel`: LayerNorm after each residual, exact GELU, learned positions, token types);
//! sentence vectors as sentence-transformers' mean pooling.

mod config;

use std::path::Path;

use burn::module::Param;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::softmax;

pub use config::BertConfig;
pub(crate) use config::MOST_PARAMETERS;

use super::parameters::{BertTensors, Init, Parameters};
use crate::Result;
use crate::batch::TextBatch;
use crate::kernels::MASKED;
use crate::tensor::indices;

/// Initial distribution of BERT's weights.
pub(crate) const BERT_INIT: Init = Init::Normal(0.02);

/// A BERT encoder without a head.
#[derive(Module, Debug)]
pub struct Bert<B: Backend> {
    /// Vectors of tokens and positions.
    pub embeddings: Embeddings<B>,
    /// The blocks, first to last.
    pub layers: Vec<BertLayer<B>>,
}

/// One block of the encoder.
#[derive(Module, Debug)]
pub struct BertLayer<B: Backend> {
    /// Self-attention: every token attends to every real one.
    pub attention: Attention<B>,
    /// Feed-forward after it.
    pub feed_forward: FeedForward<B>,
}

impl<B: Backend> Bert<B> {
    /// Reads the encoder of a Hugging Face directory onto `device`, frozen; tensors of heads and
    /// poolers are ignored.
    ///
    /// # Errors
    /// Missing and misshapen tensors, by file and name.
    pub fn load(dir: &Path, config: &BertConfig, device: &B::Device) -> Result<Self> {
        let weights = Some(BertTensors::open(dir)?);
        let mut from = Parameters { weights, seed: 0, trains: false, device, count: 0 };
        let embeddings = Embeddings::new(&mut from, config, 0)?;
        let layers = (0..config.num_hidden_layers)
            .map(|l| {
                let attention = Attention::new(&mut from, config, &format!("encoder.layer.{l}.attention"))?;
                let feed_forward = FeedForward::new(&mut from, config, &format!("encoder.layer.{l}"))?;
                Ok(BertLayer { attention, feed_forward })
            })
            .collect::<Result<_>>()?;
        Ok(Self { embeddings, layers })
    }

    /// Computes the last hidden states.
    ///
    /// # Shapes
    /// `[batch, seq, hidden]`.
    pub fn forward(&self, text: &TextBatch) -> Tensor<B, 3> {
        let mask = padding_mask(text, &self.embeddings.words.val().device());
        let x = self.embeddings.normalise(self.embeddings.look_up(text));
        self.layers.iter().fold(x, |x, layer| {
            let attended = layer.attention.forward(x, None, Some(mask.clone()));
            layer.feed_forward.forward(attended)
        })
    }

    /// Combines each text's last hidden states into one vector.
    ///
    /// # Shapes
    /// `[batch, hidden]`.
    pub fn pool(&self, text: &TextBatch, pooling: Pooling) -> Tensor<B, 2> {
        let hidden = self.forward(text);
        let [batch, seq, width] = hidden.dims();
        let weight = |b: usize, t: usize| if t < text.lengths[b] { pooling.weight(t, text.lengths[b]) } else { 0.0 };
        let weights: Vec<f32> = (0..batch).flat_map(|b| (0..seq).map(move |t| weight(b, t))).collect();
        let weights = Tensor::<B, 3>::from_data(TensorData::new(weights, [batch, 1, seq]), &hidden.device());
        weights.matmul(hidden).reshape([batch, width])
    }

    /// Computes the mean of the last hidden states of the real tokens (`[CLS]` and `[SEP]`
    /// included), of length 1.
    ///
    /// # Shapes
    /// `[batch, hidden]`.
    pub fn sentence_vectors(&self, text: &TextBatch) -> Tensor<B, 2> {
        unit_length(self.pool(text, Pooling::Mean))
    }
}

/// Pooling of the hidden states of a text's tokens into one vector, as in sentence-transformers'
/// `Pooling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's hidden state.
    Cls,
    /// The mean of the hidden states.
    Mean,
    /// The sum of the hidden states over the square root of their number.
    MeanSqrtLength,
    /// The mean of the hidden states weighted by their positions, from 1.
    WeightedMean,
    /// The last token's hidden state.
    LastToken,
}

impl Pooling {
    /// Returns the weight of token `t` of a text of `length` tokens.
    fn weight(self, t: usize, length: usize) -> f32 {
        let length = length as f32;
        match self {
            Self::Cls => f32::from(u8::from(t == 0)),
            Self::Mean => 1.0 / length,
            Self::MeanSqrtLength => 1.0 / length.sqrt(),
            Self::WeightedMean => (t + 1) as f32 / (length * (length + 1.0) / 2.0),
            Self::LastToken => f32::from(u8::from(t as f32 + 1.0 == length)),
        }
    }
}

/// Makes the mask that is added to scores, `[batch, 1, 1, seq]`: [`MASKED`] at padding.
fn padding_mask<B: Backend>(text: &TextBatch, device: &B::Device) -> Tensor<B, 4> {
    let row = |&length: &usize| (0..text.seq).map(move |t| if t < length { 0.0 } else { MASKED });
    let values: Vec<f32> = text.lengths.iter().flat_map(row).collect();
    Tensor::from_data(TensorData::new(values, [text.lengths.len(), 1, 1, text.seq]), device)
}

/// Divides each row by its Euclidean length (at least 1e-12, as torch's `normalize`).
///
/// # Shapes
/// `[rows, width]` → `[rows, width]`.
pub fn unit_length<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = x.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    x / length
}

/// Computes `x/2 (1 + erf(x/√2))`. burn's `gelu` does not serve: on every backend but the CPU's its
/// gradient is that of the approximation by tanh.
///
/// # Shapes
/// `[rows, width]` → `[rows, width]`.
pub(crate) fn gelu<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let cumulative = x.clone().mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
    x * cumulative
}

/// A linear layer with bias; the weight is `[out, in]`, as Hugging Face stores it.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Linear<B> {
    /// Reads `name.weight` and `name.bias` of the directory, or makes new ones, N(0, 0.02) and 0.
    pub(crate) fn new(from: &mut Parameters<B>, name: &str, out: usize, width: usize) -> Result<Self> {
        let weight = from.read(&format!("{name}.weight"), [out, width], BERT_INIT)?;
        Ok(Self { weight, bias: from.read(&format!("{name}.bias"), [out], Init::Constant(0.0))? })
    }

    /// Reads the frozen layer `name` of the safetensors files in `dir`; without `has_bias` the bias
    /// is 0.
    ///
    /// # Errors
    /// Missing and misshapen tensors, by file and name.
    pub fn open(dir: &Path, name: &str, out: usize, width: usize, has_bias: bool, device: &B::Device) -> Result<Self> {
        let weights = Some(BertTensors::open(dir)?);
        let mut from = Parameters { weights, seed: 0, trains: false, device, count: 0 };
        let weight = from.read(&format!("{name}.weight"), [out, width], BERT_INIT)?;
        let bias = match has_bias {
            true => from.read(&format!("{name}.bias"), [out], Init::Constant(0.0))?,
            false => from.init([out], Init::Constant(0.0)),
        };
        Ok(Self { weight, bias })
    }

    /// Makes a new layer. Its bias is 0, or uniform if the weight is.
    pub(crate) fn init(from: &mut Parameters<B>, out: usize, width: usize, init: Init) -> Self {
        let weight = from.init([out, width], init);
        let bias = match init {
            Init::Uniform(_) => init,
            _ => Init::Constant(0.0),
        };
        Self { weight, bias: from.init([out], bias) }
    }

    /// Computes `x · weightᵀ + bias`.
    ///
    /// # Shapes
    /// `[n, in]` → `[n, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}

pub(crate) fn norm<B: Backend>(
    from: &mut Parameters<B>,
    name: Option<&str>,
    width: usize,
    epsilon: f64,
) -> Result<LayerNorm<B>> {
    let (one, zero) = (Init::Constant(1.0), Init::Constant(0.0));
    let mut norm = LayerNormConfig::new(width).with_epsilon(epsilon).init(from.device);
    (norm.gamma, norm.beta) = match name {
        Some(name) => {
            let gamma = from.read(&format!("{name}.weight"), [width], one)?;
            (gamma, Some(from.read(&format!("{name}.bias"), [width], zero)?))
        }
        None => (from.init([width], one), Some(from.init([width], zero))),
    };
    Ok(norm)
}

/// Embeddings of tokens and positions.
#[derive(Module, Debug)]
pub struct Embeddings<B: Backend> {
    /// Vectors of the tokens, `[vocab (+ added tokens), hidden]`.
    pub words: Param<Tensor<B, 2>>,
    /// Vectors of the positions, `[positions, hidden]`, with the first token type's vector added:
    /// itemlm's texts have no other type.
    pub positions: Param<Tensor<B, 2>>,
    /// Norm of the sum.
    pub norm: LayerNorm<B>,
    /// Dropout after the norm.
    pub dropout: Dropout,
}

impl<B: Backend> Embeddings<B> {
    /// Reads the directory's embeddings, or makes new ones; `added` more tokens begin as N(0,
    /// 0.02).
    pub(crate) fn new(from: &mut Parameters<B>, config: &BertConfig, added: usize) -> Result<Self> {
        let (rows, width) = (config.vocab_size, config.hidden_size);
        // The file is read first: it is as large as the configuration says before anything is
        // allocated by the configuration.
        let read = match from.weights.is_some() {
            true => from.read_values("embeddings.word_embeddings.weight", &[rows, width], BERT_INIT)?,
            false => Vec::new(),
        };
        let mut words = from.values((rows + added) * width, BERT_INIT);
        words.splice(..read.len(), read);
        let words = from.param(words, [rows + added, width]);
        let shape = [config.max_position_embeddings, width];
        let mut positions = from.read_values("embeddings.position_embeddings.weight", &shape, BERT_INIT)?;
        if from.weights.is_some() {
            let types = [config.type_vocab_size, width];
            let types = from.read_values("embeddings.token_type_embeddings.weight", &types, BERT_INIT)?;
            for position in positions.chunks_exact_mut(width) {
                position.iter_mut().zip(&types).for_each(|(p, t)| *p += t);
            }
        }
        let positions = from.param(positions, shape);
        let norm = norm(from, Some("embeddings.LayerNorm"), width, config.layer_norm_eps)?;
        Ok(Self { words, positions, norm, dropout: DropoutConfig { prob: config.hidden_dropout_prob }.init() })
    }

    /// Adds the vectors of tokens and positions, before the norm. A text is at most as long as
    /// there are positions.
    ///
    /// # Shapes
    /// `[batch, seq, hidden]`.
    pub fn look_up(&self, text: &TextBatch) -> Tensor<B, 3> {
        let (batch, seq, device) = (text.lengths.len(), text.seq, self.words.val().device());
        let [vocabulary, width] = self.words.dims();
        let ids = indices(text.tokens.iter().map(|&token| token as usize), vocabulary, &device);
        let words = self.words.val().select(0, ids).reshape([batch, seq * width]);
        let positions = self.positions.val().narrow(0, 0, seq).reshape([1, seq * width]);
        (words + positions).reshape([batch, seq, width])
    }

    /// Applies norm and dropout.
    ///
    /// # Shapes
    /// `[batch, seq, hidden]` → `[batch, seq, hidden]`.
    pub fn normalise(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.dropout.forward(self.norm.forward(x))
    }
}

/// Attention with its output projection, residual and LayerNorm.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// Projection of the tokens to queries.
    pub query: Linear<B>,
    /// Projection of the context to keys.
    pub key: Linear<B>,
    /// Projection of the context to values.
    pub value: Linear<B>,
    /// Projection of the joined heads.
    pub output: Linear<B>,
    /// Norm after the residual.
    pub norm: LayerNorm<B>,
    /// Dropout of the attention weights.
    pub attention_dropout: Dropout,
    /// Dropout of the output.
    pub dropout: Dropout,
    /// Number of heads.
    pub heads: usize,
}

impl<B: Backend> Attention<B> {
    /// Reads or makes the self-attention `name` of the directory.
    pub(crate) fn new(from: &mut Parameters<B>, config: &BertConfig, name: &str) -> Result<Self> {
        let h = config.hidden_size;
        Ok(Self {
            query: Linear::new(from, &format!("{name}.self.query"), h, h)?,
            key: Linear::new(from, &format!("{name}.self.key"), h, h)?,
            value: Linear::new(from, &format!("{name}.self.value"), h, h)?,
            output: Linear::new(from, &format!("{name}.output.dense"), h, h)?,
            norm: norm(from, Some(&format!("{name}.output.LayerNorm")), h, config.layer_norm_eps)?,
            attention_dropout: DropoutConfig { prob: config.attention_probs_dropout_prob }.init(),
            dropout: DropoutConfig { prob: config.hidden_dropout_prob }.init(),
            heads: config.num_attention_heads,
        })
    }

    /// Computes the attention of each token to `context`, or for `None` to the tokens; `mask` is
    /// added to the scores.
    ///
    /// # Shapes
    /// `x` and the result `[batch, seq, hidden]`, `context` `[batch, n, width]`, `mask` broadcasts
    /// to `[batch, heads, seq, n]`.
    pub fn forward(&self, x: Tensor<B, 3>, context: Option<Tensor<B, 3>>, mask: Option<Tensor<B, 4>>) -> Tensor<B, 3> {
        let [batch, seq, hidden] = x.dims();
        let dim = hidden / self.heads;
        let split = |t: Tensor<B, 2>, length| t.reshape([batch, length, self.heads, dim]).swap_dims(1, 2);
        let x = x.reshape([batch * seq, hidden]);
        let (source, total) = match context {
            None => (x.clone(), seq),
            Some(context) => {
                let [_, total, width] = context.dims();
                (context.reshape([batch * total, width]), total)
            }
        };
        let v = split(self.value.forward(source.clone()), total);
        let weights = if total == 1 {
            // The softmax of one score is 1.
            Tensor::ones([batch, self.heads, seq, 1], &v.device())
        } else {
            let q = split(self.query.forward(x.clone()).mul_scalar(1.0 / (dim as f64).sqrt()), seq);
            let k = split(self.key.forward(source), total);
            let scores = q.matmul(k.transpose());
            softmax(if let Some(mask) = mask { scores + mask } else { scores }, 3)
        };
        let weights = self.attention_dropout.forward(weights);
        let attended = weights.matmul(v).swap_dims(1, 2).reshape([batch * seq, hidden]);
        let output = self.dropout.forward(self.output.forward(attended));
        self.norm.forward(x + output).reshape([batch, seq, hidden])
    }
}

/// Two linear layers around a GELU, residual and LayerNorm.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    /// `[intermediate, hidden]`.
    pub intermediate: Linear<B>,
    /// `[hidden, intermediate]`.
    pub output: Linear<B>,
    /// Norm after the residual.
    pub norm: LayerNorm<B>,
    /// Dropout of the output.
    pub dropout: Dropout,
}

impl<B: Backend> FeedForward<B> {
    /// Reads or makes the feed-forward of the block `name` of the directory.
    pub(crate) fn new(from: &mut Parameters<B>, config: &BertConfig, name: &str) -> Result<Self> {
        let (h, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            intermediate: Linear::new(from, &format!("{name}.intermediate.dense"), inner, h)?,
            output: Linear::new(from, &format!("{name}.output.dense"), h, inner)?,
            norm: norm(from, Some(&format!("{name}.output.LayerNorm")), h, config.layer_norm_eps)?,
            dropout: DropoutConfig { prob: config.hidden_dropout_prob }.init(),
        })
    }

    /// Applies the two layers, the residual and the norm.
    ///
    /// # Shapes
    /// `[batch, seq, hidden]` → `[batch, seq, hidden]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, hidden] = x.dims();
        let x = x.reshape([batch * seq, hidden]);
        let output = self.output.forward(gelu(self.intermediate.forward(x.clone())));
        self.norm.forward(x + self.dropout.forward(output)).reshape([batch, seq, hidden])
    }
}
