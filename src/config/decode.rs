//! `[decode]` of the run file.

use serde::{Deserialize, Serialize};

/// `[decode]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeConfig {
    /// Number of beams, and of items returned.
    pub beams: usize,
    /// Which tokens share the probability.
    pub scoring: Scoring,
    /// An item's log-probability is divided by (target tokens, EOS included) to this power.
    pub length_penalty: f64,
    /// Which beam search ranks.
    pub search: SearchKind,
    /// Whether items with a title of the history are left out of every list.
    pub exclude_history: bool,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self {
            beams: 10,
            scoring: Scoring::Masked,
            length_penalty: 0.0,
            search: SearchKind::Trie,
            exclude_history: false,
        }
    }
}

/// `decode.scoring`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// `decode.search`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchKind {
    /// Ours. It is nearer to the ranking of all items than transformers': an item that is complete
    /// (with masked scoring at its last branching) leaves the beams and frees its place, every
    /// complete item counts, and the search ends when no beam can still enter the list. The list is
    /// always as long as there are beams, if there are so many items.
    Trie,
    /// transformers' (`generate` with `prefix_allowed_tokens_fn`, for masked scoring with
    /// `renormalize_logits`, `early_stopping=False`), for comparisons with published rows: an item
    /// keeps its beam until its EOS, counts only if it is then among the best `beams`
    /// continuations, and the search ends by transformers' heuristic. The list may be shorter.
    Transformers,
}
