//! `itemlm train RUN.toml`

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{LossKind, RunConfig, Temperature, TuneKind};
use crate::core::files::write_atomic;
use crate::core::log::log;
use crate::loss::TokenLoss;
use crate::run::dir;
use crate::run::gradient_check::check_gradients;
use crate::run::identity::{Identity, check_identity};
use crate::run::inputs::RunInputs;
use crate::run::out_of_memory::{catch_out_of_memory, training};
use crate::run::training::{FirstLast, PreparedRun, TrainOptions};
use crate::run::verified_devices::verified_devices;
use crate::train::{Checkpoints, Ui};
use crate::{Context, Error, Result};

/// The report of `train --json`.
#[derive(Debug, Clone, Serialize)]
pub struct TrainReport {
    /// The run directory.
    pub run: PathBuf,
    /// Optimiser steps of the run so far.
    pub steps: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
    /// Number of windows trained on so far.
    pub samples: usize,
    /// Seconds in optimiser steps so far.
    pub seconds: f64,
    /// Windows a second in this call's optimiser steps.
    pub samples_per_second: f64,
    /// Peak memory of this process, bytes.
    pub peak_memory_bytes: u64,
    /// Loss of the first and of the last step; null if there was none.
    pub loss: FirstLast,
    /// Temperature after the last step.
    pub temperature: f64,
    /// NDCG@10 of the best validated epoch; null without validation.
    pub valid_ndcg_at_10: Option<f64>,
    /// Description of the validation data.
    pub validation: String,
    /// An option of the run file that this run cannot follow, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
}

/// Checks that a resumed LML run keeps the loss that it began with: versions that recorded no BOS
/// ignored `loss.temperature`.
fn check_lml_temperature(dir: &Path, config: &RunConfig, started: Option<&Identity>) -> Result<()> {
    let old = started.is_some_and(|identity| identity.bos.is_none());
    let changed = config.loss.kind == LossKind::Lml
        && matches!(config.loss.temperature, Temperature::Fixed(temperature) if temperature != 1.0);
    match old && changed {
        false => Ok(()),
        true => Err(Error::usage(format!(
            "{}: this run was started by a version whose lml ignored loss.temperature; set loss.temperature = 1 in its \
             run.toml and in the run file, or start a new run",
            dir.display()
        ))),
    }
}

/// Trains a run, or resumes its training.
///
/// # Errors
/// A run directory that exists (without `resume`) or belongs to another run file, model or corpus;
/// all that [`crate::train::run`] refuses.
pub fn train(config: &RunConfig, options: TrainOptions) -> Result<TrainReport> {
    let out = options.out.as_path();
    dir::check_directory(out, &config.to_toml()?, options.resume, || dir::read_config(out)?.to_toml())?;
    let held = if options.resume { Some(dir::lock(out)?) } else { None };
    let devices = verified_devices(&options.backend)?;
    let checkpoint = if options.resume { Checkpoints::open_and_recover(out)?.latest_checkpoint()? } else { None };
    // Until there is a checkpoint, BERT or phase 1 is read, and so checked, again.
    let started = options.resume.then(|| dir::read_identity::<Identity>(out)).transpose()?;
    let started = started.map(|identity| match checkpoint {
        Some(_) => identity,
        None => Identity { entities: None, ..identity },
    });
    check_lml_temperature(out, config, started.as_ref())?;
    let inputs = RunInputs::open(config, started.as_ref(), &devices[0])?;
    let identity = inputs.identity.clone();
    if options.resume {
        check_identity(out, &identity, config)?;
    }
    let check = || check_gradients(config, &options.backend, &identity.llm, &devices, options.trust_device);
    let device_check = catch_out_of_memory(&options.backend, || training(config, out), check)?;
    let loading =
        || "while the model was loaded: take llm.quantized = true, a smaller model or another device".to_string();
    let load = || PreparedRun::open(config, &options, inputs, checkpoint, &devices);
    let PreparedRun { mut model, mut run, precision, notice, train_size, validation } =
        catch_out_of_memory(&options.backend, loading, load)?;
    if let Some((check, tracked_input)) = device_check {
        run.device_check = Some(check);
        model.track_input = tracked_input;
    }
    let _lock = match held {
        Some(lock) => lock,
        None => dir::create(out, &config.to_toml()?, &identity)?,
    };
    if let Some(notice) = notice.as_ref().filter(|_| options.ui == Ui::Plain) {
        log(format_args!("note: {notice}"));
    }
    if options.ui == Ui::Plain {
        let shared =
            if devices.len() > 1 { format!("{} devices share each step; ", devices.len()) } else { String::new() };
        log(format_args!("{shared}{precision}; {train_size}; {validation}"));
    }
    let mut token_loss = run.token_loss;
    let outcome = catch_out_of_memory(&options.backend, || training(config, out), || crate::train::run(model, run))?;
    token_loss.restore(&outcome.progress.loss_state);

    if outcome.progress.epoch == config.train.epochs {
        publish(out, config.llm.tune)?;
    }
    Ok(TrainReport {
        run: out.to_path_buf(),
        steps: outcome.progress.step,
        total_steps: outcome.total_steps,
        samples: outcome.progress.samples,
        seconds: outcome.progress.seconds,
        samples_per_second: outcome.samples_per_second(),
        peak_memory_bytes: crate::core::system::peak_bytes(),
        loss: FirstLast { first: outcome.progress.first_loss, last: outcome.last_loss },
        temperature: token_loss.temperature(),
        valid_ndcg_at_10: outcome.progress.best.and_then(|best| best.score.ndcg_at_10),
        validation,
        notice,
    })
}

/// Copies the selected checkpoint's weights to the directories where users look for them.
fn publish(run: &Path, tune: TuneKind) -> Result<()> {
    let Some((from, _)) = Checkpoints::open(run)?.selected_checkpoint()? else { return Ok(()) };
    let to = dir::trained_dir(run, tune);
    std::fs::create_dir_all(&to).context(to.display())?;
    for entry in std::fs::read_dir(&from).context(from.display())?.flatten() {
        let name = entry.file_name();
        if name != "state.toml" && name != "optimizer.bin" {
            let bytes = std::fs::read(entry.path()).context(entry.path().display())?;
            write_atomic(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}
