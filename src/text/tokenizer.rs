//! Text to token ids and back: Hugging Face's `tokenizers` with the model's end-of-sequence token.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::Value;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Backend};

use super::GgufVocabulary;
use super::gguf_vocabulary::{LLAMA3_SPLIT, split_then_bytes};
use crate::{Context, Error, Result};

const LONGEST_FILE: u64 = 256 << 20;
const END_OF_TEXT: &str = "<|endoftext|>";

/// A tokenizer that adds no special tokens of its own, cuts nothing off and pads nothing.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    backend: Backend,
    eos: u32,
    json: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a Hugging Face directory. The end-of-sequence token is that of
    /// `tokenizer_config.json`, else of `special_tokens_map.json`, else `config.json`'s
    /// `eos_token_id`.
    ///
    /// # Errors
    /// Names the file that is missing or damaged, or the end-of-sequence token that is unknown.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let backend = parse(&read(&path)?).context(path.display())?;
        let eos = eos_of_dir(dir, &backend)?;
        Self::new(backend, eos).context(path.display())
    }

    /// Parses a `tokenizer.json`, with the id of its end-of-sequence token.
    ///
    /// # Errors
    /// The JSON is no tokenizer, or has no token `eos`.
    pub fn from_json(json: &str, eos: u32) -> Result<Self> {
        Self::new(parse(json)?, eos)
    }

    /// Builds the tokenizer that a GGUF file's metadata describes.
    ///
    /// # Errors
    /// Names the metadata key at fault, or the kind that is not supported.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self> {
        let eos = vocabulary.eos;
        Self::new(vocabulary.build()?, eos)
    }

    /// Trains byte-level BPE, on text split as Llama 3 splits it, whose id 0 is the end-of-sequence
    /// token `<|endoftext|>`. The same texts give the same tokenizer. It may have fewer than
    /// `vocab_size` tokens where the texts are few.
    ///
    /// # Errors
    /// `vocab_size` has no room for the 256 bytes and the end-of-sequence token.
    pub fn train_bpe(texts: impl Iterator<Item = String>, vocab_size: usize) -> Result<Self> {
        if vocab_size < 257 {
            return Err(Error::usage(format!("a vocabulary of {vocab_size} is too small; it needs 257 or more")));
        }
        let mut backend = Backend::new(BPE::default());
        backend.with_pre_tokenizer(Some(split_then_bytes(LLAMA3_SPLIT)?));
        backend.with_decoder(Some(ByteLevelDecoder::default()));
        let trainer = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(vocab_size)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build();
        let texts: Vec<String> = texts.collect();
        backend.train(&mut TrainerWrapper::from(trainer), texts.into_iter()).context("training a tokenizer")?;
        Self::new(backend, 0)
    }

    pub(super) fn new(mut backend: Backend, eos: u32) -> Result<Self> {
        backend.with_truncation(None).context("truncation")?;
        backend.with_padding(None);
        if backend.id_to_token(eos).is_none() {
            return Err(Error::failed(format!("the end-of-sequence token {eos} is not in the tokenizer")));
        }
        let json = backend.to_string(false).context("the tokenizer cannot be written as JSON")?;
        Ok(Self { backend, eos, json })
    }

    /// The token ids of `text`, without special tokens around it.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let place = || format!("the text {:?} cannot be tokenized", text.chars().take(60).collect::<String>());
        let encoding = self.backend.encode_fast(text, false).map_err(|e| format!("{}: {e}", place()));
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(Error::failed)
    }

    /// The text of token ids, special tokens included.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.backend.decode(ids, false).context("token ids cannot be decoded")
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.backend.get_vocab_size(true)
    }

    /// The largest token id; a model needs more embeddings than this.
    pub fn largest_id(&self) -> u32 {
        self.backend.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// The end-of-sequence token's id.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// A token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.backend.id_to_token(id)
    }

    /// The tokenizer as `tokenizer.json`; [`Tokenizer::from_json`] and transformers read it.
    pub fn to_json(&self) -> String {
        self.json.clone()
    }
}

pub(super) fn parse(json: &str) -> Result<Backend> {
    let document: Value = serde_json::from_str(json).context("not a tokenizer")?;
    check_bpe(document.get("model").unwrap_or(&Value::Null))?;
    drop(document);
    json.parse().context("not a tokenizer")
}

/// `tokenizers` panics on a merge whose result is no token and is longer than all tokens; and
/// dropout would make every encoding different.
fn check_bpe(model: &Value) -> Result<()> {
    if model.get("dropout").and_then(Value::as_f64).is_some_and(|dropout| dropout > 0.0) {
        return Err(Error::failed("BPE dropout is set; remove it"));
    }
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    let (Some(vocab), Some(merges)) =
        (model.get("vocab").and_then(Value::as_object), model.get("merges").and_then(Value::as_array))
    else {
        return Ok(());
    };
    for merge in merges {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            other => other.get(0).and_then(Value::as_str).zip(other.get(1).and_then(Value::as_str)),
        };
        let merged = pair.and_then(|(left, right)| Some(format!("{left}{}", right.strip_prefix(prefix)?)));
        if merged.is_none_or(|token| !vocab.contains_key(&token)) {
            return Err(Error::failed(format!("the merge {merge} does not make a token")));
        }
    }
    Ok(())
}

fn eos_of_dir(dir: &Path, backend: &Backend) -> Result<u32> {
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let document: Value = serde_json::from_str(&read(&path)?).context(path.display())?;
        let token = document.get("eos_token").filter(|token| !token.is_null());
        let Some(token) = token else { continue };
        let Some(text) = token.as_str().or_else(|| token.get("content").and_then(Value::as_str)) else {
            return Err(Error::failed(format!("{}: eos_token is not a token", path.display())));
        };
        return backend
            .token_to_id(text)
            .ok_or_else(|| Error::failed(format!("{}: eos_token {text:?} is not in tokenizer.json", path.display())));
    }
    let path = dir.join("config.json");
    let document: Value = serde_json::from_str(&read(&path)?).context(path.display())?;
    let id = document.get("eos_token_id").map(|id| id.get(0).unwrap_or(id));
    match id.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => Err(Error::failed(format!(
            "{}: no eos_token_id, and no eos_token in tokenizer_config.json or special_tokens_map.json",
            path.display()
        ))),
    }
}

pub(super) fn read(path: &Path) -> Result<String> {
    let file = fs::File::open(path).context(path.display())?;
    let mut text = String::new();
    let length = file.take(LONGEST_FILE + 1).read_to_string(&mut text).context(path.display())?;
    if length as u64 > LONGEST_FILE {
        return Err(Error::failed(format!("{}: longer than {LONGEST_FILE} bytes", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TITLES: [&str; 4] = ["Red Pen, 12 pack", "Blue Pen", "Café \"Noir\" 🖊", "red pen 12\u{0}\n  x"];

    fn trained() -> Tokenizer {
        let texts = TITLES.iter().cycle().take(200).map(|title| (*title).to_owned());
        Tokenizer::train_bpe(texts, 280).unwrap()
    }

    #[test]
    fn trains_the_same_each_time_and_loses_nothing() {
        let tokenizer = trained();
        assert_eq!(tokenizer.to_json(), trained().to_json());
        assert_eq!((tokenizer.vocab_size(), tokenizer.largest_id(), tokenizer.eos()), (280, 279, 0));
        assert_eq!(tokenizer.token(0).as_deref(), Some("<|endoftext|>"));
        for title in TITLES.into_iter().chain(["", "\u{feff}\u{10ffff}", "unseen text", " "]) {
            assert_eq!(tokenizer.decode(&tokenizer.encode(title).unwrap()).unwrap(), title);
        }
        assert_eq!(tokenizer.encode("<|endoftext|>").unwrap(), [0]);
        let again = Tokenizer::from_json(&tokenizer.to_json(), 0).unwrap();
        assert_eq!(again.to_json(), tokenizer.to_json());
        assert!(Tokenizer::from_json(&tokenizer.to_json(), 280).is_err());
        assert!(Tokenizer::train_bpe(std::iter::empty(), 256).is_err());
    }

    #[test]
    fn any_text_is_encoded() {
        use rand::{Rng, SeedableRng};
        let tokenizer = trained();
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for _ in 0..2000 {
            let length = random.random_range(0..40);
            let text: String = (0..length).map(|_| random.random::<char>()).collect();
            assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
        }
        assert!(tokenizer.encode(&" ".repeat(200_000)).is_ok());
        assert!(tokenizer.decode(&[7, u32::MAX]).is_ok());
    }

    #[test]
    fn end_of_sequence_is_where_transformers_looks() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, value: Value| fs::write(dir.path().join(name), value.to_string()).unwrap();
        let eos = || Tokenizer::from_dir(dir.path()).map(|t| t.eos()).map_err(|e| e.to_string());
        assert!(eos().unwrap_err().contains("tokenizer.json"));
        fs::write(dir.path().join("tokenizer.json"), trained().to_json()).unwrap();
        put("config.json", json!({}));
        assert!(eos().unwrap_err().contains("eos_token_id"));
        put("config.json", json!({"eos_token_id": [5, 6]}));
        assert_eq!(eos(), Ok(5));
        put("config.json", json!({"eos_token_id": 900}));
        assert!(eos().unwrap_err().contains("900"));
        put("special_tokens_map.json", json!({"eos_token": {"content": "a", "lstrip": false}}));
        assert_eq!(eos().unwrap(), trained().encode("a").unwrap()[0]);
        put("tokenizer_config.json", json!({"eos_token": "<|endoftext|>"}));
        assert_eq!(eos(), Ok(0));
        put("tokenizer_config.json", json!({"eos_token": "</s>"}));
        assert!(eos().unwrap_err().contains("</s>"));
    }

    #[test]
    fn damaged_json_is_an_error() {
        let json = trained().to_json();
        for end in (0..json.len()).step_by(37) {
            assert!(json.get(..end).is_none_or(|part| Tokenizer::from_json(part, 0).is_err()));
        }
        use rand::{Rng, SeedableRng};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        for _ in 0..3000 {
            let mut bytes = json.clone().into_bytes();
            bytes[random.random_range(0..json.len())] = random.random_range(0x20..0x7f);
            if let Ok(tokenizer) = Tokenizer::from_json(&String::from_utf8_lossy(&bytes), 0) {
                let _ = tokenizer.encode("Red Pen 12").and_then(|ids| tokenizer.decode(&ids));
            }
        }
        let mut document: Value = serde_json::from_str(&json).unwrap();
        let longest = document["model"]["vocab"].as_object().unwrap().keys().max_by_key(|k| k.len()).unwrap().clone();
        document["model"]["merges"][0] = json!([longest, longest]);
        assert!(Tokenizer::from_json(&document.to_string(), 0).unwrap_err().to_string().contains("merge"));
        document["model"]["merges"] = json!([]);
        document["model"]["dropout"] = json!(0.5);
        assert!(Tokenizer::from_json(&document.to_string(), 0).unwrap_err().to_string().contains("dropout"));
    }
}
