//! Where compiled kernels, and which of them were the fastest, are kept between runs.
//!
//! CubeCL 0.10 keeps the choices under the `target` folder of the next Cargo.toml above the working directory, and CUDA's compiled kernels
//! nowhere (`cubecl-runtime/src/config`). Here both go to the user's cache, unless a `cubecl.toml` or `burn.toml` says where.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cubecl_runtime::config::cache::CacheConfig;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};
use sha2::{Digest, Sha256};

/// `itemlm/kernels/CARDS` in the user's cache (`$XDG_CACHE_HOME`, by default `~/.cache`; `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on
/// Windows); `None` where there is no such folder.
pub(super) fn dir() -> Option<PathBuf> {
    let cards = Sha256::digest(cards(Path::new("/sys")));
    let cards: String = cards.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(dirs::cache_dir()?.join("itemlm").join("kernels").join(cards))
}

/// Graphics cards and NVIDIA's driver, as Linux tells of them. CubeCL tells cards apart by their place alone, and a choice made on one card may not
/// run on the card that another machine, with the same home, has in its place.
fn cards(sys: &Path) -> String {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let devices = std::fs::read_dir(sys.join("bus/pci/devices")).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_graphics = devices.filter(|device| read(device.join("class")).starts_with("0x03"));
    let mut cards: Vec<String> = of_graphics
        .map(|device| {
            let place = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{place} {} {}", read(device.join("vendor")), read(device.join("device")))
        })
        .collect();
    cards.sort();
    cards.push(read(sys.join("module/nvidia/version")));
    cards.join("\n")
}

/// Before the first device of a GPU: CubeCL reads this once. It has no effect after that.
pub(super) fn keep() {
    let Some(dir) = dir().filter(|_| CubeClRuntimeConfig::storage().lock().is_none()) else { return };
    // CubeCL panics over a file that it does not understand. The device, tried next, does so again, and is told.
    let Ok(mut config) = std::panic::catch_unwind(|| CubeClRuntimeConfig::from_current_dir().override_from_env()) else {
        return;
    };
    if matches!(config.autotune.cache, CacheConfig::Target) {
        config.autotune.cache = CacheConfig::File(dir.clone());
    }
    config.compilation.cache.get_or_insert(CacheConfig::File(dir));
    let mut in_use = CubeClRuntimeConfig::storage().lock();
    if in_use.is_none() {
        *in_use = Some(Arc::new(config));
    }
}

#[cfg(test)]
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
