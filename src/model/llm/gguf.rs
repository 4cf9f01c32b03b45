//! A decoder in a GGUF file, as llama.cpp's converter writes it: architecture, tensors and
//! tokenizer.

use std::path::Path;

use super::config::DecoderConfig;
use super::gguf_config::{self, ROPE_FACTORS};
use crate::model::formats::gguf::{Gguf, GgufFile, GgufTensor};
use crate::model::formats::gguf_tokenizer;
use crate::model::formats::tensor_store::{Encoding, StoredTensor, Weights};
use crate::text::Tokenizer;
use crate::{Context, Error, Result};

/// Opens a `.gguf` file, with all its parts if it is split. `legacy` is
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
            let heads = match name.rsplit('.').nth(1) {
                Some("attn_q") => Some(config.num_attention_heads),
                Some("attn_k") => Some(config.num_key_value_heads),
                _ => None,
            };
            let interleaved_heads = heads.filter(|_| config.family.gguf_interleaved);
            // The converter adds to norms the 1 that the family's forward pass adds.
            let offset = if config.family.norm_offset && shape.len() == 1 { -1.0 } else { 0.0 };
            let name = config.name_from_gguf(&name).unwrap_or(name);
            weights.add(name, StoredTensor { file, range, shape, encoding, interleaved_heads, offset })?;
        }
    }
    Ok((config, weights, tokenizer))
}

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
    let factors = gguf.tensor(ROPE_FACTORS).map(|(factors, bytes)| match factors.encoding {
        Encoding::F32 => bytes.as_chunks().0.iter().map(|number| f64::from(f32::from_le_bytes(*number))).collect(),
        _ => Vec::new(),
    });
    let shape = |name: &str| gguf.tensor(name).map(|(tensor, _)| tensor.shape.clone());
    let config = gguf_config::read(header, &shape, factors)?;
    let prefix = format!("{}.", config.family.gguf);
    if let Some(key) = header.unread_key(&prefix, &DESCRIPTIVE) {
        return refuse(format!("metadata key {key} is not supported; use the Hugging Face directory"));
    }
    Ok((config, gguf_tokenizer::read(header, &gguf.first.bytes, legacy)?))
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::failed(message))
}
