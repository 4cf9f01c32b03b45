//! Location of CubeCL's autotune cache.
//!
//! CubeCL 0.10 keeps the cache under the `target` folder of the next Cargo.toml above the working
//! directory (`cubecl-runtime/src/config`). Here it goes to the user's cache, unless a
//! `cubecl.toml` or `burn.toml` names another place than `target`. CUDA's compiled kernels are not
//! kept: CubeCL would give those of one card to another (`cubecl-cuda/src/compute/context.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cubecl_runtime::config::cache::CacheConfig;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};

use crate::core::files::sha256;

/// Environment variables that decide which card is a backend's first.
const CHOOSING: [&str; 4] =
    ["CUDA_VISIBLE_DEVICES", "CUBECL_WGPU_DEFAULT_DEVICE", "VK_DRIVER_FILES", "VK_ICD_FILENAMES"];

/// Returns `itemlm/kernels/CARDS` in the user's cache (`$XDG_CACHE_HOME`, by default `~/.cache`;
/// `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows); `None` where there is no such folder.
fn dir() -> Option<PathBuf> {
    let chosen = CHOOSING.map(|name| format!("{name}={:?}\n", std::env::var_os(name))).concat();
    let cards = sha256((chosen + &cards(Path::new("/sys"))).as_bytes());
    Some(dirs::cache_dir()?.join("itemlm").join("kernels").join(&cards[..16]))
}

/// Returns the graphics cards and the version of NVIDIA's driver on Linux; nothing elsewhere.
/// CubeCL tells cards apart by their index alone, and a kernel selected on one card may not run on
/// the card that another machine with the same home directory has at this index.
fn cards(sys: &Path) -> String {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let devices =
        std::fs::read_dir(sys.join("bus/pci/devices")).into_iter().flatten().flatten().map(|entry| entry.path());
    let graphics = devices.filter(|device| read(device.join("class")).starts_with("0x03"));
    let mut cards: Vec<String> = graphics
        .map(|device| {
            let address = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{address} {} {}", read(device.join("vendor")), read(device.join("device")))
        })
        .collect();
    cards.sort();
    cards.push(read(sys.join("module/nvidia/version")));
    cards.join("\n")
}

/// Sets the location of the cache. It must be called before the first device of a GPU: CubeCL reads
/// it once.
pub(crate) fn set_cache() {
    if CubeClRuntimeConfig::storage().lock().is_some() {
        return;
    }
    let read = crate::core::panic::catch(|| CubeClRuntimeConfig::from_current_dir().override_from_env());
    let Ok(mut config) = read else {
        // CubeCL panics over a file that it does not understand. The device, tried next, does so
        // again, and is reported.
        return;
    };
    if let (CacheConfig::Target, Some(dir)) = (&config.autotune.cache, dir()) {
        config.autotune.cache = CacheConfig::File(dir);
    }
    CubeClRuntimeConfig::storage().lock().get_or_insert_with(|| Arc::new(config));
}

/// Returns the folder of the cache by the configuration in force.
pub(crate) fn dir_in_use() -> Option<PathBuf> {
    set_cache();
    CubeClRuntimeConfig::storage().lock().as_ref().map(|config| config.autotune.cache.root())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn another_card_in_the_same_place_is_told_apart() {
        let sys = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = sys.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(cards(sys.path()), "");
        let (card, disk) = ("bus/pci/devices/0000:01:00.0", "bus/pci/devices/0000:02:00.0");
        put(&format!("{card}/class"), "0x030200\n");
        put(&format!("{card}/vendor"), "0x10de\n");
        put(&format!("{card}/device"), "0x2330\n");
        put(&format!("{disk}/class"), "0x010802\n");
        put(&format!("{disk}/device"), "0xa80a\n");
        assert_eq!(cards(sys.path()), "0000:01:00.0 0x10de 0x2330\n");
        put("module/nvidia/version", "550.54.15\n");
        put(&format!("{card}/device"), "0x2335\n");
        assert_eq!(cards(sys.path()), "0000:01:00.0 0x10de 0x2335\n550.54.15");
    }
}
