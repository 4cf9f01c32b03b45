//! The sizes of a BERT encoder, read from `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::formats::tensor_store::read_text;
use crate::{Context, Error, Result};

const LONGEST_CONFIG: u64 = 16 << 20;
/// Most parameters of a model whose sizes a file decides: three times BERT-large.
pub(crate) const MOST_PARAMETERS: u64 = 1 << 30;
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
    /// An unsupported size, by its key.
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
