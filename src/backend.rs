//! The backends of one binary, chosen at run time.
//!
//! Modules are generic over `B: Backend` and built for [`Concrete`] and, with gradients, [`Training`]; the device says where the
//! work runs.

mod adapters;
#[cfg(all(feature = "cuda", unix))]
mod cuda_driver;

use std::fmt::Display;
use std::panic::catch_unwind;

use burn::prelude::*;
use burn::{Dispatch, DispatchDevice};
use serde::Serialize;

pub use adapters::Adapter;

use crate::{Error, Result};

/// The concrete backend.
pub type Concrete = Dispatch;

/// The concrete backend with gradients, on the same devices. Unlike [`Concrete`] on a `DispatchDevice::autodiff` it has
/// [operations with their own backward](crate::model::fused).
pub type Training = burn::backend::Autodiff<Concrete>;

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// burn-flex, on all cores.
    Cpu,
    /// Any GPU with Vulkan or Metal.
    Wgpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl BackendName {
    /// All, the one that others are checked against first.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Wgpu, Self::Cuda];

    /// Whether this build has it.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Cpu => cfg!(feature = "cpu"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// The first device of this backend, tried out.
    ///
    /// # Errors
    /// A backend that this build lacks, or that finds no device: a usage error that says how to get one.
    pub fn device(self) -> Result<DispatchDevice> {
        let device = match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => DispatchDevice::Flex(Default::default()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => DispatchDevice::Wgpu(Default::default()),
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                // cudarc panics without the driver, and says less.
                self.adapters()?;
                DispatchDevice::Cuda(Default::default())
            }
            #[allow(unreachable_patterns)]
            absent => return Err(absent.missing()),
        };
        let probe = device.clone();
        let sum = catch_unwind(move || {
            let ones = Tensor::<Concrete, 2>::ones([4, 4], &probe);
            ones.clone().matmul(ones).sum().into_scalar().elem::<f32>()
        });
        match sum {
            Ok(64.0) => Ok(device),
            Ok(other) => Err(Error::failed(format!("--backend {self}: a product of ones gave {other} instead of 64"))),
            Err(_) => Err(self.no_device(crate::train::take_recorded_panic().unwrap_or_default())),
        }
    }

    fn no_device(self, why: impl Display) -> Error {
        Error::usage(format!("--backend {self}: no usable device ({why}); {}", self.advice()))
    }

    fn missing(self) -> Error {
        Error::usage(format!("--backend {self}: this build lacks it; build with `cargo build --release --features {self}`"))
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Cpu => "this is a defect, please report it",
            Self::Wgpu => {
                "install a Vulkan or Metal driver (Mesa's software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1)"
            }
            Self::Cuda => "install NVIDIA's driver and CUDA 12 libraries, or use --backend wgpu",
        }
    }
}

impl Display for BackendName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        })
    }
}
