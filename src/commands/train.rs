//! `itemlm train RUN.toml`

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use burn::DispatchDevice;
use burn::train::Interrupter;
use rand::SeedableRng;
use rand::seq::index;
use serde::Serialize;

use super::evaluate::{progress_line, rank_windows};
use super::plan::{sizes, warning};
use crate::batch::Example;
use crate::config::{LossKind, Precision, RunConfig, Temperature, TuneKind};
use crate::core::log::log;
use crate::data::Split;
use crate::device::{BackendChoice, Concrete, Training};
use crate::evaluate::summarise;
use crate::loss::{AdaptiveTemperature, Loss};
use crate::model::{Decoder, QuantizedSize, Tune, load_adapter, read_adapter_config};
use crate::run::out_of_memory::{catch_out_of_memory, training};
use crate::run::prompt_context::PromptContext;
use crate::run::run_dir;
use crate::run::run_dir::{Identity, RunInputs};
use crate::run::samples::{check_lengths, example, samples};
use crate::run::verified_devices::verified_devices;
use crate::text::{PromptSet, ROOT};
use crate::train::{Checkpoints, Progress, Run, Samples, TrainableModel, Ui, Validate, adamw};
use crate::{Error, Result};

/// What the command line adds to a run file.
pub struct TrainOptions {
    /// The run directory.
    pub out: PathBuf,
    /// Where to run; of several devices each takes a share of each step
    /// ([`align`](crate::commands::align()) runs on one).
    pub backend: BackendChoice,
    /// Go on from the last checkpoint.
    pub resume: bool,
    /// Stop after this many optimiser steps of the run.
    pub max_steps: Option<usize>,
    /// What is shown.
    pub ui: Ui,
    /// Stops the run.
    pub interrupter: Interrupter,
}

impl TrainOptions {
    /// Of a run that is only looked at.
    pub(crate) fn dry(backend: BackendChoice, interrupter: Interrupter) -> Self {
        Self { out: PathBuf::new(), backend, resume: false, max_steps: None, ui: Ui::None, interrupter }
    }
}

/// What `train --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct TrainReport {
    /// The run directory.
    pub run: PathBuf,
    /// Optimiser steps of the run so far.
    pub steps: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
    /// Windows trained on so far.
    pub samples: usize,
    /// Spent in optimiser steps so far.
    pub seconds: f64,
    /// Of this call's optimiser steps.
    pub samples_per_second: f64,
    /// Of this process.
    pub peak_memory_bytes: u64,
    /// First and last step's; null if there was none.
    pub loss: FirstLast,
    /// After the last step.
    pub temperature: f64,
    /// NDCG@10 of the best validated epoch; null without validation.
    pub valid_ndcg_at_10: Option<f64>,
    /// What validates.
    pub validation: String,
    /// What the run file asks for and this run cannot do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
}

/// First and last.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FirstLast {
    /// Of the run.
    pub first: Option<f64>,
    /// Of this call.
    pub last: Option<f64>,
}

/// Trains, or goes on training.
///
/// # Errors
/// A run directory that exists (without `resume`) or belongs to another run file, model or corpus;
/// all that [`crate::train::run`] refuses.
pub fn train(config: &RunConfig, options: TrainOptions) -> Result<TrainReport> {
    let dir = options.out.as_path();
    run_dir::check_directory(dir, &config.to_toml()?, options.resume, || run_dir::read_config(dir)?.to_toml())?;
    let held = if options.resume { Some(run_dir::lock(dir)?) } else { None };
    let devices = verified_devices(&options.backend)?;
    let checkpoint = if options.resume { Checkpoints::recovered(dir)?.latest()? } else { None };
    // Until there is a checkpoint, BERT or phase 1 is read, and so checked, anew.
    let started = if checkpoint.is_some() { Some(run_dir::read_identity::<Identity>(dir)?) } else { None };
    let material = RunInputs::open(config, started.as_ref(), &devices[0])?;
    let identity = material.identity.clone();
    if options.resume {
        run_dir::check_identity(dir, &identity, config)?;
    }
    let loading =
        || "while the model was loaded: take llm.quantized = true, a smaller model or another device".to_string();
    let load = || start(config, &options, material, checkpoint, &devices);
    let PreparedRun { recommender, run, precision, notice, shown, validation } =
        catch_out_of_memory(&options.backend, loading, load)?;
    let _lock = match held {
        Some(lock) => lock,
        None => run_dir::create(dir, &config.to_toml()?, &identity)?,
    };
    if let Some(notice) = notice.as_ref().filter(|_| options.ui == Ui::Plain) {
        log(format_args!("note: {notice}"));
    }
    if options.ui == Ui::Plain {
        let shared =
            if devices.len() > 1 { format!("{} devices share each step; ", devices.len()) } else { String::new() };
        log(format_args!("{shared}{precision}; {shown}; {validation}"));
    }
    let outcome =
        catch_out_of_memory(&options.backend, || training(config, &options), || crate::train::run(recommender, run))?;

    if outcome.progress.epoch == config.train.epochs {
        publish(dir, config.llm.tune)?;
    }
    Ok(TrainReport {
        run: dir.to_path_buf(),
        steps: outcome.progress.step,
        total_steps: outcome.total_steps,
        samples: outcome.progress.samples,
        seconds: outcome.progress.seconds,
        samples_per_second: if outcome.seconds > 0.0 { outcome.samples as f64 / outcome.seconds } else { 0.0 },
        peak_memory_bytes: crate::core::system::peak_bytes(),
        loss: FirstLast { first: outcome.progress.first_loss, last: outcome.last_loss },
        temperature: outcome.progress.temperature.value,
        valid_ndcg_at_10: outcome.progress.best.and_then(|best| best.ndcg_at_10),
        validation,
        notice,
    })
}

/// A run that can begin, or go on.
pub(crate) struct PreparedRun {
    /// The model, at the state to go on from.
    pub recommender: TrainableModel<Training>,
    /// All else that training needs.
    pub run: Run<Training>,
    /// What the LLM computes in, in words.
    pub precision: String,
    /// What the run file asks for and this run cannot do.
    pub notice: Option<String>,
    /// How much there is to train on, in words.
    pub shown: String,
    /// What validates, in words.
    pub validation: String,
}

/// Loads the model, at its start or as `checkpoint` has it, and what it learns from.
///
/// * `devices`: at least one; the model is loaded onto the first.
pub(crate) fn start(
    config: &RunConfig,
    options: &TrainOptions,
    material: RunInputs,
    checkpoint: Option<(PathBuf, Progress)>,
    devices: &[DispatchDevice],
) -> Result<PreparedRun> {
    let device = &devices[0];
    let mut precision = crate::run::precision(config.llm.precision, device)?;
    for other in &devices[1..] {
        crate::run::precision(config.llm.precision, other)?;
    }
    let RunInputs { ranking, llama, weights, quantized, entities, prompt_sets, text_tasks, .. } = material;
    if let Some(QuantizedSize { matrices, bytes, plain_bytes }) = quantized {
        let [kept, plain] = [bytes, plain_bytes].map(|bytes| bytes as f64 / 1e6);
        precision += &format!("; {matrices} matrices stay quantised, {kept:.0} MB in place of {plain:.0} MB");
    }
    if options.max_steps != Some(0) {
        refuse_f16(config)?;
    }
    let ranking = Rc::new(ranking);
    let lessons = match text_tasks {
        Some(rows) => rows.lessons(config, &ranking)?,
        None => lessons(config, &ranking, &prompt_sets, options)?,
    };
    let encoder = entities.as_ref().map(|entities| &entities.identity.encoder);
    let sizes = sizes(config, &llama, quantized, encoder, &ranking);
    if let Some(warning) = warning(config, sizes, &ranking, &lessons, &options.backend)? {
        log(format_args!("note: {warning}"));
    }

    let trained = run_dir::trained(config, &ranking.tokenizer);
    let llm = Decoder::<Training>::load(&llama, weights, tune(config), config.llm.precision, device)?;
    let mut optimizer = adamw(config.train.weight_decay);
    let mut progress = Progress::default();
    let mut model = match (entities, &checkpoint) {
        (Some(entities), Some(_)) => entities.blank(llm, device)?,
        (Some(entities), None) => entities.start(llm, &config.items, config.seed, device)?,
        (None, _) => llm.into(),
    };
    if let Some((checkpoint, found)) = checkpoint {
        model = trained.load(&checkpoint, model, device)?;
        optimizer = Checkpoints::load_optimizer(&checkpoint, optimizer, device)?;
        progress = found;
    } else if let Some(adapter) = &config.llm.adapter {
        model.llm = start_from(Path::new(adapter), config, model.llm, device)?;
    }
    model.gradient_checkpointing = config.train.gradient_checkpointing;
    if config.llm.tune == TuneKind::Frozen {
        // What precedes the first vector depends on nothing that trains.
        model = model.with_prefix_cache(&lessons.beginning);
    }

    let (loss, fixed_temperature) = loss(config);
    let root_children = ranking.catalogue.trie.valid_tokens(ROOT).len();
    let notice = (loss == Loss::MslAts && !AdaptiveTemperature::adapts(root_children)).then(|| {
        let start = AdaptiveTemperature::default().value;
        format!(
            "the adaptive temperature stays at {start}: with this tokenizer the root of the titles' trie has {root_children} \
             children, and ATS has an answer only above 4; set loss.temperature to a number to choose another"
        )
    });
    let run = Run {
        other_devices: devices[1..].to_vec(),
        optimizer,
        progress,
        config: config.train.clone(),
        seed: config.seed,
        train: lessons.train,
        valid: lessons.valid,
        catalogue: Arc::new(ranking.catalogue.clone()),
        validate: lessons.validate,
        trained,
        dir: options.out.clone(),
        ui: options.ui,
        max_steps: options.max_steps,
        interrupter: options.interrupter.clone(),
    };
    let recommender = TrainableModel { model, loss, fixed_temperature, root_children };
    Ok(PreparedRun { recommender, run, precision, notice, shown: lessons.shown, validation: lessons.validation })
}

/// What a run learns from, and what chooses its best epoch.
pub(crate) struct TrainingData {
    /// What is trained on.
    pub train: Samples,
    /// What the validation loss is of.
    pub valid: Vec<Example>,
    /// Ranks the validation windows; `None` where the loss alone chooses.
    pub validate: Option<Validate<Concrete>>,
    /// What prompts begin with.
    pub beginning: Vec<u32>,
    /// How much there is to train on, in words.
    pub shown: String,
    /// What validates, in words.
    pub validation: String,
}

/// # Errors
/// A run that would train through f16.
pub(crate) fn refuse_f16(config: &RunConfig) -> Result<()> {
    match config.llm.precision {
        Precision::F16 => Err(Error::usage(
            "llm.precision is \"f16\", whose range loses gradients: train with \"bf16\" or \"f32\" (--max-steps 0 makes a run of the untuned model)",
        )),
        _ => Ok(()),
    }
}

/// What is minimised, and the temperature of [`Loss::Msl`].
pub(crate) fn loss(config: &RunConfig) -> (Loss, f64) {
    match (config.loss.kind, config.loss.temperature) {
        (LossKind::Lml, _) => (Loss::Lml, 1.0),
        (LossKind::Msl, Temperature::Adaptive) => (Loss::MslAts, 1.0),
        (LossKind::Msl, Temperature::Fixed(temperature)) => (Loss::Msl, temperature),
    }
}

/// What of the LLM trains.
pub(crate) fn tune(config: &RunConfig) -> Tune<'_> {
    match config.llm.tune {
        TuneKind::Full => Tune::Full,
        TuneKind::Lora => Tune::Lora(&config.llm.lora, config.seed),
        TuneKind::Frozen => Tune::Frozen,
    }
}

/// Of the corpus's windows.
pub(crate) fn lessons(
    config: &RunConfig,
    ranking: &Rc<PromptContext>,
    prompt_sets: &[PromptSet],
    options: &TrainOptions,
) -> Result<TrainingData> {
    let windows = sample(ranking.corpus.windows(Split::Train), config.data.train_samples, config.seed, 0)?;
    let valid = match config.train.valid_windows {
        0 => Vec::new(),
        limit => sample(ranking.corpus.windows(Split::Valid), Some(limit), config.seed, 1)?,
    };
    if windows.is_empty() {
        return Err(Error::failed(format!("{}: no training window", config.data.corpus)));
    }
    let in_loss = config.prior.as_ref().is_some_and(|prior| prior.in_loss);
    let valid_examples =
        valid.iter().map(|(_, window)| example(ranking, &ranking.prompt, Split::Valid, window, in_loss));
    let valid_examples = valid_examples.collect::<Result<Vec<_>>>()?;
    check_lengths(ranking, prompt_sets, &windows)?;
    let beginning = example(ranking, &ranking.prompt, Split::Train, &windows[0].1, false)?.prompt;
    let mut shown = format!("{} windows to train on", windows.len());
    if let Some(first) = prompt_sets.first() {
        let names: Vec<&str> = prompt_sets.iter().map(|set| set.name.as_str()).collect();
        shown += &format!(", by the prompt sets {} in turn; {} seen:0 validates", names.join(", "), first.name);
    }
    let validation = ranking.corpus.validation.clone();

    let validate = (!valid.is_empty()).then(|| {
        let interrupter = options.interrupter.clone();
        let (decode, seed, show) =
            (config.decode.clone(), config.seed, options.ui == Ui::Plain && std::io::stderr().is_terminal());
        let (ranking, backend) = (ranking.clone(), options.backend.clone());
        let validate = move |recommenders: &[TrainableModel<Concrete>]| {
            let models: Vec<_> = recommenders.iter().map(|recommender| recommender.model.clone()).collect();
            let beams = decode.beams;
            let then = || {
                format!(
                    "while the validation windows were ranked: lower decode.beams (now {beams}); the last checkpoint is kept"
                )
            };
            let mut go_on = |done, total| {
                if show {
                    progress_line("validating", done, total);
                }
                !interrupter.should_stop()
            };
            let rank = || rank_windows(&models, &ranking, Split::Valid, &valid, &decode, &mut go_on);
            let ranked = catch_out_of_memory(&backend, then, rank)?;
            Ok(ranked.map(|outcomes| summarise(&outcomes, seed).all.metric("ndcg@10").unwrap_or(0.0)))
        };
        Box::new(validate) as Validate<Concrete>
    });

    let train = samples(config, ranking.clone(), prompt_sets, windows, in_loss);
    Ok(TrainingData { train, valid: valid_examples, validate, beginning, shown, validation })
}

fn start_from(
    adapter: &Path,
    config: &RunConfig,
    llm: Decoder<Training>,
    device: &DispatchDevice,
) -> Result<Decoder<Training>> {
    let (found, asked) = (read_adapter_config(adapter)?, &config.llm.lora);
    let sorted = |targets: &[String]| targets.iter().cloned().collect::<BTreeSet<_>>();
    let same =
        (found.rank, found.alpha) == (asked.rank, asked.alpha) && sorted(&found.targets) == sorted(&asked.targets);
    if !same {
        return Err(Error::usage(format!(
            "llm.adapter: {} has rank {}, alpha {} and targets {:?}; set llm.lora to the same",
            adapter.display(),
            found.rank,
            found.alpha,
            found.targets
        )));
    }
    load_adapter(adapter, llm, device)
}

/// A seeded sample of `windows` (or rows) and their places, in their order; all of them for `None`.
pub(crate) fn sample<T: Copy>(windows: &[T], limit: Option<usize>, seed: u64, stream: u64) -> Result<Vec<(u32, T)>> {
    let all = || windows.iter().copied().enumerate().map(|(i, w)| (i as u32, w));
    let Some(limit) = limit.filter(|&limit| limit < windows.len()) else { return Ok(all().collect()) };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    // Streams from 1 upward are the epochs' orders.
    rng.set_stream(u64::MAX - stream);
    let mut chosen = index::sample(&mut rng, windows.len(), limit).into_vec();
    chosen.sort_unstable();
    Ok(chosen.into_iter().map(|i| (i as u32, windows[i])).collect())
}

/// Copies the selected checkpoint's weights to where people look for them.
fn publish(dir: &Path, tune: TuneKind) -> Result<()> {
    use crate::Context;
    let Some((from, _)) = Checkpoints::open(dir)?.selected()? else { return Ok(()) };
    let to = run_dir::trained_dir(dir, tune);
    std::fs::create_dir_all(&to).context(to.display())?;
    for entry in std::fs::read_dir(&from).context(from.display())?.flatten() {
        let name = entry.file_name();
        if name != "state.toml" && name != "optimizer.bin" {
            let bytes = std::fs::read(entry.path()).context(entry.path().display())?;
            crate::core::files::write_atomic(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}
