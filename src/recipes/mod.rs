//! One recipe a command, each read top to bottom.

mod align;
mod align_data;
mod aligned;
mod asked;
mod baseline;
mod cf;
mod doctor;
mod entities;
mod evaluate;
mod inspect;
mod merge;
mod plan;
mod profile;
mod quickstart;
mod ranking;
mod recommend;
mod rows;
mod run_dir;
mod samples;
mod score;
mod train;
mod trusted;
mod warm;
mod within_memory;

pub use align::{AlignReport, align};
pub use align_data::AlignIdentity;
pub use aligned::{AlignedConfig, open_aligned};
pub use asked::TaskChoice;
pub use baseline::{BaselineOptions, BaselineReport, baseline};
pub use cf::{CfOptions, CfReport, cf};
pub use doctor::{BackendReport, Check, CopyRate, DoctorReport, Host, MatmulRate, Status, doctor};
pub use evaluate::{EvaluateOptions, Evaluation, TaskEvaluation, evaluate, rank_windows};
pub use inspect::{
    Bin, Distribution, ExampleWindow, InspectOptions, Inspection, LabelledToken, MASKED, Popularity, Spread, Titles, TopShare,
    Unseen, inspect,
};
pub use merge::merge;
pub use plan::{LargestMicroBatch, Memory, PlanReport, plan};
pub use profile::{PartTime, ProfileReport, profile};
pub use quickstart::{QuickstartReport, quickstart};
pub use recommend::{Recommendation, recommend};
pub use rows::{Rows, TextEvaluation, evaluate_texts, writes_texts};
pub use run_dir::{ChosenPrior, OpenRun, TriedWeight, open_run};
pub use score::{ScoreOptions, score};
pub use train::{FirstLast, TrainOptions, TrainReport, train};
pub use warm::{WarmReport, WarmStep, warm};
pub(crate) use within_memory::within_memory;

use burn::DispatchDevice;
use burn::prelude::Backend;

use crate::backend::Concrete;
use crate::model::Precision;
use crate::{Error, Result};

/// What the LLM's products are computed in, and what else the device could, in words.
///
/// # Errors
/// A device that does not compute in what is asked for.
fn precision(asked: Precision, device: &DispatchDevice) -> Result<String> {
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
/// A log-probability that is NaN, as of damaged weights; or a panic on a device's own thread, after which its numbers are garbage.
fn trustworthy(mut log_probs: impl Iterator<Item = f64>) -> Result<()> {
    if let Some(panic) = crate::train::recorded_panic() {
        return Err(Error::failed(format!("a thread of the device died ({panic}); its numbers cannot be trusted")));
    }
    match log_probs.any(f64::is_nan) {
        true => Err(Error::failed(
            "the model's log-probabilities are NaN: its weights are damaged, or llm.precision = \"f16\" overflows",
        )),
        false => Ok(()),
    }
}
