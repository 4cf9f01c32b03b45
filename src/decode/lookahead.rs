//! The log-probability that a prior will still add on the way from a node to its best leaf.
//!
//! A node of many unlikely items outweighs one that holds the likeliest item of all, and a search
//! by what was added so far would drop the latter. So beams compete by their log-probability plus
//! weight · ln(p(best leaf) / p(node)), where only leaves that the search may return count.

use std::ops::Range;

use super::filter::LargestLeaves;
use super::{ItemFilter, PrefixMass};
use crate::text::{Node, Trie};

/// The best leaves of one prior, among those that a filter allows.
#[derive(Debug)]
pub(super) struct Lookahead<'a> {
    prior: &'a PrefixMass<'a>,
    /// The probabilities of the scored items' leaves; 0 for a leaf that is not allowed.
    best: MaxTree,
    /// The number of items at that allowed leaf under a node which has the most.
    largest: LargestLeaves<'a>,
}

impl<'a> Lookahead<'a> {
    /// Takes time for the items that score and for those that the filter names.
    pub(super) fn new(prior: &'a PrefixMass<'a>, trie: &Trie, filter: Option<&ItemFilter>) -> Self {
        let of_all = prior.order.most_at_a_leaf.as_slice();
        let largest = filter.map_or(LargestLeaves::new(of_all), |filter| filter.largest_leaves(trie, of_all));
        Self { prior, best: MaxTree::new(leaf_masses(prior, filter)), largest }
    }

    /// Returns `weight · ln(p(best leaf) / p(node))` of a node with an allowed leaf under it.
    pub(super) fn log_gain(&self, node: Node) -> f64 {
        let (mass, scored) = self.prior.mass_within(node, 0..self.prior.scored.len());
        // A leaf without a scored item has what smoothing gives its items; if the largest leaf has
        // a scored one, it is in the tree with more than that.
        let even = self.prior.even * f64::from(self.largest.item_count(node));
        let best = self.best.max(scored).max(even);
        self.prior.weights.prior * (best / mass).min(1.0).ln()
    }
}

/// `[scored]`: the probability of the leaf of each scored item.
fn leaf_masses(prior: &PrefixMass, filter: Option<&ItemFilter>) -> Vec<f64> {
    let leaf = |index: usize| prior.order.leaf[prior.scored[index].1 as usize];
    let mut masses = Vec::with_capacity(prior.scored.len());
    while masses.len() < prior.scored.len() {
        let leaf = leaf(masses.len());
        let (mass, scored) = prior.mass_within(leaf, masses.len()..prior.scored.len());
        let allowed = filter.is_none_or(|filter| filter.allows_node(leaf));
        masses.resize(scored.end, if allowed { mass } else { 0.0 });
    }
    masses
}

/// The maximum over any interval of some values, in logarithmic time: a binary tree as an array,
/// whose node n has the children 2n and 2n + 1.
#[derive(Clone, Debug)]
struct MaxTree {
    /// `[2 · values]`; the values are the second half.
    nodes: Vec<f64>,
}

impl MaxTree {
    fn new(values: Vec<f64>) -> Self {
        let count = values.len();
        let mut nodes = vec![0.0; count];
        nodes.extend(values);
        for node in (1..count).rev() {
            nodes[node] = nodes[2 * node].max(nodes[2 * node + 1]);
        }
        Self { nodes }
    }

    /// Returns the largest of the values in `range`, 0 of none.
    fn max(&self, range: Range<usize>) -> f64 {
        let count = self.nodes.len() / 2;
        let (mut low, mut high) = (range.start + count, range.end + count);
        let mut max = 0.0f64;
        while low < high {
            if low % 2 == 1 {
                max = max.max(self.nodes[low]);
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                max = max.max(self.nodes[high]);
            }
            (low, high) = (low / 2, high / 2);
        }
        max
    }
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::data::synthetic;
    use crate::decode::TriePrior;
    use crate::decode::trie_prior::tests::dense;
    use crate::rankers::Scores;
    use crate::rankers::testing::fit;

    /// Against the definition, on random tries with equal sequences: of the leaves under a node
    /// that hold an allowed item the likeliest one. Within 1e-12: sums of 150 items.
    #[test]
    fn the_best_leaf_is_one_that_the_filter_allows() {
        let (corpus, _) = synthetic(1);
        let items = corpus.items.len() as u32;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
        let mut differ = 0;
        for round in 0..80 {
            let sequences: Vec<Vec<u32>> = (0..items)
                .map(|_| (0..rng.random_range(0..6)).map(|_| rng.random_range(0..4)).chain([99]).collect())
                .collect();
            let trie = Trie::build(&sequences).unwrap();
            let (weight, smoothing) = (1.3, [0.05, 0.3, 1.0][round % 3]);
            let prior = TriePrior::new(fit("popularity", &corpus), &trie, weight, smoothing);
            let share = [0.0, 0.02, 0.3][round % 3];
            let scores: Vec<f64> =
                (0..items).map(|_| if rng.random_bool(share) { rng.random_range(0.0..5.0) } else { 0.0 }).collect();
            let user = prior.mass_for_scores(&Scores::Dense(scores.clone()));
            let (mass, _) = dense(&trie, &scores, smoothing);
            let mut some = |most: u32| {
                let mut some: Vec<u32> = (0..items).collect();
                some.shuffle(&mut rng);
                some.truncate(rng.random_range(0..=most) as usize);
                some
            };
            let (only, exclude) = (some(items), some(if round % 2 == 0 { items } else { 10 }));
            for filter in [
                ItemFilter::new(&trie, None, &[]),
                ItemFilter::new(&trie, None, &exclude),
                ItemFilter::new(&trie, Some(&only), &exclude),
                ItemFilter::without_titles(&trie, &exclude),
            ] {
                let mut best = vec![0.0f64; trie.len()];
                for item in (0..items).filter(|&item| filter.allows(item)) {
                    let leaf = trie.leaf(item) as usize;
                    best[leaf] = mass[leaf];
                }
                for node in (0..trie.len()).rev() {
                    let below = trie.children(node as Node).map(|child| best[child as usize]);
                    best[node] = below.fold(best[node], f64::max);
                }
                let lookahead = Lookahead::new(&user, &trie, Some(&filter));
                let unfiltered = Lookahead::new(&user, &trie, None);
                for node in (0..trie.len() as Node).filter(|&node| filter.allows_node(node)) {
                    let (found, n) = (lookahead.log_gain(node), node as usize);
                    let expected = weight * (best[n] / mass[n]).ln();
                    assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
                    differ += usize::from(found < unfiltered.log_gain(node) - 1e-9);
                }
            }
        }
        assert!(differ > 500, "filters that take the best leaf away: {differ}");
    }
}
