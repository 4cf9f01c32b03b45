//! The number types in which a device computes an LLM, and how its products round.

use burn::DispatchDevice;
use burn::prelude::Backend;

use crate::config::Precision;
use crate::device::{Concrete, rounds_to_tf32};
use crate::{Error, Result};

/// Numbers of rows of products that are tried for rounding: a device may choose another kernel for
/// large ones.
const ROWS: [usize; 2] = [128, 1024];

/// Returns whether the products of an LLM on `device` round their inputs to fewer bits than f32
/// has: by `precision`, or by the device's own choice.
pub(crate) fn products_round(precision: Precision, device: &DispatchDevice) -> bool {
    precision != Precision::F32 || ROWS.iter().any(|&rows| rounds_to_tf32(device, rows, rows))
}

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
