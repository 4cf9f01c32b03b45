//! Byte-level BPE, with the split that `tokenizer.ggml.pre` names.

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split as SplitBy, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Backend};

use super::{GgufVocabulary, print_note, refuse};
use crate::text::tokenizer::{LLAMA3_SPLIT, split_then_bytes};
use crate::{Context, Result};

/// Qwen 2 and 3 split text as Llama 3 does, but every digit alone.
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The split of Mistral's Tekken.
const TEKKEN_SPLIT: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The split of GPT-4o and Llama 4.
const GPT4O_SPLIT: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The splits of DeepSeek-Coder, one expression after the other; then every digit alone.
const DEEPSEEK_CODER_SPLITS: [&str; 4] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"];

/// The split of text before BPE.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Split {
    /// GPT-2's expression.
    Gpt2,
    /// Every digit alone, then GPT-2's expression.
    Digits,
    /// One expression.
    By(&'static str),
    /// [`DEEPSEEK_CODER_SPLITS`].
    DeepSeekCoder,
}

/// The pre-tokenization that a name of `tokenizer.ggml.pre` stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rule {
    split: Split,
    /// Whether a piece that is a token is never cut up by merges.
    ignore_merges: bool,
    /// Whether text is first converted to Unicode's normal form C.
    nfc: bool,
}

/// Returns the rules of the publishers' `tokenizer.json`, by llama.cpp's names.
fn rule(pre: &str) -> Option<Rule> {
    let rule = |split, ignore_merges, nfc| Some(Rule { split, ignore_merges, nfc });
    match pre {
        "gpt-2" | "phi-2" => rule(Split::Gpt2, false, false),
        "smollm" | "starcoder" | "refact" => rule(Split::Digits, false, false),
        // smaug-bpe is what llama.cpp's converter calls Llama 3's tokenizer where it puts no BOS.
        "llama3" | "llama-v3" | "llama-bpe" | "smaug-bpe" => rule(Split::By(LLAMA3_SPLIT), true, false),
        "dbrx" => rule(Split::By(LLAMA3_SPLIT), false, false),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => rule(Split::By(QWEN2_SPLIT), false, true),
        "tekken" => rule(Split::By(TEKKEN_SPLIT), true, false),
        "gpt-4o" | "llama4" => rule(Split::By(GPT4O_SPLIT), false, false),
        "deepseek-coder" => rule(Split::DeepSeekCoder, false, false),
        _ => None,
    }
}

impl Split {
    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper> {
        let bytes = |uses_regex| ByteLevel::new(false, true, uses_regex);
        let sequence = |parts: Vec<PreTokenizerWrapper>| Sequence::new(parts).into();
        Ok(match self {
            Self::Gpt2 => bytes(true).into(),
            Self::Digits => sequence(vec![Digits::new(true).into(), bytes(true).into()]),
            Self::By(expression) => split_then_bytes(expression)?.into(),
            Self::DeepSeekCoder => {
                let mut parts = Vec::new();
                for expression in DEEPSEEK_CODER_SPLITS {
                    let pattern = SplitPattern::Regex(expression.to_owned());
                    let split = SplitBy::new(pattern, SplitDelimiterBehavior::Isolated, false);
                    parts.push(split.context("the pre-tokenizer's pattern")?.into());
                }
                parts.push(Digits::new(true).into());
                parts.push(bytes(false).into());
                sequence(parts)
            }
        })
    }
}

impl GgufVocabulary {
    pub(super) fn byte_level(&self) -> Result<Backend> {
        let rule = self.rule()?;
        let spelling = spelling();
        let is_spelled = |token: &str| token.chars().all(is_spelling);
        // Added tokens are matched in the text as it is, so they are spelled as it is; any other
        // token in other characters is a converter's slip.
        let keeps_spelling = |id: usize, token: &str| is_spelled(token) || (!self.legacy && self.is_added(id));
        let vocab: Vocab = (self.tokens.iter().enumerate())
            .map(|(id, token)| {
                let bytes = || token.bytes().filter_map(|byte| spelling.get(byte as usize));
                (if keeps_spelling(id, token) { token.clone() } else { bytes().collect() }, id as u32)
            })
            .collect();
        let Some(merges) = &self.merges else {
            return refuse("no metadata key tokenizer.ggml.merges");
        };
        let mut pairs = Merges::new();
        for merge in merges {
            match merge.split_once(' ') {
                Some((left, right)) if vocab.contains_key(&format!("{left}{right}")) => {
                    pairs.push((left.to_owned(), right.to_owned()));
                }
                _ => return refuse(format!("tokenizer.ggml.merges: the merge {merge:?} does not make a token")),
            }
        }
        let model = BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(rule.ignore_merges);
        let mut backend = Backend::new(model.build().context("tokenizer.ggml.merges")?);
        if rule.nfc {
            backend.with_normalizer(Some(NFC)).context("the normalizer")?;
        }
        backend.with_pre_tokenizer(Some(rule.split.pre_tokenizer()?));
        backend.with_decoder(Some(ByteLevelDecoder::default()));
        self.add_special_tokens(&mut backend, |id| {
            let token = self.tokens.get(id)?;
            // As before: of the tokens in other characters only those with a role.
            let skipped = self.legacy && !is_spelled(token) && !self.special.contains(&(id as u32));
            (!skipped).then(|| token.clone())
        })?;
        Ok(backend)
    }

    fn rule(&self) -> Result<Rule> {
        let gpt2 = Rule { split: Split::Gpt2, ignore_merges: false, nfc: false };
        let known = match self.pre.as_deref() {
            _ if self.legacy => match self.pre.as_deref() {
                Some("llama3" | "llama-v3" | "llama-bpe") => Some(Rule { split: Split::By(LLAMA3_SPLIT), ..gpt2 }),
                None | Some("default" | "gpt-2" | "smollm") => Some(gpt2),
                Some(_) => None,
            },
            None | Some("default") => return self.recognised_rule(),
            Some(pre) => rule(pre),
        };
        match known {
            Some(rule) => Ok(rule),
            None => refuse(format!(
                "tokenizer.ggml.pre {:?} is not supported, only \"gpt-2\", \"smollm\", \"llama-bpe\", \"smaug-bpe\", \
                 \"dbrx\", \"qwen2\", \"tekken\", \"gpt-4o\", \"deepseek-coder\" and their like are; use the Hugging \
                 Face directory",
                self.pre.as_deref().unwrap_or_default()
            )),
        }
    }

    /// Recognises the split that a vocabulary was trained with, where the file names none: a token
    /// is part of one piece of the split. GPT-2's split puts no letter after a mark in one piece
    /// (but for `'s` and the like); of the splits that do, Llama 3's takes up to three digits
    /// together, Qwen's one.
    fn recognised_rule(&self) -> Result<Rule> {
        let missing = match &self.pre {
            None => "tokenizer.ggml.pre is missing",
            Some(_) => "tokenizer.ggml.pre is \"default\"",
        };
        let learnt = || (0..self.tokens.len()).filter(|&id| !self.is_added(id)).map(|id| self.tokens[id].as_str());
        let is_letter = |c: char| c.is_ascii_alphabetic();
        let mark_then_letters = |token: &str| {
            let mut characters = token.chars();
            let first = characters.next().is_some_and(|c| c.is_ascii_punctuation() && c != '\'');
            first && token.len() > 1 && characters.all(is_letter)
        };
        let digits = |token: &str| if token.chars().all(|c| c.is_ascii_digit()) { token.len() } else { 0 };
        let longest_number = learnt().map(digits).max().unwrap_or(0);
        let (name, pre) = match learnt().any(mark_then_letters) {
            false => ("GPT-2", "gpt-2"),
            true if longest_number <= 1 => ("Qwen 2", "qwen2"),
            true if longest_number <= 3 => ("Llama 3", "llama-bpe"),
            true => {
                return refuse(format!(
                    "{missing}, and the vocabulary is none whose split is known; use the Hugging Face directory, or \
                     convert it anew with a recent llama.cpp"
                ));
            }
        };
        print_note(&format!(
            "{missing}: text is split as {name} splits it, which fits the vocabulary; convert the file anew with a \
             recent llama.cpp to be sure"
        ));
        match rule(pre) {
            Some(rule) => Ok(rule),
            None => refuse(missing),
        }
    }
}

/// Returns the character that byte-level BPE writes for each byte (GPT-2's `bytes_to_unicode`): the
/// byte itself where that is printable Latin-1, else the next character from U+0100.
pub(super) fn spelling() -> Vec<char> {
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

/// Returns whether [`spelling`] has this character.
pub(super) fn is_spelling(c: char) -> bool {
    matches!(c, '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{143}')
}
