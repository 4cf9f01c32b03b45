//! Free text: the likeliest continuation token by token, and the likelihood of given ones.

use burn::prelude::*;
use burn::tensor::TensorData;

use super::beam::select;
use super::{first_needed, ints, log_sum_exp, padded};
use crate::model::{ItemLanguageModel, MASKED, Output};

/// What the model writes after each prompt: at every step its likeliest token, until `eos` (left out) or `max_tokens`.
///
/// Prompts run together, padded on the right to the longest; each step then runs one token a prompt over the cache. A text that has ended
/// runs on, unread, until all have.
///
/// # Panics
/// On an empty prompt.
pub fn generate<B: Backend>(
    model: &ItemLanguageModel<B>,
    prompts: &[Vec<u32>],
    max_tokens: usize,
    eos: u32,
    device: &B::Device,
) -> Vec<Vec<u32>> {
    let (batch, width) = (prompts.len(), longest(prompts));
    let mut texts = vec![Vec::new(); batch];
    if batch == 0 || max_tokens == 0 {
        return texts;
    }
    let run = model.forward(&padded(slices(prompts), width), batch, first_needed(slices(prompts)));
    let place = |(row, prompt): (usize, &Vec<u32>)| row * (width - run.skipped) + prompt.len() - 1 - run.skipped;
    let mut last: Vec<usize> = prompts.iter().enumerate().map(place).collect();
    let mut output = Output { hidden: run.output.hidden.clone(), key_values: model.whole_cache(run) };
    let mut ended = vec![false; batch];
    loop {
        let likeliest = model.llm.logits(select(output.hidden, last, device), None).argmax(1);
        let tokens: Vec<u32> = likeliest.into_data().convert::<u32>().to_vec().expect("converted to u32 above");
        for ((text, ended), &token) in texts.iter_mut().zip(&mut ended).zip(&tokens) {
            *ended |= token == eos;
            if !*ended {
                text.push(token);
            }
        }
        // The tokens of this step stand after the prompts' padding in the cache, and right after each prompt for the model.
        let step = texts.iter().map(Vec::len).max().unwrap_or(0);
        if step == max_tokens || ended.iter().all(|&ended| ended) {
            return texts;
        }
        let total = width + step;
        let mask = prompts
            .iter()
            .flat_map(|prompt| (0..total).map(|at| if (prompt.len()..width).contains(&at) { MASKED } else { 0.0 }));
        let mask = Tensor::from_data(TensorData::new(mask.collect::<Vec<f32>>(), [batch, 1, 1, total]), device);
        let positions: Vec<u32> = prompts.iter().map(|prompt| (prompt.len() + step - 1) as u32).collect();
        output = model.llm.forward(model.embed(&tokens, batch, 1), &positions, mask, Some(&output.key_values));
        last = (0..batch).collect();
    }
}

/// For each prompt the log-probability of its `target` after it, summed over the target's tokens, by softmax over the whole vocabulary.
/// An EOS that should count is part of the target. Prompts and targets run together, padded on the right.
///
/// # Panics
/// On an empty prompt, or another number of targets than of prompts.
pub fn log_likelihoods<B: Backend>(
    model: &ItemLanguageModel<B>,
    prompts: &[Vec<u32>],
    targets: &[Vec<u32>],
    device: &B::Device,
) -> Vec<f64> {
    assert_eq!(prompts.len(), targets.len(), "a target a prompt");
    // The last token of a target is predicted and never run.
    let run =
        |(prompt, target): (&Vec<u32>, &Vec<u32>)| [prompt.as_slice(), &target[..target.len().saturating_sub(1)]].concat();
    let sequences: Vec<Vec<u32>> = prompts.iter().zip(targets).map(run).collect();
    let (batch, width) = (sequences.len(), longest(&sequences));
    if batch == 0 {
        return Vec::new();
    }
    let run = model.forward(&padded(slices(&sequences), width), batch, first_needed(slices(prompts)));
    let hidden = run.output.hidden;
    let rows = prompts.iter().zip(targets).enumerate();
    rows.map(|(row, (prompt, target))| {
        if target.is_empty() {
            return 0.0;
        }
        // One text's logits over the vocabulary at a time.
        let first = row * (width - run.skipped) + prompt.len() - 1 - run.skipped;
        let logits = model.llm.logits(select(hidden.clone(), (first..first + target.len()).collect(), device), None);
        let labels = ints::<B>(target.iter().map(|&token| token as usize), target.len(), 1, device);
        let log_probs = (logits.clone().gather(1, labels) - log_sum_exp(logits)).into_data().convert::<f64>();
        log_probs.to_vec::<f64>().expect("converted to f64 above").iter().sum()
    })
    .collect()
}

fn longest(sequences: &[Vec<u32>]) -> usize {
    sequences.iter().map(Vec::len).max().unwrap_or(0)
}

fn slices(sequences: &[Vec<u32>]) -> impl Iterator<Item = &[u32]> {
    sequences.iter().map(Vec::as_slice)
}
