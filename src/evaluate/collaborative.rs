//! Ranking by collaborative models.
//!
//! Items of the history are not ranked, as in the papers' own evaluation of SASRec and in our
//! co-occurrence; equal scores go by popularity in training, then by item index, and items of no
//! training window come last.

use std::cmp::Reverse;

use burn::prelude::Backend;

use super::baseline::evaluate_rankings;
use super::metrics::Outcome;
use crate::data::{Corpus, Split};
use crate::rankers::Model;
use crate::rankers::twins;

/// Histories scored at once: their scores for all items are held in memory.
const TOGETHER: usize = 256;

/// The `k` best items after each history (oldest first), best first, each title once: of equal
/// titles the best item. Fewer than `k` only where the catalogue without the history has fewer
/// titles.
pub fn rank_collaborative<B: Backend>(
    model: &Model<B>,
    corpus: &Corpus,
    histories: &[&[u32]],
    k: usize,
) -> Vec<Vec<u32>> {
    let twins = twins(corpus);
    let mut rankings = Vec::with_capacity(histories.len());
    for together in histories.chunks(TOGETHER) {
        let scores = model.scores(together);
        for (history, scores) in together.iter().zip(scores.chunks_exact(corpus.items.len())) {
            rankings.push(best(model, &twins, history, scores, k));
        }
    }
    rankings
}

fn best<B: Backend>(model: &Model<B>, twins: &[u32], history: &[u32], scores: &[f32], k: usize) -> Vec<u32> {
    let order = |&a: &u32, &b: &u32| {
        let key = |item: u32| (Reverse(model.interactions().count(item)), item);
        scores[b as usize].total_cmp(&scores[a as usize]).then_with(|| key(a).cmp(&key(b)))
    };
    let mut items: Vec<u32> = (0..scores.len() as u32).collect();
    // Enough for k titles unless many are equal; then all are sorted.
    for sorted in [2 * k + history.len(), items.len()] {
        if sorted < items.len() {
            items.select_nth_unstable_by(sorted, order);
        }
        let sorted = sorted.min(items.len());
        items[..sorted].sort_unstable_by(order);
        let mut listed: Vec<u32> = Vec::with_capacity(k);
        let mut ranking = Vec::with_capacity(k);
        for &item in items[..sorted].iter().filter(|item| !history.contains(item)) {
            if ranking.len() == k {
                break;
            }
            let twin = twins[item as usize];
            if !listed.contains(&twin) {
                listed.push(twin);
                ranking.push(item);
            }
        }
        if ranking.len() == k || sorted == items.len() {
            return ranking;
        }
    }
    Vec::new()
}

/// Ranks the first `limit` windows of a split (all without one), to the largest of
/// [`super::CUTOFFS`].
pub fn evaluate_collaborative<B: Backend>(
    model: &Model<B>,
    corpus: &Corpus,
    split: Split,
    limit: Option<usize>,
) -> Vec<Outcome> {
    evaluate_rankings(corpus, split, limit, |histories, k| rank_collaborative(model, corpus, histories, k))
}
