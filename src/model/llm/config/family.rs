//! The families of decoders that itemlm knows, one entry each: their names, Hugging Face's defaults
//! for keys that a `config.json` lacks, and how their blocks differ from Llama's.
//!
//! A further family whose blocks are made of parts that [`Switches`] has is a further entry here.
//!
//! Reference: transformers, models/*/configuration_*.py and modeling_*.py.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{BlockNorms, DecoderConfig, QkNorm, Switches, refuse};
use crate::Result;
use crate::kernels::Activation;

/// A family of decoders.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// `architectures` of `config.json`.
    pub architecture: &'static str,
    /// `general.architecture` of GGUF files.
    pub gguf: &'static str,
    /// Whether llama.cpp's converter orders the rows of q and k for RoPE on neighbours.
    pub(crate) gguf_interleaved: bool,
    /// Whether its norms multiply by one more than the number in Hugging Face's files (GGUF files
    /// hold the sum).
    pub(crate) norm_offset: bool,
    /// The key of the activation.
    activation: &'static str,
    pub(super) defaults: Defaults,
    /// Reads how the blocks differ from Llama's; the sizes have been read before.
    pub(super) switches: fn(&Keys<'_>, &DecoderConfig) -> Result<Switches>,
    /// Adds the family's own keys to a `config.json`.
    write: fn(&DecoderConfig, &mut Map<String, Value>),
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

/// Defaults of keys that a `config.json` lacks.
#[derive(Debug)]
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// Number of key and value heads; by default that of query heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// Width of a head; by default `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) tie_word_embeddings: bool,
    pub(super) max_position_embeddings: usize,
    activation: &'static str,
}

const LLAMA_DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    max_position_embeddings: 2048,
    activation: "silu",
};

const QWEN_DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    ..LLAMA_DEFAULTS
};

const GEMMA_DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    tie_word_embeddings: true,
    max_position_embeddings: 8192,
    activation: "gelu_pytorch_tanh",
    ..LLAMA_DEFAULTS
};

/// Llama 2 and 3, SmolLM2, TinyLlama (arXiv 2302.13971).
pub static LLAMA: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    gguf: "llama",
    gguf_interleaved: true,
    norm_offset: false,
    activation: "hidden_act",
    defaults: LLAMA_DEFAULTS,
    switches: |keys, _| {
        let attention_bias = keys.flag("attention_bias")?.unwrap_or(false);
        Ok(Switches {
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            mlp_bias: keys.flag("mlp_bias")?.unwrap_or(false),
            ..Switches::default()
        })
    },
    write: |_, _| {},
};

/// All families.
pub static FAMILIES: [&Family; 9] = [&LLAMA, &MISTRAL, &QWEN2, &QWEN3, &GEMMA2, &GEMMA3_TEXT, &SMOLLM3, &OLMO2, &PHI3];

/// Mistral 7B (arXiv 2310.06825): Llama whose layers all have a sliding window.
static MISTRAL: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    gguf: "llama",
    gguf_interleaved: true,
    norm_offset: false,
    activation: "hidden_act",
    defaults: Defaults {
        intermediate_size: 14_336,
        num_key_value_heads: Some(8),
        max_position_embeddings: 4096 * 32,
        ..LLAMA_DEFAULTS
    },
    switches: |keys, sizes| {
        let sliding_window = match keys.is_null("sliding_window") {
            true => None,
            false => Some(keys.size("sliding_window", 4096)?),
        };
        Ok(Switches { sliding_window, windowed_layers: vec![true; sizes.num_hidden_layers], ..Switches::default() })
    },
    write: |config, object| {
        object.insert("sliding_window".into(), json!(config.switches.sliding_window));
    },
};

/// Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): biases on q, k and v.
static QWEN2: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    gguf: "qwen2",
    gguf_interleaved: false,
    norm_offset: false,
    activation: "hidden_act",
    defaults: QWEN_DEFAULTS,
    switches: |keys, sizes| Ok(Switches { qkv_bias: true, ..qwen_windows(keys, sizes)? }),
    write: write_qwen_windows,
};

/// Qwen3 (arXiv 2505.09388): RMS norm on each head of q and k, no biases.
static QWEN3: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    gguf: "qwen3",
    gguf_interleaved: false,
    norm_offset: false,
    activation: "hidden_act",
    defaults: Defaults { head_dim: Some(128), ..QWEN_DEFAULTS },
    switches: |keys, sizes| {
        let bias = keys.flag("attention_bias")?.unwrap_or(false);
        Ok(Switches { qk_norm: Some(QkNorm::Head), qkv_bias: bias, output_bias: bias, ..qwen_windows(keys, sizes)? })
    },
    write: write_qwen_windows,
};

/// Gemma 2 (arXiv 2408.00118).
static GEMMA2: Family = Family {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    gguf: "gemma2",
    gguf_interleaved: false,
    norm_offset: true,
    activation: "hidden_activation",
    defaults: GEMMA_DEFAULTS,
    switches: |keys, sizes| {
        let windowed = layer_types(keys, sizes, |layer| layer % 2 == 0)?;
        gemma(keys, windowed, [Some(50.0), Some(30.0)])
    },
    write: write_gemma,
};

/// The text models of Gemma 3 (arXiv 2503.19786): norms on q and k in place of the soft caps, five
/// of six layers windowed, with a RoPE base of their own.
static GEMMA3_TEXT: Family = Family {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    gguf: "gemma3",
    gguf_interleaved: false,
    norm_offset: true,
    activation: "hidden_activation",
    defaults: Defaults {
        vocab_size: 262_208,
        rope_theta: 1_000_000.0,
        max_position_embeddings: 131_072,
        ..GEMMA_DEFAULTS
    },
    switches: |keys, sizes| {
        if keys.flag("use_bidirectional_attention")? == Some(true) {
            return refuse("use_bidirectional_attention: true is not supported");
        }
        // transformers' code takes it from the file and never applies it.
        if keys.number("attn_logit_softcapping")?.is_some() {
            return refuse("attn_logit_softcapping is not supported in gemma3_text");
        }
        let pattern = keys.size("sliding_window_pattern", 6)?.max(1);
        let windowed = layer_types(keys, sizes, |layer| !(layer + 1).is_multiple_of(pattern))?;
        let switches = gemma(keys, windowed, [None, None])?;
        Ok(Switches { qk_norm: Some(QkNorm::Head), window_rope_theta: Some(10_000.0), ..switches })
    },
    write: write_gemma,
};

/// SmolLM3: Llama of which every fourth layer has no position embedding (arXiv 2501.18795).
static SMOLLM3: Family = Family {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    gguf: "smollm3",
    gguf_interleaved: true,
    norm_offset: false,
    activation: "hidden_act",
    defaults: Defaults {
        vocab_size: 128_256,
        hidden_size: 2048,
        num_hidden_layers: 36,
        num_attention_heads: 16,
        num_key_value_heads: Some(4),
        rope_theta: 2_000_000.0,
        tie_word_embeddings: true,
        max_position_embeddings: 32_768,
        ..LLAMA_DEFAULTS
    },
    switches: |keys, sizes| {
        let interval = keys.size("no_rope_layer_interval", 4)?.max(1);
        let rotated = keys.list("no_rope_layers", "a list of 0 and 1", Value::as_u64)?;
        let rotated = rotated.map(|layers| layers.into_iter().map(|layer| layer != 0).collect());
        let rotated: Vec<bool> = rotated.unwrap_or_else(|| {
            (0..sizes.num_hidden_layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect()
        });
        let used = keys.flag("use_sliding_window")?.unwrap_or(false);
        let sliding_window = keys.optional_size("sliding_window")?.filter(|_| used);
        let windowed = |layer: usize| sliding_window.is_some() && !rotated.get(layer).copied().unwrap_or(true);
        let windowed_layers = layer_types(keys, sizes, windowed)?;
        let bias = keys.flag("attention_bias")?.unwrap_or(false);
        Ok(Switches {
            qkv_bias: bias,
            output_bias: bias,
            mlp_bias: keys.flag("mlp_bias")?.unwrap_or(false),
            sliding_window,
            windowed_layers,
            rotated_layers: rotated,
            ..Switches::default()
        })
    },
    write: |config, object| {
        write_qwen_windows(config, object);
        object.remove("max_window_layers");
        let rotated = (0..config.num_hidden_layers).map(|layer| u8::from(config.is_rotated(layer)));
        object.insert("no_rope_layers".into(), json!(rotated.collect::<Vec<u8>>()));
    },
};

/// OLMo 2 (arXiv 2501.00656): norms after attention and feed-forward in place of before, and over
/// all heads of q and of k together.
static OLMO2: Family = Family {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    gguf: "olmo2",
    gguf_interleaved: false,
    norm_offset: false,
    activation: "hidden_act",
    defaults: Defaults { vocab_size: 50_304, rms_norm_eps: 1e-5, ..LLAMA_DEFAULTS },
    switches: |keys, _| {
        let bias = keys.flag("attention_bias")?.unwrap_or(false);
        Ok(Switches {
            norms: BlockNorms::After,
            qk_norm: Some(QkNorm::AllHeads),
            qkv_bias: bias,
            output_bias: bias,
            ..Switches::default()
        })
    },
    write: |_, _| {},
};

/// Phi-3 (arXiv 2404.14219): q, k and v in one matrix, gate and up in another.
static PHI3: Family = Family {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    gguf: "phi3",
    gguf_interleaved: false,
    norm_offset: false,
    activation: "hidden_act",
    defaults: Defaults {
        vocab_size: 32_064,
        hidden_size: 3072,
        intermediate_size: 8192,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 4096,
        ..LLAMA_DEFAULTS
    },
    switches: |keys, sizes| {
        let sliding_window = keys.optional_size("sliding_window")?;
        let windowed_layers = vec![true; sizes.num_hidden_layers];
        Ok(Switches { fused_projections: true, sliding_window, windowed_layers, ..Switches::default() })
    },
    write: |config, object| {
        object.insert("sliding_window".into(), json!(config.switches.sliding_window));
        object.insert("original_max_position_embeddings".into(), json!(config.max_position_embeddings));
    },
};

impl Family {
    /// Returns the family of a `model_type`.
    ///
    /// # Errors
    /// An unknown `model_type`, by name.
    pub fn from_model_type(model_type: &str) -> Result<&'static Self> {
        Self::find(model_type, |family| family.model_type, "model_type")
    }

    /// Returns the family of GGUF's `general.architecture`.
    ///
    /// # Errors
    /// An unknown architecture, by name.
    pub fn from_gguf(architecture: &str) -> Result<&'static Self> {
        Self::find(architecture, |family| family.gguf, "general.architecture")
    }

    fn find(name: &str, of: fn(&Self) -> &'static str, key: &str) -> Result<&'static Self> {
        match FAMILIES.iter().find(|family| of(family) == name) {
            Some(family) => Ok(family),
            None => {
                let mut names: Vec<&str> = FAMILIES.iter().map(|family| of(family)).collect();
                names.dedup();
                refuse(format!("{key} {name:?} is not supported, only {} are", names.join(", ")))
            }
        }
    }

    pub(super) fn read_activation(&self, keys: &Keys<'_>) -> Result<Activation> {
        match keys.text(self.activation)?.unwrap_or(self.defaults.activation) {
            "silu" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => refuse(format!(
                "{} {other:?} is not supported, only \"silu\" and \"gelu_pytorch_tanh\" are",
                self.activation
            )),
        }
    }

    pub(super) fn write(&self, config: &DecoderConfig, object: &mut Map<String, Value>) {
        let activation = match config.switches.activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
        };
        object.insert(self.activation.into(), json!(activation));
        (self.write)(config, object);
    }
}

/// Reads which layers have a sliding window: from `layer_types`, or by `default`.
fn layer_types(keys: &Keys<'_>, sizes: &DecoderConfig, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let kinds = keys.list("layer_types", "a list of strings", |value| value.as_str().map(str::to_owned))?;
    let Some(kinds) = kinds else { return Ok((0..sizes.num_hidden_layers).map(default).collect()) };
    if let Some(other) = kinds.iter().find(|kind| !["full_attention", "sliding_attention"].contains(&kind.as_str())) {
        return refuse(format!(
            "layer_types: {other:?} is not supported, only \"full_attention\" and \"sliding_attention\" are"
        ));
    }
    Ok(kinds.iter().map(|kind| kind == "sliding_attention").collect())
}

fn write_layer_types(config: &DecoderConfig, object: &mut Map<String, Value>) {
    let kind = |layer| if config.window(layer).is_some() { "sliding_attention" } else { "full_attention" };
    let kinds: Vec<&str> = (0..config.num_hidden_layers).map(kind).collect();
    object.insert("layer_types".into(), json!(kinds));
}

/// Reads the windows of Qwen's layers from `max_window_layers` on, if they are used.
fn qwen_windows(keys: &Keys<'_>, sizes: &DecoderConfig) -> Result<Switches> {
    if keys.flag("use_sliding_window")? != Some(true) {
        return Ok(Switches::default());
    }
    let sliding_window = match keys.is_null("sliding_window") {
        true => None,
        false => Some(keys.size("sliding_window", 4096)?),
    };
    let first = keys.size("max_window_layers", 28)?;
    Ok(Switches {
        sliding_window,
        windowed_layers: layer_types(keys, sizes, |layer| layer >= first)?,
        ..Switches::default()
    })
}

fn write_qwen_windows(config: &DecoderConfig, object: &mut Map<String, Value>) {
    object.insert("use_sliding_window".into(), json!(config.switches.sliding_window.is_some()));
    object.insert("sliding_window".into(), json!(config.switches.sliding_window));
    object.insert("max_window_layers".into(), json!(config.num_hidden_layers));
    write_layer_types(config, object);
}

/// Reads what Gemma 2 and 3 have in common; `caps` are the defaults of the soft caps on attention
/// and on logits.
fn gemma(keys: &Keys<'_>, windowed_layers: Vec<bool>, caps: [Option<f64>; 2]) -> Result<Switches> {
    let cap = |key: &str, default| match keys.is_null(key) {
        true => Ok(None),
        false => Ok(keys.number(key)?.or(default)),
    };
    let bias = keys.flag("attention_bias")?.unwrap_or(false);
    Ok(Switches {
        norms: BlockNorms::BeforeAndAfter,
        scaled_embeddings: true,
        qkv_bias: bias,
        output_bias: bias,
        query_scalar: Some(keys.number("query_pre_attn_scalar")?.unwrap_or(256.0)),
        attention_soft_cap: cap("attn_logit_softcapping", caps[0])?,
        logit_soft_cap: cap("final_logit_softcapping", caps[1])?,
        sliding_window: Some(keys.size("sliding_window", 4096)?),
        windowed_layers,
        ..Switches::default()
    })
}

fn write_gemma(config: &DecoderConfig, object: &mut Map<String, Value>) {
    let switches = &config.switches;
    // transformers types it as an integer and refuses 256.0.
    let scalar = switches.query_scalar.map(|scalar| match scalar.fract() == 0.0 {
        true => json!(scalar as u64),
        false => json!(scalar),
    });
    object.insert("query_pre_attn_scalar".into(), json!(scalar));
    object.insert("attn_logit_softcapping".into(), json!(switches.attention_soft_cap));
    object.insert("final_logit_softcapping".into(), json!(switches.logit_soft_cap));
    object.insert("sliding_window".into(), json!(switches.sliding_window));
    write_layer_types(config, object);
}
