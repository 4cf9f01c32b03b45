//! The state of reading: bad rows, digests, progress.

use std::path::Path;

use crate::data::corpus::FileDigest;
use crate::data::progress::Progress;
use crate::{Error, Result};

/// Reading under way: bad rows, digests, progress.
pub(crate) struct ReadContext {
    /// So many bad rows are left out before one is an error.
    pub(crate) skip_bad: u64,
    /// Bad rows left out.
    pub(crate) skipped: u64,
    /// The files read.
    pub(crate) inputs: Vec<FileDigest>,
    /// Rows read, for people.
    pub(crate) progress: Progress,
}

impl ReadContext {
    /// Reading `total` stored bytes.
    pub(crate) fn new(skip_bad: u64, total: u64) -> Self {
        Self { skip_bad, skipped: 0, inputs: Vec::new(), progress: Progress::new("reading", total) }
    }

    #[cfg(test)]
    pub(crate) fn quiet() -> Self {
        Self::new(0, 0)
    }

    /// Counts a bad row; an error if too many are.
    pub(crate) fn bad(&mut self, path: &Path, line: u64, what: &str) -> Result<()> {
        self.bad_at(path, &format!("line {line}"), what)
    }

    /// [`ReadContext::bad`] of a file that has no lines.
    pub(crate) fn bad_at(&mut self, path: &Path, position: &str, what: &str) -> Result<()> {
        if self.skipped >= self.skip_bad {
            let beyond =
                if self.skip_bad > 0 { format!(" (bad rows before it: {})", self.skipped) } else { String::new() };
            return Err(Error::failed(format!("{}: {position}: {what}{beyond}", path.display())));
        }
        self.skipped += 1;
        Ok(())
    }
}
