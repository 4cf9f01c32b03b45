//! Filters of the items that a search may return.

use std::collections::{HashMap, HashSet};
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
                let nodes = Selection::Except(nodes_without(trie, &exclude));
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

    /// Returns whether an allowed item is under `node`, or at `node` itself.
    pub fn allows_node(&self, node: Node) -> bool {
        self.nodes.contains(&node)
    }
}

/// Returns the nodes all of whose items are in `exclude`.
fn nodes_without(trie: &Trie, exclude: &HashSet<u32>) -> HashSet<Node> {
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
