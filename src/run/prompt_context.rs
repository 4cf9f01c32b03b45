//! What turns windows into prompts, and leaves of the trie into items.

use crate::data::{Corpus, Window};
use crate::decode::TriePrior;
use crate::text::{Catalogue, EntityTokens, Node, Prompt, PromptSegment, PromptValue, PromptValues, Tokenizer};
use crate::{Error, Result};

/// The texts of a run: corpus, prompt, tokenizer, catalogue, and how items and users are shown.
#[derive(Clone)]
pub struct PromptContext {
    /// The corpus.
    pub corpus: Corpus,
    /// What an item is called, one an item; `None` for its title.
    pub names: Option<Vec<String>>,
    /// The prompt template.
    pub prompt: Prompt,
    /// The base model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Target tokens and trie.
    pub catalogue: Catalogue,
    /// Tokens that the model was made for.
    pub context: usize,
    /// The run file's, fitted on the corpus's training windows; with the run file's weight.
    pub prior: Option<TriePrior>,
    /// The tokens of items and users, where they have vectors.
    pub entities: Option<EntityTokens>,
    /// Whether an item's or user's text stands before its vectors.
    pub beside_text: bool,
}

/// # Errors
/// A prompt that leaves no room for the longest title.
pub fn check_context(prompt: usize, catalogue: &Catalogue, context: usize) -> Result<()> {
    let needed = prompt + catalogue.trie.depth();
    match needed <= context {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "a prompt of {prompt} tokens and the longest title need {needed}, the model's max_position_embeddings is {context}; shorten the history"
        ))),
    }
}

/// What items are called: an attribute of the corpus that every item has.
///
/// # Errors
/// No such attribute, or an item without it.
pub fn names(corpus: &Corpus, attribute: Option<&str>) -> Result<Option<Vec<String>>> {
    let Some(attribute) = attribute else { return Ok(None) };
    let known = || corpus.attributes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let values = corpus.attributes.get(attribute).ok_or_else(|| {
        Error::usage(format!(
            "items.text is {attribute:?}; the corpus has title{}{}",
            if known().is_empty() { "" } else { ", " },
            known()
        ))
    })?;
    let name = |(item, value): (usize, &Option<String>)| {
        let id = &corpus.items[item].id;
        value.clone().ok_or_else(|| Error::failed(format!("item {id} has no {attribute}, which items.text asks for")))
    };
    values.iter().enumerate().map(name).collect::<Result<Vec<_>>>().map(Some)
}

impl PromptContext {
    /// What an item is called.
    pub fn name(&self, item: u32) -> &str {
        match &self.names {
            Some(names) => &names[item as usize],
            None => self.corpus.title(item),
        }
    }

    /// An item of the catalogue as prompts show it.
    pub fn item(&self, item: u32) -> PromptValue {
        PromptValue {
            text: self.text(Catalogue::target_text(self.name(item))),
            vectors: self.entities.map(|e| e.item(item)),
        }
    }

    /// A user as prompts show it.
    pub fn user(&self, user: u32) -> PromptValue {
        PromptValue {
            text: self.text(self.corpus.user_id(user).to_string()),
            vectors: self.entities.map(|e| e.user(user)),
        }
    }

    fn text(&self, text: String) -> Option<String> {
        Some(text).filter(|_| self.beside_text)
    }

    /// The tokens of a prompt that an item follows: [`PromptContext::render`].
    ///
    /// # Errors
    /// An empty prompt, or one that leaves no room for the longest title.
    pub fn tokens(&self, prompt: &Prompt, filling: &PromptValues) -> Result<Vec<u32>> {
        let tokens = self.render(prompt, filling)?;
        check_context(tokens.len(), &self.catalogue, self.context)?;
        Ok(tokens)
    }

    /// The tokens of a prompt, of any length: the BOS token where the tokenizer puts one first, then
    /// each text between vectors tokenised as one.
    ///
    /// # Errors
    /// An empty prompt.
    pub fn render(&self, prompt: &Prompt, filling: &PromptValues) -> Result<Vec<u32>> {
        let mut tokens = self.tokenizer.prefix().to_vec();
        tokens.extend(prompt.tokens(filling, &self.tokenizer)?);
        if tokens.len() == self.tokenizer.prefix().len() {
            return Err(Error::usage("the prompt template gives no token at all"));
        }
        Ok(tokens)
    }

    /// No fewer than the prompt's tokens, without tokenising: a token is a byte at least.
    pub fn most_tokens(&self, prompt: &Prompt, filling: &PromptValues) -> usize {
        let bytes = |segment: PromptSegment| match segment {
            // Some tokenizers put a space before each text.
            PromptSegment::Text(text) => text.len() + 1,
            PromptSegment::Vectors(vectors) => vectors.len(),
        };
        self.tokenizer.prefix().len() + prompt.render(filling).into_iter().map(bytes).sum::<usize>()
    }

    /// What stands in a window's prompt.
    pub fn filling(&self, window: &Window) -> PromptValues<'_> {
        let history = self.corpus.history(window).iter().map(|&item| self.item(item)).collect();
        PromptValues { history, items: Vec::new(), user: self.user(window.user), dataset: &self.corpus.name }
    }

    /// The tokens of a window's prompt.
    ///
    /// # Errors
    /// Those of [`PromptContext::tokens`].
    pub fn window_tokens(&self, window: &Window) -> Result<Vec<u32>> {
        self.tokens(&self.prompt, &self.filling(window))
    }

    /// The item of that name, the first of several.
    pub fn item_of(&self, name: &str) -> Option<u32> {
        let mut items = 0..self.corpus.items.len() as u32;
        items.find(|&item| self.name(item) == name)
    }

    /// Items known by name or not, as prompts show them.
    ///
    /// # Errors
    /// One that is not in the catalogue, where there is no text to stand for it.
    pub fn history<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Vec<PromptValue>> {
        names
            .map(|name| match (self.item_of(name), self.text(Catalogue::target_text(name))) {
                (Some(item), _) => Ok(self.item(item)),
                (None, Some(text)) => Ok(PromptValue { text: Some(text), vectors: None }),
                (None, None) => Err(Error::failed(format!(
                    "{name:?} is not in the catalogue, and this run's prompts show items by their vectors alone (items.beside_text = false)"
                ))),
            })
            .collect()
    }

    /// Returns the rank of the target in a ranking of leaves, from 0; `None` if it is not there.
    ///
    /// A hit is an equal name: that of any item of the leaf, for names that differ may tokenise
    /// alike.
    pub fn rank_of(&self, target: u32, ranking: impl IntoIterator<Item = Node>) -> Option<u32> {
        let name = self.name(target);
        let hit = |leaf: Node| self.catalogue.trie.items(leaf).any(|item| self.name(item) == name);
        ranking.into_iter().position(hit).map(|rank| rank as u32)
    }

    /// What identifies the prompt template, whatever fills it.
    pub fn template(prompt: &Prompt) -> String {
        let shown = |text: &str| PromptValue { text: Some(text.into()), vectors: None };
        let filling = PromptValues {
            history: vec![shown("\"history\"")],
            items: vec![shown("{item}"); prompt.items()],
            user: shown("{user}"),
            dataset: "{dataset}",
        };
        prompt.text(&filling)
    }
}
