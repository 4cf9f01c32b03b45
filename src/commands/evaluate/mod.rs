//! `itemlm evaluate RUN_DIR`

mod prior;
mod texts;

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::DispatchDevice;
use serde::Serialize;

use self::prior::{best_weight, check_fit, fit_prior, note_prior_choice, weighted_prior, weights_to_rank_with};
pub use self::texts::TextEvaluation;
use crate::config::{DecodeConfig, Objective, PriorConfig, RunConfig, Scoring, SearchKind};
use crate::core::log::log;
use crate::core::progress::Progress;
use crate::data::{Split, Window};
use crate::device::{BackendChoice, Concrete};
use crate::evaluate::{ListReport, Outcome, RankedSplit, Summary, cutoffs, measure, summarise_at, write_trec};
use crate::model::ItemLanguageModel;
use crate::run::dir::{is_run, read_config, read_identity};
use crate::run::identity::Identity;
use crate::run::precision::check_precision;
use crate::run::prompt_selection::{PromptSelection, SelectedPrompt};
use crate::run::rank_windows::WindowRanking;
use crate::run::ranking_check::check_ranking;
use crate::run::verified_devices::verified_devices;
use crate::run::{ChosenPrior, PriorFit, Session, TriedWeight, catch_out_of_memory, write_evaluation, write_rankings};
use crate::text::PromptChoice;
use crate::{Context, Error, Result};

/// Options of `evaluate`.
pub struct EvaluateOptions {
    /// The split.
    pub split: Split,
    /// Number of beams in place of the run file's.
    pub beams: Option<usize>,
    /// Number of windows, the first of the split; of rows of text tasks, with the tasks taking
    /// turns. All by default.
    pub limit: Option<usize>,
    /// Scoring in place of the run file's; [`Scoring::length_penalty`] then follows it.
    pub scoring: Option<Scoring>,
    /// Length penalty in place of the run file's.
    pub length_penalty: Option<f64>,
    /// The prompt to rank with, for a run with prompt sets.
    pub choice: PromptSelection,
    /// Weights of the prior in place of the run's. The one that ranks the validation windows best
    /// becomes the run's.
    pub prior_weights: Vec<f64>,
    /// Whether to fit the weights of prior and LLM to the validation windows first. The fitted ones
    /// become the run's.
    pub fit_prior: bool,
    /// Further k of the metrics.
    pub at: Vec<u32>,
    /// The directory for TREC's files ([`write_trec`]).
    pub trec: Option<PathBuf>,
    /// Directory of a BERT that encodes sentences, for a run that writes texts.
    pub sentence_encoder: Option<PathBuf>,
    /// The devices; several share the windows, texts are written on one.
    pub backend: BackendChoice,
    /// Whether a GPU's scores are taken for right without a comparison with the CPU's.
    pub trust_device: bool,
    /// Whether to show progress on stderr.
    pub progress: bool,
}

/// The report of `evaluate --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// The split.
    pub split: Split,
    /// The prompt set of the ranking, for a run with prompt sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The prompt of the set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptChoice>,
    /// The metrics of all, cold and warm targets.
    #[serde(flatten)]
    pub summary: Summary,
    /// Measures of the lists, and the metrics by the length of the history.
    #[serde(flatten)]
    pub lists: ListReport,
    /// All rankings of a run with prompt sets, if no prompt was chosen; the first is the one above.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskEvaluation>,
    /// Ranked windows a second.
    pub users_per_second: f64,
    /// Over which tokens the softmax was computed.
    pub scoring: Scoring,
    /// Number of beams.
    pub beams: usize,
    /// Number of items of a list, at most.
    pub depth: usize,
    /// Length penalty.
    pub length_penalty: f64,
    /// The beam search that ranked.
    pub search: SearchKind,
    /// Whether items with a title of the history were left out.
    pub exclude_history: bool,
    /// The prior, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<PriorConfig>,
    /// All weights of the prior that were compared, if it was chosen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<TriedWeight>,
    /// The fit of the weights of prior and LLM, if they were fitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fit: Option<PriorFit>,
    /// SHA-256 of the corpus's `corpus.toml`.
    pub corpus: String,
    /// The optimiser step of the weights.
    pub step: usize,
    /// Peak memory of this process, bytes.
    pub peak_memory_bytes: u64,
}

/// A prompt of a prompt set, and the metrics with it.
#[derive(Debug, Clone, Serialize)]
pub struct TaskEvaluation {
    /// The prompt set.
    pub task: String,
    /// The prompt of the set.
    pub prompt: PromptChoice,
    /// The metrics of all, cold and warm targets.
    #[serde(flatten)]
    pub summary: Summary,
}

/// The report of `evaluate --json`, for a run that ranks items or for one that writes texts.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum EvaluateReport {
    /// A ranking of items.
    Items(Box<Evaluation>),
    /// An evaluation of texts.
    Texts(TextEvaluation),
}

/// Evaluates a trained run on a split, and writes the results into the run directory.
///
/// # Errors
/// Options for another objective than the run's; those of [`Session::open`]; a split with nothing
/// to evaluate.
pub fn evaluate(dir: &Path, options: &EvaluateOptions) -> Result<EvaluateReport> {
    // Errors of the backend come before errors of the directory.
    let config = is_run(dir).then(|| read_config(dir)).transpose()?;
    match config.as_ref().map(RunConfig::objective) {
        Some(Objective::Texts(_)) => texts::evaluate_texts(dir, options).map(EvaluateReport::Texts),
        _ => {
            let then = || "while the windows were ranked: lower --beams, or rank with --backend cpu".to_string();
            let evaluation = catch_out_of_memory(&options.backend, then, || evaluate_items(dir, options))?;
            Ok(EvaluateReport::Items(Box::new(evaluation)))
        }
    }
}

/// Ranks a split with a trained run: with several prompts, with one after the other; of several
/// weights of the prior the first prompt chooses. Writes `evaluation-<split>.json`,
/// `ranks-<split>.parquet` and `lists-<split>.parquet` into it.
fn evaluate_items(dir: &Path, options: &EvaluateOptions) -> Result<Evaluation> {
    if options.sentence_encoder.is_some() {
        return Err(Error::usage(format!("--sentence-encoder is for texts; the run in {} ranks items", dir.display())));
    }
    let cutoffs = cutoffs(&options.at)?;
    let devices = verified_devices(&options.backend)?;
    let mut run = Session::open(dir, &devices[0])?;
    let selection = options.choice.select_all(&run.prompt_sets)?;
    let decode = decode_config(&run.config.decode, options)?;
    check_fit(&run, options, &decode)?;
    let first = selection.first().map(|first| format!("{} {}", first.set, first.prompt));
    note_prior_choice(&run, options, first.as_deref(), &decode);

    let windows = limited_windows(&run, options)?;
    let models = replicas(&run, &devices[1..])?;
    check_ranking(&run, &models, &options.backend, options.trust_device)?;
    let rank = |run: &Session, prompts: &WindowRanking| {
        let progress = if options.progress { Progress::new("ranking", windows.len()) } else { Progress::hidden() };
        let mut go_on = |done, _| {
            progress.set(done);
            true
        };
        let ranked = prompts.rank(&run.context, &decode, &mut go_on).context(dir.display())?.unwrap_or_default();
        Ok::<_, Error>((summarise_at(&ranked.outcomes, &cutoffs, run.config.seed), ranked))
    };
    if let Some(first) = selection.first() {
        run.context.prompt = first.template.clone();
    }
    let fit = options.fit_prior.then(|| fit_prior(&mut run, &windows, options.progress)).transpose()?;
    let started = Instant::now();
    let weights = weights_to_rank_with(&run, options)?;
    let tokenise =
        |run: &Session| WindowRanking::new(&models, &run.context, options.split, &windows).context(dir.display());
    let prompts = tokenise(&run)?;
    if prompts.shortened > 0 {
        log(format_args!("note: {} windows are shown without their oldest items, which do not fit", prompts.shortened));
    }
    let (best, mut tried) = best_weight(&mut run, &weights, |run| rank(run, &prompts))?;
    let Some((summary, ranked, best)) = best else { return Err(Error::usage("--prior-weight is empty")) };
    let mut outcomes = ranked.outcomes.clone();
    run.context.prior.iter_mut().for_each(|prior| prior.weights = best);
    let tasks = rank_tasks(&mut run, &selection, &summary, &mut outcomes, |run| rank(run, &tokenise(run)?))?;
    let seconds = started.elapsed().as_secs_f64();
    let rankings = (weights.len() + selection.len().saturating_sub(1)) * windows.len();
    tried.retain(|_| weights.len() > 1);
    let prior = weighted_prior(&run);
    if let Some(prior) = prior.clone().filter(|_| fit.is_some() || !tried.is_empty()) {
        let (vectors, tried, decode) = (run.prior_vectors.clone(), tried.clone(), decode.clone());
        let windows = windows.len();
        ChosenPrior { prior, vectors, step: run.step, decode, prompt: first, windows, tried, fit }.write(dir)?;
    }

    let (split, corpus) = (options.split, &run.context.corpus);
    let of_window = |row: &TaskEvaluation| vec![(row.task.clone(), row.prompt.to_string()); windows.len()];
    let by: Vec<(String, String)> = tasks.iter().flat_map(of_window).collect();
    write_rankings(dir, split, &ranked, &outcomes, &by, corpus)?;
    if let Some(trec) = &options.trec {
        write_trec(trec, &ranked, corpus, split, &dir.display().to_string())?;
    }
    let evaluation = Evaluation {
        split,
        task: selection.first().map(|first| first.set.clone()),
        prompt: selection.first().map(|first| first.prompt),
        summary,
        lists: measure(&ranked, corpus, split, &cutoffs)?,
        tasks: if tasks.len() > 1 { tasks } else { Vec::new() },
        users_per_second: rankings as f64 / seconds,
        scoring: decode.scoring,
        beams: decode.beams,
        depth: decode.beams,
        length_penalty: decode.length_penalty,
        search: decode.search,
        exclude_history: decode.exclude_history,
        prior,
        tried,
        fit,
        corpus: read_identity::<Identity>(dir)?.corpus,
        step: run.step,
        peak_memory_bytes: crate::core::system::peak_bytes(),
    };
    write_evaluation(dir, split, &evaluation)?;
    Ok(evaluation)
}

/// Ranks with every prompt after the first, and adds its outcomes; returns a row for each prompt.
///
/// * `summary`, `outcomes`: those of the first prompt.
/// * `rank`: ranks with the session's prompt.
fn rank_tasks(
    run: &mut Session,
    prompts: &[SelectedPrompt],
    summary: &Summary,
    outcomes: &mut Vec<Outcome>,
    rank: impl Fn(&Session) -> Result<(Summary, RankedSplit)>,
) -> Result<Vec<TaskEvaluation>> {
    let mut tasks = Vec::new();
    for SelectedPrompt { set: task, prompt, template } in prompts {
        let mut summary = summary.clone();
        if !tasks.is_empty() {
            run.context.prompt = template.clone();
            let (of_prompt, ranked) = rank(run)?;
            summary = of_prompt;
            outcomes.extend(ranked.outcomes);
        }
        tasks.push(TaskEvaluation { task: task.clone(), prompt: *prompt, summary });
    }
    Ok(tasks)
}

/// Returns the run's model, and a copy of it on each of the other devices.
fn replicas(run: &Session, others: &[DispatchDevice]) -> Result<Vec<ItemLanguageModel<Concrete>>> {
    others.iter().try_for_each(|device| check_precision(run.config.llm.precision, device).map(|_| ()))?;
    let copies = others.iter().map(|device| run.model.clone_to_device(device));
    Ok(std::iter::once(run.model.clone()).chain(copies).collect())
}

/// Returns the windows to rank, each with its index in the split.
fn limited_windows(run: &Session, options: &EvaluateOptions) -> Result<Vec<(u32, Window)>> {
    let windows = run.context.corpus.windows(options.split);
    let limit = options.limit.unwrap_or(usize::MAX);
    let windows: Vec<(u32, Window)> = (0..).zip(windows.iter().copied()).take(limit).collect();
    match windows.is_empty() {
        false => Ok(windows),
        true => Err(Error::failed(format!("{}: the {} split has no window", run.config.data.corpus, options.split))),
    }
}

/// Returns the run file's settings, replaced by those of the command line.
fn decode_config(config: &DecodeConfig, options: &EvaluateOptions) -> Result<DecodeConfig> {
    let mut decode = config.clone();
    decode.beams = options.beams.unwrap_or(decode.beams);
    if let Some(scoring) = options.scoring.filter(|&scoring| scoring != decode.scoring) {
        decode.scoring = scoring;
        decode.length_penalty = scoring.length_penalty();
    }
    decode.length_penalty = options.length_penalty.unwrap_or(decode.length_penalty);
    if decode.beams == 0 || !(decode.length_penalty >= 0.0 && decode.length_penalty.is_finite()) {
        return Err(Error::usage("--beams must be at least 1 and --length-penalty a finite number of at least 0"));
    }
    if let Some(k) = options.at.iter().find(|&&k| k as usize > decode.beams) {
        return Err(Error::usage(format!("--at {k}: the lists have {} items; add --beams {k}", decode.beams)));
    }
    if let Some(note) = decode.advice() {
        log(format_args!("note: {note}"));
    }
    Ok(decode)
}
