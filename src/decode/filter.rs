//! Filters of the items that a search may return.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;

use crate::text::{Node, ROOT, Trie};

/// The items that a search may return, and so the part of the trie that it walks through.
///
/// A filter changes no score: under masked scoring the children that it leaves out still share the
/// probability.
#[derive(Debug, Clone)]
pub struct ItemFilter {
    items: Selection<u32>,
    /// The nodes with an allowed item under them.
    nodes: Selection<Node>,
}

#[derive(Debug, Clone)]
enum Selection<T> {
    Only(HashSet<T>),
    Except(HashSet<T>),
}

impl<T: Hash + Eq> Selection<T> {
    fn contains(&self, value: &T) -> bool {
        match self {
            Self::Only(values) => values.contains(value),
            Self::Except(values) => !values.contains(value),
        }
    }
}

impl ItemFilter {
    /// Allows the items `only` (all items for `None`) except `exclude`. Time and memory depend on
    /// the tokens of these items, not on the catalogue.
    ///
    /// # Panics
    /// On an item outside the catalogue.
    pub fn new(trie: &Trie, only: Option<&[u32]>, exclude: &[u32]) -> Self {
        let exclude: HashSet<u32> = exclude.iter().copied().collect();
        match only {
            Some(only) => {
                let items: HashSet<u32> = only.iter().copied().filter(|item| !exclude.contains(item)).collect();
                let mut nodes = HashSet::new();
                for &item in &items {
                    let mut node = trie.leaf(item);
                    while nodes.insert(node) && node != ROOT {
                        node = trie.parent(node);
                    }
                }
                Self { items: Selection::Only(items), nodes: Selection::Only(nodes) }
            }
            None => {
                let nodes = Selection::Except(excluded_nodes(trie, &exclude));
                Self { items: Selection::Except(exclude), nodes }
            }
        }
    }

    /// Allows all items but those with a title of `history`: also other items of such a title.
    pub fn without_titles(trie: &Trie, history: &[u32]) -> Self {
        let same_title = |&item: &u32| trie.items(trie.leaf(item)).collect::<Vec<_>>();
        Self::new(trie, None, &history.iter().flat_map(same_title).collect::<Vec<_>>())
    }

    /// Returns whether the search may return `item`.
    pub fn allows(&self, item: u32) -> bool {
        self.items.contains(&item)
    }

    /// Returns how many items the largest allowed leaf below each node has. A leaf with one allowed
    /// item is allowed, and counts with all its items, which share its probability.
    ///
    /// * `of_all`: the same of all leaves, `[nodes]`.
    pub(super) fn largest_leaves<'a>(&self, trie: &Trie, of_all: &'a [u32]) -> LargestLeaves<'a> {
        let mut differs: HashMap<Node, u32> = HashMap::new();
        match &self.nodes {
            Selection::Only(nodes) => {
                for &leaf in nodes.iter().filter(|&&node| trie.is_leaf(node)) {
                    let (mut node, count) = (leaf, of_all[leaf as usize]);
                    while differs.get(&node).is_none_or(|&largest| largest < count) {
                        differs.insert(node, count);
                        node = trie.parent(node);
                    }
                }
                LargestLeaves { of_all: &[], differs }
            }
            Selection::Except(empty) => {
                // Nodes whose largest leaf may be one that is left out: the way up from it, as far
                // as no leaf is larger.
                let mut affected: BTreeSet<Node> = BTreeSet::new();
                for &leaf in empty.iter().filter(|&&node| trie.is_leaf(node)) {
                    let mut node = leaf;
                    while node != ROOT && of_all[trie.parent(node) as usize] == of_all[leaf as usize] {
                        node = trie.parent(node);
                        if !affected.insert(node) {
                            break;
                        }
                    }
                }
                // A child's number is above its node's.
                for &node in affected.iter().rev() {
                    let mut largest = 0;
                    for child in trie.children(node).filter(|child| !empty.contains(child)) {
                        largest = largest.max(differs.get(&child).copied().unwrap_or(of_all[child as usize]));
                        if largest == of_all[node as usize] {
                            break;
                        }
                    }
                    differs.insert(node, largest);
                }
                LargestLeaves { of_all, differs }
            }
        }
    }

    /// Returns whether an allowed item is under `node`, or at `node` itself.
    pub fn allows_node(&self, node: Node) -> bool {
        self.nodes.contains(&node)
    }
}

/// Number of items of the largest allowed leaf below each node.
#[derive(Debug)]
pub(super) struct LargestLeaves<'a> {
    /// `[nodes]`: of all leaves; empty where only the nodes of `differs` have an allowed leaf.
    of_all: &'a [u32],
    differs: HashMap<Node, u32>,
}

impl<'a> LargestLeaves<'a> {
    /// Makes the counts of a search that allows every leaf.
    pub(super) fn new(of_all: &'a [u32]) -> Self {
        Self { of_all, differs: HashMap::new() }
    }

    /// Returns the number of items at the largest allowed leaf below `node`, 0 without one.
    pub(super) fn item_count(&self, node: Node) -> u32 {
        let all = || self.of_all.get(node as usize).copied().unwrap_or(0);
        self.differs.get(&node).copied().unwrap_or_else(all)
    }
}

/// Returns the nodes all of whose items are in `exclude`.
fn excluded_nodes(trie: &Trie, exclude: &HashSet<u32>) -> HashSet<Node> {
    let mut empty = HashSet::new();
    let mut empty_children: HashMap<Node, usize> = HashMap::new();
    for &item in exclude {
        let mut node = trie.leaf(item);
        if !trie.items(node).all(|other| exclude.contains(&other)) {
            continue;
        }
        while empty.insert(node) && node != ROOT {
            node = trie.parent(node);
            let count = empty_children.entry(node).or_default();
            *count += 1;
            if *count < trie.children(node).len() {
                break;
            }
        }
    }
    empty
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Compares with the definition, on random catalogues with shared leaves.
    #[test]
    fn a_node_is_allowed_if_an_allowed_item_is_below() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for _ in 0..300 {
            let count = rng.random_range(1..25);
            let sequences: Vec<Vec<u32>> = (0..count)
                .map(|_| (0..rng.random_range(0..4)).map(|_| rng.random_range(0..3)).chain([9]).collect())
                .collect();
            let trie = Trie::build(&sequences).unwrap();
            let mut some = || {
                let mut items: Vec<u32> = (0..count as u32).collect();
                items.shuffle(&mut rng);
                items.truncate(rng.random_range(0..=count));
                items
            };
            let (only, exclude) = (some(), some());
            let history = &exclude[..exclude.len().min(3)];
            let titles: HashSet<&[u32]> = history.iter().map(|&item| sequences[item as usize].as_slice()).collect();
            type Allowed<'a> = Box<dyn Fn(u32) -> bool + 'a>;
            let cases: [(ItemFilter, Allowed); 4] = [
                (ItemFilter::new(&trie, None, &[]), Box::new(|_| true)),
                (ItemFilter::new(&trie, None, &exclude), Box::new(|item| !exclude.contains(&item))),
                (
                    ItemFilter::new(&trie, Some(&only), &exclude),
                    Box::new(|item| only.contains(&item) && !exclude.contains(&item)),
                ),
                (
                    ItemFilter::without_titles(&trie, history),
                    Box::new(|item| !titles.contains(sequences[item as usize].as_slice())),
                ),
            ];
            for (filter, allowed) in &cases {
                let mut expected = vec![false; trie.len()];
                for item in (0..count as u32).filter(|&item| allowed(item)) {
                    expected[ROOT as usize] = true;
                    trie.path(trie.leaf(item)).into_iter().for_each(|node| expected[node as usize] = true);
                }
                assert!((0..count as u32).all(|item| filter.allows(item) == allowed(item)));
                let nodes: Vec<bool> = (0..trie.len() as Node).map(|node| filter.allows_node(node)).collect();
                assert_eq!(nodes, expected, "{filter:?}");
            }
        }
    }
}
