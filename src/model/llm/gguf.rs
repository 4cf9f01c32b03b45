//! A Llama in a GGUF file, as llama.cpp's converter writes it: sizes, tensors and tokenizer.

use std::path::Path;

use super::config::{DecoderConfig, Llama3RopeScaling};
use crate::model::formats::gguf::{Gguf, GgufFile, GgufTensor};
use crate::model::formats::gguf_tokenizer;
use crate::model::formats::tensor_store::{Encoding, StoredTensor, Weights};
use crate::text::Tokenizer;
use crate::{Context, Error, Result};

/// Opens a `.gguf` file, with all its parts where it is split; the tokenizer by `legacy` as
/// [`gguf_tokenizer::GgufVocabulary::legacy`].
pub(crate) fn open(path: &Path, legacy: bool) -> Result<(DecoderConfig, Weights, Tokenizer)> {
    let gguf = Gguf::open(path)?;
    let (config, tokenizer) = describe(&gguf, legacy).context(path.display())?;
    let mut weights = Weights::new(path);
    for GgufFile { path, bytes, header } in gguf.into_parts() {
        let file = weights.add_mapped(&path, bytes);
        for GgufTensor { name, shape, encoding, range } in header.tensors {
            if name == ROPE_FACTORS {
                continue;
            }
            let interleaved_heads = match name.rsplit('.').nth(1) {
                Some("attn_q") => Some(config.num_attention_heads),
                Some("attn_k") => Some(config.num_key_value_heads),
                _ => None,
            };
            let name = hugging_face_name(&name).unwrap_or(name);
            weights.add(name, StoredTensor { file, range, shape, encoding, interleaved_heads })?;
        }
    }
    Ok((config, weights, tokenizer))
}

const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Keys of an architecture that describe the file, or repeat what the tensors' shapes say.
const DESCRIPTIVE: [&str; 6] = [
    "vocab_size",
    "tensor_data_layout",
    "expert_used_count",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.dimension_sections",
];

fn describe(gguf: &Gguf, legacy: bool) -> Result<(DecoderConfig, Tokenizer)> {
    let header = gguf.header();
    if let Some(kind) = header.text("general.type")?.filter(|kind| *kind != "model") {
        return refuse(format!("general.type is {kind:?}; give the language model itself"));
    }
    match header.text("general.architecture")? {
        Some("llama") => {}
        Some(other) => {
            return refuse(format!("general.architecture {other:?} is not supported, only \"llama\" is"));
        }
        None => return refuse("no metadata key general.architecture"),
    }
    let config = config(gguf)?;
    config.check()?;
    if let Some(key) = header.unread("llama.", &DESCRIPTIVE) {
        return refuse(format!("metadata key {key} is not supported; use the Hugging Face directory"));
    }
    Ok((config, gguf_tokenizer::read(header, &gguf.first.bytes, legacy)?))
}

fn config(gguf: &Gguf) -> Result<DecoderConfig> {
    let header = gguf.header();
    let required = |key: &str| match header.size(key)? {
        Some(size) => Ok(size),
        None => refuse(format!("no metadata key {key}")),
    };
    let Some(&vocab_size) = gguf.tensor("token_embd.weight").and_then(|(table, _)| table.shape.first()) else {
        return refuse("no tensor token_embd.weight");
    };
    if header.size("llama.expert_count")?.is_some_and(|experts| experts > 0) {
        return refuse("llama.expert_count: mixtures of experts are not supported");
    }
    if let Some(kind) = header.text("llama.rope.scaling.type")?.filter(|kind| *kind != "none") {
        return refuse(format!("llama.rope.scaling.type {kind:?} is not supported"));
    }
    if header.number("llama.rope.scaling.factor")?.is_some_and(|factor| factor != 1.0 && factor != 0.0) {
        return refuse("llama.rope.scaling.factor is not supported");
    }
    if header.number("llama.rope.scale_linear")?.is_some_and(|scale| scale != 1.0) {
        return refuse("llama.rope.scale_linear is not supported");
    }
    let hidden_size = required("llama.embedding_length")?;
    let num_attention_heads = required("llama.attention.head_count")?;
    let whole = hidden_size.checked_rem(num_attention_heads) == Some(0);
    let head_dim = match header.size("llama.attention.key_length")? {
        Some(size) => size,
        None if whole => hidden_size / num_attention_heads,
        None => {
            return refuse("llama.embedding_length is not a multiple of llama.attention.head_count");
        }
    };
    for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
        if let Some(other) = header.size(key)?.filter(|size| *size != head_dim) {
            return refuse(format!("{key} is {other}, not the head's {head_dim}; that is not supported"));
        }
    }
    let rope_theta = header.number("llama.rope.freq_base")?.unwrap_or(10_000.0);
    let Some(rms_norm_eps) = header.number("llama.attention.layer_norm_rms_epsilon")? else {
        return refuse("no metadata key llama.attention.layer_norm_rms_epsilon");
    };
    let rope_scaling = match gguf.tensor(ROPE_FACTORS) {
        Some((factors, bytes)) => rope_scaling(factors, bytes, rope_theta, head_dim)?,
        None => None,
    };
    Ok(DecoderConfig {
        vocab_size,
        hidden_size,
        intermediate_size: required("llama.feed_forward_length")?,
        num_hidden_layers: required("llama.block_count")?,
        num_attention_heads,
        num_key_value_heads: header.size("llama.attention.head_count_kv")?.unwrap_or(num_attention_heads),
        head_dim,
        rms_norm_eps,
        rope_theta,
        rope_scaling,
        tie_word_embeddings: gguf.tensor("output.weight").is_none(),
        max_position_embeddings: required("llama.context_length")?,
    })
}

/// GGUF keeps only the factor of each wavelength. Llama 3.1 to 3.3 differ in nothing but the
/// largest, so the scaling is theirs if it gives exactly these factors.
fn rope_scaling(
    factors: &GgufTensor,
    bytes: &[u8],
    rope_theta: f64,
    head_dim: usize,
) -> Result<Option<Llama3RopeScaling>> {
    let stored: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    if factors.encoding != Encoding::F32 || stored.len() != head_dim / 2 {
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

/// The Hugging Face name of a llama.cpp tensor, or nothing if a Llama has no such tensor.
fn hugging_face_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.weight"))
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::failed(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(factors: &[f64]) -> Result<Option<Llama3RopeScaling>> {
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| (*factor as f32).to_le_bytes()).collect();
        let range = 0..bytes.len();
        let tensor =
            GgufTensor { name: ROPE_FACTORS.into(), shape: vec![factors.len()], encoding: Encoding::F32, range };
        rope_scaling(&tensor, &bytes, 500_000.0, 64)
    }

    #[test]
    fn llama_3_s_scaling_is_recognised_by_its_factors() {
        // transformers' `_compute_llama3_parameters` for Llama 3.2: the unscaled over the scaled
        // frequencies.
        let mut factors = [[1.0; 15].as_slice(), &[1.65133, 3.29226, 9.66673], &[32.0; 14]].concat();
        let scaling = read(&factors).unwrap().unwrap();
        assert_eq!((scaling.factor, scaling.original_max_position_embeddings), (32.0, 8192));
        factors[15] = 1.7;
        assert!(read(&factors).unwrap_err().to_string().contains("rope_freqs.weight"));
        factors[15] = f64::NAN;
        assert!(read(&factors).is_err() && read(&factors[1..]).is_err());
        assert_eq!(read(&[1.0; 32]), Ok(None));
    }

    #[test]
    fn names_are_hugging_face_s() {
        assert_eq!(
            hugging_face_name("blk.7.ffn_norm.weight").unwrap(),
            "model.layers.7.post_attention_layernorm.weight"
        );
        for other in ["blk.x.ffn_norm.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight", "rope_freqs.weight"] {
            assert_eq!(hugging_face_name(other), None);
        }
    }
}
