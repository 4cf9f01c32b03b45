//! `itemlm configs`: the shipped files, a check of a run file, and the run files' JSON schema.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{Problem, RunFileKind, SHIPPED, ShippedConfig, check_run_file};
use crate::data::PrepareConfig;
use crate::{Context, Error, Result};

/// What `configs check --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// The file.
    pub file: PathBuf,
    /// `train`, `align` or `prepare`; null for a file that is not TOML.
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

/// Checks a file of `train`, `align` or `prepare`; finds all errors of the first two, the first of
/// the last.
///
/// # Errors
/// A file that cannot be read.
pub fn check_config(file: &Path) -> Result<CheckReport> {
    let text = fs::read_to_string(file).context(file.display())?;
    let is_of_prepare = |table: toml::Table| table.contains_key("split") || table.contains_key("steps");
    if text.parse::<toml::Table>().is_ok_and(is_of_prepare) {
        let place = format!("{}: ", file.display());
        let problem = PrepareConfig::open(file).err().map(|error| {
            let message = error.to_string();
            Problem { line: None, message: message.strip_prefix(&place).unwrap_or(&message).to_string() }
        });
        let (file, kind) = (file.to_path_buf(), Some("prepare".to_string()));
        return Ok(CheckReport { file, kind, problems: problem.into_iter().collect() });
    }
    let (kind, problems) = check_run_file(&text);
    let kind = kind.map(|kind| match kind {
        RunFileKind::Train => "train".to_string(),
        RunFileKind::Align => "align".to_string(),
    });
    Ok(CheckReport { file: file.to_path_buf(), kind, problems })
}
