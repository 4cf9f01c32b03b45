//! Free text: the likeliest continuation token by token, and the likelihood of given texts.

use burn::prelude::*;

use super::log_probs::{first_needed, select, slices};
use crate::Result;
use crate::kernels::{AttentionMask, Mask};
use crate::model::{ItemLanguageModel, Packing};
use crate::tensor::{read, to_vec};

/// Writes a text after each prompt: at every step the likeliest token, until `eos` (left out) or
/// the prompt's number of tokens in `max_tokens`.
///
/// Prompts run together, padded on the right to the longest; each step then runs one token for each
/// text that has not ended. A text does not depend on the prompts beside its own.
///
/// # Errors
/// A device that failed.
///
/// # Panics
/// On an empty prompt, or another number of `max_tokens` than of prompts.
pub fn generate<B: Backend>(
    model: &ItemLanguageModel<B>,
    prompts: &[Vec<u32>],
    max_tokens: &[usize],
    eos: u32,
    device: &B::Device,
) -> Result<Vec<Vec<u32>>> {
    assert_eq!(prompts.len(), max_tokens.len(), "a limit for each prompt");
    let batch = prompts.len();
    let mut texts = vec![Vec::new(); batch];
    let mut active: Vec<usize> = (0..batch).filter(|&row| max_tokens[row] > 0).collect();
    if active.is_empty() {
        return Ok(texts);
    }
    let prefill = model.forward(&slices(prompts), first_needed(&slices(prompts)));
    let (cached_len, width) = (prefill.cached_len, max_len(prompts) - prefill.cached_len);
    let last = active.iter().map(|&row| prefill.hidden_index(row, prompts[row].len() - 1)).collect();
    let (mut hidden, mut cache) = (select(prefill.hidden, last), prefill.cache);
    for step in 1.. {
        let likeliest = read(model.llm.logits(hidden, None).argmax(1), "the likeliest tokens")?;
        let likeliest: Vec<u32> = likeliest.convert::<u32>().iter::<u32>().collect();
        let mut tokens = Vec::new();
        active = active
            .iter()
            .zip(likeliest)
            .filter_map(|(&row, token)| {
                if token == eos {
                    return None;
                }
                texts[row].push(token);
                (texts[row].len() < max_tokens[row]).then(|| {
                    tokens.push(token);
                    row
                })
            })
            .collect();
        if active.is_empty() {
            break;
        }
        // The keys of this step's tokens come after the prompts' padding; a token's position comes
        // right after its prompt and text.
        let keys = width + step;
        let is_padding = |row: usize, key: usize| (prompts[row].len() - cached_len..width).contains(&key);
        let visible = (0..batch).flat_map(|row| (0..keys).map(move |key| !is_padding(row, key))).collect();
        let mask = Mask::new(AttentionMask::new(batch, 1, keys, visible), cached_len, device);
        let positions: Vec<u32> = active.iter().map(|&row| (prompts[row].len() + step - 1) as u32).collect();
        let lengths: Vec<usize> = (0..batch).map(|row| usize::from(active.contains(&row))).collect();
        let embeddings = model.llm.embed(model.llm.token_ids(tokens).reshape([1, active.len()]));
        let packing = Packing::new(&lengths, device);
        let output = model.llm.forward_masked(embeddings, &positions, &mask, &packing, cache);
        let [_, count, hidden_size] = output.hidden.dims();
        hidden = output.hidden.reshape([count, hidden_size]);
        cache = output.cache;
        cache.join_grown();
    }
    Ok(texts)
}

/// Returns for each prompt the log-probability of its `target` after it, in nats: summed over the
/// target's tokens, by softmax over the whole vocabulary. An EOS that should count is part of the
/// target. Prompts and targets run together, padded on the right.
///
/// # Errors
/// A device that failed.
///
/// # Panics
/// On an empty prompt, or another number of targets than of prompts.
pub fn log_likelihoods<B: Backend>(
    model: &ItemLanguageModel<B>,
    prompts: &[Vec<u32>],
    targets: &[Vec<u32>],
) -> Result<Vec<f64>> {
    assert_eq!(prompts.len(), targets.len(), "a target for each prompt");
    // The last token of a target is predicted and never run.
    let sequence = |(prompt, target): (&Vec<u32>, &Vec<u32>)| {
        [prompt.as_slice(), &target[..target.len().saturating_sub(1)]].concat()
    };
    let sequences: Vec<Vec<u32>> = prompts.iter().zip(targets).map(sequence).collect();
    if sequences.is_empty() {
        return Ok(Vec::new());
    }
    let prefill = model.forward(&slices(&sequences), first_needed(&slices(prompts)));
    let log_likelihood = |(row, (prompt, target)): (usize, (&Vec<u32>, &Vec<u32>))| {
        if target.is_empty() {
            return Ok(0.0);
        }
        let first = prefill.hidden_index(row, prompt.len() - 1);
        let hidden = prefill.hidden.clone().narrow(0, first, target.len());
        let log_sums = to_vec(model.llm.log_sum_vocabulary(hidden.clone()), "log-sums of the vocabulary")?;
        let labels = model.llm.token_ids(target.iter().copied());
        let logits = to_vec(model.llm.logits(hidden, Some(labels)), "logits")?;
        // Column t of row t is the target's t-th token.
        let own = logits.into_iter().step_by(target.len() + 1);
        Ok(own.zip(log_sums).map(|(logit, log_sum)| f64::from(logit) - f64::from(log_sum)).sum())
    };
    prompts.iter().zip(targets).enumerate().map(log_likelihood).collect()
}

fn max_len(sequences: &[Vec<u32>]) -> usize {
    sequences.iter().map(Vec::len).max().unwrap_or(0)
}
