//! BERT encoders, as sentence encoders and as the parts that the Q-Former is made of.
//!
//! Paper: BERT, arXiv 1810.04805. Reference: transformers/models/bert/modeling_bert.py
//! (`BertModel`: LayerNorm after each residual, exact GELU, learned positions, token types);
//! sentence vectors as sentence-transformers' mean pooling.

use std::path::Path;

use burn::module::Param;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::softmax;
use serde::{Deserialize, Serialize};

use super::parameters::{BertTensors, Init, Parameters};
use crate::batch::TextBatch;
use crate::kernels::MASKED;
use crate::model::formats::tensor_store::read_text;
use crate::{Context, Error, Result};

const LONGEST_CONFIG: u64 = 16 << 20;
/// Most parameters of a model whose sizes a file decides: three times BERT-large.
pub(crate) const MOST_PARAMETERS: u64 = 1 << 30;
/// How BERT's weights begin.
pub(crate) const BERT_INIT: Init = Init::Normal(0.02);

/// The sizes of a BERT encoder, named as in Hugging Face's `config.json`; absent keys are
/// BERT-base's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads; a divisor of the width.
    pub num_attention_heads: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Length of the longest text, in tokens.
    pub max_position_embeddings: usize,
    /// Number of token types; all tokens of itemlm's texts are of the first.
    pub type_vocab_size: usize,
    /// Epsilon of LayerNorm.
    pub layer_norm_eps: f64,
    /// Probability of dropout after embeddings, attention and feed-forward, while training.
    pub hidden_dropout_prob: f64,
    /// Probability of dropout of attention weights, while training.
    pub attention_probs_dropout_prob: f64,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
        }
    }
}

/// Keys of `config.json` whose other values are not supported.
#[derive(Deserialize)]
struct Variant {
    model_type: Option<String>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
}

impl BertConfig {
    /// Reads `config.json` of a Hugging Face directory.
    ///
    /// # Errors
    /// Another architecture or activation, or a size out of range, by file and key.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        Self::from_json(&read_text(&path, LONGEST_CONFIG)?).context(path.display())
    }

    fn from_json(text: &str) -> Result<Self> {
        let variant: Variant = serde_json::from_str(text).context("not a BERT configuration")?;
        for (key, found, supported) in [
            ("model_type", &variant.model_type, "bert"),
            ("hidden_act", &variant.hidden_act, "gelu"),
            ("position_embedding_type", &variant.position_embedding_type, "absolute"),
        ] {
            if found.as_ref().is_some_and(|found| found != supported) || (key == "model_type" && found.is_none()) {
                let found = found.as_deref().unwrap_or("absent");
                return Err(Error::failed(format!("{key} is {found:?}, only {supported:?} is supported")));
            }
        }
        for (key, set) in [("is_decoder", variant.is_decoder), ("add_cross_attention", variant.add_cross_attention)] {
            if set {
                return Err(Error::failed(format!("{key} is true, only encoders are supported")));
            }
        }
        let config: Self = serde_json::from_str(text).context("not a BERT configuration")?;
        config.check()?;
        Ok(config)
    }

    /// Counts the numbers in the matrices; sizes that are each in range do not overflow it.
    pub(crate) fn parameters(&self) -> u64 {
        let [hidden, inner, layers] =
            [self.hidden_size, self.intermediate_size, self.num_hidden_layers].map(|n| n as u64);
        let rows = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size) as u64;
        rows * hidden + layers * (4 * hidden * hidden + 2 * hidden * inner)
    }

    /// Refuses sizes that no BERT has.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 16),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 20),
            ("type_vocab_size", self.type_vocab_size, 1 << 10),
        ];
        if let Some((key, size, most)) = sizes.into_iter().find(|&(_, size, most)| size == 0 || size > most) {
            return Err(Error::failed(format!("{key} is {size}, it must be between 1 and {most}")));
        }
        if self.parameters() > MOST_PARAMETERS {
            return Err(Error::failed(format!(
                "its sizes make {} parameters, at most 2^30 are supported",
                self.parameters()
            )));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
            return Err(Error::failed(format!("num_attention_heads {heads} does not divide hidden_size {hidden}")));
        }
        let shares = [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
        ];
        if let Some((key, share)) = shares.into_iter().find(|(_, share)| !(0.0..1.0).contains(share)) {
            return Err(Error::failed(format!("{key} is {share}, it must be at least 0 and below 1")));
        }
        match self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0 {
            true => Ok(()),
            false => {
                Err(Error::failed(format!("layer_norm_eps is {}, it must be above 0 and below 1", self.layer_norm_eps)))
            }
        }
    }
}

/// A BERT encoder without a head.
#[derive(Module, Debug)]
pub struct Bert<B: Backend> {
    /// Vectors of tokens and positions.
    pub embeddings: Embeddings<B>,
    /// The blocks, first to last.
    pub layers: Vec<BertLayer<B>>,
}

/// One block.
#[derive(Module, Debug)]
pub struct BertLayer<B: Backend> {
    /// Self-attention: every token attends to every real one.
    pub attention: Attention<B>,
    /// Feed-forward after it.
    pub feed_forward: FeedForward<B>,
}

impl<B: Backend> Bert<B> {
    /// Reads the encoder of a Hugging Face directory onto `device`, frozen; tensors of heads and
    /// poolers are left alone.
    ///
    /// # Errors
    /// Missing and misshapen tensors, by file and name.
    pub fn load(dir: &Path, config: &BertConfig, device: &B::Device) -> Result<Self> {
        let weights = Some(BertTensors::open(dir)?);
        let mut from = Parameters { weights, seed: 0, trains: false, device, made: 0 };
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
    pub fn pooled(&self, text: &TextBatch, pooling: Pooling) -> Tensor<B, 2> {
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
        unit_length(self.pooled(text, Pooling::Mean))
    }
}

/// How the hidden states of a text's tokens become one vector, as sentence-transformers' `Pooling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    Cls,
    /// Their mean.
    Mean,
    /// Their sum over the square root of their number.
    MeanSqrtLength,
    /// Their mean weighted by their positions, from 1.
    WeightedMean,
    /// The last token's.
    LastToken,
}

impl Pooling {
    /// The weight of token `t` of a text of `length` tokens.
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

/// Computes `x/2 (1 + erf(x/√2))`. Not burn's `gelu`: on every backend but the CPU's its gradient
/// is that of the approximation by tanh.
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
    /// Reads `name.weight` and `name.bias` of the directory, or makes N(0, 0.02) and 0.
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
        let mut from = Parameters { weights, seed: 0, trains: false, device, made: 0 };
        let weight = from.read(&format!("{name}.weight"), [out, width], BERT_INIT)?;
        let bias = match has_bias {
            true => from.read(&format!("{name}.bias"), [out], Init::Constant(0.0))?,
            false => from.init([out], Init::Constant(0.0)),
        };
        Ok(Self { weight, bias })
    }

    /// Makes a new layer. Its bias is 0, or uniform where the weight is.
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
    /// Reads the directory's, or makes new ones; `added` more tokens begin as N(0, 0.02).
    pub(crate) fn new(from: &mut Parameters<B>, config: &BertConfig, added: usize) -> Result<Self> {
        let (rows, width) = (config.vocab_size, config.hidden_size);
        // Read first: the file is as large as the configuration says before anything is allocated
        // by that.
        let read = match from.weights.is_some() {
            true => from.read_values("embeddings.word_embeddings.weight", &[rows, width], BERT_INIT)?,
            false => Vec::new(),
        };
        let mut words = from.values((rows + added) * width, BERT_INIT);
        words.splice(..read.len(), read);
        let words = from.of(words, [rows + added, width]);
        let shape = [config.max_position_embeddings, width];
        let mut positions = from.read_values("embeddings.position_embeddings.weight", &shape, BERT_INIT)?;
        if from.weights.is_some() {
            let types = [config.type_vocab_size, width];
            let types = from.read_values("embeddings.token_type_embeddings.weight", &types, BERT_INIT)?;
            for position in positions.chunks_exact_mut(width) {
                position.iter_mut().zip(&types).for_each(|(p, t)| *p += t);
            }
        }
        let positions = from.of(positions, shape);
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
        let ids: Vec<i32> = text.tokens.iter().map(|&t| t as i32).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [batch * seq]), &device);
        let [_, width] = self.words.dims();
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

    /// Has each token attend to `context`, or for `None` to the tokens; `mask` is added to the
    /// scores.
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
