//! Errors of devices that run out of memory: one line that says what to lower.

use std::path::Path;

use crate::config::{RunConfig, TrainConfig};
use crate::core::panic::{DeviceGuard, catch};
use crate::device::{BackendChoice, out_of_memory_message};
use crate::train::{Checkpoints, Progress, ValidationScore};
use crate::{Error, Result};

/// Runs `work` on a device; the panic of a device that ran out of memory becomes an error.
///
/// * `advice`: when that was, and what helps.
///
/// # Errors
/// Those of `work`; a device that ran out of memory.
///
/// # Panics
/// Those of `work` about something else.
pub(crate) fn catch_out_of_memory<T>(
    backend: &BackendChoice,
    advice: impl FnOnce() -> String,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let guard = DeviceGuard::new();
    let done = catch(work);
    if let Ok(Ok(value)) = done {
        return Ok(value);
    }
    // A failed read of a tensor returns an error, other operations panic.
    let of_work = match &done {
        Ok(result) => result.as_ref().err().map(Error::to_string),
        Err(panic) => Some(panic.message.clone()),
    };
    let mut messages = [guard.panic(), of_work].into_iter().flatten();
    if let Some(why) = messages.find_map(|message| out_of_memory_message(&message).map(str::to_string)) {
        return Err(Error::device(format!("{backend} ran out of memory ({why}) {}", advice())));
    }
    done.unwrap_or_else(|panic| panic.resume())
}

/// Returns when a run's training stopped, what helps, and what is kept.
pub(crate) fn training(config: &RunConfig, dir: &Path) -> String {
    let TrainConfig { micro_batch_size, gradient_checkpointing, .. } = config.train;
    let (key, value) = match (micro_batch_size, config.train.micro_batch_tokens) {
        (Some(samples), _) => ("micro_batch_size", samples),
        (None, tokens) => ("micro_batch_tokens", tokens.unwrap_or(TrainConfig::MICRO_BATCH_TOKENS)),
    };
    let or = if gradient_checkpointing { "" } else { " or set train.gradient_checkpointing = true" };
    let latest =
        Checkpoints::open(dir).and_then(|checkpoints| checkpoints.latest_checkpoint::<Progress<ValidationScore>>());
    let kept = match latest {
        Ok(Some((_, progress))) => format!("checkpoint {} is kept", progress.step),
        _ => "there is no checkpoint yet".into(),
    };
    let step = last_step(dir) + 1;
    format!("in step {step}: lower train.{key} (now {value}){or}; {kept}")
}

/// Returns the last optimiser step in `metrics.jsonl`.
fn last_step(dir: &Path) -> u64 {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
    let last: Option<serde_json::Value> = text.lines().next_back().and_then(|line| serde_json::from_str(line).ok());
    last.and_then(|line| line["step"].as_u64()).unwrap_or(0)
}
