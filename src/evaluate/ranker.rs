//! Ranking of a split with a ranker of the registry.

use rayon::prelude::*;

use super::lists::{RankedList, RankedSplit};
use super::metrics::{CUTOFFS, Outcome, rank_of, summarise};
use crate::data::{Corpus, Split};
use crate::rankers::{Ranker, Scores, TopK};

/// Most histories that are scored at once.
const BATCH: usize = 256;
/// Most scores that a batch holds in memory; a batch is one history where a catalogue has more
/// items.
const SCORES: usize = 1 << 26;

/// Returns the `k` best items after each history (oldest first), best first, as [`TopK::rank`]
/// does.
pub fn rank_histories(ranker: &dyn Ranker, top_k: &TopK, histories: &[&[u32]], k: usize) -> Vec<Vec<u32>> {
    scored_lists(ranker, top_k, histories, k).into_iter().map(|list| list.items).collect()
}

/// Returns the lists of [`rank_histories`] with their scores.
fn scored_lists(ranker: &dyn Ranker, top_k: &TopK, histories: &[&[u32]], k: usize) -> Vec<RankedList> {
    let batch = (SCORES / ranker.items().max(1)).clamp(1, BATCH);
    let mut rankings = Vec::with_capacity(histories.len());
    for histories in histories.chunks(batch) {
        let rank = |(history, scores): (_, Scores)| {
            let history: &[u32] = history;
            let items = top_k.rank(&scores, if ranker.excludes_history() { history } else { &[] }, k);
            RankedList { scores: items.iter().map(|&item| scores.get(item)).collect(), items }
        };
        let scores = ranker.scores_of_all(histories);
        rankings.par_extend(histories.par_iter().copied().zip(scores).map(rank));
    }
    rankings
}

/// Ranks the first `limit` windows of a split (all without one), to the largest of [`CUTOFFS`].
pub fn evaluate_ranker(
    ranker: &dyn Ranker,
    top_k: &TopK,
    corpus: &Corpus,
    split: Split,
    limit: Option<usize>,
) -> Vec<Outcome> {
    let depth = CUTOFFS.into_iter().max().unwrap_or_default() as usize;
    rank_split(ranker, top_k, corpus, split, limit, depth).outcomes
}

/// Ranks the first `limit` windows of a split (all without one), and keeps the lists.
///
/// * `depth`: items of a list.
pub fn rank_split(
    ranker: &dyn Ranker,
    top_k: &TopK,
    corpus: &Corpus,
    split: Split,
    limit: Option<usize>,
    depth: usize,
) -> RankedSplit {
    let cold = corpus.cold_items(split);
    let windows = corpus.windows(split);
    let windows = &windows[..windows.len().min(limit.unwrap_or(usize::MAX))];
    let histories: Vec<&[u32]> = windows.iter().map(|window| corpus.history(window)).collect();
    let lists = scored_lists(ranker, top_k, &histories, depth);
    let outcomes = windows.iter().zip(&lists).zip(0..).map(|((window, list), index)| {
        let target = corpus.target(window);
        let rank = rank_of(corpus, target, &list.items);
        Outcome { window: index, user: window.user, target, cold: cold[target as usize], rank }
    });
    let outcomes = outcomes.collect();
    RankedSplit { outcomes, lists }
}

/// Returns NDCG@10 on the validation windows; `None` where there are none.
pub fn valid_ndcg(ranker: &dyn Ranker, top_k: &TopK, corpus: &Corpus) -> Option<f64> {
    let outcomes = evaluate_ranker(ranker, top_k, corpus, Split::Valid, None);
    summarise(&outcomes, 0).all.metric("ndcg@10")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Item, UserLog, Window};
    use crate::rankers::testing::fit;

    #[test]
    fn ranks_a_split() {
        let items = ["A", "B"].map(|title| Item { id: title.into(), title: title.into() }).to_vec();
        let log = |id: &str| UserLog { id: id.into(), events: vec![(0, None), (1, None)] };
        let windows = [0, 1].map(|user| Window { user, start: 2 * user, len: 2 });
        let corpus =
            Corpus::new("c", items, vec![log("u"), log("v")], windows.to_vec(), Some(vec![]), vec![windows[0]])
                .unwrap();
        let top_k = TopK::new(&corpus);
        let outcomes = evaluate_ranker(&*fit("markov", &corpus), &top_k, &corpus, Split::Test, None);
        let expected = Outcome { window: 0, user: 0, target: 1, cold: false, rank: Some(0) };
        assert_eq!(outcomes, [expected]);
        let ranker = fit("popularity", &corpus);
        assert!(evaluate_ranker(&*ranker, &top_k, &corpus, Split::Test, Some(0)).is_empty());
    }
}
