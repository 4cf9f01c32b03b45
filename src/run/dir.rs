//! The layout of a run directory, and its lock.
//!
//! `run.toml` (the resolved run file), `identity.json` (of the model and the corpus),
//! `metrics.jsonl`, `checkpoints/`, once trained, `adapter/` (PEFT), `model/` (Hugging Face) or
//! `encoder/`, and, once chosen, `prior.json` (the prior's weight).

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{Objective, RunConfig, TuneKind};
use crate::core::files::{write_atomic, write_json};
use crate::{Context, Error, Result};

pub(crate) const CONFIG: &str = "run.toml";
const IDENTITY: &str = "identity.json";
/// An empty file; the process that trains the run holds its lock.
const LOCK: &str = ".lock";
/// Of a run of an experiment: how far it is, and the run file to begin with.
pub(crate) const CELL: &str = "cell.json";
pub(crate) const CELL_RUN: &str = "cell.toml";

/// Writes `run.toml` and `identity.json` of a new run, and locks it.
///
/// # Errors
/// A usage error where another process has begun a run in `dir`.
pub fn create(dir: &Path, config: &str, identity: &impl Serialize) -> Result<fs::File> {
    fs::create_dir_all(dir).context(dir.display())?;
    let lock = lock(dir)?;
    // While this process loaded the model, another may have begun.
    if !is_blank(dir) {
        return Err(not_empty(dir));
    }
    write_json(&dir.join(IDENTITY), identity)?;
    write_atomic(&dir.join(CONFIG), config.as_bytes())?;
    Ok(lock)
}

fn not_empty(dir: &Path) -> Error {
    Error::usage(format!("{} exists; go on with option `resume`, or choose another option `out`", dir.display()))
}

/// Returns whether `dir` is a directory with nothing in it but files that [`create`] leaves if the
/// process is killed in it, and those that an experiment writes before it begins the run:
/// `cell.json`, `cell.toml` and logs.
pub fn is_blank(dir: &Path) -> bool {
    let ours = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|e| {
            let name = e.file_name();
            let text = name.to_string_lossy();
            [IDENTITY, LOCK, CELL, CELL_RUN].iter().any(|ours| name == *ours)
                || text.starts_with(".tmp")
                || text.ends_with(".log")
        })
    };
    fs::read_dir(dir).is_ok_and(|mut entries| entries.all(ours))
}

/// Checks whether a run may be written to `dir`: a new one if nothing is there; a resumed one if
/// the run there was started with the same `config`. `started` reads the run file in it, written
/// like `config`.
///
/// # Errors
/// Usage errors that say which line differs.
pub fn check_directory(dir: &Path, config: &str, resume: bool, started: impl FnOnce() -> Result<String>) -> Result<()> {
    let place = dir.display();
    if !resume {
        return match dir.exists() && !is_blank(dir) {
            true => Err(not_empty(dir)),
            false => Ok(()),
        };
    }
    if !is_run(dir) {
        return Err(not_a_run(dir));
    }
    let started = started()?;
    if started == config {
        return Ok(());
    }
    let line = started.lines().zip(config.lines()).find(|(a, b)| a != b);
    let (was, is) = line.unwrap_or((&started, config));
    Err(Error::usage(format!(
        "{place}: the run was started with `{was}`, not `{is}`; resume it with the same run file"
    )))
}

/// Locks the run, so that no second process trains it, until the returned file is dropped.
pub fn lock(dir: &Path) -> Result<fs::File> {
    let path = dir.join(LOCK);
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path).context(path.display())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::usage(format!("{}: another process trains this run", dir.display())))
        }
        // The file system has no locks.
        Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// Returns whether `dir` holds a run.
pub fn is_run(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

/// Reads the run file of the run in `dir`.
pub fn read_config(dir: &Path) -> Result<RunConfig> {
    if !is_run(dir) {
        return Err(not_a_run(dir));
    }
    RunConfig::open(&dir.join(CONFIG), &[])
}

/// Checks that a run ranks items.
///
/// # Errors
/// A run that writes texts.
pub(crate) fn check_ranks(dir: &Path, config: &RunConfig) -> Result<()> {
    match config.objective() {
        Objective::Items => Ok(()),
        Objective::Texts(file) => Err(Error::usage(format!(
            "{}: this run writes the texts of {file} and ranks no items; see it with `itemlm evaluate`",
            dir.display()
        ))),
    }
}

fn not_a_run(dir: &Path) -> Error {
    Error::usage(format!("{}: not a run directory (it holds no {CONFIG})", dir.display()))
}

/// Reads the identity of the run in `dir`: of its model and data.
pub fn read_identity<T: DeserializeOwned>(dir: &Path) -> Result<T> {
    let path = dir.join(IDENTITY);
    let text = fs::read_to_string(&path).context(path.display())?;
    serde_json::from_str(&text).context(path.display())
}

/// Returns the error that the run was trained on another `what`.
pub fn differs(dir: &Path, what: &str, place: &str) -> Error {
    Error::failed(format!("{}: this run was trained on another {what} than {place} holds", dir.display()))
}

/// Returns the directory of the finished run's weights.
pub fn trained_dir(dir: &Path, tune: TuneKind) -> PathBuf {
    dir.join(match tune {
        TuneKind::Full => "model",
        TuneKind::Lora => "adapter",
        TuneKind::Frozen => "encoder",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two processes found nothing at `--out` and then loaded their models.
    #[test]
    fn one_of_two_processes_begins_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let error = |config: &str| create(dir.path(), config, &"of the second").unwrap_err().to_string();
        let first = create(dir.path(), "first", &"of the first").unwrap();
        assert!(error("second").ends_with("another process trains this run"));
        drop(first);
        assert!(error("second").contains("exists; go on with option `resume`"));
        assert_eq!(fs::read_to_string(dir.path().join(CONFIG)).unwrap(), "first");
        assert_eq!(read_identity::<String>(dir.path()).unwrap(), "of the first");
    }
}
