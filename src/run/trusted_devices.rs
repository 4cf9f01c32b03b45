//! Verdicts on devices in the user's cache: one for each device, driver, program and model.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::config::RunConfig;
use crate::core::files::{sha256, write_json};
use crate::core::log::log;
use crate::device::BackendChoice;
use crate::{Context, Result};

/// The place of a verdict.
pub(crate) struct TrustedDevices {
    /// `None` where the user has no folder for caches, or the program's own file is not known.
    path: Option<PathBuf>,
}

impl TrustedDevices {
    /// Finds the place of the verdict on `backend`'s devices for a run.
    ///
    /// * `kind`: what was compared.
    /// * `llm`: the base model's fingerprint.
    ///
    /// # Errors
    /// A backend that finds no device.
    pub fn new(kind: &str, config: &RunConfig, backend: &BackendChoice, llm: &str) -> Result<Self> {
        let adapters = backend.chosen_adapters()?;
        let program = std::env::current_exe().and_then(|path| {
            let file = path.metadata()?;
            let changed = file.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            Ok((file.len(), changed.as_nanos().to_string()))
        });
        let key = program.ok().map(|program| {
            let facts = json!({
                "kind": kind,
                "backend": backend.to_string(),
                "adapters": adapters,
                "program": program,
                "llm": llm,
                "run": config,
            });
            sha256(facts.to_string().as_bytes())
        });
        let path = key
            .zip(dirs::cache_dir())
            .map(|(key, cache)| cache.join("itemlm").join("devices").join(format!("{kind}-{}.json", &key[..24])));
        Ok(Self { path })
    }

    /// Returns the verdict of an earlier comparison; `None` where there is none that can be read.
    pub fn read<T: DeserializeOwned>(&self) -> Option<T> {
        let text = std::fs::read_to_string(self.path.as_ref()?).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Keeps a verdict for later runs; prints a note where the cache cannot be written, which makes
    /// the next run compare again.
    pub fn write(&self, verdict: &impl Serialize) {
        let Some(path) = &self.path else { return };
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = folder.context(path.display()).and_then(|()| write_json(path, verdict)) {
            log(format_args!("note: the comparison with the CPU is not kept for later runs: {error}"));
        }
    }
}
