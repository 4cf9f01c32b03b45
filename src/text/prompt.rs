//! Prompt templates: one a dataset, in `assets/prompts/`, the same at training and at ranking.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::Catalogue;
use crate::{Context, Error, Result};

/// The embedded templates: MSL's four (Alpaca style; papers.md A5), a general one, and quickstart's
/// short one.
const EMBEDDED: [(&str, &str); 6] = [
    ("books", include_str!("../../assets/prompts/books.txt")),
    ("clothing", include_str!("../../assets/prompts/clothing.txt")),
    ("items", include_str!("../../assets/prompts/items.txt")),
    ("office", include_str!("../../assets/prompts/office.txt")),
    ("short", include_str!("../../assets/prompts/short.txt")),
    ("toys", include_str!("../../assets/prompts/toys.txt")),
];

/// A template with placeholders:
///
/// | placeholder | is replaced by |
/// |---|---|
/// | `{history}` | the items before, oldest first, with a comma between two |
/// | `{item}` | one item; several of them are different items |
/// | `{user}` | the user |
/// | `{dataset}` | the corpus's name |
///
/// What an item or user becomes, a text, vectors or both, is the caller's choice: [`PromptValue`].
///
/// The released code of MSL writes one space after "request." when training and two when ranking;
/// here it is one at both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    History,
    Item,
    User,
    Dataset,
}

const PLACEHOLDERS: [(&str, Piece); 4] =
    [("{history}", Piece::History), ("{item}", Piece::Item), ("{user}", Piece::User), ("{dataset}", Piece::Dataset)];

/// How an item or user stands in a prompt: by a text, by vectors, or by a text and vectors after
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptValue {
    /// A title in quotes, a user's id.
    pub text: Option<String>,
    /// As [`super::EntityTokens`].
    pub vectors: Option<Range<u32>>,
}

/// What stands in the placeholders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptValues<'a> {
    /// Oldest first.
    pub history: Vec<PromptValue>,
    /// One for each `{item}`, in their order.
    pub items: Vec<PromptValue>,
    /// The user.
    pub user: PromptValue,
    /// The corpus's name.
    pub dataset: &'a str,
}

/// A part of a rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptSegment {
    /// To be tokenised as one.
    Text(String),
    /// Tokens of [`super::EntityTokens`].
    Vectors(Range<u32>),
}

impl Prompt {
    /// An embedded template's name, or else a template file's path.
    ///
    /// # Errors
    /// Neither; or a file that [`Prompt::parse`] refuses.
    pub fn open(name: &str) -> Result<Self> {
        if let Some((_, text)) = EMBEDDED.iter().find(|(known, _)| *known == name) {
            return Self::parse(text).context(format_args!("prompt template {name}"));
        }
        let path = Path::new(name);
        if !path.is_file() {
            let known: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
            return Err(Error::usage(format!(
                "prompt template {name:?} is neither a file nor an embedded one ({})",
                known.join(", ")
            )));
        }
        let prompt = Self::parse(&fs::read_to_string(path).context(path.display())?);
        prompt.map_err(|e| Error::usage(format!("prompt template {name}: {e}")))
    }

    /// The template of a corpus: the embedded one of its name, or the general one.
    pub fn for_corpus(name: &str) -> &str {
        if EMBEDDED.iter().any(|(known, _)| *known == name) { name } else { "items" }
    }

    /// Reads a template. Braces around other words are text.
    ///
    /// # Errors
    /// No placeholder for an item or user; `{history}` or `{user}` twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut left = text;
        while !left.is_empty() {
            let found = PLACEHOLDERS
                .iter()
                .filter_map(|(name, piece)| Some((left.find(name)?, name.len(), piece)))
                .min_by_key(|f| f.0);
            let Some((at, length, piece)) = found else {
                pieces.push(Piece::Text(left.to_string()));
                break;
            };
            if at > 0 {
                pieces.push(Piece::Text(left[..at].to_string()));
            }
            pieces.push(piece.clone());
            left = &left[at + length..];
        }
        let count = |piece: Piece| pieces.iter().filter(|&p| *p == piece).count();
        let (histories, items, users) = (count(Piece::History), count(Piece::Item), count(Piece::User));
        if histories > 1 || users > 1 {
            return Err(Error::usage("{history} and {user} may be there once"));
        }
        match histories + items + users {
            0 => Err(Error::usage("it needs {history}, {item} or {user}")),
            _ => Ok(Self { pieces }),
        }
    }

    /// The prompt for a history of titles, as text.
    pub fn render_titles<'a>(&self, titles: impl Iterator<Item = &'a str>) -> String {
        let shown = |title| PromptValue { text: Some(Catalogue::target_text(title)), vectors: None };
        self.text(&PromptValues { history: titles.map(shown).collect(), ..PromptValues::default() })
    }

    /// The prompt without vectors.
    pub fn text(&self, filling: &PromptValues) -> String {
        let text = |segment| match segment {
            PromptSegment::Text(text) => text,
            PromptSegment::Vectors(_) => String::new(),
        };
        self.render(filling).into_iter().map(text).collect()
    }

    /// Whether the user is in it.
    pub fn has_user(&self) -> bool {
        self.pieces.contains(&Piece::User)
    }

    /// Whether the history is in it.
    pub fn has_history(&self) -> bool {
        self.pieces.contains(&Piece::History)
    }

    /// How many `{item}` it has.
    pub fn items(&self) -> usize {
        self.pieces.iter().filter(|&piece| *piece == Piece::Item).count()
    }

    /// The prompt, neighbouring texts joined. An `{item}` beyond those given is left out.
    pub fn render(&self, filling: &PromptValues) -> Vec<PromptSegment> {
        let mut segments = Segments::default();
        let mut items = filling.items.iter();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => segments.text(text),
                Piece::Dataset => segments.text(filling.dataset),
                Piece::User => segments.shown(&filling.user),
                Piece::Item => items.next().into_iter().for_each(|item| segments.shown(item)),
                Piece::History => {
                    for (n, item) in filling.history.iter().enumerate() {
                        if n > 0 {
                            segments.text(", ");
                        }
                        segments.shown(item);
                    }
                }
            }
        }
        segments.0
    }
}

#[derive(Default)]
struct Segments(Vec<PromptSegment>);

impl Segments {
    fn text(&mut self, more: &str) {
        match self.0.last_mut() {
            Some(PromptSegment::Text(text)) => text.push_str(more),
            _ if more.is_empty() => {}
            _ => self.0.push(PromptSegment::Text(more.to_string())),
        }
    }

    fn shown(&mut self, shown: &PromptValue) {
        if let Some(text) = &shown.text {
            self.text(text);
        }
        if let Some(vectors) = &shown.vectors {
            // LLaRA writes the vector after the title and a space.
            if shown.text.is_some() {
                self.text(" ");
            }
            self.0.push(PromptSegment::Vectors(vectors.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn title(text: &str) -> PromptValue {
        PromptValue { text: Some(format!("\"{text}\"")), vectors: None }
    }

    /// Word for word what `shared/peer/common.py` writes.
    #[test]
    fn released_prompt() {
        let filling = PromptValues { history: vec![title("A &amp; B"), title("C")], ..PromptValues::default() };
        let expected = "Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
             that appropriately completes the request. \n\n### Instruction:\nGiven a list of office products the user has used \
             before, please recommend a new office product that the user likes to the user.\n\n### Input:\nThe user has used the \
             following office products before: \"A &amp; B\", \"C\"\n \n\n### Response:\n";
        assert_eq!(Prompt::open("office").unwrap().render(&filling), [PromptSegment::Text(expected.into())]);
    }

    #[test]
    fn every_embedded_template_parses() {
        for (name, _) in EMBEDDED {
            assert!(Prompt::open(name).is_ok_and(|prompt| prompt.has_history() && !prompt.has_user()), "{name}");
        }
    }

    #[test]
    fn vectors_stand_between_texts() {
        let prompt = Prompt::parse("user_{user} of {dataset} has seen {history}; {x} {item}?").unwrap();
        let both = |text: &str, first| PromptValue { text: Some(text.into()), vectors: Some(first..first + 2) };
        let filling = PromptValues {
            history: vec![both("\"A\"", 10), title("B"), both("\"C\"", 14)],
            items: vec![PromptValue { text: None, vectors: Some(20..22) }],
            user: both("7", 30),
            dataset: "toys",
        };
        let text = |text: &str| PromptSegment::Text(text.into());
        let expected = [
            text("user_7 "),
            PromptSegment::Vectors(30..32),
            text(" of toys has seen \"A\" "),
            PromptSegment::Vectors(10..12),
            text(", \"B\", \"C\" "),
            PromptSegment::Vectors(14..16),
            text("; {x} "),
            PromptSegment::Vectors(20..22),
            text("?"),
        ];
        assert_eq!(prompt.render(&filling), expected);
        assert_eq!((prompt.items(), prompt.has_user()), (1, true));
    }

    #[test]
    fn unknown_names_and_missing_placeholders_are_refused() {
        assert!(Prompt::open("no-such-template").unwrap_err().to_string().contains("office"));
        for bad in ["no placeholder", "{dataset}", "{history} {history}", "{user}{user}", ""] {
            assert!(Prompt::parse(bad).is_err(), "{bad}");
        }
    }
}
