//! The event log on its way from raw files to a corpus: columns of dense numbers in data frames, in
//! memory or, where they would take more than their share of it, in temporary Parquet files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{
    BooleanChunked, Column, DataFrame, Engine, IntoLazy, LazyFrame, NewChunkedArray, ParquetCompression, ParquetWriter,
    PlRefPath, ScanArgsParquet, col,
};
use tempfile::TempDir;

use super::ids::{Ids, Texts};
use super::progress::check_stop;
use super::sources::ReadOptions;
use crate::{Context, Error, Result};

/// Bytes of an event in the log's columns.
pub(crate) const EVENT_BYTES: u64 = 20;
/// Rows are worked on by about this many at a time.
pub(crate) const PIECE: u64 = 1 << 19;
/// A log may take this share of the memory before it goes to files.
const SHARE: u64 = 4;
/// No more open files than this.
const MAX_SHARDS: u64 = 256;

/// Who met what when, as a reader has parsed it.
#[derive(Default)]
pub(crate) struct Events {
    pub(crate) users: Texts,
    pub(crate) items: Texts,
    /// Unix time in milliseconds; 0 where the source knows none.
    pub(crate) times: Vec<i64>,
    /// NaN where the source knows none.
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
    pub(crate) users: Ids,
    pub(crate) items: Ids,
    /// Does the source tell times? Else events are in each user's order.
    pub(crate) timed: bool,
    /// Does the source tell ratings?
    pub(crate) rated: bool,
    pub(crate) shards: Shards,
    scatter: Scatter,
    memory: u64,
    scratch: PathBuf,
}

impl EventLog {
    /// A log of about `events` events or fewer under the options' memory limit.
    pub(crate) fn new(events: u64, options: &ReadOptions, timed: bool, rated: bool) -> Result<Self> {
        let shards = Shards::new(events, EVENT_BYTES, options.memory, &options.scratch)?;
        let scatter = Scatter::new(shards.len(), rated);
        let (users, items) = (Ids::default(), Ids::default());
        Ok(Self {
            users,
            items,
            timed,
            rated,
            shards,
            scatter,
            memory: options.memory,
            scratch: options.scratch.clone(),
        })
    }

    /// Adds events to the end of the log.
    pub(crate) fn append(&mut self, events: &Events) -> Result<()> {
        let number = |ids: &mut Ids, texts: &Texts| texts.iter().map(|t| ids.number(t)).collect::<Result<Vec<u32>>>();
        let (users, items) =
            rayon::join(|| number(&mut self.users, &events.users), || number(&mut self.items, &events.items));
        self.scatter(&users?, &items?, &events.times, &events.ratings)?;
        self.make_room()
    }

    fn scatter(&mut self, users: &[u32], items: &[u32], times: &[i64], ratings: &[f32]) -> Result<()> {
        let shards = self.shards.len() as u32;
        for (((&user, &item), &time), &rating) in users.iter().zip(items).zip(times).zip(ratings) {
            self.scatter.push((user % shards) as usize, user, item, time, rating);
        }
        self.scatter.flush_if_full(&mut self.shards)
    }

    /// No more events follow.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.scatter.flush(&mut self.shards)?;
        self.make_room()?;
        self.shards.close()
    }

    /// Cuts a log with more events than its shards are for into shards for four times as many.
    fn make_room(&mut self) -> Result<()> {
        let rows = self.shards.rows() as u64;
        if rows <= self.shards.room {
            return Ok(());
        }
        let mut old = Shards::new(rows.saturating_mul(4), EVENT_BYTES, self.memory, &self.scratch)?;
        std::mem::swap(&mut old, &mut self.shards);
        old.close()?;
        self.scatter = Scatter::new(self.shards.len(), self.rated);
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

    /// Leaves the events of which `keep` says so by user and item.
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
pub(crate) struct Scatter {
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

impl Scatter {
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

    pub(crate) fn flush_if_full(&mut self, shards: &mut Shards) -> Result<()> {
        if self.rows as u64 >= PIECE { self.flush(shards) } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self, shards: &mut Shards) -> Result<()> {
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

/// Runs a query on polars' streaming engine.
pub(crate) fn collect(query: LazyFrame) -> Result<DataFrame> {
    Ok(query.collect_with_engine(Engine::Streaming).context("polars")?.unwrap_single())
}

macro_rules! column_values {
    ($name:ident, $kind:ty, $cast:ident) => {
        /// A column's values; it has no nulls.
        pub(crate) fn $name(frame: &DataFrame, name: &str) -> Result<Vec<$kind>> {
            let column = frame.column(name).context("event log")?.$cast().context("event log")?;
            let mut values = Vec::with_capacity(column.len());
            column.downcast_iter().for_each(|chunk| values.extend_from_slice(chunk.values()));
            Ok(values)
        }
    };
}
column_values!(u32s, u32, u32);
column_values!(i64s, i64, i64);
column_values!(f32s, f32, f32);

/// A table in pieces, all of them in memory or all in temporary Parquet files.
pub(crate) struct Shards {
    folder: Option<TempDir>,
    shards: Vec<Shard>,
    /// So many rows keep to the memory.
    room: u64,
}

#[derive(Default)]
struct Shard {
    frame: DataFrame,
    file: Option<PathBuf>,
    rows: usize,
    writer: Option<BatchedWriter<File>>,
}

impl Shards {
    /// Pieces for `rows` rows or fewer, of so many bytes; if they take more than their share of the
    /// memory they are files in a temporary folder in `scratch`.
    pub(crate) fn new(rows: u64, bytes: u64, memory: u64, scratch: &Path) -> Result<Self> {
        let spilled = rows.saturating_mul(bytes) > memory / SHARE;
        // Sorting takes several times what is sorted.
        let piece = if spilled { (memory / SHARE / 16 / bytes).clamp(1, PIECE) } else { PIECE };
        let folder = if spilled {
            Some(tempfile::Builder::new().prefix(".itemlm-").tempdir_in(scratch).context(scratch.display())?)
        } else {
            None
        };
        let mut shards = Vec::new();
        let count = (rows / piece + 1).min(MAX_SHARDS);
        shards.resize_with(count as usize, Shard::default);
        let room = match (spilled, count) {
            (false, _) => memory / SHARE / bytes,
            (true, MAX_SHARDS) => u64::MAX,
            (true, count) => count * piece,
        };
        Ok(Self { folder, shards, room })
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }

    pub(crate) fn rows(&self) -> usize {
        self.shards.iter().map(|s| s.rows).sum()
    }

    /// Adds rows to a shard.
    pub(crate) fn append(&mut self, at: usize, frame: DataFrame) -> Result<()> {
        let name = self.folder.as_ref().map(|folder| folder.path().join(format!("{at}.parquet")));
        let Some(shard) = self.shards.get_mut(at) else { return Ok(()) };
        shard.rows += frame.height();
        let Some(path) = name else {
            if shard.frame.width() == 0 {
                shard.frame = frame;
            } else {
                shard.frame.vstack_mut(&frame).context("event log")?;
            }
            return Ok(());
        };
        if shard.writer.is_none() {
            shard.writer = Some(writer(&path, &frame)?);
            shard.file = Some(path);
        }
        if let Some(writer) = &mut shard.writer {
            writer.write_batch(&frame).context("temporary file")?;
        }
        Ok(())
    }

    /// Ends what is being written.
    pub(crate) fn close(&mut self) -> Result<()> {
        for shard in &mut self.shards {
            if let Some(writer) = shard.writer.take() {
                writer.finish().context("temporary file")?;
            }
        }
        Ok(())
    }

    /// A piece, which is then gone.
    pub(crate) fn take(&mut self, at: usize) -> Result<DataFrame> {
        let Some(shard) = self.shards.get_mut(at) else { return Ok(DataFrame::empty()) };
        let Some(path) = shard.file.take() else { return Ok(std::mem::take(&mut shard.frame)) };
        let frame = collect(scan(&path)?)?;
        fs::remove_file(&path).context(path.display())?;
        Ok(frame)
    }

    pub(crate) fn lazy(&self, at: usize) -> Result<LazyFrame> {
        let Some(shard) = self.shards.get(at) else { return Ok(LazyFrame::default()) };
        match &shard.file {
            None => Ok(shard.frame.clone().lazy()),
            Some(path) => scan(path),
        }
    }

    fn replace(&mut self, at: usize, frame: DataFrame) -> Result<()> {
        let Some(shard) = self.shards.get_mut(at) else { return Ok(()) };
        shard.rows = frame.height();
        let Some(path) = &shard.file else {
            shard.frame = frame;
            return Ok(());
        };
        let mut writer = writer(path, &frame)?;
        writer.write_batch(&frame).context("temporary file")?;
        writer.finish().context("temporary file")?;
        Ok(())
    }
}

fn writer(path: &Path, frame: &DataFrame) -> Result<BatchedWriter<File>> {
    let file = File::create(path).context(path.display())?;
    // It is read again at once, from the page cache.
    let writer = ParquetWriter::new(file).with_compression(ParquetCompression::Uncompressed);
    writer.batched(frame.schema()).context(path.display())
}

/// A lazy scan of a Parquet file.
pub(crate) fn scan(path: &Path) -> Result<LazyFrame> {
    let place = path.to_str().ok_or_else(|| Error::failed(format!("{}: a path must be UTF-8", path.display())))?;
    LazyFrame::scan_parquet(PlRefPath::new(place), ScanArgsParquet { glob: false, ..Default::default() })
        .context(path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users with their items and times, in order, of a log said to have `expected` events.
    fn sequences(expected: u64, memory: u64) -> (EventLog, Vec<Vec<(u32, i64)>>) {
        let options = ReadOptions { memory, scratch: std::env::temp_dir(), ..ReadOptions::default() };
        let mut log = EventLog::new(expected, &options, true, false).unwrap();
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
