//! A language model written as a Hugging Face directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Map, json};

use super::config::DecoderConfig;
use super::open::check_fit;
use crate::core::files::{persist, temporary_beside, write_atomic};
use crate::text::Tokenizer;
use crate::{Context, Error, Result};

/// A tensor's name, shape and values, row-major.
pub type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// Writes a Hugging Face directory that [`super::open::open_llm`] and transformers load:
/// `model.safetensors` (f32), `tokenizer.json`, `tokenizer_config.json` and, last, `config.json`.
/// Each file is whole or absent, and replaces one of the same name. Tensors may come in any order.
///
/// # Errors
/// Those of `tensors`; a tensor that `config` does not have, or a missing or misshapen one; a
/// failed write.
pub fn save_llm_dir(
    dir: &Path,
    config: &DecoderConfig,
    tensors: impl Iterator<Item = Result<NamedTensor>>,
    tokenizer: &Tokenizer,
) -> Result<()> {
    config.check().context(dir.display())?;
    check_fit(tokenizer, config).context(dir.display())?;
    fs::create_dir_all(dir).context(dir.display())?;
    write_safetensors(&dir.join("model.safetensors"), config, tensors)?;
    write_atomic(&dir.join("tokenizer.json"), tokenizer.to_json().as_bytes())?;
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.token(tokenizer.eos()),
        "clean_up_tokenization_spaces": false,
    });
    write_atomic(&dir.join("tokenizer_config.json"), format!("{tokenizer_config:#}\n").as_bytes())?;
    write_atomic(&dir.join("config.json"), config.to_json(tokenizer.eos()).as_bytes())
}

/// Writes the tensors to a file one by one, so that a model is never in memory twice.
fn write_safetensors(
    path: &Path,
    config: &DecoderConfig,
    tensors: impl Iterator<Item = Result<NamedTensor>>,
) -> Result<()> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut waiting: BTreeMap<String, (Vec<usize>, u64)> = BTreeMap::new();
    let mut end = 0u64;
    for (name, shape) in config.tensors() {
        let start = end;
        end += shape.iter().product::<usize>() as u64 * 4;
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
        waiting.insert(name, (shape, start));
    }
    let mut header = serde_json::to_vec(&header).context(path.display())?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = temporary_beside(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).context(path.display())?;
    file.write_all(&header).context(path.display())?;
    let data = 8 + header.len() as u64;
    for tensor in tensors {
        let (name, shape, values) = tensor?;
        let place = format!("{}: tensor {name}", path.display());
        let Some((needed, offset)) = waiting.remove(&name) else {
            return Err(Error::failed(format!("{place} is not one of this model's, or comes twice")));
        };
        if shape != needed || values.len() != needed.iter().product::<usize>() {
            let length = values.len();
            return Err(Error::failed(format!("{place} has shape {shape:?} and {length} values, not {needed:?}")));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::failed(format!("{place} holds {value}; it is not written")));
        }
        file.seek(SeekFrom::Start(data + offset)).context(&place)?;
        let mut bytes = Vec::with_capacity(values.len() * 4);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        file.write_all(&bytes).context(&place)?;
    }
    if let Some((name, (shape, _))) = waiting.first_key_value() {
        return Err(Error::failed(format!("{}: no tensor {name} {shape:?} was given", path.display())));
    }
    persist(file, path)
}
