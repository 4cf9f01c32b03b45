//! Messages for people, on stderr.

use std::fmt::Display;
use std::io::Write;

/// Writes a line to stderr. Unlike `eprintln!` it does not panic where writing fails: a log on a
/// full disk or into a closed pipe must not end a run.
pub fn log(line: impl Display) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
