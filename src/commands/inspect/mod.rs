//! `itemlm inspect CORPUS`

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::batch::{Batch, Candidates, Example};
use crate::config::TooLong;
use crate::data::{Corpus, Counts, Manifest, Split, Step, Window, WindowCounts};
use crate::model::open_llm;
use crate::run::inputs::open_prompt;
use crate::run::prompt_context::PromptContext;
use crate::run::samples::example;
use crate::text::{Catalogue, Prompt, PromptValue, PromptValues, ROOT};
use crate::{Context, Error, Result};

/// Most bins of a histogram of sequence lengths.
const LENGTH_BINS: usize = 20;
/// The label of a token that carries no loss, as in torch's and transformers' cross-entropy.
pub const MASKED: i64 = -100;

/// Options of `inspect`.
pub struct InspectOptions {
    /// A model whose tokenizer cuts the examples into tokens.
    pub llm: Option<PathBuf>,
    /// The prompt template, as `data.prompt` of a run file.
    pub prompt: Option<String>,
    /// Number of windows to show, the first of test.
    pub examples: usize,
}

/// The report of `inspect --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The data set's name.
    pub name: String,
    /// Source of the data.
    pub source: String,
    /// The program that wrote the corpus.
    pub software: String,
    /// Sentence about how the validation windows were chosen.
    pub validation: String,
    /// The steps from the source to the corpus, in order.
    pub steps: Vec<Step>,
    /// Users with at least one interaction.
    pub users: usize,
    /// Items of the catalogue.
    pub items: usize,
    /// Interactions in the log.
    pub interactions: usize,
    /// Interactions divided by users times items; none without users.
    pub density: Option<f64>,
    /// Number of windows, as `prepare --json` counts them.
    pub windows: WindowCounts,
    /// Targets and users of the test windows that no training window has.
    #[serde(flatten)]
    pub unseen: UnseenCounts,
    /// The catalogue's titles.
    pub titles: Titles,
    /// Number of interactions of each user.
    pub sequence_lengths: Distribution,
    /// Number of interactions of each item.
    pub popularity: Popularity,
    /// The prompt template: an embedded one's name, or a file.
    pub prompt: String,
    /// The first test windows.
    pub examples: Vec<ExampleWindow>,
}

/// Targets and users of the test windows that no released training window has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnseenCounts {
    /// Test windows whose target is in no training window: see [`Corpus::cold_items`].
    pub cold_test_targets: usize,
    /// Their share of the test windows; none without test windows.
    pub cold_test_share: Option<f64>,
    /// Users with a test window.
    pub test_users: usize,
    /// Users with a test window but no training window.
    pub new_test_users: usize,
    /// Their share of the users with a test window; none without such users.
    pub new_test_share: Option<f64>,
}

/// The catalogue's titles.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Titles {
    /// Lengths of the titles in characters, items without a title left out.
    pub characters: Option<Spread>,
    /// Number of different titles.
    pub distinct: usize,
    /// Number of items whose title another item has as well: a hit on one counts for the other.
    pub duplicates: usize,
    /// Number of items whose title is empty or blank.
    pub missing: usize,
}

/// Spread of a list of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest number.
    pub min: usize,
    /// The median: the middle number, or the mean of the middle two.
    pub median: f64,
    /// The mean.
    pub mean: f64,
    /// The largest number.
    pub max: usize,
}

/// A bin of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// The smallest value in the bin.
    pub from: usize,
    /// The largest value in the bin.
    pub to: usize,
    /// Number of values in the bin.
    pub count: usize,
}

/// A spread and a histogram.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distribution {
    /// The spread; none without values.
    pub spread: Option<Spread>,
    /// The histogram: at most 20 bins of equal width over the smaller 99 % of the values; the last
    /// bin extends to the largest value.
    pub histogram: Vec<Bin>,
}

/// Numbers of interactions of the items.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Popularity {
    /// The spread; none without values.
    pub spread: Option<Spread>,
    /// Two bins an octave (1, 2, 3, 4–5, 6–7, 8–11, …), after a bin of items without interaction,
    /// if there are any.
    pub histogram: Vec<Bin>,
    /// Shares of the most popular 1, 10 and 50 % of the items.
    pub top: Vec<TopShare>,
}

/// Share of the interactions that the most popular items have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TopShare {
    /// Percentage of the items.
    pub percent: usize,
    /// Number of items, rounded up.
    pub items: usize,
    /// Share of the interactions; none without interactions.
    pub share: Option<f64>,
}

/// A window in the form in which the LLM reads it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExampleWindow {
    /// Index in the test split, from 0.
    pub window: usize,
    /// The user's id in the source.
    pub user: String,
    /// Titles of the history, oldest first.
    pub history: Vec<String>,
    /// The title to predict.
    pub target: String,
    /// Text of the prompt, which is read and masked in the loss.
    pub prompt: String,
    /// Text of the label; the model's end-of-sequence token follows.
    pub label: String,
    /// Tokens of prompt and label, if a model is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<LabelledToken>>,
}

/// A token of an example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelledToken {
    /// The token as the vocabulary spells it: byte-level BPE writes a space as `Ġ`, a line feed as
    /// `Ċ`.
    pub token: String,
    /// The token's id.
    pub id: u32,
    /// The label: the token's id if it is predicted, -100 if it is masked.
    pub label: i64,
    /// Number of tokens that the titles' trie allows in its place; none if it is masked.
    pub children: Option<usize>,
    /// Whether the token has a loss under MSL: more than one token is allowed. Under LML every
    /// label has one.
    pub loss: bool,
}

/// Counts a corpus and lays out its first test windows.
///
/// # Errors
/// A directory, template or model that is none; with a model, a title or a window that `train`
/// refuses as well.
pub fn inspect(dir: &Path, options: &InspectOptions) -> Result<Inspection> {
    let manifest = Manifest::read(dir)?;
    let corpus = Corpus::open(dir)?;
    let template = options.prompt.as_deref().unwrap_or(Prompt::for_corpus(&corpus.name)).to_string();
    let prompt = open_prompt(&template)?;

    let lengths: Vec<usize> = (0..corpus.users() as u32).map(|user| corpus.user_interactions(user).len()).collect();
    let Counts { users, items, interactions, train, valid, test } = manifest.counts;
    let mut inspection = Inspection {
        name: manifest.name,
        source: manifest.source,
        software: manifest.software,
        validation: manifest.validation,
        steps: manifest.steps,
        users,
        items,
        interactions,
        density: share(interactions as f64, users as f64 * items as f64),
        windows: WindowCounts { train, valid, test },
        unseen: unseen(&corpus),
        titles: titles(&corpus),
        sequence_lengths: Distribution { spread: spread(&lengths), histogram: linear_bins(&lengths) },
        popularity: popularity(&corpus),
        prompt: template,
        examples: Vec::new(),
    };

    let shown: Vec<(u32, Window)> =
        (0..).zip(corpus.windows(Split::Test).iter().copied()).take(options.examples).collect();
    inspection.examples =
        shown.iter().map(|(number, window)| example_window(&corpus, &prompt, *number, window)).collect();
    if let Some(path) = &options.llm {
        let llm = open_llm(path)?;
        let catalogue = Catalogue::new(&llm.tokenizer, corpus.items.iter().map(|item| item.title.as_str()));
        let catalogue = catalogue.context(dir.display())?;
        let context = llm.config.max_position_embeddings;
        let ranking = PromptContext {
            corpus,
            names: None,
            prompt,
            tokenizer: llm.tokenizer,
            catalogue,
            context,
            history: None,
            too_long: TooLong::Error,
            prior: None,
            entities: None,
            beside_text: true,
            live: None,
        };
        for (shown, window) in inspection.examples.iter_mut().zip(&shown) {
            let example = example(&ranking, &ranking.prompt, Split::Test, &window.1, false);
            let example = example.context(format!("{}: test window {}", dir.display(), window.0))?;
            shown.tokens = Some(tokens(&ranking, &example, ranking.corpus.target(&window.1))?);
        }
    }
    Ok(inspection)
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

fn unseen(corpus: &Corpus) -> UnseenCounts {
    let cold = corpus.cold_items(Split::Test);
    let mut trained = vec![false; corpus.users()];
    corpus.released_train.iter().for_each(|window| trained[window.user as usize] = true);
    let test = corpus.windows(Split::Test);
    let mut users: Vec<u32> = test.iter().map(|window| window.user).collect();
    users.sort_unstable();
    users.dedup();
    let cold_test_targets = test.iter().filter(|window| cold[corpus.target(window) as usize]).count();
    let new_test_users = users.iter().filter(|user| !trained[**user as usize]).count();
    UnseenCounts {
        cold_test_targets,
        cold_test_share: share(cold_test_targets as f64, test.len() as f64),
        test_users: users.len(),
        new_test_users,
        new_test_share: share(new_test_users as f64, users.len() as f64),
    }
}

fn titles(corpus: &Corpus) -> Titles {
    let mut items_of: HashMap<&str, usize> = HashMap::with_capacity(corpus.items.len());
    let present = || corpus.items.iter().map(|item| item.title.as_str()).filter(|title| !title.trim().is_empty());
    present().for_each(|title| *items_of.entry(title).or_default() += 1);
    let characters: Vec<usize> = present().map(|title| title.chars().count()).collect();
    Titles {
        characters: spread(&characters),
        distinct: items_of.len(),
        duplicates: items_of.values().filter(|items| **items > 1).sum(),
        missing: corpus.items.len() - characters.len(),
    }
}

fn popularity(corpus: &Corpus) -> Popularity {
    let mut counts = vec![0usize; corpus.items.len()];
    corpus.interactions.iter().for_each(|item| counts[*item as usize] += 1);
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let top = [1, 10, 50].map(|percent| {
        let items = (counts.len() * percent).div_ceil(100);
        let interactions: usize = counts.iter().take(items).sum();
        TopShare { percent, items, share: share(interactions as f64, corpus.interactions.len() as f64) }
    });
    Popularity { spread: spread(&counts), histogram: octave_bins(&counts), top: top.to_vec() }
}

fn spread(values: &[usize]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = |at: usize| sorted[at] as f64;
    let median = (middle((sorted.len() - 1) / 2) + middle(sorted.len() / 2)) / 2.0;
    let mean = sorted.iter().map(|value| *value as f64).sum::<f64>() / sorted.len() as f64;
    Some(Spread { min, median, mean, max })
}

/// Makes the bins of [`Distribution::histogram`].
fn linear_bins(values: &[usize]) -> Vec<Bin> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { return Vec::new() };
    let high = sorted[(sorted.len() * 99).div_ceil(100) - 1];
    let width = (high - min + 1).div_ceil(LENGTH_BINS);
    let last = (high - min) / width;
    let mut bins: Vec<Bin> =
        (0..=last).map(|n| Bin { from: min + n * width, to: min + (n + 1) * width - 1, count: 0 }).collect();
    bins[last].to = max;
    for value in sorted {
        bins[((value - min) / width).min(last)].count += 1;
    }
    bins
}

/// Makes the bins of [`Popularity::histogram`].
fn octave_bins(values: &[usize]) -> Vec<Bin> {
    let Some(max) = values.iter().copied().max() else { return Vec::new() };
    let mut bins = Vec::new();
    let mut bin = Bin { from: 0, to: 0, count: 0 };
    while bin.from <= max {
        bin.count = values.iter().filter(|value| (bin.from..=bin.to).contains(*value)).count();
        // Bins below the smallest value are left out.
        if bin.count > 0 || bins.last().is_some_and(|last: &Bin| last.from > 0) {
            bins.push(bin);
        }
        // 2^k is followed by 3 · 2^(k - 1), that by 2^(k + 1).
        let from = bin.to + 1;
        let step = if from < 4 { 1 } else { (1usize << from.ilog2()) / 2 };
        bin = Bin { from, to: from + step - 1, count: 0 };
    }
    bins
}

fn example_window(corpus: &Corpus, prompt: &Prompt, number: u32, window: &Window) -> ExampleWindow {
    let history: Vec<String> = corpus.history(window).iter().map(|item| corpus.title(*item).to_string()).collect();
    let target = corpus.title(corpus.target(window)).to_string();
    let shown = |text: String| PromptValue { text: Some(text), vectors: None };
    let filling = PromptValues {
        history: history.iter().map(|title| shown(Catalogue::target_text(title))).collect(),
        items: Vec::new(),
        user: shown(corpus.user_id(window.user).to_string()),
        dataset: &corpus.name,
    };
    ExampleWindow {
        window: number as usize,
        user: corpus.user_id(window.user).to_string(),
        prompt: prompt.text(&filling),
        label: Catalogue::target_text(&target),
        history,
        target,
        tokens: None,
    }
}

/// Returns an example's tokens, with the labels and the loss that [`Batch`] gives them under MSL.
fn tokens(ranking: &PromptContext, example: &Example, target: u32) -> Result<Vec<LabelledToken>> {
    let catalogue = &ranking.catalogue;
    let batch = Batch::new(std::slice::from_ref(example), catalogue, Candidates::Children);
    let spell = |id: u32| {
        ranking.tokenizer.token(id).ok_or_else(|| Error::failed(format!("token {id} is not in the tokenizer")))
    };
    let mut tokens = Vec::new();
    for &id in &example.prompt {
        tokens.push(LabelledToken { token: spell(id)?, id, label: MASKED, children: None, loss: false });
    }
    let mut node = Some(ROOT);
    for &id in &catalogue.targets[target as usize] {
        let children = node.map(|node| catalogue.trie.valid_tokens(node).len());
        tokens.push(LabelledToken { token: spell(id)?, id, label: i64::from(id), children, loss: false });
        node = node.and_then(|node| catalogue.trie.child(node, id));
    }
    for prediction in &batch.predictions {
        // The logits at a position predict the token after it.
        tokens[batch.token_trees.shared_prefix.len() + prediction.hidden_index + 1].loss = true;
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests;
