//! The number types in which a device computes an LLM.

use burn::DispatchDevice;
use burn::prelude::Backend;

use crate::config::Precision;
use crate::device::Concrete;
use crate::{Error, Result};

/// Checks that `device` computes in `precision`, and returns in words which types it can.
///
/// # Errors
/// A device that does not compute in `precision`.
pub(crate) fn check_precision(precision: Precision, device: &DispatchDevice) -> Result<String> {
    let able = |precision: &Precision| Concrete::supports_dtype(device, precision.dtype().into());
    let all: Vec<String> = Precision::ALL.iter().filter(|p| able(p)).map(Precision::to_string).collect();
    match able(&precision) {
        true => Ok(format!("the LLM computes in {precision}, by llm.precision; this device can {}", all.join(", "))),
        false => Err(Error::usage(format!(
            "llm.precision is \"{precision}\", in which this device cannot compute; it can {}",
            all.join(", ")
        ))),
    }
}
