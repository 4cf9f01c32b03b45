//! The tasks of a run file's `data.tasks`, and which of their prompts the command line asks for.

use crate::config::DataConfig;
use crate::text::{Prompt, PromptChoice, PromptSet};
use crate::{Error, Result};

/// Which task and prompt of a run with `data.tasks` to rank with.
#[derive(Debug, Clone, Default)]
pub struct TaskChoice {
    /// The first one by default.
    pub task: Option<String>,
    /// `seen:0` by default.
    pub prompt: Option<PromptChoice>,
}

/// A prompt to rank with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SelectedPrompt {
    pub task: String,
    pub prompt: PromptChoice,
    pub template: Prompt,
}

/// The prompts that `data.tasks` names; none for a run of one prompt.
pub(crate) fn open_prompt_sets(data: &DataConfig) -> Result<Vec<PromptSet>> {
    let tasks = data.tasks.iter().map(|task| PromptSet::open(task)).collect::<Result<Vec<_>>>()?;
    let asked = prompts_per_window(data);
    match tasks.iter().find(|set| set.seen.len() < asked) {
        Some(set) => Err(Error::usage(format!(
            "data.prompts_per_window is {asked}, but task {} has {} seen prompts",
            set.task,
            set.seen.len()
        ))),
        None => Ok(tasks),
    }
}

pub(crate) fn prompts_per_window(data: &DataConfig) -> usize {
    data.prompts_per_window.unwrap_or(DataConfig::PROMPTS_PER_WINDOW)
}

impl TaskChoice {
    /// The chosen prompt; `None` for a run without tasks.
    ///
    /// # Errors
    /// A choice for a run without tasks; an unknown task or prompt.
    pub(crate) fn one(&self, tasks: &[PromptSet]) -> Result<Option<SelectedPrompt>> {
        let Some(first) = tasks.first() else {
            return match self {
                Self { task: None, prompt: None } => Ok(None),
                _ => Err(Error::usage("--task and --prompt: the run's run.toml has no data.tasks")),
            };
        };
        let set = match &self.task {
            None => first,
            Some(name) => tasks.iter().find(|set| set.task == *name).ok_or_else(|| {
                let known: Vec<&str> = tasks.iter().map(|set| set.task.as_str()).collect();
                Error::usage(format!("--task {name}: the run's tasks are {}", known.join(", ")))
            })?,
        };
        asked(set, self.prompt.unwrap_or(PromptChoice::Seen(0))).map(Some)
    }

    /// The chosen prompt; without a choice `seen:0` and `unseen` of every task. Empty for a run
    /// without tasks.
    ///
    /// # Errors
    /// Those of [`Self::one`].
    pub(crate) fn all(&self, tasks: &[PromptSet]) -> Result<Vec<SelectedPrompt>> {
        match self {
            Self { task: None, prompt: None } => {
                let both = |set| [PromptChoice::Seen(0), PromptChoice::Unseen].map(|choice| asked(set, choice));
                tasks.iter().flat_map(both).collect()
            }
            _ => Ok(self.one(tasks)?.into_iter().collect()),
        }
    }
}

fn asked(set: &PromptSet, prompt: PromptChoice) -> Result<SelectedPrompt> {
    Ok(SelectedPrompt { task: set.task.clone(), prompt, template: set.prompt(prompt)?.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let tasks = ["sequential", "straightforward"].map(|task| PromptSet::open(task).unwrap());
        let choice = |task: Option<&str>, prompt: Option<&str>| TaskChoice {
            task: task.map(String::from),
            prompt: prompt.map(|prompt| prompt.parse().unwrap()),
        };
        let names =
            |asked: Vec<SelectedPrompt>| asked.iter().map(|a| format!("{} {}", a.task, a.prompt)).collect::<Vec<_>>();
        let all = |task, prompt| choice(task, prompt).all(&tasks).map(names);
        let table = ["sequential seen:0", "sequential unseen", "straightforward seen:0", "straightforward unseen"];
        assert_eq!(all(None, None).unwrap(), table);
        assert_eq!(all(Some("straightforward"), None).unwrap(), ["straightforward seen:0"]);
        assert_eq!(all(None, Some("seen:7")).unwrap(), ["sequential seen:7"]);
        assert_eq!(choice(None, None).one(&tasks).unwrap().unwrap().template, tasks[0].seen[0]);
        assert!(all(Some("direct"), None).unwrap_err().to_string().contains("sequential, straightforward"));
        assert!(all(None, Some("seen:10")).unwrap_err().to_string().contains("seen:9"));
        assert_eq!((choice(None, None).one(&[]), choice(None, None).all(&[])), (Ok(None), Ok(Vec::new())));
        assert!(choice(None, Some("unseen")).all(&[]).unwrap_err().to_string().contains("data.tasks"));
    }

    #[test]
    fn more_prompts_than_there_are() {
        let data = |prompts_per_window| DataConfig {
            tasks: vec!["sequential".into()],
            prompts_per_window,
            ..Default::default()
        };
        assert_eq!(open_prompt_sets(&data(Some(10))).unwrap().len(), 1);
        assert!(open_prompt_sets(&data(Some(11))).unwrap_err().to_string().contains("10 seen"));
        assert!(open_prompt_sets(&DataConfig::default()).unwrap().is_empty());
    }
}
