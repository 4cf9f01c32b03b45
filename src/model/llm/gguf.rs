//! A decoder in a GGUF file, as llama.cpp's converter writes it: architecture, tensors and tokenizer.

use std::path::Path;

use super::config::DecoderConfig;
use super::gguf_config::{self, ROPE_FACTORS};
use crate::model::formats::gguf::{Header, Tensor};
use crate::model::formats::tensor_store::{Encoding, Stored, Weights, map_file};
use crate::text::GgufVocabulary;
use crate::text::Tokenizer;
use crate::{Context, Error, Result};

/// Opens a `.gguf` file.
pub(crate) fn open(path: &Path) -> Result<(DecoderConfig, Weights, Tokenizer)> {
    let bytes = map_file(path)?;
    let header = Header::parse(&bytes).context(path.display())?;
    let (config, tokenizer) = describe(&header, &bytes).context(path.display())?;
    let mut weights = Weights::new(path);
    let file = weights.add_mapped(path, bytes);
    for Tensor { name, shape, encoding, range } in header.tensors {
        if name == ROPE_FACTORS {
            continue;
        }
        let heads = match name.rsplit('.').nth(1) {
            Some("attn_q") => Some(config.num_attention_heads),
            Some("attn_k") => Some(config.num_key_value_heads),
            _ => None,
        };
        let interleaved_heads = heads.filter(|_| config.family.gguf_interleaved);
        // The converter adds to norms what the family's forward pass adds.
        let offset = if config.family.norm_offset && shape.len() == 1 { -1.0 } else { 0.0 };
        let name = config.name_from_gguf(&name).unwrap_or(name);
        weights.add(name, Stored { file, range, shape, encoding, interleaved_heads, offset })?;
    }
    Ok((config, weights, tokenizer))
}

fn describe(header: &Header, bytes: &[u8]) -> Result<(DecoderConfig, Tokenizer)> {
    let tensor = |name: &str| header.tensors.iter().find(|tensor| tensor.name == name);
    let factors = tensor(ROPE_FACTORS).map(|factors| {
        let numbers = bytes.get(factors.range.clone()).unwrap_or_default().as_chunks().0.iter();
        match factors.encoding {
            Encoding::F32 => numbers.map(|number| f64::from(f32::from_le_bytes(*number))).collect(),
            _ => Vec::new(),
        }
    });
    let config = gguf_config::read(header, &|name| tensor(name).map(|tensor| tensor.shape.clone()), factors)?;
    Ok((config, tokenizer(header, bytes)?))
}

fn tokenizer(header: &Header, bytes: &[u8]) -> Result<Tokenizer> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = header.text(&key("model"))? else {
        return refuse("no metadata key tokenizer.ggml.model");
    };
    let Some(tokens) = header.strings(bytes, &key("tokens"))? else {
        return refuse("no metadata key tokenizer.ggml.tokens");
    };
    let id = |name: &str| match header.size(&key(name))? {
        Some(id) if id < tokens.len() => Ok(Some(id as u32)),
        Some(id) => refuse(format!("tokenizer.ggml.{name} is {id}, but there are {} tokens", tokens.len())),
        None => Ok(None),
    };
    let Some(eos) = id("eos_token_id")? else {
        return refuse("no metadata key tokenizer.ggml.eos_token_id");
    };
    let mut special = vec![eos];
    for name in ["bos_token_id", "unknown_token_id", "padding_token_id"] {
        special.extend(id(name)?);
    }
    Tokenizer::from_gguf(GgufVocabulary {
        model: model.to_owned(),
        pre: header.text(&key("pre"))?.map(str::to_owned),
        scores: header.numbers(bytes, &key("scores"))?,
        types: header.numbers(bytes, &key("token_type"))?.unwrap_or_default(),
        merges: header.strings(bytes, &key("merges"))?,
        tokens,
        eos,
        special,
    })
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::failed(message))
}
