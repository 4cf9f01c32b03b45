//! `itemlm cf NAME CORPUS --out FILE`

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::config::settings_table;
use crate::data::Corpus;
use crate::device::BackendChoice;
use crate::evaluate::valid_ndcg;
use crate::rankers::registry::vector_method;
use crate::rankers::{FitContext, TopK, VectorRanker};
use crate::run::verified_devices::{check_one_device, verified_device};
use crate::train::METRICS;
use crate::{Context, Error, Result};

/// Options of `cf`.
#[derive(Debug, Clone)]
pub struct CfOptions {
    /// Settings of the method as `key=value`, over their defaults.
    pub set: Vec<String>,
    /// The backend on which BPR and SASRec train; ALS runs on the CPU.
    pub backend: BackendChoice,
}

/// The report of `cf --json`.
#[derive(Debug, Clone, Serialize)]
pub struct CfReport {
    /// Name of the method, such as `als`.
    pub name: String,
    /// The file that was written.
    pub out: PathBuf,
    /// Rows of the file's tensor `user`.
    pub users: usize,
    /// Rows of the file's tensor `item`.
    pub items: usize,
    /// Length of a vector.
    pub dim: usize,
    /// The epoch (of ALS the iteration) that was kept.
    pub epoch: usize,
    /// Seconds of training, its validation included.
    pub seconds: f64,
    /// Mean loss of the kept epoch; for ALS the objective at the end.
    pub loss: f64,
    /// Temperature by which scores are divided if the ranker is a prior; chosen on the validation
    /// windows.
    pub temperature: f64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// NDCG@10 on the validation windows, where there are any.
    #[serde(rename = "valid_ndcg@10")]
    pub valid_ndcg_at_10: Option<f64>,
}

/// Trains the method `name` on a corpus's training windows and writes the vectors of the corpus's
/// items and users to `out`, and the optimiser steps of BPR and SASRec to `OUT.metrics.jsonl`.
///
/// # Errors
/// A method that is not there, settings or an `out` that cannot be (usage); those of
/// [`Corpus::open`] and [`VectorRanker::train`].
pub fn cf(
    name: &str,
    corpus_dir: &Path,
    out: &Path,
    options: &CfOptions,
    say: &mut dyn FnMut(&str),
) -> Result<CfReport> {
    let method = vector_method(name, settings_table(&options.set)?)?;
    check_one_device(&options.backend)?;
    check_writable(out)?;
    let corpus = Corpus::open(corpus_dir)?;
    let started = Instant::now();
    let top_k = TopK::new(&corpus);
    let metrics = metrics_file(out);
    // ALS writes none: another method's must not stay beside its vectors.
    let _ = std::fs::remove_file(&metrics);
    let mut context = FitContext {
        corpus: &corpus,
        device: &|| verified_device(&options.backend),
        validate: &|ranker| valid_ndcg(ranker, &top_k, &corpus),
        metrics: Some(&metrics),
        say,
    };
    let trained = VectorRanker::train(&*method, &mut context).context(corpus_dir.display())?;
    let ranker = trained.model;
    let valid_ndcg_at_10 = valid_ndcg(&ranker, &top_k, &corpus);
    let seconds = started.elapsed().as_secs_f64();
    let sha256 = ranker.save(out, &corpus, name, &*method)?;
    Ok(CfReport {
        name: name.to_string(),
        out: out.to_path_buf(),
        users: corpus.users(),
        items: corpus.items.len(),
        dim: method.dim(),
        epoch: trained.epoch,
        seconds,
        loss: trained.loss,
        temperature: ranker.temperature(),
        sha256,
        valid_ndcg_at_10,
    })
}

/// Returns the file of the optimiser steps beside the vectors: `FILE.metrics.jsonl`.
fn metrics_file(out: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(out);
    name.push(format!(".{METRICS}"));
    PathBuf::from(name)
}

/// Refuses a path that cannot be written, before minutes of training.
fn check_writable(out: &Path) -> Result<()> {
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
