//! Training samples of a run's windows: each window once an epoch or, with prompt sets, with some
//! prompts of every set.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
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

/// Returns the example of a split's window.
///
/// * `with_prior`: the example has the prior's logit bias on the way to the target.
///
/// # Errors
/// A prompt that leaves no room for a title.
pub(crate) fn example(
    ranking: &PromptContext,
    prompt: &Prompt,
    split: Split,
    window: &Window,
    with_prior: bool,
) -> Result<Example> {
    let item = ranking.corpus.target(window);
    let logit_bias = match ranking.prior.as_ref().filter(|_| with_prior) {
        Some(prior) => {
            prior.mass_for_window(&ranking.corpus, split, window).logit_bias_to(&ranking.catalogue.trie, item)
        }
        None => Vec::new(),
    };
    let (prompt, _) = ranking.window_tokens(prompt, window)?;
    Ok(Example { prompt, target: Target::Item(item), logit_bias })
}

/// Checks, before training begins, that all prompts of training windows leave room for the longest
/// title. Returns the number of windows whose oldest items are left out for that. Only long prompts
/// are tokenised.
///
/// # Errors
/// A window whose prompt is too long.
pub(crate) fn check_lengths(
    ranking: &PromptContext,
    prompt_sets: &[PromptSet],
    windows: &[(u32, Window)],
) -> Result<usize> {
    let room = (ranking.context + 1).saturating_sub(ranking.catalogue.trie.depth());
    let mut shortened = BTreeSet::new();
    let length = |prompt: &Prompt, window: &Window| ranking.most_tokens(prompt, &ranking.filling(window));
    let groups: Vec<Vec<&Prompt>> = match prompt_sets {
        [] => vec![vec![&ranking.prompt]],
        sets => sets.iter().map(|set| set.prompts().collect()).collect(),
    };
    for prompts in groups {
        // The prompts of a set have the same values, so the longest one is the longest for every
        // window.
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

/// A training window, with those of its items that are targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrainingWindow {
    window: Window,
    /// Lengths to which the window is cut, ascending: the last item of each cut is a target, the
    /// items before it its history.
    cuts: Vec<u32>,
}

impl TrainingWindow {
    /// Returns the number of the window's targets.
    pub fn targets(&self) -> usize {
        self.cuts.len()
    }
}

/// Returns the windows to train on, with their targets.
///
/// With [`Targets::Last`] each window has one target, its last item. With [`Targets::Every`] each
/// item of the windows after their first is a target once, however many windows hold it: it belongs
/// to the latest window that has items which no other window has taken. All of them precede that
/// window's own target, so they lie in the training period. Windows without targets are left out.
pub(crate) fn training_targets(targets: Targets, windows: &[(u32, Window)]) -> Vec<TrainingWindow> {
    match targets {
        Targets::Last => windows.iter().map(|&(_, window)| TrainingWindow { window, cuts: vec![window.len] }).collect(),
        Targets::Every => every_target_once(windows),
    }
}

fn every_target_once(windows: &[(u32, Window)]) -> Vec<TrainingWindow> {
    let target = |window: &Window, cut: u32| window.start + cut - 1;
    let mut latest_first: Vec<usize> = (0..windows.len()).collect();
    latest_first.sort_by_key(|&n| Reverse(target(&windows[n].1, windows[n].1.len)));
    let mut taken: HashSet<u32> = HashSet::new();
    let mut cuts: Vec<Vec<u32>> = vec![Vec::new(); windows.len()];
    // Windows whose own target is free come first, so that a window takes many; then the others.
    for own_target_alone in [true, false] {
        for &n in &latest_first {
            let window = &windows[n].1;
            if own_target_alone && taken.contains(&target(window, window.len)) {
                continue;
            }
            cuts[n].extend((2..=window.len).filter(|&cut| taken.insert(target(window, cut))));
        }
    }
    let with_targets = windows.iter().zip(cuts).filter(|(_, cuts)| !cuts.is_empty());
    with_targets.map(|(&(_, window), cuts)| TrainingWindow { window, cuts }).collect()
}

/// Returns the training windows as samples, whose order is a new seeded one each epoch or, with
/// prompt sets, that of [`PromptSetOrder`].
pub(crate) fn samples(
    config: &RunConfig,
    ranking: Rc<PromptContext>,
    prompt_sets: &[PromptSet],
    windows: Vec<TrainingWindow>,
    with_prior: bool,
) -> Samples {
    let (count, batch_size, shuffle, seed) =
        (windows.len(), config.train.batch_size, config.train.shuffle, config.seed);
    let prompt = ranking.prompt.clone();
    let examples = move |prompt: &Prompt, window: usize| {
        let TrainingWindow { window, cuts } = &windows[window];
        let cut = |&len: &u32| example(&ranking, prompt, Split::Train, &Window { len, ..*window }, with_prior);
        cuts.iter().map(cut).collect()
    };
    if prompt_sets.is_empty() {
        return Samples::new(count, batch_size, shuffle, seed, move |window| examples(&prompt, window));
    }
    let prompts: Vec<Prompt> = prompt_sets.iter().flat_map(|set| set.seen.clone()).collect();
    let order = PromptSetOrder {
        windows: count,
        prompts: prompt_sets.iter().map(|set| set.seen.len()).collect(),
        prompts_per_window: prompts_per_window(&config.data),
        batch_size,
        shuffle,
        seed,
    };
    Samples {
        steps_per_epoch: order.steps(),
        epoch: Box::new(move |epoch| order.epoch(epoch)),
        examples: Box::new(move |sample| examples(&prompts[sample % prompts.len()], sample / prompts.len())),
    }
}

/// The order of an epoch over prompt sets: every set has every window with some of its seen
/// prompts, different ones, drawn anew each epoch. A step belongs to one set, and the sets take
/// turns. Sample `window * P + prompt` is a window with one of all P seen prompts, the first set's
/// before the second's.
///
/// OpenP5 (`SingleMultiDataTaskSampler.py`, `MultiTaskDataset.py`) takes turns in the same way; it
/// draws with replacement, and fills the last batch from the set's beginning, where itemlm's last
/// batch is smaller.
struct PromptSetOrder {
    windows: usize,
    /// Number of seen prompts of each set.
    prompts: Vec<usize>,
    /// Number of prompts that a window has of each set: at most the smallest number in `prompts`.
    prompts_per_window: usize,
    batch_size: usize,
    /// Whether a set's samples are shuffled; otherwise they are in the windows' order.
    shuffle: bool,
    seed: u64,
}

impl PromptSetOrder {
    fn samples_per_set(&self) -> usize {
        self.windows * self.prompts_per_window
    }

    /// Returns the number of optimiser steps of an epoch.
    fn steps(&self) -> usize {
        self.prompts.len() * self.samples_per_set().div_ceil(self.batch_size)
    }

    /// Returns the samples of each step of an epoch (from 0).
    fn epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let all = self.prompts.iter().sum::<usize>();
        let samples_of = |set: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream((epoch * self.prompts.len() + set) as u64 + 1);
            let first = self.prompts[..set].iter().sum::<usize>();
            let mut samples = Vec::with_capacity(self.samples_per_set());
            for window in 0..self.windows {
                let drawn = index::sample(&mut rng, self.prompts[set], self.prompts_per_window);
                samples.extend(drawn.into_iter().map(|prompt| window * all + first + prompt));
            }
            if self.shuffle {
                samples.shuffle(&mut rng);
            }
            samples
        };
        let sets: Vec<Vec<usize>> = (0..self.prompts.len()).map(samples_of).collect();
        let mut batches: Vec<_> = sets.iter().map(|samples| samples.chunks(self.batch_size)).collect();
        let turns = 0..self.samples_per_set().div_ceil(self.batch_size);
        turns
            .flat_map(|_| batches.iter_mut().filter_map(|set| set.next().map(<[usize]>::to_vec)).collect::<Vec<_>>())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn order(shuffle: bool) -> PromptSetOrder {
        PromptSetOrder { windows: 7, prompts: vec![10, 4], prompts_per_window: 3, batch_size: 4, shuffle, seed: 5 }
    }

    #[test]
    fn every_window_by_different_prompts_of_every_set_in_turn() {
        for shuffle in [true, false] {
            for epoch in 0..4 {
                let steps = order(shuffle).epoch(epoch);
                assert_eq!((steps.len(), order(shuffle).steps()), (12, 12));
                let mut met: Vec<HashSet<(usize, usize)>> = vec![HashSet::new(); 2];
                for (n, samples) in steps.iter().enumerate() {
                    assert_eq!(samples.len(), if n < 10 { 4 } else { 1 });
                    for sample in samples {
                        let (window, prompt) = (sample / 14, sample % 14);
                        assert_eq!(usize::from(prompt >= 10), n % 2, "a step of another set than its turn");
                        assert!(met[n % 2].insert((window, prompt)), "a prompt came twice");
                    }
                }
                for set in met {
                    assert!((0..7).all(|window| set.iter().filter(|(w, _)| *w == window).count() == 3));
                }
            }
        }
    }

    #[test]
    fn a_function_of_seed_and_epoch() {
        assert_eq!(order(true).epoch(3), order(true).epoch(3));
        let other = PromptSetOrder { seed: 6, ..order(true) };
        assert!(order(true).epoch(3) != order(true).epoch(2) && order(true).epoch(3) != other.epoch(3));
        let prompts = |epoch| order(false).epoch(epoch).concat();
        assert_ne!(prompts(0), prompts(1), "prompts are drawn anew");
        let windows: Vec<usize> = order(false).epoch(0).iter().step_by(2).flatten().map(|sample| sample / 14).collect();
        assert!(windows.is_sorted());
        let seen: HashSet<usize> = (0..20).flat_map(prompts).map(|sample| sample % 14).collect();
        assert_eq!(seen.len(), 14);
    }

    #[test]
    fn one_set_and_all_its_prompts() {
        let one = PromptSetOrder { prompts: vec![3], batch_size: 100, ..order(true) };
        let mut samples = one.epoch(0);
        assert_eq!(samples.len(), 1);
        samples[0].sort_unstable();
        assert_eq!(samples[0], (0..21).collect::<Vec<_>>());
    }

    fn windows(windows: &[(u32, u32)]) -> Vec<(u32, Window)> {
        windows.iter().zip(0..).map(|(&(start, len), n)| (n, Window { user: 0, start, len })).collect()
    }

    fn targets(windows: &[TrainingWindow]) -> Vec<u32> {
        let of = |w: &TrainingWindow| w.cuts.iter().map(move |cut| w.window.start + cut - 1).collect::<Vec<_>>();
        windows.iter().flat_map(of).collect()
    }

    #[test]
    fn last_targets_are_the_windows_own() {
        let found = training_targets(Targets::Last, &windows(&[(0, 2), (0, 3), (1, 3)]));
        assert_eq!((found.len(), targets(&found)), (3, vec![1, 2, 3]));
    }

    /// Sliding windows of up to 4 items over 10 interactions of a user and 2 of another.
    #[test]
    fn every_target_comes_once_in_windows_that_share() {
        let sliding: Vec<(u32, u32)> =
            (1..10u32).map(|end| (end.saturating_sub(3), end.min(3) + 1)).chain([(10, 2)]).collect();
        let found = training_targets(Targets::Every, &windows(&sliding));
        let window =
            |start, len, cuts: &[u32]| TrainingWindow { window: Window { user: 0, start, len }, cuts: cuts.to_vec() };
        assert_eq!(
            found,
            [window(0, 4, &[2, 3, 4]), window(3, 4, &[2, 3, 4]), window(6, 4, &[2, 3, 4]), window(10, 2, &[2])]
        );
        assert_eq!(targets(&found), [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]);
    }

    /// In a sample of windows every item after a window's first is a target once, and no other item
    /// is.
    #[test]
    fn every_target_of_any_windows_comes_once() {
        use rand::Rng;
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for _ in 0..500 {
            let chosen: Vec<(u32, u32)> =
                (0..rng.random_range(1..8)).map(|_| (rng.random_range(0..20), rng.random_range(2..7))).collect();
            let found = training_targets(Targets::Every, &windows(&chosen));
            let mut expected: Vec<u32> = chosen.iter().flat_map(|&(start, len)| start + 1..start + len).collect();
            expected.sort_unstable();
            expected.dedup();
            let mut targets = targets(&found);
            targets.sort_unstable();
            assert_eq!(targets, expected, "{chosen:?}");
            assert!(
                found.iter().all(|w| w.cuts.is_sorted() && w.cuts.iter().all(|cut| (2..=w.window.len).contains(cut)))
            );
        }
    }
}
