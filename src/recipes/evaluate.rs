//! `itemlm evaluate RUN_DIR`

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use burn::DispatchDevice;
use serde::Serialize;

use super::open_run;
use super::run_dir::Ranking;
use crate::backend::{BackendName, Concrete};
use crate::config::{DecodeConfig, Scoring};
use crate::data::{Split, Window};
use crate::decode::search;
use crate::evaluate::{Outcome, Summary, rank_of, summarise, write_ranks};
use crate::files::write_atomic;
use crate::model::Llama;
use crate::{Context, Error, Result};

/// Prompt tokens that one forward pass takes at most, padding included (one user's prompt may exceed it).
const TOKEN_BUDGET: usize = 4096;

/// What the command line decides.
pub struct EvaluateOptions {
    /// Which windows.
    pub split: Split,
    /// In place of the run file's.
    pub beams: Option<usize>,
    /// The first so many windows.
    pub limit: Option<usize>,
    /// In place of the run file's.
    pub scoring: Option<Scoring>,
    /// In place of the run file's.
    pub length_penalty: Option<f64>,
    /// Where to run.
    pub backend: BackendName,
    /// Show progress on stderr.
    pub progress: bool,
}

/// What `evaluate --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Which windows.
    pub split: Split,
    /// The metrics of all, cold and warm targets.
    #[serde(flatten)]
    pub summary: Summary,
    /// Ranked windows a second.
    pub users_per_second: f64,
    /// Which tokens shared the probability.
    pub scoring: Scoring,
    /// Beams.
    pub beams: usize,
    /// Length penalty.
    pub length_penalty: f64,
    /// The optimiser step whose weights ranked.
    pub step: usize,
    /// Of this process.
    pub peak_memory_bytes: u64,
}

/// Ranks a split with a trained run; writes `evaluation-<split>.json` and `ranks-<split>.parquet` into it.
pub fn evaluate(dir: &Path, options: &EvaluateOptions) -> Result<Evaluation> {
    let device = options.backend.device()?;
    let run = open_run(dir, &device)?;
    let mut decode = run.config.decode.clone();
    decode.beams = options.beams.unwrap_or(decode.beams);
    decode.scoring = options.scoring.unwrap_or(decode.scoring);
    decode.length_penalty = options.length_penalty.unwrap_or(decode.length_penalty);
    if decode.beams == 0 || !(decode.length_penalty >= 0.0 && decode.length_penalty.is_finite()) {
        return Err(Error::usage("--beams must be at least 1 and --length-penalty a finite number of at least 0"));
    }

    let windows = run.ranking.corpus.windows(options.split);
    let limit = options.limit.unwrap_or(usize::MAX);
    let windows: Vec<(u32, Window)> = (0..).zip(windows.iter().copied()).take(limit).collect();
    if windows.is_empty() {
        return Err(Error::failed(format!("{}: the {} split has no window", run.config.data.corpus, options.split)));
    }
    let started = Instant::now();
    let outcomes = rank_windows(&run.llm, &run.ranking, options.split, &windows, &decode, &device, &mut |done, total| {
        if options.progress {
            progress_line("ranking", done, total);
        }
        true
    })
    .context(dir.display())?
    .unwrap_or_default();
    let seconds = started.elapsed().as_secs_f64();

    let evaluation = Evaluation {
        split: options.split,
        summary: summarise(&outcomes, run.config.seed),
        users_per_second: windows.len() as f64 / seconds,
        scoring: decode.scoring,
        beams: decode.beams,
        length_penalty: decode.length_penalty,
        step: run.step,
        peak_memory_bytes: super::peak_memory_bytes(),
    };
    let split = options.split;
    write_ranks(&dir.join(format!("ranks-{split}.parquet")), &outcomes, &run.ranking.corpus)?;
    let json = serde_json::to_string_pretty(&evaluation).context("evaluation")?;
    write_atomic(&dir.join(format!("evaluation-{split}.json")), json.as_bytes())?;
    Ok(evaluation)
}

/// Ranks `windows` of `split` (with their index in it); `None` if `go_on(done, total)` said to stop.
///
/// Windows run together by token budget, ordered by length; the outcomes come in the order given.
pub fn rank_windows(
    llm: &Llama<Concrete>,
    ranking: &Ranking,
    split: Split,
    windows: &[(u32, Window)],
    decode: &DecodeConfig,
    device: &DispatchDevice,
    go_on: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Vec<Outcome>>> {
    let corpus = &ranking.corpus;
    let cold = corpus.cold_items(split);
    let prompts = windows
        .iter()
        .map(|(_, window)| ranking.prompt_tokens(corpus.history(window).iter().map(|&item| corpus.title(item))))
        .collect::<Result<Vec<_>>>()?;
    let mut order: Vec<usize> = (0..windows.len()).collect();
    order.sort_by_key(|&w| std::cmp::Reverse(prompts[w].len()));

    let mut outcomes: Vec<Option<Outcome>> = vec![None; windows.len()];
    let mut done = 0;
    while done < order.len() {
        if !go_on(done, order.len()) {
            return Ok(None);
        }
        let longest = prompts[order[done]].len();
        let together = &order[done..order.len().min(done + (TOKEN_BUDGET / longest).max(1))];
        let batch: Vec<Vec<u32>> = together.iter().map(|&w| prompts[w].clone()).collect();
        let found = search(llm, &ranking.catalogue, &batch, decode, device);
        super::trustworthy(found.iter().flatten().map(|ranked| ranked.log_prob))?;
        for (&w, ranked) in together.iter().zip(found) {
            let (index, window) = windows[w];
            let items: Vec<u32> = ranked.iter().filter_map(|r| ranking.catalogue.trie.items(r.leaf).next()).collect();
            let target = corpus.target(&window);
            outcomes[w] = Some(Outcome {
                window: index,
                user: window.user,
                target,
                cold: cold[target as usize],
                rank: rank_of(corpus, target, &items),
            });
        }
        done += together.len();
    }
    go_on(done, order.len());
    Ok(Some(outcomes.into_iter().flatten().collect()))
}

/// One line on stderr that overwrites itself.
pub(super) fn progress_line(what: &str, done: usize, total: usize) {
    let line = format!("\r{what} {done}/{total}{}", if done == total { "\n" } else { "" });
    let _ = std::io::stderr().write_all(line.as_bytes());
}
