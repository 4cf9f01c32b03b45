//! Prompt templates of tasks whose answers are free text: ELM's 24 on movies, in `assets/elm24/tasks.toml`.
//!
//! Placeholders: the k-th `{item}` is the k-th item of a row; `{user}` is its user.

use std::collections::HashSet;

use serde::Deserialize;

use crate::data::TaskEntities;
use crate::{Context, Error, Result};

const ELM24: &str = include_str!("../../assets/elm24/tasks.toml");

const ITEM: &str = "{item}";
const USER: &str = "{user}";

/// A task and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Its name in task files.
    pub name: String,
    /// The template, with one `{item}` or more.
    pub prompt: String,
    /// The template for rows that name a user: one `{user}`, and as many `{item}` as in `prompt`.
    pub for_user: Option<String>,
}

impl Task {
    /// What the task's rows are about.
    pub fn entities(&self) -> TaskEntities {
        TaskEntities { name: self.name.clone(), items: self.prompt.matches(ITEM).count(), user: self.for_user.is_some() }
    }

    /// The template of a row with or without a user.
    pub fn template(&self, user: bool) -> &str {
        self.for_user.as_deref().filter(|_| user).unwrap_or(&self.prompt)
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::usage(format!("task {:?}: {what}", self.name)));
        if self.name.trim().is_empty() {
            return refuse("it needs a name".into());
        }
        let items = self.prompt.matches(ITEM).count();
        for (key, template, users) in [("prompt", Some(&self.prompt), 0), ("for_user", self.for_user.as_ref(), 1)] {
            let Some(template) = template else { continue };
            let found = template.matches(ITEM).count();
            if found == 0 || found != items {
                return refuse(format!("{key} has {found} {ITEM}; both templates need the same number, 1 or more"));
            }
            if template.matches(USER).count() != users {
                return refuse(format!("{key} needs {USER} {users} times"));
            }
            if template.replace(ITEM, "").replace(USER, "").contains(['{', '}']) {
                return refuse(format!("{key} has a brace that is not of {ITEM} or {USER}"));
            }
        }
        Ok(())
    }
}

/// ELM's 24 movie tasks (arXiv 2310.04475; papers' names, our own prompts).
pub fn elm24() -> Result<Vec<Task>> {
    parse(ELM24).context("assets/elm24/tasks.toml")
}

fn parse(text: &str) -> Result<Vec<Task>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        task: Vec<Task>,
    }
    let File { task: tasks } = toml::from_str(text).map_err(|e| Error::usage(e.to_string()))?;
    let mut names = HashSet::new();
    for task in &tasks {
        task.check()?;
        if !names.insert(task.name.as_str()) {
            return Err(Error::usage(format!("task {:?} is there twice", task.name)));
        }
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elm_has_its_24_tasks() {
        let tasks = elm24().unwrap();
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        let published = "summary, positive review, negative review, neutral review, five pos. characteristics, five neg. characteristics, \
                         long description, funnier, sadder, scarier, improve, movie to viewer, pitch, criticize, convince1, convince2, \
                         convince3, dissuade1, dissuade2, similarities, interpolation, why like nn, diff than nn, common with nn";
        assert_eq!(names, published.split(", ").collect::<Vec<_>>());
        let of_two: Vec<TaskEntities> = tasks.iter().map(Task::entities).filter(|needs| needs.items == 2).collect();
        let of_two: Vec<&str> = of_two.iter().map(|needs| needs.name.as_str()).collect();
        assert_eq!(of_two, ["similarities", "interpolation", "why like nn", "diff than nn", "common with nn"]);
        assert_eq!(tasks.iter().filter(|task| task.entities().user).count(), 6);
        let prompts: HashSet<&str> = tasks.iter().flat_map(|task| [task.template(false), task.template(true)]).collect();
        assert_eq!(prompts.len(), 24 + 6);
        assert!(tasks[0].template(true) == tasks[0].prompt && tasks[14].template(true).contains(USER));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let task = |rest: &str| format!("[[task]]\nname = \"a\"\n{rest}\n");
        for (text, what) in [
            ("task = 3".to_string(), "task"),
            (task("prompt = \"no item\""), "0 {item}"),
            (task("prompt = \"{item} for {user}\""), "{user} 0 times"),
            (task("prompt = \"{item}\"\nfor_user = \"{item}\""), "for_user needs {user} 1 times"),
            (task("prompt = \"{item}\"\nfor_user = \"{item} {item} {user}\""), "for_user has 2 {item}"),
            (task("prompt = \"{item} {history}\""), "brace"),
            (task("prompt = \"{item}\"\nuser = \"x\""), "user"),
            (task("prompt = \"{item}\"").repeat(2), "twice"),
            (task("prompt = \"{item}\"").replace("\"a\"", "\" \""), "name"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(what), "{error}");
        }
    }
}
