//! Live progress: on a terminal a line a device and a bar over all runs, else a line now
//! and then.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::process::tail;
use crate::core::log::log;

/// Time between two lines of a device where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// The progress of an experiment, on stderr. The bars go away when the value is dropped.
pub(super) struct Live {
    /// On a terminal.
    bars: Option<Bars>,
    /// `[devices]`
    running: Vec<Mutex<Running>>,
}

struct Bars {
    all: MultiProgress,
    runs: ProgressBar,
    /// `[devices]`
    devices: Vec<ProgressBar>,
}

/// The run of a device.
struct Running {
    /// Directory of the run.
    run_dir: String,
    /// Steps that the first look found done, and when that was.
    first: Option<(u64, Instant)>,
    /// The last line, where stderr is no terminal.
    said: Instant,
}

impl Live {
    /// Begins to show `total` runs, of which `done` are done.
    pub fn new(devices: &[String], total: usize, done: usize) -> Self {
        let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::new();
            let line = |device: &String| {
                let line = all.add(ProgressBar::new_spinner().with_prefix(device.clone()));
                line.with_style(style("{prefix}  {wide_msg}"))
            };
            let devices = devices.iter().map(line).collect();
            let runs =
                all.add(ProgressBar::new(total as u64).with_style(style("runs {wide_bar} {pos}/{len}, {elapsed}")));
            runs.set_position(done as u64);
            runs.enable_steady_tick(Duration::from_secs(1));
            Bars { all, runs, devices }
        });
        let running = || Mutex::new(Running { run_dir: String::new(), first: None, said: Instant::now() });
        Self { bars, running: devices.iter().map(|_| running()).collect() }
    }

    /// Shows that a device begins with a run.
    pub fn begin(&self, device: usize, run_dir: &str) {
        *self.running(device) = Running { run_dir: run_dir.into(), first: None, said: Instant::now() };
        if let Some(bars) = &self.bars {
            bars.devices[device].set_message(shown(run_dir));
        }
    }

    /// Shows the last line of the log of a device's child process.
    pub fn follow(&self, device: usize, log_file: &Path) {
        let mut running = self.running(device);
        if self.bars.is_none() && running.said.elapsed() < LINE_EVERY {
            return;
        }
        let text = tail(log_file).unwrap_or_default();
        let Some(line) = text.lines().rev().find(|line| !line.trim().is_empty()) else { return };
        let left =
            time_left(line, &mut running.first, Instant::now()).map_or(String::new(), |left| format!("  {left}"));
        let line = shown(&format!("{}  {}{left}", running.run_dir, line.trim()));
        match &self.bars {
            Some(bars) => bars.devices[device].set_message(line),
            None => {
                running.said = Instant::now();
                log(line);
            }
        }
    }

    /// Writes a line above the bars, or just a line.
    pub fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.all.suspend(|| log(shown(line))),
            None => log(shown(line)),
        }
    }

    /// Shows that a device's run ended, and how many are done.
    pub fn end(&self, device: usize, done: usize) {
        if let Some(bars) = &self.bars {
            bars.devices[device].set_message("");
            bars.runs.set_position(done as u64);
        }
    }

    fn running(&self, device: usize) -> std::sync::MutexGuard<'_, Running> {
        self.running[device].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(bars) = &self.bars {
            bars.devices.iter().chain([&bars.runs]).for_each(ProgressBar::finish_and_clear);
        }
    }
}

/// Names come from files: none may move the cursor.
fn shown(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Returns how long a process that says `line`, such as `step 3/40 …`, still takes, by the speed
/// since `first`, the first look at it.
fn time_left(line: &str, first: &mut Option<(u64, Instant)>, now: Instant) -> Option<String> {
    let (done, total) = line.split_whitespace().find_map(|word| {
        let (done, total) = word.split_once('/')?;
        Some((done.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
    })?;
    let (at, since) = match *first {
        Some((at, since)) if at <= done => (at, since),
        // Training began, or ranking after it.
        _ => *first.insert((done, now)),
    };
    let seconds = now.duration_since(since).as_secs_f64() / done.checked_sub(at).filter(|&n| n > 0)? as f64
        * total.saturating_sub(done) as f64;
    Some(match seconds {
        ..90.0 => format!("{seconds:.0} s left"),
        ..5400.0 => format!("{:.0} min left", seconds / 60.0),
        _ => format!("{:.1} h left", seconds / 3600.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_steps_seen() {
        let (mut first, begin) = (None, Instant::now());
        let mut at = |line: &str, seconds| time_left(line, &mut first, begin + Duration::from_secs(seconds));
        // The steps of a resumed run were taken before.
        assert_eq!(at("step 10/40  epoch 1  loss 2.5", 0), None);
        assert_eq!(at("step 10/40  epoch 1  loss 2.5", 7), None);
        assert_eq!(at("step 20/40  epoch 1  loss 2.25", 30).as_deref(), Some("60 s left"));
        assert_eq!(at("step 25/40", 300).as_deref(), Some("5 min left"));
        assert_eq!(at("epoch 1  NDCG@10 0.02", 310), None);
        // Another count begins.
        assert_eq!(at("ranking 5/2000", 400), None);
        assert_eq!(at("ranking 10/2000", 500).as_deref(), Some("11.1 h left"));
        assert_eq!(at("loss 1/x", 500), None);
    }
}
