//! `itemlm align RUN.toml`: phase 1 of ILM ([`crate::run::align_task`]). An epoch is a pass over
//! the texts. The run directory is `train`'s; see [`crate::run::qformer_artifact`] for the result.

use std::path::{Path, PathBuf};

use burn::DispatchDevice;
use serde::Serialize;

use crate::Result;
use crate::config::{AlignConfig, Init};
use crate::core::log::log;
use crate::device::Concrete;
use crate::evaluate::Retrieval;
use crate::model::{Aligner, load_module};
use crate::run::align_data::{AlignData, AlignIdentity};
use crate::run::align_task::{AlignTask, RETRIEVAL};
use crate::run::dir;
use crate::run::qformer_artifact::{AlignedConfig, WEIGHTS};
use crate::run::training::{FirstLast, TrainOptions};
use crate::run::verified_devices::verified_device;
use crate::tensor::scalar;
use crate::train::{Checkpoints, LoopOptions, METRICS, MetricsLog, Progress, Score, TENSORBOARD, Task, Ui, adamw};

/// The report of `align --json`.
#[derive(Debug, Clone, Serialize)]
pub struct AlignReport {
    /// The run directory.
    pub run: PathBuf,
    /// Optimiser steps of the run so far.
    pub steps: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
    /// Number of items with a text and of pairs trained on so far.
    pub samples: usize,
    /// Time spent in optimiser steps so far, seconds.
    pub seconds: f64,
    /// Samples a second of this call's optimiser steps.
    pub samples_per_second: f64,
    /// Peak memory of this process, bytes.
    pub peak_memory_bytes: u64,
    /// First and last step's loss; null if there was none.
    pub loss: FirstLast,
    /// The learned temperature of item and text.
    pub temperature: f64,
    /// Number of items whose text is trained on.
    pub texts: usize,
    /// The step whose weights are kept: the epoch with the best sum of recalls; null before an
    /// epoch has ended.
    pub best_step: Option<usize>,
    /// Recalls of that step on the held-out items; null without any.
    pub retrieval: Option<Retrieval>,
}

/// Trains a Q-Former, or resumes its training.
///
/// # Errors
/// A run directory that exists (without `resume`) or belongs to another run file or other data; a
/// loss or gradient that is not finite; a file that cannot be read or written. The last good
/// checkpoint stays.
pub fn align(config: &AlignConfig, options: TrainOptions) -> Result<AlignReport> {
    let out = options.out.as_path();
    let started = || AlignConfig::open(&out.join(dir::CONFIG), &[])?.to_toml();
    dir::check_directory(out, &config.to_toml()?, options.resume, started)?;
    let held = if options.resume { Some(dir::lock(out)?) } else { None };
    let device = verified_device(&options.backend)?;
    let autodiff = DispatchDevice::autodiff(device.clone());
    let (data, qformer, identity) = AlignData::open(config)?;

    let bert = (config.qformer.init == Init::Pretrained).then(|| Path::new(&config.qformer.text));
    let (width, temperature) = (config.qformer.projection, config.loss.temperature);
    let mut aligner = Aligner::<Concrete>::new(&qformer, width, temperature, bert, config.seed, &autodiff)?;
    let mut optimizer = adamw(0.0);
    let mut progress = Progress::default();
    let _lock = match held {
        Some(lock) => {
            check_identity(out, &identity, config)?;
            lock
        }
        None => dir::create(out, &config.to_toml()?, &identity)?,
    };
    let checkpoints = Checkpoints::open_and_recover(out)?;
    // A new run has no checkpoint.
    if let Some((checkpoint, found)) = checkpoints.latest_checkpoint()? {
        aligner = load_module(&checkpoint.join(WEIGHTS), aligner)?;
        optimizer = Checkpoints::load_optimizer(&checkpoint, optimizer, &device)?;
        progress = found;
    }
    let retrievals = MetricsLog::open(out.join(RETRIEVAL), progress.step)?;
    let untrained_is_measured = progress.step > 0 || !retrievals.is_empty();
    let mut task =
        AlignTask { config, data: &data, aligner, optimizer, checkpoints: checkpoints.clone(), retrievals, device };
    let plain = options.ui == Ui::Plain;
    if plain {
        log(format_args!(
            "{} items with a text to learn from, {} held out; {} item-item and {} user-item pairs; {} steps an epoch",
            data.texts.len(),
            data.held_out.len(),
            data.item_pairs.len(),
            data.user_pairs.len(),
            task.steps_per_epoch()
        ));
    }
    if !untrained_is_measured
        && let Some(score) = task.measure(0, 0)?
        && plain
    {
        log(format_args!("epoch 0  {}", score.describe()));
    }

    let loop_options = LoopOptions {
        metrics: Some(out.join(METRICS)),
        epochs: config.train.epochs,
        patience: None,
        checkpoint_steps: None,
        max_steps: options.max_steps,
        tensorboard: config.train.tensorboard.then(|| out.join(TENSORBOARD)),
        ui: options.ui,
        interrupter: options.interrupter,
    };
    let outcome = crate::train::train(&mut task, progress, &loop_options)?;
    let progress = &outcome.progress;
    if progress.epoch == config.train.epochs
        && let Some((best, step)) = checkpoints.selected_checkpoint()?
    {
        let scale = data.scale;
        AlignedConfig { format: 1, step, projection: width, scale: Some(scale), identity, qformer }
            .publish(out, &best)?;
    }
    Ok(AlignReport {
        run: out.to_path_buf(),
        steps: progress.step,
        total_steps: outcome.total_steps,
        samples: progress.samples,
        seconds: progress.seconds,
        samples_per_second: outcome.samples_per_second(),
        peak_memory_bytes: crate::core::system::peak_bytes(),
        loss: FirstLast { first: progress.first_loss, last: outcome.last_loss },
        temperature: scalar(task.aligner.temperature.val(), "the temperature")?,
        texts: data.texts.len(),
        best_step: progress.best.as_ref().map(|best| best.step),
        retrieval: progress.best.as_ref().map(|best| best.score.retrieval),
    })
}

fn check_identity(out: &Path, found: &AlignIdentity, config: &AlignConfig) -> Result<()> {
    let trained: AlignIdentity = dir::read_identity(out)?;
    for (what, was, is, path) in [
        ("corpus", &trained.corpus, &found.corpus, &config.data.corpus),
        ("set of vectors", &trained.vectors, &found.vectors, &config.data.vectors),
        ("set of ids", &trained.ids, &found.ids, &config.data.vectors),
        ("tokenizer", &trained.tokenizer, &found.tokenizer, &config.qformer.text),
        ("Q-Former", &trained.qformer, &found.qformer, &config.qformer.text),
    ] {
        if was != is {
            return Err(dir::differs(out, what, path));
        }
    }
    Ok(())
}
