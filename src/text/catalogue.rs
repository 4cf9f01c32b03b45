//! The catalogue as the LLM writes it: every item's target tokens, and the trie of them.

use super::{Tokenizer, Trie};
use crate::{Context, Error, Result};

/// Every item's target `"title"<EOS>` as tokens, tokenised alone (never together with a prompt),
/// and their trie.
///
/// Source: MSL's released code. With the quotes no title is a prefix of another; the EOS token is
/// the last level of the trie.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// `[items][target length]`: token ids, EOS included.
    pub targets: Vec<Vec<u32>>,
    /// The trie of `targets`.
    pub trie: Trie,
}

impl Catalogue {
    /// Returns a title as the LLM writes it, without the EOS token after it.
    pub fn target_text(title: &str) -> String {
        format!("\"{title}\"")
    }

    /// Tokenises `titles`, one for each item, in their order. The text of a special token in a
    /// title is plain text.
    ///
    /// # Errors
    /// An empty catalogue; a title that cannot be tokenised, or whose tokens hold EOS (of a
    /// tokenizer that makes it of plain text), by its index and text.
    pub fn new<'a>(tokenizer: &Tokenizer, titles: impl Iterator<Item = &'a str>) -> Result<Self> {
        let targets = titles
            .enumerate()
            .map(|(item, title)| {
                let place = || format!("item {item}, title {:?}", title.chars().take(80).collect::<String>());
                let mut tokens = tokenizer.encode_literal(&Self::target_text(title)).context(place())?;
                if tokens.contains(&tokenizer.eos()) {
                    let eos = tokenizer.token(tokenizer.eos()).unwrap_or_default();
                    return Err(Error::failed(format!(
                        "{}: it holds the end-of-sequence token {eos:?}, after which nothing is written; change the \
                         title",
                        place()
                    )));
                }
                tokens.push(tokenizer.eos());
                Ok(tokens)
            })
            .collect::<Result<Vec<_>>>()?;
        let trie = Trie::build(&targets)?;
        Ok(Self { targets, trie })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_eos_in_a_title_is_text() {
        let texts = ["Red Pen", "Blue Pen <|endoftext|> x"].map(String::from);
        let tokenizer = Tokenizer::train_bpe(texts.iter().cycle().take(50).cloned(), 300).unwrap();
        let titles = ["Pen", "Pen <|endoftext|>", "Pen <|endoftext|> 2", "<|endoftext|>", "Pen", ""];
        let catalogue = Catalogue::new(&tokenizer, titles.into_iter()).unwrap();
        assert_eq!(catalogue.trie.leaves(), 5, "equal titles share a leaf, others do not");
        for (title, target) in titles.iter().zip(&catalogue.targets) {
            assert_eq!(target.iter().filter(|&&token| token == tokenizer.eos()).count(), 1);
            assert_eq!(tokenizer.decode(&target[..target.len() - 1]).unwrap(), Catalogue::target_text(title));
        }
    }

    /// Titles that a normalizer makes equal share a leaf, which holds all their items; a tokenizer
    /// of whole words makes EOS of plain text: the error names that title.
    #[test]
    fn titles_that_tokenise_alike_and_unusable_titles() {
        let json = |lowercase: &str| {
            format!(
                r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
                "normalizer": {lowercase},
                "pre_tokenizer": {{"type": "WhitespaceSplit"}}, "post_processor": null, "decoder": null,
                "model": {{"type": "WordLevel",
                "vocab": {{"[UNK]": 0, "\"pen": 1, "x\"": 2, "</s>": 3, "blue": 4}}, "unk_token": "[UNK]"}}}}"#
            )
        };
        let tokenizer = Tokenizer::from_json(&json(r#"{"type": "Lowercase"}"#), 3).unwrap();
        let catalogue = Catalogue::new(&tokenizer, ["Pen x", "pen Blue x", "PEN X"].into_iter()).unwrap();
        assert_eq!((catalogue.trie.leaves(), catalogue.targets[0].len()), (2, 3));
        assert!(catalogue.trie.items(catalogue.trie.leaf(2)).eq([0, 2]));
        let error = Catalogue::new(&tokenizer, ["pen x", "pen </s> x"].into_iter()).unwrap_err().to_string();
        assert!(
            error.contains("item 1") && error.contains("pen </s> x") && error.contains("end-of-sequence"),
            "{error}"
        );
        assert!(Catalogue::new(&tokenizer, [].into_iter()).is_err());
    }
}
