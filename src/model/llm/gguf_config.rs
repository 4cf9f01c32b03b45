//! A decoder's architecture from the metadata of a GGUF file, as llama.cpp's converter writes it.
//!
//! The metadata is converted to Hugging Face's keys and read as a `config.json` is, so that both
//! have the same defaults and refusals. Facts about a family that are in llama.cpp's code and in no
//! file are here. Reference: llama.cpp, src/llama-model.cpp (`load_hparams`) and
//! convert_hf_to_gguf.py.

use serde_json::{Map, Value, json};

use super::config::{DecoderConfig, Family, Llama3RopeScaling, RopeScaling, refuse};
use crate::Result;
use crate::model::formats::gguf::Header;

/// Name of the tensor with the stretch of each of RoPE's wavelengths.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Reads the architecture.
///
/// * `shape`: a tensor's shape by its GGUF name, outermost dimension first.
/// * `rope_factors`: the numbers of [`ROPE_FACTORS`], if the file has it.
///
/// # Errors
/// A missing key, a key of another type, and what itemlm does not compute, by key.
pub(super) fn read(
    header: &Header,
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    rope_factors: Option<Vec<f64>>,
) -> Result<DecoderConfig> {
    let Some(architecture) = header.text("general.architecture")? else {
        return refuse("no metadata key general.architecture");
    };
    let family = Family::from_gguf(architecture)?;
    let metadata = Metadata { header, architecture };
    let Some(&vocab_size) = shape("token_embd.weight").as_deref().and_then(<[usize]>::first) else {
        return refuse("no tensor token_embd.weight");
    };
    if metadata.size("expert_count")?.is_some_and(|experts| experts > 0) {
        return refuse(format!("{architecture}.expert_count: mixtures of experts are not supported"));
    }
    let hidden_size = metadata.required_size("embedding_length")?;
    let heads = metadata.required_size("attention.head_count")?;
    let head_dim = match metadata.size("attention.key_length")? {
        Some(size) => size,
        None if hidden_size.checked_rem(heads) == Some(0) => hidden_size / heads,
        None => {
            return refuse(format!(
                "{architecture}.embedding_length is not a multiple of {architecture}.attention.head_count"
            ));
        }
    };
    for key in ["attention.value_length", "attention.key_length_swa", "attention.value_length_swa"] {
        metadata.same_as_head(key, head_dim)?;
    }
    if header.flag(&metadata.key("attention.causal"))? == Some(false) {
        return refuse(format!("{} is false; only decoders are supported", metadata.key("attention.causal")));
    }
    let rotated = metadata.size("rope.dimension_count")?.unwrap_or(head_dim);
    if rotated != head_dim && family.model_type != "phi3" {
        return metadata.same_as_head("rope.dimension_count", head_dim).and_then(|()| refuse("RoPE's dimensions"));
    }
    let layers = metadata.required_size("block_count")?;
    let theta = metadata.number("rope.freq_base")?.unwrap_or(10_000.0);
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| drop(object.insert(key.into(), value));
    set("model_type", json!(family.model_type));
    set("vocab_size", json!(vocab_size));
    set("hidden_size", json!(hidden_size));
    set("intermediate_size", json!(metadata.required_size("feed_forward_length")?));
    set("num_hidden_layers", json!(layers));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(metadata.size("attention.head_count_kv")?.unwrap_or(heads)));
    set("head_dim", json!(head_dim));
    set("rms_norm_eps", json!(metadata.required_number("attention.layer_norm_rms_epsilon")?));
    set("rope_theta", json!(theta));
    set("rope_scaling", metadata.rope_scaling()?);
    set("partial_rotary_factor", json!(rotated as f64 / head_dim as f64));
    set("tie_word_embeddings", json!(shape("output.weight").is_none()));
    set("max_position_embeddings", json!(metadata.required_size("context_length")?));
    set("attention_bias", json!(shape("blk.0.attn_q.bias").is_some()));
    set("mlp_bias", json!(shape("blk.0.ffn_down.bias").is_some()));
    metadata.family_keys(family, [hidden_size, heads, head_dim, layers], &mut set)?;
    let mut config = DecoderConfig::from_object(&object)?;
    if let Some(factors) = rope_factors {
        if config.rope_scaling.is_some() {
            return refuse(format!("tensor {ROPE_FACTORS} beside {architecture}.rope.scaling is not supported"));
        }
        config.rope_scaling = llama3_scaling(&factors, theta, head_dim)?.map(RopeScaling::Llama3);
    }
    Ok(config)
}

/// Metadata under the architecture's name.
struct Metadata<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl Metadata<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.header.size(&self.key(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.header.number(&self.key(key))
    }

    fn required_size(&self, key: &str) -> Result<usize> {
        match self.size(key)? {
            Some(size) => Ok(size),
            None => refuse(format!("no metadata key {}", self.key(key))),
        }
    }

    fn required_number(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) => Ok(number),
            None => refuse(format!("no metadata key {}", self.key(key))),
        }
    }

    fn same_as_head(&self, key: &str, head_dim: usize) -> Result<()> {
        match self.size(key)?.filter(|size| *size != head_dim) {
            Some(other) => {
                refuse(format!("{} is {other}, not the head's {head_dim}; that is not supported", self.key(key)))
            }
            None => Ok(()),
        }
    }

    /// Returns RoPE's scaling with Hugging Face's keys. As in llama.cpp, a factor without a type is
    /// linear.
    fn rope_scaling(&self) -> Result<Value> {
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        let factor = factor.filter(|factor| *factor != 0.0).unwrap_or(1.0);
        let attention = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let kind = self.header.text(&self.key("rope.scaling.type"))?.map(str::to_owned);
        if kind.as_deref() != Some("yarn") && attention != 1.0 {
            return refuse(format!("{} is {attention}; that is not supported", self.key("rope.scaling.attn_factor")));
        }
        match kind.as_deref() {
            Some("none") => Ok(Value::Null),
            None | Some("linear") if factor == 1.0 => Ok(Value::Null),
            None | Some("linear") => Ok(json!({"rope_type": "linear", "factor": factor})),
            Some("yarn") => {
                for (key, only) in [("yarn_log_multiplier", 0.0), ("yarn_ext_factor", 1.0)] {
                    let key = format!("rope.scaling.{key}");
                    if let Some(other) = self.number(&key)?.filter(|number| *number != only) {
                        return refuse(format!("{} is {other}, not {only}; that is not supported", self.key(&key)));
                    }
                }
                let scale = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                Ok(json!({
                    "rope_type": "yarn",
                    "factor": factor,
                    "attention_factor": attention * scale,
                    "original_max_position_embeddings": self.size("rope.scaling.original_context_length")?,
                    "beta_fast": self.number("rope.scaling.yarn_beta_fast")?,
                    "beta_slow": self.number("rope.scaling.yarn_beta_slow")?,
                }))
            }
            Some(other) => refuse(format!("{} {other:?} is not supported", self.key("rope.scaling.type"))),
        }
    }

    /// Returns the keys that only some families have; `sizes` are the hidden size, heads, the
    /// head's dimension and layers.
    fn family_keys(
        &self,
        family: &Family,
        [hidden_size, heads, head_dim, layers]: [usize; 4],
        set: &mut impl FnMut(&str, Value),
    ) -> Result<()> {
        let window = self.size("attention.sliding_window")?;
        match family.model_type {
            "gemma2" | "gemma3_text" => {
                // No key has the scale of the scores: the largest model of each family has one of
                // its own.
                let largest = (family.model_type == "gemma2" && layers == 46)
                    || (family.model_type == "gemma3_text" && layers == 62);
                let scalar = if largest { hidden_size / heads.max(1) } else { head_dim };
                let scalar = match self.number("attention.scale")? {
                    Some(scale) => scale.powi(-2),
                    None => scalar as f64,
                };
                set("query_pre_attn_scalar", json!(scalar));
                if family.model_type == "gemma3_text" && window.is_none() {
                    return refuse(format!("no metadata key {}", self.key("attention.sliding_window")));
                }
                set("sliding_window", json!(window));
                // Gemma 2's first files lack these: the model's own caps are then the family's.
                for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                    if let Some(cap) = self.number(key)? {
                        set(key, json!(cap));
                    }
                }
                if let Some(pattern) = self.size("attention.sliding_window_pattern")? {
                    set("sliding_window_pattern", json!(pattern));
                }
                set("rope_local_base_freq", json!(self.number("rope.freq_base_swa")?.unwrap_or(10_000.0)));
            }
            "phi3" => set("sliding_window", json!(window.filter(|window| *window > 0))),
            _ => {
                for key in ["attn_logit_softcapping", "final_logit_softcapping", "attention.scale"] {
                    if let Some(other) = self.number(key)?.filter(|number| *number != 0.0) {
                        return refuse(format!("{} is {other}; that is not supported", self.key(key)));
                    }
                }
                if let Some(window) = window.filter(|window| *window > 0) {
                    return refuse(format!(
                        "{} is {window}; a window is not supported in this architecture",
                        self.key("attention.sliding_window")
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Returns Llama 3's scaling that gives the stored stretch of each wavelength, which is all that
/// GGUF keeps. Llama 3.1 to 3.3 differ only in the largest factor, so the scaling is theirs if it
/// gives exactly these factors.
fn llama3_scaling(stored: &[f64], rope_theta: f64, head_dim: usize) -> Result<Option<Llama3RopeScaling>> {
    if stored.len() != head_dim / 2 {
        return refuse(format!("tensor {ROPE_FACTORS}: is not {} F32 numbers", head_dim / 2));
    }
    let factor = stored.iter().copied().fold(1.0, f64::max);
    let scaling = Llama3RopeScaling {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let same = |wanted: &[f64]| stored.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= 1e-4 * b);
    if same(&vec![1.0; stored.len()]) {
        Ok(None)
    } else if same(&scaling.stretch(rope_theta, head_dim)) {
        Ok(Some(scaling))
    } else {
        refuse(format!(
            "tensor {ROPE_FACTORS}: is not the RoPE scaling of Llama 3.1, 3.2 or 3.3; that is not supported"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_s_scaling_is_recognised_by_its_factors() {
        // transformers' `_compute_llama3_parameters` for Llama 3.2: the unscaled over the scaled
        // frequencies.
        let read = |factors: &[f64]| llama3_scaling(factors, 500_000.0, 64);
        let mut factors = [[1.0; 15].as_slice(), &[1.65133, 3.29226, 9.66673], &[32.0; 14]].concat();
        let scaling = read(&factors).unwrap().unwrap();
        assert_eq!((scaling.factor, scaling.original_max_position_embeddings), (32.0, 8192));
        factors[15] = 1.7;
        assert!(read(&factors).unwrap_err().to_string().contains("rope_freqs.weight"));
        factors[15] = f64::NAN;
        assert!(read(&factors).is_err() && read(&factors[1..]).is_err());
        assert_eq!(read(&[1.0; 32]).unwrap(), None);
    }

    #[test]
    fn names_are_hugging_face_s() {
        let config = DecoderConfig::tiny(10);
        assert_eq!(
            config.name_from_gguf("blk.7.ffn_norm.weight").unwrap(),
            "model.layers.7.post_attention_layernorm.weight"
        );
        for other in ["blk.x.ffn_norm.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight", "rope_freqs.weight"] {
            assert_eq!(config.name_from_gguf(other), None);
        }
    }
}
