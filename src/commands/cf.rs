//! `itemlm cf NAME CORPUS --out FILE`

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::data::Corpus;
use crate::device::BackendChoice;
use crate::rankers::{Distribution, Method, Settings};
use crate::run::collaborative::{fit, valid_ndcg};
use crate::{Error, Result};

/// What the command line decides.
#[derive(Debug, Clone)]
pub struct CfOptions {
    /// Which model.
    pub method: Method,
    /// `key=value`, over its defaults.
    pub set: Vec<String>,
    /// Where BPR and SASRec train; ALS runs on the CPU.
    pub backend: BackendChoice,
}

/// What `cf --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct CfReport {
    /// `als`, `bpr` or `sasrec`.
    pub name: String,
    /// The file written.
    pub out: PathBuf,
    /// Rows of its tensor `user`.
    pub users: usize,
    /// Rows of its tensor `item`.
    pub items: usize,
    /// Length of a vector.
    pub dim: usize,
    /// The epoch (ALS: iteration) kept.
    pub epoch: usize,
    /// Of training, its validation included.
    pub seconds: f64,
    /// ALS: the objective; else the mean loss of the epoch kept.
    pub loss: f64,
    /// As a prior: what scores are divided by, chosen on the validation windows.
    pub temperature: f64,
    /// Of the file.
    pub sha256: String,
    /// On the validation windows, where there are any.
    #[serde(rename = "valid_ndcg@10")]
    pub valid_ndcg_at_10: Option<f64>,
}

/// Trains on a corpus's training windows and writes the vectors of its items and users to `out`.
///
/// # Errors
/// Settings or an `out` that cannot be (usage); those of [`Corpus::open`] and [`crate::rankers::train`].
pub fn cf(corpus_dir: &Path, out: &Path, options: &CfOptions, say: &mut dyn FnMut(&str)) -> Result<CfReport> {
    let settings = Settings::parse(options.method, &options.set)?;
    writable(out)?;
    let corpus = Corpus::open(corpus_dir)?;
    let started = Instant::now();
    let trained = fit(&settings, &corpus, corpus_dir, &options.backend, say)?;
    let valid_ndcg_at_10 = valid_ndcg(&trained.model, &corpus);
    let seconds = started.elapsed().as_secs_f64();
    let ranker = Distribution::new(trained.model, &corpus);
    let sha256 = ranker.save(out, &corpus, &settings)?;
    Ok(CfReport {
        name: options.method.to_string(),
        out: out.to_path_buf(),
        users: corpus.users(),
        items: corpus.items.len(),
        dim: settings.dim(),
        epoch: trained.epoch,
        seconds,
        loss: trained.loss,
        temperature: ranker.temperature(),
        sha256,
        valid_ndcg_at_10,
    })
}

/// Minutes of training should not end at a path that cannot be.
fn writable(out: &Path) -> Result<()> {
    let folder = crate::core::files::folder(out);
    if out.is_dir() || out.file_name().is_none() {
        return Err(Error::usage(format!("--out {}: it must name a file, not a directory", out.display())));
    }
    if !folder.is_dir() {
        return Err(Error::usage(format!(
            "--out {}: there is no directory {}; make it first",
            out.display(),
            folder.display()
        )));
    }
    Ok(())
}
