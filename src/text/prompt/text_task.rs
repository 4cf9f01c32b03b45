//! Text tasks, whose answers are free text, and their prompt templates. ELM's 24 tasks on movies
//! are in `assets/elm24/tasks.toml`.
//!
//! In a template ([`Prompt`]) the k-th `{item}` is the k-th item of a row, `{user}` the row's user.

use std::collections::HashSet;

use serde::Deserialize;

use super::library::Library;
use super::{Prompt, PromptSegment, PromptValues};
use crate::data::TextTaskEntities;
use crate::{Error, Result};

/// The name of ELM's text tasks.
pub const ELM24: &str = "elm24";

/// ELM's 24 movie tasks (arXiv 2310.04475; the paper's names, our own prompts).
const TASKS: Library =
    Library { kind: "text tasks", embedded: &[(ELM24, include_str!("../../../assets/elm24/tasks.toml"))] };

/// A text task and its templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextTask {
    /// The task's name in files of rows.
    pub name: String,
    /// The template, with one `{item}` or more.
    pub prompt: Prompt,
    /// The template for rows that name a user: one `{user}`, and as many `{item}` as in `prompt`.
    pub for_user: Option<Prompt>,
}

impl TextTask {
    /// Opens the embedded tasks `name`, or else those of the TOML file at the path `name`: a table
    /// `[[task]]` for each task, with `name`, `prompt` and, if rows may name a user, `for_user`.
    ///
    /// # Errors
    /// `name` is neither; a file without tasks or with a task that makes no sense, by its name.
    pub fn open_all(name: &str) -> Result<Vec<Self>> {
        parse(&TASKS.read(name)?).map_err(|error| TASKS.refuse(name, error))
    }

    /// Returns the entities that the task's rows name.
    pub fn entities(&self) -> TextTaskEntities {
        TextTaskEntities { name: self.name.clone(), items: self.prompt.items(), user: self.for_user.is_some() }
    }

    /// Returns the template for rows with or without a user.
    pub fn template(&self, user: bool) -> &Prompt {
        self.for_user.as_ref().filter(|_| user).unwrap_or(&self.prompt)
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::usage(format!("task {:?}: {what}", self.name)));
        if self.name.trim().is_empty() {
            return refuse("it needs a name".into());
        }
        let items = self.prompt.items();
        for (key, template, user) in [("prompt", Some(&self.prompt), false), ("for_user", self.for_user.as_ref(), true)]
        {
            let Some(template) = template else { continue };
            let count = template.items();
            if count == 0 || count != items {
                return refuse(format!("{key} has {count} {{item}}; both templates need the same number, 1 or more"));
            }
            if template.has_user() != user {
                return refuse(format!("{key} needs {{user}} {} times", usize::from(user)));
            }
            if template.has_history() {
                return refuse(format!("{key} has {{history}}, which a row does not name"));
            }
            let has_brace =
                |segment: &PromptSegment| matches!(segment, PromptSegment::Text(text) if text.contains(['{', '}']));
            if template.render(&PromptValues::default()).iter().any(has_brace) {
                return refuse(format!("{key} has a brace that belongs to no placeholder"));
            }
        }
        Ok(())
    }
}

/// Opens ELM's 24 movie tasks.
pub fn elm24() -> Result<Vec<TextTask>> {
    TextTask::open_all(ELM24)
}

fn parse(text: &str) -> Result<Vec<TextTask>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        task: Vec<Entry>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        name: String,
        prompt: String,
        for_user: Option<String>,
    }
    let File { task: entries } = toml::from_str(text).map_err(|e| Error::usage(e.to_string().trim_end()))?;
    if entries.is_empty() {
        return Err(Error::usage("it has no task"));
    }
    let mut names = HashSet::new();
    let task = |Entry { name, prompt, for_user }: Entry| {
        if !names.insert(name.clone()) {
            return Err(Error::usage(format!("task {name:?} is there twice")));
        }
        let parse = |key: &str, template: &str| {
            Prompt::parse(template).map_err(|error| Error::usage(format!("task {name:?}: {key}: {error}")))
        };
        let (prompt, for_user) =
            (parse("prompt", &prompt)?, for_user.map(|template| parse("for_user", &template)).transpose()?);
        let task = TextTask { name, prompt, for_user };
        task.check().map(|()| task)
    };
    entries.into_iter().map(task).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elm_has_its_24_tasks() {
        let tasks = elm24().unwrap();
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        let published = "summary, positive review, negative review, neutral review, five pos. characteristics, five \
                         neg. characteristics, \
                         long description, funnier, sadder, scarier, improve, movie to viewer, pitch, criticize, \
                         convince1, convince2, \
                         convince3, dissuade1, dissuade2, similarities, interpolation, why like nn, diff than nn, \
                         common with nn";
        assert_eq!(names, published.split(", ").collect::<Vec<_>>());
        let of_two: Vec<TextTaskEntities> =
            tasks.iter().map(TextTask::entities).filter(|needs| needs.items == 2).collect();
        let of_two: Vec<&str> = of_two.iter().map(|needs| needs.name.as_str()).collect();
        assert_eq!(of_two, ["similarities", "interpolation", "why like nn", "diff than nn", "common with nn"]);
        assert_eq!(tasks.iter().filter(|task| task.entities().user).count(), 6);
        let text = |prompt: &Prompt| format!("{prompt:?}");
        let prompts: HashSet<String> =
            tasks.iter().flat_map(|task| [task.template(false), task.template(true)]).map(text).collect();
        assert_eq!(prompts.len(), 24 + 6);
        assert!(*tasks[0].template(true) == tasks[0].prompt && tasks[14].template(true).has_user());
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let task = |rest: &str| format!("[[task]]\nname = \"a\"\n{rest}\n");
        for (text, what) in [
            ("task = 3".to_string(), "task"),
            (task("prompt = \"no item\""), "prompt: it needs"),
            (task("prompt = \"for {user}\""), "0 {item}"),
            (task("prompt = \"{item} for {user}\""), "{user} 0 times"),
            (task("prompt = \"{item}\"\nfor_user = \"{item}\""), "for_user needs {user} 1 times"),
            (
                task("prompt = \"{item}\"\nfor_user = \"{user} {item} {user}\""),
                "for_user: {history} and {user} may be there once",
            ),
            (task("prompt = \"{item}\"\nfor_user = \"{item} {item} {user}\""), "for_user has 2 {item}"),
            (task("prompt = \"{item} {history}\""), "{history}"),
            (task("prompt = \"{item} {Item}\""), "brace"),
            (task("prompt = \"{item}\"\nuser = \"x\""), "user"),
            (task("prompt = \"{item}\"").repeat(2), "twice"),
            (task("prompt = \"{item}\"").replace("\"a\"", "\" \""), "name"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn a_file_of_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let name = path.to_str().unwrap();
        std::fs::write(&path, "[[task]]\nname = \"colour\"\nprompt = \"Of what colour is {item}?\\n\"\n").unwrap();
        let tasks = TextTask::open_all(name).unwrap();
        assert_eq!((tasks.len(), tasks[0].name.as_str(), tasks[0].entities().items), (1, "colour", 1));
        assert_eq!(TextTask::open_all(ELM24).unwrap(), elm24().unwrap());
        for (text, what) in [("[[task]]\nname = 3\n", "mine.toml: "), ("", "mine.toml: "), ("task = []", "no task")] {
            std::fs::write(&path, text).unwrap();
            let error = TextTask::open_all(name).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(what), "{error}");
        }
        assert!(TextTask::open_all("elm25").unwrap_err().to_string().contains("elm24"));
    }
}
