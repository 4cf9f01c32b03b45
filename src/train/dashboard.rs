//! burn-train's terminal dashboard, with curves that are named by strings.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use burn::data::dataloader;
use burn::train::Interrupter;
use burn::train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{MetricState, MetricsRenderer, MetricsRendererTraining, ProgressType, TrainingProgress};

/// The display of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ui {
    /// burn-train's dashboard on the terminal's alternate screen.
    Tui,
    /// A line a step on stderr.
    Plain,
    /// No display.
    None,
}

/// The part of an epoch that numbers belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Train,
    Valid,
}

/// The dashboard, if there is one.
pub(super) struct Dashboard {
    tui: Option<TuiMetricsRendererWrapper>,
    /// Names of the curves that were registered with it.
    registered: HashSet<String>,
}

impl Dashboard {
    /// Opens the dashboard for [`Ui::Tui`]; it closes when it is dropped.
    pub(super) fn open(ui: Ui, interrupter: &Interrupter) -> Self {
        let tui = (ui == Ui::Tui).then(|| {
            let tui = TuiMetricsRendererWrapper::new(interrupter.clone(), None);
            // The dashboard's thread sets the terminal up in this time.
            std::thread::sleep(Duration::from_millis(300));
            keyboard_signals();
            tui
        });
        Self { tui, registered: HashSet::new() }
    }

    /// Adds a point to each of some curves, and moves the bars of progress.
    ///
    /// * `items`: steps of the epoch done and in all.
    /// * `epochs`: the current epoch, from 1, and all.
    pub(super) fn show(
        &mut self,
        phase: Phase,
        curves: &[(&str, f64)],
        items: [usize; 2],
        epochs: [usize; 2],
        step: usize,
    ) {
        let Some(tui) = &mut self.tui else { return };
        for &(name, value) in curves {
            let metric_id = MetricId::new(Arc::new(name.to_string()));
            if self.registered.insert(name.to_string()) {
                // For validation NDCG@10 and for speed, higher is better.
                let higher_is_better = name.starts_with("NDCG") || name.ends_with("per second");
                let attributes = MetricAttributes::from(NumericAttributes { unit: None, higher_is_better });
                let (metric_id, name) = (metric_id.clone(), name.to_string());
                tui.register_metric(MetricDefinition { metric_id, name, description: None, attributes });
            }
            let entry = MetricEntry::new(metric_id, SerializedEntry::new(format!("{value:.4}"), value.to_string()));
            let state = MetricState::Numeric(entry, NumericEntry::Value(value));
            match phase {
                Phase::Train => tui.update_train(state),
                Phase::Valid => tui.update_valid(state),
            }
        }
        let progress = |[done, all]: [usize; 2]| dataloader::Progress::new(done, all);
        let bars = vec![
            ProgressType::Detailed { tag: "Epoch".into(), progress: progress(epochs) },
            ProgressType::Value { tag: "Iteration".into(), value: step },
            ProgressType::Detailed { tag: "Items".into(), progress: progress(items) },
        ];
        let position = TrainingProgress {
            progress: Some(progress(items)),
            global_progress: progress(epochs),
            iteration: Some(step),
        };
        match phase {
            Phase::Train => tui.render_train(position, bars),
            Phase::Valid => tui.render_valid(position, bars),
        }
    }
}

/// Makes Ctrl-C interrupt again: in the dashboard's raw mode it is a key, which the dashboard
/// ignores.
fn keyboard_signals() {
    #[cfg(unix)]
    {
        let mut terminal = std::mem::MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: tcgetattr fills the struct that it is given; the struct is used only if the call
        // succeeded.
        unsafe {
            if libc::tcgetattr(libc::STDIN_FILENO, terminal.as_mut_ptr()) == 0 {
                let mut terminal = terminal.assume_init();
                terminal.c_lflag |= libc::ISIG;
                libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &terminal);
            }
        }
    }
}

/// Leaves the dashboard's screen and raw mode, for a process that ends without the dashboard's
/// clean-up.
pub fn restore_terminal(ui: Ui) {
    if ui != Ui::Tui {
        return;
    }
    #[cfg(unix)]
    {
        let mut terminal = std::mem::MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: as in keyboard_signals.
        unsafe {
            if libc::tcgetattr(libc::STDIN_FILENO, terminal.as_mut_ptr()) == 0 {
                let mut terminal = terminal.assume_init();
                terminal.c_iflag |= libc::ICRNL | libc::IXON;
                terminal.c_oflag |= libc::OPOST;
                terminal.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN;
                libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &terminal);
            }
        }
    }
    // The alternate screen off, the cursor on.
    let _ = std::io::stdout().write_all(b"\x1b[?1049l\x1b[?25h");
}
