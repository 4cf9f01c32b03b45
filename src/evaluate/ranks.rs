//! `ranks-<split>.parquet`: the rank of every window's target.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use polars::prelude::{Column, ParquetReader, SerReader};

use super::metrics::Outcome;
use crate::core::files;
use crate::data::{Corpus, parquet_bytes};
use crate::{Context, Error, Result};

/// A row of `ranks-<split>.parquet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedWindow {
    /// Index in the split's windows.
    pub window: u32,
    /// The user's id in the source.
    pub user: String,
    /// Title of the target.
    pub target: String,
    /// Whether the target is in no training window.
    pub cold: bool,
    /// 0-based rank of the target's title; `None` if it was not returned.
    pub rank: Option<u32>,
}

/// Writes one row a window, in the outcomes' order, as Parquet: `window` u32, `user_id`, `target`
/// (its title), `cold`, `rank` (u32 from 0, null if not returned); `task` and `prompt` as well
/// where `by` has them for each outcome.
///
/// # Errors
/// A file that cannot be written.
pub fn write_ranks(path: &Path, outcomes: &[Outcome], by: &[(String, String)], corpus: &Corpus) -> Result<()> {
    let windows: Vec<u32> = outcomes.iter().map(|o| o.window).collect();
    let users: Vec<&str> = outcomes.iter().map(|o| corpus.user_id(o.user)).collect();
    let targets: Vec<&str> = outcomes.iter().map(|o| corpus.title(o.target)).collect();
    let cold: Vec<bool> = outcomes.iter().map(|o| o.cold).collect();
    let ranks: Vec<Option<u32>> = outcomes.iter().map(|o| o.rank).collect();
    let mut columns = vec![
        Column::new("window".into(), windows),
        Column::new("user_id".into(), users),
        Column::new("target".into(), targets),
        Column::new("cold".into(), cold),
        Column::new("rank".into(), ranks),
    ];
    if !by.is_empty() {
        let (tasks, prompts): (Vec<&str>, Vec<&str>) =
            by.iter().map(|(task, prompt)| (task.as_str(), prompt.as_str())).unzip();
        columns.push(Column::new("task".into(), tasks));
        columns.push(Column::new("prompt".into(), prompts));
    }
    files::write_atomic(path, &parquet_bytes(columns)?)
}

/// Reads the file that [`write_ranks`] wrote; of several prompts only the rows of the first, by
/// which `evaluate` states its metrics.
///
/// # Errors
/// A file that cannot be read, a column that it lacks, or a null in one.
pub fn read_ranks(path: &Path) -> Result<Vec<RankedWindow>> {
    let place = path.display();
    let bytes = fs::read(path).context(place)?;
    let frame = ParquetReader::new(Cursor::new(bytes)).finish().context(path.display())?;
    let column = |name: &str| frame.column(name).context(path.display());
    let null = |row: usize, name: &str| Error::failed(format!("{}: row {row}: {name} is null", path.display()));
    let windows = column("window")?.u32().context(path.display())?;
    let users = column("user_id")?.str().context(path.display())?;
    let targets = column("target")?.str().context(path.display())?;
    let cold = column("cold")?.bool().context(path.display())?;
    let ranks = column("rank")?.u32().context(path.display())?;
    let by = ["task", "prompt"].map(|name| frame.column(name).ok().and_then(|column| column.str().ok()));
    let mut rows = Vec::with_capacity(windows.len());
    for row in 0..windows.len() {
        if by.iter().flatten().any(|names| names.get(row) != names.get(0)) {
            continue;
        }
        rows.push(RankedWindow {
            window: windows.get(row).ok_or_else(|| null(row, "window"))?,
            user: users.get(row).ok_or_else(|| null(row, "user_id"))?.to_string(),
            target: targets.get(row).ok_or_else(|| null(row, "target"))?.to_string(),
            cold: cold.get(row).ok_or_else(|| null(row, "cold"))?,
            rank: ranks.get(row),
        });
    }
    Ok(rows)
}

/// Returns how the windows of two rankings differ; `None` where both have the same windows, users
/// and targets in the same order.
pub fn different_windows(a: &[RankedWindow], b: &[RankedWindow]) -> Option<String> {
    if a.len() != b.len() {
        return Some(format!("{} windows and {}", a.len(), b.len()));
    }
    let key = |row: &RankedWindow| (row.window, row.user.clone(), row.target.clone(), row.cold);
    let (a, b) = a.iter().zip(b).map(|(a, b)| (key(a), key(b))).find(|(a, b)| a != b)?;
    let text = |(window, user, target, cold): (u32, String, String, bool)| {
        format!("window {window} of user {user} with the {} target {target:?}", if cold { "cold" } else { "warm" })
    };
    Some(format!("{}, and {}", text(a), text(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic;

    fn outcome(user: u32, cold: bool, rank: Option<u32>) -> Outcome {
        Outcome { window: user, user, target: 0, cold, rank }
    }

    #[test]
    fn ranks_are_read_as_written() {
        let (corpus, _) = synthetic(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranks.parquet");
        let outcomes = [outcome(2, true, Some(3)), outcome(1, false, None)];
        let row = |outcome: &Outcome| RankedWindow {
            window: outcome.window,
            user: corpus.user_id(outcome.user).into(),
            target: corpus.title(0).into(),
            cold: outcome.cold,
            rank: outcome.rank,
        };
        write_ranks(&path, &outcomes, &[], &corpus).unwrap();
        assert_eq!(read_ranks(&path).unwrap(), outcomes.each_ref().map(row));
        // Of two prompts, the first.
        let by = ["seen:0", "unseen"].map(|prompt| ("sequential".to_string(), prompt.to_string()));
        write_ranks(&path, &outcomes, &by, &corpus).unwrap();
        assert_eq!(read_ranks(&path).unwrap(), [row(&outcomes[0])]);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(read_ranks(&path).unwrap_err().to_string().contains("ranks.parquet"));
    }

    #[test]
    fn different_windows_are_named() {
        let row = |window, user: &str| RankedWindow {
            window,
            user: user.into(),
            target: "Pen".into(),
            cold: false,
            rank: None,
        };
        let a = [row(0, "u"), row(1, "v")];
        assert_eq!(different_windows(&a, &a.clone().map(|r| RankedWindow { rank: Some(1), ..r })), None);
        assert_eq!(different_windows(&a, &a[..1]).unwrap(), "2 windows and 1");
        let different = different_windows(&a, &[row(0, "u"), row(2, "w")]).unwrap();
        assert!(different.contains("window 1 of user v") && different.contains("window 2 of user w"), "{different}");
    }
}
