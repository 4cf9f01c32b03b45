//! Runs that are trained to write texts: rows of text tasks in place of windows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::dataset::{TrainingData, sample};
use super::prompt_context::PromptContext;
use crate::batch::{Example, Target};
use crate::config::{DataConfig, RunConfig};
use crate::data::{Corpus, Split, TextTaskEntities, TextTaskRow, read_text_tasks};
use crate::decode::common_prefix;
use crate::text::{ELM24, PromptValue, PromptValues, TextTask};
use crate::train::{Samples, mix};
use crate::{Context, Error, Result};

/// The rows of text tasks that a run is trained on, and their prompt templates.
pub struct TextTaskData {
    pub(crate) tasks: Vec<TextTask>,
    pub(crate) rows: Vec<TextTaskRow>,
    pub(crate) path: PathBuf,
    /// SHA-256 of the file.
    pub digest: String,
}

/// Opens the rows that `data.text_tasks` names; `None` for a run that is trained on windows.
///
/// # Errors
/// Those of [`TextTaskData::open`].
pub(crate) fn open_text_tasks(data: &DataConfig, corpus: &Corpus) -> Result<Option<TextTaskData>> {
    let prompts = data.text_task_prompts.as_deref().unwrap_or(ELM24);
    data.text_tasks.as_ref().map(|rows| TextTaskData::open(Path::new(rows), prompts, corpus)).transpose()
}

impl TextTaskData {
    /// Reads the file of rows at `path`.
    ///
    /// # Errors
    /// Those of [`TextTask::open_all`] and [`read_text_tasks`].
    pub fn open(path: &Path, prompts: &str, corpus: &Corpus) -> Result<Self> {
        let tasks = TextTask::open_all(prompts)?;
        let entities: Vec<TextTaskEntities> = tasks.iter().map(TextTask::entities).collect();
        let file = read_text_tasks(path, corpus, &entities)?;
        Ok(Self { tasks, rows: file.rows, path: path.to_path_buf(), digest: file.digest.sha256 })
    }

    /// Returns the text that identifies the templates of the tasks in the file.
    pub fn templates(&self) -> String {
        let kinds: BTreeSet<(usize, bool)> = self.rows.iter().map(|row| (row.task, row.user.is_some())).collect();
        let template = |(task, user): (usize, bool)| {
            let task = &self.tasks[task];
            format!("{}\n{}\n", task.name, PromptContext::template(task.template(user)))
        };
        kinds.into_iter().map(template).collect()
    }

    /// Returns the values of a row's prompt.
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

    /// Returns the tokens of the prompt, and those of the text with the EOS after it.
    ///
    /// # Errors
    /// More tokens than the model was made for.
    pub(crate) fn tokens(&self, ranking: &PromptContext, row: &TextTaskRow) -> Result<(Vec<u32>, Vec<u32>)> {
        let place = || format!("{}: line {}", self.path.display(), row.line);
        let prompt = self.prompt(ranking, row).context(place())?;
        let mut text = ranking.tokenizer.encode_literal(&row.text).context(place())?;
        text.push(ranking.tokenizer.eos());
        let needed = prompt.len() + text.len();
        match needed <= ranking.context {
            true => Ok((prompt, text)),
            false => Err(Error::failed(format!(
                "{}: its prompt and text have {needed} tokens, the model's max_position_embeddings is {}; shorten \
                 the text",
                place(),
                ranking.context
            ))),
        }
    }

    fn example(&self, ranking: &PromptContext, row: usize) -> Result<Example> {
        let (prompt, text) = self.tokens(ranking, &self.rows[row])?;
        Ok(Example { prompt, target: Target::Text(text), logit_bias: Vec::new() })
    }

    /// Checks the rows' lengths before training begins. Only long rows are tokenised.
    ///
    /// # Errors
    /// A row longer than the model's context.
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

    /// Returns the file's rows of `split`.
    fn rows_of_split(&self, split: Split) -> Vec<usize> {
        (0..self.rows.len()).filter(|&row| self.rows[row].split == split).collect()
    }

    /// Returns the training data: the train rows, mixed, and a sample of the valid rows, whose loss
    /// chooses the epoch.
    ///
    /// # Errors
    /// No row to train on; a row that is too long.
    pub(crate) fn training_data(self, config: &RunConfig, ranking: &Rc<PromptContext>) -> Result<TrainingData> {
        let chosen = |split, limit, stream| {
            let rows = sample(&self.rows_of_split(split), limit, config.seed, stream)?;
            Ok::<_, Error>(rows.into_iter().map(|(_, row)| row).collect::<Vec<usize>>())
        };
        let train = chosen(Split::Train, config.data.train_samples, 0)?;
        let all_valid = self.rows_of_split(Split::Valid).len();
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
        let train_size = format!("{} rows of {} tasks to train on", train.len(), prompts.len());
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
            common_prefix: common_prefix(&prompts).to_vec(),
            train_size,
            validation,
        })
    }

    /// Returns the rows of `split` in the file's order: all, or `limit` of them, with the tasks
    /// taking turns.
    pub(crate) fn limited_rows(&self, split: Split, limit: Option<usize>) -> Vec<usize> {
        let mut turns = vec![0; self.tasks.len()];
        let with_turn = self.rows_of_split(split).into_iter().map(|row| {
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
