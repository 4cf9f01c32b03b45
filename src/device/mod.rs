//! Backends and devices, chosen at run time.
//!
//! Modules are generic over `B: Backend` and built for [`Concrete`] and, with gradients,
//! [`Training`]; the device says where the work runs.

mod adapters;
#[cfg(feature = "tuned")]
mod autotune_cache;
mod benchmark;
#[cfg(feature = "cuda")]
mod cuda;
mod oom;

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use burn::prelude::*;
use burn::{Dispatch, DispatchDevice};
use serde::Serialize;

pub use adapters::Adapter;
pub use benchmark::{CopyRate, MatmulRate, ProductRate, copy_rate, matmul_rate, rounds_to_tf32, step_product_rates};
pub use oom::out_of_memory_message;

use crate::core::panic::{DeviceGuard, catch};
use crate::{Error, Result};

/// The concrete backend.
pub type Concrete = Dispatch;

/// The concrete backend with gradients, on the same devices. Unlike [`Concrete`] on a
/// `DispatchDevice::autodiff` it has [operations with their own backward](crate::kernels).
pub type Training = burn::backend::Autodiff<Concrete>;

/// Whether this build has the feature `tuned`: kernels of wgpu and CUDA that are fused, and
/// selected by timing them.
pub const TUNED: bool = cfg!(feature = "tuned");

/// Returns the folder in which the selected kernels of a [`TUNED`] build are kept between runs;
/// `None` in other builds. If the program has not set CubeCL's configuration of the process, this
/// or the first device of a GPU sets it.
pub fn kernels_dir() -> Option<PathBuf> {
    #[cfg(feature = "tuned")]
    return autotune_cache::dir_in_use();
    #[cfg(not(feature = "tuned"))]
    None
}

/// Name of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// burn-flex, on all cores.
    Cpu,
    /// Any GPU with Vulkan or Metal.
    Wgpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// A backend and its devices, as `--backend` takes them: `wgpu`, `cuda:1`, `wgpu:radeon`,
/// `cuda:0,1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendChoice {
    /// The backend.
    pub name: BackendName,
    /// Its devices: the index of each in the list of `itemlm doctor`, or a part of its name in any
    /// case. Empty means the first device of CUDA, and the one that wgpu takes for the most
    /// powerful.
    pub adapters: Vec<String>,
}

impl From<BackendName> for BackendChoice {
    fn from(name: BackendName) -> Self {
        Self { name, adapters: Vec::new() }
    }
}

impl Display for BackendChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.adapters.is_empty() { "" } else { ":" };
        write!(f, "{}{sign}{}", self.name, self.adapters.join(","))
    }
}

impl FromStr for BackendChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, adapters) = text.split_once(':').map_or((text, None), |(name, adapters)| (name, Some(adapters)));
        let found = BackendName::ALL.into_iter().find(|backend| backend.to_string() == name);
        let adapters: Vec<String> =
            adapters.into_iter().flat_map(|list| list.split(',')).map(|a| a.trim().into()).collect();
        let Some(name) = found.filter(|&name| {
            adapters.is_empty()
                || name != BackendName::Cpu && adapters.iter().all(|adapter: &String| !adapter.is_empty())
        }) else {
            return Err(Error::usage(
                "it must be cpu, wgpu or cuda; wgpu:DEVICE and cuda:DEVICE take a device by its index or a part of \
                 its name, \
                 wgpu:DEVICE,DEVICE several",
            ));
        };
        match adapters.iter().enumerate().find(|(n, adapter)| adapters[..*n].contains(adapter)) {
            None => Ok(Self { name, adapters }),
            Some((_, twice)) => Err(Error::usage(format!("the device {twice} is named twice"))),
        }
    }
}

impl BackendChoice {
    /// Opens the devices in the order named, and tries each with a small product.
    ///
    /// # Errors
    /// Those of [`BackendName::device`]; an adapter that is not there, a name that several have, an
    /// adapter that two names mean.
    pub fn devices(&self) -> Result<Vec<DispatchDevice>> {
        if self.adapters.is_empty() {
            return Ok(vec![self.name.device()?]);
        }
        let all = self.name.adapters()?;
        let found = self.select(&all)?;
        found.into_iter().map(|adapter| self.name.try_device(self.name.burn_device(Some(adapter))?)).collect()
    }

    /// Returns the adapters that are named, of all that are there.
    fn select<'a>(&self, all: &'a [Adapter]) -> Result<Vec<&'a Adapter>> {
        let mut found: Vec<&Adapter> = Vec::with_capacity(self.adapters.len());
        for wanted in &self.adapters {
            let adapter = find_adapter(self.name, all, wanted)?;
            if found.iter().any(|other| other.index == adapter.index) {
                return Err(Error::usage(format!(
                    "option `backend` {self}: the device {} ({}) is named twice",
                    adapter.index, adapter.name
                )));
            }
            found.push(adapter);
        }
        Ok(found)
    }
}

/// Returns the adapter with the index or the part of a name that is `wanted`.
///
/// # Errors
/// No such adapter, or several.
fn find_adapter<'a>(name: BackendName, adapters: &'a [Adapter], wanted: &str) -> Result<&'a Adapter> {
    let named = |adapter: &&Adapter| adapter.name.to_lowercase().contains(&wanted.to_lowercase());
    // A number is an index only: many names have digits.
    let found: Vec<&Adapter> = match wanted.parse::<usize>() {
        Ok(index) => adapters.iter().filter(|adapter| adapter.index == index).collect(),
        Err(_) => adapters.iter().filter(named).collect(),
    };
    match found.as_slice() {
        [one] => Ok(one),
        _ => {
            let list: Vec<String> = adapters.iter().map(|a| format!("{} ({})", a.index, a.name)).collect();
            let how_many = if found.is_empty() { "no device is" } else { "several devices are" };
            let there =
                if list.is_empty() { "none can be listed".into() } else { format!("there are {}", list.join(", ")) };
            Err(Error::usage(format!("option `backend` {name}:{wanted}: {how_many} that; {there}")))
        }
    }
}

impl BackendName {
    /// All backends; first the one that the others are checked against.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Wgpu, Self::Cuda];

    /// Returns whether this build has the backend.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Cpu => cfg!(feature = "cpu"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// Opens the first device of this backend and tries it with a small product.
    ///
    /// # Errors
    /// A backend that this build lacks, or that finds no device: a usage error that says how to get
    /// one.
    pub fn device(self) -> Result<DispatchDevice> {
        self.try_device(self.burn_device(None)?)
    }

    /// Returns burn's device of `adapter`, or of the first one; it is not tried.
    fn burn_device(self, adapter: Option<&Adapter>) -> Result<DispatchDevice> {
        #[cfg(feature = "tuned")]
        if self != Self::Cpu {
            autotune_cache::set_cache();
        }
        Ok(match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => DispatchDevice::Flex(Default::default()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => DispatchDevice::Wgpu(adapter.map_or_else(|| Ok(Default::default()), Adapter::wgpu)?),
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                // cudarc panics without the driver, and says less.
                self.adapters()?;
                DispatchDevice::Cuda(burn::backend::cuda::CudaDevice::new(adapter.map_or(0, |adapter| adapter.index)))
            }
            #[allow(unreachable_patterns)]
            absent => {
                let _ = adapter;
                return Err(absent.not_compiled());
            }
        })
    }

    /// Returns `device` if a small product on it is right.
    fn try_device(self, device: DispatchDevice) -> Result<DispatchDevice> {
        let probe = device.clone();
        let guard = DeviceGuard::new();
        let sum = catch(move || {
            let ones = Tensor::<Concrete, 2>::ones([4, 4], &probe);
            ones.clone().matmul(ones).sum().into_scalar().elem::<f32>()
        });
        match sum {
            Ok(64.0) => Ok(device),
            Ok(other) => {
                Err(Error::failed(format!("option `backend` {self}: a product of ones gave {other} instead of 64")))
            }
            Err(panic) => Err(self.no_device(guard.panic().unwrap_or(panic.message))),
        }
    }

    fn no_device(self, why: impl Display) -> Error {
        Error::usage(format!("option `backend` {self}: no usable device ({why}); {}", self.advice()))
    }

    fn not_compiled(self) -> Error {
        Error::usage(format!(
            "option `backend` {self}: this build lacks it; build with `cargo build --release --features {self}`"
        ))
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Cpu => "this is a defect, please report it",
            Self::Wgpu => {
                "install a Vulkan or Metal driver (Mesa's software Vulkan: apt-get install mesa-vulkan-drivers \
                 libvulkan1)"
            }
            Self::Cuda => "install NVIDIA's driver and CUDA 12 libraries, or use the backend wgpu",
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

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, name: &str) -> Adapter {
        let text = String::new;
        let (id, kind, api, driver) = (text(), text(), text(), text());
        let (memory_bytes, largest_buffer_bytes) = (None, None);
        Adapter {
            index,
            id,
            name: name.into(),
            kind,
            api,
            driver,
            memory_bytes,
            largest_buffer_bytes,
            used: index == 0,
        }
    }

    #[test]
    fn choices() {
        let choice = |text: &str| text.parse::<BackendChoice>();
        assert_eq!(choice("cpu").unwrap(), BackendName::Cpu.into());
        assert_eq!(choice("cuda:1").unwrap(), BackendChoice { name: BackendName::Cuda, adapters: vec!["1".into()] });
        let two = choice("wgpu:0, radeon").unwrap();
        assert_eq!((two.adapters.len(), two.to_string().as_str()), (2, "wgpu:0,radeon"));
        for wrong in ["", "gpu", "cpu:0", "cpu:0,1", "wgpu:", "wgpu: ", "wgpu:0,", "wgpu:0,1,0", ":1", "CPU"] {
            assert!(choice(wrong).is_err(), "{wrong}");
        }
        let adapters = [adapter(0, "NVIDIA H100"), adapter(1, "AMD Radeon 780M"), adapter(2, "NVIDIA H100")];
        let found = |wanted| find_adapter(BackendName::Wgpu, &adapters, wanted).map(|adapter| adapter.index);
        assert_eq!((found("2").unwrap(), found("radeon").unwrap(), found("780m").unwrap()), (2, 1, 1));
        let several = found("nvidia").unwrap_err().to_string();
        assert!(several.contains("several") && several.contains("2 (NVIDIA H100)"), "{several}");
        assert!(found("3").unwrap_err().to_string().contains("option `backend` wgpu:3: no device is that"));
        assert!(found("intel").is_err() && found("780").is_err(), "a number is an index");
        assert_eq!(two.select(&adapters).unwrap().iter().map(|adapter| adapter.index).collect::<Vec<_>>(), [0, 1]);
        let twice = choice("wgpu:1,radeon").unwrap().select(&adapters).unwrap_err().to_string();
        assert!(twice.contains("wgpu:1,radeon: the device 1 (AMD Radeon 780M) is named twice"), "{twice}");
    }
}
