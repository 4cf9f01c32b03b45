//! A task's prompts: those that a model is taught with, and one that it never saw. OpenP5's two
//! tasks are in `assets/prompts/openp5/`.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Prompt;
use crate::{Error, Result};

/// OpenP5's prompts (arXiv 2306.11134; agiresearch/OpenP5, prompt.txt).
const EMBEDDED: [(&str, &str); 2] = [
    ("sequential", include_str!("../../assets/prompts/openp5/sequential.txt")),
    ("straightforward", include_str!("../../assets/prompts/openp5/straightforward.txt")),
];

/// What follows every prompt. OpenP5's T5 needs nothing there, its Llama has " Response: ".
const ANSWER: &str = "\nResponse:\n";

/// The prompts of a task. All of them show the same: the user, the history or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    /// The task.
    pub task: String,
    /// Trained with; one at least.
    pub seen: Vec<Prompt>,
    /// Only ranked with.
    pub unseen: Prompt,
}

/// One prompt of a set: `seen:N` or `unseen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptChoice {
    /// The n-th of those trained with, from 0.
    Seen(usize),
    /// The other one.
    Unseen,
}

impl PromptSet {
    /// An embedded set, by its task.
    ///
    /// # Errors
    /// Another task.
    pub fn open(task: &str) -> Result<Self> {
        let Some((_, text)) = EMBEDDED.iter().find(|(known, _)| *known == task) else {
            let known: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
            return Err(Error::usage(format!("data.tasks: task {task:?} is none of {}", known.join(", "))));
        };
        Self::parse(task, text)
    }

    /// Reads lines `seen: TEMPLATE` and one `unseen: TEMPLATE`; empty lines and those that begin
    /// with # say nothing.
    ///
    /// # Errors
    /// Another line, by its number; no prompt of a kind, or two unseen; prompts that show one the
    /// history and another not.
    pub fn parse(task: &str, text: &str) -> Result<Self> {
        let refuse = |what: String| Error::usage(format!("prompts of task {task}: {what}"));
        let (mut seen, mut unseen) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let refuse = |what: &str| refuse(format!("line {}: {what}", number + 1));
            let (kind, template) = line.split_once(": ").ok_or_else(|| refuse("it needs `seen: ` or `unseen: `"))?;
            let prompt = Prompt::parse(&format!("{template}{ANSWER}")).map_err(|e| refuse(&e.to_string()))?;
            if prompt.items() > 0 {
                return Err(refuse("{item} has no meaning where the next item is asked for"));
            }
            match kind {
                "seen" => seen.push(prompt),
                "unseen" => unseen.push(prompt),
                _ => return Err(refuse("it needs `seen: ` or `unseen: `")),
            }
        }
        let (Some(unseen), true, true) = (unseen.pop(), unseen.is_empty(), !seen.is_empty()) else {
            return Err(refuse("they need one unseen and at least one seen".into()));
        };
        let shows = |prompt: &Prompt| (prompt.has_user(), prompt.has_history());
        match seen.iter().all(|prompt| shows(prompt) == shows(&unseen)) {
            true => Ok(Self { task: task.into(), seen, unseen }),
            false => Err(refuse("all must show the same of {user} and {history}".into())),
        }
    }

    /// All prompts, the unseen one last.
    pub fn prompts(&self) -> impl Iterator<Item = &Prompt> {
        self.seen.iter().chain([&self.unseen])
    }

    /// The prompt of that name.
    ///
    /// # Errors
    /// A number beyond the last.
    pub fn prompt(&self, choice: PromptChoice) -> Result<&Prompt> {
        match choice {
            PromptChoice::Unseen => Ok(&self.unseen),
            PromptChoice::Seen(number) => self.seen.get(number).ok_or_else(|| {
                let last = self.seen.len().saturating_sub(1);
                Error::usage(format!("--prompt {choice}: task {} has seen:0 to seen:{last} and unseen", self.task))
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
        let shown = |text: &str| PromptValue { text: Some(text.into()), vectors: None };
        let history = vec![shown("\"1001\""), shown("\"1007\"")];
        let filling = PromptValues { history, user: shown("3"), dataset: "ML1M", ..PromptValues::default() };
        for (task, has_history, first, unseen) in [
            (
                "sequential",
                true,
                "Considering ML1M user_3 has interacted with ML1M items \"1001\", \"1007\" . What is the next recommendation for the user ?",
                "What is the top recommended item for ML1M user_3 who interacted with ML1M item \"1001\", \"1007\" ?",
            ),
            (
                "straightforward",
                false,
                "What should we recommend for ML1M user_3 ?",
                "What is the top recommendation for ML1M user 3 ?",
            ),
        ] {
            let set = PromptSet::open(task).unwrap();
            assert_eq!((set.seen.len(), set.prompts().count()), (10, 11));
            assert!(set.prompts().all(|prompt| prompt.has_user() && prompt.has_history() == has_history), "{task}");
            for (n, prompt) in set.prompts().enumerate() {
                assert!(set.prompts().skip(n + 1).all(|other| other != prompt), "{task}: {n} is there twice");
            }
            for (choice, expected) in [("seen:0", first), ("unseen", unseen)] {
                let prompt = set.prompt(choice.parse().unwrap()).unwrap();
                assert_eq!(prompt.render(&filling), [PromptSegment::Text(format!("{expected}\nResponse:\n"))]);
            }
            assert_eq!(set.prompt(PromptChoice::Seen(9)), Ok(&set.seen[9]));
            let error = set.prompt(PromptChoice::Seen(10)).unwrap_err().to_string();
            assert!(error.contains("seen:10") && error.contains("seen:9"), "{error}");
        }
        assert!(PromptSet::open("direct").unwrap_err().to_string().contains("straightforward"));
    }

    #[test]
    fn refused() {
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
}
