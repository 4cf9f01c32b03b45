//! A collaborative prior on the trie: what a ranker that knows no text says of the next token.
//!
//! A ranker ([`Ranker`]) gives each item a score of at least 0 after a history, and so a
//! distribution over the items,
//!
//! p(item) = (1 - smoothing) · score(item) / Σ score + smoothing / items,
//!
//! p(item) = 1 / items where none scores. Summed over the items below each node of the trie it is a
//! distribution over that node's children, share(child) = p(below child) / p(below node); items of
//! equal title share a leaf, so their p add up. Along a path the shares multiply to the leaf's p.
//! The prior adds weight · ln share(child) to the logits of the tokens that may follow: with weight
//! 0 the language model ranks alone, and with weight 1 and equal logits the ranker does.
//!
//! In depth-first order the items below a node are an interval: a user costs one running sum over
//! the items and a node two of its values, in a search one number a node more
//! ([`PrefixMass::lookahead`]); there is no mask.
//!
//! Our own; the nearest published thing is D3's text-free assistant at decoding
//! (SAI990323/DecodingMatters), which has no loss.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::data::{Corpus, Split, Window};
use crate::rankers::Ranker;
use crate::text::{Node, ROOT, Trie};

/// A ranker's prior on a trie.
#[derive(Clone, Debug)]
pub struct TriePrior {
    /// What the logarithm of a share is multiplied by; at least 0.
    pub weight: f64,
    /// The part of the probability that is spread evenly over the items; above 0, at most 1.
    pub smoothing: f64,
    ranker: Arc<dyn Ranker>,
    places: Places,
}

/// The depth-first order of a trie's items.
#[derive(Clone, Debug)]
struct Places {
    /// `[items]`: each item's place.
    item: Vec<u32>,
    /// `[nodes]`: the places of the items below each node.
    below: Vec<Range<u32>>,
}

/// The prior after one history.
#[derive(Clone, Debug)]
pub struct PrefixMass<'a> {
    below: &'a [Range<u32>],
    weight: f64,
    /// `[items + 1]`: the probability of the items before each place.
    before: Vec<f64>,
}

impl Places {
    fn new(trie: &Trie, items: u32) -> Self {
        // A child's number is above its node's.
        let mut count = vec![0u32; trie.len()];
        for item in 0..items {
            count[trie.leaf(item) as usize] += 1;
        }
        for node in (0..trie.len()).rev() {
            count[node] += trie.children(node as Node).map(|child| count[child as usize]).sum::<u32>();
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
        let place = |item| {
            let place = &mut start[trie.leaf(item) as usize];
            *place += 1;
            *place - 1
        };
        Self { item: (0..items).map(place).collect(), below }
    }
}

impl TriePrior {
    /// The prior of `ranker` on the trie of the same catalogue.
    pub fn new(ranker: impl Ranker + 'static, trie: &Trie, weight: f64, smoothing: f64) -> Self {
        let places = Places::new(trie, ranker.items() as u32);
        Self { weight, smoothing, ranker: Arc::new(ranker), places }
    }

    /// After any history of items, oldest first.
    pub fn after(&self, history: &[u32]) -> PrefixMass<'_> {
        self.of_scores(&self.ranker.scores(history))
    }

    /// After the history of one of a split's windows; a training window's by
    /// [`Ranker::scores_before_target`].
    pub fn of_window(&self, corpus: &Corpus, split: Split, window: &Window) -> PrefixMass<'_> {
        match split {
            Split::Train => self.of_scores(&self.ranker.scores_before_target(corpus, window)),
            Split::Valid | Split::Test => self.after(corpus.history(window)),
        }
    }

    /// Of any ranker's scores, one an item; what is negative or not a number counts as 0.
    pub fn of_scores(&self, scores: &[f64]) -> PrefixMass<'_> {
        let items = self.places.item.len();
        let total: f64 = scores.iter().map(|score| score.max(0.0)).sum();
        let (scored, even) = match total > 0.0 && total.is_finite() {
            true => ((1.0 - self.smoothing) / total, self.smoothing / items as f64),
            false => (0.0, 1.0 / items as f64),
        };
        let mut before = vec![0.0; items + 1];
        for (&place, score) in self.places.item.iter().zip(scores) {
            before[place as usize + 1] = scored * score.max(0.0) + even;
        }
        let mut sum = 0.0;
        for value in &mut before {
            sum += *value;
            *value = sum;
        }
        PrefixMass { below: &self.places.below, weight: self.weight, before }
    }
}

impl PrefixMass<'_> {
    /// The probability of the items below `node`.
    pub fn mass(&self, node: Node) -> f64 {
        let below = &self.below[node as usize];
        self.before[below.end as usize] - self.before[below.start as usize]
    }

    /// `weight · ln share` of each child of `node`, in the trie's order: what their logits gain.
    /// Never above 0, and 0 for an only child.
    pub fn logit_bias(&self, trie: &Trie, node: Node) -> impl Iterator<Item = f64> {
        let all = self.mass(node);
        trie.children(node).map(move |child| self.weight * (self.mass(child) / all).min(1.0).ln())
    }

    /// For each node the gains still to come on the way to its best leaf, `weight · ln(p(best leaf
    /// below) / p(below))`: a node of many unlikely items outweighs one that holds the likeliest
    /// item of all, and a search by gains so far alone would drop the latter.
    pub fn lookahead(&self, trie: &Trie) -> Vec<f64> {
        let mut best = vec![0f64; trie.len()];
        for node in (0..trie.len() as Node).rev() {
            let below = trie.children(node).map(|child| best[child as usize]).fold(0.0, f64::max);
            best[node as usize] = if trie.is_leaf(node) { self.mass(node) } else { below };
        }
        for (node, best) in (0..).zip(&mut best) {
            *best = self.weight * (*best / self.mass(node)).min(1.0).ln();
        }
        best
    }

    /// The gains of all valid tokens at each branching on the way to `item`, in that order.
    pub fn logit_bias_to(&self, trie: &Trie, item: u32) -> Vec<f32> {
        let path = trie.path(trie.leaf(item));
        let nodes = std::iter::once(ROOT).chain(path).filter(|&node| trie.children(node).len() > 1);
        nodes.flat_map(|node| self.logit_bias(trie, node)).map(|gain| gain as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic;
    use crate::rankers::{Baseline, fit};
    use rand::{Rng, SeedableRng};

    const EOS: u32 = 99;

    /// Shares against sums over all items whose sequence begins with the child's, on random tries
    /// with equal sequences.
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
            let prior = TriePrior::new(fit(Baseline::Popularity, &corpus), &trie, 0.7, smoothing);
            let scores: Vec<f64> = sequences.iter().map(|_| rng.random_range(-1.0f64..3.0).max(0.0)).collect();
            let user = prior.of_scores(&scores);
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
                    for (gain, &token) in found.iter().zip(trie.valid_tokens(node)) {
                        let child = [&sequence[..t], &[token]].concat();
                        let expected = 0.7 * (mass(&child) / mass(&sequence[..t])).ln();
                        assert!((gain - expected).abs() < 1e-6, "{gain} instead of {expected}");
                    }
                    assert!((found.iter().map(|gain| (gain / 0.7).exp()).sum::<f64>() - 1.0).abs() < 1e-9);
                    if found.len() > 1 {
                        logit_bias.extend(found.iter().map(|&gain| gain as f32));
                    } else {
                        assert_eq!(found, [0.0]);
                    }
                }
                assert_eq!(user.logit_bias_to(&trie, item as u32), logit_bias);
            }
        }
    }

    #[test]
    fn no_score_is_uniform_and_training_windows_do_not_see_their_target() {
        let (corpus, _) = synthetic(1);
        let sequences: Vec<Vec<u32>> = (0..corpus.items.len() as u32).map(|item| vec![item, 1000]).collect();
        let trie = Trie::build(&sequences).unwrap();
        let prior = TriePrior::new(fit(Baseline::Cooccurrence, &corpus), &trie, 1.0, 0.1);
        let items = sequences.len() as f64;
        for user in [prior.after(&[]), prior.of_scores(&vec![f64::NAN; sequences.len()])] {
            user.logit_bias(&trie, ROOT).for_each(|gain| assert!((gain + items.ln()).abs() < 1e-9));
        }
        let mean = |prior_of: &dyn Fn(&Window) -> f64| {
            let windows = corpus.windows(Split::Train);
            windows.iter().map(prior_of).sum::<f64>() / windows.len() as f64
        };
        let of = |user: PrefixMass, window: &Window| user.mass(trie.leaf(corpus.target(window)));
        let honest = mean(&|window| of(prior.of_window(&corpus, Split::Train, window), window));
        let seen = mean(&|window| of(prior.after(corpus.history(window)), window));
        assert!(honest < seen, "{honest} {seen}");
    }
}
