//! `[data]` of the run file.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// `[data]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The directory that `prepare` wrote.
    pub corpus: String,
    /// An embedded prompt template or a file with `{history}` or `{user}`; by default the one of
    /// the corpus's name, or `items`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// In place of one prompt: tasks with prompts of their own, [`crate::text::PromptSet`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Of every task's seen prompts so many, drawn anew each epoch, ask of each window;
    /// [`DataConfig::PROMPTS_PER_WINDOW`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts_per_window: Option<usize>,
    /// In place of windows a file of rows of ELM's tasks, as [`crate::data::read_text_tasks`] reads it:
    /// the model learns their texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
    /// How often the rows' tasks come: alpha of [`crate::train::mix`], 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixing: Option<f64>,
    /// Train on a seeded sample of this many windows or rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_samples: Option<usize>,
}

impl DataConfig {
    /// OpenP5's, where it samples.
    pub const PROMPTS_PER_WINDOW: usize = 3;

    pub(super) fn validate(&self) -> Result<()> {
        if self.prompts_per_window.is_some() && self.tasks.is_empty() {
            return Err(Error::usage("data.prompts_per_window is only for data.tasks"));
        }
        if self.prompt.is_some() && !self.tasks.is_empty() {
            return Err(Error::usage("data.prompt and data.tasks exclude each other: tasks have prompts of their own"));
        }
        match self.tasks.iter().enumerate().find(|(n, task)| self.tasks[..*n].contains(task)) {
            Some((_, task)) => Err(Error::usage(format!("data.tasks: {task:?} is there twice"))),
            None => Ok(()),
        }
    }
}
