//! A table in pieces, in memory or, where it would take more than its share of it, in temporary
//! Parquet files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{
    DataFrame, Engine, IntoLazy, LazyFrame, ParquetCompression, ParquetWriter, PlRefPath, ScanArgsParquet,
};
use tempfile::TempDir;

use crate::{Context, Error, Result};

/// Number of rows processed at a time, about.
pub(crate) const PIECE: u64 = 1 << 19;
/// A table goes to files if it takes more than one part in so many of the memory.
pub(super) const SHARE: u64 = 4;
/// Most files open at once.
const MAX_SHARDS: u64 = 256;

/// Memory and disk that large tables may use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workspace {
    /// Memory to work in, bytes.
    pub(crate) memory: u64,
    /// Folder for temporary files.
    pub(crate) scratch: PathBuf,
}

/// Runs a query on polars' streaming engine.
pub(crate) fn collect(query: LazyFrame) -> Result<DataFrame> {
    Ok(query.collect_with_engine(Engine::Streaming).context("polars")?.unwrap_single())
}

macro_rules! column_values {
    ($name:ident, $kind:ty, $cast:ident) => {
        /// Returns a column's values; it has no nulls.
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
pub(crate) struct ShardedTable {
    pub(super) folder: Option<TempDir>,
    pub(super) shards: Vec<Shard>,
    /// Number of rows that fit the memory.
    pub(super) room: u64,
}

#[derive(Default)]
pub(super) struct Shard {
    frame: DataFrame,
    file: Option<PathBuf>,
    pub(super) rows: usize,
    writer: Option<BatchedWriter<File>>,
}

impl ShardedTable {
    /// Makes pieces for `rows` rows or fewer, of `bytes` bytes each; if they take more than their
    /// share of the memory, they are files in a temporary folder of the workspace.
    pub(crate) fn new(rows: u64, bytes: u64, workspace: &Workspace) -> Result<Self> {
        let Workspace { memory, scratch } = workspace;
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

    /// Takes a piece out of the table.
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

    pub(crate) fn replace(&mut self, at: usize, frame: DataFrame) -> Result<()> {
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

/// Scans a Parquet file lazily.
pub(crate) fn scan(path: &Path) -> Result<LazyFrame> {
    let name = path.to_str().ok_or_else(|| Error::failed(format!("{}: a path must be UTF-8", path.display())))?;
    LazyFrame::scan_parquet(PlRefPath::new(name), ScanArgsParquet { glob: false, ..Default::default() })
        .context(path.display())
}
