//! The architecture of a decoder, read from Hugging Face's `config.json`.

mod family;
mod keys;
mod rope;

use std::path::Path;

use serde_json::{Map, Value, json};

pub use family::{FAMILIES, Family, LLAMA};
use keys::Keys;
pub use rope::{Llama3RopeScaling, RopeScaling, YarnRopeScaling};

use crate::kernels::{Activation, ScoreScaling};
use crate::{Context, Error, Result};

/// The architecture of a decoder: its sizes, named as in transformers' configurations, and how its
/// family differs from Llama.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family: names and file conventions.
    pub family: &'static Family,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even, because RoPE rotates pairs.
    pub head_dim: usize,
    /// The epsilon of RMSNorm.
    pub rms_norm_eps: f64,
    /// The base of RoPE's wavelengths.
    pub rope_theta: f64,
    /// Change of RoPE's angles, if the model has one.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// The longest context that the model was made for, tokens.
    pub max_position_embeddings: usize,
    /// Differences from Llama.
    pub switches: Switches,
}

/// Differences of a family's blocks from Llama's; the default is Llama.
#[derive(Debug, Clone, PartialEq)]
pub struct Switches {
    /// Whether the projections of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the projection of attention's output has a bias.
    pub output_bias: bool,
    /// Whether the projections of the feed-forward have biases.
    pub mlp_bias: bool,
    /// Whether q, k and v are one matrix, and gate and up another.
    pub fused_projections: bool,
    /// Position of a block's norms.
    pub norms: BlockNorms,
    /// Norms of queries and keys before rotation.
    pub qk_norm: Option<QkNorm>,
    /// Activation of the feed-forward's gate.
    pub activation: Activation,
    /// Whether embeddings are multiplied by `√hidden_size`.
    pub scaled_embeddings: bool,
    /// The number under the root that divides scores `q·k`; `head_dim` if `None`.
    pub query_scalar: Option<f64>,
    /// Soft cap of attention's scores.
    pub attention_soft_cap: Option<f64>,
    /// Soft cap of the logits.
    pub logit_soft_cap: Option<f64>,
    /// Number of a head's numbers that are rotated; all if `None`.
    pub rotary_dim: Option<usize>,
    /// Number of tokens that a windowed layer sees: the token itself and those before it.
    pub sliding_window: Option<usize>,
    /// `[layers]`: whether a layer is windowed; layers after its end are not.
    pub windowed_layers: Vec<bool>,
    /// The base of RoPE in windowed layers, where they have their own.
    pub window_rope_theta: Option<f64>,
    /// `[layers]`: whether a layer has RoPE; layers after its end have it.
    pub rotated_layers: Vec<bool>,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            fused_projections: false,
            norms: BlockNorms::Before,
            qk_norm: None,
            activation: Activation::Silu,
            scaled_embeddings: false,
            query_scalar: None,
            attention_soft_cap: None,
            logit_soft_cap: None,
            rotary_dim: None,
            sliding_window: None,
            windowed_layers: Vec::new(),
            window_rope_theta: None,
            rotated_layers: Vec::new(),
        }
    }
}

/// Position of a block's norms, each for attention and for the feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockNorms {
    /// Norms of the input.
    Before,
    /// Norms of the input, and of the output before it is added to the residual stream.
    BeforeAndAfter,
    /// Norms of the output before it is added to the residual stream.
    After,
}

/// RMS norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// One norm for each head.
    Head,
    /// One norm over all heads together.
    AllHeads,
}

impl DecoderConfig {
    /// Returns a Llama of two layers that is small enough to make and run in a moment: for
    /// demonstrations, self-checks and tests.
    pub fn tiny(vocab_size: usize) -> Self {
        Self {
            family: &LLAMA,
            vocab_size,
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tie_word_embeddings: true,
            max_position_embeddings: 512,
            switches: Switches::default(),
        }
    }

    /// Parses a `config.json`; absent keys take Hugging Face's defaults. Errors name `path`.
    ///
    /// # Errors
    /// One line naming the file and the key: an unknown family, a variant that itemlm does not
    /// compute (other activations, other RoPE scalings, quantised weights), a size out of range.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let document: Value = serde_json::from_str(text).context(path.display())?;
        let Value::Object(object) = &document else {
            return Err(Error::failed(format!("{}: not a JSON object", path.display())));
        };
        Self::from_object(object).context(path.display())
    }

    /// Reads the keys of a `config.json`.
    pub(crate) fn from_object(object: &Map<String, Value>) -> Result<Self> {
        let keys = Keys { object, prefix: "" };
        let family = match keys.text("model_type")? {
            Some(model_type) => Family::from_model_type(model_type)?,
            None => return refuse("no model_type; it must be a family's name, as \"llama\""),
        };
        if keys.get("quantization_config").is_some() {
            return refuse("quantization_config: quantised safetensors are not supported; use the unquantised model");
        }
        let defaults = &family.defaults;
        let hidden_size = keys.size("hidden_size", defaults.hidden_size)?;
        let num_attention_heads = keys.size("num_attention_heads", defaults.num_attention_heads)?;
        let head_dim = match (keys.optional_size("head_dim")?, defaults.head_dim) {
            (Some(head_dim), _) => head_dim,
            (None, Some(head_dim)) if !keys.is_null("head_dim") => head_dim,
            _ if num_attention_heads > 0 && hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            _ => {
                return refuse(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}"
                ));
            }
        };
        let max_position_embeddings = keys.size("max_position_embeddings", defaults.max_position_embeddings)?;
        let rope = rope::read(&keys, max_position_embeddings)?;
        let num_key_value_heads = match keys.is_null("num_key_value_heads") {
            true => num_attention_heads,
            false => keys.size("num_key_value_heads", defaults.num_key_value_heads.unwrap_or(num_attention_heads))?,
        };
        let mut config = Self {
            family,
            vocab_size: keys.size("vocab_size", defaults.vocab_size)?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", defaults.intermediate_size)?,
            num_hidden_layers: keys.size("num_hidden_layers", defaults.num_hidden_layers)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
            rope_theta: rope.theta.unwrap_or(defaults.rope_theta),
            rope_scaling: rope.scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(defaults.tie_word_embeddings),
            max_position_embeddings,
            switches: Switches::default(),
        };
        // The switches have one value for each layer, so the number of layers is checked first.
        config.check_sizes()?;
        config.switches = (family.switches)(&keys, &config)?;
        config.switches.activation = family.read_activation(&keys)?;
        if let Some(theta) = rope.window_theta.filter(|_| config.switches.window_rope_theta.is_some()) {
            config.switches.window_rope_theta = Some(theta);
        }
        if let Some(share) = rope.partial.filter(|share| *share != 1.0) {
            // transformers' code of the other families does not read the key, that of other servers
            // does.
            if family.model_type != "phi3" {
                return refuse(format!(
                    "partial_rotary_factor {share} is not supported in {}, only 1 is",
                    family.model_type
                ));
            }
            config.switches.rotary_dim = Some((head_dim as f64 * share) as usize);
        }
        config.check()?;
        Ok(config)
    }

    fn check_sizes(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 18),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 14),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 24),
            ("sliding_window", self.switches.sliding_window.unwrap_or(1), 1 << 24),
        ];
        for (key, value, most) in sizes {
            if !(1..=most).contains(&value) {
                return refuse(format!("{key} is {value}; it must be from 1 to {most}"));
            }
        }
        Ok(())
    }

    /// Refuses sizes that no model has, so that a damaged file cannot cause a large allocation.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return refuse(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(format!("head_dim {} is odd; RoPE turns pairs", self.head_dim));
        }
        let rotated = self.rotary_dim();
        if !rotated.is_multiple_of(2) || !(2..=self.head_dim).contains(&rotated) {
            return refuse(format!("partial_rotary_factor rotates {rotated} of {} numbers", self.head_dim));
        }
        let switches = &self.switches;
        let lists = [("layer_types", &switches.windowed_layers), ("no_rope_layers", &switches.rotated_layers)];
        for (key, layers) in lists {
            if !layers.is_empty() && layers.len() < self.num_hidden_layers {
                return refuse(format!("{key} has {} entries for {} layers", layers.len(), self.num_hidden_layers));
            }
        }
        let mut positive = vec![("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)];
        if let Some(scaling) = &self.rope_scaling {
            scaling.check()?;
            positive.extend(scaling.numbers());
        }
        let optional = [
            ("query_pre_attn_scalar", switches.query_scalar),
            ("attn_logit_softcapping", switches.attention_soft_cap),
            ("final_logit_softcapping", switches.logit_soft_cap),
            ("rope_local_base_freq", switches.window_rope_theta),
        ];
        positive.extend(optional.into_iter().filter_map(|(key, value)| Some((key, value?))));
        for (key, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return refuse(format!("{key} is {value}; it must be a positive number"));
            }
        }
        if self.parameters().is_none() {
            return refuse("the sizes multiply to more parameters than a machine can count");
        }
        Ok(())
    }

    /// Keeps the first `layers` blocks.
    ///
    /// # Errors
    /// More than there are, or none.
    pub(crate) fn keep_layers(&mut self, layers: usize) -> Result<()> {
        if !(1..=self.num_hidden_layers).contains(&layers) {
            return Err(Error::usage(format!(
                "llm.layers is {layers}; the model has {most} blocks, give 1 to {most}",
                most = self.num_hidden_layers
            )));
        }
        self.num_hidden_layers = layers;
        self.switches.windowed_layers.truncate(layers);
        self.switches.rotated_layers.truncate(layers);
        Ok(())
    }

    /// Returns the window of a layer, in tokens; `None` for one that sees all of the context.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let windowed = self.switches.windowed_layers.get(layer).copied().unwrap_or(false);
        self.switches.sliding_window.filter(|_| windowed)
    }

    /// Returns the window, if any layer has one.
    pub fn any_window(&self) -> Option<usize> {
        (0..self.num_hidden_layers).find_map(|layer| self.window(layer))
    }

    /// Returns whether a layer rotates queries and keys.
    pub fn is_rotated(&self, layer: usize) -> bool {
        self.switches.rotated_layers.get(layer).copied().unwrap_or(true)
    }

    /// Returns how products of queries and keys become scores.
    pub(crate) fn score_scaling(&self) -> ScoreScaling {
        let query_scalar = self.switches.query_scalar.unwrap_or(self.head_dim as f64);
        ScoreScaling { query_scalar, soft_cap: self.switches.attention_soft_cap }
    }

    /// Returns the factor of the embeddings, if there is one.
    pub(crate) fn embedding_factor(&self) -> Option<f64> {
        // transformers rounds it to the embeddings' type.
        self.switches.scaled_embeddings.then(|| f64::from((self.hidden_size as f32).sqrt()))
    }

    /// Returns a `config.json` that transformers loads, with the end-of-sequence token's id.
    pub fn to_json(&self, eos: u32) -> String {
        let switches = &self.switches;
        let mut config = json!({
            "architectures": [self.family.architecture],
            "model_type": self.family.model_type,
            "attention_bias": switches.output_bias,
            "mlp_bias": switches.mlp_bias,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": null,
            "eos_token_id": eos,
            "torch_dtype": "float32",
        });
        if let Value::Object(object) = &mut config {
            rope::write(self, object);
            self.family.write(self, object);
            // Some families' padding token is one that a smaller vocabulary lacks.
            if self.family != &LLAMA {
                object.insert("pad_token_id".into(), Value::Null);
            }
        }
        format!("{config:#}\n")
    }
}

pub(crate) fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::failed(message))
}

#[cfg(test)]
mod tests;
