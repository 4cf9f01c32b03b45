//! `[prior]` of the run file.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::rankers::Baseline;
use crate::rankers::Method;
use crate::{Error, Result};

/// A ranker without a language model, as `itemlm baseline` and `prior.ranker` call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum RankerName {
    /// Counts on the training windows.
    Counting(Baseline),
    /// Vectors learnt from them.
    Collaborative(Method),
}

impl Display for RankerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counting(baseline) => baseline.fmt(f),
            Self::Collaborative(method) => method.fmt(f),
        }
    }
}

impl FromStr for RankerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self::Collaborative).or_else(|_| text.parse().map(Self::Counting))
    }
}

impl From<RankerName> for String {
    fn from(name: RankerName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for RankerName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// `[prior]`, as [`crate::decode`] defines it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorConfig {
    /// Whose distribution over the items.
    pub ranker: RankerName,
    /// als, bpr, sasrec: the file that `itemlm cf` wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<String>,
    /// What the logarithm of a token's share is multiplied by; `evaluate --split valid
    /// --prior-weight A,B,…` chooses another.
    #[serde(default = "one")]
    pub weight: f64,
    /// The part of the probability that is spread evenly over the items.
    #[serde(default = "smoothing")]
    pub smoothing: f64,
    /// Train with it as well, so that the LLM learns what the ranker does not know. For rankers
    /// that count: they can leave a window's target out, vectors have learnt it.
    #[serde(default)]
    pub in_loss: bool,
}

fn one() -> f64 {
    1.0
}

/// Near the likeliest for co-occurrence on the validation windows of office (.5), books (.7) and
/// clothing (.9).
fn smoothing() -> f64 {
    0.5
}

impl PriorConfig {
    /// # Errors
    /// A weight that no logits could stand.
    pub fn check_weight(weight: f64, key: &str) -> Result<()> {
        match (0.0..=1000.0).contains(&weight) {
            true => Ok(()),
            false => Err(Error::usage(format!("{key} is {weight}, it must be between 0 and 1000"))),
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        Self::check_weight(self.weight, "prior.weight")?;
        if !(1e-6..=1.0).contains(&self.smoothing) {
            return Err(Error::usage(format!("prior.smoothing is {}, it must be between 1e-6 and 1", self.smoothing)));
        }
        match (self.ranker, &self.vectors) {
            (RankerName::Collaborative(method), None) => Err(Error::usage(format!(
                "prior.ranker = \"{method}\" needs prior.vectors, the file that `itemlm cf {method} CORPUS --out FILE` writes"
            ))),
            (RankerName::Counting(baseline), Some(_)) => {
                Err(Error::usage(format!("prior.vectors is for the rankers als, bpr and sasrec, not {baseline}")))
            }
            (RankerName::Collaborative(method), _) if self.in_loss => Err(Error::usage(format!(
                "prior.in_loss: {method} has learnt the very targets that the loss asks for; use a ranker that counts, or in_loss = false"
            ))),
            _ => Ok(()),
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
        let ranker = RankerName::Counting(Baseline::Cooccurrence);
        let expected = PriorConfig { ranker, vectors: None, weight: 1.0, smoothing: 0.5, in_loss: false };
        assert_eq!(config.prior, Some(expected));
        assert_eq!(RunConfig::parse(&config.to_toml().unwrap(), &[], "again").unwrap(), config);
        let set = ["prior={ ranker = \"markov\", in_loss = true }", "loss.kind=lml"].map(String::from);
        assert!(RunConfig::parse(MINIMAL, &set, "run.toml").unwrap_err().to_string().contains("prior.in_loss"));
        assert!(RunConfig::parse(MINIMAL, &set[..1], "run.toml").is_ok());
    }
}
