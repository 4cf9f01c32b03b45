//! Rankers that count, as the yardstick of a language model.
//!
//! All three count on the training windows alone, and every interaction or pair of interactions once:
//! sliding windows of one user overlap, and counting window by window would count the middle of a
//! long sequence up to ten times. A pair of interactions of a user counts when some training window
//! holds both.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::str::FromStr;

use super::metrics::{CUTOFFS, Outcome, rank_of};
use crate::data::{Corpus, Split};
use crate::{Error, Result};

/// Pairs further apart in a user's sequence are not counted.
const MAX_GAP: usize = 8;
/// A pair `gap` apart weighs `gap^-GAP_POWER`.
const GAP_POWER: f64 = 0.7;
/// Weight of a pair read from its later to its earlier item.
const BACKWARD: f64 = 0.5;
/// An item of the history weighs this much less a step back.
const DECAY: f64 = 0.75;
/// An item's links are divided by its number of pairs to this power.
const DEGREE_POWER: f64 = 0.4;

/// A ranker without a language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// The items with the most training interactions, whatever the history.
    Popularity,
    /// The items that most often came right after the last item; then the popular ones.
    Markov,
    /// The items that came near those of the history, which are excluded; then the popular ones.
    ///
    /// score(j) = Σ_s 0.75^s · links(i_s, j) / degree(i_s)^0.4 over the history, the last item s = 0,
    /// where links sums gap^-0.7 over the pairs at most 8 apart, backward pairs at half weight, and
    /// degree counts the source item's pairs.
    Cooccurrence,
}

impl Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Popularity => "popularity",
            Self::Markov => "markov",
            Self::Cooccurrence => "cooccurrence",
        })
    }
}

impl FromStr for Baseline {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "popularity" => Ok(Self::Popularity),
            "markov" => Ok(Self::Markov),
            "cooccurrence" => Ok(Self::Cooccurrence),
            _ => Err(Error::usage(format!("baseline `{text}`: use popularity, markov, cooccurrence, als, bpr or sasrec"))),
        }
    }
}

/// A fitted baseline.
pub struct Ranker {
    baseline: Baseline,
    /// Training interactions of each item.
    counts: Vec<u32>,
    /// All items, the most popular first.
    popular: Vec<u32>,
    /// For each source item its targets and their weights.
    links: Vec<Vec<(u32, f64)>>,
    /// The first item of the same title.
    twin: Vec<u32>,
}

/// For each interaction the start of the earliest training window that holds it; none outside them.
/// Interactions a < b of a user share a training window exactly when `reach[b] <= a`.
fn reach(corpus: &Corpus) -> Vec<Option<u32>> {
    let mut reach: Vec<Option<u32>> = vec![None; corpus.interactions.len()];
    for window in corpus.windows(Split::Train) {
        for earliest in &mut reach[window.range()] {
            *earliest = Some(earliest.map_or(window.start, |e| e.min(window.start)));
        }
    }
    reach
}

/// Counts the training windows of a corpus.
pub fn fit(baseline: Baseline, corpus: &Corpus) -> Ranker {
    let (items, log) = (corpus.items.len(), &corpus.interactions);
    let mut counts = vec![0u32; items];
    let mut links: Vec<HashMap<u32, f64>> = vec![HashMap::new(); items];
    let mut degrees = vec![0u32; items];
    let longest = match baseline {
        Baseline::Popularity => 0,
        Baseline::Markov => 1,
        Baseline::Cooccurrence => MAX_GAP,
    };
    for (later, earliest) in reach(corpus).into_iter().enumerate() {
        let Some(earliest) = earliest else { continue };
        let target = log[later];
        counts[target as usize] += 1;
        let first = (earliest as usize).max(later.saturating_sub(longest));
        for (&source, gap) in log[first..later].iter().rev().zip(1u32..) {
            let weight = f64::from(gap).powf(-GAP_POWER);
            *links[source as usize].entry(target).or_default() += weight;
            degrees[source as usize] += 1;
            if baseline == Baseline::Cooccurrence {
                *links[target as usize].entry(source).or_default() += BACKWARD * weight;
                degrees[target as usize] += 1;
            }
        }
    }

    let mut popular: Vec<u32> = (0..items as u32).collect();
    popular.sort_by_key(|&item| std::cmp::Reverse(counts[item as usize]));
    let scale = |degree: u32| match baseline {
        Baseline::Cooccurrence => f64::from(degree).powf(DEGREE_POWER),
        _ => 1.0,
    };
    let links = links.into_iter().zip(degrees).map(|(targets, degree)| {
        let mut targets: Vec<(u32, f64)> = targets.into_iter().map(|(item, weight)| (item, weight / scale(degree))).collect();
        targets.sort_unstable_by_key(|t| t.0);
        targets
    });
    Ranker { baseline, counts, popular, links: links.collect(), twin: twins(corpus) }
}

/// For each item the first item of the same title.
pub(super) fn twins(corpus: &Corpus) -> Vec<u32> {
    let mut first: HashMap<&str, u32> = HashMap::new();
    let twin = corpus.items.iter().zip(0..).map(|(item, index)| *first.entry(item.title.as_str()).or_insert(index));
    twin.collect()
}

impl Ranker {
    /// The `k` best items after a history (oldest first), best first, each title once: of equal
    /// titles the best item. Equal scores go by popularity, then by item index. Fewer than `k` only
    /// where the catalogue, without what the baseline excludes, has fewer titles.
    pub fn rank(&self, history: &[u32], k: usize) -> Vec<u32> {
        let items = self.counts.len();
        let mut scores = vec![0.0; items];
        let mut excluded = vec![false; items];
        let used = match self.baseline {
            Baseline::Popularity => 0,
            Baseline::Markov => 1,
            Baseline::Cooccurrence => history.len(),
        };
        let mut step_weight = 1.0;
        for &source in history.iter().rev().take(used) {
            for &(target, weight) in self.links.get(source as usize).into_iter().flatten() {
                scores[target as usize] += step_weight * weight;
            }
            step_weight *= DECAY;
            if let Some(seen) = excluded.get_mut(source as usize) {
                *seen = self.baseline == Baseline::Cooccurrence;
            }
        }
        let mut linked: Vec<u32> = (0..items as u32).filter(|&i| scores[i as usize] > 0.0).collect();
        linked.sort_by(|&a, &b| {
            let (a, b) = (a as usize, b as usize);
            scores[b].total_cmp(&scores[a]).then(self.counts[b].cmp(&self.counts[a]))
        });

        let mut ranking = Vec::with_capacity(k.min(items));
        let mut listed = vec![false; items];
        for &item in linked.iter().chain(&self.popular) {
            if ranking.len() == k {
                break;
            }
            let twin = self.twin[item as usize] as usize;
            if !excluded[item as usize] && !listed[twin] {
                listed[twin] = true;
                ranking.push(item);
            }
        }
        ranking
    }
}

/// Ranks the first `limit` windows of a split (all without one), to the largest of [`CUTOFFS`].
pub fn evaluate_baseline(ranker: &Ranker, corpus: &Corpus, split: Split, limit: Option<usize>) -> Vec<Outcome> {
    let depth = CUTOFFS.into_iter().max().unwrap_or_default() as usize;
    let cold = corpus.cold_items(split);
    let windows = corpus.windows(split).iter().take(limit.unwrap_or(usize::MAX));
    let outcomes = windows.zip(0..).map(|(window, index)| {
        let target = corpus.target(window);
        let ranking = ranker.rank(corpus.history(window), depth);
        Outcome {
            window: index,
            user: window.user,
            target,
            cold: cold[target as usize],
            rank: rank_of(corpus, target, &ranking),
        }
    });
    outcomes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Item, UserLog, Window};

    /// Titles A, B, C, D, B (item 4 is item 1's twin), E.
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

    #[test]
    fn popularity_counts_each_interaction_once() {
        // By windows of 3, item 1 would count 1 + 2 + 1 = 4 times; it is there twice, 2 thrice.
        let corpus = corpus(&[&[0, 1, 3, 1], &[2, 2], &[2, 5]], 3);
        let ranker = fit(Baseline::Popularity, &corpus);
        assert_eq!(ranker.counts, [1, 2, 3, 1, 0, 1]);
        assert_eq!(ranker.rank(&[2], 4), [2, 1, 0, 3]);
        // The twin of item 1 is never listed beside it.
        assert_eq!(ranker.rank(&[], 9), [2, 1, 0, 3, 5]);
    }

    #[test]
    fn markov_follows_the_last_item() {
        let corpus = corpus(&[&[0, 1, 2, 0, 3], &[0, 3], &[5, 0, 1], &[5, 2, 2, 2]], 3);
        let ranker = fit(Baseline::Markov, &corpus);
        // After 0: 1 and 3 twice each, as popular; then by popularity 0 and 2 (4 each), 5.
        assert_eq!(ranker.rank(&[5, 0], 5), [1, 3, 0, 2, 5]);
        // After 3 comes nothing: popularity alone.
        assert_eq!(ranker.rank(&[3], 2), [0, 2]);
        assert_eq!(ranker.rank(&[77], 2), [0, 2]);
    }

    #[test]
    fn cooccurrence_equals_the_formula() {
        let corpus = corpus(&[&[0, 1, 2], &[3, 1]], 3);
        let ranker = fit(Baseline::Cooccurrence, &corpus);
        let two = 2f64.powf(-0.7);
        // 0 has 2 pairs (1 forward at gap 1, 2 at gap 2); 1 has 3: 0 and 3 backward, 2 forward.
        let expected: [&[(u32, f64)]; 2] = [
            &[(1, 1.0 / 2f64.powf(0.4)), (2, two / 2f64.powf(0.4))],
            &[(0, 0.5 / 3f64.powf(0.4)), (2, 1.0 / 3f64.powf(0.4)), (3, 0.5 / 3f64.powf(0.4))],
        ];
        for (links, expected) in ranker.links.iter().zip(expected) {
            assert_eq!(links.len(), expected.len());
            for (link, wanted) in links.iter().zip(expected) {
                assert_eq!(link.0, wanted.0);
                assert!((link.1 - wanted.1).abs() < 1e-12);
            }
        }
        // After [0, 1]: 2 from both; 3 from 1; then the unlinked by index, 0 and 1 excluded (4 is
        // another item of the title B).
        assert_eq!(ranker.rank(&[0, 1], 5), [2, 3, 4, 5]);
    }

    #[test]
    fn pairs_need_a_common_training_window() {
        let mut logs = corpus(&[&[0, 1, 2, 3]], 2);
        let ranker = fit(Baseline::Cooccurrence, &logs);
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
        assert_eq!(fit(Baseline::Markov, &logs).counts, [1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn ranks_a_split() {
        let corpus = corpus(&[&[0, 1], &[0, 1]], 3);
        let outcomes = evaluate_baseline(&fit(Baseline::Markov, &corpus), &corpus, Split::Test, None);
        let expected = Outcome { window: 0, user: 0, target: 1, cold: false, rank: Some(0) };
        assert_eq!(outcomes, [expected]);
        let ranker = fit(Baseline::Popularity, &corpus);
        assert!(evaluate_baseline(&ranker, &corpus, Split::Test, Some(0)).is_empty());
        assert_eq!("als".parse::<Baseline>().unwrap_err().exit_code(), 2);
        assert_eq!(Baseline::Cooccurrence.to_string().parse(), Ok(Baseline::Cooccurrence));
    }
}
