//! `[decode]` of the run file.

use serde::{Deserialize, Serialize};

/// `[decode]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeConfig {
    /// Beams, and items returned.
    pub beams: usize,
    /// Which tokens share the probability.
    pub scoring: Scoring,
    /// An item's log-probability is divided by (target tokens, EOS included) to this power.
    pub length_penalty: f64,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self { beams: 10, scoring: Scoring::Masked, length_penalty: 0.0 }
    }
}

/// `decode.scoring`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// Softmax over the trie's children (the released "customised CBS").
    Masked,
    /// Softmax over the vocabulary, then masked (transformers' `prefix_allowed_tokens_fn`).
    Full,
}
