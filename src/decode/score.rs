//! Log-probabilities of given items after a prompt.

use burn::prelude::*;
use burn::tensor::TensorData;

use super::log_probs::{NodeLogits, select};
use crate::Result;
use crate::config::Scoring;
use crate::kernels::MASKED;
use crate::model::{Decoder, Output, causal_mask};
use crate::text::{Catalogue, Node, ROOT};

/// An item's log-probabilities in nats, summed over its tokens, EOS included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ItemScore {
    /// Log-probability by softmax over the whole vocabulary.
    pub full: f64,
    /// Log-probability by softmax over the trie's children.
    pub masked: f64,
}

/// Most target tokens of one forward pass. A longer target runs alone.
const TOKEN_BUDGET: usize = 512;

/// Scores `items` of the catalogue after `prompt`. The prompt runs once; then several targets at a
/// time run as one sequence, in which a token attends to the prompt and to the tokens of its own
/// target before it.
///
/// # Errors
/// A device that failed.
///
/// # Panics
/// On an empty prompt and an item outside the catalogue.
pub fn score<B: Backend>(
    llm: &Decoder<B>,
    catalogue: &Catalogue,
    prompt: &[u32],
    items: &[u32],
    device: &B::Device,
) -> Result<Vec<ItemScore>> {
    let positions: Vec<u32> = (0..prompt.len() as u32).collect();
    let tokens = llm.token_ids(prompt.iter().copied()).reshape([1, prompt.len()]);
    let prompt_output = llm.forward(llm.embed(tokens), &positions, causal_mask(prompt.len(), device), None);
    let mut scores = Vec::with_capacity(items.len());
    let mut left = items;
    while !left.is_empty() {
        let mut tokens = 0;
        let fits = |item: &&u32| {
            tokens += catalogue.targets[**item as usize].len();
            tokens <= TOKEN_BUDGET
        };
        let (now, later) = left.split_at(left.iter().take_while(fits).count().max(1));
        scores.extend(score_in_one_pass(llm, catalogue, &prompt_output, now, device)?);
        left = later;
    }
    Ok(scores)
}

fn score_in_one_pass<B: Backend>(
    llm: &Decoder<B>,
    catalogue: &Catalogue,
    prompt: &Output<B>,
    items: &[u32],
    device: &B::Device,
) -> Result<Vec<ItemScore>> {
    let [_, before_targets, width] = prompt.hidden.dims();
    let targets: Vec<&[u32]> = items.iter().map(|&item| catalogue.targets[item as usize].as_slice()).collect();
    // The last token of a target is predicted and never run.
    let run: Vec<(usize, usize)> =
        targets.iter().enumerate().flat_map(|(i, target)| (0..target.len() - 1).map(move |t| (i, t))).collect();
    let mut hidden = prompt.hidden.clone().narrow(1, before_targets - 1, 1).reshape([1, width]);
    if !run.is_empty() {
        let tokens = llm.token_ids(run.iter().map(|&(i, t)| targets[i][t])).reshape([1, run.len()]);
        let positions: Vec<u32> = run.iter().map(|&(_, t)| (before_targets + t) as u32).collect();
        let total = before_targets + run.len();
        let attends = |q: &(usize, usize), k: usize| match k.checked_sub(before_targets) {
            None => true,
            Some(k) => run[k].0 == q.0 && run[k].1 <= q.1,
        };
        let mask = run.iter().flat_map(|q| (0..total).map(move |k| if attends(q, k) { 0.0 } else { MASKED }));
        let mask = Tensor::from_data(TensorData::new(mask.collect::<Vec<f32>>(), [1, 1, run.len(), total]), device);
        let rest = llm.forward(llm.embed(tokens), &positions, mask, Some(prompt.cache.clone()));
        hidden = Tensor::cat(vec![hidden, rest.hidden.reshape([run.len(), width])], 0);
    }
    // Row 0 is the prompt's last token; the targets' tokens follow.
    let mut next = 1;
    let mut rows = Vec::new();
    for target in &targets {
        rows.push(0);
        rows.extend((0..target.len() - 1).map(|t| next + t));
        next += target.len() - 1;
    }
    let paths: Vec<Vec<Node>> = items.iter().map(|&item| catalogue.trie.path(catalogue.trie.leaf(item))).collect();
    let before: Vec<Node> =
        paths.iter().flat_map(|path| std::iter::once(ROOT).chain(path[..path.len() - 1].iter().copied())).collect();
    let nodes = NodeLogits::new(llm, select(hidden, rows), &catalogue.trie, &before, true)?;

    let mut n = 0;
    let mut scores = Vec::with_capacity(items.len());
    for path in &paths {
        let mut sum = ItemScore { full: 0.0, masked: 0.0 };
        for &node in path {
            let child = (node - catalogue.trie.children(before[n]).start) as usize;
            sum.full += nodes.log_probs(n, before[n], &catalogue.trie, Scoring::Full, None)[child];
            sum.masked += nodes.log_probs(n, before[n], &catalogue.trie, Scoring::Masked, None)[child];
            n += 1;
        }
        scores.push(sum);
    }
    Ok(scores)
}
