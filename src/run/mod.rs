//! Runs: what a run file names, opened; the run directory; what commands share.

pub(crate) mod align_data;
pub(crate) mod entities;
pub(crate) mod out_of_memory;
pub(crate) mod prompt_context;
pub(crate) mod prompt_selection;
pub(crate) mod qformer_artifact;
pub(crate) mod run_dir;
pub(crate) mod samples;
pub(crate) mod self_check;
pub(crate) mod text_tasks;
pub(crate) mod verified_devices;

pub use align_data::AlignIdentity;
pub(crate) use out_of_memory::catch_out_of_memory;
pub use prompt_selection::PromptSelection;
pub use qformer_artifact::{AlignedConfig, open_aligned};
pub use run_dir::{ChosenPrior, OpenRun, TriedWeight, open_run};
pub use self_check::Check;
pub use text_tasks::{TextEvaluation, TextTaskData, evaluate_texts, writes_texts};

use burn::DispatchDevice;
use burn::prelude::Backend;

use crate::config::Precision;
use crate::device::Concrete;
use crate::{Error, Result};

/// What the LLM's products are computed in, and what else the device could, in words.
///
/// # Errors
/// A device that does not compute in what is asked for.
pub(crate) fn precision(asked: Precision, device: &DispatchDevice) -> Result<String> {
    let able = |precision: &Precision| Concrete::supports_dtype(device, precision.dtype().into());
    let all: Vec<String> = Precision::ALL.iter().filter(|p| able(p)).map(Precision::to_string).collect();
    match able(&asked) {
        true => Ok(format!("the LLM computes in {asked}, by llm.precision; this device can {}", all.join(", "))),
        false => Err(Error::usage(format!(
            "llm.precision is \"{asked}\", in which this device cannot compute; it can {}",
            all.join(", ")
        ))),
    }
}

/// # Errors
/// A log-probability that is NaN, as of damaged weights; or a panic on a device's own thread, after
/// which its numbers are garbage.
pub(crate) fn check_log_probs(mut log_probs: impl Iterator<Item = f64>) -> Result<()> {
    if let Some(panic) = crate::core::panic::recorded_panic() {
        return Err(Error::failed(format!("a thread of the device died ({panic}); its numbers cannot be trusted")));
    }
    match log_probs.any(f64::is_nan) {
        true => Err(Error::failed(
            "the model's log-probabilities are NaN: its weights are damaged, or llm.precision = \"f16\" overflows",
        )),
        false => Ok(()),
    }
}
