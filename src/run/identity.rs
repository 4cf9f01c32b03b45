//! `identity.json`: the model, corpus, prompts and vectors that a run was trained on.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dir::{differs, read_identity};
use super::entities::EntitiesIdentity;
use crate::Result;
use crate::config::RunConfig;

/// Identity of the model and the data that a run was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The base model's fingerprint: [`crate::model::Llm::fingerprint`].
    pub llm: String,
    /// SHA-256 of the corpus's `corpus.toml`, which holds its files' digests.
    pub corpus: String,
    /// SHA-256 of the prompt template, of all templates of the prompt sets, or of those of the text
    /// tasks.
    pub prompt: String,
    /// Whether prompts begin with the BOS token; absent in runs from before itemlm put one first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<bool>,
    /// SHA-256 of the file of text tasks' rows; `None` for a run that ranks items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
    /// Vectors and encoder of items and users; `None` for prompts of text alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entities: Option<EntitiesIdentity>,
    /// The weight of each part of the prior, where it is a mixture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior_mixture: Option<BTreeMap<String, f64>>,
}

impl Identity {
    /// Returns whether prompts begin with the BOS token.
    pub fn puts_bos_first(&self) -> bool {
        self.bos.unwrap_or(false)
    }
}

/// Checks that the model is the one of a run.
///
/// # Errors
/// Another model than the run in `dir` was trained on.
pub fn check_llm(dir: &Path, fingerprint: &str, llm: &Path) -> Result<()> {
    match read_identity::<Identity>(dir)?.llm == fingerprint {
        true => Ok(()),
        false => Err(differs(dir, "model", &llm.display().to_string())),
    }
}

/// Checks that model and data are those of a run.
///
/// # Errors
/// Another model, corpus, prompt, row file or vectors than the run in `dir` was trained on.
pub fn check_identity(dir: &Path, found: &Identity, config: &RunConfig) -> Result<()> {
    check_llm(dir, &found.llm, Path::new(&config.llm.path))?;
    let trained: Identity = read_identity(dir)?;
    if trained.corpus != found.corpus {
        return Err(differs(dir, "corpus", &config.data.corpus));
    }
    if trained.puts_bos_first() != found.puts_bos_first() {
        return Err(differs(dir, "BOS token", "data.bos"));
    }
    if trained.rows != found.rows {
        return Err(differs(dir, "file of rows", config.data.text_tasks.as_deref().unwrap_or("its run file")));
    }
    if trained.prompt != found.prompt {
        return Err(differs(dir, "prompt template", config.data.prompt.as_deref().unwrap_or("this version of itemlm")));
    }
    match trained.entities == found.entities {
        true => Ok(()),
        false => Err(differs(dir, "file of vectors", config.items.vectors.as_deref().unwrap_or("its run file"))),
    }
}
