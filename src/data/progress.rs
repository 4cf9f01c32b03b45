//! Rows and rows a second on a terminal; and the wish to stop.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Set by the first Ctrl-C: work stops at the next block of rows, and its temporary folders go.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Characters of the bar.
const BAR: u64 = 24;

/// A bar with rows and rows a second on a terminal, from the first second on.
pub(crate) struct Progress {
    visible: bool,
    what: String,
    rows: u64,
    /// Total number of bytes.
    total: u64,
    /// Number of bytes read so far; readers add to it.
    pub(crate) bytes: Arc<AtomicU64>,
    started: Instant,
    last: Instant,
    drawn: bool,
}

impl Progress {
    /// Starts a bar, which is shown if stderr is a terminal.
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let now = Instant::now();
        let visible = std::io::stderr().is_terminal();
        Self {
            visible,
            what: what.into(),
            rows: 0,
            total,
            bytes: Arc::default(),
            started: now,
            last: now,
            drawn: false,
        }
    }

    /// Adds rows.
    ///
    /// # Errors
    /// The work was asked to stop.
    pub(crate) fn add(&mut self, rows: u64) -> Result<()> {
        check_stop()?;
        self.rows += rows;
        let now = Instant::now();
        if self.visible && now - self.started > Duration::from_secs(1) && now - self.last > Duration::from_millis(100) {
            self.last = now;
            self.drawn = true;
            let rate = self.rows as f64 / (now - self.started).as_secs_f64();
            let done =
                (self.bytes.load(Ordering::Relaxed) * BAR).checked_div(self.total).unwrap_or(0).min(BAR) as usize;
            let bar = format!("[{}{}]", "#".repeat(done), "-".repeat(BAR as usize - done));
            let line =
                format!("{} {bar} {:.2} million rows, {:.2} million/s", self.what, self.rows as f64 / 1e6, rate / 1e6);
            let _ = std::io::stderr().write_all(format!("\r\x1b[K{line}").as_bytes());
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

/// Checks whether the work was asked to stop.
///
/// # Errors
/// It was.
pub(crate) fn check_stop() -> Result<()> {
    if STOP.load(Ordering::Relaxed) {
        return Err(Error::failed("interrupted: nothing was written"));
    }
    Ok(())
}
