//! What a run learns from its windows: each one once an epoch or, with tasks, asked by some of
//! every task's prompts.

use std::collections::BTreeSet;
use std::rc::Rc;

use rand::SeedableRng;
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;

use super::prompt_context::PromptContext;
use super::prompt_selection::prompts_per_window;
use crate::batch::{Example, Target};
use crate::config::{RunConfig, Targets};
use crate::data::{Split, Window};
use crate::text::{Prompt, PromptSet};
use crate::train::Samples;
use crate::{Context, Result};

/// What the model reads and predicts of a split's window; with the prior's gains on the way to the
/// target, if asked for.
pub(crate) fn example(
    ranking: &PromptContext,
    prompt: &Prompt,
    split: Split,
    window: &Window,
    with_prior: bool,
) -> Result<Example> {
    let item = ranking.corpus.target(window);
    let logit_bias = match ranking.prior.as_ref().filter(|_| with_prior) {
        Some(prior) => prior.of_window(&ranking.corpus, split, window).logit_bias_to(&ranking.catalogue.trie, item),
        None => Vec::new(),
    };
    let (prompt, _) = ranking.window_tokens(prompt, window)?;
    Ok(Example { prompt, target: Target::Item(item), logit_bias })
}

/// Checks before training begins that all prompts of training windows leave room for the longest
/// title, and returns how many windows are shown without their oldest items for that. Only long
/// prompts need be tokenised.
///
/// # Errors
/// A window whose prompt is too long.
pub(crate) fn check_lengths(ranking: &PromptContext, tasks: &[PromptSet], windows: &[(u32, Window)]) -> Result<usize> {
    let room = (ranking.context + 1).saturating_sub(ranking.catalogue.trie.depth());
    let mut shortened = BTreeSet::new();
    let length = |prompt: &Prompt, window: &Window| ranking.most_tokens(prompt, &ranking.filling(window));
    let groups: Vec<Vec<&Prompt>> = match tasks {
        [] => vec![vec![&ranking.prompt]],
        tasks => tasks.iter().map(|set| set.prompts().collect()).collect(),
    };
    for prompts in groups {
        // A set's prompts show the same, so the longest one is the longest for every window.
        let Some((_, first)) = windows.first() else { return Ok(0) };
        let Some(longest) = prompts.iter().max_by_key(|prompt| length(prompt, first)) else { continue };
        for (index, window) in windows.iter().filter(|(_, window)| length(longest, window) > room) {
            for prompt in &prompts {
                let tokens = ranking.window_tokens(prompt, window);
                let (_, dropped) = tokens.context(ranking.window_place(Split::Train, *index, window))?;
                shortened.extend((dropped > 0).then_some(*index));
            }
        }
    }
    Ok(shortened.len())
}

/// The training windows as samples: in a new seeded order each epoch or, of tasks, as [`TaskOrder`]
/// has them.
pub(crate) fn samples(
    config: &RunConfig,
    ranking: Rc<PromptContext>,
    tasks: &[PromptSet],
    windows: Vec<(u32, Window)>,
    with_prior: bool,
) -> Samples {
    let (count, batch_size, shuffle, seed) =
        (windows.len(), config.train.batch_size, config.train.shuffle, config.seed);
    let prompt = ranking.prompt.clone();
    let targets = config.train.targets;
    let of = move |prompt: &Prompt, window: usize| {
        let of = |window: &Window| example(&ranking, prompt, Split::Train, window, with_prior);
        let window = windows[window].1;
        match targets {
            Targets::Last => Ok(vec![of(&window)?]),
            // All of them precede the window's own target, so they lie in the training period.
            Targets::Every => (2..=window.len).map(|len| of(&Window { len, ..window })).collect(),
        }
    };
    if tasks.is_empty() {
        return Samples::new(count, batch_size, shuffle, seed, move |window| of(&prompt, window));
    }
    let prompts: Vec<Prompt> = tasks.iter().flat_map(|set| set.seen.clone()).collect();
    let order = TaskOrder {
        windows: count,
        prompts: tasks.iter().map(|set| set.seen.len()).collect(),
        prompts_per_window: prompts_per_window(&config.data),
        batch_size,
        shuffle,
        seed,
    };
    Samples {
        steps_per_epoch: order.steps(),
        epoch: Box::new(move |epoch| order.epoch(epoch)),
        examples: Box::new(move |sample| of(&prompts[sample % prompts.len()], sample / prompts.len())),
    }
}

/// The samples of an epoch over tasks: every task asks every window by some of its seen prompts,
/// different ones, drawn anew each epoch. A step is of one task, and the tasks take turns. Sample
/// `window * P + prompt` is a window and one of all P seen prompts, the first task's before the
/// second's.
///
/// OpenP5 (`SingleMultiDataTaskSampler.py`, `MultiTaskDataset.py`) takes turns likewise; it draws
/// with replacement, and fills the last batch up from the task's beginning, where ours is smaller.
struct TaskOrder {
    windows: usize,
    /// Seen prompts of each task.
    prompts: Vec<usize>,
    /// At most the fewest of `prompts`.
    prompts_per_window: usize,
    batch_size: usize,
    /// Within a task; otherwise its samples are in the windows' order.
    shuffle: bool,
    seed: u64,
}

impl TaskOrder {
    fn samples_of_a_task(&self) -> usize {
        self.windows * self.prompts_per_window
    }

    /// Optimiser steps of an epoch.
    fn steps(&self) -> usize {
        self.prompts.len() * self.samples_of_a_task().div_ceil(self.batch_size)
    }

    /// The samples of each step of an epoch, from 0.
    fn epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let all = self.prompts.iter().sum::<usize>();
        let task_samples = |task: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream((epoch * self.prompts.len() + task) as u64 + 1);
            let first = self.prompts[..task].iter().sum::<usize>();
            let mut samples = Vec::with_capacity(self.samples_of_a_task());
            for window in 0..self.windows {
                let drawn = index::sample(&mut rng, self.prompts[task], self.prompts_per_window);
                samples.extend(drawn.into_iter().map(|prompt| window * all + first + prompt));
            }
            if self.shuffle {
                samples.shuffle(&mut rng);
            }
            samples
        };
        let tasks: Vec<Vec<usize>> = (0..self.prompts.len()).map(task_samples).collect();
        let mut batches: Vec<_> = tasks.iter().map(|samples| samples.chunks(self.batch_size)).collect();
        let turns = 0..self.samples_of_a_task().div_ceil(self.batch_size);
        turns
            .flat_map(|_| batches.iter_mut().filter_map(|task| task.next().map(<[usize]>::to_vec)).collect::<Vec<_>>())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn order(shuffle: bool) -> TaskOrder {
        TaskOrder { windows: 7, prompts: vec![10, 4], prompts_per_window: 3, batch_size: 4, shuffle, seed: 5 }
    }

    #[test]
    fn every_window_by_different_prompts_of_every_task_in_turn() {
        for shuffle in [true, false] {
            for epoch in 0..4 {
                let steps = order(shuffle).epoch(epoch);
                assert_eq!((steps.len(), order(shuffle).steps()), (12, 12));
                let mut met: Vec<HashSet<(usize, usize)>> = vec![HashSet::new(); 2];
                for (n, samples) in steps.iter().enumerate() {
                    assert_eq!(samples.len(), if n < 10 { 4 } else { 1 });
                    for sample in samples {
                        let (window, prompt) = (sample / 14, sample % 14);
                        assert_eq!(usize::from(prompt >= 10), n % 2, "a step of another task than its turn");
                        assert!(met[n % 2].insert((window, prompt)), "a prompt came twice");
                    }
                }
                for task in met {
                    assert!((0..7).all(|window| task.iter().filter(|(w, _)| *w == window).count() == 3));
                }
            }
        }
    }

    #[test]
    fn a_function_of_seed_and_epoch() {
        assert_eq!(order(true).epoch(3), order(true).epoch(3));
        let other = TaskOrder { seed: 6, ..order(true) };
        assert!(order(true).epoch(3) != order(true).epoch(2) && order(true).epoch(3) != other.epoch(3));
        let prompts = |epoch| order(false).epoch(epoch).concat();
        assert_ne!(prompts(0), prompts(1), "prompts are drawn anew");
        let windows: Vec<usize> = order(false).epoch(0).iter().step_by(2).flatten().map(|sample| sample / 14).collect();
        assert!(windows.is_sorted());
        let seen: HashSet<usize> = (0..20).flat_map(prompts).map(|sample| sample % 14).collect();
        assert_eq!(seen.len(), 14);
    }

    #[test]
    fn one_task_and_all_its_prompts() {
        let one = TaskOrder { prompts: vec![3], batch_size: 100, ..order(true) };
        let mut samples = one.epoch(0);
        assert_eq!(samples.len(), 1);
        samples[0].sort_unstable();
        assert_eq!(samples[0], (0..21).collect::<Vec<_>>());
    }
}
