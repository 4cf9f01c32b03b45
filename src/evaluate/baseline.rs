//! Ranking a split with a ranker that counts.

use super::metrics::{CUTOFFS, Outcome, rank_of};
use crate::data::{Corpus, Split};
use crate::rankers::CountRanker;

/// Ranks the first `limit` windows of a split (all without one), to the largest of [`CUTOFFS`].
pub fn evaluate_baseline(ranker: &CountRanker, corpus: &Corpus, split: Split, limit: Option<usize>) -> Vec<Outcome> {
    evaluate_rankings(corpus, split, limit, |histories, k| {
        histories.iter().map(|history| ranker.rank(history, k)).collect()
    })
}

/// As [`evaluate_baseline`] by `rank`, which is given the histories and how many items to return
/// for each, the best first.
pub(super) fn evaluate_rankings(
    corpus: &Corpus,
    split: Split,
    limit: Option<usize>,
    rank: impl FnOnce(&[&[u32]], usize) -> Vec<Vec<u32>>,
) -> Vec<Outcome> {
    let depth = CUTOFFS.into_iter().max().unwrap_or_default() as usize;
    let cold = corpus.cold_items(split);
    let windows = corpus.windows(split);
    let windows = &windows[..windows.len().min(limit.unwrap_or(usize::MAX))];
    let histories: Vec<&[u32]> = windows.iter().map(|window| corpus.history(window)).collect();
    let outcomes = windows.iter().zip(rank(&histories, depth)).zip(0..).map(|((window, ranking), index)| {
        let target = corpus.target(window);
        let rank = rank_of(corpus, target, &ranking);
        Outcome { window: index, user: window.user, target, cold: cold[target as usize], rank }
    });
    outcomes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Item, UserLog, Window};
    use crate::rankers::{Baseline, fit};

    #[test]
    fn ranks_a_split() {
        let items = ["A", "B"].map(|title| Item { id: title.into(), title: title.into() }).to_vec();
        let log = |id: &str| UserLog { id: id.into(), events: vec![(0, None), (1, None)] };
        let windows = [0, 1].map(|user| Window { user, start: 2 * user, len: 2 });
        let corpus =
            Corpus::new("c", items, vec![log("u"), log("v")], windows.to_vec(), Some(vec![]), vec![windows[0]])
                .unwrap();
        let outcomes = evaluate_baseline(&fit(Baseline::Markov, &corpus), &corpus, Split::Test, None);
        let expected = Outcome { window: 0, user: 0, target: 1, cold: false, rank: Some(0) };
        assert_eq!(outcomes, [expected]);
        let ranker = fit(Baseline::Popularity, &corpus);
        assert!(evaluate_baseline(&ranker, &corpus, Split::Test, Some(0)).is_empty());
    }
}
