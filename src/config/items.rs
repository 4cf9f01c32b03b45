//! `[items]` of the run file.

use serde::{Deserialize, Serialize};

use super::align::QFormerSettings;
use crate::{Error, Result};

/// `[items]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

    pub(super) fn validate(&self) -> Result<()> {
        let needs = |key: &str, given: bool, wanted: bool| match (given, wanted) {
            (false, true) => {
                Err(Error::usage(format!("items.{key} is missing: items.encoder = {:?} needs it", self.encoder.name())))
            }
            (true, false) => {
                Err(Error::usage(format!("items.{key} is not for items.encoder = {:?}", self.encoder.name())))
            }
            _ => Ok(()),
        };
        let qformer = self.encoder == Encoder::Qformer;
        needs("vectors", self.vectors.is_some(), self.encoder != Encoder::None)?;
        if !matches!(self.encoder, Encoder::Linear | Encoder::Mlp) {
            needs("queries", self.queries.is_some(), false)?;
        }
        if self.encoder == Encoder::None && !self.beside_text {
            return Err(Error::usage(
                "items.beside_text = false is for an items.encoder: without one there is only text",
            ));
        }
        if self.aligned.is_some() && self.qformer.is_some() {
            return Err(Error::usage(
                "items.aligned and items.qformer exclude each other: a Q-Former of phase 1, or one without",
            ));
        }
        needs("aligned", self.aligned.is_some() || self.qformer.is_some(), qformer)?;
        match self.queries {
            Some(queries) if queries == 0 || queries > 1 << 10 => {
                Err(Error::usage(format!("items.queries is {queries}, it must be between 1 and 1024")))
            }
            _ => Ok(()),
        }
    }
}

/// `items.encoder`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
