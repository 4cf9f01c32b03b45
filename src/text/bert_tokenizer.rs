//! The WordPiece tokenizer of a BERT directory.
//!
//! Reference: transformers/models/bert/tokenization_bert.py; `[CLS]` text `[SEP]`, cut on the
//! right.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer as Backend};

use super::Tokenizer;
use super::tokenizer::{parse, read};
use crate::{Context, Error, Result};

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A tokenizer that puts `[CLS]` before a text and `[SEP]` after it.
#[derive(Debug, Clone)]
pub struct BertTokenizer {
    tokenizer: Tokenizer,
    cls: u32,
}

impl BertTokenizer {
    /// Reads `tokenizer.json`, or else `vocab.txt` (a token a line; lower case unless
    /// `tokenizer_config.json` says `"do_lower_case": false`).
    ///
    /// # Errors
    /// Neither file is there, a damaged one, or one without `[CLS]` and `[SEP]`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let (json, vocab) = (dir.join("tokenizer.json"), dir.join("vocab.txt"));
        let settings = Settings::read(dir)?;
        let (path, backend) = if json.exists() {
            let text = settings.apply(read(&json)?).context(json.display())?;
            let backend = parse(&text).context(json.display())?;
            (json, backend)
        } else if vocab.exists() {
            let backend = from_vocabulary(&read(&vocab)?, &settings).context(vocab.display())?;
            (vocab, backend)
        } else {
            return Err(Error::failed(format!("{}: holds neither tokenizer.json nor vocab.txt", dir.display())));
        };
        check_added_tokens(dir, &backend)?;
        Self::new(backend).context(path.display())
    }

    fn new(backend: Backend) -> Result<Self> {
        let id = |token| backend.token_to_id(token).ok_or_else(|| Error::failed(format!("no token {token}")));
        let (cls, sep) = (id("[CLS]")?, id("[SEP]")?);
        Ok(Self { tokenizer: Tokenizer::new(backend, sep, None)?, cls })
    }

    /// Encodes a text as `[CLS]` text `[SEP]`, with at most `longest` tokens (at least 2): the
    /// text's last tokens are left out.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str, longest: usize) -> Result<Vec<u32>> {
        let mut ids = vec![self.cls];
        ids.extend(self.tokenizer.encode(text)?.into_iter().take(longest.saturating_sub(2)));
        ids.push(self.tokenizer.eos());
        Ok(ids)
    }

    /// Returns the largest token id; a model needs more embeddings than this.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.largest_id()
    }

    /// Returns the tokenizer as `tokenizer.json`.
    pub fn to_json(&self) -> String {
        self.tokenizer.to_json()
    }
}

/// Options of `tokenizer_config.json` about a text's characters; `None` where it has none.
#[derive(Default)]
struct Settings {
    lower_case: Option<bool>,
    strip_accents: Option<bool>,
    splits_chinese: Option<bool>,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let document: Value = serde_json::from_str(&read(&path)?).context(path.display())?;
        let flag = |key: &str| document.get(key).and_then(Value::as_bool);
        Ok(Self {
            lower_case: flag("do_lower_case"),
            strip_accents: flag("strip_accents"),
            splits_chinese: flag("tokenize_chinese_chars"),
        })
    }

    /// Sets these options in a `tokenizer.json` with BERT's normalizer, as transformers does.
    fn apply(&self, json: String) -> Result<String> {
        let mut document: Value = serde_json::from_str(&json).context("not a tokenizer")?;
        let Some(normalizer) = document.get_mut("normalizer") else { return Ok(json) };
        if normalizer.get("type").and_then(Value::as_str) != Some("BertNormalizer") {
            return Ok(json);
        }
        let before = normalizer.clone();
        for (key, value) in [
            ("lowercase", self.lower_case),
            ("strip_accents", self.strip_accents),
            ("handle_chinese_chars", self.splits_chinese),
        ] {
            if let Some(value) = value {
                normalizer[key] = Value::Bool(value);
            }
        }
        Ok(if *normalizer == before { json } else { document.to_string() })
    }
}

/// Refuses tokens of `added_tokens.json` that the vocabulary lacks.
fn check_added_tokens(dir: &Path, backend: &Backend) -> Result<()> {
    let path = dir.join("added_tokens.json");
    if !path.exists() {
        return Ok(());
    }
    let tokens: Map<String, Value> = serde_json::from_str(&read(&path)?).context(path.display())?;
    match tokens.keys().find(|token| backend.token_to_id(token).is_none()) {
        Some(token) => Err(Error::failed(format!(
            "{}: the token {token:?} is not in the vocabulary; write tokenizer.json with transformers' save_pretrained",
            path.display()
        ))),
        None => Ok(()),
    }
}

fn from_vocabulary(text: &str, settings: &Settings) -> Result<Backend> {
    let vocabulary = WordPiece::read_bytes(text.as_bytes()).context("not a vocabulary")?;
    let special: Vec<AddedToken> =
        SPECIAL.iter().filter(|s| vocabulary.contains_key(**s)).map(|s| AddedToken::from(*s, true)).collect();
    let model = WordPiece::builder().vocab(vocabulary).build().context("not a vocabulary")?;
    let (chinese, lower_case) = (settings.splits_chinese.unwrap_or(true), settings.lower_case.unwrap_or(true));
    let normalizer = BertNormalizer::new(true, chinese, settings.strip_accents, lower_case);
    let mut backend = Backend::new(model);
    backend.with_normalizer(Some(normalizer)).context("not a vocabulary")?;
    backend.with_pre_tokenizer(Some(BertPreTokenizer));
    backend.add_special_tokens(special).context("not a vocabulary")?;
    Ok(backend)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\npen\n##cil\n,\n";

    #[test]
    fn vocabulary_and_json_agree() {
        let dir = tempfile::tempdir().unwrap();
        let open = || BertTokenizer::from_dir(dir.path());
        assert!(open().unwrap_err().to_string().contains("vocab.txt"));
        fs::write(dir.path().join("vocab.txt"), VOCABULARY).unwrap();
        let tokenizer = open().unwrap();
        assert_eq!(tokenizer.encode("Red, Pencil zz", 32).unwrap(), [2, 5, 8, 6, 7, 1, 3]);
        assert_eq!(tokenizer.encode("Red, Pencil zz", 4).unwrap(), [2, 5, 8, 3]);
        assert_eq!(tokenizer.encode("", 32).unwrap(), [2, 3]);
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_json()).unwrap();
        fs::remove_file(dir.path().join("vocab.txt")).unwrap();
        fs::write(dir.path().join("added_tokens.json"), r#"{"[NEW]": 9}"#).unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains("added_tokens.json: the token \"[NEW]\""), "{error}");
        fs::write(dir.path().join("added_tokens.json"), r#"{"[MASK]": 4}"#).unwrap();
        let again = open().unwrap();
        assert_eq!(again.encode("Red, Pencil zz", 32).unwrap(), [2, 5, 8, 6, 7, 1, 3]);
        assert_eq!(again.largest_id(), 8);
    }

    #[test]
    fn lower_case_is_the_configuration_s() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vocab.txt"), VOCABULARY).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), "{\"do_lower_case\": false}").unwrap();
        assert_eq!(BertTokenizer::from_dir(dir.path()).unwrap().encode("Red red", 9).unwrap(), [2, 1, 5, 3]);
        fs::write(dir.path().join("vocab.txt"), "red\n").unwrap();
        assert!(BertTokenizer::from_dir(dir.path()).unwrap_err().to_string().contains("[CLS]"));
    }
}
