//! The prompt sets of a run, and the selection of a prompt.

use crate::config::DataConfig;
use crate::text::{Prompt, PromptChoice, PromptSet};
use crate::{Error, Result};

/// Selection of a prompt by its prompt set and its number.
#[derive(Debug, Clone, Default)]
pub struct PromptSelection {
    /// The set's name; the first set by default.
    pub set: Option<String>,
    /// The prompt; `seen:0` by default.
    pub prompt: Option<PromptChoice>,
}

/// A selected prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SelectedPrompt {
    /// Name of the prompt set.
    pub set: String,
    pub prompt: PromptChoice,
    pub template: Prompt,
}

/// Opens the prompt sets that `data.prompt_sets` names; none for a run with one prompt.
///
/// # Errors
/// A set that cannot be opened or has fewer seen prompts than `data.prompts_per_window`; two sets
/// of one name.
pub(crate) fn open_prompt_sets(data: &DataConfig) -> Result<Vec<PromptSet>> {
    let mut sets: Vec<PromptSet> = Vec::new();
    for name in &data.prompt_sets {
        let set = PromptSet::open(name)?;
        if sets.iter().any(|other| other.name == set.name) {
            return Err(Error::usage(format!(
                "data.prompt_sets: {name} is the second set called {}; rename the file",
                set.name
            )));
        }
        sets.push(set);
    }
    let wanted = prompts_per_window(data);
    match sets.iter().find(|set| set.seen.len() < wanted) {
        Some(set) => Err(Error::usage(format!(
            "data.prompts_per_window is {wanted}, but the prompt set {} has {} seen prompts",
            set.name,
            set.seen.len()
        ))),
        None => Ok(sets),
    }
}

pub(crate) fn prompts_per_window(data: &DataConfig) -> usize {
    data.prompts_per_window.unwrap_or(DataConfig::PROMPTS_PER_WINDOW)
}

impl PromptSelection {
    /// Returns the selected prompt; `None` for a run without prompt sets.
    ///
    /// # Errors
    /// A selection for a run without prompt sets; an unknown set or prompt.
    pub(crate) fn select_one(&self, sets: &[PromptSet]) -> Result<Option<SelectedPrompt>> {
        let Some(first) = sets.first() else {
            return match self {
                Self { set: None, prompt: None } => Ok(None),
                _ => Err(Error::usage("the run has one prompt: its run.toml has no data.prompt_sets to choose from")),
            };
        };
        let set = match &self.set {
            None => first,
            Some(name) => sets.iter().find(|set| set.name == *name).ok_or_else(|| {
                let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
                Error::usage(format!("there is no prompt set {name}; those of the run are {}", names.join(", ")))
            })?,
        };
        select(set, self.prompt.unwrap_or(PromptChoice::Seen(0))).map(Some)
    }

    /// Returns the selected prompt; where nothing is selected, `seen:0` and `unseen` of every set.
    /// Empty for a run without prompt sets.
    ///
    /// # Errors
    /// Those of [`Self::select_one`].
    pub(crate) fn select_all(&self, sets: &[PromptSet]) -> Result<Vec<SelectedPrompt>> {
        match self {
            Self { set: None, prompt: None } => {
                let both = |set| [PromptChoice::Seen(0), PromptChoice::Unseen].map(|choice| select(set, choice));
                sets.iter().flat_map(both).collect()
            }
            _ => Ok(self.select_one(sets)?.into_iter().collect()),
        }
    }
}

fn select(set: &PromptSet, prompt: PromptChoice) -> Result<SelectedPrompt> {
    Ok(SelectedPrompt { set: set.name.clone(), prompt, template: set.prompt(prompt)?.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let sets = ["sequential", "straightforward"].map(|name| PromptSet::open(name).unwrap());
        let choice = |set: Option<&str>, prompt: Option<&str>| PromptSelection {
            set: set.map(String::from),
            prompt: prompt.map(|prompt| prompt.parse().unwrap()),
        };
        let names = |selected: Vec<SelectedPrompt>| {
            selected.iter().map(|a| format!("{} {}", a.set, a.prompt)).collect::<Vec<_>>()
        };
        let all = |set, prompt| choice(set, prompt).select_all(&sets).map(names);
        let table = ["sequential seen:0", "sequential unseen", "straightforward seen:0", "straightforward unseen"];
        assert_eq!(all(None, None).unwrap(), table);
        assert_eq!(all(Some("straightforward"), None).unwrap(), ["straightforward seen:0"]);
        assert_eq!(all(None, Some("seen:7")).unwrap(), ["sequential seen:7"]);
        assert_eq!(choice(None, None).select_one(&sets).unwrap().unwrap().template, sets[0].seen[0]);
        assert!(all(Some("direct"), None).unwrap_err().to_string().contains("sequential, straightforward"));
        assert!(all(None, Some("seen:10")).unwrap_err().to_string().contains("seen:9"));
        assert_eq!(
            (choice(None, None).select_one(&[]), choice(None, None).select_all(&[])),
            (Ok(None), Ok(Vec::new()))
        );
        assert!(choice(None, Some("unseen")).select_all(&[]).unwrap_err().to_string().contains("data.prompt_sets"));
    }

    #[test]
    fn more_prompts_than_there_are() {
        let data = |prompts_per_window| DataConfig {
            prompt_sets: vec!["sequential".into()],
            prompts_per_window,
            ..Default::default()
        };
        assert_eq!(open_prompt_sets(&data(Some(10))).unwrap().len(), 1);
        assert!(open_prompt_sets(&data(Some(11))).unwrap_err().to_string().contains("10 seen"));
        assert!(open_prompt_sets(&DataConfig::default()).unwrap().is_empty());
    }

    #[test]
    fn sets_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "seen: {history}?\nunseen: {history}!\n").unwrap();
            path.to_str().unwrap().to_string()
        };
        std::fs::create_dir(dir.path().join("more")).unwrap();
        let open = |prompt_sets| {
            open_prompt_sets(&DataConfig { prompt_sets, prompts_per_window: Some(1), ..Default::default() })
        };
        let sets = open(vec!["sequential".into(), file("mine.txt")]).unwrap();
        let selection = PromptSelection { set: Some("mine".into()), prompt: None };
        assert_eq!(selection.select_one(&sets).unwrap().unwrap().template, sets[1].seen[0]);
        let error = open(vec![file("mine.txt"), file("more/mine.txt")]).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("more/mine.txt"), "{error}");
        let error = open(vec!["sequential".into(), file("sequential.txt")]).unwrap_err().to_string();
        assert!(error.contains("sequential.txt"), "{error}");
    }
}
