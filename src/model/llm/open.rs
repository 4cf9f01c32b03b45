//! A language model on disk, opened: its configuration, tensors and tokenizer.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::config::DecoderConfig;
use super::gguf;
use crate::core::files::hex;
use crate::core::log::log;
use crate::model::formats::safetensors;
use crate::model::formats::tensor_store::{Weights, read_text};
use crate::text::Tokenizer;
use crate::{Context, Error, Result};

const LONGEST_CONFIG: u64 = 16 << 20;

/// An opened language model.
pub struct Llm {
    /// The architecture.
    pub config: DecoderConfig,
    /// The tensors, on disk until taken.
    pub weights: Weights,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// SHA-256 (hex) over the sizes, every tensor and the tokenizer: it identifies the model that a
    /// run was trained on.
    pub fingerprint: String,
}

/// Opens a Hugging Face directory (`config.json`, `model.safetensors` or its shards,
/// `tokenizer.json`) or one `.gguf` file (or a part of a split one), and checks that its parts fit
/// one another.
///
/// # Errors
/// One line naming the file and the key or tensor: unreadable, truncated or lying files, another
/// architecture, missing, unexpected or misshapen tensors, a tokenizer that does not fit the model.
pub fn open_llm(path: &Path) -> Result<Llm> {
    open(path, None, false)
}

/// Opens a model as [`open_llm`] does, with only the first `layers` of its blocks, if that is given
/// (SLMRec, arXiv 2405.17890: the last blocks of an LLM add little to recommendation).
///
/// # Errors
/// Those of [`open_llm`]; more layers than the model has, or 0.
pub fn open_llm_layers(path: &Path, layers: Option<usize>) -> Result<Llm> {
    open(path, layers, false)
}

/// Opens the model that a run was trained on, whose fingerprint then was `trained`. A run from
/// before itemlm read the publishers' splits of GGUF files, or the files beside `tokenizer.json`,
/// keeps the tokens that it was trained on.
///
/// # Errors
/// Those of [`open_llm_layers`]. It is no error if the model is not the run's: the caller compares
/// fingerprints.
pub fn open_llm_of_run(path: &Path, layers: Option<usize>, trained: &str) -> Result<Llm> {
    let llm = open(path, layers, false)?;
    if llm.fingerprint == trained {
        return Ok(llm);
    }
    match open(path, layers, true) {
        Ok(legacy) if legacy.fingerprint == trained => Ok(legacy),
        _ => Ok(llm),
    }
}

fn open(path: &Path, layers: Option<usize>, legacy: bool) -> Result<Llm> {
    let (mut config, mut weights, tokenizer) = if path.is_dir() {
        let config_path = path.join("config.json");
        if !config_path.exists() {
            return Err(no_config(path));
        }
        if path.join("adapter_config.json").exists() {
            log(format!(
                "note: {}: adapter_config.json is not read beside a whole model; an adapter is given as llm.adapter \
                 of a run file",
                path.display()
            ));
        }
        let text = read_text(&config_path, LONGEST_CONFIG)?;
        let mut config = DecoderConfig::from_json(&config_path, &text)?;
        let mut weights = safetensors::open(path)?;
        weights.complete_names("embed_tokens.weight", "model.", &["lm_head.weight"])?;
        if config.tie_word_embeddings && !legacy && weights.differ("model.embed_tokens.weight", "lm_head.weight")? {
            log(format!(
                "note: {}: lm_head.weight differs from the embeddings, so it is read, though {} ties them",
                path.display(),
                config_path.display()
            ));
            config.tie_word_embeddings = false;
        }
        let weights = weights.check(config.tensors(), config.tie_word_embeddings)?;
        let tokenizer = if legacy { Tokenizer::from_dir_alone(path)? } else { Tokenizer::from_dir(path)? };
        (config, weights, tokenizer)
    } else {
        let (config, weights, tokenizer) = gguf::open(path, legacy)?;
        let weights = weights.check(config.tensors(), config.tie_word_embeddings)?;
        (config, weights, tokenizer)
    };
    check_fit(&tokenizer, &config).context(path.display())?;
    if let Some(layers) = layers {
        config.keep_layers(layers).map_err(|error| Error::usage(format!("{}: {error}", path.display())))?;
        weights.keep_layers(layers);
    }
    let fingerprint = fingerprint(&config, &weights, &tokenizer);
    let tokenizer = tokenizer.with_embeddings(config.vocab_size);
    Ok(Llm { config, weights, tokenizer, fingerprint })
}

/// Returns an error that says what a directory without `config.json` holds, and what to do.
fn no_config(dir: &Path) -> Error {
    let names =
        || std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut models: Vec<String> = names().filter(|name| name.ends_with(".gguf")).collect();
    models.sort();
    let place = dir.display();
    if let Some(model) = models.first() {
        return Error::failed(format!(
            "{place}: holds {model} and no config.json; give the file itself: {place}/{model}"
        ));
    }
    match names().find(|name| name == "adapter_config.json" || name == "params.json") {
        Some(name) if name == "adapter_config.json" => Error::failed(format!(
            "{place}: holds a PEFT adapter, not a model; give its base model as llm.path, and the adapter as \
             llm.adapter of a run file"
        )),
        Some(name) => Error::failed(format!(
            "{place}: holds {name} and no config.json; convert it to a Hugging Face directory (transformers, \
             convert_llama_weights_to_hf.py)"
        )),
        None => Error::failed(format!("{place}/config.json: there is no such file; a model's directory needs it")),
    }
}

/// Opens the tensors of a Hugging Face directory and checks them against `config`.
///
/// # Errors
/// Missing, unexpected and misshapen tensors, damaged files.
pub fn open_weights(dir: &Path, config: &DecoderConfig) -> Result<Weights> {
    safetensors::open(dir)?.check(config.tensors(), config.tie_word_embeddings)
}

/// Checks that the tokenizer fits the embeddings. A hundredth of a vocabulary may lie beyond the
/// embeddings, and added tokens too: texts that need them are refused later.
pub(super) fn check_fit(tokenizer: &Tokenizer, config: &DecoderConfig) -> Result<()> {
    let rows = config.vocab_size;
    let beyond = tokenizer.vocabulary_beyond(rows) > (rows / 100).max(1);
    let misfits = [
        ("has token id", tokenizer.largest_id(), beyond),
        ("ends with token id", tokenizer.eos(), tokenizer.eos() as usize >= rows),
    ];
    match misfits.into_iter().find(|(.., misfit)| *misfit) {
        Some((what, id, _)) => Err(Error::failed(format!(
            "the tokenizer does not fit the model: it {what} {id}, but the model has {rows} embeddings"
        ))),
        None => Ok(()),
    }
}

fn fingerprint(config: &DecoderConfig, weights: &Weights, tokenizer: &Tokenizer) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(config.to_json(tokenizer.eos()).as_bytes());
    part(tokenizer.to_json().as_bytes());
    for (description, bytes) in weights.parts() {
        part(description.as_bytes());
        part(bytes);
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests;
