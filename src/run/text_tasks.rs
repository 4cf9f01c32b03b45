//! Runs that learn to write texts: rows of ELM's tasks in place of windows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::open_run;
use super::prompt_context::PromptContext;
use super::run_dir::{is_run, read_config};
use super::verified_devices::verified_device;
use crate::batch::{Example, Target};
use crate::commands::evaluate::{EvaluateOptions, progress_line};
use crate::commands::train::{TrainingData, sample};
use crate::config::{DataConfig, RunConfig};
use crate::core::files::write_atomic;
use crate::core::log::log;
use crate::data::{Corpus, Split, TextTaskEntities, TextTaskRow, read_text_tasks};
use crate::decode::{common_prefix, generate, log_likelihoods, prompts_per_pass};
use crate::device::Concrete;
use crate::evaluate::{SentenceEncoder, TextOutcome, TextSummary, summarise_texts};
use crate::text::{ELM24, PromptValue, PromptValues, TextTask};
use crate::train::{Samples, mix};
use crate::{Context, Error, Result};

/// Where `just bert` puts MiniLM.
const SENTENCE_ENCODER: &str = "models/minilm-l6";

/// Tokens of a decoded text at most: of a longer one the sentence encoder would read the beginning
/// alone.
const LONGEST_TEXT: usize = 256;

/// The rows that a run learns from, and how they are asked.
pub struct TextTaskData {
    tasks: Vec<TextTask>,
    rows: Vec<TextTaskRow>,
    path: PathBuf,
    /// SHA-256 of the file.
    pub digest: String,
}

/// Opens the rows that `data.text_tasks` names; `None` for a run that learns windows.
///
/// # Errors
/// Those of [`TextTaskData::open`].
pub(crate) fn open_text_tasks(data: &DataConfig, corpus: &Corpus) -> Result<Option<TextTaskData>> {
    let prompts = data.text_task_prompts.as_deref().unwrap_or(ELM24);
    data.text_tasks.as_ref().map(|rows| TextTaskData::open(Path::new(rows), prompts, corpus)).transpose()
}

impl TextTaskData {
    /// Reads the file of rows at `path`; `prompts` names their tasks' templates
    /// ([`TextTask::open_all`]).
    ///
    /// # Errors
    /// Those of [`TextTask::open_all`] and [`read_text_tasks`].
    pub fn open(path: &Path, prompts: &str, corpus: &Corpus) -> Result<Self> {
        let tasks = TextTask::open_all(prompts)?;
        let entities: Vec<TextTaskEntities> = tasks.iter().map(TextTask::entities).collect();
        let file = read_text_tasks(path, corpus, &entities)?;
        Ok(Self { tasks, rows: file.rows, path: path.to_path_buf(), digest: file.digest.sha256 })
    }

    /// What identifies the templates of the tasks that the file has.
    pub fn templates(&self) -> String {
        let asked: BTreeSet<(usize, bool)> = self.rows.iter().map(|row| (row.task, row.user.is_some())).collect();
        let template = |(task, user): (usize, bool)| {
            let task = &self.tasks[task];
            format!("{}\n{}\n", task.name, PromptContext::template(task.template(user)))
        };
        asked.into_iter().map(template).collect()
    }

    /// What stands in a row's prompt.
    fn filling<'a>(&self, ranking: &'a PromptContext, row: &TextTaskRow) -> PromptValues<'a> {
        PromptValues {
            history: Vec::new(),
            items: row.items.iter().map(|&item| ranking.item(item)).collect(),
            user: row.user.map_or_else(PromptValue::default, |user| ranking.user(user)),
            dataset: &ranking.corpus.name,
        }
    }

    fn prompt(&self, ranking: &PromptContext, row: &TextTaskRow) -> Result<Vec<u32>> {
        ranking.render(self.tasks[row.task].template(row.user.is_some()), &self.filling(ranking, row))
    }

    /// The prompt, and the text with the EOS after it.
    ///
    /// # Errors
    /// More tokens than the model was made for.
    fn tokens(&self, ranking: &PromptContext, row: &TextTaskRow) -> Result<(Vec<u32>, Vec<u32>)> {
        let place = || format!("{}: line {}", self.path.display(), row.line);
        let prompt = self.prompt(ranking, row).context(place())?;
        let mut text = ranking.tokenizer.encode(&row.text).context(place())?;
        text.push(ranking.tokenizer.eos());
        let needed = prompt.len() + text.len();
        match needed <= ranking.context {
            true => Ok((prompt, text)),
            false => Err(Error::failed(format!(
                "{}: its prompt and text have {needed} tokens, the model's max_position_embeddings is {}; shorten the text",
                place(),
                ranking.context
            ))),
        }
    }

    fn example(&self, ranking: &PromptContext, row: usize) -> Result<Example> {
        let (prompt, text) = self.tokens(ranking, &self.rows[row])?;
        Ok(Example { prompt, target: Target::Text(text), logit_bias: Vec::new() })
    }

    /// # Errors
    /// A row longer than the model was made for, before training begins. Only long rows need be
    /// tokenised.
    fn check_lengths(&self, ranking: &PromptContext, rows: &[usize]) -> Result<()> {
        rows.iter().map(|&row| &self.rows[row]).try_for_each(|row| {
            let template = self.tasks[row.task].template(row.user.is_some());
            let prompt = ranking.most_tokens(template, &self.filling(ranking, row));
            match prompt + row.text.len() + 1 < ranking.context {
                true => Ok(()),
                false => self.tokens(ranking, row).map(|_| ()),
            }
        })
    }

    /// The file's rows of `split`.
    fn of(&self, split: Split) -> Vec<usize> {
        (0..self.rows.len()).filter(|&row| self.rows[row].split == split).collect()
    }

    /// What a run learns from: the train rows, mixed, and a sample of the valid rows, whose loss
    /// chooses the epoch.
    ///
    /// # Errors
    /// No row to train on; a row that is too long.
    pub(crate) fn lessons(self, config: &RunConfig, ranking: &Rc<PromptContext>) -> Result<TrainingData> {
        let chosen = |split, limit, stream| {
            let rows = sample(&self.of(split), limit, config.seed, stream)?;
            Ok::<_, Error>(rows.into_iter().map(|(_, row)| row).collect::<Vec<usize>>())
        };
        let train = chosen(Split::Train, config.data.train_samples, 0)?;
        let all_valid = self.of(Split::Valid).len();
        let valid = chosen(Split::Valid, Some(config.train.valid_windows), 1)?;
        if train.is_empty() {
            return Err(Error::failed(format!("{}: no row to train on", self.path.display())));
        }
        self.check_lengths(ranking, &train)?;
        let validation = match valid.len() {
            0 => "no row validates: the last epoch is kept".to_string(),
            rows => format!("the loss on {rows} of {all_valid} valid rows chooses the epoch"),
        };
        let valid = valid.into_iter().map(|row| self.example(ranking, row)).collect::<Result<Vec<_>>>()?;

        let mut by_task: Vec<Vec<usize>> = vec![Vec::new(); self.tasks.len()];
        train.iter().for_each(|&row| by_task[self.rows[row].task].push(row));
        let one_a_task = by_task.iter().filter_map(|rows| rows.first());
        let prompts = one_a_task.map(|&row| self.prompt(ranking, &self.rows[row])).collect::<Result<Vec<_>>>()?;
        let shown = format!("{} rows of {} tasks to train on", train.len(), prompts.len());
        let (alpha, seed, batch_size) = (config.data.mixing.unwrap_or(1.0), config.seed, config.train.batch_size);
        let sizes: Vec<usize> = by_task.iter().map(Vec::len).collect();
        let epoch = move |epoch| {
            let rows: Vec<usize> =
                mix(&sizes, alpha, seed, epoch).into_iter().map(|(task, row)| by_task[task][row]).collect();
            rows.chunks(batch_size).map(<[usize]>::to_vec).collect()
        };
        let ranking = ranking.clone();
        let train = Samples {
            steps_per_epoch: train.len().div_ceil(batch_size),
            epoch: Box::new(epoch),
            examples: Box::new(move |row| Ok(vec![self.example(&ranking, row)?])),
        };
        Ok(TrainingData {
            train,
            valid,
            validate: None,
            beginning: common_prefix(&prompts).to_vec(),
            shown,
            validation,
        })
    }

    /// The rows of `split` in the file's order: all, or `limit` of them, the tasks taking turns.
    fn limited(&self, split: Split, limit: Option<usize>) -> Vec<usize> {
        let mut turns = vec![0; self.tasks.len()];
        let with_turn = self.of(split).into_iter().map(|row| {
            let turn = &mut turns[self.rows[row].task];
            *turn += 1;
            (*turn, row)
        });
        let mut rows: Vec<(usize, usize)> = with_turn.collect();
        rows.sort_unstable();
        rows.truncate(limit.unwrap_or(usize::MAX));
        let mut rows: Vec<usize> = rows.into_iter().map(|(_, row)| row).collect();
        rows.sort_unstable();
        rows
    }
}

/// What `evaluate --json` prints of a run that writes texts.
#[derive(Debug, Clone, Serialize)]
pub struct TextEvaluation {
    /// Which rows.
    pub split: Split,
    /// Log-perplexity and semantic consistency of each task, and their mean.
    #[serde(flatten)]
    pub summary: TextSummary,
    /// What encoded the sentences; null without semantic consistency.
    pub sentence_encoder: Option<PathBuf>,
    /// Evaluated rows a second.
    pub rows_per_second: f64,
    /// The optimiser step whose weights wrote.
    pub step: usize,
    /// Of this process.
    pub peak_memory_bytes: u64,
}

/// Whether `dir` is a run that learns rows of tasks: [`evaluate_texts`] then takes the place of
/// [`crate::commands::evaluate`].
///
/// # Errors
/// A damaged run file.
pub fn writes_texts(dir: &Path) -> Result<bool> {
    Ok(is_run(dir) && read_config(dir)?.data.text_tasks.is_some())
}

/// # Errors
/// A run that writes texts.
pub(crate) fn check_ranks(dir: &Path, config: &RunConfig) -> Result<()> {
    match &config.data.text_tasks {
        None => Ok(()),
        Some(rows) => Err(Error::usage(format!(
            "{}: this run writes the texts of {rows} and ranks no items; see it with `itemlm evaluate`",
            dir.display()
        ))),
    }
}

/// Writes the texts of a split's rows with a trained run; writes `evaluation-<split>.json` and
/// `texts-<split>.jsonl` into it.
///
/// # Errors
/// Options that are for ranking; a split without rows.
pub fn evaluate_texts(dir: &Path, options: &EvaluateOptions) -> Result<TextEvaluation> {
    let ranks = options.beams.is_some() || options.scoring.is_some() || options.length_penalty.is_some();
    let asks = options.choice.set.is_some() || options.choice.prompt.is_some();
    if ranks || asks || !options.prior_weights.is_empty() {
        return Err(Error::usage(format!(
            "--beams, --scoring, --length-penalty, --task, --prompt and --prior-weight are for ranking; the run in {} writes texts",
            dir.display()
        )));
    }
    let device = verified_device(&options.backend)?;
    let run = open_run(dir, &device)?;
    let Some(tasks) = run.text_tasks else {
        return Err(Error::usage(format!("{}: this run ranks items and writes no texts", dir.display())));
    };
    let sentence_encoder = match &options.sentence_encoder {
        Some(dir) => Some(dir.clone()),
        None if Path::new(SENTENCE_ENCODER).exists() => Some(PathBuf::from(SENTENCE_ENCODER)),
        None => {
            log(format_args!(
                "note: log-perplexity alone: semantic consistency needs {SENTENCE_ENCODER}, which `just bert` fetches, or \
                 --sentence-encoder DIR"
            ));
            None
        }
    };
    let encoder = sentence_encoder.as_ref().map(|dir| SentenceEncoder::<Concrete>::open(dir, &device)).transpose()?;
    let rows = tasks.limited(options.split, options.limit);
    if rows.is_empty() {
        return Err(Error::failed(format!("{}: no row of the split {}", tasks.path.display(), options.split)));
    }

    let (ranking, started) = (&run.ranking, Instant::now());
    let mut written: Vec<Written> = Vec::with_capacity(rows.len());
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
            if options.progress {
                progress_line("writing", written.len(), rows.len());
            }
            let longest = prompt.len() + text.len().max(if encoder.is_some() { LONGEST_TEXT } else { 0 });
            let (now, later) = left.split_at(left.len().min(prompts_per_pass(longest)));
            left = later;
            let (prompts, texts): (Vec<_>, Vec<_>) = now.iter().map(|(_, tokens)| tokens.clone()).unzip();
            let log_likelihoods = log_likelihoods(&model, &prompts, &texts, &device);
            crate::run::check_log_probs(log_likelihoods.iter().copied()).context(dir.display())?;
            let room = ranking.context - prompts.iter().map(Vec::len).max().unwrap_or(0);
            let decoded = match encoder {
                Some(_) => generate(&model, &prompts, room.min(LONGEST_TEXT), ranking.tokenizer.eos(), &device),
                None => Vec::new(),
            };
            for (n, ((row, (_, text)), log_likelihood)) in now.iter().zip(log_likelihoods).enumerate() {
                let outcome = TextOutcome { task, tokens: text.len(), log_likelihood, cosine: None };
                let decoded = decoded.get(n).map(|tokens| ranking.tokenizer.decode(tokens)).transpose()?;
                written.push(Written { row: *row, outcome, decoded });
            }
        }
    }
    if options.progress {
        progress_line("writing", rows.len(), rows.len());
    }
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
    let json = serde_json::to_string_pretty(&evaluation).context("evaluation")?;
    write_atomic(&dir.join(format!("evaluation-{split}.json")), json.as_bytes())?;
    Ok(evaluation)
}

/// A row, and what the run made of it.
struct Written {
    row: usize,
    outcome: TextOutcome,
    decoded: Option<String>,
}

impl Written {
    fn line(&self, tasks: &TextTaskData, corpus: &Corpus) -> serde_json::Value {
        let row = &tasks.rows[self.row];
        let items: Vec<&str> = row.items.iter().map(|&item| corpus.items[item as usize].id.as_str()).collect();
        let mut line = json!({
            "task": tasks.tasks[row.task].name, "items": items, "decoded": self.decoded, "target": row.text, "cosine": self.outcome.cosine,
        });
        if let Some(user) = row.user {
            line["user"] = corpus.user_id(user).into();
        }
        line
    }
}
