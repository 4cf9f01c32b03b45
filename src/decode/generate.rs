//! Free text: the likeliest continuation token by token, and the likelihood of given ones.

use burn::prelude::*;

use super::{first_needed, host, ints, select, slices};
use crate::kernels::{AttentionMask, Mask};
use crate::model::{ItemLanguageModel, Packing};

/// What the model writes after each prompt: at every step its likeliest token, until `eos` (left
/// out) or `max_tokens`.
///
/// Prompts run together, padded on the right to the longest; each step then runs one token a prompt
/// over the cache. A text that has ended runs on, unread, until all have.
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
    let batch = prompts.len();
    let mut texts = vec![Vec::new(); batch];
    if batch == 0 || max_tokens == 0 {
        return texts;
    }
    let run = model.forward(&slices(prompts), first_needed(&slices(prompts)));
    let (skipped, width) = (run.cached_len, longest(prompts) - run.cached_len);
    let last = prompts.iter().enumerate().map(|(row, prompt)| run.hidden_index(row, prompt.len() - 1)).collect();
    let (mut hidden, mut cache) = (select(run.hidden, last), run.cache);
    let mut ended = vec![false; batch];
    loop {
        let likeliest = model.llm.logits(hidden, None).argmax(1);
        let tokens: Vec<u32> = likeliest.into_data().convert::<u32>().to_vec().expect("converted to u32 above");
        for ((text, ended), &token) in texts.iter_mut().zip(&mut ended).zip(&tokens) {
            *ended |= token == eos;
            if !*ended {
                text.push(token);
            }
        }
        // The tokens of this step stand after the prompts' padding in the cache, and right after
        // each prompt for the model.
        let step = texts.iter().map(Vec::len).max().unwrap_or(0);
        if step == max_tokens || ended.iter().all(|&ended| ended) {
            return texts;
        }
        let keys = width + step;
        let padding = |prompt: &Vec<u32>| prompt.len() - skipped..width;
        let seen = prompts.iter().flat_map(|prompt| (0..keys).map(|at| !padding(prompt).contains(&at))).collect();
        let mask = Mask::new(AttentionMask::new(batch, 1, keys, seen), skipped, device);
        let positions: Vec<u32> = prompts.iter().map(|prompt| (prompt.len() + step - 1) as u32).collect();
        let embeddings = model.embed(&tokens, batch, 1);
        let output = model.llm.forward_masked(embeddings, &positions, &mask, &Packing::even(batch, 1), cache);
        let [_, _, hidden_size] = output.hidden.dims();
        hidden = output.hidden.reshape([batch, hidden_size]);
        cache = output.cache;
        cache.join_grown();
    }
}

/// For each prompt the log-probability of its `target` after it, summed over the target's tokens,
/// by softmax over the whole vocabulary. An EOS that should count is part of the target. Prompts
/// and targets run together, padded on the right.
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
    let run = |(prompt, target): (&Vec<u32>, &Vec<u32>)| {
        [prompt.as_slice(), &target[..target.len().saturating_sub(1)]].concat()
    };
    let sequences: Vec<Vec<u32>> = prompts.iter().zip(targets).map(run).collect();
    if sequences.is_empty() {
        return Vec::new();
    }
    let run = model.forward(&slices(&sequences), first_needed(&slices(prompts)));
    let rows = prompts.iter().zip(targets).enumerate();
    rows.map(|(row, (prompt, target))| {
        if target.is_empty() {
            return 0.0;
        }
        let hidden = run.hidden.clone().narrow(0, run.hidden_index(row, prompt.len() - 1), target.len());
        let log_sums = host(model.llm.log_sum_vocabulary(hidden.clone()));
        let labels = ints::<B>(target.iter().map(|&token| token as usize), 1, target.len(), device);
        let logits = host(model.llm.logits(hidden, Some(labels.reshape([target.len()]))));
        let own = logits.into_iter().step_by(target.len() + 1);
        own.zip(log_sums).map(|(logit, log_sum)| f64::from(logit) - f64::from(log_sum)).sum()
    })
    .collect()
}

fn longest(sequences: &[Vec<u32>]) -> usize {
    sequences.iter().map(Vec::len).max().unwrap_or(0)
}
