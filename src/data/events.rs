//! The event log on its way from raw files to a corpus: columns of dense numbers in data frames, in memory or, where
//! they would take more than their share of it, in temporary Parquet files.

use std::fs::File;
use std::path::{Path, PathBuf};

use polars::prelude::{
    BooleanChunked, Column, DataFrame, Engine, LazyFrame, NewChunkedArray, ParquetCompression, ParquetWriter, PlRefPath,
    ScanArgsParquet,
};
use tempfile::TempDir;

use super::ids::{Ids, Texts};
use super::progress::check_stop;
use super::sources::ReadOptions;
use crate::{Context, Error, Result};

/// Bytes of an event in the log's columns.
const EVENT_BYTES: u64 = 20;
/// Events are turned into a data frame by about this many at a time.
const CHUNK: usize = 1 << 20;
/// A log in one piece may take this share of the memory; sorting it takes several times as much.
const SHARE: u64 = 8;
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

/// A log of events in the order of its source, split by user so that each shard fits the memory.
pub(crate) struct EventLog {
    pub(crate) users: Ids,
    pub(crate) items: Ids,
    /// Does the source tell times? Else events are in each user's order.
    pub(crate) timed: bool,
    /// Does the source tell ratings?
    pub(crate) rated: bool,
    pub(crate) shards: Shards,
    pending: Vec<Columns>,
    pending_rows: usize,
}

#[derive(Default)]
struct Columns {
    user: Vec<u32>,
    item: Vec<u32>,
    time: Vec<i64>,
    rating: Vec<f32>,
}

impl EventLog {
    /// A log of at most `events` events (an estimate) under the options' memory limit.
    pub(crate) fn new(events: u64, options: &ReadOptions, timed: bool, rated: bool) -> Result<Self> {
        let count = shards(events, EVENT_BYTES, options.memory);
        let mut pending = Vec::new();
        pending.resize_with(count, Columns::default);
        Ok(Self {
            users: Ids::default(),
            items: Ids::default(),
            timed,
            rated,
            shards: Shards::new(count, &options.scratch)?,
            pending,
            pending_rows: 0,
        })
    }

    /// Adds events to the end of the log.
    pub(crate) fn append(&mut self, events: &Events) -> Result<()> {
        let count = events.users.len();
        let number = |ids: &mut Ids, texts: &Texts| texts.iter().map(|t| ids.number(t)).collect::<Result<Vec<u32>>>();
        let (users, items) = rayon::join(|| number(&mut self.users, &events.users), || number(&mut self.items, &events.items));
        let (users, items) = (users?, items?);
        let shards = self.pending.len() as u32;
        for (((user, item), time), rating) in users.into_iter().zip(items).zip(&events.times).zip(&events.ratings) {
            if let Some(columns) = self.pending.get_mut((user % shards) as usize) {
                columns.user.push(user);
                columns.item.push(item);
                columns.time.push(*time);
                columns.rating.push(*rating);
            }
        }
        self.pending_rows += count;
        if self.pending_rows >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// No more events follow.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.shards.close()
    }

    fn flush(&mut self) -> Result<()> {
        self.pending_rows = 0;
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
            self.shards.append(at, DataFrame::new_infer_height(frame).context("event log")?)?;
        }
        Ok(())
    }

    /// Calls `each` with the users and items of all events, shard by shard.
    pub(crate) fn pairs(&self, mut each: impl FnMut(u32, u32)) -> Result<()> {
        for shard in 0..self.shards.len() {
            check_stop()?;
            let frame = collect(self.shards.lazy(shard)?.select([polars::prelude::col("user"), polars::prelude::col("item")]))?;
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

/// How many shards rows of so many bytes need under a memory limit.
pub(crate) fn shards(rows: u64, bytes: u64, memory: u64) -> usize {
    (rows.saturating_mul(bytes) / (memory / SHARE).max(1) + 1).min(MAX_SHARDS) as usize
}

/// Runs a query on polars' streaming engine.
pub(crate) fn collect(query: LazyFrame) -> Result<DataFrame> {
    Ok(query.collect_with_engine(Engine::Streaming).context("polars")?.unwrap_single())
}

/// A column of u32 without nulls.
pub(crate) fn u32s(frame: &DataFrame, name: &str) -> Result<Vec<u32>> {
    Ok(frame.column(name).context("event log")?.u32().context("event log")?.iter().map(|v| v.unwrap_or_default()).collect())
}

/// A column of i64 without nulls.
pub(crate) fn i64s(frame: &DataFrame, name: &str) -> Result<Vec<i64>> {
    Ok(frame.column(name).context("event log")?.i64().context("event log")?.iter().map(|v| v.unwrap_or_default()).collect())
}

/// Tables of one schema: one in memory, or several in temporary Parquet files.
pub(crate) struct Shards {
    folder: Option<TempDir>,
    shards: Vec<Shard>,
}

#[derive(Default)]
struct Shard {
    frame: DataFrame,
    file: Option<PathBuf>,
    rows: usize,
    writer: Option<polars::io::parquet::write::BatchedWriter<File>>,
}

impl Shards {
    /// So many tables; their files, if more than one, in a temporary folder in `scratch`.
    pub(crate) fn new(count: usize, scratch: &Path) -> Result<Self> {
        let folder = if count > 1 {
            Some(tempfile::Builder::new().prefix(".itemlm-").tempdir_in(scratch).context(scratch.display())?)
        } else {
            None
        };
        let mut shards = Vec::new();
        shards.resize_with(count, Shard::default);
        Ok(Self { folder, shards })
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

    pub(crate) fn lazy(&self, at: usize) -> Result<LazyFrame> {
        let Some(shard) = self.shards.get(at) else { return Ok(LazyFrame::default()) };
        match &shard.file {
            None => Ok(polars::prelude::IntoLazy::lazy(shard.frame.clone())),
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

fn writer(path: &Path, frame: &DataFrame) -> Result<polars::io::parquet::write::BatchedWriter<File>> {
    let file = File::create(path).context(path.display())?;
    // It is read again at once, from the page cache.
    let writer = ParquetWriter::new(file).with_compression(ParquetCompression::Uncompressed);
    writer.batched(frame.schema()).context(path.display())
}

/// A lazy scan of a Parquet file.
pub(crate) fn scan(path: &Path) -> Result<LazyFrame> {
    let place = path.to_str().ok_or_else(|| Error::failed(format!("{}: a path must be UTF-8", path.display())))?;
    LazyFrame::scan_parquet(PlRefPath::new(place), ScanArgsParquet::default()).context(path.display())
}
