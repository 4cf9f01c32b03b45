//! A raw file and its name in messages.

use std::fmt::{self, Display};
use std::fs::{self, File};
#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;

use crate::{Context, Error, Result};

/// A raw file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    /// Path of the bytes: the file itself, or a temporary copy of an archive's entry.
    path: PathBuf,
    /// The name in messages.
    name: String,
    /// Columns whose values the folders of the file give (Spark's `key=value`), outermost first.
    pub(super) partition: Vec<(String, String)>,
}

impl SourceFile {
    /// Makes a file with its path as its name.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path.display().to_string();
        Self { path, name, partition: Vec::new() }
    }

    /// Makes a file with another name than its path.
    pub(super) fn with_name(path: PathBuf, name: String) -> Self {
        Self { path, name, partition: Vec::new() }
    }

    /// Returns the path of the bytes.
    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name without its folders.
    pub(super) fn base_name(&self) -> String {
        let name = self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if name.is_empty() { self.name.clone() } else { name }
    }

    /// Returns the name without its folders, in lower case, and without the ending of its
    /// compression.
    pub(super) fn plain_name(&self) -> String {
        let name = self.base_name().to_lowercase();
        let plain = [".gz", ".zst", ".zstd", ".bz2"].iter().find_map(|ending| name.strip_suffix(ending));
        plain.unwrap_or(&name).to_string()
    }

    /// Opens the file. A pipe, a FIFO or a device is refused before it is opened: opening could
    /// wait for ever, and a file is read several times.
    pub(super) fn open(&self) -> Result<File> {
        self.check_regular()?;
        File::open(&self.path).context(self)
    }

    /// Refuses anything but a regular file.
    pub(super) fn check_regular(&self) -> Result<()> {
        let kind = fs::metadata(&self.path).context(self)?;
        if kind.is_file() {
            return Ok(());
        }
        let what = if kind.is_dir() {
            "a folder, not a file"
        } else {
            "not a regular file: a pipe or device can be read only once, so write it to a file first"
        };
        Err(Error::failed(format!("{self}: {what}")))
    }

    /// Returns the stored size, bytes.
    pub(super) fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path).context(self)?.len())
    }
}

impl Display for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
