//! Rankers that count: the yardstick of a language model, and its prior.
//!
//! All three count on the training windows alone, and every interaction or pair of interactions
//! once: sliding windows of one user overlap, and counting window by window would count the middle
//! of a long sequence up to as often as a window is long. A pair of interactions of a user counts
//! when some training window holds both.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::str::FromStr;

use super::Ranker;
use crate::data::{Corpus, Split, Window};
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
/// What rounding can leave of a weight that is taken back; no pair weighs less than 0.5 · 8^-0.7 =
/// 0.12.
const RESIDUE: f64 = 1e-6;

/// A ranker without a language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// The items with the most training interactions, whatever the history.
    Popularity,
    /// The items that most often came right after the last item; then the popular ones.
    Markov,
    /// The items that came near those of the history, which are excluded; then the popular ones.
    ///
    /// score(j) = Σ_s 0.75^s · links(i_s, j) / degree(i_s)^0.4 over the history, the last item s =
    /// 0, where links sums gap^-0.7 over the pairs at most 8 apart, backward pairs at half weight,
    /// and degree counts the source item's pairs.
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
            _ => Err(Error::usage(format!(
                "baseline `{text}`: use popularity, markov, cooccurrence, als, bpr or sasrec"
            ))),
        }
    }
}

/// A fitted baseline.
#[derive(Clone, Debug)]
pub struct CountRanker {
    baseline: Baseline,
    /// Training interactions of each item.
    counts: Vec<u32>,
    /// All items, the most popular first.
    popular: Vec<u32>,
    /// For each source item its targets and the summed weights of their pairs, by target.
    links: Vec<Vec<(u32, f64)>>,
    /// Each source item's pairs.
    degrees: Vec<u32>,
    /// The first item of the same title.
    twin: Vec<u32>,
    /// See [`reach`].
    reach: Vec<Option<u32>>,
    /// For each user the end of the user's interactions.
    ends: Vec<u32>,
}

/// What some interactions added to the counts.
#[derive(Default)]
struct Part {
    counts: HashMap<u32, u32>,
    links: HashMap<(u32, u32), f64>,
    degrees: HashMap<u32, u32>,
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

/// Calls `count(source, target, weight)` for each counted pair of items whose later interaction is
/// `later`, where a training window holds those from `earliest` on.
fn pairs(baseline: Baseline, log: &[u32], earliest: u32, later: usize, mut count: impl FnMut(u32, u32, f64)) {
    let longest = match baseline {
        Baseline::Popularity => 0,
        Baseline::Markov => 1,
        Baseline::Cooccurrence => MAX_GAP,
    };
    let target = log[later];
    let first = (earliest as usize).max(later.saturating_sub(longest));
    for (&source, gap) in log[first..later].iter().rev().zip(1u32..) {
        let weight = f64::from(gap).powf(-GAP_POWER);
        count(source, target, weight);
        if baseline == Baseline::Cooccurrence {
            count(target, source, BACKWARD * weight);
        }
    }
}

/// Counts the training windows of a corpus.
pub fn fit(baseline: Baseline, corpus: &Corpus) -> CountRanker {
    let (items, log) = (corpus.items.len(), &corpus.interactions);
    let mut counts = vec![0u32; items];
    let mut links: Vec<HashMap<u32, f64>> = vec![HashMap::new(); items];
    let mut degrees = vec![0u32; items];
    let reach = reach(corpus);
    for (later, &earliest) in reach.iter().enumerate() {
        let Some(earliest) = earliest else { continue };
        counts[log[later] as usize] += 1;
        pairs(baseline, log, earliest, later, |source, target, weight| {
            *links[source as usize].entry(target).or_default() += weight;
            degrees[source as usize] += 1;
        });
    }

    let mut popular: Vec<u32> = (0..items as u32).collect();
    popular.sort_by_key(|&item| std::cmp::Reverse(counts[item as usize]));
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
    CountRanker { baseline, counts, popular, links: links.collect(), degrees, twin: twins(corpus), reach, ends }
}

/// For each item the first item of the same title.
pub(crate) fn twins(corpus: &Corpus) -> Vec<u32> {
    let mut first: HashMap<&str, u32> = HashMap::new();
    let twin = corpus.items.iter().zip(0..).map(|(item, index)| *first.entry(item.title.as_str()).or_insert(index));
    twin.collect()
}

impl Ranker for CountRanker {
    fn items(&self) -> usize {
        self.counts.len()
    }

    /// Training interactions, or as [`Baseline`] says. Items of the history score 0 where the
    /// baseline excludes them; so does what it knows nothing of.
    fn scores(&self, history: &[u32]) -> Vec<f64> {
        self.scores_without(history, &Part::default())
    }

    /// By the counts of a log in which the user's interactions from the window's target on are
    /// missing. The counts of the whole log know the target: its pairs with the history are in
    /// them. This is what is known of a window that is ranked, whose target and all that follows no
    /// count has seen.
    ///
    /// Its work grows with the user's interactions after the target.
    fn scores_before_target(&self, corpus: &Corpus, window: &Window) -> Vec<f64> {
        let (log, history) = (&corpus.interactions, corpus.history(window));
        let end = self.ends.get(window.user as usize).map_or(0, |&end| end as usize);
        let mut known = Part::default();
        for later in window.range().end.saturating_sub(1)..end {
            let Some(earliest) = self.reach[later] else { continue };
            *known.counts.entry(log[later]).or_default() += 1;
            pairs(self.baseline, log, earliest, later, |source, target, weight| {
                if history.contains(&source) {
                    *known.links.entry((source, target)).or_default() += weight;
                    *known.degrees.entry(source).or_default() += 1;
                }
            });
        }
        self.scores_without(history, &known)
    }
}

impl CountRanker {
    fn scores_without(&self, history: &[u32], without: &Part) -> Vec<f64> {
        let used = match self.baseline {
            Baseline::Popularity => {
                let count = |(&count, item): (&u32, u32)| f64::from(count - without.counts.get(&item).unwrap_or(&0));
                return self.counts.iter().zip(0..).map(count).collect();
            }
            Baseline::Markov => 1,
            Baseline::Cooccurrence => history.len(),
        };
        let mut scores = vec![0.0; self.counts.len()];
        let mut step_weight = 1.0;
        for &source in history.iter().rev().take(used) {
            let degree =
                self.degrees.get(source as usize).map_or(0, |all| all - without.degrees.get(&source).unwrap_or(&0));
            let scale = match self.baseline {
                Baseline::Cooccurrence => f64::from(degree).powf(DEGREE_POWER),
                _ => 1.0,
            };
            for &(target, weight) in self.links.get(source as usize).into_iter().flatten() {
                let weight = weight - without.links.get(&(source, target)).unwrap_or(&0.0);
                if weight > RESIDUE {
                    scores[target as usize] += step_weight * (weight / scale);
                }
            }
            step_weight *= DECAY;
        }
        if self.baseline == Baseline::Cooccurrence {
            for &seen in history {
                if let Some(score) = scores.get_mut(seen as usize) {
                    *score = 0.0;
                }
            }
        }
        scores
    }

    /// The `k` best items after a history (oldest first), best first, each title once: of equal
    /// titles the best item. Equal scores go by popularity, then by item index. Fewer than `k` only
    /// where the catalogue, without what the baseline excludes, has fewer titles.
    pub fn rank(&self, history: &[u32], k: usize) -> Vec<u32> {
        let items = self.counts.len();
        let mut linked: Vec<u32> = Vec::new();
        // Popularity's own order is there already.
        if self.baseline != Baseline::Popularity {
            let scores = self.scores(history);
            linked.extend((0..items as u32).filter(|&i| scores[i as usize] > 0.0));
            linked.sort_by(|&a, &b| {
                let (a, b) = (a as usize, b as usize);
                scores[b].total_cmp(&scores[a]).then(self.counts[b].cmp(&self.counts[a]))
            });
        }
        let excluded = |item: u32| self.baseline == Baseline::Cooccurrence && history.contains(&item);

        let mut ranking = Vec::with_capacity(k.min(items));
        let mut listed = vec![false; items];
        for &item in linked.iter().chain(&self.popular) {
            if ranking.len() == k {
                break;
            }
            let twin = self.twin[item as usize] as usize;
            if !excluded(item) && !listed[twin] {
                listed[twin] = true;
                ranking.push(item);
            }
        }
        ranking
    }
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
        let expected: [&[(u32, f64)]; 2] = [&[(1, 1.0), (2, two)], &[(0, 0.5), (2, 1.0), (3, 0.5)]];
        for (links, expected) in ranker.links.iter().zip(expected) {
            assert_eq!(links.len(), expected.len());
            for (link, wanted) in links.iter().zip(expected) {
                assert_eq!(link.0, wanted.0);
                assert!((link.1 - wanted.1).abs() < 1e-12);
            }
        }
        assert_eq!(ranker.degrees[..2], [2, 3]);
        let scores = ranker.scores(&[0, 1]);
        let expected = [0.0, 0.0, 1.0 / 3f64.powf(0.4) + 0.75 * two / 2f64.powf(0.4), 0.5 / 3f64.powf(0.4), 0.0, 0.0];
        scores.iter().zip(expected).for_each(|(score, wanted)| assert!((score - wanted).abs() < 1e-12));
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
                for baseline in [Baseline::Markov, Baseline::Cooccurrence] {
                    let expected = fit(baseline, &before).scores(all.history(window));
                    let found = fit(baseline, &all).scores_before_target(&all, window);
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() < 1e-9, "{baseline}: {found} instead of {expected}");
                        assert_eq!(*found == 0.0, *expected == 0.0);
                    }
                }
            }
        }
        // Popularity: the user's interactions from the target on are not counted.
        let corpus = corpus(&[&[0, 1, 2, 1], &[1, 3]], 3);
        let window = corpus.windows(Split::Train)[0];
        let scores = fit(Baseline::Popularity, &corpus).scores_before_target(&corpus, &window);
        assert_eq!(scores, [1.0, 2.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn names() {
        assert_eq!("als".parse::<Baseline>().unwrap_err().exit_code(), 2);
        assert_eq!(Baseline::Cooccurrence.to_string().parse(), Ok(Baseline::Cooccurrence));
    }
}
