//! `itemlm merge RUN_DIR --out DIR`

use std::path::Path;

use crate::config::{Precision, TuneKind};
use crate::device::BackendName;
use crate::model::export_merged;
use crate::run::Session;
use crate::run::dir::read_config;
use crate::{Error, Result};

/// Writes the run's model with its adapter merged into the weights: `config.json`,
/// `model.safetensors` (f32), `tokenizer.json`.
///
/// # Errors
/// Those of [`Session::open`]; an `out` that exists.
pub fn merge(dir: &Path, out: &Path) -> Result<()> {
    if out.exists() {
        return Err(Error::usage(format!("{} exists; choose another --out", out.display())));
    }
    let mut config = read_config(dir)?;
    // Adapters and full weights are merged unrounded.
    config.llm.precision = Precision::F32;
    let run = Session::open_as(dir, config, &BackendName::Cpu.device()?)?;
    if run.config.llm.tune == TuneKind::Frozen {
        return Err(Error::usage(format!("{}: its LLM is as it was: llm.tune = \"frozen\"", dir.display())));
    }
    if run.model.entities.is_some() {
        return Err(Error::usage(format!(
            "{}: its LLM reads vectors of items, and a Hugging Face directory has no place for their encoder",
            dir.display()
        )));
    }
    let written = export_merged(out, &run.model.llm, &run.context.tokenizer);
    if written.is_err() {
        // It was made a moment ago, by this process.
        let _ = std::fs::remove_dir_all(out);
    }
    written
}
