//! From examples to the arrays that one forward pass and its loss need.
//!
//! Examples ([`Example`]) become token trees ([`TokenTreeBatch`]), which share what sequences have
//! in common; an optimiser step's examples are cut into micro-batches
//! ([`crate::config::MicroBatch`]).
//!
//! Only positions that carry loss are predicted, and logits are computed only for the token ids
//! that one of them needs. Under MSL a target token with a single valid child has P_valid = 1: it
//! adds nothing to the loss, so it is not predicted, and tokens after a target's last branching are
//! not run.

mod example;
mod micro_batch;
mod text_batch;
mod token_tree;

pub use example::{Candidates, Example, Target};
pub use text_batch::TextBatch;
pub use token_tree::{TokenTreeBatch, common_prefix_len};

use crate::text::{Catalogue, ROOT};
use example::{ExampleSequence, PredictedToken};

/// One token to predict.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Index into [`TokenTreeBatch::tokens`] of the token whose hidden state gives the logits.
    pub hidden_index: usize,
    /// Index of the right token in [`Batch::candidate_ids`].
    pub label: usize,
    /// Indices in [`Batch::candidate_ids`] of the tokens that compete; empty when all do.
    pub valid: Vec<usize>,
    /// Numbers that are added to the logits of `valid`, in their order; empty for nothing.
    pub logit_bias: Vec<f32>,
    /// Whether the node before has as many children as the root. By this count, and not by depth,
    /// MSL's released code tells the positions that count for the adaptive temperature.
    pub is_root_position: bool,
}

/// Prompts and targets of some examples, as token trees.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The tokens that are run.
    pub token_trees: TokenTreeBatch,
    /// The positions that carry loss.
    pub predictions: Vec<Prediction>,
    /// Ascending ids of the tokens whose logits are computed; `None` is the whole vocabulary.
    pub candidate_ids: Option<Vec<u32>>,
    /// All target tokens, EOS included, predicted or not: the denominator of LML and of MSL at a
    /// fixed temperature.
    pub target_tokens: usize,
    /// Target tokens with more than one valid child: the denominator of MSL with ATS.
    pub branching_tokens: usize,
    /// Tokens of the same examples side by side and whole, as a plain batch runs them; padding not
    /// counted.
    pub plain_tokens: usize,
    /// Factor of the logits, before biases are added; 1 unless the caller sets another.
    pub logit_factor: f64,
}

impl Batch {
    /// Lays out `examples`.
    ///
    /// # Panics
    /// On an empty prompt, an item outside the catalogue, a logit bias for another item, or a text
    /// with [`Candidates::Children`]: all are made by the program, never read.
    pub fn new(examples: &[Example], catalogue: &Catalogue, candidates: Candidates) -> Self {
        let shared = common_prefix_len(examples.iter().map(|example| example.prompt.as_slice()));
        Self::with_shared_prefix(shared, examples, catalogue, candidates)
    }

    /// Lays out `examples`, whose prompts all begin with the same `shared` tokens.
    fn with_shared_prefix(shared: usize, examples: &[Example], catalogue: &Catalogue, candidates: Candidates) -> Self {
        let trie = &catalogue.trie;
        let root_children = trie.valid_tokens(ROOT).len();
        let mut sequences: Vec<ExampleSequence> =
            examples.iter().map(|example| ExampleSequence::new(example, catalogue, candidates)).collect();
        let sum = |count: fn(&ExampleSequence) -> usize| -> usize { sequences.iter().map(count).sum() };
        let target_tokens = sum(|sequence| sequence.target_tokens);
        let branching_tokens = sum(|sequence| sequence.branching_tokens);
        let plain_tokens = examples.iter().map(|example| example.prompt.len()).sum::<usize>() + target_tokens;
        let tokens: Vec<Vec<u32>> = sequences.iter_mut().map(|s| std::mem::take(&mut s.tokens)).collect();
        let of_example = |(n, sequence): (usize, &ExampleSequence)| {
            sequence.predicted.iter().map(move |&predicted| (n, predicted)).collect::<Vec<_>>()
        };
        let predicted: Vec<(usize, PredictedToken)> = sequences.iter().enumerate().flat_map(of_example).collect();

        let candidate_ids = (candidates == Candidates::Children).then(|| {
            let valid = predicted.iter().flat_map(|(_, predicted)| trie.valid_tokens(predicted.node));
            let mut ids: Vec<u32> = valid.copied().collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        });
        let index_of = |token: u32| match &candidate_ids {
            Some(ids) => ids.binary_search(&token).expect("the candidates hold every valid token"),
            None => token as usize,
        };
        let (token_trees, nodes) = TokenTreeBatch::new(&tokens, shared);
        let mut logit_bias: Vec<&[f32]> = examples.iter().map(|example| example.logit_bias.as_slice()).collect();
        let mut next_logit_bias = |example: usize, node| match logit_bias[example] {
            [] => Vec::new(),
            left => {
                let (now, later) = left.split_at(trie.valid_tokens(node).len());
                logit_bias[example] = later;
                now.to_vec()
            }
        };
        let predictions = predicted
            .into_iter()
            .map(|(example, PredictedToken { before, token, node })| Prediction {
                hidden_index: nodes[example][before - shared],
                label: index_of(token),
                valid: match candidates {
                    Candidates::Vocabulary => Vec::new(),
                    Candidates::Children => trie.valid_tokens(node).iter().map(|&t| index_of(t)).collect(),
                },
                logit_bias: match candidates {
                    Candidates::Vocabulary => Vec::new(),
                    Candidates::Children => next_logit_bias(example, node),
                },
                is_root_position: trie.valid_tokens(node).len() == root_children,
            })
            .collect();
        Self {
            token_trees,
            predictions,
            candidate_ids,
            target_tokens,
            branching_tokens,
            plain_tokens,
            logit_factor: 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Trie;

    const EOS: u32 = 9;

    fn catalogue() -> Catalogue {
        let targets = vec![vec![1, 2, 3, EOS], vec![1, 4, EOS], vec![5, 6, EOS]];
        Catalogue { trie: Trie::build(&targets).unwrap(), targets }
    }

    fn examples() -> Vec<Example> {
        // Item 0 branches twice, item 2 once.
        vec![
            Example { prompt: vec![7, 8], target: Target::Item(0), logit_bias: vec![-1.0, -2.0, -3.0, -4.0] },
            Example { prompt: vec![3], target: Target::Item(2), logit_bias: vec![] },
        ]
    }

    #[test]
    fn children_stop_at_the_last_branching() {
        let batch = Batch::new(&examples(), &catalogue(), Candidates::Children);
        // Tree 0 predicts 1 of {1, 5} after the prompt and 2 of {2, 4} after 1; tree 1 predicts 5
        // and stops there.
        assert_eq!(batch.token_trees.tree_count(), 2);
        assert_eq!(batch.token_trees.tokens, [7, 8, 1, 3]);
        assert_eq!(batch.candidate_ids.as_deref(), Some(&[1, 2, 4, 5][..]));
        let expected = [
            Prediction {
                hidden_index: 1,
                label: 0,
                valid: vec![0, 3],
                logit_bias: vec![-1.0, -2.0],
                is_root_position: true,
            },
            Prediction {
                hidden_index: 2,
                label: 1,
                valid: vec![1, 2],
                logit_bias: vec![-3.0, -4.0],
                is_root_position: true,
            },
            Prediction { hidden_index: 3, label: 3, valid: vec![0, 3], logit_bias: vec![], is_root_position: true },
        ];
        assert_eq!(batch.predictions, expected);
        assert_eq!(
            (batch.target_tokens, batch.branching_tokens, batch.token_trees.run_tokens(), batch.plain_tokens),
            (7, 3, 4, 10)
        );
    }

    #[test]
    fn vocabulary_predicts_every_target_token() {
        let batch = Batch::new(&examples(), &catalogue(), Candidates::Vocabulary);
        assert_eq!(batch.token_trees.tokens, [7, 8, 1, 2, 3, 3, 5, 6]);
        assert_eq!(batch.predictions.len(), batch.target_tokens);
        assert!(batch.candidate_ids.is_none());
        let labels: Vec<usize> = batch.predictions.iter().map(|p| p.label).collect();
        assert_eq!(labels, [1, 2, 3, 9, 5, 6, 9]);
    }
}
