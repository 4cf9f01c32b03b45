//! Vectors of sentences by a BERT-family encoder, as sentence-transformers computes them.
//!
//! Reference: sentence-transformers, `models/Pooling.py` and `models/Dense.py`; the files of a
//! directory are read as `SentenceTransformer(DIR)` reads them: `modules.json`,
//! `sentence_bert_config.json` (longest text), `1_Pooling/config.json`, `2_Dense`,
//! `config_sentence_transformers.json` (prompt).

use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::activation::{relu, tanh};
use serde_json::{Map, Value};

use super::{Bert, BertConfig, Linear, Pooling, unit_length};
use crate::batch::TextBatch;
use crate::core::log::log;
use crate::tensor::to_vec;
use crate::text::BertTokenizer;
use crate::{Context, Error, Result};

/// Longest text, in tokens, where the directory says nothing: as all-MiniLM-L6-v2.
const LONGEST: usize = 256;

/// Number of texts encoded together.
const BATCH: usize = 32;

/// A BERT-family encoder of sentences.
#[derive(Debug)]
pub struct SentenceEncoder<B: Backend> {
    bert: Bert<B>,
    tokenizer: BertTokenizer,
    settings: Settings,
    dense: Vec<Dense<B>>,
    dim: usize,
}

/// Settings in the directory's files, about texts and their vectors.
#[derive(Debug, PartialEq)]
struct Settings {
    /// Directory of the encoder itself.
    transformer: PathBuf,
    pooling: Pooling,
    /// Directories of further linear layers.
    dense: Vec<PathBuf>,
    /// Longest text, in tokens; the rest is cut.
    longest: Option<usize>,
    lower_case: bool,
    /// Text put before each text.
    prompt: String,
}

/// A linear layer over pooled vectors.
#[derive(Debug)]
struct Dense<B: Backend> {
    linear: Linear<B>,
    activation: Activation,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Activation {
    Identity,
    Tanh,
    Relu,
}

impl<B: Backend> SentenceEncoder<B> {
    /// Reads a directory of sentence-transformers, or a plain BERT of Hugging Face (mean pooling
    /// over 256 tokens).
    ///
    /// # Errors
    /// Damaged or missing files, another architecture, a module that is not supported, a tokenizer
    /// with more tokens than the model.
    pub fn open(dir: &Path, device: &B::Device) -> Result<Self> {
        let settings = Settings::read(dir)?;
        let dir = settings.transformer.as_path();
        let (config, tokenizer) = (BertConfig::from_dir(dir)?, BertTokenizer::from_dir(dir)?);
        if tokenizer.largest_id() as usize >= config.vocab_size {
            let (id, rows) = (tokenizer.largest_id(), config.vocab_size);
            return Err(Error::failed(format!(
                "{}: the tokenizer has an id {id}, the model {rows} tokens",
                dir.display()
            )));
        }
        let longest = config.max_position_embeddings.min(settings.longest.unwrap_or(LONGEST));
        if longest < 2 {
            return Err(Error::failed(format!("{}: at most {longest} tokens a text, no text fits", dir.display())));
        }
        let mut width = config.hidden_size;
        let mut dense = Vec::new();
        for dir in &settings.dense {
            let layer = Dense::open(dir, width, device)?;
            [width, _] = layer.linear.weight.dims();
            dense.push(layer);
        }
        let bert = Bert::load(dir, &config, device)?;
        Ok(Self { bert, tokenizer, settings: Settings { longest: Some(longest), ..settings }, dense, dim: width })
    }

    /// Computes the cosine of each pair of texts. Long texts are cut.
    ///
    /// # Errors
    /// The tokenizer refuses a text; a device that failed.
    pub fn cosines(&self, pairs: &[(&str, &str)]) -> Result<Vec<f64>> {
        let mut cosines = Vec::with_capacity(pairs.len());
        for pairs in pairs.chunks(BATCH) {
            let decoded = self.vectors(pairs.iter().map(|(decoded, _)| *decoded))?;
            let original = self.vectors(pairs.iter().map(|(_, original)| *original))?;
            let products = to_vec((decoded * original).sum_dim(1), "the texts' cosines")?;
            cosines.extend(products.into_iter().map(f64::from));
        }
        Ok(cosines)
    }

    /// Returns the length of a sentence's vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Encodes texts as vectors of length 1. Long texts are cut.
    ///
    /// # Shapes
    /// Returns `[texts, dim]`, row after row.
    ///
    /// # Errors
    /// The tokenizer refuses a text; a device that failed.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        let mut vectors = Vec::with_capacity(texts.len() * self.dim);
        for texts in texts.chunks(BATCH) {
            vectors.extend(to_vec(self.vectors(texts.iter().copied())?, "sentence vectors")?);
        }
        Ok(vectors)
    }

    /// Encodes texts as vectors of length 1.
    ///
    /// # Shapes
    /// Output: `[texts, width]`.
    fn vectors<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Result<Tensor<B, 2>> {
        let Settings { longest, lower_case, prompt, pooling, .. } = &self.settings;
        let encode = |text: &str| {
            let text = format!("{prompt}{text}");
            let text = if *lower_case { text.to_lowercase() } else { text };
            self.tokenizer.encode(&text, longest.unwrap_or(LONGEST))
        };
        let tokens = texts.map(encode).collect::<Result<Vec<_>>>()?;
        let pooled = self.bert.pool(&TextBatch::new(tokens.iter().map(Vec::as_slice)), *pooling);
        Ok(unit_length(self.dense.iter().fold(pooled, |x, dense| dense.forward(x))))
    }
}

impl<B: Backend> Dense<B> {
    fn open(dir: &Path, width: usize, device: &B::Device) -> Result<Self> {
        let path = dir.join("config.json");
        let config = object(&path)?;
        let size = |key: &str| config.get(key).and_then(Value::as_u64).filter(|size| (1..1 << 16).contains(size));
        let (Some(inputs), Some(outputs)) = (size("in_features"), size("out_features")) else {
            return Err(Error::failed(format!("{}: in_features and out_features are no sizes", path.display())));
        };
        if inputs != width as u64 {
            return Err(Error::failed(format!(
                "{}: in_features is {inputs}, but it gets vectors of {width}",
                path.display()
            )));
        }
        for key in ["module_input_name", "module_output_name"] {
            let name = config.get(key).filter(|name| !name.is_null() && *name != "sentence_embedding");
            if let Some(other) = name {
                return Err(Error::failed(format!("{}: {key} is {other}; that is not supported", path.display())));
            }
        }
        let name = config.get("activation_function").and_then(Value::as_str).unwrap_or("Tanh");
        let activation = match name.rsplit('.').next().unwrap_or(name) {
            "Identity" => Activation::Identity,
            "Tanh" => Activation::Tanh,
            "ReLU" => Activation::Relu,
            other => {
                return Err(Error::failed(format!(
                    "{}: activation_function {other} is not supported, only Identity, Tanh and ReLU are",
                    path.display()
                )));
            }
        };
        let has_bias = config.get("bias").and_then(Value::as_bool).unwrap_or(true);
        Ok(Self { linear: Linear::open(dir, "linear", outputs as usize, width, has_bias, device)?, activation })
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = self.linear.forward(x);
        match self.activation {
            Activation::Identity => x,
            Activation::Tanh => tanh(x),
            Activation::Relu => relu(x),
        }
    }
}

impl Settings {
    fn read(dir: &Path) -> Result<Self> {
        let mut settings = Self {
            transformer: dir.to_owned(),
            pooling: Pooling::Mean,
            dense: Vec::new(),
            longest: None,
            lower_case: false,
            prompt: prompt(dir)?,
        };
        let modules = modules(dir)?;
        let pools = modules.iter().any(|(kind, _)| kind == "Pooling");
        for (kind, path) in modules {
            match kind.as_str() {
                "Transformer" => settings.transformer = path,
                "Pooling" => settings.pooling = pooling(&path.join("config.json"), !settings.prompt.is_empty())?,
                "Dense" => settings.dense.push(path),
                // Cosines do not depend on it.
                "Normalize" => {}
                other => {
                    return Err(Error::failed(format!("{}: the module {other} is not supported", path.display())));
                }
            }
        }
        let path = settings.transformer.join("sentence_bert_config.json");
        if path.exists() {
            let config = object(&path)?;
            settings.longest = config.get("max_seq_length").and_then(Value::as_u64).map(|longest| longest as usize);
            settings.lower_case = config.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false);
        }
        if pools && settings.longest.is_none() {
            settings.longest = Some(tokenizer_length(&settings.transformer)?);
        }
        if settings.longest.is_none() {
            log(format!(
                "note: {}: neither 1_Pooling nor sentence_bert_config.json; a text's vector is the mean over its \
                 first {LONGEST} tokens",
                dir.display()
            ));
        }
        Ok(settings)
    }
}

/// Lists the modules of a directory, by the last part of their type, with their directories: those
/// of `modules.json`, or else those whose directory has the name of one (`1_Pooling`).
fn modules(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let path = dir.join("modules.json");
    if path.exists() {
        let text = fs::read_to_string(&path).context(path.display())?;
        let modules: Vec<Map<String, Value>> = serde_json::from_str(&text).context(path.display())?;
        return modules
            .iter()
            .map(|module| {
                let text = |key: &str| module.get(key).and_then(Value::as_str);
                let (Some(kind), Some(part)) = (text("type"), text("path")) else {
                    return Err(Error::failed(format!("{}: a module without type or path", path.display())));
                };
                if Path::new(part).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                    return Err(Error::failed(format!("{}: {part:?} is not a directory beside it", path.display())));
                }
                Ok((kind.rsplit('.').next().unwrap_or(kind).to_owned(), dir.join(part)))
            })
            .collect();
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).context(dir.display())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let module =
            name.split_once('_').and_then(|(number, kind)| Some((number.parse::<u32>().ok()?, kind.to_owned())));
        if let Some((number, kind)) = module.filter(|_| entry.path().is_dir()) {
            found.push((number, kind, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, kind, path)| (kind, path)).collect())
}

/// Reads the longest text where `sentence_bert_config.json` gives none: `model_max_length` of
/// `tokenizer_config.json`, of which the model's own longest takes what is above it
/// (sentence-transformers, `models/Transformer.py`).
fn tokenizer_length(dir: &Path) -> Result<usize> {
    let path = dir.join("tokenizer_config.json");
    let config = if path.exists() { object(&path)? } else { Map::new() };
    // transformers writes 1e30 for "no limit".
    Ok(config.get("model_max_length").and_then(Value::as_u64).map_or(usize::MAX, |longest| longest as usize))
}

/// Reads how a text's hidden states become one vector.
fn pooling(path: &Path, has_prompt: bool) -> Result<Pooling> {
    let config = object(path)?;
    let place = path.display();
    if has_prompt && config.get("include_prompt").and_then(Value::as_bool) == Some(false) {
        return Err(Error::failed(format!("{place}: include_prompt = false is not supported")));
    }
    let by_name = |name: &str| match name {
        "cls" => Some(Pooling::Cls),
        "mean" => Some(Pooling::Mean),
        "mean_sqrt_len" | "mean_sqrt_len_tokens" => Some(Pooling::MeanSqrtLength),
        "weightedmean" => Some(Pooling::WeightedMean),
        "lasttoken" => Some(Pooling::LastToken),
        _ => None,
    };
    let modes: Vec<String> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode.clone()],
        Some(Value::Array(modes)) => modes.iter().filter_map(|mode| Some(mode.as_str()?.to_owned())).collect(),
        _ => {
            let set = config.iter().filter(|(_, value)| **value == Value::Bool(true));
            let modes = set.filter_map(|(key, _)| key.strip_prefix("pooling_mode_"));
            modes
                .map(|mode| mode.strip_suffix("_tokens").or(mode.strip_suffix("_token")).unwrap_or(mode).to_owned())
                .collect()
        }
    };
    match modes.as_slice() {
        [] => Ok(Pooling::Mean),
        [mode] => by_name(mode).ok_or_else(|| Error::failed(format!("{place}: pooling by {mode} is not supported"))),
        modes => Err(Error::failed(format!("{place}: pooling by {} together is not supported", modes.join(", ")))),
    }
}

/// Reads the prompt: the text that `config_sentence_transformers.json` puts before each text.
fn prompt(dir: &Path) -> Result<String> {
    let path = dir.join("config_sentence_transformers.json");
    if !path.exists() {
        return Ok(String::new());
    }
    let config = object(&path)?;
    let Some(name) = config.get("default_prompt_name").and_then(Value::as_str) else { return Ok(String::new()) };
    match config.get("prompts").and_then(|prompts| prompts.get(name)).and_then(Value::as_str) {
        Some(prompt) => Ok(prompt.to_owned()),
        None => Err(Error::failed(format!("{}: default_prompt_name {name:?} is not among prompts", path.display()))),
    }
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    let text = fs::read_to_string(path).context(path.display())?;
    serde_json::from_str(&text).context(path.display())
}

#[cfg(test)]
mod tests {
    use burn::Dispatch;
    use serde_json::json;

    use super::*;
    use crate::device::BackendName;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/bert")
    }

    /// The tiny encoder of the fixtures: cosines are products of its sentence vectors, whatever
    /// texts are encoded together.
    #[test]
    fn cosines_of_texts() {
        let device = BackendName::Cpu.device().unwrap();
        let encoder = SentenceEncoder::<Dispatch>::open(&fixture(), &device).unwrap();
        let (long, short) = ("a red pen of many words ".repeat(200), "blue ink");
        let pairs = [(short, short), (long.as_str(), short), (short, &long), ("", short), (long.as_str(), &long)];
        let cosines = encoder.cosines(&pairs).unwrap();
        for (&pair, &cosine) in pairs.iter().zip(&cosines) {
            let alone = encoder.cosines(&[pair]).unwrap();
            assert!(
                (alone[0] - cosine).abs() < 1e-5 && (-1.001..1.001).contains(&cosine),
                "{cosine} beside others, {alone:?} alone"
            );
        }
        assert!((cosines[0] - 1.0).abs() < 1e-5 && (cosines[4] - 1.0).abs() < 1e-5);
        assert!((cosines[1] - cosines[2]).abs() < 1e-5 && cosines[1] < 0.999);
        assert!(encoder.cosines(&[]).unwrap().is_empty());
        assert!(SentenceEncoder::<Dispatch>::open(Path::new("/nowhere"), &device).is_err());
    }

    #[test]
    fn the_directory_s_own_files_decide() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, value: Value| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value.to_string()).unwrap();
        };
        let read = || Settings::read(dir.path());
        assert_eq!((read().unwrap().pooling, read().unwrap().longest), (Pooling::Mean, None));
        put("sentence_bert_config.json", json!({"max_seq_length": 8, "do_lower_case": true}));
        assert_eq!((read().unwrap().longest, read().unwrap().lower_case), (Some(8), true));
        for (key, expected) in [
            ("pooling_mode_cls_token", Pooling::Cls),
            ("pooling_mode_mean_tokens", Pooling::Mean),
            ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLength),
            ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
            ("pooling_mode_lasttoken", Pooling::LastToken),
        ] {
            put(
                "1_Pooling/config.json",
                json!({"word_embedding_dimension": 32, key: true, "pooling_mode_max_tokens": false}),
            );
            assert_eq!(read().unwrap().pooling, expected, "{key}");
        }
        put("1_Pooling/config.json", json!({"pooling_mode": "cls"}));
        assert_eq!(read().unwrap().pooling, Pooling::Cls);
        for bad in [
            json!({"pooling_mode_max_tokens": true}),
            json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
        ] {
            put("1_Pooling/config.json", bad);
            let error = read().unwrap_err().to_string();
            assert!(error.contains("1_Pooling/config.json: pooling by"), "{error}");
        }
        put("1_Pooling/config.json", json!({"pooling_mode_cls_token": true}));
        put(
            "config_sentence_transformers.json",
            json!({"prompts": {"query": "query: "}, "default_prompt_name": "query"}),
        );
        put("2_Dense/config.json", json!({"in_features": 32, "out_features": 8}));
        let settings = read().unwrap();
        assert_eq!((settings.prompt.as_str(), settings.dense.len()), ("query: ", 1));
        // Without max_seq_length the tokenizer's own longest text, where the modules are there.
        put("sentence_bert_config.json", json!({"max_seq_length": null}));
        assert_eq!(read().unwrap().longest, Some(usize::MAX));
        put("tokenizer_config.json", json!({"model_max_length": 128}));
        assert_eq!(read().unwrap().longest, Some(128));
        put("tokenizer_config.json", json!({"model_max_length": 1e30}));
        assert_eq!(read().unwrap().longest, Some(usize::MAX));
        for key in ["module_input_name", "module_output_name"] {
            let open = |name: &str| {
                put("2_Dense/config.json", json!({"in_features": 32, "out_features": 8, key: name}));
                let device = BackendName::Cpu.device().unwrap();
                Dense::<Dispatch>::open(&dir.path().join("2_Dense"), 32, &device).unwrap_err().to_string()
            };
            assert!(open("token_embeddings").contains(key));
            assert!(!open("sentence_embedding").contains(key), "the weights are missing, no key is");
        }
        put("3_CNN/config.json", json!({}));
        assert!(read().unwrap_err().to_string().contains("module CNN"));
        let module =
            |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
        put("modules.json", json!([module("Transformer", "0_Transformer"), module("Normalize", "2_Normalize")]));
        let settings = read().unwrap();
        assert_eq!((settings.transformer, settings.dense.len()), (dir.path().join("0_Transformer"), 0));
        put("modules.json", json!([module("Transformer", "../x")]));
        assert!(read().is_err());
    }
}
