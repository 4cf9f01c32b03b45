//! Checks that stop a training run: numbers that are not finite, and a dead device.

use crate::core::panic::DeviceGuard;
use crate::{Error, Result};

/// Checks a number of an optimiser step, before the step uses it.
///
/// * `step`: the optimiser step, from 1.
/// * `what`: the number, as in "loss".
/// * `remedy`: what is kept and what the user can do, as in "the last checkpoint is kept; start a
///   new run with a lower train.learning_rate".
///
/// # Errors
/// A value that is not finite.
pub fn check_finite(step: usize, what: &str, value: f64, remedy: &str) -> Result<()> {
    match value.is_finite() {
        true => Ok(()),
        false => {
            Err(Error::failed(format!("step {step}: the {what} is {value}; the run stopped before using it; {remedy}")))
        }
    }
}

/// Checks that no thread of the device has panicked: the queue of a device whose thread died
/// returns garbage.
///
/// * `step`: the optimiser step, from 1.
///
/// # Errors
/// A panic on one of the device's threads.
pub fn check_device_alive(step: usize) -> Result<()> {
    match DeviceGuard::current().panic() {
        None => Ok(()),
        Some(panic) => Err(Error::device(format!(
            "step {step}: a thread of the device died ({panic}); its numbers cannot be trusted; the last \
             checkpoint, if the run writes any, is kept"
        ))),
    }
}
