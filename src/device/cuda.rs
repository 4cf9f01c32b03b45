//! List of NVIDIA's GPUs, from the driver's own library.
//!
//! The library is loaded at run time, as cudarc does; cudarc itself panics where there is none.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

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
        let init: extern "C" fn(c_uint) -> c_int = driver.function(c"cuInit")?;
        let get_count: extern "C" fn(*mut c_int) -> c_int = driver.function(c"cuDeviceGetCount")?;
        let get_version: extern "C" fn(*mut c_int) -> c_int = driver.function(c"cuDriverGetVersion")?;
        match init(0) {
            NO_DEVICE => return Err(Error::failed("NVIDIA's driver finds no GPU")),
            status => succeeded("cuInit", status)?,
        }
        succeeded("cuDeviceGetCount", get_count(&mut count))?;
        succeeded("cuDriverGetVersion", get_version(&mut version))?;
    }
    if count == 0 {
        return Err(Error::failed("NVIDIA's driver finds no GPU"));
    }
    let module = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    let version = format!("{} for CUDA {}.{}", module.trim(), version / 1000, version % 1000 / 10);
    (0..count).map(|index| driver.adapter(index, version.trim())).collect()
}

fn succeeded(function: &str, status: c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        status => Err(Error::failed(format!("NVIDIA's driver fails: {function} returns CUDA error {status}"))),
    }
}

/// The loaded library. It stays loaded: CUDA is about to use it.
struct Driver(*mut c_void);

impl Driver {
    fn load() -> Result<Self> {
        for name in [c"libcuda.so.1", c"libcuda.so"] {
            // SAFETY: the name is a C string; loading runs the library's own initialisation, as
            // CUDA would.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
            if !library.is_null() {
                return Ok(Self(library));
            }
        }
        Err(Error::failed("no NVIDIA driver (libcuda.so.1 cannot be loaded)"))
    }

    /// # Safety
    /// `F` must be a function pointer with the signature that cuda.h declares.
    unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F> {
        // SAFETY: the library stays loaded; a function pointer has the size of a data pointer.
        unsafe {
            let symbol = libc::dlsym(self.0, name.as_ptr());
            if symbol.is_null() {
                return Err(Error::failed(format!("NVIDIA's driver is too old: it has no {}", name.to_string_lossy())));
            }
            Ok(std::mem::transmute_copy(&symbol))
        }
    }

    fn adapter(&self, index: c_int, driver: &str) -> Result<Adapter> {
        const LONGEST: usize = 256;
        let mut name = [0u8; LONGEST];
        let (mut device, mut bytes) = (0, 0usize);
        // SAFETY: as in `adapters`; the name is written with its closing 0 to at most as many bytes
        // as it is told.
        unsafe {
            let get: extern "C" fn(*mut c_int, c_int) -> c_int = self.function(c"cuDeviceGet")?;
            let get_name: extern "C" fn(*mut c_char, c_int, c_int) -> c_int = self.function(c"cuDeviceGetName")?;
            let total: extern "C" fn(*mut usize, c_int) -> c_int = self.function(c"cuDeviceTotalMem_v2")?;
            succeeded("cuDeviceGet", get(&mut device, index))?;
            succeeded("cuDeviceGetName", get_name(name.as_mut_ptr().cast(), LONGEST as c_int, device))?;
            succeeded("cuDeviceTotalMem", total(&mut bytes, device))?;
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
