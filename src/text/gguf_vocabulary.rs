//! The tokenizer that a GGUF file's metadata describes, built as transformers 5 builds it
//! (`integrations/gguf/gguf_tokenizer_mapping.py`).

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::Replace;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Backend};

use crate::{Context, Error, Result};

/// Longer pieces would take quadratic time to find merges for, and no SentencePiece vocabulary has
/// them.
const LONGEST_PIECE: usize = 512;

/// How Llama 3 splits text before BPE: an opening quote stays with its word.
pub(super) const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Splits text by a regular expression, then into bytes.
pub(super) fn split_then_bytes(split: &str) -> Result<Sequence> {
    let split = SplitPattern::Regex(split.to_owned());
    let split = Split::new(split, SplitDelimiterBehavior::Isolated, false).context("the pre-tokenizer's pattern")?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]))
}

/// The `tokenizer.ggml.*` metadata.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// How text is split before byte-level BPE.
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
    /// The ids of the tokens with a role (begin, end, unknown, padding).
    pub special: Vec<u32>,
}

impl GgufVocabulary {
    pub(super) fn build(self) -> Result<Backend> {
        match self.model.as_str() {
            "gpt2" => self.byte_level(),
            "llama" => self.sentencepiece(),
            other => Err(Error::failed(format!(
                "tokenizer.ggml.model {other:?} is not supported, only \"gpt2\" and \"llama\" are; use the Hugging Face directory"
            ))),
        }
    }

    fn byte_level(self) -> Result<Backend> {
        let split = match self.pre.as_deref() {
            None | Some("default" | "gpt-2" | "smollm") => None,
            Some("llama3" | "llama-v3" | "llama-bpe") => Some(LLAMA3_SPLIT),
            Some(other) => {
                return Err(Error::failed(format!(
                    "tokenizer.ggml.pre {other:?} is not supported, only \"default\", \"gpt-2\", \"smollm\" and \"llama-bpe\" are; use the Hugging Face directory"
                )));
            }
        };
        let spelling = spelling();
        let spelled = |token: &str| token.chars().all(is_spelling);
        let vocab: Vocab = (self.tokens.iter().zip(0..))
            .map(|(token, id)| {
                let bytes = || token.bytes().filter_map(|byte| spelling.get(byte as usize));
                (if spelled(token) { token.clone() } else { bytes().collect() }, id)
            })
            .collect();
        let Some(merges) = &self.merges else {
            return Err(Error::failed("no metadata key tokenizer.ggml.merges"));
        };
        let mut pairs = Merges::new();
        for merge in merges {
            match merge.split_once(' ') {
                Some((left, right)) if vocab.contains_key(&format!("{left}{right}")) => {
                    pairs.push((left.to_owned(), right.to_owned()));
                }
                _ => {
                    let message = format!("tokenizer.ggml.merges: the merge {merge:?} does not make a token");
                    return Err(Error::failed(message));
                }
            }
        }
        let model = BPE::builder().vocab_and_merges(vocab, pairs).build().context("tokenizer.ggml.merges")?;
        let mut backend = Backend::new(model);
        match split {
            None => {
                backend.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
            }
            Some(split) => {
                backend.with_pre_tokenizer(Some(split_then_bytes(split)?));
            }
        }
        backend.with_decoder(Some(ByteLevelDecoder::default()));
        // A "control" token in other characters is a mislabel of llama.cpp's converter.
        self.add_special_tokens(&mut backend, spelled)?;
        Ok(backend)
    }

    fn sentencepiece(self) -> Result<Backend> {
        let mut vocab = Vocab::default();
        vocab.extend(self.tokens.iter().cloned().zip(0..));
        let merges = self.sentencepiece_merges(&vocab)?;
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .fuse_unk(true)
            .byte_fallback(true)
            .build()
            .context("tokenizer.ggml.tokens")?;
        let mut backend = Backend::new(model);
        backend.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::First, false)));
        let spaces = Replace::new("▁", " ").context("the decoder")?;
        backend.with_decoder(Some(DecoderSequence::new(vec![
            DecoderWrapper::from(spaces),
            ByteFallback::default().into(),
            Fuse::default().into(),
            Strip::new(' ', 1, 0).into(),
        ])));
        self.add_special_tokens(&mut backend, |_| true)?;
        Ok(backend)
    }

    /// Every way to make a token of two others, by descending score, then descending length of the
    /// left and the right part in characters (`generate_merges` of transformers).
    fn sentencepiece_merges(&self, vocab: &Vocab) -> Result<Merges> {
        if let Some(merges) = &self.merges {
            let split = |merge: &String| {
                let pair = merge.split_once(' ').filter(|(l, r)| vocab.contains_key(&format!("{l}{r}")));
                pair.map(|(left, right)| (left.to_owned(), right.to_owned()))
            };
            let pairs: Option<Merges> = merges.iter().map(split).collect();
            return pairs.ok_or_else(|| Error::failed("tokenizer.ggml.merges: a merge does not make a token"));
        }
        let Some(scores) = self.scores.as_ref().filter(|scores| scores.len() == self.tokens.len()) else {
            return Err(Error::failed("tokenizer.ggml.scores: is missing or not one per token"));
        };
        let last_score: HashMap<&str, f32> =
            self.tokens.iter().map(String::as_str).zip(scores.iter().copied()).collect();
        let mut seen = last_score.clone();
        let mut merges = Vec::new();
        for token in &self.tokens {
            // A token that comes twice counts once, with its last score.
            let Some(score) = seen.remove(token.as_str()) else {
                continue;
            };
            if token.len() > LONGEST_PIECE {
                continue;
            }
            let mut parts: Vec<(u32, u32, &str, &str)> = Vec::new();
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&l), Some(&r)) = (vocab.get(left), vocab.get(right)) {
                    parts.push((l, r, left, right));
                }
            }
            parts.sort_by_key(|(l, r, ..)| (*l, *r));
            merges.extend(parts.into_iter().map(|(_, _, left, right)| (score, left, right)));
        }
        let length = |text: &str| text.chars().count();
        merges.sort_by(|(score_a, left_a, right_a), (score_b, left_b, right_b)| {
            let lengths = (length(left_b), length(right_b)).cmp(&(length(left_a), length(right_a)));
            score_b.total_cmp(score_a).then(lengths)
        });
        Ok(merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect())
    }

    /// Control tokens, and those with a role, are matched whole as special tokens; user-defined
    /// ones as plain added tokens.
    fn add_special_tokens(&self, backend: &mut Backend, spelled: impl Fn(&str) -> bool) -> Result<()> {
        let kinds = self.types.iter().copied().chain(std::iter::repeat(0.0));
        let (mut special, mut plain) = (Vec::new(), Vec::new());
        for ((id, token), kind) in (0..).zip(&self.tokens).zip(kinds) {
            let known = backend.token_to_id(token).is_some();
            if known && ((kind == 3.0 && spelled(token)) || self.special.contains(&id)) {
                special.push(AddedToken::from(token.as_str(), true).normalized(false));
            } else if known && kind == 4.0 {
                plain.push(AddedToken::from(token.as_str(), false).normalized(false));
            }
        }
        backend.add_special_tokens(special).context("tokenizer.ggml.token_type")?;
        backend.add_tokens(plain).context("tokenizer.ggml.token_type")?;
        Ok(())
    }
}

/// The character that byte-level BPE writes for each byte (GPT-2's `bytes_to_unicode`): itself
/// where that is printable Latin-1, else the next one from U+0100.
fn spelling() -> Vec<char> {
    let mut next = 0x100;
    let bytes = 0..=u8::MAX;
    bytes
        .map(|byte| {
            if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                return char::from(byte);
            }
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        })
        .collect()
}

/// Whether [`spelling`] has this character.
fn is_spelling(c: char) -> bool {
    matches!(c, '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{143}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::Tokenizer;

    fn byte_level() -> GgufVocabulary {
        let mut tokens: Vec<String> = spelling().into_iter().map(String::from).collect();
        tokens.extend(["<|end|>", "Ġa", "12", "<think>"].map(String::from));
        let mut types = vec![1.0; 256];
        types.extend([3.0, 1.0, 1.0, 4.0]);
        GgufVocabulary {
            model: "gpt2".into(),
            pre: Some("smollm".into()),
            tokens,
            types,
            merges: Some(vec!["Ġ a".into(), "1 2".into()]),
            eos: 256,
            special: vec![256],
            ..Default::default()
        }
    }

    #[test]
    fn spelling_is_gpt_2_s() {
        let spelling = spelling();
        assert_eq!((spelling[b' ' as usize], spelling[0xad], spelling[0xff]), ('Ġ', '\u{143}', 'ÿ'));
        let all = ('\0'..='\u{200}').filter(|&c| is_spelling(c));
        assert!(all.eq(std::collections::BTreeSet::from_iter(spelling)));
    }

    #[test]
    fn byte_level_vocabulary() {
        let tokenizer = Tokenizer::from_gguf(byte_level()).unwrap();
        assert_eq!(tokenizer.encode(" a12<|end|><think>").unwrap(), [257, 258, 256, 259]);
        assert_eq!(tokenizer.decode(&[257, 258, 256]).unwrap(), " a12<|end|>");
        for text in ["é\u{0}\n", "x  y"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        }
        let llama3 = Tokenizer::from_gguf(GgufVocabulary { pre: Some("llama-bpe".into()), ..byte_level() }).unwrap();
        assert_eq!(llama3.encode("012").unwrap(), [u32::from(b'0'), 258]);
        assert_eq!(llama3.encode("0012").unwrap().len(), 4, "digits are split by three");
    }

    /// The ids that transformers gives (tests/reference/gguf_reference.py).
    #[test]
    fn agrees_with_transformers() {
        #[derive(serde::Deserialize)]
        struct Case {
            model: String,
            pre: Option<String>,
            tokens: Vec<String>,
            types: Vec<f32>,
            scores: Option<Vec<f32>>,
            merges: Option<Vec<String>>,
            eos: u32,
            special: Vec<u32>,
            texts: Vec<String>,
            ids: Vec<Vec<u32>>,
        }
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/fixtures/gguf/tokenizers.json")).unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let Case { model, pre, tokens, types, scores, merges, eos, special, texts, ids } = case;
            let vocabulary = GgufVocabulary { model, pre, tokens, types, scores, merges, eos, special };
            let (kind, size) = (format!("{} {:?}", vocabulary.model, vocabulary.pre), vocabulary.tokens.len());
            let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
            assert_eq!(tokenizer.vocab_size(), size);
            for (text, ids) in texts.iter().zip(ids) {
                assert_eq!(tokenizer.encode(text).unwrap(), ids, "{kind}: {text:?}");
            }
        }
    }

    #[test]
    fn refuses_by_name() {
        let message = |vocabulary| Tokenizer::from_gguf(vocabulary).unwrap_err().to_string();
        assert!(message(GgufVocabulary { pre: Some("tekken".into()), ..byte_level() }).contains("tekken"));
        assert!(message(GgufVocabulary { model: "t5".into(), ..byte_level() }).contains("t5"));
        assert!(message(GgufVocabulary { merges: None, ..byte_level() }).contains("merges"));
        assert!(message(GgufVocabulary { eos: 999, ..byte_level() }).contains("999"));
        for merge in ["12 12", "x", "zz y"] {
            assert!(message(GgufVocabulary { merges: Some(vec![merge.into()]), ..byte_level() }).contains(merge));
        }
        let scoreless = GgufVocabulary { model: "llama".into(), merges: None, ..byte_level() };
        assert!(message(scoreless).contains("scores"));
    }

    #[test]
    fn sentencepiece_vocabulary() {
        let pieces: Vec<(&str, f32, f32)> = vec![
            ("<unk>", 0.0, 2.0),
            ("<s>", 0.0, 3.0),
            ("</s>", 0.0, 3.0),
            ("<0x21>", 0.0, 6.0),
            ("▁a", -1.0, 1.0),
            ("ab", -2.0, 1.0),
            ("▁ab", -3.0, 1.0),
            ("▁", -4.0, 1.0),
            ("a", -5.0, 1.0),
            ("b", -6.0, 1.0),
        ];
        let vocabulary = GgufVocabulary {
            model: "llama".into(),
            tokens: pieces.iter().map(|(piece, ..)| (*piece).to_owned()).collect(),
            scores: Some(pieces.iter().map(|(_, score, _)| *score).collect()),
            types: pieces.iter().map(|(_, _, kind)| *kind).collect(),
            eos: 2,
            special: vec![0, 1, 2],
            ..Default::default()
        };
        let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
        assert_eq!(tokenizer.encode("ab a!</s>").unwrap(), [6, 4, 3, 2]);
        assert_eq!(tokenizer.decode(&[6, 4, 3]).unwrap(), "ab a!");
    }
}
