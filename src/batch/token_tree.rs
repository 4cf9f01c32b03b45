//! Token trees: what several sequences have in common is run once.
//!
//! A node is a token with a parent; it attends to its ancestors and to itself, and its position is
//! its depth. Sequences that begin with the same tokens share those nodes, so what each of them
//! computes is what it would compute alone:
//!
//! ```text
//!   shared prefix, run once             one tree, of one or more sequences
//!   ┌───────────────────────────┐      ┌─ "A" ─┬─ end ─ target B
//!   │ instruction ─ … ─ before: │ ─────┤       └─ , "B" ─┬─ end ─ target C
//!   └───────────────────────────┘      │                 └─ , "C" ─ end ─ target D
//!                                      ├─ "E" ─ , "F" ─ end ─ target G
//!                                      └─ …
//! ```
//!
//! The trees stand one after the other in one array.

use std::collections::HashMap;

/// Token trees that continue one shared prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTreeBatch {
    /// The tokens that every sequence begins with, at positions 0, 1, …
    pub shared_prefix: Vec<u32>,
    /// `[nodes]`: the trees' tokens, tree after tree, a parent before its children.
    pub tokens: Vec<u32>,
    /// `[nodes]`: each token's position in its sequence; the first one after the shared prefix has
    /// the prefix's length.
    pub positions: Vec<u32>,
    /// `[trees][nodes of the tree]`: the parent's index in the tree; `None` for a token right after
    /// the shared prefix.
    pub parents: Vec<Vec<Option<usize>>>,
}

/// A sequence joins the last tree if at least this part of its tokens is there already; else a tree
/// of its own wastes less attention.
const MIN_SHARED_TO_JOIN: f64 = 0.3;

impl TokenTreeBatch {
    /// Merges `sequences`, which all begin with the same `shared` tokens. Also returns, for each
    /// sequence, the nodes (indices into [`TokenTreeBatch::tokens`]) of its tokens after those.
    pub fn new(sequences: &[Vec<u32>], shared: usize) -> (Self, Vec<Vec<usize>>) {
        let mut builder = TreeBuilder::default();
        let inserted: Vec<(usize, Vec<usize>)> =
            sequences.iter().map(|sequence| builder.insert(&sequence[shared..])).collect();
        let TreeBuilder { trees, node_count } = builder;
        let (mut tokens, mut positions) = (Vec::with_capacity(node_count), Vec::with_capacity(node_count));
        let mut starts = Vec::with_capacity(trees.len());
        for tree in &trees {
            let start = tokens.len();
            tokens.extend(&tree.tokens);
            for parent in &tree.parents {
                positions.push(parent.map_or(shared as u32, |parent| positions[start + parent] + 1));
            }
            starts.push(start);
        }
        let in_batch = |(tree, nodes): (usize, Vec<usize>)| nodes.into_iter().map(|node| starts[tree] + node).collect();
        let nodes = inserted.into_iter().map(in_batch).collect();
        let shared_prefix = sequences.first().map_or(&[][..], |sequence| &sequence[..shared]).to_vec();
        let parents = trees.into_iter().map(|tree| tree.parents).collect();
        (Self { shared_prefix, tokens, positions, parents }, nodes)
    }

    /// Returns the number of trees.
    pub fn tree_count(&self) -> usize {
        self.parents.len()
    }

    /// Returns the number of tokens that are run, the shared prefix included.
    pub fn run_tokens(&self) -> usize {
        self.shared_prefix.len() + self.tokens.len()
    }
}

/// Builds token trees from sequences that are inserted one after the other.
#[derive(Default)]
pub(super) struct TreeBuilder {
    trees: Vec<Tree>,
    /// Nodes of all trees together.
    pub node_count: usize,
}

impl TreeBuilder {
    /// Inserts `sequence`, into the last tree if it shares enough of it. Returns the tree's index
    /// and the sequence's nodes in that tree.
    pub(super) fn insert(&mut self, sequence: &[u32]) -> (usize, Vec<usize>) {
        let joins = |tree: &Tree| tree.shared_len(sequence) as f64 >= MIN_SHARED_TO_JOIN * sequence.len() as f64;
        let mut tree = self.trees.pop_if(|tree| joins(tree)).unwrap_or_default();
        let before = tree.tokens.len();
        let nodes = tree.insert(sequence);
        self.node_count += tree.tokens.len() - before;
        self.trees.push(tree);
        (self.trees.len() - 1, nodes)
    }
}

/// Returns how many tokens all of `prompts` begin with. The last token of each prompt is never
/// counted: its hidden state predicts something.
pub fn common_prefix_len<'a>(mut prompts: impl Iterator<Item = &'a [u32]>) -> usize {
    let Some(first) = prompts.next() else { return 0 };
    let most = first.len().saturating_sub(1);
    prompts.fold(most, |most, prompt| {
        let equal = prompt.iter().zip(&first[..most]).take_while(|(a, b)| a == b).count();
        equal.min(prompt.len().saturating_sub(1))
    })
}

/// One tree under construction.
#[derive(Default)]
struct Tree {
    tokens: Vec<u32>,
    parents: Vec<Option<usize>>,
    children: HashMap<(Option<usize>, u32), usize>,
}

impl Tree {
    /// Returns how many of the sequence's first tokens the tree has already.
    fn shared_len(&self, sequence: &[u32]) -> usize {
        let mut node = None;
        let is_in_tree = |token: &&u32| match self.children.get(&(node, **token)) {
            Some(&child) => {
                node = Some(child);
                true
            }
            None => false,
        };
        sequence.iter().take_while(is_in_tree).count()
    }

    /// Adds the tokens that are missing; returns the sequence's nodes.
    fn insert(&mut self, sequence: &[u32]) -> Vec<usize> {
        let mut parent = None;
        let mut nodes = Vec::with_capacity(sequence.len());
        for &token in sequence {
            let next = self.tokens.len();
            let node = *self.children.entry((parent, token)).or_insert(next);
            if node == next {
                self.tokens.push(token);
                self.parents.push(parent);
            }
            parent = Some(node);
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
        let (batch, nodes_of) = TokenTreeBatch::new(&sequences, 2);
        assert_eq!((batch.shared_prefix.as_slice(), batch.tree_count()), (&[1, 2][..], 2));
        assert_eq!(batch.tokens, [10, 11, 30, 31, 12, 30, 20, 21, 30]);
        assert_eq!(batch.parents[0], [None, Some(0), Some(1), Some(2), Some(1), Some(4)]);
        assert_eq!(batch.positions, [2, 3, 4, 5, 4, 5, 2, 3, 4]);
        assert_eq!(nodes_of, [vec![0, 1, 2, 3], vec![0, 1, 4, 5], vec![6, 7, 8]]);
        assert_eq!(batch.run_tokens(), 2 + 6 + 3);
    }

    /// The way up from a sequence's last node spells the sequence, whatever the sequences.
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
            let shared = common_prefix_len(sequences.iter().map(Vec::as_slice));
            assert!(shared >= 1 && sequences.iter().all(|s| s.len() > shared && s[..shared] == sequences[0][..shared]));
            let (batch, nodes_of) = TokenTreeBatch::new(&sequences, shared);
            for (sequence, nodes) in sequences.iter().zip(&nodes_of) {
                let ends = batch.parents.iter().scan(0, |end, parents| {
                    *end += parents.len();
                    Some(*end)
                });
                let tree = ends.take_while(|end| *end <= nodes[0]).count();
                let start: usize = batch.parents[..tree].iter().map(Vec::len).sum();
                let mut read = Vec::new();
                let mut at = nodes.last().map(|node| node - start);
                while let Some(node) = at {
                    assert_eq!(batch.positions[start + node] as usize, sequence.len() - 1 - read.len());
                    read.push(batch.tokens[start + node]);
                    at = batch.parents[tree][node];
                }
                read.reverse();
                assert_eq!([&batch.shared_prefix[..], &read].concat(), *sequence);
            }
            for parents in &batch.parents {
                assert!(parents.iter().enumerate().all(|(node, parent)| parent.is_none_or(|parent| parent < node)));
            }
        }
    }
}
