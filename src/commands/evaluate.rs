//! `itemlm evaluate RUN_DIR`

use std::io::Write;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use serde::Serialize;

use crate::config::{DecodeConfig, PriorConfig, Scoring};
use crate::core::files::write_atomic;
use crate::core::log::log;
use crate::data::{Split, Window};
use crate::decode::{PrefixMass, Ranked, TOKENS_PER_BEAM, TriePrior, common_prefix, prompts_per_pass, search};
use crate::device::{BackendChoice, Concrete};
use crate::evaluate::{Outcome, Summary, summarise, write_ranks};
use crate::model::ItemLanguageModel;
use crate::run::open_run;
use crate::run::prompt_context::PromptContext;
use crate::run::prompt_selection::{PromptSelection, SelectedPrompt};
use crate::run::run_dir::{ChosenPrior, OpenRun, TriedWeight, read_config};
use crate::run::text_tasks::check_ranks;
use crate::run::verified_devices::verified_devices;
use crate::text::PromptChoice;
use crate::{Context, Error, Result};

/// What the command line decides.
pub struct EvaluateOptions {
    /// Which windows.
    pub split: Split,
    /// In place of the run file's.
    pub beams: Option<usize>,
    /// The first so many windows; of rows so many, the tasks taking turns.
    pub limit: Option<usize>,
    /// In place of the run file's.
    pub scoring: Option<Scoring>,
    /// In place of the run file's.
    pub length_penalty: Option<f64>,
    /// Of a run with tasks.
    pub choice: PromptSelection,
    /// In place of the run's weight of the prior; of several, the one that ranks the validation
    /// windows best becomes the run's.
    pub prior_weights: Vec<f64>,
    /// For texts: a directory of a BERT that encodes sentences.
    pub sentence_encoder: Option<PathBuf>,
    /// Where to run; several devices share the windows, texts are written on one.
    pub backend: BackendChoice,
    /// Show progress on stderr.
    pub progress: bool,
}

/// What `evaluate --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Which windows.
    pub split: Split,
    /// The task that ranked, of a run with tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Its prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptChoice>,
    /// The metrics of all, cold and warm targets.
    #[serde(flatten)]
    pub summary: Summary,
    /// All that ranked of a run with tasks, where none was chosen; the first is the one above.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskEvaluation>,
    /// Ranked windows a second.
    pub users_per_second: f64,
    /// Which tokens shared the probability.
    pub scoring: Scoring,
    /// Beams.
    pub beams: usize,
    /// Length penalty.
    pub length_penalty: f64,
    /// The prior that ranked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<PriorConfig>,
    /// All weights of the prior that were tried, where it was chosen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<TriedWeight>,
    /// The optimiser step whose weights ranked.
    pub step: usize,
    /// Of this process.
    pub peak_memory_bytes: u64,
}

/// A prompt of a task, and how it ranked.
#[derive(Debug, Clone, Serialize)]
pub struct TaskEvaluation {
    /// The task.
    pub task: String,
    /// Its prompt.
    pub prompt: PromptChoice,
    /// The metrics of all, cold and warm targets.
    #[serde(flatten)]
    pub summary: Summary,
}

/// Ranks a split with a trained run, of several tasks by one prompt after the other; of several
/// weights of the prior the first prompt chooses. Writes `evaluation-<split>.json` and
/// `ranks-<split>.parquet` into it.
pub fn evaluate(dir: &Path, options: &EvaluateOptions) -> Result<Evaluation> {
    if options.sentence_encoder.is_some() {
        return Err(Error::usage(format!("--sentence-encoder is for texts; the run in {} ranks items", dir.display())));
    }
    let devices = verified_devices(&options.backend)?;
    check_ranks(dir, &read_config(dir)?)?;
    let mut run = open_run(dir, &devices[0])?;
    let asked = options.choice.all(&run.prompt_sets)?;
    let weights = weights(&run, options)?;
    let mut decode = run.config.decode.clone();
    decode.beams = options.beams.unwrap_or(decode.beams);
    decode.scoring = options.scoring.unwrap_or(decode.scoring);
    decode.length_penalty = options.length_penalty.unwrap_or(decode.length_penalty);
    if decode.beams == 0 || !(decode.length_penalty >= 0.0 && decode.length_penalty.is_finite()) {
        return Err(Error::usage("--beams must be at least 1 and --length-penalty a finite number of at least 0"));
    }

    let first = asked.first().map(|first| format!("{} {}", first.set, first.prompt));
    let used = run.chosen.as_ref().filter(|_| options.prior_weights.is_empty());
    if let Some(chosen) = used.filter(|chosen| chosen.asked != first) {
        let (by, now) = (chosen.asked.as_deref().unwrap_or_default(), first.as_deref().unwrap_or_default());
        log(format_args!("note: the prior's weight {} was chosen by {by}; this ranks by {now}", chosen.prior.weight));
    }
    if let Some(chosen) = used.filter(|chosen| chosen.decode != decode) {
        let told = |decode: &DecodeConfig| {
            let scoring = if decode.scoring == Scoring::Full { "full" } else { "masked" };
            format!("{scoring} scoring, {} beams and length penalty {}", decode.beams, decode.length_penalty)
        };
        log(format_args!(
            "note: the prior's weight {} was chosen with {}; this ranks with {}",
            chosen.prior.weight,
            told(&chosen.decode),
            told(&decode)
        ));
    }

    let windows = run.ranking.corpus.windows(options.split);
    let limit = options.limit.unwrap_or(usize::MAX);
    let windows: Vec<(u32, Window)> = (0..).zip(windows.iter().copied()).take(limit).collect();
    if windows.is_empty() {
        return Err(Error::failed(format!("{}: the {} split has no window", run.config.data.corpus, options.split)));
    }
    for device in &devices[1..] {
        crate::run::precision(run.config.llm.precision, device)?;
    }
    let copies = devices[1..].iter().map(|device| run.model.clone_to_device(device));
    let models: Vec<_> = std::iter::once(run.model.clone()).chain(copies).collect();
    let rank = |run: &OpenRun, prompts: &Prompts| {
        let mut go_on = |done, total| {
            if options.progress {
                progress_line("ranking", done, total);
            }
            true
        };
        let outcomes = prompts.rank(&run.ranking, &decode, &mut go_on).context(dir.display())?.unwrap_or_default();
        Ok::<_, Error>((summarise(&outcomes, run.config.seed), outcomes))
    };
    let started = Instant::now();
    if let Some(first) = asked.first() {
        run.ranking.prompt = first.template.clone();
    }
    let prompts = Prompts::new(&models, &run.ranking, options.split, &windows).context(dir.display())?;
    let mut tried: Vec<TriedWeight> = Vec::new();
    let mut best: Option<(Summary, Vec<Outcome>, f64)> = None;
    for &weight in &weights {
        run.ranking.prior.iter_mut().for_each(|prior| prior.weight = weight);
        let (summary, outcomes) = rank(&run, &prompts)?;
        let ndcg_at_10 = summary.all.metric("ndcg@10").unwrap_or(0.0);
        // Of equally good weights the first.
        if tried.iter().all(|other| other.ndcg_at_10 < ndcg_at_10) {
            best = Some((summary, outcomes, weight));
        }
        tried.push(TriedWeight { weight, ndcg_at_10 });
    }
    let Some((summary, mut outcomes, weight)) = best else { return Err(Error::usage("--prior-weight is empty")) };
    run.ranking.prior.iter_mut().for_each(|prior| prior.weight = weight);
    let mut tasks = Vec::new();
    for SelectedPrompt { set: task, prompt, template } in &asked {
        let mut summary = summary.clone();
        if !tasks.is_empty() {
            run.ranking.prompt = template.clone();
            let prompts = Prompts::new(&models, &run.ranking, options.split, &windows).context(dir.display())?;
            let (found, more) = rank(&run, &prompts)?;
            summary = found;
            outcomes.extend(more);
        }
        tasks.push(TaskEvaluation { task: task.clone(), prompt: *prompt, summary });
    }
    let seconds = started.elapsed().as_secs_f64();
    let rankings = (weights.len() + asked.len().saturating_sub(1)) * windows.len();
    let prior = run.config.prior.clone().map(|prior| PriorConfig { weight, ..prior });
    match prior.clone() {
        Some(prior) if tried.len() > 1 => {
            let (vectors, tried) = (run.prior_vectors, tried.clone());
            let (decode, windows) = (decode.clone(), windows.len());
            ChosenPrior { prior, vectors, step: run.step, decode, asked: first, windows, tried }.write(dir)?;
        }
        _ => tried.clear(),
    }

    let split = options.split;
    let of_window = |row: &TaskEvaluation| vec![(row.task.clone(), row.prompt.to_string()); windows.len()];
    let by: Vec<(String, String)> = tasks.iter().flat_map(of_window).collect();
    write_ranks(&dir.join(format!("ranks-{split}.parquet")), &outcomes, &by, &run.ranking.corpus)?;
    let evaluation = Evaluation {
        split,
        task: asked.first().map(|first| first.set.clone()),
        prompt: asked.first().map(|first| first.prompt),
        summary,
        tasks: if tasks.len() > 1 { tasks } else { Vec::new() },
        users_per_second: rankings as f64 / seconds,
        scoring: decode.scoring,
        beams: decode.beams,
        length_penalty: decode.length_penalty,
        prior,
        tried,
        step: run.step,
        peak_memory_bytes: crate::core::system::peak_bytes(),
    };
    let json = serde_json::to_string_pretty(&evaluation).context("evaluation")?;
    write_atomic(&dir.join(format!("evaluation-{split}.json")), json.as_bytes())?;
    Ok(evaluation)
}

/// The weights of the prior to rank with, in order; one, of no effect, for a run without a prior.
fn weights(run: &OpenRun, options: &EvaluateOptions) -> Result<Vec<f64>> {
    let asked = &options.prior_weights;
    match &run.ranking.prior {
        _ if asked.len() > 1 && options.split != Split::Valid => Err(Error::usage(format!(
            "--prior-weight: of {} weights the best is chosen, by --split valid alone, not {}",
            asked.len(),
            options.split
        ))),
        None if !asked.is_empty() => Err(Error::usage("--prior-weight: the run's run.toml has no [prior]")),
        None => Ok(vec![0.0]),
        Some(prior) if asked.is_empty() => Ok(vec![prior.weight]),
        Some(_) => {
            asked.iter().try_for_each(|&weight| PriorConfig::check_weight(weight, "--prior-weight"))?;
            Ok(asked.clone())
        }
    }
}

/// Ranks `windows` of `split` (with their index in it); `None` if `go_on(done, total)` said to
/// stop.
///
/// * `models`: one, or copies of it on several devices, which share the windows
///   ([`ItemLanguageModel::clone_to_device`]).
pub fn rank_windows(
    models: &[ItemLanguageModel<Concrete>],
    ranking: &PromptContext,
    split: Split,
    windows: &[(u32, Window)],
    decode: &DecodeConfig,
    go_on: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Vec<Outcome>>> {
    Prompts::new(models, ranking, split, windows)?.rank(ranking, decode, go_on)
}

/// Windows ready to rank, as often as wanted.
struct Prompts<'a> {
    split: Split,
    /// With their index in the split.
    windows: &'a [(u32, Window)],
    /// The tokens of each window's prompt.
    tokens: Vec<Vec<u32>>,
    /// Tokens that all prompts begin with.
    shared: usize,
    /// Have run those.
    models: Vec<ItemLanguageModel<Concrete>>,
}

impl<'a> Prompts<'a> {
    /// Tokenises the windows' prompts and runs what they all begin with.
    fn new(
        models: &[ItemLanguageModel<Concrete>],
        ranking: &PromptContext,
        split: Split,
        windows: &'a [(u32, Window)],
    ) -> Result<Self> {
        let tokens = windows.iter().map(|(_, window)| ranking.window_tokens(window)).collect::<Result<Vec<_>>>()?;
        let beginning = common_prefix(&tokens);
        let models = models.iter().map(|model| model.clone().with_prefix_cache(beginning)).collect();
        let shared = beginning.len();
        Ok(Self { split, windows, tokens, shared, models })
    }

    /// Ranks the windows; `None` if `go_on(done, total)` said to stop.
    ///
    /// Windows run together by token budget, ordered by length, the same ones on one device as on
    /// several, each of which has a thread that takes the next ones; the outcomes come in the order
    /// given. The ranking's prior, if it has one, takes part.
    ///
    /// * `ranking`: the one whose prompts these are, but for the prior's weight.
    fn rank(
        &self,
        ranking: &PromptContext,
        decode: &DecodeConfig,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<Vec<Outcome>>> {
        let cold = ranking.corpus.cold_items(self.split);
        let batches = self.batches(decode.beams);
        let (total, next, done, stop) =
            (self.windows.len(), AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let work = |model: &ItemLanguageModel<Concrete>, go_on: &mut dyn FnMut(usize, usize) -> bool| {
            let mut ranked = Vec::new();
            while !stop.load(Relaxed)
                && let Some(batch) = batches.get(next.fetch_add(1, Relaxed))
            {
                if !go_on(done.load(Relaxed), total) {
                    stop.store(true, Relaxed);
                    break;
                }
                let outcomes = self.rank_batch(model, ranking, &cold, decode, batch);
                ranked.extend(outcomes.inspect_err(|_| stop.store(true, Relaxed))?);
                done.fetch_add(batch.len(), Relaxed);
            }
            Ok::<_, Error>(ranked)
        };
        let Some((first, others)) = self.models.split_first() else {
            return Err(Error::usage("there is no model to rank with"));
        };
        let shares = std::thread::scope(|scope| {
            let others = others.iter().map(|model| scope.spawn(|| work(model, &mut |_, _| true)));
            let others: Vec<_> = others.collect();
            let first = work(first, go_on);
            // All of them, before any error: a thread that nobody joined would panic here, and say
            // less.
            let others: Vec<_> = others.into_iter().map(ScopedJoinHandle::join).collect();
            let others = others.into_iter().map(|share| share.unwrap_or_else(|panic| resume_unwind(panic)));
            std::iter::once(first).chain(others).collect::<Result<Vec<_>>>()
        })?;
        if stop.load(Relaxed) {
            return Ok(None);
        }
        go_on(total, total);
        let mut ranked: Vec<(usize, Outcome)> = shares.into_iter().flatten().collect();
        ranked.sort_by_key(|&(window, _)| window);
        Ok(Some(ranked.into_iter().map(|(_, outcome)| outcome).collect()))
    }

    /// Places in the windows, those that run together.
    fn batches(&self, beams: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.windows.len()).collect();
        order.sort_by_key(|&w| std::cmp::Reverse(self.tokens[w].len()));
        let mut batches = Vec::new();
        let mut left = order.as_slice();
        while let Some(&longest) = left.first() {
            let longest = self.tokens[longest].len() - self.shared + TOKENS_PER_BEAM * beams;
            let (now, later) = left.split_at(left.len().min(prompts_per_pass(longest)));
            batches.push(now.to_vec());
            left = later;
        }
        batches
    }

    /// The outcomes of the windows at `together`, with these places.
    fn rank_batch(
        &self,
        model: &ItemLanguageModel<Concrete>,
        ranking: &PromptContext,
        cold: &[bool],
        decode: &DecodeConfig,
        together: &[usize],
    ) -> Result<Vec<(usize, Outcome)>> {
        let (corpus, windows) = (&ranking.corpus, self.windows);
        let prompts: Vec<Vec<u32>> = together.iter().map(|&w| self.tokens[w].clone()).collect();
        let prior_of =
            |prior| together.iter().map(move |&w| TriePrior::of_window(prior, corpus, self.split, &windows[w].1));
        let priors: Vec<PrefixMass> = ranking.prior.iter().flat_map(prior_of).collect();
        let found = search(model, &ranking.catalogue, &prompts, &priors, decode, &model.device());
        crate::run::check_log_probs(found.iter().flatten().map(|ranked| ranked.log_prob))?;
        let outcome = |(&w, ranked): (&usize, Vec<Ranked>)| {
            let (index, window) = windows[w];
            let items: Vec<u32> = ranked.iter().filter_map(|r| ranking.catalogue.trie.items(r.leaf).next()).collect();
            let (target, user) = (corpus.target(&window), window.user);
            let rank = ranking.rank_of(target, &items);
            (w, Outcome { window: index, user, target, cold: cold[target as usize], rank })
        };
        Ok(together.iter().zip(found).map(outcome).collect())
    }
}

/// One line on stderr that overwrites itself.
pub(crate) fn progress_line(what: &str, done: usize, total: usize) {
    let line = format!("\r{what} {done}/{total}{}", if done == total { "\n" } else { "" });
    let _ = std::io::stderr().write_all(line.as_bytes());
}
