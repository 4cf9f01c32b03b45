//! From windows to what one forward pass and its loss need, as plain arrays.
//!
//! Only positions that carry loss are predicted, and only the vocabulary rows that one of them
//! needs are scored. Under MSL a target token with a single valid child has P_valid = 1: it adds
//! nothing to the loss, so it is not predicted, and tokens after a target's last branching are not
//! run at all.

mod micro;
mod text;
mod token_tree;

pub use text::TextBatch;
pub use token_tree::{TokenTreeBatch, shared_beginning};

use crate::text::{Catalogue, ROOT};

/// A prompt and what to predict after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The prompt's tokens, at least one; [`crate::text::EntityTokens`] among them.
    pub prompt: Vec<u32>,
    /// What comes after it.
    pub target: Target,
    /// What a collaborative prior adds to the logits: [`crate::decode::PrefixMass::logit_bias_to`]
    /// the item; empty without a prior in the loss.
    pub logit_bias: Vec<f32>,
}

/// What an LLM is to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An item of the catalogue.
    Item(u32),
    /// Any text, its EOS included; [`Candidates::Vocabulary`] alone can learn it.
    Text(Vec<u32>),
}

/// Which tokens compete in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidates {
    /// The whole vocabulary, at every target token (LML).
    Vocabulary,
    /// The trie's children, at target tokens with more than one (MSL).
    Children,
}

/// One token to predict.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Where its logits come from: a node, as an index into [`TokenTreeBatch::tokens`].
    pub at: usize,
    /// The token's place in [`Batch::rows`].
    pub label: usize,
    /// The places in [`Batch::rows`] of the tokens that compete; empty when every row does.
    pub valid: Vec<usize>,
    /// What is added to the logits of `valid`, in their order; empty for nothing.
    pub logit_bias: Vec<f32>,
    /// Whether it has as many children as the root: the released test for a position that counts
    /// for the adaptive temperature (A2: a test on the count, not on the depth).
    pub root: bool,
}

/// Prompts and targets of some examples, as token trees.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// What is run.
    pub forest: TokenTreeBatch,
    /// The positions that carry loss.
    pub predictions: Vec<Prediction>,
    /// Ascending vocabulary ids that are scored; `None` is the whole vocabulary.
    pub rows: Option<Vec<u32>>,
    /// All target tokens, EOS included, predicted or not: the denominator of LML and of MSL at a
    /// fixed temperature.
    pub target_tokens: usize,
    /// Target tokens with more than one valid child: the denominator of MSL with ATS.
    pub branching_tokens: usize,
    /// Tokens that the same examples would be side by side and whole, as a plain batch runs them;
    /// padding not counted.
    pub plain_tokens: usize,
}

impl Batch {
    /// Lays out `examples`.
    ///
    /// # Panics
    /// On an empty prompt, an item outside the catalogue, gains for another item, or a text among
    /// [`Candidates::Children`]: all are made by the program, never read.
    pub fn new(examples: &[Example], catalogue: &Catalogue, candidates: Candidates) -> Self {
        Self::below(
            shared_beginning(examples.iter().map(|example| example.prompt.as_slice())),
            examples,
            catalogue,
            candidates,
        )
    }

    /// As [`Batch::new`], below the first `shared` tokens, which all prompts begin with.
    fn below(shared: usize, examples: &[Example], catalogue: &Catalogue, candidates: Candidates) -> Self {
        let trie = &catalogue.trie;
        let root_children = trie.valid_tokens(ROOT).len();
        let mut paths: Vec<Path> = examples.iter().map(|example| Path::of(example, catalogue, candidates)).collect();
        let sum = |count: fn(&Path) -> usize| -> usize { paths.iter().map(count).sum() };
        let (target_tokens, branching_tokens) = (sum(|path| path.target_tokens), sum(|path| path.branching_tokens));
        let plain_tokens = examples.iter().map(|example| example.prompt.len()).sum::<usize>() + target_tokens;
        let sequences: Vec<Vec<u32>> = paths.iter_mut().map(|path| std::mem::take(&mut path.tokens)).collect();
        // Row, place in the row, token and node before it, of each prediction.
        let of_row = |(row, path): (usize, &Path)| {
            path.predicted.iter().map(move |&(at, token, node)| (row, at, token, node)).collect::<Vec<_>>()
        };
        let found: Vec<(usize, usize, u32, u32)> = paths.iter().enumerate().flat_map(of_row).collect();

        let rows = (candidates == Candidates::Children).then(|| {
            let mut rows: Vec<u32> =
                found.iter().flat_map(|&(_, _, _, node)| trie.valid_tokens(node)).copied().collect();
            rows.sort_unstable();
            rows.dedup();
            rows
        });
        let place = |token: u32| match &rows {
            Some(rows) => rows.binary_search(&token).expect("rows hold every valid token"),
            None => token as usize,
        };
        let (forest, places) = TokenTreeBatch::new(&sequences, shared);
        let mut logit_bias: Vec<&[f32]> = examples.iter().map(|example| example.logit_bias.as_slice()).collect();
        let mut next_gains = |row: usize, node| match logit_bias[row] {
            [] => Vec::new(),
            left => {
                let (now, later) = left.split_at(trie.valid_tokens(node).len());
                logit_bias[row] = later;
                now.to_vec()
            }
        };
        let predictions = found
            .into_iter()
            .map(|(row, at, token, node)| Prediction {
                at: places[row][at - shared],
                label: place(token),
                valid: match candidates {
                    Candidates::Vocabulary => Vec::new(),
                    Candidates::Children => trie.valid_tokens(node).iter().map(|&t| place(t)).collect(),
                },
                logit_bias: match candidates {
                    Candidates::Vocabulary => Vec::new(),
                    Candidates::Children => next_gains(row, node),
                },
                root: trie.valid_tokens(node).len() == root_children,
            })
            .collect();
        Self { forest, predictions, rows, target_tokens, branching_tokens, plain_tokens }
    }
}

/// An example as one sequence.
struct Path {
    /// What of it is run: the token before the last predicted one is the last.
    tokens: Vec<u32>,
    /// Of each prediction: the place of the token before it, the token, and the trie's node before
    /// it.
    predicted: Vec<(usize, u32, u32)>,
    target_tokens: usize,
    branching_tokens: usize,
}

impl Path {
    fn of(example: &Example, catalogue: &Catalogue, candidates: Candidates) -> Self {
        assert!(!example.prompt.is_empty(), "a prompt holds at least one token");
        let before = example.prompt.len() - 1;
        let run = |target: &[u32], last: usize| [example.prompt.as_slice(), &target[..last]].concat();
        let item = match &example.target {
            Target::Item(item) => *item,
            Target::Text(text) => {
                assert!(candidates == Candidates::Vocabulary, "a text has no place in the trie");
                return Self {
                    tokens: run(text, text.len().saturating_sub(1)),
                    predicted: text.iter().enumerate().map(|(t, &token)| (before + t, token, ROOT)).collect(),
                    target_tokens: text.len(),
                    branching_tokens: 0,
                };
            }
        };
        let (trie, target) = (&catalogue.trie, &catalogue.targets[item as usize]);
        let (mut predicted, mut branching_tokens, mut node) = (Vec::new(), 0, ROOT);
        for (t, &token) in target.iter().enumerate() {
            let branches = trie.valid_tokens(node).len() > 1;
            branching_tokens += usize::from(branches);
            if branches || candidates == Candidates::Vocabulary {
                predicted.push((before + t, token, node));
            }
            node = trie.child(node, token).expect("the trie holds every target");
        }
        let last = predicted.last().map_or(0, |(at, _, _)| at - before);
        Self { tokens: run(target, last), predicted, target_tokens: target.len(), branching_tokens }
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
        // Row 0 predicts 1 of {1, 5} after the prompt and 2 of {2, 4} after 1; row 1 predicts 5 and
        // stops there.
        assert_eq!(batch.forest.rows(), 2);
        assert_eq!(batch.forest.tokens, [7, 8, 1, 3]);
        assert_eq!(batch.rows.as_deref(), Some(&[1, 2, 4, 5][..]));
        let expected = [
            Prediction { at: 1, label: 0, valid: vec![0, 3], logit_bias: vec![-1.0, -2.0], root: true },
            Prediction { at: 2, label: 1, valid: vec![1, 2], logit_bias: vec![-3.0, -4.0], root: true },
            Prediction { at: 3, label: 3, valid: vec![0, 3], logit_bias: vec![], root: true },
        ];
        assert_eq!(batch.predictions, expected);
        assert_eq!(
            (batch.target_tokens, batch.branching_tokens, batch.forest.run_tokens(), batch.plain_tokens),
            (7, 3, 4, 10)
        );
    }

    #[test]
    fn vocabulary_predicts_every_target_token() {
        let batch = Batch::new(&examples(), &catalogue(), Candidates::Vocabulary);
        assert_eq!(batch.forest.tokens, [7, 8, 1, 2, 3, 3, 5, 6]);
        assert_eq!(batch.predictions.len(), batch.target_tokens);
        assert!(batch.rows.is_none());
        let labels: Vec<usize> = batch.predictions.iter().map(|p| p.label).collect();
        assert_eq!(labels, [1, 2, 3, 9, 5, 6, 9]);
    }
}
