//! A device whose memory gives out is one line that says what to lower.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use crate::config::{RunConfig, TrainConfig};
use crate::core::panic::{recorded_panic, take_recorded_panic};
use crate::device::{BackendChoice, out_of_memory_message};
use crate::train::{Checkpoints, Progress, ValidationScore};
use crate::{Error, Result};

/// Does `work`; where the device's memory gives out meanwhile, on this thread or on the device's
/// own, the error says so, and `then`: when it was and what helps.
///
/// # Errors
/// Those of `work`.
///
/// # Panics
/// As `work`, where it is about something else.
pub(crate) fn catch_out_of_memory<T>(
    backend: &BackendChoice,
    then: impl FnOnce() -> String,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    if let Ok(Ok(value)) = done {
        return Ok(value);
    }
    // A read of a tensor that failed returns an error, other operations panic.
    let panic = recorded_panic().unwrap_or_default();
    let error = done.as_ref().ok().and_then(|done| done.as_ref().err()).map(Error::to_string).unwrap_or_default();
    if let Some(why) = out_of_memory_message(&panic).or_else(|| out_of_memory_message(&error)) {
        // It is told here; the work that this is a part of need not.
        take_recorded_panic();
        return Err(Error::failed(format!("{backend} ran out of memory ({why}) {}", then())));
    }
    match done {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}

/// When a run's training stopped, what helps, and what is kept.
pub(crate) fn training(config: &RunConfig, dir: &Path) -> String {
    let TrainConfig { micro_batch_size, gradient_checkpointing, .. } = config.train;
    let (key, value) = match (micro_batch_size, config.train.micro_batch_tokens) {
        (Some(samples), _) => ("micro_batch_size", samples),
        (None, tokens) => ("micro_batch_tokens", tokens.unwrap_or(TrainConfig::MICRO_BATCH_TOKENS)),
    };
    let or = if gradient_checkpointing { "" } else { " or set train.gradient_checkpointing = true" };
    let latest = Checkpoints::open(dir).and_then(|checkpoints| checkpoints.latest::<Progress<ValidationScore>>());
    let kept = match latest {
        Ok(Some((_, progress))) => format!("checkpoint {} is kept", progress.step),
        _ => "there is no checkpoint yet".into(),
    };
    let step = last_step(dir) + 1;
    format!("in step {step}: lower train.{key} (now {value}){or}; {kept}")
}

/// The last optimiser step that `metrics.jsonl` tells of.
fn last_step(dir: &Path) -> u64 {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
    let last: Option<serde_json::Value> = text.lines().next_back().and_then(|line| serde_json::from_str(line).ok());
    last.and_then(|line| line["step"].as_u64()).unwrap_or(0)
}
