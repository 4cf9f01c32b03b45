//! A ranker's prior on the trie: the next token's probability by a ranker without a language model.
//!
//! A ranker ([`Ranker`]) gives each item a score of at least 0 after a history, and so a
//! distribution over the items,
//!
//! p(item) = (1 - smoothing) · score(item) / Σ score + smoothing / items,
//!
//! p(item) = 1 / items if no item scores. Summed over the items under each node of the trie it is a
//! distribution over that node's children, share(child) = p(under child) / p(under node); items of
//! equal title share a leaf, so their p add up. Along a path the shares multiply to the leaf's p.
//! The logits of the tokens that may follow become llm_weight · logit + weight · ln share(child):
//! with weight 0 and llm_weight 1 the language model ranks alone, with llm_weight 0 and weight 1
//! the ranker does. [`super::PriorWeights`] fits them.
//!
//! In depth-first order the items under a node are an interval. The part of smoothing is their
//! number times a constant; the part of the ranker is a difference of two running sums over the
//! items that score, and their largest probability a maximum over an interval. So a user needs
//! memory in proportion to the items that score, and a node the logarithm of that; nothing is as
//! large as the trie.
//!
//! The formula is itemlm's own; the nearest published one is D3's text-free assistant at decoding
//! (SAI990323/DecodingMatters), which has no loss.

use std::ops::Range;
use std::sync::Arc;

use super::PriorWeights;
use crate::data::{Corpus, Split, Window};
use crate::rankers::{Ranker, Scores};
use crate::text::{Node, ROOT, Trie};

/// A ranker's prior on a trie.
#[derive(Clone, Debug)]
pub struct TriePrior {
    /// The factors of the LLM's logits and of the logarithm of a share.
    pub weights: PriorWeights,
    /// The part of the probability that is spread evenly over the items; above 0, at most 1.
    pub smoothing: f64,
    ranker: Arc<dyn Ranker>,
    order: DepthFirstOrder,
}

/// The depth-first order of a trie's items.
#[derive(Clone, Debug)]
pub(super) struct DepthFirstOrder {
    /// `[items]`: each item's position in the order.
    position: Vec<u32>,
    /// `[items]`: each item's leaf.
    pub(super) leaf: Vec<Node>,
    /// `[nodes]`: the positions of the items under each node.
    below: Vec<Range<u32>>,
    /// `[nodes]`: the largest number of items at one leaf under the node.
    pub(super) most_at_a_leaf: Vec<u32>,
}

/// The prior after one history: the probability of the items under each node.
#[derive(Clone, Debug)]
pub struct PrefixMass<'a> {
    pub(super) order: &'a DepthFirstOrder,
    pub(super) weights: PriorWeights,
    /// The part of every item's probability that comes from smoothing.
    pub(super) even: f64,
    /// `[scored]`: the items that score, with their positions, ascending by position.
    pub(super) scored: Vec<(u32, u32)>,
    /// `[scored + 1]`: the probability that the ranker gives the scored items before each one.
    before: Vec<f64>,
}

impl DepthFirstOrder {
    fn new(trie: &Trie, items: u32) -> Self {
        let leaf: Vec<Node> = (0..items).map(|item| trie.leaf(item)).collect();
        let mut count = vec![0u32; trie.len()];
        leaf.iter().for_each(|&leaf| count[leaf as usize] += 1);
        let mut most_at_a_leaf = count.clone();
        // A child's number is larger than its parent's.
        for node in (0..trie.len()).rev() {
            for child in trie.children(node as Node) {
                count[node] += count[child as usize];
                most_at_a_leaf[node] = most_at_a_leaf[node].max(most_at_a_leaf[child as usize]);
            }
        }
        let mut start = vec![0u32; trie.len()];
        for node in 0..trie.len() as Node {
            let mut next = start[node as usize];
            for child in trie.children(node) {
                start[child as usize] = next;
                next += count[child as usize];
            }
        }
        let below = start.iter().zip(&count).map(|(&start, count)| start..start + count).collect();
        let position = leaf.iter().map(|&leaf| {
            let next = &mut start[leaf as usize];
            *next += 1;
            *next - 1
        });
        Self { position: position.collect(), leaf, below, most_at_a_leaf }
    }
}

impl TriePrior {
    /// Makes the prior of `ranker` on the trie of the same catalogue, beside an LLM of weight 1.
    pub fn new(ranker: Arc<dyn Ranker>, trie: &Trie, weight: f64, smoothing: f64) -> Self {
        let order = DepthFirstOrder::new(trie, ranker.items() as u32);
        Self { weights: PriorWeights { llm: 1.0, prior: weight }, smoothing, ranker, order }
    }

    /// Returns this prior with other weights.
    pub fn with_weights(self, weights: PriorWeights) -> Self {
        Self { weights, ..self }
    }

    /// Returns the ranker.
    pub fn ranker(&self) -> Arc<dyn Ranker> {
        self.ranker.clone()
    }

    /// Returns the prior after a history of items, oldest first.
    pub fn mass_for_history(&self, history: &[u32]) -> PrefixMass<'_> {
        self.mass_for_scores(&self.ranker.scores(history))
    }

    /// Returns the prior after the history of one of a split's windows; for a training window by
    /// [`Ranker::scores_before_target`].
    pub fn mass_for_window(&self, corpus: &Corpus, split: Split, window: &Window) -> PrefixMass<'_> {
        match split {
            Split::Train => self.mass_for_scores(&self.ranker.scores_before_target(corpus, window)),
            Split::Valid | Split::Test => self.mass_for_history(corpus.history(window)),
        }
    }

    /// Returns the prior of given scores.
    pub fn mass_for_scores(&self, scores: &Scores) -> PrefixMass<'_> {
        let items = self.order.position.len();
        let total: f64 = scores.positive().map(|(_, score)| score).sum();
        let none = !(total > 0.0 && total.is_finite());
        let (factor, even) = match none {
            true => (0.0, 1.0 / items as f64),
            false => ((1.0 - self.smoothing) / total, self.smoothing / items as f64),
        };
        let by_item = scores.positive().filter(|_| !none);
        let mut by_position: Vec<(u32, u32, f64)> =
            by_item.map(|(item, score)| (self.order.position[item as usize], item, score)).collect();
        by_position.sort_unstable_by_key(|&(position, _, _)| position);
        let mut sum = 0.0;
        let sums = by_position.iter().map(|&(_, _, score)| {
            sum += factor * score;
            sum
        });
        let before = std::iter::once(0.0).chain(sums).collect();
        let scored = by_position.iter().map(|&(position, item, _)| (position, item)).collect();
        PrefixMass { order: &self.order, weights: self.weights, even, scored, before }
    }
}

impl PrefixMass<'_> {
    /// Returns the probability of the items under `node`.
    pub fn mass(&self, node: Node) -> f64 {
        self.mass_within(node, 0..self.scored.len()).0
    }

    /// Returns the probability of the items under `node`, and the range of the scored items that
    /// they are.
    ///
    /// * `within`: scored items, with all those under `node` among them.
    pub(super) fn mass_within(&self, node: Node, within: Range<usize>) -> (f64, Range<usize>) {
        let below = &self.order.below[node as usize];
        let scored = &self.scored[within.clone()];
        let first = within.start + scored.partition_point(|&(position, _)| position < below.start);
        let scored = &self.scored[first..within.end];
        let end = first + scored.partition_point(|&(position, _)| position < below.end);
        let mass = (self.before[end] - self.before[first]) + self.even * below.len() as f64;
        (mass, first..end)
    }

    /// Returns `weight · ln share` of each child of `node`, in the trie's order, which is added to
    /// the children's logits. It is never above 0, and 0 for an only child.
    pub fn logit_bias(&self, trie: &Trie, node: Node) -> impl Iterator<Item = f64> {
        let (all, within) = self.mass_within(node, 0..self.scored.len());
        let mut next = within.start;
        trie.children(node).map(move |child| {
            let (mass, scored) = self.mass_within(child, next..within.end);
            next = scored.end;
            self.weights.prior * (mass / all).min(1.0).ln()
        })
    }

    /// Returns [`PrefixMass::logit_bias`] of each branching on the way to `item`, in that order.
    pub fn logit_bias_to(&self, trie: &Trie, item: u32) -> Vec<f32> {
        let path = trie.path(trie.leaf(item));
        let nodes = std::iter::once(ROOT).chain(path).filter(|&node| trie.children(node).len() > 1);
        nodes.flat_map(|node| self.logit_bias(trie, node)).map(|bias| bias as f32).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::synthetic;
    use crate::decode::lookahead::Lookahead;
    use crate::rankers::testing::fit;
    use rand::{Rng, SeedableRng};

    const EOS: u32 = 99;

    /// Compares shares with sums over all items whose sequence begins with the child's, on random
    /// tries with equal sequences.
    #[test]
    fn shares_equal_sums_over_prefixes() {
        let (corpus, _) = synthetic(1);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        for _ in 0..100 {
            let sequences: Vec<Vec<u32>> = (0..corpus.items.len())
                .map(|_| (0..rng.random_range(0..6)).map(|_| rng.random_range(0..4)).chain([EOS]).collect())
                .collect();
            let trie = Trie::build(&sequences).unwrap();
            let smoothing = [1e-6, 0.3, 1.0][rng.random_range(0..3)];
            let prior = TriePrior::new(fit("popularity", &corpus), &trie, 0.7, smoothing);
            let scores: Vec<f64> = sequences.iter().map(|_| rng.random_range(-1.0f64..3.0).max(0.0)).collect();
            let user = prior.mass_for_scores(&Scores::Dense(scores.clone()));
            let total: f64 = scores.iter().sum();
            let items = sequences.len() as f64;
            let mass = |prefix: &[u32]| -> f64 {
                let below = sequences.iter().zip(&scores).filter(|(sequence, _)| sequence.starts_with(prefix));
                below.map(|(_, score)| (1.0 - smoothing) * score / total + smoothing / items).sum()
            };
            assert!((user.mass(ROOT) - 1.0).abs() < 1e-12);
            for (item, sequence) in sequences.iter().enumerate() {
                let mut logit_bias = Vec::new();
                for t in 0..sequence.len() {
                    let node = sequence[..t].iter().fold(ROOT, |node, &token| trie.child(node, token).unwrap());
                    let found: Vec<f64> = user.logit_bias(&trie, node).collect();
                    for (bias, &token) in found.iter().zip(trie.valid_tokens(node)) {
                        let child = [&sequence[..t], &[token]].concat();
                        let expected = 0.7 * (mass(&child) / mass(&sequence[..t])).ln();
                        assert!((bias - expected).abs() < 1e-6, "{bias} instead of {expected}");
                    }
                    assert!((found.iter().map(|bias| (bias / 0.7).exp()).sum::<f64>() - 1.0).abs() < 1e-9);
                    if found.len() > 1 {
                        logit_bias.extend(found.iter().map(|&bias| bias as f32));
                    } else {
                        assert_eq!(found, [0.0]);
                    }
                }
                assert_eq!(user.logit_bias_to(&trie, item as u32), logit_bias);
            }
        }
    }

    /// Computes the prior as numbers of each node: the masses of all items added up along their
    /// paths, and the best leaf under each node.
    pub(in crate::decode) fn dense(trie: &Trie, scores: &[f64], smoothing: f64) -> (Vec<f64>, Vec<f64>) {
        let (items, total) = (scores.len() as f64, scores.iter().sum::<f64>());
        let mut mass = vec![0.0; trie.len()];
        for (item, &score) in scores.iter().enumerate() {
            let scored = if total > 0.0 { (1.0 - smoothing) * score / total + smoothing / items } else { 1.0 / items };
            mass[trie.leaf(item as u32) as usize] += scored;
        }
        let mut best = mass.clone();
        for node in (0..trie.len()).rev() {
            for child in trie.children(node as Node) {
                mass[node] += mass[child as usize];
                best[node] = best[node].max(best[child as usize]);
            }
        }
        (mass, best)
    }

    /// Sparse scores, dense ones and a sum over all nodes agree to the rounding of sums of 150
    /// items: 1e-12 of masses that add up to 1, and of their logarithms with smoothing that keeps
    /// masses above 1e-4.
    #[test]
    fn sparse_equals_dense() {
        let (corpus, _) = synthetic(1);
        let items = corpus.items.len();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        for round in 0..60 {
            let sequences: Vec<Vec<u32>> = (0..items)
                .map(|_| (0..rng.random_range(0..6)).map(|_| rng.random_range(0..4)).chain([EOS]).collect())
                .collect();
            let trie = Trie::build(&sequences).unwrap();
            let (weight, smoothing) = (1.3, [0.05, 0.3, 1.0][round % 3]);
            let prior = TriePrior::new(fit("popularity", &corpus), &trie, weight, smoothing);
            let share = [0.0, 0.02, 0.3, 1.0][round % 4];
            let scores: Vec<f64> =
                (0..items).map(|_| if rng.random_bool(share) { rng.random_range(0.0..5.0) } else { 0.0 }).collect();
            let sparse = Scores::Sparse((0u32..).zip(scores.iter().copied()).filter(|s| s.1 > 0.0).collect());
            let (mass, best) = dense(&trie, &scores, smoothing);
            let positive = scores.iter().filter(|&&score| score > 0.0).count();
            for user in [prior.mass_for_scores(&sparse), prior.mass_for_scores(&Scores::Dense(scores))] {
                assert_eq!(user.scored.len(), positive, "only items that score cost memory");
                let lookahead = Lookahead::new(&user, &trie, None);
                for node in 0..trie.len() as Node {
                    let n = node as usize;
                    assert!((user.mass(node) - mass[n]).abs() < 1e-12);
                    assert!((lookahead.log_gain(node) - weight * (best[n] / mass[n]).ln()).abs() < 1e-12);
                    for (bias, child) in user.logit_bias(&trie, node).zip(trie.children(node)) {
                        assert!((bias - weight * (mass[child as usize] / mass[n]).ln()).abs() < 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn no_score_is_uniform_and_training_windows_do_not_see_their_target() {
        let (corpus, _) = synthetic(1);
        let sequences: Vec<Vec<u32>> = (0..corpus.items.len() as u32).map(|item| vec![item, 1000]).collect();
        let trie = Trie::build(&sequences).unwrap();
        let prior = TriePrior::new(fit("cooccurrence", &corpus), &trie, 1.0, 0.1);
        let items = sequences.len() as f64;
        for user in
            [prior.mass_for_history(&[]), prior.mass_for_scores(&Scores::Dense(vec![f64::NAN; sequences.len()]))]
        {
            user.logit_bias(&trie, ROOT).for_each(|bias| assert!((bias + items.ln()).abs() < 1e-9));
        }
        let mean = |prior_of: &dyn Fn(&Window) -> f64| {
            let windows = corpus.windows(Split::Train);
            windows.iter().map(prior_of).sum::<f64>() / windows.len() as f64
        };
        let of = |user: PrefixMass, window: &Window| user.mass(trie.leaf(corpus.target(window)));
        let honest = mean(&|window| of(prior.mass_for_window(&corpus, Split::Train, window), window));
        let seen = mean(&|window| of(prior.mass_for_history(corpus.history(window)), window));
        assert!(honest < seen, "{honest} {seen}");
    }
}
