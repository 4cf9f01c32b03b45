//! The trie of the catalogue's target token sequences, as flat arrays.
//!
//! Nodes are numbered breadth first, so the children of a node are consecutive numbers and the
//! whole trie is compressed sparse rows: `first_child[n]..first_child[n + 1]` are the children of
//! `n`, sorted by token. It takes 12 bytes for each node and 12 for each item, whatever the size of
//! the vocabulary; there is no mask over the vocabulary.
//!
//! Source: MSL (arXiv 2504.04178), section 4.1: the valid tokens after a prefix are the children of
//! its node.

use std::ops::Range;

use crate::{Error, Result};

/// The number of a node. [`ROOT`] is the empty prefix.
pub type Node = u32;

/// The empty prefix.
pub const ROOT: Node = 0;

/// The trie of all target sequences. A leaf holds the items whose sequence ends there: items of
/// equal title, or of titles that are the same tokens, share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trie {
    /// `[nodes + 1]`: the first child of each node.
    first_child: Vec<Node>,
    /// `[nodes]`: the last token of the node's prefix (0 for the root).
    token: Vec<u32>,
    /// `[nodes]`: the parent of each node (the root is its own).
    parent: Vec<Node>,
    /// `[items]`: the leaf of each item.
    leaf: Vec<Node>,
    /// `[items]`: leaf and item, sorted: the items of a leaf are consecutive.
    by_leaf: Vec<(Node, u32)>,
    /// `[depth + 1]`: the first node at each depth.
    levels: Vec<Node>,
}

impl Trie {
    /// Builds the trie of `sequences`, one for each item, in the items' order. Sequences must end
    /// with a closing token that occurs nowhere else in them, so that none is a proper prefix of
    /// another.
    ///
    /// # Errors
    /// An empty catalogue, an empty sequence, or a sequence that is a proper prefix of another.
    pub fn build(sequences: &[Vec<u32>]) -> Result<Self> {
        if sequences.is_empty() {
            return Err(Error::failed("the catalogue is empty: there is no title to rank"));
        }
        let mut order: Vec<u32> = (0..sequences.len() as u32).collect();
        order.sort_by(|&a, &b| sequences[a as usize].cmp(&sequences[b as usize]));
        let sorted = |position: usize| &sequences[order[position] as usize];

        let mut trie = Self {
            first_child: Vec::new(),
            token: vec![0],
            parent: vec![ROOT],
            leaf: vec![ROOT; sequences.len()],
            by_leaf: Vec::with_capacity(sequences.len()),
            levels: vec![ROOT],
        };
        // One level at a time; a node of the level is the range of sorted sequences that share its
        // prefix.
        let mut level: Vec<(Node, Range<usize>)> = vec![(ROOT, 0..order.len())];
        while !level.is_empty() {
            let depth = trie.levels.len() - 1;
            let mut next = Vec::new();
            for (node, range) in level {
                trie.first_child.push(trie.token.len() as Node);
                let mut start = range.start;
                if sorted(start).len() == depth {
                    if node == ROOT || sorted(range.end - 1).len() != depth {
                        let item = order[start];
                        return Err(Error::failed(format!(
                            "item {item}: its token sequence is empty or a prefix of another item's"
                        )));
                    }
                    for &item in &order[range] {
                        trie.leaf[item as usize] = node;
                        trie.by_leaf.push((node, item));
                    }
                    continue;
                }
                while start < range.end {
                    let token = sorted(start)[depth];
                    let end =
                        start + order[start..range.end].partition_point(|&i| sequences[i as usize][depth] == token);
                    next.push((trie.token.len() as Node, start..end));
                    trie.token.push(token);
                    trie.parent.push(node);
                    start = end;
                }
            }
            trie.levels.extend(next.first().map(|(node, _)| *node));
            level = next;
        }
        trie.first_child.push(trie.token.len() as Node);
        trie.by_leaf.sort_unstable();
        Ok(trie)
    }

    /// Returns the number of nodes, the root included.
    pub fn len(&self) -> usize {
        self.token.len()
    }

    /// Returns false: a trie has a root.
    pub fn is_empty(&self) -> bool {
        self.token.is_empty()
    }

    /// Returns the number of tokens of the longest sequence.
    pub fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    /// Returns the number of tokens of the prefix that `node` stands for.
    pub fn depth_of(&self, node: Node) -> usize {
        self.levels.partition_point(|&first| first <= node) - 1
    }

    /// Returns the parent of `node`; the root is its own.
    pub fn parent(&self, node: Node) -> Node {
        self.parent[node as usize]
    }

    /// Returns the children of `node`, sorted by token.
    pub fn children(&self, node: Node) -> Range<Node> {
        self.first_child[node as usize]..self.first_child[node as usize + 1]
    }

    /// Returns the tokens that may follow `node`, ascending, in the order of [`Trie::children`].
    pub fn valid_tokens(&self, node: Node) -> &[u32] {
        let children = self.children(node);
        &self.token[children.start as usize..children.end as usize]
    }

    /// Returns the child of `node` whose last token is `token`.
    pub fn child(&self, node: Node, token: u32) -> Option<Node> {
        let index = self.valid_tokens(node).binary_search(&token).ok()?;
        Some(self.children(node).start + index as Node)
    }

    /// Returns the last token of the prefix that `node` stands for (0 for the root).
    pub fn token(&self, node: Node) -> u32 {
        self.token[node as usize]
    }

    /// Returns whether a sequence ends at `node`.
    pub fn is_leaf(&self, node: Node) -> bool {
        self.children(node).is_empty()
    }

    /// Iterates over the items whose sequence ends at `leaf`, ascending: several where titles are
    /// the same tokens, none for an inner node.
    pub fn items(&self, leaf: Node) -> impl Iterator<Item = u32> + '_ {
        let start = self.by_leaf.partition_point(|&(l, _)| l < leaf);
        self.by_leaf[start..].iter().take_while(move |(l, _)| *l == leaf).map(|&(_, item)| item)
    }

    /// Returns the leaf of `item`.
    pub fn leaf(&self, item: u32) -> Node {
        self.leaf[item as usize]
    }

    /// Returns the number of leaves: of different sequences.
    pub fn leaves(&self) -> usize {
        self.by_leaf.chunk_by(|a, b| a.0 == b.0).count()
    }

    /// Returns the nodes on the way to `node`, the root left out: the `t`-th one is reached by the
    /// `t`-th token.
    pub fn path(&self, mut node: Node) -> Vec<Node> {
        let mut path = Vec::new();
        while node != ROOT {
            path.push(node);
            node = self.parent[node as usize];
        }
        path.reverse();
        path
    }

    /// Follows the forced tokens after `node`: returns the first node, itself included, that is a
    /// leaf or has several children.
    pub fn follow_forced(&self, mut node: Node) -> Node {
        loop {
            let children = self.children(node);
            if children.len() != 1 {
                return node;
            }
            node = children.start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use std::collections::{BTreeMap, BTreeSet};

    const EOS: u32 = 99;

    #[test]
    fn children_forced_tokens_and_shared_leaves() {
        let sequences = vec![vec![1, 2, 3, EOS], vec![1, 2, 4, 5, EOS], vec![7, EOS], vec![1, 2, 3, EOS]];
        let trie = Trie::build(&sequences).unwrap();
        assert_eq!(trie.valid_tokens(ROOT), [1, 7]);
        let one = trie.child(ROOT, 1).unwrap();
        assert_eq!(trie.child(ROOT, 2), None);
        let branch = trie.follow_forced(one);
        assert_eq!(trie.valid_tokens(branch), [3, 4]);
        assert_eq!(trie.items(trie.leaf(3)).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(trie.leaves(), 3);
        assert_eq!(trie.depth(), 5);
        assert!(trie.is_leaf(trie.follow_forced(trie.child(branch, 4).unwrap())));
        let tokens: Vec<u32> = trie.path(trie.leaf(1)).into_iter().map(|n| trie.token(n)).collect();
        assert_eq!(tokens, sequences[1]);
    }

    #[test]
    fn bad_catalogues_are_refused() {
        assert!(Trie::build(&[]).is_err());
        assert!(Trie::build(&[vec![]]).is_err());
        assert!(Trie::build(&[vec![1], vec![1, 2]]).is_err());
    }

    /// Against a map from every prefix to the set of its next tokens, on random catalogues.
    #[test]
    fn equals_a_map_of_prefixes() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for _ in 0..200 {
            let sequences: Vec<Vec<u32>> = (0..rng.random_range(1..30))
                .map(|_| {
                    let mut s: Vec<u32> = (0..rng.random_range(0..5)).map(|_| rng.random_range(0..4)).collect();
                    s.push(EOS);
                    s
                })
                .collect();
            let mut next: BTreeMap<Vec<u32>, BTreeSet<u32>> = BTreeMap::new();
            for s in &sequences {
                for t in 0..s.len() {
                    next.entry(s[..t].to_vec()).or_default().insert(s[t]);
                }
            }
            let trie = Trie::build(&sequences).unwrap();
            assert_eq!(trie.len(), 1 + next.values().map(BTreeSet::len).sum::<usize>());
            for (prefix, valid) in &next {
                let node = prefix.iter().fold(ROOT, |n, &t| trie.child(n, t).unwrap());
                assert!(trie.valid_tokens(node).iter().eq(valid));
            }
            for (item, s) in sequences.iter().enumerate() {
                let path = trie.path(trie.leaf(item as u32));
                assert!(path.iter().map(|&n| trie.depth_of(n)).eq(1..=s.len()) && trie.depth_of(ROOT) == 0);
                assert!(path.iter().map(|&n| trie.token(n)).eq(s.iter().copied()));
                assert!(trie.items(trie.leaf(item as u32)).all(|other| sequences[other as usize] == *s));
            }
        }
    }
}
