//! `[data]` of the run file.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::Problems;

/// `[data]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The directory that `prepare` wrote.
    pub corpus: String,
    /// The prompt template: an embedded one's name, or a file with `{history}` or `{user}`
    /// ([`crate::text::Prompt`]). By default the embedded one of the corpus's name, else `items`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Prompt sets in place of one prompt ([`crate::text::PromptSet`]), each an embedded one's name
    /// or a file. Before, this key was `tasks`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", alias = "tasks")]
    pub prompt_sets: Vec<String>,
    /// Number of each set's seen prompts that ask for each window, drawn anew each epoch.
    /// [`DataConfig::PROMPTS_PER_WINDOW`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts_per_window: Option<usize>,
    /// A file of rows of text tasks in place of windows ([`crate::data::read_text_tasks`]), whose
    /// texts the model learns. Before, this key was `rows`.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "rows")]
    pub text_tasks: Option<String>,
    /// The text tasks' prompt templates: an embedded name or a TOML file
    /// ([`crate::text::TextTask::open_all`]). `elm24` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_task_prompts: Option<String>,
    /// Exponent that decides how often the rows of each text task come: alpha of
    /// [`crate::train::mix`], 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixing: Option<f64>,
    /// Whether prompts begin with the BOS token: `"auto"` (the default) as the model's own
    /// tokenizer does, `true` or `false`.
    #[serde(default, skip_serializing_if = "Bos::is_auto")]
    pub bos: Bos,
    /// Number of items of a history, the most recent ones, that prompts show; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<usize>,
    /// Treatment of a window whose prompt is too long for the model.
    #[serde(default)]
    pub too_long: TooLong,
    /// Number of windows or rows to train on, a seeded sample; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_samples: Option<usize>,
}

/// Whether prompts begin with the BOS token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bos {
    /// A BOS token where the model's own tokenizer puts one first.
    #[default]
    Auto,
    /// A BOS token in every prompt.
    Always,
    /// No BOS token.
    Never,
}

impl Bos {
    /// Returns the choice; `None` leaves it to the tokenizer.
    pub fn choice(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::Always => Some(true),
            Self::Never => Some(false),
        }
    }

    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl JsonSchema for Bos {
    fn schema_name() -> Cow<'static, str> {
        "Bos".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": ["auto", true, false] })
    }
}

impl Serialize for Bos {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.choice() {
            Some(flag) => serializer.serialize_bool(flag),
            None => serializer.serialize_str("auto"),
        }
    }
}

impl<'de> Deserialize<'de> for Bos {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Flag(bool),
            Word(String),
        }
        match Value::deserialize(deserializer) {
            Ok(Value::Flag(true)) => Ok(Self::Always),
            Ok(Value::Flag(false)) => Ok(Self::Never),
            Ok(Value::Word(word)) if word == "auto" => Ok(Self::Auto),
            _ => Err(D::Error::custom("bos must be \"auto\", true or false")),
        }
    }
}

impl DataConfig {
    /// OpenP5's number of prompts a window, where it samples them.
    pub const PROMPTS_PER_WINDOW: usize = 3;

    pub(super) fn validate(&self, problems: &mut Problems) {
        if self.prompts_per_window.is_some() && self.prompt_sets.is_empty() {
            problems.add("data.prompts_per_window is only for data.prompt_sets");
        }
        if self.prompt.is_some() && !self.prompt_sets.is_empty() {
            problems.add("data.prompt and data.prompt_sets exclude each other");
        }
        if self.text_task_prompts.is_some() && self.text_tasks.is_none() {
            problems.add("data.text_task_prompts is only for data.text_tasks");
        }
        let twice = self.prompt_sets.iter().enumerate().find(|(n, set)| self.prompt_sets[..*n].contains(set));
        if let Some((_, set)) = twice {
            problems.add(format!("data.prompt_sets: {set:?} is there twice"));
        }
    }
}

/// `data.too_long`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// Refuse the window.
    #[default]
    Error,
    /// Show the window's history without its oldest items, as few as need be; at least one is
    /// shown.
    Shorten,
}
