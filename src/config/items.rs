//! `[items]` of the run file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problems;
use super::align::QFormerSettings;

/// `[items]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemsConfig {
    /// Name of an item in prompts and as a target: its title, or an attribute of the corpus such as
    /// `random_id`.
    #[serde(default = "default_text", skip_serializing_if = "is_title")]
    pub text: String,
    /// Encoder that gives items and users vectors beside their text.
    #[serde(default)]
    pub encoder: Encoder,
    /// File of the collaborative vectors of items and users, as `cf` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<String>,
    /// Whether an item's or user's text stands before its vectors; else the vectors stand alone.
    #[serde(default = "default_beside_text", skip_serializing_if = "Clone::clone")]
    pub beside_text: bool,
    /// Number of vectors that an item or user becomes, for `linear` and `mlp`; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<usize>,
    /// The run directory of `align` whose Q-Former the encoder starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aligned: Option<String>,
    /// Sizes of a Q-Former without phase 1, in place of `aligned`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qformer: Option<QFormerSettings>,
}

impl Default for ItemsConfig {
    fn default() -> Self {
        let (text, encoder) = (default_text(), Encoder::None);
        Self { text, encoder, vectors: None, beside_text: true, queries: None, aligned: None, qformer: None }
    }
}

const TITLE: &str = "title";

fn default_text() -> String {
    TITLE.into()
}

fn is_title(text: &str) -> bool {
    text == TITLE
}

fn default_beside_text() -> bool {
    true
}

impl ItemsConfig {
    /// Returns the attribute that names an item; `None` for its title.
    pub fn attribute(&self) -> Option<&str> {
        Some(self.text.as_str()).filter(|text| *text != TITLE)
    }

    pub(super) fn validate(&self, problems: &mut Problems) {
        let encoder = self.encoder.name();
        let mut needs = |key: &str, given: bool, wanted: bool| match (given, wanted) {
            (false, true) => problems.add(format!("items.{key} is missing: items.encoder = {encoder:?} needs it")),
            (true, false) => problems.add(format!("items.{key} is not for items.encoder = {encoder:?}")),
            _ => {}
        };
        let qformer = self.encoder == Encoder::Qformer;
        needs("vectors", self.vectors.is_some(), self.encoder != Encoder::None);
        if !matches!(self.encoder, Encoder::Linear | Encoder::Mlp) {
            needs("queries", self.queries.is_some(), false);
        }
        needs("aligned", self.aligned.is_some() || self.qformer.is_some(), qformer);
        if self.encoder == Encoder::None && !self.beside_text {
            problems.add("items.beside_text = false is for an items.encoder: without one there is only text");
        }
        if self.aligned.is_some() && self.qformer.is_some() {
            problems.add("items.aligned and items.qformer exclude each other: a Q-Former of phase 1, or one without");
        }
        if let Some(queries) = self.queries.filter(|queries| !(1..=1 << 10).contains(queries)) {
            problems.add(format!("items.queries is {queries}, it must be between 1 and 1024"));
        }
    }
}

/// `items.encoder`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// No encoder: text alone.
    #[default]
    None,
    /// One matrix, as in LLaRA.
    Linear,
    /// Two layers, as in CoLLM.
    Mlp,
    /// A Q-Former, as in ILM.
    Qformer,
}

impl Encoder {
    /// Returns the name in a run file.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Linear => "linear",
            Self::Mlp => "mlp",
            Self::Qformer => "qformer",
        }
    }
}
