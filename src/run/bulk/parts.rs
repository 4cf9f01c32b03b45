//! The parts of a file that is being made.

use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use polars::prelude::{Column, DataFrame, ParquetReader, ParquetWriter, SerReader};

use super::{Part, parts_dir};
use crate::core::files::{persist, temporary_beside, write_atomic};
use crate::data::parquet_bytes;
use crate::{Context, Error, Result};

/// File that says what a call must have in common with the one that it goes on with.
const PLAN: &str = "plan.json";
/// Locked by the process that adds parts.
const LOCK: &str = ".lock";

/// The folder of a file's parts, which no other process adds to.
pub(super) struct Parts {
    dir: PathBuf,
    _lock: fs::File,
}

impl Parts {
    /// Opens the parts of `out`, or begins with none.
    ///
    /// # Errors
    /// Parts that were made by another plan; another process that makes them.
    pub fn open(out: &Path, plan: &str) -> Result<Self> {
        let dir = parts_dir(out);
        let shown = dir.display().to_string();
        fs::create_dir_all(&dir).context(&shown)?;
        let path = dir.join(LOCK);
        let lock = fs::File::options().create(true).truncate(false).write(true).open(&path).context(path.display())?;
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::usage(format!("{shown}: another process is at work there")));
        }
        let path = dir.join(PLAN);
        if !path.is_file() {
            write_atomic(&path, plan.as_bytes())?;
        } else if fs::read_to_string(&path).context(path.display())? != plan {
            return Err(Error::usage(format!(
                "{shown}: holds a part of other recommendations (another run, k, prompt or users); delete it, or \
                 write another file"
            )));
        }
        Ok(Self { dir, _lock: lock })
    }

    fn path(&self, part: usize) -> PathBuf {
        self.dir.join(format!("part-{part:06}.parquet"))
    }

    /// Returns whether a part is there.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn has(&self, part: usize) -> Result<bool> {
        self.path(part).try_exists().context(self.dir.display())
    }

    /// Writes a part.
    ///
    /// # Errors
    /// A full disk, and the like.
    pub fn add(&self, number: usize, part: &Part) -> Result<()> {
        let rows = || part.iter().flat_map(|(user, items)| items.iter().map(move |item| (user.as_str(), item)));
        let columns = vec![
            Column::new("user".into(), rows().map(|(user, _)| user).collect::<Vec<_>>()),
            Column::new("rank".into(), rows().map(|(_, item)| item.rank as u32).collect::<Vec<_>>()),
            Column::new("item".into(), rows().map(|(_, item)| item.item.as_str()).collect::<Vec<_>>()),
            Column::new("title".into(), rows().map(|(_, item)| item.title.as_str()).collect::<Vec<_>>()),
            Column::new("score".into(), rows().map(|(_, item)| item.score).collect::<Vec<_>>()),
        ];
        write_atomic(&self.path(number), &parquet_bytes(columns)?)
    }

    fn read(&self, part: usize) -> Result<DataFrame> {
        let path = self.path(part);
        let file = fs::File::open(&path).context(path.display())?;
        ParquetReader::new(file).finish().context(path.display())
    }

    /// Joins the first `count` parts, which are all, into `out` and removes them. Returns the
    /// number of rows.
    ///
    /// # Errors
    /// A part that cannot be read; a full disk, and the like.
    pub fn join(self, out: &Path, count: usize) -> Result<usize> {
        let file = temporary_beside(out)?;
        let first = self.read(0)?;
        let writer = ParquetWriter::new(BufWriter::new(file.as_file().try_clone().context(out.display())?));
        let mut writer = writer.batched(first.schema()).context(out.display())?;
        let mut rows = 0;
        for part in 0..count {
            let frame = self.read(part)?;
            rows += frame.height();
            writer.write_batch(&frame).context(out.display())?;
        }
        writer.finish().context(out.display())?;
        drop(writer);
        persist(file, out)?;
        fs::remove_dir_all(&self.dir).context(self.dir.display())?;
        Ok(rows)
    }
}
