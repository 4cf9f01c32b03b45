//! Prompt templates: one a dataset, in `assets/prompts/`, the same at training and at ranking.

use std::fs;
use std::path::Path;

use crate::{Context, Error, Result};

const HISTORY: &str = "{history}";

/// The embedded templates: MSL's four (Alpaca style; papers.md A5), a general one, and quickstart's short one.
const EMBEDDED: [(&str, &str); 6] = [
    ("books", include_str!("../../assets/prompts/books.txt")),
    ("clothing", include_str!("../../assets/prompts/clothing.txt")),
    ("items", include_str!("../../assets/prompts/items.txt")),
    ("office", include_str!("../../assets/prompts/office.txt")),
    ("short", include_str!("../../assets/prompts/short.txt")),
    ("toys", include_str!("../../assets/prompts/toys.txt")),
];

/// A template with one `{history}` placeholder.
///
/// The released code writes one space after "request." when training and two when ranking; here it is one at both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    before: String,
    after: String,
}

impl Prompt {
    /// An embedded template's name, or else a template file's path.
    ///
    /// # Errors
    /// Neither; or a file without exactly one `{history}`.
    pub fn open(name: &str) -> Result<Self> {
        if let Some((_, text)) = EMBEDDED.iter().find(|(known, _)| *known == name) {
            return Self::parse(text, name);
        }
        let path = Path::new(name);
        if !path.is_file() {
            let known: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
            return Err(Error::usage(format!(
                "prompt template {name:?} is neither a file nor an embedded one ({})",
                known.join(", ")
            )));
        }
        Self::parse(&fs::read_to_string(path).context(path.display())?, name)
    }

    /// The template of a corpus: the embedded one of its name, or the general one.
    pub fn for_corpus(name: &str) -> &str {
        if EMBEDDED.iter().any(|(known, _)| *known == name) { name } else { "items" }
    }

    fn parse(text: &str, name: &str) -> Result<Self> {
        let mut parts = text.split(HISTORY);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(before), Some(after), None) => Ok(Self { before: before.to_string(), after: after.to_string() }),
            _ => Err(Error::usage(format!("prompt template {name}: needs {HISTORY} exactly once"))),
        }
    }

    /// The prompt for a history, oldest first: `"T1", "T2", …` in place of `{history}`.
    pub fn render<'a>(&self, history: impl Iterator<Item = &'a str>) -> String {
        let titles: Vec<String> = history.map(|title| format!("\"{title}\"")).collect();
        format!("{}{}{}", self.before, titles.join(", "), self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word for word what `shared/peer/common.py` writes.
    #[test]
    fn released_prompt() {
        let prompt = Prompt::open("office").unwrap().render(["A &amp; B", "C"].into_iter());
        assert_eq!(
            prompt,
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
             that appropriately completes the request. \n\n### Instruction:\nGiven a list of office products the user has used \
             before, please recommend a new office product that the user likes to the user.\n\n### Input:\nThe user has used the \
             following office products before: \"A &amp; B\", \"C\"\n \n\n### Response:\n"
        );
    }

    #[test]
    fn every_embedded_template_parses() {
        for (name, _) in EMBEDDED {
            assert!(Prompt::open(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn unknown_names_and_missing_placeholders_are_refused() {
        assert!(Prompt::open("no-such-template").unwrap_err().to_string().contains("office"));
        assert!(Prompt::parse("no placeholder", "x").is_err());
        assert!(Prompt::parse("{history} {history}", "x").is_err());
    }
}
