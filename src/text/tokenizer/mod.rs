//! Text to token ids and back: Hugging Face's `tokenizers` with the tokens that begin and end a
//! sequence.

mod check;
mod files;
mod special;

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PostProcessorWrapper, SplitDelimiterBehavior, Tokenizer as Backend};

pub(crate) use check::parse;
pub(crate) use files::read;
use special::SpecialTokens;

use crate::{Context, Error, Result};

const END_OF_TEXT: &str = "<|endoftext|>";

/// The regular expression that splits text before BPE in Llama 3: an opening quote stays with its
/// word.
pub(crate) const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Builds the pre-tokenizer that splits text by a regular expression, then into bytes.
pub(crate) fn split_then_bytes(split: &str) -> Result<Sequence> {
    let split = SplitPattern::Regex(split.to_owned());
    let split = Split::new(split, SplitDelimiterBehavior::Isolated, false).context("the pre-tokenizer's pattern")?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]))
}

/// A tokenizer that cuts nothing off and pads nothing. [`Tokenizer::encode`] adds no special
/// tokens; [`Tokenizer::encode_prompt`] puts first those that the model's own tokenizer puts first.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    backend: Backend,
    eos: u32,
    bos: Option<u32>,
    prefix: Vec<u32>,
    /// Number of rows of the model's embedding table: larger ids have no embedding.
    embeddings: usize,
    json: String,
    special: SpecialTokens,
    /// A copy of the tokenizer to which the texts of special tokens are plain text; made at the
    /// first text that holds one.
    literal: OnceLock<Backend>,
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face directory: `tokenizer.json`, with what
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and `config.json`
    /// say beside it, as transformers does.
    ///
    /// # Errors
    /// A missing or damaged file, by its path; an unknown token.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        files::open(dir)
    }

    /// Reads `tokenizer.json` alone of a Hugging Face directory, as itemlm did before it read the
    /// files beside it: for runs that were trained so. It puts no token first.
    ///
    /// # Errors
    /// A missing or damaged file, by its path; an unknown token.
    pub fn from_dir_alone(dir: &Path) -> Result<Self> {
        files::open_alone(dir)
    }

    /// Parses a `tokenizer.json`, with the id of its end-of-sequence token.
    ///
    /// # Errors
    /// The JSON is no tokenizer, or has no token `eos`.
    pub fn from_json(json: &str, eos: u32) -> Result<Self> {
        Self::new(parse(json)?, eos, None)
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
        Self::new(backend, 0, None)
    }

    /// Wraps `backend`, with the ids of the tokens that end and begin a sequence. The tokens that
    /// its post-processor puts before a text begin every prompt.
    ///
    /// # Errors
    /// A token that the vocabulary lacks.
    pub(crate) fn new(mut backend: Backend, eos: u32, bos: Option<u32>) -> Result<Self> {
        backend.with_truncation(None).context("truncation")?;
        backend.with_padding(None);
        for (what, id) in [("end", Some(eos)), ("beginning", bos)] {
            if let Some(id) = id.filter(|id| backend.id_to_token(*id).is_none()) {
                return Err(Error::failed(format!("the {what}-of-sequence token {id} is not in the tokenizer")));
            }
        }
        let json = backend.to_string(false).context("the tokenizer cannot be written as JSON")?;
        let prefix = prefix(&backend)?;
        let special = SpecialTokens::new(&backend);
        Ok(Self { backend, eos, bos, prefix, embeddings: usize::MAX, json, special, literal: OnceLock::new() })
    }

    /// Sets whether prompts begin with the BOS token, whatever the tokenizer's own post-processor
    /// does; `None` leaves that to the tokenizer.
    ///
    /// # Errors
    /// A BOS token is wanted, and the tokenizer has none.
    pub fn with_bos(mut self, bos: Option<bool>) -> Result<Self> {
        match (bos, self.bos) {
            (None, _) => return Ok(self),
            (Some(true), _) if !self.prefix.is_empty() => return Ok(self),
            (Some(false), _) if self.prefix.is_empty() => return Ok(self),
            (Some(false), _) => {
                self.backend.with_post_processor(None::<PostProcessorWrapper>);
            }
            (Some(true), Some(bos)) => {
                let first = begin_with(&self.backend, bos)?;
                self.backend.with_post_processor(Some(first));
            }
            (Some(true), None) => {
                return Err(Error::usage(
                    "data.bos is true, but neither tokenizer_config.json nor config.json names a bos_token",
                ));
            }
        }
        let embeddings = self.embeddings;
        Ok(Self { embeddings, ..Self::new(self.backend, self.eos, self.bos)? })
    }

    /// Sets the number of rows of the embedding table; texts whose tokens have no row are refused.
    pub(crate) fn with_embeddings(self, embeddings: usize) -> Self {
        Self { embeddings, ..self }
    }

    /// Returns the token ids of `text`, without special tokens around it.
    ///
    /// # Errors
    /// The tokenizer refuses the text, or the model has no embedding for one of its tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(&self.backend, text)
    }

    /// Returns the token ids of `text` as [`Tokenizer::encode`] does, but with the texts of special
    /// tokens, such as that of EOS, as plain text: for titles and other data.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_literal(&self, text: &str) -> Result<Vec<u32>> {
        if self.find_special(text).is_none() {
            return self.encode(text);
        }
        let literal = || {
            let mut backend = self.backend.clone();
            backend.set_encode_special_tokens(true);
            backend
        };
        self.encode_with(self.literal.get_or_init(literal), text)
    }

    /// Returns where the text of the first special token in `text` is, and the token's id.
    pub fn find_special(&self, text: &str) -> Option<(Range<usize>, u32)> {
        self.special.find(text)
    }

    fn encode_with(&self, backend: &Backend, text: &str) -> Result<Vec<u32>> {
        let place = || format!("the text {:?} cannot be tokenized", text.chars().take(60).collect::<String>());
        let encoding = backend.encode_fast(text, false).map_err(|e| Error::failed(format!("{}: {e}", place())))?;
        if let Some(&id) = encoding.get_ids().iter().find(|&&id| id as usize >= self.embeddings) {
            let token = self.token(id).unwrap_or_default();
            return Err(Error::failed(format!(
                "{}: it holds the token {token:?} (id {id}), and the model has {} embeddings",
                place(),
                self.embeddings
            )));
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the token ids of a prompt: [`Tokenizer::prefix`], then the text's.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok([self.prefix.as_slice(), &self.encode(text)?].concat())
    }

    /// Returns the ids that a prompt begins with: the BOS token, or none.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Returns the text of token ids, special tokens included.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.backend.decode(ids, false).context("token ids cannot be decoded")
    }

    /// Returns the number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.backend.get_vocab_size(true)
    }

    /// Returns the largest token id.
    pub fn largest_id(&self) -> u32 {
        self.backend.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// Counts the tokens of the model's own vocabulary, added ones apart, with an id of `size` or
    /// more.
    pub(crate) fn vocabulary_beyond(&self, size: usize) -> usize {
        let added = self.backend.get_added_tokens_decoder();
        let ids = self.backend.get_vocab(true).into_values();
        ids.filter(|id| *id as usize >= size && !added.contains_key(id)).count()
    }

    /// Returns the end-of-sequence token's id.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Returns the beginning-of-sequence token's id, if the tokenizer names one;
    /// [`Tokenizer::prefix`] says whether prompts begin with it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Returns a token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.backend.id_to_token(id)
    }

    /// Returns the tokenizer as `tokenizer.json`; [`Tokenizer::from_json`] and transformers read
    /// it.
    pub fn to_json(&self) -> String {
        self.json.clone()
    }
}

/// Returns the special tokens that the post-processor puts before a text.
fn prefix(backend: &Backend) -> Result<Vec<u32>> {
    if backend.get_post_processor().is_none() {
        return Ok(Vec::new());
    }
    for text in ["a", "1", "."] {
        let encoding = backend.encode(text, true).map_err(|e| Error::failed(format!("the post-processor: {e}")))?;
        let special = encoding.get_special_tokens_mask();
        if let Some(count) = special.iter().position(|&special| special == 0) {
            return Ok(encoding.get_ids()[..count].to_vec());
        }
    }
    Ok(Vec::new())
}

/// Makes the post-processor that puts `bos` before a text.
pub(crate) fn begin_with(backend: &Backend, bos: u32) -> Result<PostProcessorWrapper> {
    let Some(token) = backend.id_to_token(bos) else {
        return Err(Error::failed(format!("the beginning-of-sequence token {bos} is not in the tokenizer")));
    };
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [special, text("A")],
        "pair": [special, text("A"), text("B")],
        "special_tokens": {token.clone(): {"id": token, "ids": [bos], "tokens": [token]}},
    });
    serde_json::from_value(template).context("the post-processor")
}

#[cfg(test)]
mod tests;
