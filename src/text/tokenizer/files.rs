//! The tokenizer of a Hugging Face directory: `tokenizer.json` and the files beside it.
//!
//! Reference: transformers 5.24, `PreTrainedTokenizerBase._from_pretrained` and
//! `TokenizersBackend.__init__`: which file decides a special token, and which tokens are added.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, Tokenizer as Backend};

use super::{Tokenizer, begin_with, parse, prefix};
use crate::core::files::refuse_lfs_pointer;
use crate::{Context, Error, Result};

const LONGEST_FILE: u64 = 256 << 20;
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The tokens with a role, by the keys that name them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The JSON files beside `tokenizer.json`; one that is absent is empty.
struct Files {
    config: Map<String, Value>,
    special: Map<String, Value>,
    added: Map<String, Value>,
    /// `config.json` of the model.
    model: Map<String, Value>,
}

pub(super) fn open(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    let files = Files::read(dir)?;
    if files.config.get("split_special_tokens").and_then(Value::as_bool) == Some(true) {
        let path = dir.join(CONFIG);
        return Err(Error::failed(format!("{}: split_special_tokens = true is not supported", path.display())));
    }
    let mut json = tokenizer_json(dir)?;
    if let Some(adds) = files.config.get("add_prefix_space").and_then(Value::as_bool) {
        let mut document = serde_json::from_str(&json).context("not a tokenizer").context(path.display())?;
        let class = files.config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        if set_prefix_space(&mut document, class, adds) {
            json = document.to_string();
        }
    }
    let mut backend = parse(&json).context(path.display())?;
    drop(json);
    files.add_tokens(dir, &mut backend)?;
    let eos = match files.role(&backend, "eos_token", dir)? {
        Some(id) => Some(id),
        None => files.special_eos(&backend, dir)?,
    };
    let Some(eos) = eos.or_else(|| files.model_id("eos_token_id")) else {
        return Err(Error::failed(format!(
            "{}: no eos_token_id, and no eos_token in {CONFIG} or {SPECIAL}",
            dir.join("config.json").display()
        )));
    };
    let bos = match files.role(&backend, "bos_token", dir) {
        Ok(Some(id)) => Some(id),
        // A token that the vocabulary lacks is never put first.
        _ => files.model_id("bos_token_id").filter(|id| backend.id_to_token(*id).is_some()),
    };
    let adds_bos = files.config.get("add_bos_token").and_then(Value::as_bool) == Some(true);
    if let Some(bos) = bos.filter(|_| adds_bos)
        && prefix(&backend).context(path.display())?.is_empty()
    {
        let first = begin_with(&backend, bos).context(path.display())?;
        backend.with_post_processor(Some(first));
    }
    Tokenizer::new(backend, eos, bos).context(path.display())
}

pub(super) fn open_alone(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    let backend = parse(&tokenizer_json(dir)?).context(path.display())?;
    let files = Files::read(dir)?;
    let config = role_of(&files.config, "eos_token", &dir.join(CONFIG))?;
    let special = role_of(&files.special, "eos_token", &dir.join(SPECIAL))?;
    let named = config.or(special).map(|token| token.content);
    let id = named.and_then(|token| backend.token_to_id(&token)).or_else(|| files.model_id("eos_token_id"));
    let eos = id.ok_or_else(|| Error::failed(format!("{}: no end-of-sequence token", dir.display())))?;
    Tokenizer::new(backend, eos, None).context(path.display())?.with_bos(Some(false))
}

/// Reads `tokenizer.json`; where other files hold the vocabulary, the error says what to do.
fn tokenizer_json(dir: &Path) -> Result<String> {
    let path = dir.join("tokenizer.json");
    if !path.exists() {
        let other = ["tokenizer.model", "vocab.json", "tekken.json"].into_iter().find(|name| dir.join(name).exists());
        return Err(Error::failed(match other {
            Some(other) => format!(
                "{}: holds {other} and no tokenizer.json; make it with Python: from transformers import \
                 AutoTokenizer; AutoTokenizer.from_pretrained({:?}).save_pretrained({:?})",
                dir.display(),
                dir.display().to_string(),
                dir.display().to_string()
            ),
            None => format!("{}: there is no such file; a model's directory needs it", path.display()),
        }));
    }
    read(&path)
}

impl Files {
    fn read(dir: &Path) -> Result<Self> {
        let object = |name: &str| -> Result<Map<String, Value>> {
            let path = dir.join(name);
            if !path.exists() {
                return Ok(Map::new());
            }
            match serde_json::from_str(&read(&path)?).context(path.display())? {
                Value::Object(object) => Ok(object),
                _ => Err(Error::failed(format!("{}: not a JSON object", path.display()))),
            }
        };
        Ok(Self {
            config: object(CONFIG)?,
            special: object(SPECIAL)?,
            added: object(ADDED)?,
            model: object("config.json")?,
        })
    }

    /// Returns whether `tokenizer_config.json` lists the added tokens, and so decides alone
    /// (repositories since transformers 4.34).
    fn config_decides(&self) -> bool {
        self.config.get("added_tokens_decoder").is_some_and(Value::is_object)
    }

    /// Returns the token of a role, and the file that names it.
    fn special_token(&self, role: &str, dir: &Path) -> Result<Option<(&'static str, AddedToken)>> {
        let special = match self.config_decides() {
            true => None,
            false => role_of(&self.special, role, &dir.join(SPECIAL))?.map(|token| (SPECIAL, token)),
        };
        match special {
            Some(named) => Ok(Some(named)),
            None => Ok(role_of(&self.config, role, &dir.join(CONFIG))?.map(|token| (CONFIG, token))),
        }
    }

    /// Returns the id of the token of a role.
    fn role(&self, backend: &Backend, role: &str, dir: &Path) -> Result<Option<u32>> {
        let Some((file, token)) = self.special_token(role, dir)? else { return Ok(None) };
        id_of(backend, &token.content, role, &dir.join(file)).map(Some)
    }

    /// Returns the end-of-sequence token of `special_tokens_map.json`, where
    /// `tokenizer_config.json` names none.
    fn special_eos(&self, backend: &Backend, dir: &Path) -> Result<Option<u32>> {
        let path = dir.join(SPECIAL);
        let token = role_of(&self.special, "eos_token", &path)?;
        token.map(|token| id_of(backend, &token.content, "eos_token", &path)).transpose()
    }

    /// Returns a token id, or the first of several, in the model's `config.json`.
    fn model_id(&self, key: &str) -> Option<u32> {
        let id = self.model.get(key).map(|id| id.get(0).unwrap_or(id));
        id.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
    }

    /// Adds the tokens that other files than `tokenizer.json` name.
    fn add_tokens(&self, dir: &Path, backend: &mut Backend) -> Result<()> {
        let mut named = Vec::new();
        for role in ROLES {
            // An unknown end of sequence is an error later, by the file that names it.
            if let Some((_, token)) = self.special_token(role, dir)? {
                named.push(token);
            }
        }
        let further = |object: &Map<String, Value>| -> Vec<AddedToken> {
            let lists = ["additional_special_tokens", "extra_special_tokens"].iter().filter_map(|key| object.get(*key));
            // A list of tokens, or tokens by their roles.
            let tokens = lists.flat_map(|list| match list {
                Value::Array(tokens) => tokens.iter().collect(),
                Value::Object(tokens) => tokens.values().collect(),
                _ => Vec::new(),
            });
            tokens.filter_map(|token| added_token(token, true)).collect()
        };
        let mut others = further(&self.config);
        if !self.config_decides() {
            others.extend(further(&self.special));
        }
        let mut tokens: BTreeMap<u32, (&str, AddedToken)> = BTreeMap::new();
        if self.config_decides() {
            let path = dir.join(CONFIG);
            let entries = self.config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
            for (id, token) in entries {
                match id.parse().ok().zip(added_token(token, false)) {
                    Some((id, token)) => tokens.insert(id, (CONFIG, token)),
                    None => {
                        let path = path.display();
                        return Err(Error::failed(format!("{path}: added_tokens_decoder: {id:?} is not a token")));
                    }
                };
            }
        } else {
            let path = dir.join(ADDED);
            for (content, id) in &self.added {
                let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    return Err(Error::failed(format!("{}: {content:?} has no id", path.display())));
                };
                let special = named.iter().chain(&others).any(|token| token.content == *content);
                tokens.insert(id, (ADDED, AddedToken::from(content.as_str(), special)));
            }
            tokens.retain(|id, _| !backend.get_added_tokens_decoder().contains_key(id));
        }
        for (id, (file, token)) in tokens {
            add_token(backend, id, token, &dir.join(file))?;
        }
        for token in named.into_iter().chain(others) {
            let added = backend.get_added_tokens_decoder();
            // A role's token that the vocabulary lacks, such as a pad token, is in no text.
            if backend.token_to_id(&token.content).is_some() && !added.values().any(|t| t.content == token.content) {
                backend.add_special_tokens(vec![token]).context(dir.display())?;
            }
        }
        Ok(())
    }
}

/// Adds a token under the id that `path` gives it.
fn add_token(backend: &mut Backend, id: u32, token: AddedToken, path: &Path) -> Result<()> {
    let place = path.display();
    let content = token.content.clone();
    match token.special {
        true => backend.add_special_tokens(vec![token]),
        false => backend.add_tokens(vec![token]),
    }
    .context(&place)?;
    match backend.token_to_id(&content) {
        Some(other) if other != id => Err(Error::failed(format!(
            "{place}: the token {content:?} has id {id} there, but {other} after tokenizer.json; write \
             tokenizer.json anew with transformers' save_pretrained"
        ))),
        _ => Ok(()),
    }
}

/// Returns a token of the role `role`, written as a string or an object in one of the files.
fn role_of(object: &Map<String, Value>, role: &str, path: &Path) -> Result<Option<AddedToken>> {
    let Some(token) = object.get(role).filter(|token| !token.is_null()) else { return Ok(None) };
    match added_token(token, true) {
        Some(token) => Ok(Some(token)),
        None => Err(Error::failed(format!("{}: {role} is not a token", path.display()))),
    }
}

fn added_token(token: &Value, special: bool) -> Option<AddedToken> {
    let flag = |key: &str| token.get(key).and_then(Value::as_bool);
    let content = token.as_str().or_else(|| token.get("content").and_then(Value::as_str))?;
    let special = special || flag("special") == Some(true);
    let mut added = AddedToken::from(content, special);
    added.lstrip = flag("lstrip").unwrap_or(false);
    added.rstrip = flag("rstrip").unwrap_or(false);
    added.single_word = flag("single_word").unwrap_or(false);
    added.normalized = flag("normalized").unwrap_or(!special);
    Some(added)
}

fn id_of(backend: &Backend, token: &str, role: &str, path: &Path) -> Result<u32> {
    backend
        .token_to_id(token)
        .ok_or_else(|| Error::failed(format!("{}: {role} {token:?} is not in tokenizer.json", path.display())))
}

/// Applies `add_prefix_space` of `tokenizer_config.json` where transformers does: to the classes
/// that make their own pre-tokenizer. Returns whether it changed anything.
fn set_prefix_space(document: &mut Value, class: &str, adds: bool) -> bool {
    let is_byte_level = class.starts_with("GPT2Tokenizer") || class.starts_with("Qwen2Tokenizer");
    let is_sentencepiece = class.starts_with("LlamaTokenizer");
    let is = |part: &Value, kind: &str| part.get("type").and_then(Value::as_str) == Some(kind);
    let before = document.clone();
    let change = |part: &mut Value| {
        if is_byte_level && is(part, "ByteLevel") {
            part["add_prefix_space"] = json!(adds);
        } else if is_sentencepiece && !adds && is(part, "Metaspace") {
            part["prepend_scheme"] = json!("never");
        }
    };
    if let Some(pre_tokenizer) = document.get_mut("pre_tokenizer") {
        change(pre_tokenizer);
        let parts = pre_tokenizer.get_mut("pretokenizers").and_then(Value::as_array_mut);
        parts.into_iter().flatten().for_each(change);
    }
    let normalizers = document.get_mut("normalizer").and_then(|n| n.get_mut("normalizers"));
    if let Some(normalizers) = normalizers.and_then(Value::as_array_mut).filter(|_| is_sentencepiece && !adds) {
        normalizers.retain(|part| !is(part, "Prepend"));
    }
    *document != before
}

/// Reads a text file.
///
/// # Errors
/// A file that cannot be read, is too long or stands for another file, by its path.
pub(crate) fn read(path: &Path) -> Result<String> {
    let file = fs::File::open(path).context(path.display())?;
    let mut text = String::new();
    let length = file.take(LONGEST_FILE + 1).read_to_string(&mut text).context(path.display())?;
    if length as u64 > LONGEST_FILE {
        return Err(Error::failed(format!("{}: longer than {LONGEST_FILE} bytes", path.display())));
    }
    refuse_lfs_pointer(path, text.as_bytes())?;
    Ok(text)
}
