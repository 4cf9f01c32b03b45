//! A few users: what they bought, what came next, and what every row recommended.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use polars::prelude::{ParquetReader, SerReader};

use crate::data::{Corpus, Manifest};
use crate::experiment::{ExperimentReport, RunResult, Status};
use crate::run::dir;
use crate::{Context, Result};

/// Users that are shown.
const USERS: usize = 4;
/// Items of a list that are shown.
const TOP: u32 = 5;
/// Items of a history that are shown, the latest.
const HISTORY: usize = 12;

/// A user of a ranked window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ExampleUser {
    /// The source's id.
    pub user: String,
    /// Titles of the latest items, oldest first.
    pub history: Vec<String>,
    /// Title of the item that came next.
    pub target: String,
    /// The first items of each row's list, of the row's first run.
    pub tops: Vec<(String, Vec<String>)>,
}

/// Returns users from windows that are spread evenly over the ranked ones; none where the corpus of
/// the runs is not there any more, or no list was kept.
///
/// # Errors
/// A corpus or a file of lists that cannot be read.
pub(super) fn example_users(root: &Path, report: &ExperimentReport) -> Result<Vec<ExampleUser>> {
    let done = |run: &&RunResult| run.status == Status::Done;
    let Some(corpus) = open_corpus(root, report)? else { return Ok(Vec::new()) };
    let file = format!("lists-{}.parquet", report.split);
    let mut lists = Vec::new();
    for row in report.rows() {
        let Some(run) = row.runs.iter().find(done) else { continue };
        let path = root.join(&run.dir).join(&file);
        if path.exists() {
            lists.push((&row.name, read_lists(&path)?));
        }
    }
    let windows = corpus.windows(report.split);
    let ranked: Vec<u32> = lists.first().map_or(Vec::new(), |(_, lists)| lists.keys().copied().collect());
    let shown = ranked.iter().step_by(ranked.len().div_ceil(USERS).max(1)).take(USERS);
    let title = |item: u32| match (item as usize) < corpus.items.len() {
        true => corpus.title(item).to_string(),
        false => format!("item {item}"),
    };
    let user = |&index: &u32| {
        let window = windows.get(index as usize)?;
        let history = corpus.history(window);
        let top = |items: &Vec<u32>| items.iter().map(|&item| title(item)).collect();
        Some(ExampleUser {
            user: corpus.user_id(window.user).to_string(),
            history: history[history.len().saturating_sub(HISTORY)..].iter().map(|&item| title(item)).collect(),
            target: title(corpus.target(window)),
            tops: lists.iter().filter_map(|(name, lists)| Some((name.to_string(), top(lists.get(&index)?)))).collect(),
        })
    };
    Ok(shown.filter_map(user).collect())
}

/// Opens the corpus of the first run that is done, if it is still what the run was made of.
fn open_corpus(root: &Path, report: &ExperimentReport) -> Result<Option<Corpus>> {
    let runs = report.cells.iter().flat_map(|row| &row.runs).filter(|run| run.status == Status::Done);
    for run in runs {
        let folder = root.join(&run.dir);
        if !dir::is_run(&folder) {
            continue;
        }
        let config = dir::read_config(&folder)?;
        let path = Path::new(&config.data.corpus);
        return match Manifest::digest(path) {
            Ok(digest) if digest == run.corpus => Corpus::open(path).map(Some),
            _ => Ok(None),
        };
    }
    Ok(None)
}

/// Reads the first items of each window's list: `lists-<split>.parquet`.
fn read_lists(path: &Path) -> Result<BTreeMap<u32, Vec<u32>>> {
    let bytes = fs::read(path).context(path.display())?;
    let frame = ParquetReader::new(Cursor::new(bytes)).finish().context(path.display())?;
    let column = |name: &str| frame.column(name).and_then(|column| column.u32()).context(path.display());
    let (windows, ranks, items) = (column("window")?, column("rank")?, column("item")?);
    let mut lists: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for ((window, rank), item) in windows.iter().zip(ranks.iter()).zip(items.iter()) {
        if let (Some(window), Some(0..TOP), Some(item)) = (window, rank, item) {
            lists.entry(window).or_default().push(item);
        }
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, synthetic};
    use crate::evaluate::{Outcome, RankedList, RankedSplit, write_lists};

    #[test]
    fn the_first_items_are_read() {
        let (corpus, _) = synthetic(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lists.parquet");
        let outcome = |window| Outcome { window, user: 0, target: 0, cold: false, rank: None };
        let list = |first: u32| RankedList { items: (first..first + 7).collect(), scores: vec![0.5; 7] };
        assert!(corpus.windows(Split::Test).len() > 9);
        let ranked = RankedSplit { outcomes: vec![outcome(9), outcome(3)], lists: vec![list(0), list(20)] };
        write_lists(&path, &ranked).unwrap();
        let lists = read_lists(&path).unwrap();
        assert_eq!(lists, BTreeMap::from([(3, vec![20, 21, 22, 23, 24]), (9, vec![0, 1, 2, 3, 4])]));
    }
}
