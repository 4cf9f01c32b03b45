//! Counts what a reader of results must know of a split: cold targets, new users, and training on
//! what came later.

use std::path::Path;

use polars::prelude::{DataFrame, col};

use crate::data::Split;
use crate::data::corpus::{INTERACTIONS, windows_file};
use crate::data::progress::check_stop;
use crate::data::sharded_table::{collect, scan, u32s};
use crate::{Context, Result};

/// 1990-01-01, Unix seconds: no log of events on the web is older.
const YEAR_1990: i64 = 631_152_000;
/// Number of rows read at a time.
const BATCH: usize = 1 << 18;

/// The counts of [`audit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Audit {
    /// Test windows whose target is in no training window.
    pub(super) cold_test_targets: usize,
    /// Users with a test window but no training window.
    pub(super) new_test_users: usize,
    /// Users with a test window.
    pub(super) test_users: usize,
    /// Training windows whose target is later than the earliest test target.
    pub(super) late_train_targets: usize,
    /// Interactions that are earlier than the one before them in a user's sequence.
    pub(super) out_of_order: usize,
    /// Interactions before 1990.
    pub(super) early: usize,
    /// Time of the earliest interaction before 1990, Unix seconds.
    pub(super) earliest: Option<i64>,
}

/// Reads the tables of a written corpus once, a batch at a time.
pub(super) fn audit(dir: &Path, interactions: usize, items: usize) -> Result<Audit> {
    let mut found = Audit::default();
    let mut trained = Bits::new(interactions);
    let mut tested = Bits::new(interactions);
    let mut earliest_test = i64::MAX;
    batches(&dir.join(windows_file(Split::Test)), &["start", "len", "timestamp"], |frame| {
        let times = times(frame)?;
        earliest_test = times.iter().flatten().copied().fold(earliest_test, i64::min);
        for (start, len) in u32s(frame, "start")?.into_iter().zip(u32s(frame, "len")?) {
            tested.set((start + len - 1) as usize);
        }
        Ok(())
    })?;
    batches(&dir.join(windows_file(Split::Train)), &["start", "len", "timestamp"], |frame| {
        found.late_train_targets += times(frame)?.iter().flatten().filter(|time| **time > earliest_test).count();
        for (start, len) in u32s(frame, "start")?.into_iter().zip(u32s(frame, "len")?) {
            (start..start + len).for_each(|row| trained.set(row as usize));
        }
        Ok(())
    })?;

    let mut known = vec![false; items];
    let mut targets = vec![0u32; items];
    let (mut row, mut last) = (0, None);
    let mut user = (u32::MAX, false, false);
    let mut close = |(_, trains, tests): (u32, bool, bool)| {
        found.test_users += usize::from(tests);
        found.new_test_users += usize::from(tests && !trains);
    };
    batches(&dir.join(INTERACTIONS), &["user", "item", "timestamp"], |frame| {
        let rows = u32s(frame, "user")?.into_iter().zip(u32s(frame, "item")?).zip(times(frame)?);
        for ((who, item), time) in rows {
            if who != user.0 {
                close(user);
                user = (who, false, false);
                last = None;
            }
            found.out_of_order += usize::from(last.zip(time).is_some_and(|(last, time)| time < last));
            last = time.or(last);
            if let Some(time) = time.filter(|time| *time < YEAR_1990) {
                found.early += 1;
                found.earliest = Some(found.earliest.map_or(time, |earliest| earliest.min(time)));
            }
            if trained.get(row) {
                known[item as usize] = true;
                user.1 = true;
            }
            if tested.get(row) {
                targets[item as usize] += 1;
                user.2 = true;
            }
            row += 1;
        }
        Ok(())
    })?;
    close(user);
    found.cold_test_targets = targets.iter().zip(&known).filter(|(_, known)| !**known).map(|(n, _)| *n as usize).sum();
    Ok(found)
}

fn times(frame: &DataFrame) -> Result<Vec<Option<i64>>> {
    Ok(frame.column("timestamp").context("timestamp")?.i64().context("timestamp")?.iter().collect())
}

fn batches(path: &Path, columns: &[&str], mut each: impl FnMut(&DataFrame) -> Result<()>) -> Result<()> {
    for start in (0..).step_by(BATCH) {
        check_stop()?;
        let frame = collect(
            scan(path)?.slice(start, BATCH as u32).select(columns.iter().map(|name| col(*name)).collect::<Vec<_>>()),
        )?;
        each(&frame)?;
        if frame.height() < BATCH {
            break;
        }
    }
    Ok(())
}

struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn set(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    fn get(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
}
