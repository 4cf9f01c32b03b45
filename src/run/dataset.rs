//! The training data of a run: the training windows of its corpus, and the windows by which its
//! best epoch is chosen.

use std::io::IsTerminal;
use std::rc::Rc;

use rand::SeedableRng;
use rand::seq::index;

use super::out_of_memory::catch_out_of_memory;
use super::prompt_context::PromptContext;
use super::rank_windows::rank_windows;
use super::samples::{TrainingWindow, check_lengths, example, samples, training_targets};
use super::training::TrainOptions;
use crate::batch::Example;
use crate::config::{RunConfig, Targets};
use crate::core::progress::Progress;
use crate::data::Split;
use crate::device::Concrete;
use crate::evaluate::summarise;
use crate::model::ItemLanguageModel;
use crate::text::PromptSet;
use crate::train::{Samples, Ui, Validate};
use crate::{Context, Error, Result};

/// The training and validation data of a run.
pub(crate) struct TrainingData {
    /// Samples to train on.
    pub train: Samples,
    /// Examples of the validation loss.
    pub valid: Vec<Example>,
    /// Ranks the validation windows; with `None` the loss alone chooses the epoch.
    pub validate: Option<Validate<Concrete>>,
    /// Tokens with which all prompts begin.
    pub common_prefix: Vec<u32>,
    /// Size of the training data, in words.
    pub train_size: String,
    /// Description of the validation data, in words.
    pub validation: String,
}

/// Opens the training windows of a run's corpus, and the windows by which its best epoch is chosen.
///
/// # Errors
/// No window to train on; one that leaves no room for the longest title.
pub(crate) fn training_windows(
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
    if ranking.catalogue.trie.leaves() < 2 {
        return Err(Error::failed(format!(
            "{}: all items have the same title, so there is nothing to tell apart and nothing to train",
            config.data.corpus
        )));
    }
    let in_loss = config.prior.as_ref().is_some_and(|prior| prior.in_loss);
    let valid_examples = valid.iter().map(|(index, window)| {
        let example = example(ranking, &ranking.prompt, Split::Valid, window, in_loss);
        example.context(ranking.window_place(Split::Valid, *index, window))
    });
    let valid_examples = valid_examples.collect::<Result<Vec<_>>>()?;
    let shortened = check_lengths(ranking, prompt_sets, &windows)?;
    let common_prefix = example(ranking, &ranking.prompt, Split::Train, &windows[0].1, false)?.prompt;
    let windows = training_targets(config.train.targets, &windows);
    let mut train_size = match config.train.targets {
        Targets::Last => format!("{} windows to train on", windows.len()),
        Targets::Every => {
            let targets: usize = windows.iter().map(TrainingWindow::targets).sum();
            format!("{targets} targets of {} windows to train on", windows.len())
        }
    };
    if shortened > 0 {
        train_size += &format!(", {shortened} windows without their oldest items, which do not fit");
    }
    if let Some(first) = prompt_sets.first() {
        let names: Vec<&str> = prompt_sets.iter().map(|set| set.name.as_str()).collect();
        train_size += &format!(", by the prompt sets {} in turn; {} seen:0 validates", names.join(", "), first.name);
    }
    let validation = ranking.corpus.validation.clone();

    let validate = (!valid.is_empty()).then(|| {
        let interrupter = options.interrupter.clone();
        let (decode, seed, show) =
            (config.decode.clone(), config.seed, options.ui == Ui::Plain && std::io::stderr().is_terminal());
        let (ranking, backend) = (ranking.clone(), options.backend.clone());
        let validate = move |models: &[ItemLanguageModel<Concrete>]| {
            let beams = decode.beams;
            let then = || {
                format!(
                    "while the validation windows were ranked: lower decode.beams (now {beams}); the last checkpoint \
                     is kept"
                )
            };
            let progress = if show { Progress::new("validating", valid.len()) } else { Progress::hidden() };
            let mut go_on = |done, _| {
                progress.set(done);
                !interrupter.should_stop()
            };
            let rank = || rank_windows(models, &ranking, Split::Valid, &valid, &decode, &mut go_on);
            let ranked = catch_out_of_memory(&backend, then, rank)?;
            Ok(ranked.map(|ranked| summarise(&ranked.outcomes, seed).all.metric("ndcg@10").unwrap_or(0.0)))
        };
        Box::new(validate) as Validate<Concrete>
    });

    let train = samples(config, ranking.clone(), prompt_sets, windows, in_loss);
    Ok(TrainingData { train, valid: valid_examples, validate, common_prefix, train_size, validation })
}

/// Returns a seeded sample of `windows` (or rows) with their indices, in their order; all of them
/// for `None`.
pub(crate) fn sample<T: Copy>(windows: &[T], limit: Option<usize>, seed: u64, stream: u64) -> Result<Vec<(u32, T)>> {
    let all = || windows.iter().copied().enumerate().map(|(i, w)| (i as u32, w));
    let Some(limit) = limit.filter(|&limit| limit < windows.len()) else { return Ok(all().collect()) };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    // The streams from 1 on are the orders of the epochs.
    rng.set_stream(u64::MAX - stream);
    let mut chosen = index::sample(&mut rng, windows.len(), limit).into_vec();
    chosen.sort_unstable();
    Ok(chosen.into_iter().map(|i| (i as u32, windows[i])).collect())
}
