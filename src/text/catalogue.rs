//! The catalogue as the LLM writes it: every item's target tokens, and the trie of them.

use super::{Tokenizer, Trie};
use crate::{Context, Result};

/// Every item's target `"title"<EOS>` as tokens, tokenised alone (never together with a prompt),
/// and their trie.
///
/// Source: MSL's released code; the quotes make no title the beginning of another, the EOS token is
/// the last level.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// `[items][target length]`, EOS included.
    pub targets: Vec<Vec<u32>>,
    /// The trie of `targets`.
    pub trie: Trie,
}

impl Catalogue {
    /// A title as the LLM writes it, without the EOS token after it.
    pub fn target_text(title: &str) -> String {
        format!("\"{title}\"")
    }

    /// Tokenises `titles`, one an item.
    ///
    /// # Errors
    /// An empty catalogue, or a title that cannot be tokenised.
    pub fn new<'a>(tokenizer: &Tokenizer, titles: impl Iterator<Item = &'a str>) -> Result<Self> {
        let targets = titles
            .enumerate()
            .map(|(item, title)| {
                let mut tokens =
                    tokenizer.encode(&Self::target_text(title)).context(format!("item {item}, title {title:?}"))?;
                tokens.push(tokenizer.eos());
                Ok(tokens)
            })
            .collect::<Result<Vec<_>>>()?;
        let trie = Trie::build(&targets)?;
        Ok(Self { targets, trie })
    }
}
