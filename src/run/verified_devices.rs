//! Devices that compute the same numbers as the CPU.

use burn::DispatchDevice;

use super::self_check::{Check, checks};
use crate::device::{BackendChoice, BackendName, TUNED};
use crate::{Context, Error, Result};

/// Opens the devices to run on. Kernels that are fused, and selected by timing them ([`TUNED`]),
/// have silently given wrong numbers: in a build that has them a GPU must first pass `doctor`'s
/// self-check.
///
/// # Errors
/// Those of [`BackendChoice::devices`]; a device that dies, or computes other numbers than the CPU.
pub(crate) fn verified_devices(backend: &BackendChoice) -> Result<Vec<DispatchDevice>> {
    // burn lists the adapters only while it sets its first device up; the list is kept.
    if backend.name != BackendName::Cpu {
        backend.adapter()?;
    }
    let devices = backend.devices()?;
    if TUNED && backend.name != BackendName::Cpu {
        for device in &devices {
            let checks =
                checks(device).context(format_args!("option `backend` {backend}: the self-check of tuned kernels"))?;
            refuse(backend, &checks)?;
        }
    }
    Ok(devices)
}

fn refuse(backend: &BackendChoice, checks: &[Check]) -> Result<()> {
    match checks.iter().find(|check| !check.passed) {
        None => Ok(()),
        Some(failed) => Err(Error::failed(format!(
            "option `backend` {backend}: with fused and tuned kernels {}; take a build without the feature `tuned`, \
             or update the driver",
            failed.failure()
        ))),
    }
}

/// Opens the device of a command that runs on one.
///
/// # Errors
/// Those of [`verified_devices`] and [`check_one_device`].
pub(crate) fn verified_device(backend: &BackendChoice) -> Result<DispatchDevice> {
    check_one_device(backend)?;
    Ok(verified_devices(backend)?.swap_remove(0))
}

/// Checks that only one device is named.
///
/// # Errors
/// Several devices.
pub(crate) fn check_one_device(backend: &BackendChoice) -> Result<()> {
    match backend.adapters.len() > 1 {
        false => Ok(()),
        true => Err(Error::usage(format!(
            "option `backend` {backend}: this runs on one device, name one; several share the steps of `train`, the \
             ranking of `evaluate` and the users of `recommend`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_refuses_the_device() {
        let backend: BackendChoice = "cuda:1".parse().unwrap();
        let check = |name, off, passed| Check {
            name,
            against: "the CPU",
            max_difference: off,
            max_relative_difference: off,
            tolerance: 1e-4,
            passed,
        };
        assert!(refuse(&backend, &[check("forward", 1e-6, true)]).is_ok());
        let error = refuse(&backend, &[check("forward", 1e-6, true), check("gradient", 0.5, false)]).unwrap_err();
        let expected = "option `backend` cuda:1: with fused and tuned kernels gradient differs from the CPU by 5.0e-1 \
                        of the largest value, more than 1e-4; \
                        take a build without the feature `tuned`, or update the driver";
        assert_eq!((error.exit_code(), error.to_string().as_str()), (1, expected));
    }
}
