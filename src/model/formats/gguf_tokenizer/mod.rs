//! The tokenizer that a GGUF file's metadata describes: the one of the model's publisher, which
//! llama.cpp's converter took it from.
//!
//! Reference: llama.cpp, `src/llama-vocab.cpp` (what each `tokenizer.ggml.pre` stands for) and
//! `gguf-py`; the `tokenizer.json` of the models named at each split. Not transformers' own reader
//! of GGUF files, which has fewer splits.

mod byte_level;
mod sentencepiece;

use tokenizers::{AddedToken, Tokenizer as Backend};

use super::gguf::Header;
use crate::core::log::log;
use crate::text::Tokenizer;
use crate::text::tokenizer::begin_with;
use crate::{Context, Error, Result};

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const UNKNOWN: f32 = 2.0;
const CONTROL: f32 = 3.0;
const USER_DEFINED: f32 = 4.0;

/// Number of tokens of Llama 2: the smallest SentencePiece vocabulary whose sequences all begin
/// with `<s>`.
const LLAMA2_TOKENS: usize = 32_000;

/// Keys after `tokenizer.ggml.` about what follows a text, about tokens that stand in no prompt of
/// itemlm, and counts.
const INERT: [&str; 14] = [
    "add_eos_token",
    "add_sep_token",
    "eom_token_id",
    "token_type_count",
    "prefix_token_id",
    "suffix_token_id",
    "middle_token_id",
    "fim_pre_token_id",
    "fim_suf_token_id",
    "fim_mid_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
    "eos_token_ids",
];

/// The `tokenizer.ggml.*` metadata.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// Name of the split of text before byte-level BPE.
    pub pre: Option<String>,
    /// Every token; its position is its id.
    pub tokens: Vec<String>,
    /// The kind of each token: 3 is a control token, 4 a user-defined one. May be shorter.
    pub types: Vec<f32>,
    /// The score of each SentencePiece token: the better of two merges has the higher.
    pub scores: Option<Vec<f32>>,
    /// BPE merges, `left right`, best first.
    pub merges: Option<Vec<String>>,
    /// The id of the end-of-sequence token.
    pub eos: u32,
    /// The id of the beginning-of-sequence token.
    pub bos: Option<u32>,
    /// The id of the token for text that has no other token.
    pub unknown: Option<u32>,
    /// The ids of the tokens with a role (begin, end, unknown, padding, …).
    pub special: Vec<u32>,
    /// Whether sequences begin with the BOS token.
    pub add_bos: Option<bool>,
    /// Whether a SentencePiece text begins with a space.
    pub add_space_prefix: Option<bool>,
    /// Whether to build the tokenizer as itemlm did before it knew the publishers' splits, for runs
    /// that were trained so.
    pub legacy: bool,
}

/// Builds the tokenizer of the file `bytes`, whose header is `header`; `legacy` as
/// [`GgufVocabulary::legacy`].
///
/// # Errors
/// The metadata key at fault, or the kind that is not supported.
pub(crate) fn read(header: &Header, bytes: &[u8], legacy: bool) -> Result<Tokenizer> {
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
    let (bos, unknown) = (id("bos_token_id")?, id("unknown_token_id")?);
    let mut special = vec![eos];
    special.extend(bos.into_iter().chain(unknown));
    special.extend(id("padding_token_id")?);
    if !legacy {
        // Two spellings: gguf-py wrote the first until 2025.
        for name in ["seperator_token_id", "separator_token_id", "cls_token_id", "mask_token_id", "eot_token_id"] {
            special.extend(id(name)?);
        }
        if header.flag(&key("remove_extra_whitespaces"))? == Some(true) {
            return refuse("tokenizer.ggml.remove_extra_whitespaces is not supported; use the Hugging Face directory");
        }
        if header.has(&key("precompiled_charsmap")) {
            return refuse("tokenizer.ggml.precompiled_charsmap is not supported; use the Hugging Face directory");
        }
        if let Some(json) = header.text("tokenizer.huggingface.json")?.filter(|json| !json.trim().is_empty()) {
            return Tokenizer::from_json(json, eos).context("tokenizer.huggingface.json");
        }
    }
    let vocabulary = GgufVocabulary {
        model: model.to_owned(),
        pre: header.text(&key("pre"))?.map(str::to_owned),
        scores: header.numbers(bytes, &key("scores"))?,
        types: header.numbers(bytes, &key("token_type"))?.unwrap_or_default(),
        merges: header.strings(bytes, &key("merges"))?,
        tokens,
        eos,
        bos,
        unknown,
        special,
        add_bos: header.flag(&key("add_bos_token"))?,
        add_space_prefix: header.flag(&key("add_space_prefix"))?,
        legacy,
    };
    match header.unread_key("tokenizer.ggml.", &INERT).filter(|_| !legacy) {
        Some(key) => refuse(format!("metadata key {key} is not supported; use the Hugging Face directory")),
        None => vocabulary.build(),
    }
}

impl GgufVocabulary {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// The metadata key at fault, or the kind that is not supported.
    pub fn build(self) -> Result<Tokenizer> {
        let mut backend = match self.model.as_str() {
            "gpt2" => self.byte_level()?,
            "llama" => self.sentencepiece()?,
            other => {
                return refuse(format!(
                    "tokenizer.ggml.model {other:?} is not supported, only \"gpt2\" and \"llama\" are; use the \
                     Hugging Face directory"
                ));
            }
        };
        if let Some(bos) = self.bos.filter(|bos| !self.legacy && self.begins_with(*bos)) {
            let first = begin_with(&backend, bos)?;
            backend.with_post_processor(Some(first));
        }
        Tokenizer::new(backend, self.eos, self.bos.filter(|_| !self.legacy))
    }

    /// Returns whether a sequence begins with the token `bos`: by the file or, for files from
    /// before converters wrote it, by the publisher of a vocabulary that is recognised.
    fn begins_with(&self, bos: u32) -> bool {
        let recognised = match self.tokens.get(bos as usize).map(String::as_str) {
            Some("<|begin_of_text|>" | "<bos>") => true,
            Some("<s>") => self.model == "llama" && self.tokens.len() >= LLAMA2_TOKENS,
            _ => false,
        };
        self.add_bos.unwrap_or(recognised)
    }

    /// Returns the kind of the token `id`; 0 where the file gives none.
    fn kind(&self, id: usize) -> f32 {
        self.types.get(id).copied().unwrap_or(0.0)
    }

    /// Returns whether the token `id` is matched whole in a text, before any other split: control
    /// and user-defined tokens, and those with a role.
    fn is_added(&self, id: usize) -> bool {
        matches!(self.kind(id), CONTROL | USER_DEFINED) || self.special.contains(&(id as u32))
    }

    /// Adds control tokens, and those with a role, as special tokens; user-defined ones as plain
    /// added tokens. `spelled` returns a token's spelling in the vocabulary, `None` for one that is
    /// not matched.
    fn add_special_tokens(&self, backend: &mut Backend, spelled: impl Fn(usize) -> Option<String>) -> Result<()> {
        let (mut special, mut plain) = (Vec::new(), Vec::new());
        for id in (0..self.tokens.len()).filter(|&id| self.is_added(id)) {
            let Some(token) = spelled(id).filter(|token| backend.token_to_id(token).is_some()) else { continue };
            match self.kind(id) == USER_DEFINED && !self.special.contains(&(id as u32)) {
                true => plain.push(AddedToken::from(token, false).normalized(false)),
                false => special.push(AddedToken::from(token, true).normalized(false)),
            }
        }
        backend.add_special_tokens(special).context("tokenizer.ggml.token_type")?;
        backend.add_tokens(plain).context("tokenizer.ggml.token_type")?;
        Ok(())
    }
}

/// Prints a note about a choice that the file leaves open.
fn print_note(message: &str) {
    log(format!("note: {message}"));
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::failed(message))
}

#[cfg(test)]
mod tests;
