//! The files that the inputs name.

use std::fs;
use std::path::PathBuf;

use super::input;
use crate::{Context, Result};

/// The files of the inputs: a folder stands for the files in it, by name.
pub(crate) fn list_files(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for input in inputs {
        let kind = fs::metadata(input).context(input.display())?;
        if kind.is_dir() {
            let mut inside = Vec::new();
            for entry in fs::read_dir(input).context(input.display())? {
                let path = entry.context(input.display())?.path();
                if path.is_file() {
                    inside.push(path);
                }
            }
            inside.sort();
            files.extend(inside);
        } else {
            files.push(input.clone());
        }
    }
    Ok(files)
}

/// About how many events `files` may hold at most, if each takes `bytes` bytes or more before
/// compression.
pub(crate) fn at_most(files: &[PathBuf], bytes: u64) -> Result<u64> {
    let mut total = 0u64;
    for file in files {
        let size = fs::metadata(file).context(file.display())?.len();
        // Logs as JSON or CSV shrink to a fifth or an eighth.
        total = total.saturating_add(if input::is_packed(file)? { size.saturating_mul(12) } else { size });
    }
    Ok(total / bytes.max(1) + 1)
}
