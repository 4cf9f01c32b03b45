//! Prompt sets: several prompts for the next item, some to train with and one that the model is
//! never trained with. OpenP5's two sets are in `assets/prompts/openp5/`.

use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Prompt;
use super::library::Library;
use crate::{Error, Result};

/// OpenP5's prompts (arXiv 2306.11134; agiresearch/OpenP5, prompt.txt).
const SETS: Library = Library {
    kind: "prompt set",
    embedded: &[
        ("sequential", include_str!("../../../assets/prompts/openp5/sequential.txt")),
        ("straightforward", include_str!("../../../assets/prompts/openp5/straightforward.txt")),
    ],
};

/// The text after every prompt of a set. OpenP5's T5 needs none, its Llama has " Response: ".
const ANSWER: &str = "\nResponse:\n";

/// A prompt set. All its prompts have the same placeholders: the user, the history or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    /// The embedded set's name, or the file's name without its extension.
    pub name: String,
    /// The prompts to train with, at least one.
    pub seen: Vec<Prompt>,
    /// The prompt that the model is never trained with.
    pub unseen: Prompt,
}

/// One prompt of a set: `seen:N` or `unseen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptChoice {
    /// One of the prompts to train with, by its index.
    Seen(usize),
    /// The prompt that the model is never trained with.
    Unseen,
}

impl PromptSet {
    /// Opens the embedded set `name`, or else the set in the file at the path `name`.
    ///
    /// # Errors
    /// `name` is neither; a file that [`PromptSet::parse`] refuses, by its name.
    pub fn open(name: &str) -> Result<Self> {
        let text = SETS.read(name)?;
        let stem = Path::new(name).file_stem().map_or_else(|| name.into(), |stem| stem.to_string_lossy());
        Self::parse(&stem, &text).map_err(|error| SETS.refuse(name, error))
    }

    /// Parses lines `seen: TEMPLATE` and one line `unseen: TEMPLATE`. Empty lines and lines that
    /// begin with # are skipped.
    ///
    /// # Errors
    /// Any other line, by its number; no seen prompt, or another number of unseen ones than 1;
    /// prompts with different placeholders.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let (mut seen, mut unseen) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let refuse = |what: &str| Error::usage(format!("line {}: {what}", number + 1));
            let (kind, template) = line.split_once(": ").ok_or_else(|| refuse("it needs `seen: ` or `unseen: `"))?;
            let prompt = Prompt::parse(&format!("{template}{ANSWER}")).map_err(|e| refuse(&e.to_string()))?;
            if prompt.items() > 0 {
                return Err(refuse("{item} has no meaning where the next item is wanted"));
            }
            match kind {
                "seen" => seen.push(prompt),
                "unseen" => unseen.push(prompt),
                _ => return Err(refuse("it needs `seen: ` or `unseen: `")),
            }
        }
        let (Some(unseen), true, true) = (unseen.pop(), unseen.is_empty(), !seen.is_empty()) else {
            return Err(Error::usage("it needs one unseen and at least one seen prompt"));
        };
        let placeholders = |prompt: &Prompt| (prompt.has_user(), prompt.has_history());
        match seen.iter().all(|prompt| placeholders(prompt) == placeholders(&unseen)) {
            true => Ok(Self { name: name.into(), seen, unseen }),
            false => Err(Error::usage("all prompts must have the same of {user} and {history}")),
        }
    }

    /// Iterates over all prompts, the unseen one last.
    pub fn prompts(&self) -> impl Iterator<Item = &Prompt> {
        self.seen.iter().chain([&self.unseen])
    }

    /// Returns the prompt `choice`.
    ///
    /// # Errors
    /// An index beyond the last seen prompt.
    pub fn prompt(&self, choice: PromptChoice) -> Result<&Prompt> {
        match choice {
            PromptChoice::Unseen => Ok(&self.unseen),
            PromptChoice::Seen(number) => self.seen.get(number).ok_or_else(|| {
                let last = self.seen.len().saturating_sub(1);
                Error::usage(format!("prompt {choice}: the set {} has seen:0 to seen:{last} and unseen", self.name))
            }),
        }
    }
}

impl Display for PromptChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Seen(number) => write!(f, "seen:{number}"),
            Self::Unseen => f.write_str("unseen"),
        }
    }
}

impl FromStr for PromptChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.strip_prefix("seen:").and_then(|number| number.parse().ok());
        match (text, number) {
            ("unseen", _) => Ok(Self::Unseen),
            (_, Some(number)) => Ok(Self::Seen(number)),
            _ => Err(Error::usage("it must be seen:N, N from 0, or unseen")),
        }
    }
}

impl Serialize for PromptChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{PromptSegment, PromptValue, PromptValues};

    #[test]
    fn openp5s() {
        let value = |text: &str| PromptValue { text: Some(text.into()), vectors: None };
        let history = vec![value("\"1001\""), value("\"1007\"")];
        let values = PromptValues { history, user: value("3"), dataset: "ML1M", ..PromptValues::default() };
        for (name, has_history, first, unseen) in [
            (
                "sequential",
                true,
                "Considering ML1M user_3 has interacted with ML1M items \"1001\", \"1007\" . What is the next \
                 recommendation for the user ?",
                "What is the top recommended item for ML1M user_3 who interacted with ML1M item \"1001\", \"1007\" ?",
            ),
            (
                "straightforward",
                false,
                "What should we recommend for ML1M user_3 ?",
                "What is the top recommendation for ML1M user 3 ?",
            ),
        ] {
            let set = PromptSet::open(name).unwrap();
            assert_eq!((set.seen.len(), set.prompts().count()), (10, 11));
            assert!(set.prompts().all(|prompt| prompt.has_user() && prompt.has_history() == has_history), "{name}");
            for (n, prompt) in set.prompts().enumerate() {
                assert!(set.prompts().skip(n + 1).all(|other| other != prompt), "{name}: {n} is there twice");
            }
            for (choice, expected) in [("seen:0", first), ("unseen", unseen)] {
                let prompt = set.prompt(choice.parse().unwrap()).unwrap();
                assert_eq!(prompt.render(&values), [PromptSegment::Text(format!("{expected}\nResponse:\n"))]);
            }
            assert_eq!(set.prompt(PromptChoice::Seen(9)), Ok(&set.seen[9]));
            let error = set.prompt(PromptChoice::Seen(10)).unwrap_err().to_string();
            assert!(error.contains("seen:10") && error.contains("seen:9"), "{error}");
        }
        assert!(PromptSet::open("direct").unwrap_err().to_string().contains("straightforward"));
    }

    #[test]
    fn malformed_sets_are_refused() {
        let good = "# a\n\nseen: {user}?\nseen: To {user}\nunseen: For {user}: \n";
        assert_eq!(PromptSet::parse("t", good).unwrap().seen.len(), 2);
        for (text, named) in [
            ("", "one unseen"),
            ("seen: {user}", "one unseen"),
            ("unseen: {user}", "at least one seen"),
            ("seen: {user}\nunseen: {user}\nunseen: {user}!", "one unseen"),
            ("seen: {user}\nunseen: {user} {history}", "the same"),
            ("seen: {user}\nhidden: {user}", "line 2"),
            ("seen {user}", "line 1"),
            ("seen: {dataset}", "line 1"),
            ("seen: {user} {item}", "{item}"),
        ] {
            let error = PromptSet::parse("t", text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn names() {
        for choice in [PromptChoice::Seen(0), PromptChoice::Seen(12), PromptChoice::Unseen] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for bad in ["", "seen", "seen:", "seen:-1", "seen:x", "unseen:0", "0"] {
            assert!(bad.parse::<PromptChoice>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nights.txt");
        std::fs::write(&path, "seen: After {history}?\nunseen: {history}, then\n").unwrap();
        let set = PromptSet::open(path.to_str().unwrap()).unwrap();
        assert_eq!((set.name.as_str(), set.seen.len(), set.unseen.has_user()), ("nights", 1, false));
        std::fs::write(&path, "seen: After {history}?\nunsen: {history}\n").unwrap();
        let error = PromptSet::open(path.to_str().unwrap()).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("nights.txt: line 2"), "{error}");
    }
}
