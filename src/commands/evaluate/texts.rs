//! `itemlm evaluate` for a run that writes texts.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::EvaluateOptions;
use crate::core::files::write_atomic;
use crate::core::log::log;
use crate::core::progress::Progress;
use crate::data::{Corpus, Split};
use crate::decode::{check_log_probs, common_prefix, generate, log_likelihoods, prompts_per_pass};
use crate::device::Concrete;
use crate::evaluate::{TextOutcome, TextSummary, summarise_texts};
use crate::model::SentenceEncoder;
use crate::run::text_tasks::TextTaskData;
use crate::run::verified_devices::verified_device;
use crate::run::{Session, write_evaluation};
use crate::{Context, Error, Result};

/// The directory into which `just bert` puts MiniLM.
const SENTENCE_ENCODER: &str = "models/minilm-l6";

/// Longest generated text, in tokens: of a longer one the sentence encoder would only read the
/// beginning.
const LONGEST_TEXT: usize = 256;

/// The report of `evaluate --json` for a run that writes texts.
#[derive(Debug, Clone, Serialize)]
pub struct TextEvaluation {
    /// The split of the rows.
    pub split: Split,
    /// Log-perplexity and semantic consistency of each task, and their mean.
    #[serde(flatten)]
    pub summary: TextSummary,
    /// Directory of the sentence encoder; null without semantic consistency.
    pub sentence_encoder: Option<PathBuf>,
    /// Evaluated rows a second.
    pub rows_per_second: f64,
    /// The optimiser step of the weights.
    pub step: usize,
    /// Peak memory of this process, bytes.
    pub peak_memory_bytes: u64,
}

/// Generates the texts of a split's rows with a trained run; writes `evaluation-<split>.json` and
/// `texts-<split>.jsonl` into it.
///
/// # Errors
/// Options of rankings; a split without rows.
pub fn evaluate_texts(dir: &Path, options: &EvaluateOptions) -> Result<TextEvaluation> {
    let ranks = options.beams.is_some() || options.scoring.is_some() || options.length_penalty.is_some();
    let asks = options.choice.set.is_some() || options.choice.prompt.is_some();
    let lists = options.trec.is_some() || !options.at.is_empty();
    let prior = !options.prior_weights.is_empty() || options.fit_prior;
    if ranks || asks || lists || prior || options.trust_device {
        return Err(Error::usage(format!(
            "--beams, --scoring, --length-penalty, --task, --prompt, --prior-weight, --fit-prior, --trust-device, --at \
             and --trec are for ranking; the run in {} writes texts",
            dir.display()
        )));
    }
    let device = verified_device(&options.backend)?;
    let run = Session::open(dir, &device)?;
    let Some(tasks) = run.text_tasks else {
        return Err(Error::usage(format!("{}: this run ranks items and writes no texts", dir.display())));
    };
    let sentence_encoder = sentence_encoder(options);
    let encoder = sentence_encoder.as_ref().map(|dir| SentenceEncoder::<Concrete>::open(dir, &device)).transpose()?;
    let rows = tasks.limited_rows(options.split, options.limit);
    if rows.is_empty() {
        return Err(Error::failed(format!("{}: no row of the split {}", tasks.path.display(), options.split)));
    }

    let (ranking, started) = (&run.context, Instant::now());
    let progress = if options.progress { Progress::new("writing", rows.len()) } else { Progress::hidden() };
    let mut written: Vec<GeneratedText> = Vec::with_capacity(rows.len());
    for task in 0..tasks.tasks.len() {
        let mut of_task = Vec::new();
        for &row in rows.iter().filter(|&&row| tasks.rows[row].task == task) {
            of_task.push((row, tasks.tokens(ranking, &tasks.rows[row])?));
        }
        let prompts: Vec<Vec<u32>> = of_task.iter().map(|(_, (prompt, _))| prompt.clone()).collect();
        let model = run.model.clone().with_prefix_cache(common_prefix(&prompts));
        of_task.sort_by_key(|(_, (prompt, text))| std::cmp::Reverse(prompt.len() + text.len()));
        let mut left = of_task.as_slice();
        while let Some((_, (prompt, text))) = left.first() {
            progress.set(written.len());
            let longest = prompt.len() + text.len().max(if encoder.is_some() { LONGEST_TEXT } else { 0 });
            let (now, later) = left.split_at(left.len().min(prompts_per_pass(longest)));
            left = later;
            let (prompts, texts): (Vec<_>, Vec<_>) = now.iter().map(|(_, tokens)| tokens.clone()).unzip();
            let log_likelihoods = log_likelihoods(&model, &prompts, &texts)?;
            check_log_probs(log_likelihoods.iter().copied()).context(dir.display())?;
            // The room for an answer depends only on its own prompt.
            let room: Vec<usize> =
                prompts.iter().map(|prompt| (ranking.context - prompt.len()).min(LONGEST_TEXT)).collect();
            let decoded = match encoder {
                Some(_) => generate(&model, &prompts, &room, ranking.tokenizer.eos(), &device)?,
                None => Vec::new(),
            };
            for (n, ((row, (_, text)), log_likelihood)) in now.iter().zip(log_likelihoods).enumerate() {
                let outcome = TextOutcome { task, tokens: text.len(), log_likelihood, cosine: None };
                let decoded = decoded.get(n).map(|tokens| ranking.tokenizer.decode(tokens)).transpose()?;
                written.push(GeneratedText { row: *row, outcome, decoded });
            }
        }
    }
    drop(progress);
    written.sort_by_key(|written| written.row);
    if let Some(encoder) = &encoder {
        let pairs = written.iter().map(|w| (w.decoded.as_deref().unwrap_or_default(), tasks.rows[w.row].text.as_str()));
        let cosines = encoder.cosines(&pairs.collect::<Vec<(&str, &str)>>())?;
        written.iter_mut().zip(cosines).for_each(|(written, cosine)| written.outcome.cosine = Some(cosine));
    }

    let names: Vec<&str> = tasks.tasks.iter().map(|task| task.name.as_str()).collect();
    let outcomes: Vec<TextOutcome> = written.iter().map(|written| written.outcome).collect();
    let evaluation = TextEvaluation {
        split: options.split,
        summary: summarise_texts(&names, &outcomes),
        sentence_encoder,
        rows_per_second: rows.len() as f64 / started.elapsed().as_secs_f64(),
        step: run.step,
        peak_memory_bytes: crate::core::system::peak_bytes(),
    };
    let lines: String = written.iter().map(|written| format!("{}\n", written.line(&tasks, &ranking.corpus))).collect();
    let split = options.split;
    write_atomic(&dir.join(format!("texts-{split}.jsonl")), lines.as_bytes())?;
    write_evaluation(dir, split, &evaluation)?;
    Ok(evaluation)
}

/// Returns the sentence encoder for the comparison of texts: the given one, or the one that `just
/// bert` fetches; prints a note where there is none.
fn sentence_encoder(options: &EvaluateOptions) -> Option<PathBuf> {
    if options.sentence_encoder.is_some() {
        return options.sentence_encoder.clone();
    }
    if Path::new(SENTENCE_ENCODER).exists() {
        return Some(PathBuf::from(SENTENCE_ENCODER));
    }
    log(format_args!(
        "note: log-perplexity alone: semantic consistency needs {SENTENCE_ENCODER}, which `just bert` fetches, or \
         --sentence-encoder DIR"
    ));
    None
}

/// A row, and the text that the run generated for it.
struct GeneratedText {
    row: usize,
    outcome: TextOutcome,
    decoded: Option<String>,
}

impl GeneratedText {
    fn line(&self, tasks: &TextTaskData, corpus: &Corpus) -> serde_json::Value {
        let row = &tasks.rows[self.row];
        let items: Vec<&str> = row.items.iter().map(|&item| corpus.items[item as usize].id.as_str()).collect();
        let mut line = json!({
            "task": tasks.tasks[row.task].name,
            "items": items,
            "decoded": self.decoded,
            "target": row.text,
            "cosine": self.outcome.cosine,
        });
        if let Some(user) = row.user {
            line["user"] = corpus.user_id(user).into();
        }
        line
    }
}
