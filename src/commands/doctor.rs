//! `itemlm doctor`: what this build and this machine offer, how fast, and whether it computes what
//! the CPU computes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use burn::DispatchDevice;
use burn::prelude::*;
use serde::Serialize;

use crate::run::Check;
use crate::run::self_check::{Numbers, SelfCheck};

use crate::config::Precision;
use crate::core::panic::{recorded_panic, take_recorded_panic};
use crate::core::system;
use crate::device::{Adapter, BackendName, Concrete, TUNED, kernels_dir};
use crate::{Context, Error, Result};

/// As Cargo.toml pins it; burn does not tell its version.
const BURN: &str = "0.21.0";
/// A product, a copy: the median of so many.
const REPETITIONS: usize = 5;
/// Rows of the matrices multiplied: doubled from the smallest while a product takes less than
/// [`LONG_ENOUGH`].
const ROWS: [usize; 5] = [256, 512, 1024, 2048, 4096];
/// Seconds, by far more than it takes to start work on a device.
const LONG_ENOUGH: f64 = 0.05;
/// Numbers copied, 64 MiB: more than a CPU's cache.
const COPIED: usize = 16 << 20;
/// Copies that are timed together.
const COPIES: usize = 4;

/// What `doctor --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct DoctorReport {
    /// itemlm's version.
    pub itemlm: String,
    /// burn's version.
    pub burn: String,
    /// The machine.
    pub host: Host,
    /// Whether the kernels of wgpu and CUDA are fused, and chosen by timing them.
    pub tuned: bool,
    /// Where the choices are kept between runs: [`kernels_dir`].
    pub kernels: Option<PathBuf>,
    /// One a backend, compiled in or not.
    pub backends: Vec<BackendReport>,
    /// No backend's self-check failed.
    pub passed: bool,
}

/// The machine, as far as the system tells.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Operating system and processor family.
    pub system: String,
    /// Threads that the CPU backend and the data readers use (RAYON_NUM_THREADS).
    pub threads: usize,
    /// Of all.
    pub memory_bytes: Option<u64>,
    /// That programs could get.
    pub available_bytes: Option<u64>,
    /// The limit on this process's container.
    pub limit_bytes: Option<u64>,
}

/// What became of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// This build lacks it.
    NotCompiled,
    /// It finds no device that works.
    NoDevice,
    /// It computes what the CPU computes.
    Passed,
    /// It does not.
    Failed,
}

/// A backend, its devices, and how the one in use does.
#[derive(Debug, Clone, Serialize)]
pub struct BackendReport {
    /// cpu, wgpu or cuda.
    pub name: BackendName,
    /// What became of it.
    pub status: Status,
    /// Why it is not [`Status::Passed`].
    pub reason: Option<String>,
    /// Its devices.
    pub adapters: Vec<Adapter>,
    /// Null where it did not run.
    pub matmul: Option<MatmulRate>,
    /// Null where it did not run.
    pub copy: Option<CopyRate>,
    /// The self-check, part by part.
    pub checks: Vec<Check>,
}

/// A product of two square f32 matrices.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MatmulRate {
    /// Rows and columns.
    pub rows: usize,
    /// 10⁹ additions and multiplications a second.
    pub gflops: f64,
    /// Whether f32 inputs are rounded to the 11 bits of TF32, as burn's products on NVIDIA's tensor
    /// cores do (cubek-matmul 0.2, `definition/blueprint.rs`, `adjust_dtypes`; PyTorch's
    /// `torch.backends.cuda.matmul.allow_tf32`). burn 0.21 has no switch for it.
    pub tf32: bool,
}

/// A pass over f32 numbers within the device's memory that writes them, doubled, elsewhere.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CopyRate {
    /// Read by a pass, and as many written.
    pub bytes: usize,
    /// 10⁹ bytes a second, read and written together.
    pub gb_per_second: f64,
}

/// Looks at the machine and tries every backend of the build.
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

/// * `reference`: the CPU's numbers, kept when the CPU is examined and compared with afterwards.
fn examine(name: BackendName, self_check: &SelfCheck, reference: &mut Option<Numbers>) -> BackendReport {
    let mut report = BackendReport {
        name,
        status: Status::NotCompiled,
        reason: None,
        adapters: Vec::new(),
        matmul: None,
        copy: None,
        checks: Vec::new(),
    };
    let device = match name.adapters().and_then(|adapters| {
        report.adapters = adapters;
        name.device()
    }) {
        Ok(device) => device,
        Err(why) => {
            // A device that is there and computes wrongly is no usage error.
            let wrong = why.exit_code() == 1;
            let why = why.to_string();
            let why = why.strip_prefix(&format!("--backend {name}: ")).unwrap_or(&why);
            if name.is_compiled() {
                report.status = if wrong { Status::Failed } else { Status::NoDevice };
            }
            report.reason = Some(why.into());
            // A listed GPU may still lack what runs work on it.
            report.adapters.iter_mut().for_each(|adapter| adapter.used = false);
            return report;
        }
    };
    let tried = unless_it_panics(|| {
        report.matmul = Some(matmul_rate(&device, Precision::F32)?);
        report.copy = Some(copy_rate(&device)?);
        let numbers = self_check.run(&device)?;
        report.checks = match reference {
            _ if name == BackendName::Cpu => self_check.cpu_with_itself(&numbers, &device)?,
            Some(cpu) => compared(self_check, &numbers, cpu, &device),
            None => return Err(no_cpu()),
        };
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

/// The self-check alone, of tuned kernels.
///
/// # Errors
/// A build without the CPU, a device that dies; as [`doctor()`].
pub(crate) fn checks(device: &DispatchDevice) -> Result<Vec<Check>> {
    let self_check = SelfCheck::new()?;
    let cpu = self_check.run(&BackendName::Cpu.device().map_err(|_| no_cpu())?)?;
    let run = || unless_it_panics(|| Ok(compared(&self_check, &self_check.run(device)?, &cpu, device)));
    // CubeCL leaves out a kernel that panics while it is timed, and does not time it again.
    run().or_else(|_| run())
}

pub(crate) fn no_cpu() -> Error {
    Error::failed("this build has no CPU backend to compare with; build with the feature cpu")
}

/// Tuned kernels of one size may round where those of another do not.
fn compared(self_check: &SelfCheck, numbers: &Numbers, cpu: &Numbers, device: &DispatchDevice) -> Vec<Check> {
    numbers.checks(cpu, self_check.products().into_iter().any(|[rows, width]| rounds_to_tf32(device, rows, width)))
}

/// A device that dies, on this thread or on its own, is a failed self-check.
pub(crate) fn unless_it_panics<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    match (done, recorded_panic()) {
        (Ok(result), None) => result,
        _ => Err(Error::failed(format!("the device died ({})", take_recorded_panic().unwrap_or_default()))),
    }
}

/// Of the largest product that is [`LONG_ENOUGH`].
pub(crate) fn matmul_rate(device: &DispatchDevice, precision: Precision) -> Result<MatmulRate> {
    let mut rate = MatmulRate { rows: 0, gflops: 0.0, tf32: false };
    for rows in ROWS {
        let matrix = Tensor::<Concrete, 2>::ones([rows, rows], device).cast(precision.dtype());
        let seconds = median_seconds(device, || matrix.clone().matmul(matrix.clone()))?;
        rate = MatmulRate { rows, gflops: 2.0 * (rows as f64).powi(3) / seconds / 1e9, tf32: false };
        if seconds > LONG_ENOUGH {
            break;
        }
    }
    rate.tf32 = rounds_to_tf32(device, rate.rows, rate.rows);
    Ok(rate)
}

/// A product of `[rows, width]` and `[width, rows]`: sums of numbers that f32 holds and TF32 does
/// not, all of whose partial sums are exact in f32.
pub(crate) fn rounds_to_tf32(device: &DispatchDevice, rows: usize, width: usize) -> bool {
    let above_one = f32::EPSILON * 2048.0;
    let numbers = Tensor::<Concrete, 2>::full([rows, width], 1.0 + above_one, device);
    let sums = numbers.clone().matmul(numbers.ones_like().transpose());
    (sums.max().into_scalar().elem::<f32>() - width as f32) < width as f32 * above_one / 2.0
}

fn copy_rate(device: &DispatchDevice) -> Result<CopyRate> {
    // Each copy has numbers of its own, which it must read, and all are kept until they are there:
    // fusion leaves out what nobody awaits.
    let numbers: Vec<_> = (0..COPIES).map(|_| Tensor::<Concrete, 1>::ones([COPIED], device)).collect();
    let bytes = COPIED * size_of::<f32>();
    let copy = || numbers.iter().map(|numbers| numbers.clone().mul_scalar(2.0)).collect::<Vec<_>>();
    let seconds = median_seconds(device, copy)? / COPIES as f64;
    Ok(CopyRate { bytes, gb_per_second: 2.0 * bytes as f64 / seconds / 1e9 })
}

/// Of [`REPETITIONS`], after one more that compiles the kernels.
fn median_seconds<T>(device: &DispatchDevice, work: impl Fn() -> T) -> Result<f64> {
    let mut seconds = Vec::with_capacity(REPETITIONS);
    for repetition in 0..=REPETITIONS {
        let started = Instant::now();
        let _made = work();
        Concrete::sync(device).map_err(|e| format!("{e:?}")).context("the device fails")?;
        if repetition > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds.get(REPETITIONS / 2).copied().unwrap_or(f64::NAN))
}

fn host() -> Host {
    Host {
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: rayon::current_num_threads(),
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
    fn the_cpu_rounds_no_input() {
        let device = BackendName::Cpu.device().unwrap();
        assert!(!rounds_to_tf32(&device, ROWS[0], ROWS[0]) && !rounds_to_tf32(&device, 33, 64));
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
