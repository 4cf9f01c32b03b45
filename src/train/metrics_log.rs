//! Files with one JSON object a line: `metrics.jsonl` has a line for each optimiser step.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use crate::core::files::write_atomic;
use crate::{Context, Result};

/// A file of JSON lines, each of which has the number `step`.
#[derive(Debug, Clone)]
pub struct MetricsLog {
    path: PathBuf,
}

impl MetricsLog {
    /// Opens the file and drops the lines after `step`, which a killed process wrote after its last
    /// checkpoint. The file is created with the first line.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn open(path: PathBuf, step: usize) -> Result<Self> {
        if let Ok(text) = fs::read_to_string(&path) {
            let keep = |line: &&str| {
                let value: Option<Value> = serde_json::from_str(line).ok();
                value.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step as u64)
            };
            let kept: String = text.lines().filter(keep).flat_map(|line| [line, "\n"]).collect();
            if kept != text {
                write_atomic(&path, kept.as_bytes())?;
            }
        }
        Ok(Self { path })
    }

    /// Returns whether there is no line yet.
    pub fn is_empty(&self) -> bool {
        fs::metadata(&self.path).map_or(true, |file| file.len() == 0)
    }

    /// Adds a line.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn append(&self, line: &Value) -> Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).context(self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn drops_lines_after_the_checkpoint_and_torn_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let log = MetricsLog::open(path.clone(), 0).unwrap();
        assert!(log.is_empty());
        (1..=3).for_each(|step| log.append(&json!({ "step": step, "loss": 0.5 })).unwrap());
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\": 1, \"lo").unwrap();
        assert!(!MetricsLog::open(path.clone(), 2).unwrap().is_empty());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"loss\":0.5,\"step\":1}\n{\"loss\":0.5,\"step\":2}\n");
    }
}
