//! The folder that a corpus is written to: whole or not at all, and never over anything else.

use std::fs;
use std::path::{Path, PathBuf};

use super::layout::{MANIFEST, data_files};
use crate::{Context, Error, Result};

/// A folder that a corpus may be written to.
pub(in crate::data) struct OutputDir {
    dir: PathBuf,
    pub(in crate::data) parent: PathBuf,
}

impl OutputDir {
    /// Makes the parent folder and refuses a `dir` that holds anything but a corpus.
    pub(in crate::data) fn check(dir: &Path) -> Result<Self> {
        // A link keeps pointing at what it points at.
        let dir = if dir.is_dir() {
            fs::canonicalize(dir).context(dir.display())?
        } else if fs::symlink_metadata(dir).is_ok() {
            return Err(Error::usage(format!("{}: exists and is no folder", dir.display())));
        } else {
            dir.to_path_buf()
        };
        let Some(parent) = dir.parent() else {
            return Err(Error::usage(format!("{}: not a folder that a corpus can be written to", dir.display())));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent = parent.to_path_buf();
        fs::create_dir_all(&parent).context(parent.display())?;
        if dir.is_dir() {
            let mut known: Vec<String> = data_files().into();
            known.push(MANIFEST.into());
            let (mut empty, mut corpus) = (true, false);
            for entry in fs::read_dir(&dir).context(dir.display())? {
                let name = entry.context(dir.display())?.file_name();
                empty = false;
                corpus |= name.to_str() == Some(MANIFEST);
                if !known.iter().any(|k| name.to_str() == Some(k)) {
                    return Err(Error::usage(format!(
                        "{}: holds {}, which is no part of a corpus: move it or choose another \
                         option `out`; nothing was overwritten",
                        dir.display(),
                        name.to_string_lossy()
                    )));
                }
            }
            if !empty && !corpus {
                return Err(Error::usage(format!(
                    "{}: exists and is no corpus (no {MANIFEST}): choose another option `out`",
                    dir.display()
                )));
            }
        }
        Ok(Self { dir, parent })
    }

    /// Moves the finished folder to its path.
    pub(in crate::data) fn replace(self, finished: tempfile::TempDir) -> Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let _ = fs::set_permissions(finished.path(), fs::Permissions::from_mode(0o755));
        }
        let shown = self.dir.display();
        if self.dir.is_dir() {
            let old = tempfile::Builder::new().prefix(".itemlm-old-").tempdir_in(&self.parent).context(&shown)?;
            let aside = old.path().join("corpus");
            fs::rename(&self.dir, &aside).context(&shown)?;
            if let Err(error) = fs::rename(finished.path(), &self.dir) {
                // The old corpus goes back; if even that fails, it is kept where it is.
                if fs::rename(&aside, &self.dir).is_err() {
                    let kept = old.keep();
                    let what = format!("{shown}: {error}; the old corpus is in {}", kept.display());
                    return Err(Error::failed(what));
                }
                return Err(error).context(shown);
            }
        } else {
            fs::rename(finished.path(), &self.dir).context(&shown)?;
        }
        // It has been renamed away: there is nothing left to delete.
        let _ = finished.keep();
        Ok(())
    }
}
