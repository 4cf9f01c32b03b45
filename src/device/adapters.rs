//! Lists of the devices of each backend.

use serde::Serialize;

use super::{BackendChoice, BackendName};
#[cfg(feature = "wgpu")]
use crate::Error;
use crate::Result;

/// A device that a backend could run on, as its API describes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Adapter {
    /// Index in the backend's list.
    pub index: usize,
    /// burn's name of the device: `DiscreteGpu(1)`, `Cuda(0)`, …
    pub id: String,
    /// Model of the device.
    pub name: String,
    /// `CPU`, `GPU`, `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` (a GPU played by
    /// the CPU) or `other`.
    pub kind: String,
    /// `burn-flex`, `Vulkan`, `Metal`, `Dx12` or `CUDA`.
    pub api: String,
    /// The driver's name and version.
    pub driver: String,
    /// Total memory, bytes, where the API tells (wgpu does not).
    pub memory_bytes: Option<u64>,
    /// Size of the largest tensor, bytes, where the API sets a limit.
    pub largest_buffer_bytes: Option<u64>,
    /// Whether `--backend` runs on it.
    pub used: bool,
}

#[cfg(feature = "wgpu")]
impl Adapter {
    /// Returns burn's device for this wgpu adapter.
    pub(crate) fn wgpu(&self) -> Result<burn::backend::wgpu::WgpuDevice> {
        use burn::backend::wgpu::WgpuDevice;
        let (kind, number) = self.id.trim_end_matches(')').split_once('(').unwrap_or((&self.id, "0"));
        let number: usize = number.parse().unwrap_or_default();
        Ok(match kind {
            // The default device is set up already.
            _ if self.used => WgpuDevice::DefaultDevice,
            "DiscreteGpu" => WgpuDevice::DiscreteGpu(number),
            "IntegratedGpu" => WgpuDevice::IntegratedGpu(number),
            "VirtualGpu" => WgpuDevice::VirtualGpu(number),
            "Cpu" => WgpuDevice::Cpu,
            _ => {
                return Err(Error::usage(format!(
                    "option `backend` wgpu:{}: burn cannot run on {}, a device of no known kind",
                    self.index, self.name
                )));
            }
        })
    }
}

impl BackendChoice {
    /// Returns the first named device's entry in the backend's list.
    ///
    /// # Errors
    /// As [`Self::devices`].
    pub(crate) fn adapter(&self) -> Result<Adapter> {
        Ok(self.chosen_adapters()?.swap_remove(0))
    }

    /// Returns the devices that [`BackendChoice::devices`] opens, at least one, in its order.
    ///
    /// # Errors
    /// Those of [`BackendChoice::adapter`].
    pub(crate) fn chosen_adapters(&self) -> Result<Vec<Adapter>> {
        let adapters = self.name.adapters()?;
        let named: Vec<Adapter> = self.select(&adapters)?.into_iter().cloned().collect();
        if !named.is_empty() {
            return Ok(named);
        }
        let used = adapters.into_iter().find(|adapter| adapter.used);
        Ok(vec![used.ok_or_else(|| self.name.no_device("none of its list is in use"))?])
    }
}

impl BackendName {
    /// Lists every device of the backend; of wgpu those of the API that burn uses: Metal on macOS,
    /// Vulkan elsewhere.
    ///
    /// # Errors
    /// A backend that this build lacks, or that finds no device, as [`Self::device`] says it.
    pub fn adapters(self) -> Result<Vec<Adapter>> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => Ok(vec![cpu()]),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => wgpu(),
            #[cfg(feature = "cuda")]
            Self::Cuda => crate::device::cuda::adapters().map_err(|why| self.no_device(why)),
            #[allow(unreachable_patterns)]
            absent => Err(absent.not_compiled()),
        }
    }
}

#[cfg(feature = "cpu")]
fn cpu() -> Adapter {
    let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    Adapter {
        index: 0,
        id: "Flex".into(),
        name: model.unwrap_or(std::env::consts::ARCH).into(),
        kind: "CPU".into(),
        api: "burn-flex".into(),
        driver: format!("{} threads", rayon::current_num_threads()),
        memory_bytes: None,
        largest_buffer_bytes: None,
        used: true,
    }
}

/// Lists the adapters of wgpu, once in a process: burn shows them only while it sets its default
/// device up.
#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Vec<Adapter>> {
    static ADAPTERS: std::sync::OnceLock<Result<Vec<Adapter>>> = std::sync::OnceLock::new();
    ADAPTERS.get_or_init(list_wgpu).clone()
}

#[cfg(feature = "wgpu")]
fn list_wgpu() -> Result<Vec<Adapter>> {
    use burn::backend::wgpu::{WgpuDevice, graphics::AutoGraphicsApi, init_setup};

    #[cfg(feature = "tuned")]
    crate::device::autotune_cache::set_cache();
    let setup =
        crate::core::panic::catch(|| init_setup::<AutoGraphicsApi>(&WgpuDevice::DefaultDevice, Default::default()));
    let setup = setup.map_err(|panic| BackendName::Wgpu.no_device(panic.message))?;
    let used = setup.adapter.get_info();
    let all = burn::tensor::read_sync(setup.instance.enumerate_adapters(setup.backend.into()));
    let mut list: Vec<Adapter> = Vec::with_capacity(all.len());
    for (index, adapter) in all.iter().enumerate() {
        let info = adapter.get_info();
        let (kind, id) = match format!("{:?}", info.device_type).as_str() {
            "DiscreteGpu" => ("discrete GPU", "DiscreteGpu"),
            "IntegratedGpu" => ("integrated GPU", "IntegratedGpu"),
            "VirtualGpu" => ("virtual GPU", "VirtualGpu"),
            "Cpu" => ("software", "Cpu"),
            _ => ("other", "Other"),
        };
        // burn numbers the devices of a kind, and knows one CPU.
        let same_kind = list.iter().filter(|adapter| adapter.kind == kind).count();
        list.push(Adapter {
            index,
            id: if kind == "software" { id.into() } else { format!("{id}({same_kind})") },
            // Two devices of the same kind may have the same description.
            used: info == used && !list.iter().any(|adapter| adapter.used),
            name: info.name,
            kind: kind.into(),
            api: format!("{:?}", info.backend),
            driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
            memory_bytes: None,
            largest_buffer_bytes: Some(adapter.limits().max_storage_buffer_binding_size),
        });
    }
    Ok(list)
}
