//! The result of phase 1 for phase 2: the directory `RUN_DIR/qformer`.
//!
//! | file | holds |
//! |---|---|
//! | `config.toml` | `format` (1), `step`, `projection`, `[scale]`, `[identity]`, `[qformer]` |
//! | `model.safetensors` | every parameter of [`Aligner`], f32, named by its fields |
//!
//! `[scale]` is the scale by which items' and users' vectors were divided, `[identity]` holds the
//! SHA-256 of corpus, vectors, their ids, tokenizer and `[qformer]`, and `[qformer]` the sizes.
//! Phase 2 needs the parameters that begin with `qformer.`.

use std::fs;
use std::path::Path;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::align_data::AlignIdentity;
use crate::core::files::write_atomic;
use crate::model::{Aligner, QFormerConfig, VectorScale, load_module_of};
use crate::{Context, Error, Result};

/// The file of the weights; checkpoints have it too.
pub(crate) const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.toml";
const DIRECTORY: &str = "qformer";

/// The contents of `config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignedConfig {
    /// Version of the layout: 1.
    pub format: u32,
    /// The optimiser step of phase 1 that the weights are of.
    pub step: usize,
    /// Width of the projections that the contrastive losses compare.
    pub projection: usize,
    /// Scale by which the vectors were divided before the Q-Former read them; `None` for a run of
    /// an earlier version, which did not divide them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<VectorScale>,
    /// Identity of the training data: phase 2 refuses other vectors.
    pub identity: AlignIdentity,
    /// Sizes of the Q-Former.
    pub qformer: QFormerConfig,
}

impl AlignedConfig {
    /// Writes `run/qformer`, with the weights of a checkpoint.
    pub(crate) fn publish(&self, run: &Path, checkpoint: &Path) -> Result<()> {
        let (from, dir) = (checkpoint.join(WEIGHTS), run.join(DIRECTORY));
        fs::create_dir_all(&dir).context(dir.display())?;
        write_atomic(&dir.join(WEIGHTS), &fs::read(&from).context(from.display())?)?;
        write_atomic(&dir.join(CONFIG), toml::to_string(self).context(CONFIG)?.as_bytes())
    }
}

/// Reads the sizes and the identity of the training data of the Q-Former in the run directory
/// `run`.
///
/// # Errors
/// A run that has not ended, a layout of another version, damaged files.
pub fn read_config(run: &Path) -> Result<AlignedConfig> {
    let path = run.join(DIRECTORY).join(CONFIG);
    let place = path.display();
    let text = fs::read_to_string(&path)
        .map_err(|e| Error::failed(format!("{place}: {e}; is {} a finished run of `align`?", run.display())))?;
    let config: AlignedConfig = toml::from_str(&text).context(&place)?;
    if config.format != 1 {
        return Err(Error::failed(format!(
            "{place}: format = {}, this itemlm reads 1: run `align` again",
            config.format
        )));
    }
    config.qformer.check().context(&place)?;
    if config.projection == 0 || config.projection > 1 << 16 {
        return Err(Error::failed(format!(
            "{place}: projection is {}, it must be between 1 and 2^16",
            config.projection
        )));
    }
    Ok(config)
}

/// Opens the Q-Former in the run directory `run`.
///
/// # Errors
/// A run that has not ended, a layout of another version, damaged files.
pub fn open_aligned<B: Backend>(run: &Path, device: &B::Device) -> Result<(AlignedConfig, Aligner<B>)> {
    let config = read_config(run)?;
    let sizes = Aligner::<B>::sizes(&config.qformer, config.projection);
    let make = || Aligner::new(&config.qformer, config.projection, 0.07, None, 0, device);
    let aligner = load_module_of(&run.join(DIRECTORY).join(WEIGHTS), &sizes, make)?;
    Ok((config, aligner))
}
