//! Cleaned events → the corpus's tables, in pieces that fit the memory.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{Column, DataFrame, IntoLazy, ParquetWriter, SortMultipleOptions, col};

use rayon::slice::ParallelSliceMut;

use super::clean::PresentIds;
use super::config::Protocol;
use crate::data::Split;
use crate::data::corpus::FileDigest;
use crate::data::corpus::{INTERACTIONS, ITEMS, windows_file};
use crate::data::event_log::{EVENT_BYTES, ShardWriter};
use crate::data::progress::{Progress, check_stop};
use crate::data::sharded_table::{PIECE, ShardedTable, Workspace, collect, f32s, i64s, u32s};
use crate::data::sources::RawDataset;
use crate::{Context, Error, Result};

/// Rows of a row group: the same for every memory limit, so that the bytes are.
const ROW_GROUP: usize = 1 << 17;
/// Bytes of a window while windows are sorted.
const WINDOW_BYTES: u64 = 24;
/// One event's time in so many is kept, to cut time into ranges of about the same number of
/// windows.
const SAMPLE: usize = 256;

/// A Parquet file being written, in row groups of equal size whatever the sizes of the frames it is
/// given.
struct Table {
    path: PathBuf,
    writer: Option<BatchedWriter<BufWriter<File>>>,
    pending: DataFrame,
    rows: usize,
}

impl Table {
    fn new(dir: &Path, name: &str) -> Self {
        Self { path: dir.join(name), writer: None, pending: DataFrame::empty(), rows: 0 }
    }

    fn append(&mut self, frame: DataFrame) -> Result<()> {
        check_stop()?;
        self.rows += frame.height();
        if self.writer.is_none() {
            let file = BufWriter::new(File::create(&self.path).context(self.path.display())?);
            self.writer = Some(ParquetWriter::new(file).batched(frame.schema()).context(self.path.display())?);
            self.pending = frame;
        } else {
            self.pending.vstack_mut(&frame).context(self.path.display())?;
        }
        while self.pending.height() >= ROW_GROUP {
            let rest = self.pending.slice(ROW_GROUP as i64, usize::MAX);
            let full = std::mem::replace(&mut self.pending, rest).slice(0, ROW_GROUP);
            self.write(full)?;
        }
        Ok(())
    }

    fn write(&mut self, mut frame: DataFrame) -> Result<()> {
        frame.rechunk_mut();
        match &mut self.writer {
            Some(writer) => writer.write_batch(&frame).context(self.path.display()),
            None => Ok(()),
        }
    }

    /// Writes the rest and syncs; returns the file's digest and its number of rows.
    fn finish(mut self) -> Result<(FileDigest, usize)> {
        let rest = std::mem::take(&mut self.pending);
        if rest.height() > 0 || self.rows == 0 {
            self.write(rest)?;
        }
        if let Some(writer) = self.writer.take() {
            writer.finish().context(self.path.display())?;
        }
        let file = File::open(&self.path).context(self.path.display())?;
        file.sync_all().context(self.path.display())?;
        Ok((FileDigest::from_file(&self.path)?, self.rows))
    }
}

/// The tables that [`write`] has written.
pub(super) struct WrittenTables {
    /// Digests of the files, in the order items, interactions, train, valid, test.
    pub(super) files: Vec<FileDigest>,
    pub(super) users: usize,
    /// Old number of each item, in the order of the new ones.
    pub(super) item_order: Vec<u32>,
    pub(super) interactions: usize,
    /// Number of windows that train, validate, test.
    pub(super) windows: [usize; 3],
    pub(super) untitled: usize,
    /// Number of interactions with the user, item and time of one before them.
    pub(super) repeated: usize,
}

/// Writes the five tables to `dir`. Users and items are numbered by their ids in byte order; a
/// user's events are sorted by time, ties by the order of the input.
pub(super) fn write(
    raw: &mut RawDataset,
    protocol: Protocol,
    dir: &Path,
    workspace: &Workspace,
) -> Result<WrittenTables> {
    let (timed, events) = (raw.log.timed, raw.log.shards.rows());
    if matches!(protocol, Protocol::Msl { .. }) && !timed {
        return Err(Error::failed("split msl orders windows by time, and this source has none: use leave_one_out"));
    }
    let present = PresentIds::collect(&raw.log)?;
    let (user_order, user_number) = numbers(&present.users, |user| raw.log.users.get(user));
    let (item_order, item_number) = numbers(&present.items, |item| raw.log.items.get(item));
    let (items_digest, untitled) = write_items(raw, &item_order, dir)?;

    let mut interactions = Table::new(dir, INTERACTIONS);
    let mut tables = [Split::Train, Split::Valid, Split::Test].map(|split| Table::new(dir, &windows_file(split)));
    let empty = window_frame(&[], false)?;
    for table in &mut tables {
        table.append(empty.clone())?;
    }
    let mut waiting = ShardedTable::new(events as u64, WINDOW_BYTES, workspace)?;
    let ranges = sample_times(raw, waiting.len())?;

    let mut pieces = renumber(raw, &user_number, &item_number, user_order.len(), workspace)?;
    let mut by_time: Vec<Vec<WindowRow>> = vec![Vec::new(); waiting.len()];
    let mut progress = Progress::new("writing", events as u64);
    let (mut done, mut repeated) = (0usize, 0);
    for piece in 0..pieces.len() {
        check_stop()?;
        let frame = pieces.take(piece)?;
        if frame.height() == 0 {
            continue;
        }
        let (order, users, times) = sort_by_user_and_time(&frame)?;
        if timed {
            repeated += count_repeats(&frame, &order, &users, &times)?;
        }
        interactions.append(interaction_frame(raw, &frame, &order, &users, &times, &user_order)?)?;
        drop(frame);

        let mut cut: [Vec<WindowRow>; 3] = Default::default();
        let mut first = 0;
        for run in users.chunk_by(|a, b| a == b) {
            for window in protocol.spans(run.len() as u32) {
                let time = times.get(first + window.end as usize - 1).copied().unwrap_or_default();
                let start = u32::try_from(done + first).context(INTERACTIONS)? + window.start;
                let row = WindowRow { user: run[0], start, len: window.end - window.start, time };
                match window.split {
                    Some(split) => cut[split as usize].push(row),
                    None => by_time[ranges.partition_point(|end| *end <= time)].push(row),
                }
            }
            first += run.len();
        }
        done += users.len();
        progress.bytes.store(done as u64, Ordering::Relaxed);
        progress.add(users.len() as u64)?;
        for (table, rows) in tables.iter_mut().zip(cut) {
            table.append(window_frame(&rows, timed)?)?;
        }
        if by_time.iter().map(Vec::len).sum::<usize>() as u64 >= PIECE {
            append_windows(&mut by_time, &mut waiting)?;
        }
    }
    append_windows(&mut by_time, &mut waiting)?;
    waiting.close()?;
    if done != events {
        return Err(Error::failed(format!("wrote {done} of {events} events: please report this")));
    }
    write_by_time(waiting, &mut tables)?;

    let mut files = vec![items_digest];
    let (digest, rows) = interactions.finish()?;
    files.push(digest);
    let mut windows = [0; 3];
    for (table, count) in tables.into_iter().zip(&mut windows) {
        let (digest, rows) = table.finish()?;
        *count = rows;
        files.push(digest);
    }
    Ok(WrittenTables { files, users: user_order.len(), item_order, interactions: rows, windows, untitled, repeated })
}

fn append_windows(by_time: &mut [Vec<WindowRow>], waiting: &mut ShardedTable) -> Result<()> {
    for (range, rows) in by_time.iter_mut().enumerate() {
        waiting.append(range, sortable_frame(&std::mem::take(rows))?)?;
    }
    Ok(())
}

/// Returns the dense numbers that are present, ordered by id, and for each old number its new one
/// (`u32::MAX` if absent).
fn numbers<'a>(present: &[bool], id: impl Fn(u32) -> &'a str) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..).zip(present).filter(|(_, present)| **present).map(|(old, _)| old).collect();
    order.sort_unstable_by(|a, b| id(*a).cmp(id(*b)));
    let mut new = vec![u32::MAX; present.len()];
    for (number, old) in (0..).zip(&order) {
        new[*old as usize] = number;
    }
    (order, new)
}

fn write_items(raw: &RawDataset, order: &[u32], dir: &Path) -> Result<(FileDigest, usize)> {
    let mut table = Table::new(dir, ITEMS);
    let titles: Vec<&str> = order.iter().map(|item| raw.catalogue.title(*item).unwrap_or_default()).collect();
    let untitled = titles.iter().filter(|t| t.is_empty()).count();
    let ids: Vec<&str> = order.iter().map(|item| raw.log.items.get(*item)).collect();
    let mut columns = vec![
        Column::new("item".into(), (0..order.len() as u32).collect::<Vec<u32>>()),
        Column::new("id".into(), ids),
        Column::new("title".into(), titles),
    ];
    for (name, values) in &raw.catalogue.attributes {
        let values: Vec<Option<&str>> = order.iter().map(|item| values.get(*item as usize)?.as_deref()).collect();
        columns.push(Column::new((*name).into(), values));
    }
    table.append(DataFrame::new_infer_height(columns).context(ITEMS)?)?;
    Ok((table.finish()?.0, untitled))
}

/// Returns times that cut the windows into about equal `pieces`.
fn sample_times(raw: &RawDataset, pieces: usize) -> Result<Vec<i64>> {
    let log = &raw.log;
    if pieces == 1 {
        return Ok(vec![]);
    }
    let mut times = Vec::new();
    for shard in 0..log.shards.len() {
        times.extend(i64s(&collect(log.shards.lazy(shard)?.select([col("time").gather_every(SAMPLE, 0)]))?, "time")?);
    }
    times.sort_unstable();
    let mut ends: Vec<i64> = (1..pieces).filter_map(|piece| times.get(times.len() * piece / pieces).copied()).collect();
    ends.dedup();
    Ok(ends)
}

/// Gives the log its final numbers, in pieces of consecutive users; the log's own shards are
/// removed as they are read.
fn renumber(
    raw: &mut RawDataset,
    user_number: &[u32],
    item_number: &[u32],
    users: usize,
    workspace: &Workspace,
) -> Result<ShardedTable> {
    let RawDataset { log, .. } = raw;
    let mut pieces = ShardedTable::new(log.shards.rows() as u64, EVENT_BYTES, workspace)?;
    let mut scatter = ShardWriter::new(pieces.len(), log.rated);
    let width = users.div_ceil(pieces.len()).max(1);
    for shard in 0..log.shards.len() {
        check_stop()?;
        let frame = log.shards.take(shard)?;
        if frame.height() == 0 {
            continue;
        }
        let ratings = if log.rated { f32s(&frame, "rating")? } else { vec![f32::NAN; frame.height()] };
        let events =
            u32s(&frame, "user")?.into_iter().zip(u32s(&frame, "item")?).zip(i64s(&frame, "time")?).zip(ratings);
        for (((user, item), time), rating) in events {
            let user = user_number[user as usize];
            scatter.push(user as usize / width, user, item_number[item as usize], time, rating);
        }
        scatter.flush_if_full(&mut pieces)?;
    }
    scatter.flush(&mut pieces)?;
    pieces.close()?;
    Ok(pieces)
}

/// Returns the rows of a piece by user, then time, then their order in the input, with their users
/// and times. Without times the order of the input is the order in time: all times are 0.
fn sort_by_user_and_time(frame: &DataFrame) -> Result<(Vec<usize>, Vec<u32>, Vec<i64>)> {
    let rows = u32s(frame, "user")?.into_iter().zip(i64s(frame, "time")?).zip(0usize..);
    let mut rows: Vec<(u32, i64, usize)> = rows.map(|((user, time), row)| (user, time, row)).collect();
    // Half the time of a sort of the frame by two columns.
    rows.par_sort_unstable();
    let users = rows.iter().map(|row| row.0).collect();
    let times = rows.iter().map(|row| row.1).collect();
    Ok((rows.into_iter().map(|row| row.2).collect(), users, times))
}

/// Returns the number of interactions with the user, item and time of another, all but the first of
/// them.
fn count_repeats(frame: &DataFrame, order: &[usize], users: &[u32], times: &[i64]) -> Result<usize> {
    let items = u32s(frame, "item")?;
    let mut repeated = 0;
    let mut first = 0;
    let mut at_once: Vec<u32> = Vec::new();
    for last in 1..=order.len() {
        if last < order.len() && users[last] == users[first] && times[last] == times[first] {
            continue;
        }
        if last - first > 1 {
            at_once.clear();
            at_once.extend(order[first..last].iter().map(|row| items[*row]));
            at_once.sort_unstable();
            at_once.dedup();
            repeated += last - first - at_once.len();
        }
        first = last;
    }
    Ok(repeated)
}

fn interaction_frame(
    raw: &RawDataset,
    frame: &DataFrame,
    order: &[usize],
    users: &[u32],
    times: &[i64],
    user_order: &[u32],
) -> Result<DataFrame> {
    let ids: Vec<&str> = users.iter().map(|user| raw.log.users.get(user_order[*user as usize])).collect();
    let items = u32s(frame, "item")?;
    let items: Vec<u32> = order.iter().map(|row| items[*row]).collect();
    let seconds: Vec<Option<i64>> = times.iter().map(|time| raw.log.timed.then(|| time.div_euclid(1000))).collect();
    let mut columns = vec![
        Column::new("user".into(), users),
        Column::new("user_id".into(), ids),
        Column::new("item".into(), items),
        Column::new("timestamp".into(), seconds),
    ];
    if raw.log.rated {
        let ratings = f32s(frame, "rating")?;
        let ratings: Vec<f32> = order.iter().map(|row| ratings[*row]).collect();
        columns.push(if ratings.iter().any(|rating| rating.is_nan()) {
            let ratings: Vec<Option<f32>> = ratings.into_iter().map(|r| Some(r).filter(|r| !r.is_nan())).collect();
            Column::new("rating".into(), ratings)
        } else {
            Column::new("rating".into(), ratings)
        });
    }
    DataFrame::new_infer_height(columns).context(INTERACTIONS)
}

#[derive(Clone, Copy)]
struct WindowRow {
    user: u32,
    start: u32,
    len: u32,
    /// Time of the target, milliseconds.
    time: i64,
}

fn sortable_frame(rows: &[WindowRow]) -> Result<DataFrame> {
    let column =
        |name: &str, f: fn(&WindowRow) -> u32| Column::new(name.into(), rows.iter().map(f).collect::<Vec<u32>>());
    DataFrame::new_infer_height(vec![
        column("user", |w| w.user),
        column("start", |w| w.start),
        column("len", |w| w.len),
        Column::new("time".into(), rows.iter().map(|w| w.time).collect::<Vec<i64>>()),
    ])
    .context("windows")
}

fn window_frame(rows: &[WindowRow], timed: bool) -> Result<DataFrame> {
    to_seconds(sortable_frame(rows)?, timed)
}

/// Converts the columns of a windows table: `timestamp`, in seconds, in place of `time`.
fn to_seconds(mut frame: DataFrame, timed: bool) -> Result<DataFrame> {
    let times = i64s(&frame.drop_in_place("time").context("windows")?.into_frame(), "time")?;
    let seconds: Vec<Option<i64>> = times.into_iter().map(|time| timed.then(|| time.div_euclid(1000))).collect();
    frame.with_column(Column::new("timestamp".into(), seconds)).context("windows")?;
    Ok(frame)
}

/// Writes windows in ranges of time, each sorted by time and then by user and position, the order
/// they came in.
fn write_by_time(mut waiting: ShardedTable, tables: &mut [Table; 3]) -> Result<()> {
    let total = waiting.rows();
    let (train, valid) = (total * 8 / 10, total * 9 / 10);
    let mut done = 0;
    for range in 0..waiting.len() {
        let frame = waiting.take(range)?;
        if frame.height() == 0 {
            continue;
        }
        let order = SortMultipleOptions::default().with_maintain_order(true);
        let frame = to_seconds(collect(frame.lazy().sort(["time"], order))?, true)?;
        for (table, (from, to)) in tables.iter_mut().zip([(0, train), (train, valid), (valid, total)]) {
            let (from, to) = (from.clamp(done, done + frame.height()), to.clamp(done, done + frame.height()));
            table.append(frame.slice((from - done) as i64, to - from))?;
        }
        done += frame.height();
    }
    Ok(())
}
