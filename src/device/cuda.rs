//! List of NVIDIA's GPUs, from the driver's own library.
//!
//! The library is loaded at run time, as cudarc does; cudarc itself panics where there is none.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::mem::ManuallyDrop;

use libloading::{Library, Symbol};

use super::Adapter;
use crate::{Error, Result};

/// `CUDA_ERROR_NO_DEVICE` of cuda.h.
const NO_DEVICE: c_int = 100;

/// Lists all GPUs; the first one is in use by default.
///
/// # Errors
/// No driver, or none that finds a GPU.
pub(crate) fn adapters() -> Result<Vec<Adapter>> {
    let driver = Driver::load()?;
    let (mut count, mut version) = (0, 0);
    // SAFETY: the functions have the signatures of cuda.h; each writes one number to where it is
    // told to.
    unsafe {
        let init = driver.function::<extern "C" fn(c_uint) -> c_int>(c"cuInit")?;
        let get_count = driver.function::<extern "C" fn(*mut c_int) -> c_int>(c"cuDeviceGetCount")?;
        let get_version = driver.function::<extern "C" fn(*mut c_int) -> c_int>(c"cuDriverGetVersion")?;
        match init(0) {
            NO_DEVICE => return Err(Error::failed("NVIDIA's driver finds no GPU")),
            status => check_status("cuInit", status)?,
        }
        check_status("cuDeviceGetCount", get_count(&mut count))?;
        check_status("cuDriverGetVersion", get_version(&mut version))?;
    }
    if count == 0 {
        return Err(Error::failed("NVIDIA's driver finds no GPU"));
    }
    let module = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    let version = format!("{} for CUDA {}.{}", module.trim(), version / 1000, version % 1000 / 10);
    (0..count).map(|index| driver.adapter(index, version.trim())).collect()
}

fn check_status(function: &str, status: c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        status => Err(Error::failed(format!("NVIDIA's driver fails: {function} returns CUDA error {status}"))),
    }
}

/// The driver's library. It is never unloaded: CUDA is about to use it.
struct Driver(ManuallyDrop<Library>);

impl Driver {
    fn load() -> Result<Self> {
        let names = if cfg!(windows) { ["nvcuda.dll", "nvcuda"] } else { ["libcuda.so.1", "libcuda.so"] };
        for name in names {
            // SAFETY: loading runs the library's own initialisation, as CUDA would.
            if let Ok(library) = unsafe { Library::new(name) } {
                return Ok(Self(ManuallyDrop::new(library)));
            }
        }
        Err(Error::failed(format!("no NVIDIA driver ({} cannot be loaded)", names[0])))
    }

    /// Returns the library's function `name`.
    ///
    /// # Safety
    /// `F` must be a function pointer with the signature that cuda.h declares.
    unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<Symbol<'_, F>> {
        // SAFETY: by the caller.
        unsafe { self.0.get(name.to_bytes_with_nul()) }
            .map_err(|_| Error::failed(format!("NVIDIA's driver is too old: it has no {}", name.to_string_lossy())))
    }

    fn adapter(&self, index: c_int, driver: &str) -> Result<Adapter> {
        const LONGEST: usize = 256;
        let mut name = [0u8; LONGEST];
        let (mut device, mut bytes) = (0, 0usize);
        // SAFETY: as in `adapters`; the name is written with its closing 0 to at most as many bytes
        // as it is told.
        unsafe {
            let get = self.function::<extern "C" fn(*mut c_int, c_int) -> c_int>(c"cuDeviceGet")?;
            let get_name = self.function::<extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(c"cuDeviceGetName")?;
            let total = self.function::<extern "C" fn(*mut usize, c_int) -> c_int>(c"cuDeviceTotalMem_v2")?;
            check_status("cuDeviceGet", get(&mut device, index))?;
            check_status("cuDeviceGetName", get_name(name.as_mut_ptr().cast(), LONGEST as c_int, device))?;
            check_status("cuDeviceTotalMem", total(&mut bytes, device))?;
        }
        let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy).unwrap_or_default();
        Ok(Adapter {
            index: index as usize,
            id: format!("Cuda({index})"),
            name: name.into_owned(),
            kind: "GPU".into(),
            api: "CUDA".into(),
            driver: driver.into(),
            memory_bytes: Some(bytes as u64),
            largest_buffer_bytes: None,
            used: index == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine with a GPU the list holds it, elsewhere the error says what is missing; neither
    /// panics.
    #[test]
    fn a_list_or_one_line() {
        match adapters() {
            Ok(found) => {
                assert!(found.iter().all(|gpu| !gpu.name.is_empty() && gpu.memory_bytes > Some(0)), "{found:?}")
            }
            Err(error) => assert!(error.to_string().contains("NVIDIA"), "{error}"),
        }
    }
}
