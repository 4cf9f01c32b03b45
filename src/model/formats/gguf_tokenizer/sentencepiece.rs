//! SentencePiece's BPE: spaces as `▁`, bytes for characters without a token, merges by score.

use std::collections::HashMap;

use tokenizers::Tokenizer as Backend;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use super::{GgufVocabulary, UNKNOWN, USER_DEFINED, refuse};
use crate::{Context, Result};

/// Longest piece, in characters: merges of longer ones would take quadratic time to find, and no
/// SentencePiece vocabulary has any.
const LONGEST_PIECE: usize = 512;

/// The parts of a text that get a space before them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum SpacePrefix {
    /// No part: Gemma.
    Never,
    /// Every part of a text between special tokens, also one that begins with a space: Llama 2 and
    /// its descendants.
    EveryPart,
    /// The text, unless it begins with a space: Mistral since its third tokenizer.
    First,
}

impl GgufVocabulary {
    pub(super) fn sentencepiece(&self) -> Result<Backend> {
        let pieces: Vec<String> = (0..self.tokens.len()).map(|id| self.piece(id)).collect();
        let mut vocab = Vocab::default();
        vocab.extend(pieces.iter().cloned().zip(0..));
        if !self.legacy
            && !vocab.contains_key("\t")
            && let Some(&tab) = vocab.get("<0x09>")
        {
            // As in Gemma's own file: merges may make tokens of several tabs.
            if pieces.iter().any(|piece| piece.starts_with('\t')) {
                vocab.insert("\t".into(), tab);
            }
        }
        let merges = self.sentencepiece_merges(&pieces, &vocab)?;
        let mut model = BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(true);
        let unknown =
            self.unknown.map(|id| id as usize).or_else(|| self.types.iter().position(|kind| *kind == UNKNOWN));
        if let Some(unknown) = unknown.and_then(|id| pieces.get(id)).filter(|_| !self.legacy) {
            model = model.unk_token(unknown.clone());
        }
        let mut backend = Backend::new(model.build().context("tokenizer.ggml.tokens")?);
        let prefix = self.space_prefix();
        match prefix {
            SpacePrefix::First => {
                backend.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::First, false)));
            }
            SpacePrefix::EveryPart | SpacePrefix::Never => {
                let mut steps = Vec::new();
                if prefix == SpacePrefix::EveryPart {
                    steps.push(NormalizerWrapper::from(Prepend::new("▁".into())));
                }
                steps.push(Replace::new(" ", "▁").context("the normalizer")?.into());
                backend.with_normalizer(Some(NormalizerSequence::new(steps))).context("the normalizer")?;
            }
        }
        let spaces = Replace::new("▁", " ").context("the decoder")?;
        let mut steps = vec![DecoderWrapper::from(spaces), ByteFallback::default().into(), Fuse::default().into()];
        if prefix != SpacePrefix::Never {
            steps.push(Strip::new(' ', 1, 0).into());
        }
        backend.with_decoder(Some(DecoderSequence::new(steps)));
        self.add_special_tokens(&mut backend, |id| pieces.get(id).cloned())?;
        Ok(backend)
    }

    fn space_prefix(&self) -> SpacePrefix {
        let has_instruction_tokens =
            || (0..self.tokens.len()).any(|id| self.tokens[id] == "[INST]" && self.is_added(id));
        match self.add_space_prefix {
            _ if self.legacy => SpacePrefix::First,
            Some(false) => SpacePrefix::Never,
            _ if has_instruction_tokens() => SpacePrefix::First,
            _ => SpacePrefix::EveryPart,
        }
    }

    /// Returns a token as the publisher's vocabulary spells it: llama.cpp's converter writes spaces
    /// in user-defined tokens as they are.
    fn piece(&self, id: usize) -> String {
        let token = &self.tokens[id];
        match !self.legacy && self.kind(id) == USER_DEFINED {
            true => token.replace(' ', "▁"),
            false => token.clone(),
        }
    }

    /// Returns every way to make a token of two others, by descending score, then descending length
    /// of the left and the right part in characters (`generate_merges` of transformers).
    /// User-defined tokens come before all others in the order of their ids: SentencePiece takes
    /// them whole, and the converter leaves them no score.
    fn sentencepiece_merges(&self, pieces: &[String], vocab: &Vocab) -> Result<Merges> {
        if let Some(merges) = &self.merges {
            let split = |merge: &String| {
                let pair = merge.split_once(' ').filter(|(l, r)| vocab.contains_key(&format!("{l}{r}")));
                pair.map(|(left, right)| (left.to_owned(), right.to_owned()))
            };
            let pairs: Option<Merges> = merges.iter().map(split).collect();
            return match pairs {
                Some(pairs) => Ok(pairs),
                None => refuse("tokenizer.ggml.merges: a merge does not make a token"),
            };
        }
        let Some(scores) = self.scores.as_ref().filter(|scores| scores.len() == pieces.len()) else {
            return refuse("tokenizer.ggml.scores: is missing or not one per token");
        };
        let last: HashMap<&str, usize> = pieces.iter().map(String::as_str).zip(0..).collect();
        let mut unseen = last.clone();
        let mut merges = Vec::new();
        for piece in pieces {
            // A token that comes twice counts once, with its last score.
            let Some(id) = unseen.remove(piece.as_str()) else {
                continue;
            };
            if piece.len() > LONGEST_PIECE {
                continue;
            }
            let first = !self.legacy && self.kind(id) == USER_DEFINED;
            let mut parts: Vec<(u32, u32, &str, &str)> = Vec::new();
            for (at, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(at);
                if let (Some(&l), Some(&r)) = (vocab.get(left), vocab.get(right)) {
                    parts.push((l, r, left, right));
                }
            }
            parts.sort_by_key(|(l, r, ..)| (*l, *r));
            // These come below all others, in the order of their ids.
            let rank = if first { (0, id, 0.0) } else { (1, 0, scores[id]) };
            merges.extend(parts.into_iter().map(|(_, _, left, right)| (rank, left, right)));
        }
        let length = |text: &str| text.chars().count();
        merges.sort_by(|((group_a, id_a, score_a), left_a, right_a), ((group_b, id_b, score_b), left_b, right_b)| {
            let order = (group_a, id_a).cmp(&(group_b, id_b)).then(score_b.total_cmp(score_a));
            // Gemma's own file lists the merges of a user-defined token by ascending length.
            match group_a {
                0 => order.then((length(left_a), length(right_a)).cmp(&(length(left_b), length(right_b)))),
                _ => order.then((length(left_b), length(right_b)).cmp(&(length(left_a), length(right_a)))),
            }
        });
        Ok(merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect())
    }
}
