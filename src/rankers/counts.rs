//! Rankers that count.
//!
//! All three count on the training windows alone, and every interaction or pair of interactions
//! once: sliding windows of one user overlap, and counting window by window would count the middle
//! of a long sequence up to as often as a window is long. A pair of interactions of a user counts
//! when some training window holds both.

use std::collections::HashMap;
use std::sync::Arc;

use super::registry::{Entry, Fit, FitContext, Method};
use super::settings::refuse_all;
use super::{Ranker, Scores};
use crate::Result;
use crate::data::{Corpus, Split, Window};

/// Pairs further apart in a user's sequence are not counted.
const MAX_GAP: usize = 8;
/// A pair `gap` apart weighs `gap^-GAP_POWER`.
const GAP_POWER: f64 = 0.7;
/// Weight of a pair read from its later to its earlier item.
const BACKWARD: f64 = 0.5;
/// The weight of an item of the history is multiplied by this for each step back.
const DECAY: f64 = 0.75;
/// An item's links are divided by its number of pairs to this power.
const DEGREE_POWER: f64 = 0.4;
/// Largest weight that rounding can leave where all pairs of a link are taken back; no pair weighs
/// less than 0.5 · 8^-0.7 = 0.12.
const RESIDUE: f64 = 1e-6;

pub(super) const POPULARITY: Entry = Entry {
    name: "popularity",
    about: "the items with the most training interactions, whatever the history; an interaction counts once, \
            however many training windows hold it",
    method: |settings| method(Count::Popularity, "popularity", &settings),
};

pub(super) const MARKOV: Entry = Entry {
    name: "markov",
    about: "the items that most often came right after the last item, then the popular ones",
    method: |settings| method(Count::Markov, "markov", &settings),
};

pub(super) const COOCCURRENCE: Entry = Entry {
    name: "cooccurrence",
    about: "the items that came near those of the history, without the history's own, then the popular ones",
    method: |settings| method(Count::Cooccurrence, "cooccurrence", &settings),
};

fn method(count: Count, name: &str, settings: &toml::Table) -> Result<Method> {
    refuse_all(name, settings)?;
    Ok(Method::Fit(Box::new(count)))
}

/// The statistic that a ranker counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// Each item's interactions.
    Popularity,
    /// Pairs of neighbours.
    Markov,
    /// Pairs at most 8 apart:
    ///
    /// score(j) = Σ_s 0.75^s · links(i_s, j) / degree(i_s)^0.4 over the history, its last item at s
    /// = 0, where links sums gap^-0.7 over the pairs, backward pairs at half weight, and degree
    /// counts the source item's pairs.
    Cooccurrence,
}

impl Fit for Count {
    fn fit(&self, context: &mut FitContext) -> Result<Arc<dyn Ranker>> {
        Ok(Arc::new(CountRanker::new(*self, context.corpus)))
    }
}

/// The counts of a corpus.
#[derive(Clone, Debug)]
struct CountRanker {
    count: Count,
    /// `[items]`: training interactions of each item.
    counts: Vec<u32>,
    /// For each source item its targets and the summed weights of their pairs, by target.
    links: Vec<Vec<(u32, f64)>>,
    /// `[items]`: pairs of each source item.
    degrees: Vec<u32>,
    /// `[interactions]`: see [`earliest_windows`].
    earliest: Vec<Option<u32>>,
    /// `[users]`: the end of each user's interactions.
    ends: Vec<u32>,
}

/// The contribution of some interactions to the counts.
#[derive(Default)]
struct Contribution {
    counts: HashMap<u32, u32>,
    links: HashMap<(u32, u32), f64>,
    degrees: HashMap<u32, u32>,
}

/// Returns for each interaction the start of the earliest training window that holds it; none
/// outside them. Interactions a < b of a user share a training window exactly when
/// `earliest[b] <= a`.
fn earliest_windows(corpus: &Corpus) -> Vec<Option<u32>> {
    let mut earliest: Vec<Option<u32>> = vec![None; corpus.interactions.len()];
    for window in corpus.windows(Split::Train) {
        for earliest in &mut earliest[window.range()] {
            *earliest = Some(earliest.map_or(window.start, |e| e.min(window.start)));
        }
    }
    earliest
}

/// Calls `add(source, target, weight)` for each counted pair of items whose later interaction is
/// `later`, where a training window holds those from `earliest` on.
fn pairs(count: Count, log: &[u32], earliest: u32, later: usize, mut add: impl FnMut(u32, u32, f64)) {
    let longest = match count {
        Count::Popularity => 0,
        Count::Markov => 1,
        Count::Cooccurrence => MAX_GAP,
    };
    let target = log[later];
    let first = (earliest as usize).max(later.saturating_sub(longest));
    for (&source, gap) in log[first..later].iter().rev().zip(1u32..) {
        let weight = f64::from(gap).powf(-GAP_POWER);
        add(source, target, weight);
        if count == Count::Cooccurrence {
            add(target, source, BACKWARD * weight);
        }
    }
}

impl CountRanker {
    /// Counts the training windows of a corpus.
    fn new(count: Count, corpus: &Corpus) -> Self {
        let (items, log) = (corpus.items.len(), &corpus.interactions);
        let mut counts = vec![0u32; items];
        let mut links: Vec<HashMap<u32, f64>> = vec![HashMap::new(); items];
        let mut degrees = vec![0u32; items];
        let earliest = earliest_windows(corpus);
        for (later, &earliest) in earliest.iter().enumerate() {
            let Some(earliest) = earliest else { continue };
            counts[log[later] as usize] += 1;
            pairs(count, log, earliest, later, |source, target, weight| {
                *links[source as usize].entry(target).or_default() += weight;
                degrees[source as usize] += 1;
            });
        }
        let links = links.into_iter().map(|targets| {
            let mut targets: Vec<(u32, f64)> = targets.into_iter().collect();
            targets.sort_unstable_by_key(|t| t.0);
            targets
        });
        let mut end = 0;
        let ends = (0..corpus.users() as u32).map(|user| {
            end += corpus.user_interactions(user).len() as u32;
            end
        });
        let ends = ends.collect();
        Self { count, counts, links: links.collect(), degrees, earliest, ends }
    }

    /// Returns the scores by the counts without `left_out`.
    fn scores_without(&self, history: &[u32], left_out: &Contribution) -> Scores {
        let used = match self.count {
            Count::Popularity => {
                let count = |(&count, item): (&u32, u32)| f64::from(count - left_out.counts.get(&item).unwrap_or(&0));
                return Scores::Dense(self.counts.iter().zip(0..).map(count).collect());
            }
            Count::Markov => 1,
            Count::Cooccurrence => history.len(),
        };
        let mut links: Vec<(u32, f64)> = Vec::new();
        let mut step_weight = 1.0;
        for &source in history.iter().rev().take(used) {
            let pairs = self.degrees.get(source as usize).copied().unwrap_or(0);
            let degree = pairs - left_out.degrees.get(&source).unwrap_or(&0);
            let scale = match self.count {
                Count::Cooccurrence => f64::from(degree).powf(DEGREE_POWER),
                _ => 1.0,
            };
            for &(target, weight) in self.links.get(source as usize).into_iter().flatten() {
                let weight = weight - left_out.links.get(&(source, target)).unwrap_or(&0.0);
                if weight > RESIDUE {
                    links.push((target, step_weight * (weight / scale)));
                }
            }
            step_weight *= DECAY;
        }
        let scores = Scores::from_pairs(links);
        if self.excludes_history() { scores.exclude(history) } else { scores }
    }
}

impl Ranker for CountRanker {
    fn items(&self) -> usize {
        self.counts.len()
    }

    /// Training interactions, or as [`Count::Cooccurrence`] says; 0 for items that never came after
    /// or near those of the history.
    fn scores(&self, history: &[u32]) -> Scores {
        self.scores_without(history, &Contribution::default())
    }

    /// Returns the scores by the counts of a log in which the user's interactions from the window's
    /// target on are missing. The counts of the whole log know the target: its pairs with the
    /// history are in them. So a training window is scored as a window is that is ranked, whose
    /// target, and all that follows it, no count has seen.
    ///
    /// Its work grows with the user's interactions after the target.
    fn scores_before_target(&self, corpus: &Corpus, window: &Window) -> Scores {
        let (log, history) = (&corpus.interactions, corpus.history(window));
        let end = self.ends.get(window.user as usize).map_or(0, |&end| end as usize);
        let mut left_out = Contribution::default();
        for later in window.range().end.saturating_sub(1)..end {
            let Some(earliest) = self.earliest[later] else { continue };
            *left_out.counts.entry(log[later]).or_default() += 1;
            pairs(self.count, log, earliest, later, |source, target, weight| {
                if history.contains(&source) {
                    *left_out.links.entry((source, target)).or_default() += weight;
                    *left_out.degrees.entry(source).or_default() += 1;
                }
            });
        }
        self.scores_without(history, &left_out)
    }

    fn excludes_history(&self) -> bool {
        self.count == Count::Cooccurrence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Item, UserLog};
    use crate::rankers::TopK;

    /// Titles A, B, C, D, B (items 1 and 4 have one title), E.
    fn corpus(logs: &[&[u32]], width: u32) -> Corpus {
        let items = ["A", "B", "C", "D", "B", "E"];
        let items = items.iter().enumerate();
        let items = items.map(|(i, t)| Item { id: i.to_string(), title: (*t).into() }).collect();
        let mut users = Vec::new();
        let mut windows = Vec::new();
        let mut first = 0;
        for (user, log) in logs.iter().enumerate() {
            let len = log.len() as u32;
            for start in 0..=len.saturating_sub(width) {
                let (user, start) = (user as u32, first + start);
                windows.push(Window { user, start, len: width.min(len) });
            }
            first += len;
            let events = log.iter().map(|&item| (item, None)).collect();
            users.push(UserLog { id: user.to_string(), events });
        }
        let test = vec![windows[0]];
        Corpus::new("c", items, users, windows, Some(vec![]), test).unwrap()
    }

    fn rank(ranker: &CountRanker, corpus: &Corpus, history: &[u32], k: usize) -> Vec<u32> {
        let excluded = if ranker.excludes_history() { history } else { &[] };
        TopK::new(corpus).rank(&ranker.scores(history), excluded, k)
    }

    #[test]
    fn popularity_counts_each_interaction_once() {
        // By windows of 3, item 1 would count 1 + 2 + 1 = 4 times; it is there twice, 2 thrice.
        let corpus = corpus(&[&[0, 1, 3, 1], &[2, 2], &[2, 5]], 3);
        let ranker = CountRanker::new(Count::Popularity, &corpus);
        assert_eq!(ranker.counts, [1, 2, 3, 1, 0, 1]);
        assert_eq!(rank(&ranker, &corpus, &[2], 4), [2, 1, 0, 3]);
        // Item 4 has item 1's title, so it is never listed beside it.
        assert_eq!(rank(&ranker, &corpus, &[], 9), [2, 1, 0, 3, 5]);
    }

    #[test]
    fn markov_follows_the_last_item() {
        let corpus = corpus(&[&[0, 1, 2, 0, 3], &[0, 3], &[5, 0, 1], &[5, 2, 2, 2]], 3);
        let ranker = CountRanker::new(Count::Markov, &corpus);
        // After 0: 1 and 3 twice each, as popular; then by popularity 0 and 2 (4 each), 5.
        assert_eq!(rank(&ranker, &corpus, &[5, 0], 5), [1, 3, 0, 2, 5]);
        // After 3 comes nothing: popularity alone.
        assert_eq!(rank(&ranker, &corpus, &[3], 2), [0, 2]);
        assert_eq!(rank(&ranker, &corpus, &[77], 2), [0, 2]);
    }

    #[test]
    fn cooccurrence_equals_the_formula() {
        let corpus = corpus(&[&[0, 1, 2], &[3, 1]], 3);
        let ranker = CountRanker::new(Count::Cooccurrence, &corpus);
        let two = 2f64.powf(-0.7);
        // 0 has 2 pairs (1 forward at gap 1, 2 at gap 2); 1 has 3: 0 and 3 backward, 2 forward.
        let expected: [&[(u32, f64)]; 2] = [&[(1, 1.0), (2, two)], &[(0, 0.5), (2, 1.0), (3, 0.5)]];
        for (links, expected) in ranker.links.iter().zip(expected) {
            assert_eq!(links.len(), expected.len());
            for (link, wanted) in links.iter().zip(expected) {
                assert_eq!(link.0, wanted.0);
                assert!((link.1 - wanted.1).abs() < 1e-12);
            }
        }
        assert_eq!(ranker.degrees[..2], [2, 3]);
        let scores = ranker.scores(&[0, 1]).to_dense(6);
        let expected = [0.0, 0.0, 1.0 / 3f64.powf(0.4) + 0.75 * two / 2f64.powf(0.4), 0.5 / 3f64.powf(0.4), 0.0, 0.0];
        scores.iter().zip(expected).for_each(|(score, wanted)| assert!((score - wanted).abs() < 1e-12));
        // After [0, 1]: 2 from both; 3 from 1; then the unlinked by index, 0 and 1 excluded (4 is
        // another item of the title B).
        assert_eq!(rank(&ranker, &corpus, &[0, 1], 5), [2, 3, 4, 5]);
    }

    #[test]
    fn pairs_need_a_common_training_window() {
        let mut logs = corpus(&[&[0, 1, 2, 3]], 2);
        let ranker = CountRanker::new(Count::Cooccurrence, &logs);
        assert_eq!(ranker.links[0].len(), 1, "0 and 2 share no window of 2");
        // Held out windows are not counted.
        logs = Corpus::new(
            "c",
            logs.items.clone(),
            vec![UserLog { id: "u".into(), events: vec![(0, None), (1, None), (2, None)] }],
            vec![Window { user: 0, start: 0, len: 2 }],
            Some(vec![Window { user: 0, start: 1, len: 2 }]),
            vec![],
        )
        .unwrap();
        assert_eq!(CountRanker::new(Count::Markov, &logs).counts, [1, 1, 0, 0, 0, 0]);
    }

    /// Against counting anew the log as it was before the target, every training window of random
    /// logs with repeated items.
    #[test]
    fn a_window_is_scored_by_the_log_before_its_target() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for _ in 0..60 {
            let logs: Vec<Vec<u32>> =
                (0..4).map(|_| (0..rng.random_range(2..14)).map(|_| rng.random_range(0..6)).collect()).collect();
            let logs: Vec<&[u32]> = logs.iter().map(Vec::as_slice).collect();
            let all = corpus(&logs, 4);
            for window in all.windows(Split::Train) {
                let end = window.range().end as u32 - 1;
                let last = |w: &Window| w.start + w.len - 1;
                // Windows of this user that reach the target end before it.
                let cut = |w: &Window| match w.user == window.user && last(w) >= end {
                    true => Window { len: end.saturating_sub(w.start), ..*w },
                    false => *w,
                };
                let windows: Vec<Window> = all.windows(Split::Train).iter().map(cut).filter(|w| w.len >= 2).collect();
                let mut logs: Vec<UserLog> = Vec::new();
                for user in 0..all.users() as u32 {
                    let events = all.user_interactions(user).iter().map(|&item| (item, None)).collect();
                    logs.push(UserLog { id: user.to_string(), events });
                }
                let before = Corpus::new("c", all.items.clone(), logs, windows, Some(vec![]), vec![]).unwrap();
                for count in [Count::Markov, Count::Cooccurrence] {
                    let expected = CountRanker::new(count, &before).scores(all.history(window)).to_dense(6);
                    let found = CountRanker::new(count, &all).scores_before_target(&all, window).to_dense(6);
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() < 1e-9, "{count:?}: {found} instead of {expected}");
                        assert_eq!(*found == 0.0, *expected == 0.0);
                    }
                }
            }
        }
        // Popularity: the user's interactions from the target on are not counted.
        let corpus = corpus(&[&[0, 1, 2, 1], &[1, 3]], 3);
        let window = corpus.windows(Split::Train)[0];
        let scores = CountRanker::new(Count::Popularity, &corpus).scores_before_target(&corpus, &window);
        assert_eq!(scores, Scores::Dense(vec![1.0, 2.0, 0.0, 1.0, 0.0, 0.0]));
    }
}
