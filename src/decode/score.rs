//! Log-probabilities of given items after a prompt.

use burn::prelude::*;
use burn::tensor::TensorData;

use super::{NodeLogits, ints};
use crate::model::{Llama, MASKED};
use crate::text::{Catalogue, Node, ROOT};

/// An item's log-probability, summed over its tokens, EOS included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ItemScore {
    /// Softmax over the whole vocabulary.
    pub full: f64,
    /// Softmax over the trie's children.
    pub masked: f64,
}

/// Scores `items` (of the catalogue) after `prompt`: prompt and target run together, an item a row.
pub fn score<B: Backend>(
    llm: &Llama<B>,
    catalogue: &Catalogue,
    prompt: &[u32],
    items: &[u32],
    device: &B::Device,
) -> Vec<ItemScore> {
    let targets: Vec<&[u32]> = items.iter().map(|&item| catalogue.targets[item as usize].as_slice()).collect();
    let Some(longest) = targets.iter().map(|t| t.len()).max() else { return Vec::new() };
    let (batch, seq) = (items.len(), prompt.len() + longest - 1);
    let token = |target: &[u32], t: usize| match t.checked_sub(prompt.len()) {
        None => prompt[t] as usize,
        // The last token is predicted and never run.
        Some(t) if t + 1 < target.len() => target[t] as usize,
        Some(_) => 0,
    };
    let tokens = ints::<B>(targets.iter().flat_map(|target| (0..seq).map(move |t| token(target, t))), batch, seq, device);
    let positions: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
    let causal = (0..seq).flat_map(|q| (0..seq).map(move |k| if k <= q { 0.0 } else { MASKED })).collect::<Vec<f32>>();
    let mask = Tensor::from_data(TensorData::new(causal, [1, 1, seq, seq]), device);
    let width = llm.config().hidden_size;
    let hidden = llm.forward(llm.embed(tokens), &positions, mask, None).hidden.reshape([batch * seq, width]);

    let at = |row: usize, t: usize| (row * seq + prompt.len() - 1 + t) as i32;
    let places: Vec<i32> = targets.iter().enumerate().flat_map(|(row, t)| (0..t.len()).map(move |t| at(row, t))).collect();
    let places = Tensor::<B, 1, Int>::from_data(TensorData::new(places.clone(), [places.len()]), device);
    let paths: Vec<Vec<Node>> = items.iter().map(|&item| catalogue.trie.path(catalogue.trie.leaf(item))).collect();
    let before: Vec<Node> =
        paths.iter().flat_map(|path| std::iter::once(ROOT).chain(path[..path.len() - 1].iter().copied())).collect();
    let logits = NodeLogits::new(llm, hidden.select(0, places), &catalogue.trie, &before, true);

    let mut n = 0;
    let mut scores = Vec::with_capacity(items.len());
    for path in &paths {
        let mut sum = ItemScore { full: 0.0, masked: 0.0 };
        for &node in path {
            let (masked, full) = logits.log_probs(n, before[n], &catalogue.trie);
            let child = (node - catalogue.trie.children(before[n]).start) as usize;
            sum.full += full[child];
            sum.masked += masked[child];
            n += 1;
        }
        scores.push(sum);
    }
    scores
}
