//! State of the reading of raw files: bad rows, digests, progress.

use serde::{Deserialize, Serialize};

use super::source_file::SourceFile;
use crate::data::corpus::FileDigest;
use crate::data::progress::Progress;
use crate::{Error, Result};

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRows {
    /// The file's name, as in the inputs.
    pub file: String,
    /// Number of rows, bad ones included, without a header.
    pub rows: u64,
}

/// State of the reading of raw files: bad rows, digests, progress.
pub(crate) struct ReadContext {
    /// Number of bad rows that are left out before one more is an error.
    pub(crate) skip_bad: u64,
    /// Number of bad rows left out.
    pub(crate) skipped: u64,
    /// Digests of the files read.
    pub(crate) inputs: Vec<FileDigest>,
    /// Rows of the files read.
    pub(crate) rows: Vec<FileRows>,
    /// Files that the source does not use.
    pub(crate) unused: Vec<String>,
    /// Warnings for a reader of the report.
    pub(crate) warnings: Vec<String>,
    /// Progress in rows.
    pub(crate) progress: Progress,
}

impl ReadContext {
    /// Starts the reading of `total` stored bytes.
    pub(crate) fn new(skip_bad: u64, total: u64) -> Self {
        Self {
            skip_bad,
            skipped: 0,
            inputs: Vec::new(),
            rows: Vec::new(),
            unused: Vec::new(),
            warnings: Vec::new(),
            progress: Progress::new("reading", total),
        }
    }

    #[cfg(test)]
    pub(crate) fn quiet() -> Self {
        Self::new(0, 0)
    }

    /// Records a file that has been read to its end.
    pub(super) fn finish_file(&mut self, file: &SourceFile, rows: u64, digest: FileDigest) {
        self.inputs.push(digest);
        self.rows.push(FileRows { file: file.name().to_string(), rows });
    }

    /// Counts a bad row; one too many is an error.
    pub(crate) fn bad_row(&mut self, file: &SourceFile, line: u64, what: &str) -> Result<()> {
        self.bad_row_at(file, &format!("line {line}"), what)
    }

    /// Counts a bad row as [`ReadContext::bad_row`], of a file that has no lines.
    pub(crate) fn bad_row_at(&mut self, file: &SourceFile, position: &str, what: &str) -> Result<()> {
        if self.skipped >= self.skip_bad {
            let beyond =
                if self.skip_bad > 0 { format!(" (bad rows before it: {})", self.skipped) } else { String::new() };
            return Err(Error::failed(format!("{file}: {position}: {what}{beyond}")));
        }
        self.skipped += 1;
        Ok(())
    }
}
