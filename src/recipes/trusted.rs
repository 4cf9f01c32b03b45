//! Devices that compute what the CPU computes.

use burn::DispatchDevice;

use super::doctor::disagreement;
use crate::backend::{BackendChoice, BackendName, TUNED};
use crate::{Error, Result};

/// The devices to run on. Kernels that are fused, and chosen by timing them ([`TUNED`]), have given wrong numbers in silence: in a build
/// that has them a GPU must first pass `doctor`'s self-check.
///
/// # Errors
/// As [`BackendChoice::devices`]; a device that computes otherwise than the CPU.
pub(super) fn trusted_devices(backend: &BackendChoice) -> Result<Vec<DispatchDevice>> {
    let devices = backend.devices()?;
    if TUNED && backend.name != BackendName::Cpu {
        for device in &devices {
            if let Some(why) = disagreement(device)? {
                return Err(Error::failed(format!(
                    "--backend {backend}: with fused and tuned kernels {why}; take a build without the feature `tuned`, or update the driver"
                )));
            }
        }
    }
    Ok(devices)
}

/// The device of a command that runs on one.
///
/// # Errors
/// As [`trusted_devices`]; several devices.
pub(super) fn trusted_device(backend: &BackendChoice) -> Result<DispatchDevice> {
    if backend.adapters.len() > 1 {
        return Err(Error::usage(format!(
            "--backend {backend}: this runs on one device, name one; several share the steps of `train` and the ranking of `evaluate`"
        )));
    }
    Ok(trusted_devices(backend)?.swap_remove(0))
}
