//! Progress on stderr: a bar on a terminal, else a line now and then.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::log::log;

/// Time between two lines where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// The progress of a piece of work with a known number of steps.
///
/// It is drawn on stderr, so that `--json` keeps stdout to itself. The bar goes away when the value
/// is dropped.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: usize,
    display: Display,
}

#[derive(Debug)]
enum Display {
    Hidden,
    Bar(ProgressBar),
    /// The time of the last line.
    Lines(Mutex<Instant>),
}

impl Progress {
    /// Starts to show the progress of `what`, which has `total` steps.
    pub fn new(what: &str, total: usize) -> Self {
        let display = match std::io::stderr().is_terminal() {
            true => {
                let bar = ProgressBar::new(total as u64).with_message(what.to_string());
                let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}, {per_sec}, {eta} left");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                Display::Bar(bar)
            }
            false => Display::Lines(Mutex::new(Instant::now())),
        };
        Self { what: what.into(), total, display }
    }

    /// Makes a progress that shows nothing.
    pub fn hidden() -> Self {
        Self { what: String::new(), total: 0, display: Display::Hidden }
    }

    /// Shows that `done` steps are done.
    pub fn set(&self, done: usize) {
        match &self.display {
            Display::Hidden => {}
            Display::Bar(bar) => bar.set_position(done as u64),
            Display::Lines(last) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    log(format_args!("{} {done}/{}", self.what, self.total));
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}
