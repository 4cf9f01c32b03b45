//! The lists of items that windows are answered with, and what they say beside their hits.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::Column;
use serde::{Deserialize, Serialize};

use super::metric::Metric;
use super::metrics::Outcome;
use crate::Result;
use crate::core::files;
use crate::data::{Corpus, Split, parquet_bytes};
use crate::rankers::{Interactions, Tfidf, first_with_same_title};

/// Longest terms of the titles' TF-IDF vectors, in words: the default of the ranker `text`.
const NGRAMS: usize = 2;

/// Shortest histories of the groups of [`HistoryGroup`]; a group ends before the next begins.
const HISTORY_GROUPS: [usize; 7] = [1, 2, 4, 7, 11, 21, 51];

/// The ranked items of a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankedList {
    /// Dense item indices, best first; each title once.
    pub items: Vec<u32>,
    /// The score by which each item was ranked.
    pub scores: Vec<f64>,
}

/// A ranked split: the outcome and the list of each window, in the same order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankedSplit {
    /// `[windows]`
    pub outcomes: Vec<Outcome>,
    /// `[windows]`
    pub lists: Vec<RankedList>,
}

/// Measures of the lists, and the metrics by the length of the history. They serialise to keys of
/// `evaluate --json`; flatten them into the document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListReport {
    /// `coverage@10`, `gini@10`, `popularity@10`, `novelty@10`, `similarity@10`, … ([`measure`]).
    pub list_metrics: BTreeMap<String, f64>,
    /// The metrics by the length of the history, the shortest first; groups without windows are
    /// left out.
    pub by_history: Vec<HistoryGroup>,
}

/// The metrics of the windows whose histories have these lengths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryGroup {
    /// Fewest items of a history of the group.
    pub from: usize,
    /// Most items; null in the last group.
    pub to: Option<usize>,
    /// Number of windows.
    pub users: usize,
    /// `ndcg@10`, `hr@10` (which equals recall@10), `mrr@10`, …
    pub metrics: BTreeMap<String, f64>,
}

/// Facts about a corpus for the measures of lists.
struct Items {
    /// `[items]`: the first item of the same title.
    first: Vec<u32>,
    /// `[items]`: training interactions of all items of the title, at the title's first item.
    counts: Vec<u32>,
    /// Number of titles.
    titles: usize,
    /// Training interactions of all items.
    interactions: f64,
    vectors: Tfidf,
}

impl Items {
    fn new(corpus: &Corpus) -> Result<Self> {
        let first = first_with_same_title(corpus);
        let mut counts = vec![0; first.len()];
        for (count, &title) in Interactions::counts(corpus).into_iter().zip(&first) {
            counts[title as usize] += count;
        }
        let titles = (0..).zip(&first).filter(|(item, title)| item == *title).count();
        let interactions = counts.iter().map(|&count| f64::from(count)).sum();
        let vectors = Tfidf::new(corpus.items.iter().map(|item| item.title.as_str()), NGRAMS)?;
        Ok(Self { first, counts, titles, interactions, vectors })
    }

    /// Returns the measures at k, by name.
    fn measure(&self, lists: &[RankedList], k: usize) -> Vec<(String, f64)> {
        let mut recommended = vec![0u32; self.first.len()];
        let (mut popularity, mut novelty, mut similarity) = (Mean::default(), Mean::default(), Mean::default());
        for list in lists.iter().filter(|list| !list.items.is_empty()) {
            let items: Vec<u32> = list.items.iter().take(k).map(|&item| self.first[item as usize]).collect();
            items.iter().for_each(|&item| recommended[item as usize] += 1);
            let counts = || items.iter().map(|&item| f64::from(self.counts[item as usize]));
            let share = |count: f64| (count + 1.0) / (self.interactions + self.titles as f64);
            popularity.add(counts().sum::<f64>() / items.len() as f64);
            novelty.add(counts().map(|count| -share(count).log2()).sum::<f64>() / items.len() as f64);
            if items.len() > 1 {
                let pairs = (1..items.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
                let total: f64 = pairs.map(|(a, b)| self.vectors.cosine(items[a], items[b])).sum();
                similarity.add(total / (items.len() * (items.len() - 1) / 2) as f64);
            }
        }
        let covered = recommended.iter().filter(|&&count| count > 0).count();
        let mut measures = vec![("coverage", Some(covered as f64 / self.titles as f64))];
        let of_titles = (0..).zip(&self.first).filter(|(item, title)| item == *title);
        measures.push(("gini", gini(of_titles.map(|(item, _): (u32, _)| recommended[item as usize]).collect())));
        measures.push(("popularity", popularity.value()));
        measures.push(("novelty", novelty.value()));
        measures.push(("similarity", similarity.value()));
        measures.into_iter().filter_map(|(name, value)| Some((format!("{name}@{k}"), value?))).collect()
    }
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Returns the Gini index of numbers of at least 0; `None` where all are 0.
fn gini(mut counts: Vec<u32>) -> Option<f64> {
    counts.sort_unstable();
    let n = counts.len() as f64;
    let total: f64 = counts.iter().map(|&count| f64::from(count)).sum();
    let weighted = counts.iter().enumerate().map(|(i, &count)| (2.0 * (i as f64 + 1.0) - n - 1.0) * f64::from(count));
    (total > 0.0).then(|| weighted.sum::<f64>() / (n * total))
}

/// Measures the lists of a split at each cutoff, and the metrics by the length of the history.
///
/// Items of one title count as one. With R_w the first k items of window w's list (all of a shorter
/// one), W the windows with a list, I the titles of the catalogue, c_i the training interactions of
/// title i, n_i the number of lists with i, ascending n_(1) ≤ n_(2) ≤ …, and v_i the TF-IDF vector
/// of title i (words and pairs of words, as scikit-learn's):
///
/// ```text
/// coverage@k   = |∪ R_w| / |I|                                      RecBole's ItemCoverage
/// gini@k       = Σ_j (2 j - |I| - 1) n_(j) / (|I| Σ_j n_(j))        RecBole's GiniIndex
/// popularity@k = 1/|W| Σ_w 1/|R_w| Σ_{i ∈ R_w} c_i                  RecBole's AveragePopularity
/// novelty@k    = 1/|W| Σ_w 1/|R_w| Σ_{i ∈ R_w} -log2 p_i,  p_i = (c_i + 1) / (Σ_j c_j + |I|)
/// similarity@k = 1/|W| Σ_w mean over i < j of R_w of cos(v_i, v_j)  intra-list similarity
/// ```
///
/// gini is 0 where all titles are recommended equally often and nears 1 where one is always.
/// Novelty is mean self-information (Zhou et al. 2010, Vargas and Castells 2011), in bits; the + 1
/// gives cold items a share. Intra-list similarity is Ziegler et al.'s (2005), as a mean over
/// pairs; lists of one item have none.
///
/// # Errors
/// Those of the titles' vectors.
pub fn measure(ranked: &RankedSplit, corpus: &Corpus, split: Split, cutoffs: &[u32]) -> Result<ListReport> {
    let items = Items::new(corpus)?;
    let list_metrics = cutoffs.iter().flat_map(|&k| items.measure(&ranked.lists, k as usize)).collect();
    let windows = corpus.windows(split);
    let length = |outcome: &Outcome| windows.get(outcome.window as usize).map_or(0, |w| corpus.history(w).len());
    let metrics = Metric::all(cutoffs);
    let groups = HISTORY_GROUPS.iter().enumerate().filter_map(|(n, &from)| {
        let to = HISTORY_GROUPS.get(n + 1).map(|next| next - 1);
        let in_group = |outcome: &&Outcome| (from..=to.unwrap_or(usize::MAX)).contains(&length(outcome));
        let outcomes: Vec<&Outcome> = ranked.outcomes.iter().filter(in_group).collect();
        let mean = |metric: &Metric| {
            let total: f64 = outcomes.iter().map(|outcome| metric.value(outcome.rank)).sum();
            (metric.to_string(), total / outcomes.len() as f64)
        };
        (!outcomes.is_empty()).then(|| HistoryGroup {
            from,
            to,
            users: outcomes.len(),
            metrics: metrics.iter().map(mean).collect(),
        })
    });
    Ok(ListReport { list_metrics, by_history: groups.collect() })
}

/// Writes one row an item of a list, in the windows' order, best first, as Parquet: `window` u32
/// (index in the split), `rank` u32 (from 0), `item` u32 (index in `items.parquet`), `score` f64.
///
/// # Errors
/// A file that cannot be written.
pub fn write_lists(path: &Path, ranked: &RankedSplit) -> Result<()> {
    let rows = || {
        let of_window = |(outcome, list): (&Outcome, &'_ RankedList)| {
            let window = outcome.window;
            (0..list.items.len()).map(move |rank| (window, rank)).collect::<Vec<_>>()
        };
        ranked.outcomes.iter().zip(&ranked.lists).flat_map(of_window)
    };
    let columns = vec![
        Column::new("window".into(), rows().map(|(window, _)| window).collect::<Vec<u32>>()),
        Column::new("rank".into(), rows().map(|(_, rank)| rank as u32).collect::<Vec<u32>>()),
        Column::new("item".into(), ranked.lists.iter().flat_map(|list| list.items.clone()).collect::<Vec<u32>>()),
        Column::new("score".into(), ranked.lists.iter().flat_map(|list| list.scores.clone()).collect::<Vec<f64>>()),
    ];
    files::write_atomic(path, &parquet_bytes(columns)?)
}

#[cfg(test)]
mod tests {
    use polars::prelude::{ParquetReader, SerReader};

    use super::*;
    use crate::data::{Item, UserLog, Window};

    /// Five items, of which the last has the title of the second. Training windows hold items 0, 1,
    /// 2 of user u, so each has one interaction; v's test window has a history of 1, w's of 2.
    fn corpus() -> Corpus {
        let titles = ["red pen", "blue pen", "stapler", "green ink", "blue pen"];
        let items = titles.iter().zip(0..).map(|(title, id)| Item { id: format!("i{id}"), title: (*title).into() });
        let log = |id: &str, items: &[u32]| UserLog {
            id: id.into(),
            events: items.iter().map(|&item| (item, None)).collect(),
        };
        let users = vec![log("u", &[0, 1, 2]), log("v", &[0, 1]), log("w", &[2, 0, 3])];
        let window = |user, start, len| Window { user, start, len };
        let (train, test) = (vec![window(0, 0, 3)], vec![window(1, 3, 2), window(2, 5, 3)]);
        Corpus::new("c", items.collect(), users, train, Some(vec![]), test).unwrap()
    }

    fn ranked_split() -> RankedSplit {
        let outcome = |window, rank| Outcome { window, user: window + 1, target: 0, cold: false, rank };
        let list = |items: &[u32]| RankedList { items: items.into(), scores: vec![-0.5; items.len()] };
        RankedSplit { outcomes: vec![outcome(0, Some(1)), outcome(1, None)], lists: vec![list(&[0, 4]), list(&[0, 3])] }
    }

    #[test]
    fn measures_equal_the_hand_worked_numbers() {
        let corpus = corpus();
        let report = measure(&ranked_split(), &corpus, Split::Test, &[1, 2]).unwrap();
        let close = |name: &str, expected: f64| {
            let got = report.list_metrics[name];
            assert!((got - expected).abs() < 1e-6, "{name}: {got}, not {expected}");
        };
        // Four titles. At 1: title 0 twice. At 2: title 0 twice, 1 and 3 once, 2 never.
        close("coverage@1", 0.25);
        close("coverage@2", 0.75);
        // (2 · 4 - 5) · 2 / (4 · 2)
        close("gini@1", 0.75);
        // Sorted 0, 1, 1, 2: (-3 · 0 - 1 · 1 + 1 · 1 + 3 · 2) / (4 · 4)
        close("gini@2", 0.375);
        // Titles 0, 1, 2 have one training interaction, title 3 none.
        close("popularity@1", 1.0);
        close("popularity@2", (1.0 + 0.5) / 2.0);
        // p is 2/7, of title 3 1/7.
        let (seen, cold) = (3.5f64.log2(), 7f64.log2());
        close("novelty@1", seen);
        close("novelty@2", (seen + (seen + cold) / 2.0) / 2.0);
        // "red pen" has the terms red, pen, red pen; "blue pen" twice: df of pen is 3 of 5, of red
        // and red pen 1, of blue and blue pen 2. "green ink" shares no term.
        let idf = |df: f64| (6.0 / (1.0 + df)).ln() + 1.0;
        let length = |own: f64| (2.0 * idf(own).powi(2) + idf(3.0).powi(2)).sqrt();
        close("similarity@2", idf(3.0).powi(2) / (length(1.0) * length(2.0)) / 2.0);
        assert!(!report.list_metrics.contains_key("similarity@1"));

        let groups: Vec<_> = report.by_history.iter().map(|g| (g.from, g.to, g.users, g.metrics["hr@2"])).collect();
        assert_eq!(groups, [(1, Some(1), 1, 1.0), (2, Some(3), 1, 0.0)]);
        assert_eq!(report.by_history[0].metrics["mrr@2"], 0.5);
        let empty = measure(&RankedSplit::default(), &corpus, Split::Test, &[5]).unwrap();
        assert_eq!(empty.list_metrics, BTreeMap::from([("coverage@5".to_string(), 0.0)]));
        assert_eq!(gini(vec![2, 2, 2]), Some(0.0));
    }

    #[test]
    fn lists_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lists.parquet");
        write_lists(&path, &ranked_split()).unwrap();
        let frame = ParquetReader::new(std::fs::File::open(&path).unwrap()).finish().unwrap();
        let column = |name: &str| frame.column(name).unwrap().u32().unwrap().iter().flatten().collect::<Vec<u32>>();
        assert_eq!((column("window"), column("rank")), (vec![0, 0, 1, 1], vec![0, 1, 0, 1]));
        assert_eq!(column("item"), [0, 4, 0, 3]);
        assert_eq!(frame.column("score").unwrap().f64().unwrap().get(3), Some(-0.5));
    }
}
