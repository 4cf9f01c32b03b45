//! The sizes of a Llama-family model, read from Hugging Face's `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Context, Error, Result};

/// The architecture of a Llama-family decoder, named as in Hugging Face's `LlamaConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the SwiGLU layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even, for RoPE turns pairs.
    pub head_dim: usize,
    /// The epsilon of RMSNorm.
    pub rms_norm_eps: f64,
    /// The base of RoPE's wavelengths.
    pub rope_theta: f64,
    /// Llama 3's frequency scaling, if the model has it.
    pub rope_scaling: Option<Llama3RopeScaling>,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// The longest context, in tokens, that the model was made for.
    pub max_position_embeddings: usize,
}

/// RoPE scaling of Llama 3.1 and later (`rope_type: llama3`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Llama3RopeScaling {
    /// Long wavelengths are stretched by this.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// The context length before scaling, in tokens.
    pub original_max_position_embeddings: usize,
}

impl Llama3RopeScaling {
    /// By how much each of the `head_dim / 2` wavelengths is stretched (what llama.cpp stores as
    /// `rope_freqs.weight`; the formula is transformers' `_compute_llama3_parameters`).
    pub fn stretch(&self, rope_theta: f64, head_dim: usize) -> Vec<f64> {
        let context = self.original_max_position_embeddings as f64;
        let pairs = (0..head_dim / 2).map(|i| 2.0 * i as f64 / head_dim as f64);
        pairs
            .map(|exponent| {
                let wavelength = 2.0 * std::f64::consts::PI * rope_theta.powf(exponent);
                if wavelength < context / self.high_freq_factor {
                    1.0
                } else if wavelength > context / self.low_freq_factor {
                    self.factor
                } else {
                    let smooth =
                        (context / wavelength - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
                    1.0 / ((1.0 - smooth) / self.factor + smooth)
                }
            })
            .collect()
    }
}

impl DecoderConfig {
    /// Two layers small enough to make and run on the spot: for demonstrations, self-checks and
    /// tests.
    pub fn tiny(vocab_size: usize) -> Self {
        Self {
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
        }
    }

    /// Parses a `config.json`; absent keys take Hugging Face's defaults. `path` is for the errors.
    ///
    /// # Errors
    /// One line naming the file and the key: not a Llama, a variant that itemlm does not compute
    /// (biases, other activations, other RoPE scalings, quantised weights), or a size out of range.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let document: Value = serde_json::from_str(text).context(path.display())?;
        let Value::Object(object) = &document else {
            return Err(Error::failed(format!("{}: not a JSON object", path.display())));
        };
        Self::from_object(object).context(path.display())
    }

    fn from_object(object: &Map<String, Value>) -> Result<Self> {
        let keys = Keys { object, prefix: "" };
        match keys.text("model_type")? {
            Some("llama") => {}
            Some(other) => {
                return refuse(format!("model_type {other:?} is not supported, only \"llama\" is"));
            }
            None => return refuse("no model_type; it must be \"llama\""),
        }
        for key in ["attention_bias", "mlp_bias"] {
            if keys.flag(key)? == Some(true) {
                return refuse(format!("{key}: true is not supported"));
            }
        }
        if let Some(activation) = keys.text("hidden_act")?.filter(|a| *a != "silu") {
            return refuse(format!("hidden_act {activation:?} is not supported, only \"silu\" is"));
        }
        if keys.get("quantization_config").is_some() {
            return refuse("quantization_config: quantised safetensors are not supported; use the unquantised model");
        }
        let hidden_size = keys.size("hidden_size", 4096)?;
        let num_attention_heads = keys.size("num_attention_heads", 32)?;
        let head_dim = match keys.get("head_dim") {
            Some(_) => keys.size("head_dim", 0)?,
            None if num_attention_heads > 0 && hidden_size % num_attention_heads == 0 => {
                hidden_size / num_attention_heads
            }
            None => {
                return refuse(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}"
                ));
            }
        };
        let (rope_theta, rope_scaling) = rope(&keys)?;
        let config = Self {
            vocab_size: keys.size("vocab_size", 32000)?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", 11008)?,
            num_hidden_layers: keys.size("num_hidden_layers", 32)?,
            num_attention_heads,
            num_key_value_heads: keys.size("num_key_value_heads", num_attention_heads)?,
            head_dim,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            max_position_embeddings: keys.size("max_position_embeddings", 2048)?,
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that no Llama has, so that a lying file cannot make anyone allocate by them.
    ///
    /// # Errors
    /// Names the first key out of range.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 18),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 14),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 24),
        ];
        for (key, value, most) in sizes {
            if !(1..=most).contains(&value) {
                return refuse(format!("{key} is {value}; it must be from 1 to {most}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return refuse(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(format!("head_dim {} is odd; RoPE turns pairs", self.head_dim));
        }
        let mut positive = vec![("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)];
        if let Some(scaling) = &self.rope_scaling {
            positive.push(("rope_scaling.factor", scaling.factor));
            positive.push(("rope_scaling.low_freq_factor", scaling.low_freq_factor));
            positive.push(("rope_scaling.high_freq_factor", scaling.high_freq_factor));
            if scaling.high_freq_factor <= scaling.low_freq_factor {
                return refuse("rope_scaling.high_freq_factor must be above low_freq_factor");
            }
            if !(1..=1 << 24).contains(&scaling.original_max_position_embeddings) {
                return refuse("rope_scaling.original_max_position_embeddings is out of range");
            }
        }
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

    /// The number of weights; `None` if it overflows.
    pub fn parameters(&self) -> Option<usize> {
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let sum = |shapes: Vec<(&str, Vec<usize>)>| {
            shapes.iter().try_fold(0usize, |n, (_, shape)| n.checked_add(count(shape)?))
        };
        let mut total = sum(self.layer_shapes())?.checked_mul(self.num_hidden_layers)?;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        total = total.checked_add(count(&[tables, self.vocab_size, self.hidden_size])?)?;
        total.checked_add(self.hidden_size)
    }

    /// Every tensor of the model, by its Hugging Face name, with its shape (`[out, in]`).
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
        let table = vec![self.vocab_size, self.hidden_size];
        let head = (!self.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), table.clone()));
        let layers = (0..self.num_hidden_layers).flat_map(|layer| {
            let shapes = self.layer_shapes().into_iter();
            shapes.map(move |(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape))
        });
        std::iter::once(("model.embed_tokens.weight".to_owned(), table))
            .chain(layers)
            .chain([("model.norm.weight".to_owned(), vec![self.hidden_size])])
            .chain(head)
    }

    /// A decoder block's tensors, by the last part of their name.
    pub(crate) fn layer_shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let hidden = self.hidden_size;
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        vec![
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![self.intermediate_size, hidden]),
            ("mlp.up_proj", vec![self.intermediate_size, hidden]),
            ("mlp.down_proj", vec![hidden, self.intermediate_size]),
        ]
    }

    /// A `config.json` that transformers loads, with the end-of-sequence token's id.
    pub fn to_json(&self, eos: u32) -> String {
        let rope_scaling = self.rope_scaling.as_ref().map(|scaling| {
            json!({
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            })
        });
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": false,
            "mlp_bias": false,
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": rope_scaling,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": null,
            "eos_token_id": eos,
            "torch_dtype": "float32",
        });
        format!("{config:#}\n")
    }
}

/// RoPE's base and scaling. transformers 5 writes both as `rope_parameters`, 4 as `rope_theta` and
/// `rope_scaling`; where a file has both, 5 reads `rope_scaling`, and so does this.
fn rope(keys: &Keys<'_>) -> Result<(f64, Option<Llama3RopeScaling>)> {
    let old = keys.child("rope_scaling")?;
    let new = keys.child("rope_parameters")?;
    let mut theta = keys.number("rope_theta")?;
    for child in [&new, &old].into_iter().flatten() {
        theta = child.number("rope_theta")?.or(theta);
    }
    let mut scaling = None;
    if let Some(rope) = old.filter(|rope| !rope.object.is_empty()).or(new) {
        let kind = match rope.text("rope_type")? {
            Some(kind) => Some(kind),
            None => rope.text("type")?,
        };
        match kind {
            None | Some("default") => {}
            Some("llama3") => {
                scaling = Some(Llama3RopeScaling {
                    factor: rope.required_number("factor")?,
                    low_freq_factor: rope.required_number("low_freq_factor")?,
                    high_freq_factor: rope.required_number("high_freq_factor")?,
                    original_max_position_embeddings: rope.size("original_max_position_embeddings", 0)?,
                });
            }
            Some(other) => {
                return refuse(format!(
                    "{}rope_type {other:?} is not supported, only \"llama3\" and \"default\" are",
                    rope.prefix
                ));
            }
        }
        if rope.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return refuse(format!("{}partial_rotary_factor is not supported", rope.prefix));
        }
    }
    Ok((theta.unwrap_or(10_000.0), scaling))
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::failed(message))
}

/// Typed reads from a JSON object; `null` is as good as absent.
struct Keys<'a> {
    object: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(&self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => refuse(format!("{}{key} is not {what}", self.prefix)),
            },
        }
    }

    fn size(&self, key: &str, default: usize) -> Result<usize> {
        let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        Ok(self.read(key, "a whole number", size)?.unwrap_or(default))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    fn required_number(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) => Ok(number),
            None => refuse(format!("no {}{key}", self.prefix)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    fn child(&self, key: &'static str) -> Result<Option<Keys<'a>>> {
        let object = self.read(key, "an object", Value::as_object)?;
        let prefix = if key == "rope_scaling" { "rope_scaling." } else { "rope_parameters." };
        Ok(object.map(|object| Keys { object, prefix }))
    }
}

#[cfg(test)]
mod tests;
