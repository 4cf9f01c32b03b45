//! `itemlm doctor`: the backends and devices of this build and this machine, their speed, and
//! whether they compute the same numbers as the CPU.

use std::path::PathBuf;

use serde::Serialize;

use crate::config::Precision;
use crate::core::panic::DeviceGuard;
use crate::core::system;
use crate::device::{Adapter, BackendName, CopyRate, MatmulRate, ProductRate, TUNED};
use crate::device::{copy_rate, kernels_dir, matmul_rate, step_product_rates};
use crate::kernels::InstructionSet;
use crate::run::Check;
use crate::run::self_check::{Numbers, SelfCheck, compare, no_cpu, operation_checks};
use crate::{Error, Result};

/// burn's version, as Cargo.toml pins it; burn itself does not tell it.
const BURN: &str = "0.21.0";
/// The report of `doctor --json`.
#[derive(Debug, Clone, Serialize)]
pub struct DoctorReport {
    /// itemlm's version.
    pub itemlm: String,
    /// burn's version.
    pub burn: String,
    /// The machine.
    pub host: Host,
    /// Whether the kernels of wgpu and CUDA are fused, and selected by timing them.
    pub tuned: bool,
    /// Folder in which the selected kernels are kept between runs: [`kernels_dir`].
    pub kernels: Option<PathBuf>,
    /// A report for each backend, compiled in or not.
    pub backends: Vec<BackendReport>,
    /// Whether no backend's self-check failed.
    pub passed: bool,
}

/// The machine, as far as the system tells.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Operating system and processor family.
    pub system: String,
    /// Threads that the CPU backend and the data readers use (RAYON_NUM_THREADS).
    pub threads: usize,
    /// Instruction set of the CPU backend's loops and products: AVX-512, AVX2, SSE2 or NEON.
    pub instruction_set: String,
    /// Total physical memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Memory available to new allocations, bytes.
    pub available_bytes: Option<u64>,
    /// Memory limit of this process's container, bytes.
    pub limit_bytes: Option<u64>,
}

/// The result for a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// This build lacks the backend.
    NotCompiled,
    /// The backend finds no device that works.
    NoDevice,
    /// The device computes the same numbers as the CPU.
    Passed,
    /// The device computes other numbers than the CPU.
    Failed,
}

/// A backend, its devices, and the results of the one in use.
#[derive(Debug, Clone, Serialize)]
pub struct BackendReport {
    /// Name of the backend: cpu, wgpu or cuda.
    pub name: BackendName,
    /// The result for the backend.
    pub status: Status,
    /// Reason why it is not [`Status::Passed`].
    pub reason: Option<String>,
    /// The backend's devices.
    pub adapters: Vec<Adapter>,
    /// Speed of matrix products; null where the backend did not run.
    pub matmul: Option<MatmulRate>,
    /// Speed of copies; null where the backend did not run.
    pub copy: Option<CopyRate>,
    /// Products of a training step; empty where the backend did not run.
    pub step_products: Vec<ProductRate>,
    /// The self-check, part by part.
    pub checks: Vec<Check>,
}

/// Inspects the machine and tries every backend of the build.
///
/// # Errors
/// The self-check's model cannot be written to the temporary directory. A self-check that fails is
/// no error here: see [`DoctorReport::verdict`].
pub fn doctor() -> Result<DoctorReport> {
    let self_check = SelfCheck::new()?;
    let mut reference = None;
    let backends: Vec<BackendReport> =
        BackendName::ALL.into_iter().map(|name| examine(name, &self_check, &mut reference)).collect();
    Ok(DoctorReport {
        itemlm: env!("CARGO_PKG_VERSION").into(),
        burn: BURN.into(),
        host: host(),
        tuned: TUNED,
        kernels: kernels_dir(),
        passed: backends.iter().all(|backend| backend.status != Status::Failed),
        backends,
    })
}

impl DoctorReport {
    /// Returns an error if a self-check failed.
    ///
    /// # Errors
    /// The first backend whose self-check failed. A backend that is not compiled in or has no
    /// device is none.
    pub fn verdict(&self) -> Result<()> {
        let Some(bad) = self.backends.iter().find(|backend| backend.status == Status::Failed) else { return Ok(()) };
        let (name, why) = (bad.name, bad.reason.as_deref().unwrap_or_default());
        Err(Error::failed(format!(
            "self-check of {name}: {why}; do not use --backend {name} here, or update its driver"
        )))
    }
}

/// Tries a backend.
///
/// * `reference`: the CPU's numbers, kept when the CPU is examined and compared with afterwards.
fn examine(name: BackendName, self_check: &SelfCheck, reference: &mut Option<Numbers>) -> BackendReport {
    let mut report = BackendReport {
        name,
        status: Status::NotCompiled,
        reason: None,
        adapters: Vec::new(),
        matmul: None,
        copy: None,
        step_products: Vec::new(),
        checks: Vec::new(),
    };
    let device = match name.adapters().and_then(|adapters| {
        report.adapters = adapters;
        name.device()
    }) {
        Ok(device) => device,
        Err(why) => {
            // A device that computes wrong numbers is no usage error.
            let wrong = why.exit_code() == 1;
            let why = why.to_string();
            let why = why.strip_prefix(&format!("option `backend` {name}: ")).unwrap_or(&why);
            if name.is_compiled() {
                report.status = if wrong { Status::Failed } else { Status::NoDevice };
            }
            report.reason = Some(why.into());
            // A listed GPU may still lack features that runs need.
            report.adapters.iter_mut().for_each(|adapter| adapter.used = false);
            return report;
        }
    };
    let tried = DeviceGuard::new().run(|| {
        report.matmul = Some(matmul_rate(&device, Precision::F32.dtype())?);
        report.copy = Some(copy_rate(&device)?);
        report.step_products = step_product_rates(&device)?;
        let numbers = self_check.run(&device)?;
        report.checks = match reference {
            _ if name == BackendName::Cpu => self_check.cpu_with_itself(&numbers, &device)?,
            Some(cpu) => compare(self_check, &numbers, cpu, &device),
            None => return Err(no_cpu()),
        };
        report.checks.extend(operation_checks(&device)?);
        Ok(numbers)
    });
    report.reason = match tried {
        Err(why) => Some(why.to_string()),
        Ok(numbers) => {
            if name == BackendName::Cpu {
                *reference = Some(numbers);
            }
            report.checks.iter().find(|check| !check.passed).map(Check::failure)
        }
    };
    report.status = if report.reason.is_none() { Status::Passed } else { Status::Failed };
    report
}

fn host() -> Host {
    Host {
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: rayon::current_num_threads(),
        instruction_set: InstructionSet::detect().to_string(),
        memory_bytes: system::memory_bytes(),
        available_bytes: system::available_bytes(),
        limit_bytes: system::limit_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burn_is_the_pinned_one() {
        assert!(include_str!("../../Cargo.toml").contains(&format!("\nburn = {{ version = \"={BURN}\"")));
    }

    #[test]
    fn a_failed_check_is_one_line_and_exit_code_1() {
        let backend = |name, status, reason: Option<&str>| BackendReport {
            name,
            status,
            reason: reason.map(String::from),
            adapters: Vec::new(),
            matmul: None,
            copy: None,
            step_products: Vec::new(),
            checks: Vec::new(),
        };
        let mut report = DoctorReport {
            itemlm: String::new(),
            burn: BURN.into(),
            host: host(),
            tuned: false,
            kernels: None,
            backends: vec![
                backend(BackendName::Cpu, Status::Passed, None),
                backend(BackendName::Wgpu, Status::NotCompiled, Some("this build lacks it")),
                backend(BackendName::Cuda, Status::NoDevice, Some("no NVIDIA driver")),
            ],
            passed: true,
        };
        assert!(report.verdict().is_ok(), "what is not there cannot fail");
        report.backends[1] = backend(BackendName::Wgpu, Status::Failed, Some("the device died (lost)"));
        let error = report.verdict().unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let expected =
            "self-check of wgpu: the device died (lost); do not use --backend wgpu here, or update its driver";
        assert_eq!(error.to_string(), expected);
    }
}
