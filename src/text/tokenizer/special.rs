//! The texts of special tokens, which a title may hold as plain text.

use std::ops::Range;

use tokenizers::Tokenizer as Backend;

/// The special tokens of a tokenizer, by their texts.
#[derive(Debug, Clone)]
pub(super) struct SpecialTokens {
    /// Text and id, longer texts first.
    tokens: Vec<(String, u32)>,
    /// `[256]`: whether the text of a token begins with the byte.
    first_bytes: Vec<bool>,
}

impl SpecialTokens {
    pub fn new(backend: &Backend) -> Self {
        let added = backend.get_added_tokens_decoder().into_iter();
        let mut tokens: Vec<(String, u32)> = added
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content, id))
            .collect();
        tokens.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.cmp(b)));
        let mut first_bytes = vec![false; 256];
        tokens.iter().for_each(|(text, _)| first_bytes[usize::from(text.as_bytes()[0])] = true);
        Self { tokens, first_bytes }
    }

    /// Returns where the first special token in `text` is, and its id; of several at one place, the
    /// longest.
    pub fn find(&self, text: &str) -> Option<(Range<usize>, u32)> {
        let starts = text.bytes().enumerate().filter(|&(_, byte)| self.first_bytes[usize::from(byte)]);
        starts.into_iter().find_map(|(start, _)| {
            let (token, id) =
                self.tokens.iter().find(|(token, _)| text.as_bytes()[start..].starts_with(token.as_bytes()))?;
            Some((start..start + token.len(), *id))
        })
    }
}
