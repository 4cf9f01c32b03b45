//! `[decode]` of the run file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[decode]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, from = "DecodeFields")]
pub struct DecodeConfig {
    /// Number of beams, and of items returned.
    pub beams: usize,
    /// Over which tokens the softmax of each step is computed.
    pub scoring: Scoring,
    /// An item's log-probability is divided by (target tokens, EOS included) to this power. By
    /// default 0 for masked scoring and 1 for full ([`Scoring::length_penalty`]).
    pub length_penalty: f64,
    /// The beam search that ranks items.
    pub search: SearchKind,
    /// Whether items with a title of the history are left out of every list.
    pub exclude_history: bool,
}

/// `[decode]` as the file has it, before defaults.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct DecodeFields {
    beams: usize,
    scoring: Scoring,
    length_penalty: Option<f64>,
    search: SearchKind,
    exclude_history: bool,
}

impl Default for DecodeFields {
    fn default() -> Self {
        Self {
            beams: 10,
            scoring: Scoring::Masked,
            length_penalty: None,
            search: SearchKind::Trie,
            exclude_history: false,
        }
    }
}

impl From<DecodeFields> for DecodeConfig {
    fn from(fields: DecodeFields) -> Self {
        let DecodeFields { beams, scoring, length_penalty, search, exclude_history } = fields;
        let length_penalty = length_penalty.unwrap_or(scoring.length_penalty());
        Self { beams, scoring, length_penalty, search, exclude_history }
    }
}

impl Default for DecodeConfig {
    fn default() -> Self {
        DecodeFields::default().into()
    }
}

impl DecodeConfig {
    /// Returns why the settings do not rank well, if they do not.
    pub fn advice(&self) -> Option<String> {
        (self.scoring == Scoring::Masked && self.length_penalty > 0.0).then(|| {
            format!(
                "masked scoring with length penalty {} favours long titles: their forced tokens have log-probability \
                 0, but count as \
                 length; decode.length_penalty = 0 ranks better",
                self.length_penalty
            )
        })
    }
}

/// `decode.scoring`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// Softmax over the trie's children: mask, then softmax, as MSL's released "customised CBS"
    /// scores. That search is transformers' own: for its lists set `decode.search = "transformers"`
    /// as well. A forced token has log-probability 0, but counts for the length penalty, so a
    /// penalty above 0 favours long titles.
    Masked,
    /// Softmax over the vocabulary, then mask (transformers' `prefix_allowed_tokens_fn`).
    Full,
}

impl Scoring {
    /// Returns the length penalty that goes with the scoring: 0 for masked, where forced tokens
    /// have log-probability 0 but would count as length; 1 for full, as transformers.
    pub fn length_penalty(self) -> f64 {
        match self {
            Self::Masked => 0.0,
            Self::Full => 1.0,
        }
    }
}

/// `decode.search`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SearchKind {
    /// itemlm's own search. It is nearer to the ranking of all items than that of transformers: an
    /// item that is complete (with masked scoring at its last branching) leaves the beams and frees
    /// its place, every complete item counts, and the search ends when no beam can still enter the
    /// list. The list is always as long as there are beams, if there are so many items.
    Trie,
    /// The search of transformers (`generate` with `prefix_allowed_tokens_fn`, for masked scoring
    /// with `renormalize_logits`, `early_stopping=False`), for comparisons with published results:
    /// an item keeps its beam until its EOS, counts only if it is then among the best `beams`
    /// continuations, and the search ends by transformers' heuristic. The list may be shorter.
    Transformers,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_penalty_goes_with_the_scoring() {
        let read = |text: &str| toml::from_str::<DecodeConfig>(text).unwrap();
        assert_eq!(read(""), DecodeConfig::default());
        let of = |text: &str| (read(text).length_penalty, read(text).advice().is_some());
        assert_eq!((of(""), of("scoring = \"full\"")), ((0.0, false), (1.0, false)));
        assert_eq!(
            (of("length_penalty = 1"), of("scoring = \"full\"\nlength_penalty = 0")),
            ((1.0, true), (0.0, false))
        );
        let config = DecodeConfig { length_penalty: 0.25, exclude_history: true, ..DecodeConfig::default() };
        assert_eq!(read(&toml::to_string(&config).unwrap()), config);
        assert!(toml::from_str::<DecodeConfig>("beam = 3").is_err());
    }
}
