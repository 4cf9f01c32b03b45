//! Ranking: log-probabilities of items, and beam search over the trie; and generation of free text.

mod batched_search;
mod batching;
mod beam;
mod filter;
mod generate;
mod log_probs;
mod lookahead;
mod prior_weights;
mod score;
mod search;
mod trie_prior;

pub use batched_search::BatchedSearch;
pub use batching::{TOKENS_PER_BEAM, common_prefix, prompts_per_pass};
pub use beam::RankedItem;
pub use filter::ItemFilter;
pub use generate::{generate, log_likelihoods};
pub use log_probs::check_log_probs;
pub use prior_weights::{Branching, PriorWeights};
pub use score::{ItemScore, score};
pub use search::{Query, search};
pub use trie_prior::{PrefixMass, TriePrior};

#[cfg(test)]
mod tests;
