//! `itemlm configs`: the shipped files, a check of a run file, and the run files' JSON schema.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{Problem, RunFileKind, SHIPPED, ShippedConfig, check_run_file, inherited_keys};
use crate::data::PrepareConfig;
use crate::experiment::ExperimentConfig;
use crate::{Context, Error, Result};

/// The report of `configs check --json`.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// The file.
    pub file: PathBuf,
    /// `train`, `align`, `prepare` or `experiment`; null for a file that is not TOML.
    pub kind: Option<String>,
    /// All that is wrong with it.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Returns the end of a check.
    ///
    /// # Errors
    /// A usage error that counts the problems and names the first.
    pub fn verdict(&self) -> Result<()> {
        let Some(first) = self.problems.first() else { return Ok(()) };
        let more = match self.problems.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        Err(Error::usage(format!("{}{more}", self.line(first))))
    }

    /// Returns a problem with the file and line before it.
    pub fn line(&self, problem: &Problem) -> String {
        let file = self.file.display();
        match problem.line {
            Some(line) => format!("{file}:{line}: {}", problem.message),
            None => format!("{file}: {}", problem.message),
        }
    }
}

/// Returns a shipped file by its name.
///
/// # Errors
/// A usage error for a name that is not there.
pub fn shipped_config(name: &str) -> Result<&'static ShippedConfig> {
    let bare = name.strip_prefix("configs/").unwrap_or(name).trim_end_matches(".toml");
    let found = SHIPPED.iter().find(|shipped| shipped.name == bare);
    found.ok_or_else(|| Error::usage(format!("no shipped file {name:?}; `itemlm configs list` names them")))
}

/// Checks a file of `train`, `align`, `prepare` or `experiment`; finds all errors of the first two,
/// the first of the others. A run file's problems are those of its own keys and of what they say
/// together with the keys that it extends.
///
/// # Errors
/// A file that cannot be read.
pub fn check_config(file: &Path) -> Result<CheckReport> {
    let text = fs::read_to_string(file).context(file.display())?;
    let problem = |error: Error| {
        let place = format!("{}: ", file.display());
        let message = error.to_string();
        Problem { line: None, message: message.strip_prefix(&place).unwrap_or(&message).to_string() }
    };
    let has = |key: &str| text.parse::<toml::Table>().is_ok_and(|table| table.contains_key(key));
    if has("split") || has("steps") {
        let problems = PrepareConfig::open(file).err().map(problem).into_iter().collect();
        return Ok(CheckReport { file: file.to_path_buf(), kind: Some("prepare".into()), problems });
    }
    if has("run") && has("seeds") {
        let cells = ExperimentConfig::open(file).and_then(|config| config.cells());
        let problems = cells.err().map(problem).into_iter().collect();
        return Ok(CheckReport { file: file.to_path_buf(), kind: Some("experiment".into()), problems });
    }
    let (inherited, unreadable) = match inherited_keys(file) {
        Ok(keys) => (keys, None),
        Err(error) => (toml::Table::new(), Some(problem(error))),
    };
    let (kind, problems) = match unreadable {
        None => check_run_file(&text, &inherited),
        Some(problem) => (Some(RunFileKind::Train), vec![problem]),
    };
    let kind = kind.map(|kind| match kind {
        RunFileKind::Train => "train".to_string(),
        RunFileKind::Align => "align".to_string(),
    });
    Ok(CheckReport { file: file.to_path_buf(), kind, problems })
}
