//! Conversion of windows to prompts, and of leaves of the trie to items.

use std::sync::Arc;

use super::live_items::LiveNumbers;
use crate::config::TooLong;
use crate::data::{Corpus, Split, Window};
use crate::decode::{TriePrior, common_prefix};
use crate::text::{Catalogue, EntityTokens, Node, Prompt, PromptSegment, PromptValue, PromptValues, Tokenizer};
use crate::{Error, Result};

/// The texts of a run: corpus, prompt, tokenizer, catalogue, and the form of items and users in
/// prompts.
#[derive(Clone)]
pub struct PromptContext {
    /// The corpus.
    pub corpus: Corpus,
    /// `[items]`: each item's name; `None` for its title.
    pub names: Option<Vec<String>>,
    /// The prompt template.
    pub prompt: Prompt,
    /// The base model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Target tokens of the items, and their trie.
    pub catalogue: Catalogue,
    /// Number of tokens of the model's context.
    pub context: usize,
    /// Most items of a history in a prompt, `data.history`.
    pub history: Option<usize>,
    /// Treatment of prompts that are too long, `data.too_long`.
    pub too_long: TooLong,
    /// The run file's prior, fitted on the corpus's training windows; with the run file's weight.
    pub prior: Option<TriePrior>,
    /// The tokens of items and users, where they have vectors.
    pub entities: Option<EntityTokens>,
    /// Whether an item's or user's text stands before its vectors.
    pub beside_text: bool,
    /// Which items were trained on, where the catalogue is not the training one. The catalogue then
    /// holds the first items of the corpus.
    pub(crate) live: Option<Arc<LiveNumbers>>,
}

/// Checks that a prompt leaves room for the longest title. The title's last token, EOS, is
/// predicted and never run.
///
/// * `prompt`, `context`: numbers of tokens.
///
/// # Errors
/// A prompt that is too long.
pub fn check_context(prompt: usize, catalogue: &Catalogue, context: usize) -> Result<()> {
    let needed = tokens_to_run(prompt, catalogue);
    match needed <= context {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "a prompt of {prompt} tokens and the longest title need {needed}, the model's max_position_embeddings is \
             {context}; \
             show fewer items: data.history = N, or data.too_long = \"shorten\""
        ))),
    }
}

fn tokens_to_run(prompt: usize, catalogue: &Catalogue) -> usize {
    prompt + catalogue.trie.depth().saturating_sub(1)
}

/// Returns the items' names: an attribute of the corpus that every item has.
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
    /// Returns an item's name.
    pub fn name(&self, item: u32) -> &str {
        match &self.names {
            Some(names) => &names[item as usize],
            None => self.corpus.title(item),
        }
    }

    /// Returns an item of the catalogue in its form in prompts.
    pub fn item(&self, item: u32) -> PromptValue {
        PromptValue {
            text: self.text(Catalogue::target_text(self.name(item))),
            vectors: self.entities.and_then(|entities| Some(entities.item(self.training_number(item)?))),
        }
    }

    /// Returns an item's number in the training catalogue; `None` for one that is new since.
    fn training_number(&self, item: u32) -> Option<u32> {
        self.live.as_ref().map_or(Some(item), |numbers| numbers.training_number(item))
    }

    /// Returns whether an item of the corpus can be recommended: it is in the catalogue.
    pub fn is_recommendable(&self, item: u32) -> bool {
        (item as usize) < self.catalogue.targets.len()
    }

    /// Returns whether prompts can show an item of the corpus: they show it by its text, or it has
    /// vectors.
    pub fn is_showable(&self, item: u32) -> bool {
        self.beside_text || self.training_number(item).is_some()
    }

    /// Returns a user in its form in prompts.
    pub fn user(&self, user: u32) -> PromptValue {
        PromptValue {
            text: self.text(self.corpus.user_id(user).to_string()),
            vectors: self.entities.map(|e| e.user(user)),
        }
    }

    fn text(&self, text: String) -> Option<String> {
        Some(text).filter(|_| self.beside_text)
    }

    /// Returns the tokens of a prompt that is a text, the BOS token included where the tokenizer
    /// puts one first.
    ///
    /// # Errors
    /// An empty prompt, or one that leaves no room for the longest title.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        if prompt.is_empty() {
            return Err(Error::usage("the prompt is empty"));
        }
        let tokens = [self.tokenizer.prefix(), &self.tokenizer.encode(prompt)?].concat();
        check_context(tokens.len(), &self.catalogue, self.context)?;
        Ok(tokens)
    }

    /// Returns the tokens of a prompt of any length: the BOS token where the tokenizer puts one
    /// first, then each text between vectors tokenised as one.
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

    /// Returns an upper bound of the number of a prompt's tokens, without tokenising: a token is at
    /// least a byte.
    pub fn most_tokens(&self, prompt: &Prompt, filling: &PromptValues) -> usize {
        let bytes = |segment: PromptSegment| match segment {
            // Some tokenizers put a space before each text.
            PromptSegment::Text(text) => text.len() + 1,
            PromptSegment::Vectors(vectors) => vectors.len(),
        };
        self.tokenizer.prefix().len() + prompt.render(filling).into_iter().map(bytes).sum::<usize>()
    }

    /// Returns the values of a window's prompt: of the history the most recent `data.history`
    /// items.
    pub fn filling(&self, window: &Window) -> PromptValues<'_> {
        let history = self.recent(self.corpus.history(window)).iter().map(|&item| self.item(item)).collect();
        PromptValues { history, items: Vec::new(), user: self.user(window.user), dataset: &self.corpus.name }
    }

    /// Returns the tokens that prompts begin with before what changes from request to request: the
    /// instruction, about. A prompt need not begin with all of them.
    ///
    /// # Errors
    /// A title that cannot be tokenised.
    pub(crate) fn instruction_tokens(&self) -> Result<Vec<u32>> {
        let last = |count: usize| count.saturating_sub(1) as u32;
        let of = |item: u32, user: u32| {
            let history = vec![self.item(item)];
            let values = PromptValues { history, items: Vec::new(), user: self.user(user), dataset: &self.corpus.name };
            self.render(&self.prompt, &values)
        };
        let prompts = [of(0, 0)?, of(last(self.corpus.items.len()), last(self.corpus.users()))?];
        Ok(common_prefix(&prompts).to_vec())
    }

    fn recent<'a, T>(&self, history: &'a [T]) -> &'a [T] {
        &history[history.len().saturating_sub(self.history.unwrap_or(usize::MAX))..]
    }

    /// Returns the tokens of a prompt that leaves room for the longest title, and how many items of
    /// the history it leaves out for that, the oldest ones, by `data.too_long = "shorten"`.
    /// * `values`: the values of the prompt; their history may be shortened.
    /// * `values`: what stands in the prompt; its history is what may be shortened.
    ///
    /// # Errors
    /// An empty prompt; a prompt that is too long even with one item of the history.
    pub fn fitting_tokens(&self, prompt: &Prompt, mut values: PromptValues) -> Result<(Vec<u32>, usize)> {
        let history = self.recent(&values.history).to_vec();
        let mut render = |dropped: usize| {
            values.history = history[dropped..].to_vec();
            self.render(prompt, &values)
        };
        let fits = |tokens: &[u32]| check_context(tokens.len(), &self.catalogue, self.context);
        let whole = render(0)?;
        let too_long = match fits(&whole) {
            Ok(()) => return Ok((whole, 0)),
            Err(error) => error,
        };
        if self.too_long == TooLong::Error || !prompt.has_history() || history.len() < 2 {
            return Err(too_long);
        }
        // The fewest items to leave out: `low` are too few, `high` may be enough.
        let (mut low, mut high) = (0, history.len() - 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(&render(middle)?).is_ok() { high = middle } else { low = middle }
        }
        let tokens = render(high)?;
        fits(&tokens)?;
        Ok((tokens, high))
    }

    /// Returns the tokens of a window's prompt, and how many items of its history it leaves out:
    /// [`PromptContext::fitting_tokens`].
    ///
    /// # Errors
    /// Those of [`PromptContext::fitting_tokens`].
    pub fn window_tokens(&self, prompt: &Prompt, window: &Window) -> Result<(Vec<u32>, usize)> {
        self.fitting_tokens(prompt, self.filling(window))
    }

    /// Returns a window's name for errors.
    pub fn window_place(&self, split: Split, index: u32, window: &Window) -> String {
        let (corpus, user) = (&self.corpus.name, self.corpus.user_id(window.user));
        format!("corpus {corpus}: {split} window {index} (from 0), of user {user}")
    }

    /// Returns an item that is not in the catalogue in its form in prompts.
    ///
    /// # Errors
    /// Prompts that show items by their vectors alone.
    pub fn unknown_item(&self, name: &str) -> Result<PromptValue> {
        match self.text(Catalogue::target_text(name)) {
            Some(text) => Ok(PromptValue { text: Some(text), vectors: None }),
            None => Err(Error::not_found(format!(
                "{name:?} is not in the catalogue, and this run's prompts show items by their vectors alone \
                 (items.beside_text = false)"
            ))),
        }
    }

    /// Returns the rank of the target in a ranking of leaves, from 0; `None` if it is not there.
    ///
    /// A hit is an equal name: that of any item of the leaf, because different names may have equal
    /// tokens.
    pub fn rank_of(&self, target: u32, ranking: impl IntoIterator<Item = Node>) -> Option<u32> {
        let name = self.name(target);
        let hit = |leaf: Node| self.catalogue.trie.items(leaf).any(|item| self.name(item) == name);
        ranking.into_iter().position(hit).map(|rank| rank as u32)
    }

    /// Returns the text that identifies the prompt template, whatever its values.
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
