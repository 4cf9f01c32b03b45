//! The event log on its way from raw files to a corpus: columns of dense numbers in data frames, in
//! memory or, where they would take more than their share of it, in temporary Parquet files.

use polars::prelude::{BooleanChunked, Column, DataFrame, LazyFrame, NewChunkedArray, col};

use super::interner::{Interner, StringArena};
use super::progress::check_stop;
use super::sharded_table::{PIECE, ShardedTable, Workspace, collect, f32s, i64s, u32s};
use crate::{Context, Result};

/// Bytes of an event in the log's columns.
pub(crate) const EVENT_BYTES: u64 = 20;

/// Events that a reader has parsed: users, items, times and ratings.
#[derive(Default)]
pub(crate) struct Events {
    pub(crate) users: StringArena,
    pub(crate) items: StringArena,
    /// Unix times, milliseconds; 0 where the source has none.
    pub(crate) times: Vec<i64>,
    /// Ratings; NaN where the source has none.
    pub(crate) ratings: Vec<f32>,
}

impl Events {
    pub(crate) fn push(&mut self, user: &str, item: &str, time: i64, rating: f32) {
        self.users.push(user);
        self.items.push(item);
        self.times.push(time);
        self.ratings.push(rating);
    }
}

/// A log of events in the order of its source, in shards by user that each fit the memory.
pub(crate) struct EventLog {
    pub(crate) users: Interner,
    pub(crate) items: Interner,
    /// Whether the source has times; else each user's events are in their order.
    pub(crate) timed: bool,
    /// Whether the source has ratings.
    pub(crate) rated: bool,
    pub(crate) shards: ShardedTable,
    scatter: ShardWriter,
    workspace: Workspace,
}

impl EventLog {
    /// Makes a log for about `events` events, or fewer, under the workspace's memory limit.
    pub(crate) fn new(events: u64, workspace: &Workspace, timed: bool, rated: bool) -> Result<Self> {
        let shards = ShardedTable::new(events, EVENT_BYTES, workspace)?;
        let scatter = ShardWriter::new(shards.len(), rated);
        let (users, items) = (Interner::default(), Interner::default());
        Ok(Self { users, items, timed, rated, shards, scatter, workspace: workspace.clone() })
    }

    /// Adds events to the end of the log.
    pub(crate) fn append(&mut self, events: &Events) -> Result<()> {
        self.append_numbered(events).map(drop)
    }

    /// Adds events to the end of the log; returns the numbers of their items.
    pub(crate) fn append_numbered(&mut self, events: &Events) -> Result<Vec<u32>> {
        let (users, items) =
            rayon::join(|| self.users.intern_all(&events.users), || self.items.intern_all(&events.items));
        let items = items?;
        self.scatter(&users?, &items, &events.times, &events.ratings)?;
        self.make_room()?;
        Ok(items)
    }

    fn scatter(&mut self, users: &[u32], items: &[u32], times: &[i64], ratings: &[f32]) -> Result<()> {
        let shards = self.shards.len() as u32;
        for (((&user, &item), &time), &rating) in users.iter().zip(items).zip(times).zip(ratings) {
            self.scatter.push((user % shards) as usize, user, item, time, rating);
        }
        self.scatter.flush_if_full(&mut self.shards)
    }

    /// Ends the log: no more events follow.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.scatter.flush(&mut self.shards)?;
        self.make_room()?;
        self.shards.close()
    }

    /// Moves a log that has outgrown its shards to shards for four times as many events.
    fn make_room(&mut self) -> Result<()> {
        let rows = self.shards.rows() as u64;
        if rows <= self.shards.room {
            return Ok(());
        }
        let mut old = ShardedTable::new(rows.saturating_mul(4), EVENT_BYTES, &self.workspace)?;
        std::mem::swap(&mut old, &mut self.shards);
        old.close()?;
        self.scatter = ShardWriter::new(self.shards.len(), self.rated);
        for shard in 0..old.len() {
            let frame = old.take(shard)?;
            for from in (0..frame.height()).step_by(PIECE as usize) {
                check_stop()?;
                let piece = frame.slice(from as i64, PIECE as usize);
                let (users, items, times) = (u32s(&piece, "user")?, u32s(&piece, "item")?, i64s(&piece, "time")?);
                let ratings = if self.rated { f32s(&piece, "rating")? } else { vec![f32::NAN; users.len()] };
                self.scatter(&users, &items, &times, &ratings)?;
            }
        }
        self.scatter.flush(&mut self.shards)
    }

    /// Calls `each` with the users and items of all events, shard by shard.
    pub(crate) fn pairs(&self, mut each: impl FnMut(u32, u32)) -> Result<()> {
        for shard in 0..self.shards.len() {
            check_stop()?;
            let frame = collect(self.shards.lazy(shard)?.select([col("user"), col("item")]))?;
            let (users, items) = (u32s(&frame, "user")?, u32s(&frame, "item")?);
            users.into_iter().zip(items).for_each(|(user, item)| each(user, item));
        }
        Ok(())
    }

    /// Keeps the events for which `keep`, given user and item, is true.
    pub(crate) fn retain(&mut self, keep: impl Fn(u32, u32) -> bool) -> Result<()> {
        for shard in 0..self.shards.len() {
            check_stop()?;
            let frame = collect(self.shards.lazy(shard)?)?;
            let pairs = u32s(&frame, "user")?.into_iter().zip(u32s(&frame, "item")?);
            let mask: Vec<bool> = pairs.map(|(user, item)| keep(user, item)).collect();
            if mask.iter().all(|keep| *keep) {
                continue;
            }
            let mask = BooleanChunked::from_slice("keep".into(), &mask);
            self.shards.replace(shard, frame.filter(&mask).context("event log")?)?;
        }
        Ok(())
    }

    /// Runs a query over each shard in place.
    pub(crate) fn transform(&mut self, query: impl Fn(LazyFrame) -> LazyFrame) -> Result<()> {
        for shard in 0..self.shards.len() {
            check_stop()?;
            let frame = collect(query(self.shards.lazy(shard)?))?;
            self.shards.replace(shard, frame)?;
        }
        Ok(())
    }
}

/// Events on their way into shards.
pub(crate) struct ShardWriter {
    pending: Vec<Columns>,
    rows: usize,
    rated: bool,
}

#[derive(Default)]
struct Columns {
    user: Vec<u32>,
    item: Vec<u32>,
    time: Vec<i64>,
    rating: Vec<f32>,
}

impl ShardWriter {
    pub(crate) fn new(shards: usize, rated: bool) -> Self {
        let mut pending = Vec::new();
        pending.resize_with(shards, Columns::default);
        Self { pending, rows: 0, rated }
    }

    pub(crate) fn push(&mut self, at: usize, user: u32, item: u32, time: i64, rating: f32) {
        if let Some(columns) = self.pending.get_mut(at) {
            columns.user.push(user);
            columns.item.push(item);
            columns.time.push(time);
            if self.rated {
                columns.rating.push(rating);
            }
            self.rows += 1;
        }
    }

    pub(crate) fn flush_if_full(&mut self, shards: &mut ShardedTable) -> Result<()> {
        if self.rows as u64 >= PIECE { self.flush(shards) } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self, shards: &mut ShardedTable) -> Result<()> {
        self.rows = 0;
        for (at, pending) in self.pending.iter_mut().enumerate() {
            let columns = std::mem::take(pending);
            let mut frame = vec![
                Column::new("user".into(), columns.user),
                Column::new("item".into(), columns.item),
                Column::new("time".into(), columns.time),
            ];
            if self.rated {
                frame.push(Column::new("rating".into(), columns.rating));
            }
            shards.append(at, DataFrame::new_infer_height(frame).context("event log")?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sharded_table::SHARE;

    /// Users with their items and times, in order, of a log said to have `expected` events.
    fn sequences(expected: u64, memory: u64) -> (EventLog, Vec<Vec<(u32, i64)>>) {
        let workspace = Workspace { memory, scratch: std::env::temp_dir() };
        let mut log = EventLog::new(expected, &workspace, true, false).unwrap();
        for block in 0..12 {
            let mut events = Events::default();
            for n in 0..100_000i64 {
                events.push(&(n * 7919 % 1009 + block).to_string(), &(n % 97).to_string(), n / 10 + block, f32::NAN);
            }
            log.append(&events).unwrap();
        }
        log.finish().unwrap();
        let mut sequences = vec![Vec::new(); log.users.len()];
        for shard in 0..log.shards.len() {
            let frame = collect(log.shards.lazy(shard).unwrap()).unwrap();
            let events = u32s(&frame, "item").unwrap().into_iter().zip(i64s(&frame, "time").unwrap());
            for (user, event) in u32s(&frame, "user").unwrap().into_iter().zip(events) {
                sequences[user as usize].push(event);
            }
        }
        (log, sequences)
    }

    /// A well compressed file holds far more than its size lets expect.
    #[test]
    fn more_events_than_expected_go_to_files() {
        let (log, whole) = sequences(1_200_000, 1 << 30);
        assert!(log.shards.folder.is_none());
        for expected in [1, 300_000] {
            let memory = 1 << 24;
            let (log, found) = sequences(expected, memory);
            assert!(log.shards.folder.is_some() && log.shards.rows() == 1_200_000);
            let largest = log.shards.shards.iter().map(|shard| shard.rows as u64).max().unwrap();
            assert!(largest * EVENT_BYTES < memory / SHARE, "{largest}");
            assert!(found == whole, "{expected}");
        }
    }
}
