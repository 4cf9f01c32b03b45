//! `[prior]` of the run file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problems;
use crate::{Error, Result};

/// `[prior]`: a ranker without a language model that helps to rank, and how much it does;
/// [`crate::decode`] has the formula. The registry of rankers checks the ranker's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PriorConfig {
    /// Name of the ranker whose distribution over the items is the prior, as `itemlm baseline`
    /// takes it; names joined by `+` are a mixture.
    pub ranker: String,
    /// Path of the file that `itemlm cf` wrote; for rankers that learn vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<String>,
    /// Settings of the ranker, as `itemlm baseline --set` takes them; of a mixture a table for each
    /// part.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub settings: toml::Table,
    /// The weight of each part of a mixture. Where it is not given, it is fitted on the validation
    /// windows and kept in the run's `identity.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixture: Option<BTreeMap<String, f64>>,
    /// Factor of the logarithm of a token's share; `evaluate --split valid --prior-weight A,B,…`
    /// chooses another.
    #[serde(default = "default_weight")]
    pub weight: f64,
    /// Factor of the LLM's own logits beside the prior: below 1 the LLM is less sure, with 0 the
    /// ranker ranks alone. `evaluate --split valid --fit-prior` fits it and `weight`.
    #[serde(default = "default_weight")]
    pub llm_weight: f64,
    /// The part of the probability that is spread evenly over the items.
    #[serde(default = "default_smoothing")]
    pub smoothing: f64,
    /// Whether the LLM is trained with the prior as well, so that it learns what the ranker does
    /// not know. For rankers that can leave a window's target out; vectors have learnt it.
    #[serde(default)]
    pub in_loss: bool,
}

fn default_weight() -> f64 {
    1.0
}

/// Returns a value near the one of greatest likelihood for co-occurrence on the validation windows
/// of office (.5), books (.7) and clothing (.9).
fn default_smoothing() -> f64 {
    0.5
}

impl PriorConfig {
    /// Checks a prior's weight.
    ///
    /// # Errors
    /// A usage error that names `key` where the weight is not between 0 and 1000.
    pub fn check_weight(weight: f64, key: &str) -> Result<()> {
        match (0.0..=1000.0).contains(&weight) {
            true => Ok(()),
            false => Err(Error::usage(format!("{key} is {weight}, it must be between 0 and 1000"))),
        }
    }

    /// Returns this prior with other weights of itself and of the LLM.
    pub fn with_weights(&self, weight: f64, llm_weight: f64) -> Self {
        Self { weight, llm_weight, ..self.clone() }
    }

    pub(super) fn validate(&self, problems: &mut Problems) {
        problems.add_error(Self::check_weight(self.weight, "prior.weight"));
        problems.add_error(Self::check_weight(self.llm_weight, "prior.llm_weight"));
        if self.in_loss && self.llm_weight == 0.0 {
            problems.add("prior.llm_weight is 0, so the LLM would learn nothing: set it above 0, or in_loss = false");
        }
        if !(1e-6..=1.0).contains(&self.smoothing) {
            problems.add(format!("prior.smoothing is {}, it must be between 1e-6 and 1", self.smoothing));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::config::tests::MINIMAL;

    #[test]
    fn a_prior() {
        let set = ["prior.ranker=cooccurrence".to_string()];
        let config = RunConfig::parse(MINIMAL, &set, "run.toml").unwrap();
        let ranker = "cooccurrence".to_string();
        let expected = PriorConfig {
            ranker,
            vectors: None,
            settings: toml::Table::new(),
            mixture: None,
            weight: 1.0,
            llm_weight: 1.0,
            smoothing: 0.5,
            in_loss: false,
        };
        assert_eq!(config.prior, Some(expected));
        assert_eq!(RunConfig::parse(&config.to_toml().unwrap(), &[], "again").unwrap(), config);
        let set = [
            "prior.ranker=markov+text",
            "prior.settings.text.decay=0.5",
            "prior.mixture={ markov = 0.25, text = 0.75 }",
        ];
        let mixture = RunConfig::parse(MINIMAL, &set.map(String::from), "run.toml").unwrap();
        assert_eq!(mixture.prior.as_ref().unwrap().mixture.as_ref().unwrap()["text"], 0.75);
        assert_eq!(RunConfig::parse(&mixture.to_toml().unwrap(), &[], "again").unwrap(), mixture);
        let set = ["prior={ ranker = \"markov\", in_loss = true }", "loss.kind=lml"].map(String::from);
        assert!(RunConfig::parse(MINIMAL, &set, "run.toml").unwrap_err().to_string().contains("prior.in_loss"));
        assert!(RunConfig::parse(MINIMAL, &set[..1], "run.toml").is_ok());
    }
}
