//! What burn-train's terminal dashboard shows, and its silent twin.

use std::io::Write;
use std::sync::Arc;

use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

use super::StepOutput;

/// How a run shows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ui {
    /// burn-train's dashboard on the terminal's alternate screen.
    Tui,
    /// A line a step on stderr.
    Plain,
    /// Nothing.
    None,
}

/// A number of [`StepOutput`] as a dashboard curve.
#[derive(Clone)]
pub struct Curve {
    name: MetricName,
    value: fn(&StepOutput) -> f64,
    higher_is_better: bool,
    state: NumericMetricState,
}

impl Curve {
    /// A curve of `value`.
    pub fn new(name: &str, higher_is_better: bool, value: fn(&StepOutput) -> f64) -> Self {
        Self { name: Arc::new(name.into()), value, higher_is_better, state: NumericMetricState::default() }
    }
}

impl Adaptor<StepOutput> for StepOutput {
    fn adapt(&self) -> StepOutput {
        *self
    }
}

impl Metric for Curve {
    type Input = StepOutput;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes { unit: None, higher_is_better: self.higher_is_better }.into()
    }

    fn update(&mut self, item: &StepOutput, _: &MetricMetadata) -> SerializedEntry {
        self.state.update((self.value)(item), 1, FormatOptions::new(self.name()).precision(4))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for Curve {
    fn value(&self) -> NumericEntry {
        self.state.current_value()
    }

    fn running_value(&self) -> NumericEntry {
        self.state.running_value()
    }
}

/// Lets Ctrl-C interrupt again: the dashboard's raw mode takes it for a key and ignores it.
pub(super) fn keyboard_signals() {
    #[cfg(unix)]
    {
        let mut terminal = std::mem::MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: tcgetattr fills the struct it is given; the struct is used only if it says that
        // it did.
        unsafe {
            if libc::tcgetattr(libc::STDIN_FILENO, terminal.as_mut_ptr()) == 0 {
                let mut terminal = terminal.assume_init();
                terminal.c_lflag |= libc::ISIG;
                libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &terminal);
            }
        }
    }
}

/// Leaves the dashboard's screen and raw mode, for a process that ends without the dashboard's own
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

/// A renderer that draws nothing: burn-train's own prints debug structures to stdout.
pub struct Silent;

impl MetricsRendererTraining for Silent {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
    fn render_train(&mut self, _: TrainingProgress, _: Vec<ProgressType>) {}
    fn render_valid(&mut self, _: TrainingProgress, _: Vec<ProgressType>) {}
}

impl MetricsRendererEvaluation for Silent {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
    fn render_test(&mut self, _: EvaluationProgress, _: Vec<ProgressType>) {}
}

impl MetricsRenderer for Silent {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}
