//! A batch as a forest of token trees.
//!
//! A node is a token with a parent; it attends to its ancestors and to itself, and its position is
//! its depth. Sequences that begin alike, as tokens, share those nodes, so that what each of them
//! computes is what it would compute alone:
//!
//! ```text
//!   shared by all rows, run once        a row: one tree, one or more sequences
//!   ┌───────────────────────────┐      ┌─ "A" ─┬─ end ─ target B
//!   │ instruction ─ … ─ before: │ ─────┤       └─ , "B" ─┬─ end ─ target C
//!   └───────────────────────────┘      │                 └─ , "C" ─ end ─ target D
//!                                      ├─ "E" ─ , "F" ─ end ─ target G
//!                                      └─ …
//! ```
//!
//! Trees stand one after the other.

use std::collections::HashMap;

/// Token trees below one shared chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTreeBatch {
    /// What every sequence begins with: positions 0, 1, …
    pub shared: Vec<u32>,
    /// Tree after tree its tokens, a parent before its children.
    pub tokens: Vec<u32>,
    /// Each token's depth below the whole tree's root, the shared chain counted.
    pub positions: Vec<u32>,
    /// Each tree's nodes' parents among the tree's nodes; `None` below the shared chain.
    pub parents: Vec<Vec<Option<usize>>>,
}

/// A sequence joins the tree before it if at least this part of it is there already: else its own
/// row wastes less.
const JOINS: f64 = 0.3;

impl TokenTreeBatch {
    /// Merges `sequences`, of which the first `shared` tokens are the same in all. Also returns,
    /// for each sequence, the nodes (as indices into [`TokenTreeBatch::tokens`]) of its tokens
    /// after those.
    pub fn new(sequences: &[Vec<u32>], shared: usize) -> (Self, Vec<Vec<usize>>) {
        let mut trees = Trees::default();
        let places: Vec<(usize, Vec<usize>)> =
            sequences.iter().map(|sequence| trees.add(&sequence[shared..])).collect();
        let Trees { trees, nodes } = trees;
        let (mut tokens, mut positions) = (Vec::with_capacity(nodes), Vec::with_capacity(nodes));
        let mut starts = Vec::with_capacity(trees.len());
        for tree in &trees {
            let start = tokens.len();
            tokens.extend(&tree.tokens);
            for parent in &tree.parents {
                positions.push(parent.map_or(shared as u32, |parent| positions[start + parent] + 1));
            }
            starts.push(start);
        }
        let of_tree = |(tree, nodes): (usize, Vec<usize>)| nodes.into_iter().map(|node| starts[tree] + node).collect();
        let places = places.into_iter().map(of_tree).collect();
        let shared = sequences.first().map_or(&[][..], |sequence| &sequence[..shared]).to_vec();
        (Self { shared, tokens, positions, parents: trees.into_iter().map(|tree| tree.parents).collect() }, places)
    }

    /// Trees.
    pub fn rows(&self) -> usize {
        self.parents.len()
    }

    /// Tokens that are run.
    pub fn run_tokens(&self) -> usize {
        self.shared.len() + self.tokens.len()
    }
}

/// Trees in the making.
#[derive(Default)]
pub(super) struct Trees {
    trees: Vec<Tree>,
    /// Of all of them.
    pub nodes: usize,
}

impl Trees {
    /// The sequence's tree and its nodes there.
    pub(super) fn add(&mut self, sequence: &[u32]) -> (usize, Vec<usize>) {
        let joins = |tree: &Tree| tree.common(sequence) as f64 >= JOINS * sequence.len() as f64;
        let mut tree = self.trees.pop_if(|tree| joins(tree)).unwrap_or_default();
        let before = tree.tokens.len();
        let nodes = tree.insert(sequence);
        self.nodes += tree.tokens.len() - before;
        self.trees.push(tree);
        (self.trees.len() - 1, nodes)
    }
}

/// The beginning that all of `prompts` share, the last token of each excepted: it has something to
/// predict.
pub fn shared_beginning<'a>(mut prompts: impl Iterator<Item = &'a [u32]>) -> usize {
    let Some(first) = prompts.next() else { return 0 };
    let most = first.len().saturating_sub(1);
    prompts.fold(most, |most, prompt| {
        let equal = prompt.iter().zip(&first[..most]).take_while(|(a, b)| a == b).count();
        equal.min(prompt.len().saturating_sub(1))
    })
}

#[derive(Default)]
struct Tree {
    tokens: Vec<u32>,
    parents: Vec<Option<usize>>,
    children: HashMap<(Option<usize>, u32), usize>,
}

impl Tree {
    /// How many of the first tokens are there already.
    fn common(&self, sequence: &[u32]) -> usize {
        let mut at = None;
        let there = |token: &&u32| match self.children.get(&(at, **token)) {
            Some(&node) => {
                at = Some(node);
                true
            }
            None => false,
        };
        sequence.iter().take_while(there).count()
    }

    /// The sequence's nodes.
    fn insert(&mut self, sequence: &[u32]) -> Vec<usize> {
        let mut at = None;
        let mut nodes = Vec::with_capacity(sequence.len());
        for &token in sequence {
            let next = self.tokens.len();
            let node = *self.children.entry((at, token)).or_insert(next);
            if node == next {
                self.tokens.push(token);
                self.parents.push(at);
            }
            at = Some(node);
            nodes.push(node);
        }
        nodes
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn a_user_with_two_targets_is_one_tree() {
        let sequences = [vec![1, 2, 10, 11, 30, 31], vec![1, 2, 10, 11, 12, 30], vec![1, 2, 20, 21, 30]];
        let (forest, places) = TokenTreeBatch::new(&sequences, 2);
        assert_eq!((forest.shared.as_slice(), forest.rows()), (&[1, 2][..], 2));
        assert_eq!(forest.tokens, [10, 11, 30, 31, 12, 30, 20, 21, 30]);
        assert_eq!(forest.parents[0], [None, Some(0), Some(1), Some(2), Some(1), Some(4)]);
        assert_eq!(forest.positions, [2, 3, 4, 5, 4, 5, 2, 3, 4]);
        assert_eq!(places, [vec![0, 1, 2, 3], vec![0, 1, 4, 5], vec![6, 7, 8]]);
        assert_eq!(forest.run_tokens(), 2 + 6 + 3);
    }

    /// Walking up from a sequence's last node spells it, whatever the sequences.
    #[test]
    fn every_sequence_can_be_read_back() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for _ in 0..200 {
            let count = rng.random_range(1..12);
            let mut sequences: Vec<Vec<u32>> = Vec::new();
            for n in 0..count {
                let mut sequence = vec![1];
                if n > 0 && rng.random_bool(0.6) {
                    let other = &sequences[rng.random_range(0..n)];
                    sequence = other[..rng.random_range(1..=other.len())].to_vec();
                }
                sequence.extend((0..rng.random_range(1..6)).map(|_| rng.random_range(1..4u32)));
                sequences.push(sequence);
            }
            let shared = shared_beginning(sequences.iter().map(Vec::as_slice));
            assert!(shared >= 1 && sequences.iter().all(|s| s.len() > shared && s[..shared] == sequences[0][..shared]));
            let (forest, places) = TokenTreeBatch::new(&sequences, shared);
            for (sequence, nodes) in sequences.iter().zip(&places) {
                let ends = forest.parents.iter().scan(0, |end, parents| {
                    *end += parents.len();
                    Some(*end)
                });
                let row = ends.take_while(|end| *end <= nodes[0]).count();
                let start: usize = forest.parents[..row].iter().map(Vec::len).sum();
                let mut read = Vec::new();
                let mut at = nodes.last().map(|node| node - start);
                while let Some(node) = at {
                    assert_eq!(forest.positions[start + node] as usize, sequence.len() - 1 - read.len());
                    read.push(forest.tokens[start + node]);
                    at = forest.parents[row][node];
                }
                read.reverse();
                assert_eq!([&forest.shared[..], &read].concat(), *sequence);
            }
            for parents in &forest.parents {
                assert!(parents.iter().enumerate().all(|(node, parent)| parent.is_none_or(|parent| parent < node)));
            }
        }
    }
}
