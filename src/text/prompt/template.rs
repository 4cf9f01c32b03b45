//! A prompt template, and what fills its placeholders.

use std::ops::Range;

use super::library::Library;
use crate::text::{Catalogue, Tokenizer};
use crate::{Error, Result};

/// The embedded templates: MSL's four (Alpaca style, arXiv 2504.04178), a general one, and the
/// quickstart's short one.
const TEMPLATES: Library = Library {
    kind: "prompt template",
    embedded: &[
        ("books", include_str!("../../../assets/prompts/books.txt")),
        ("clothing", include_str!("../../../assets/prompts/clothing.txt")),
        ("items", include_str!("../../../assets/prompts/items.txt")),
        ("office", include_str!("../../../assets/prompts/office.txt")),
        ("short", include_str!("../../../assets/prompts/short.txt")),
        ("toys", include_str!("../../../assets/prompts/toys.txt")),
    ],
};

/// A template with placeholders:
///
/// | placeholder | is replaced by |
/// |---|---|
/// | `{history}` | the items of the history, oldest first, with a comma between two |
/// | `{item}` | one item; several of them are different items |
/// | `{user}` | the user |
/// | `{dataset}` | the corpus's name |
///
/// An item or user becomes a text, vectors or both: [`PromptValue`].
///
/// The same template is used for training and for ranking. MSL's released code writes one space
/// after "request." when it trains and two when it ranks; the embedded templates have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    parts: Vec<TemplatePart>,
}

/// A part of a template: text, or a placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TemplatePart {
    Text(String),
    History,
    Item,
    User,
    Dataset,
}

const PLACEHOLDERS: [(&str, TemplatePart); 4] = [
    ("{history}", TemplatePart::History),
    ("{item}", TemplatePart::Item),
    ("{user}", TemplatePart::User),
    ("{dataset}", TemplatePart::Dataset),
];

/// An item or user in a prompt: a text, vectors, or a text with vectors after it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptValue {
    /// A title in quotes, or a user's id.
    pub text: Option<String>,
    /// Token ids of [`crate::text::EntityTokens`], which stand for the vectors.
    pub vectors: Option<Range<u32>>,
}

/// The values of a template's placeholders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptValues<'a> {
    /// The items of `{history}`, oldest first.
    pub history: Vec<PromptValue>,
    /// One value for each `{item}`, in their order.
    pub items: Vec<PromptValue>,
    /// The value of `{user}`.
    pub user: PromptValue,
    /// The text of `{dataset}`: the corpus's name.
    pub dataset: &'a str,
}

/// A segment of a rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptSegment {
    /// A text, to be tokenised in one piece.
    Text(String),
    /// Token ids of [`crate::text::EntityTokens`].
    Vectors(Range<u32>),
}

impl Prompt {
    /// Opens the embedded template `name`, or else the template in the file at the path `name`.
    ///
    /// # Errors
    /// `name` is neither; a file that [`Prompt::parse`] refuses, by its name.
    pub fn open(name: &str) -> Result<Self> {
        Self::parse(&TEMPLATES.read(name)?).map_err(|error| TEMPLATES.refuse(name, error))
    }

    /// Returns the name of the template for a corpus: the corpus's name if an embedded template has
    /// it, else `items`.
    pub fn for_corpus(corpus: &str) -> &str {
        if TEMPLATES.embedded.iter().any(|(name, _)| *name == corpus) { corpus } else { "items" }
    }

    /// Parses a template. Braces around other words are text.
    ///
    /// # Errors
    /// No placeholder for an item or user; `{history}` or `{user}` more than once.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut left = text;
        while !left.is_empty() {
            let next = PLACEHOLDERS
                .iter()
                .filter_map(|(name, part)| Some((left.find(name)?, name.len(), part)))
                .min_by_key(|(start, _, _)| *start);
            let Some((start, length, part)) = next else {
                parts.push(TemplatePart::Text(left.to_string()));
                break;
            };
            if start > 0 {
                parts.push(TemplatePart::Text(left[..start].to_string()));
            }
            parts.push(part.clone());
            left = &left[start + length..];
        }
        let prompt = Self { parts };
        let (histories, users) = (prompt.count(&TemplatePart::History), prompt.count(&TemplatePart::User));
        if histories > 1 || users > 1 {
            return Err(Error::usage("{history} and {user} may be there once"));
        }
        match histories + users + prompt.items() {
            0 => Err(Error::usage("it needs {history}, {item} or {user}")),
            _ => Ok(prompt),
        }
    }

    /// Returns the prompt for a history of titles, as text.
    pub fn render_titles<'a>(&self, titles: impl Iterator<Item = &'a str>) -> String {
        let value = |title| PromptValue { text: Some(Catalogue::target_text(title)), vectors: None };
        self.text(&PromptValues { history: titles.map(value).collect(), ..PromptValues::default() })
    }

    /// Returns the prompt's texts without its vectors.
    pub fn text(&self, values: &PromptValues) -> String {
        let text = |segment| match segment {
            PromptSegment::Text(text) => text,
            PromptSegment::Vectors(_) => String::new(),
        };
        self.render(values).into_iter().map(text).collect()
    }

    fn count(&self, part: &TemplatePart) -> usize {
        self.parts.iter().filter(|&p| p == part).count()
    }

    /// Returns whether the template has `{user}`.
    pub fn has_user(&self) -> bool {
        self.count(&TemplatePart::User) > 0
    }

    /// Returns whether the template has `{history}`.
    pub fn has_history(&self) -> bool {
        self.count(&TemplatePart::History) > 0
    }

    /// Returns how many `{item}` the template has.
    pub fn items(&self) -> usize {
        self.count(&TemplatePart::Item)
    }

    /// Fills the placeholders; neighbouring texts are joined. An `{item}` without a value is left
    /// out.
    pub fn render(&self, values: &PromptValues) -> Vec<PromptSegment> {
        let mut segments: Vec<PromptSegment> = Vec::new();
        for piece in self.fill(values) {
            match (piece, segments.last_mut()) {
                (Piece::Vectors(vectors), _) => segments.push(PromptSegment::Vectors(vectors.clone())),
                (Piece::Template(more) | Piece::Value(more), Some(PromptSegment::Text(text))) => text.push_str(more),
                (Piece::Template(text) | Piece::Value(text), _) if text.is_empty() => {}
                (Piece::Template(text) | Piece::Value(text), _) => segments.push(PromptSegment::Text(text.to_string())),
            }
        }
        segments
    }

    /// Fills the placeholders and tokenises the prompt: each text between vectors in one piece, the
    /// tokens of vectors as they are. The text of a special token is that token in the template,
    /// and plain text in a value.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn tokens(&self, values: &PromptValues, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let pieces = self.fill(values);
        let is_special = |piece: &Piece| matches!(piece, Piece::Value(text) if tokenizer.find_special(text).is_some());
        let mut tokens = Vec::new();
        if !pieces.iter().any(is_special) {
            for segment in self.render(values) {
                match segment {
                    PromptSegment::Text(text) => tokens.extend(tokenizer.encode(&text)?),
                    PromptSegment::Vectors(vectors) => tokens.extend(vectors),
                }
            }
            return Ok(tokens);
        }
        // Special tokens of the template cut the text, as in the tokenizer itself.
        let mut text = String::new();
        let encode_text = |text: &mut String, tokens: &mut Vec<u32>| {
            tokens.extend(tokenizer.encode_literal(text)?);
            text.clear();
            Ok::<_, Error>(())
        };
        for piece in pieces {
            match piece {
                Piece::Value(value) => text.push_str(value),
                Piece::Vectors(vectors) => {
                    encode_text(&mut text, &mut tokens)?;
                    tokens.extend(vectors.clone());
                }
                Piece::Template(mut left) => {
                    while let Some((range, id)) = tokenizer.find_special(left) {
                        text.push_str(&left[..range.start]);
                        encode_text(&mut text, &mut tokens)?;
                        tokens.push(id);
                        left = &left[range.end..];
                    }
                    text.push_str(left);
                }
            }
        }
        encode_text(&mut text, &mut tokens)?;
        Ok(tokens)
    }

    /// Returns the filled template in pieces.
    fn fill<'a>(&'a self, values: &'a PromptValues) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut items = values.items.iter();
        for part in &self.parts {
            match part {
                TemplatePart::Text(text) => pieces.push(Piece::Template(text)),
                TemplatePart::Dataset => pieces.push(Piece::Value(values.dataset)),
                TemplatePart::User => values.user.append_to(&mut pieces),
                TemplatePart::Item => items.next().into_iter().for_each(|item| item.append_to(&mut pieces)),
                TemplatePart::History => {
                    for (n, item) in values.history.iter().enumerate() {
                        if n > 0 {
                            pieces.push(Piece::Template(", "));
                        }
                        item.append_to(&mut pieces);
                    }
                }
            }
        }
        pieces
    }
}

/// A piece of a filled template.
enum Piece<'a> {
    /// Text of the template.
    Template(&'a str),
    /// Text of a value.
    Value(&'a str),
    /// Token ids of [`crate::text::EntityTokens`].
    Vectors(&'a Range<u32>),
}

impl PromptValue {
    fn append_to<'a>(&'a self, pieces: &mut Vec<Piece<'a>>) {
        pieces.extend(self.text.as_deref().map(Piece::Value));
        if let Some(vectors) = &self.vectors {
            // As LLaRA (arXiv 2312.02445): title, space, vector.
            pieces.extend(self.text.as_ref().map(|_| Piece::Template(" ")));
            pieces.push(Piece::Vectors(vectors));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn title(text: &str) -> PromptValue {
        PromptValue { text: Some(format!("\"{text}\"")), vectors: None }
    }

    /// The prompt of MSL's released code for office, word for word.
    #[test]
    fn released_prompt() {
        let values = PromptValues { history: vec![title("A &amp; B"), title("C")], ..PromptValues::default() };
        let expected = "Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
             that appropriately completes the request. \n\n### Instruction:\nGiven a list of office products the user has used \
             before, please recommend a new office product that the user likes to the user.\n\n### Input:\nThe user has used the \
             following office products before: \"A &amp; B\", \"C\"\n \n\n### Response:\n";
        assert_eq!(Prompt::open("office").unwrap().render(&values), [PromptSegment::Text(expected.into())]);
    }

    #[test]
    fn every_embedded_template_parses() {
        for (name, _) in TEMPLATES.embedded {
            assert!(Prompt::open(name).is_ok_and(|prompt| prompt.has_history() && !prompt.has_user()), "{name}");
        }
    }

    #[test]
    fn vectors_stand_between_texts() {
        let prompt = Prompt::parse("user_{user} of {dataset} has seen {history}; {x} {item}?").unwrap();
        let both = |text: &str, first| PromptValue { text: Some(text.into()), vectors: Some(first..first + 2) };
        let values = PromptValues {
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
        assert_eq!(prompt.render(&values), expected);
        assert_eq!((prompt.items(), prompt.has_user()), (1, true));
    }

    /// The text of a special token is the token in the template and plain text in a title; all else
    /// is tokenised as in one piece.
    #[test]
    fn special_tokens_in_templates_and_titles() {
        let texts = ["Seen: \"Pen\", \"Pad\". Next: ".to_string()];
        let tokenizer = Tokenizer::train_bpe(texts.iter().cycle().take(20).cloned(), 280).unwrap();
        let prompt = Prompt::parse("<|endoftext|>Seen: {history}<|endoftext|>. Next: ").unwrap();
        let tokens = |titles: &[&str]| {
            let history = titles.iter().map(|text| title(text)).collect();
            prompt.tokens(&PromptValues { history, ..PromptValues::default() }, &tokenizer).unwrap()
        };
        let eos = |tokens: &[u32]| tokens.iter().filter(|&&token| token == tokenizer.eos()).count();
        let text = "<|endoftext|>Seen: \"Pen\", \"Pad\"<|endoftext|>. Next: ";
        assert_eq!(tokens(&["Pen", "Pad"]), tokenizer.encode(text).unwrap());
        let found = tokens(&["Pen <|endoftext|>", "Pad"]);
        assert_eq!(tokenizer.decode(&found).unwrap(), text.replace("Pen", "Pen <|endoftext|>"));
        assert_eq!((eos(&found), found[0]), (2, tokenizer.eos()));
        let values = PromptValues {
            history: vec![title("<|endoftext|>"), PromptValue { text: None, vectors: Some(900..902) }],
            ..PromptValues::default()
        };
        let found = prompt.tokens(&values, &tokenizer).unwrap();
        let at = found.iter().position(|&token| token == 900).unwrap();
        assert_eq!((found[at + 1], eos(&found[..at]), eos(&found[at..])), (901, 1, 1));
    }

    #[test]
    fn unknown_names_and_missing_placeholders_are_refused() {
        assert!(Prompt::open("no-such-template").unwrap_err().to_string().contains("office"));
        for bad in ["no placeholder", "{dataset}", "{history} {history}", "{user}{user}", ""] {
            assert!(Prompt::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.txt");
        std::fs::write(&path, "Seen: {history}\nNext: ").unwrap();
        let prompt = Prompt::open(path.to_str().unwrap()).unwrap();
        assert_eq!(prompt.render_titles(["A"].into_iter()), "Seen: \"A\"\nNext: ");
        std::fs::write(&path, "Next: ").unwrap();
        let error = Prompt::open(path.to_str().unwrap()).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("mine.txt: it needs {history}"), "{error}");
    }
}
