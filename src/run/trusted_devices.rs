//! Verdicts on devices in the user's cache: one for each device, driver, program and model.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::config::RunConfig;
use crate::core::files::{sha256, write_json};
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
        let adapter = backend.adapter()?;
        let program = std::env::current_exe().and_then(|path| {
            let file = path.metadata()?;
            let changed = file.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            Ok((file.len(), changed.as_nanos().to_string()))
        });
        let key = program.ok().map(|program| {
            let train = (config.train.micro_batch_tokens, config.train.micro_batch_size, config.train.targets);
            let facts = json!({
                "kind": kind,
                "backend": backend.to_string(),
                "adapter": adapter,
                "program": program,
                "llm": llm,
                "llm_settings": config.llm,
                "items": config.items,
                "loss": config.loss,
                "data": config.data,
                "prior": config.prior,
                "train": json!(train),
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

    /// Keeps a verdict for later runs.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn write(&self, verdict: &impl Serialize) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).context(folder.display())?;
        }
        write_json(path, verdict)
    }
}
