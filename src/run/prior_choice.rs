//! `prior.json`: the weights of prior and LLM that were chosen on the validation windows.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::prior_fit::PriorFit;
use crate::config::{DecodeConfig, PriorConfig};
use crate::core::files::write_json;
use crate::core::log::log;
use crate::{Context, Result};

const PRIOR: &str = "prior.json";

/// The contents of `prior.json`: the prior's weight that ranked the validation windows best, or the
/// weights of prior and LLM that were fitted to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChosenPrior {
    /// The run file's prior, with the chosen weights.
    pub prior: PriorConfig,
    /// SHA-256 of its vectors, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<String>,
    /// The optimiser step whose weights were ranked with.
    pub step: usize,
    /// The settings of the search.
    pub decode: DecodeConfig,
    /// The prompt set and the prompt that were ranked with, of a run with prompt sets.
    #[serde(rename = "asked", default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Number of windows that were ranked.
    pub windows: usize,
    /// All weights that were compared.
    pub tried: Vec<TriedWeight>,
    /// The fit of the weights, if they were fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<PriorFit>,
}

/// A weight of the prior, and the metric of the validation windows with it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedWeight {
    /// The weight.
    pub weight: f64,
    /// NDCG@10 over the ranked windows.
    #[serde(rename = "ndcg@10")]
    pub ndcg_at_10: f64,
}

impl ChosenPrior {
    /// Writes the choice into the run in `dir`, which from then on ranks with it.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(PRIOR), self)
    }

    /// Reads the choice for the run in `dir`; `None`, and a note, where it was made for another
    /// prior or another step.
    pub(crate) fn read(dir: &Path, prior: &PriorConfig, vectors: &Option<String>, step: usize) -> Result<Option<Self>> {
        let path = dir.join(PRIOR);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).context(path.display())?;
        let chosen: Self = serde_json::from_str(&text).context(path.display())?;
        PriorConfig::check_weight(chosen.prior.weight, "prior.weight").context(path.display())?;
        PriorConfig::check_weight(chosen.prior.llm_weight, "prior.llm_weight").context(path.display())?;
        let same = chosen.step == step && chosen.vectors == *vectors;
        if same && chosen.prior.with_weights(prior.weight, prior.llm_weight) == *prior {
            return Ok(Some(chosen));
        }
        log(format_args!(
            "note: {} was chosen for another prior, other vectors or another step than the run's; its weight {} is \
             not used but run.toml's, {}",
            path.display(),
            chosen.prior.weight,
            prior.weight
        ));
        Ok(None)
    }
}
