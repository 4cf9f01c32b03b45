//! Beam search over the trie, for several users at once.
//!
//! A user's beams are the leaves of one tree of tokens that grows from the end of the prompt. The prompt runs once; each step runs
//! only the tokens that the kept beams add, as one sequence whose mask lets a token see the prompt and its own ancestors. So the
//! cache is appended to and never copied per beam or reordered.
//!
//! Where it differs from transformers' constrained search (`prefix_allowed_tokens_fn`): an item that is complete leaves the
//! beams and frees its place; the search goes on while a live beam could still enter the best (as `early_stopping="never"`); and under
//! masked scoring, where a forced token has log-probability 0, a beam jumps over forced chains and is complete at its last branching.
//! With a prior, beams compete by their log-probability and what the prior will still take on the way to their best item.

use burn::prelude::*;
use burn::tensor::TensorData;

use super::{NodeLogits, first_needed, ints, padded};
use crate::config::{DecodeConfig, Scoring};
use crate::model::{ItemLanguageModel, KeyValues, Llama, MASKED};
use crate::prior::UserPrior;
use crate::text::{Catalogue, Node, ROOT, Trie};

/// A found item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Its leaf: all items of equal title.
    pub leaf: Node,
    /// Sum over its tokens.
    pub log_prob: f64,
    /// `log_prob / tokens^length_penalty`, what the ranking goes by.
    pub score: f64,
}

/// A prefix that is still growing.
#[derive(Debug, Clone)]
struct Beam {
    node: Node,
    log_prob: f64,
    /// Places in the cache of the tokens between the prompt and `node`, those yet to run excepted.
    slots: Vec<usize>,
    /// Tokens of `node`'s path that have not run.
    pending: Vec<u32>,
}

/// One user's search.
struct User<'a> {
    prompt: Vec<u32>,
    prior: Option<&'a UserPrior<'a>>,
    /// The prior's, or empty.
    outlook: Vec<f64>,
    live: Vec<Beam>,
    found: Vec<Ranked>,
}

/// The `decode.beams` best items for each prompt, best first; always as many as there are beams where the catalogue has them.
///
/// Prompts run together, padded to the longest.
///
/// * `priors`: one a prompt, or none at all.
pub fn search<B: Backend>(
    model: &ItemLanguageModel<B>,
    catalogue: &Catalogue,
    prompts: &[Vec<u32>],
    priors: &[UserPrior],
    decode: &DecodeConfig,
    device: &B::Device,
) -> Vec<Vec<Ranked>> {
    let trie = &catalogue.trie;
    let user = |(n, prompt): (usize, &Vec<u32>)| User::new(prompt, priors.get(n), trie, decode.scoring);
    let mut users: Vec<User> = prompts.iter().enumerate().map(user).collect();
    if users.iter().all(|user| user.live.is_empty()) {
        return users.into_iter().map(|user| user.found).collect();
    }
    let width = users.iter().map(|user| user.prompt.len()).max().unwrap_or(0);
    let (mut hidden, mut cache) = run_prompts(model, &users, width, device);
    loop {
        let nodes: Vec<Node> = users.iter().flat_map(|user| user.live.iter().map(|beam| beam.node)).collect();
        let logits = NodeLogits::new(&model.llm, hidden, trie, &nodes, decode.scoring == Scoring::Full);
        let mut first = 0;
        for user in &mut users {
            let beams = user.live.len();
            user.expand(&logits, first, trie, decode);
            first += beams;
        }
        if users.iter().all(|user| user.live.is_empty()) {
            return users.into_iter().map(|user| user.found).collect();
        }
        (hidden, cache) = run_pending(&model.llm, &mut users, cache, device);
    }
}

impl<'a> User<'a> {
    fn new(prompt: &[u32], prior: Option<&'a UserPrior<'a>>, trie: &Trie, scoring: Scoring) -> Self {
        // A chain that every title begins with needs no search under masked scoring: it joins the prompt.
        let node = if scoring == Scoring::Masked { trie.follow_forced(ROOT) } else { ROOT };
        let chain = trie.path(node);
        let prompt = prompt.iter().copied().chain(chain.iter().map(|&n| trie.token(n))).collect();
        let outlook = prior.map_or_else(Vec::new, |prior| prior.outlook(trie));
        match trie.is_leaf(node) {
            true => {
                Self { prompt, prior, outlook, live: Vec::new(), found: vec![Ranked { leaf: node, log_prob: 0.0, score: 0.0 }] }
            }
            false => {
                let beam = Beam { node, log_prob: 0.0, slots: Vec::new(), pending: Vec::new() };
                Self { prompt, prior, outlook, live: vec![beam], found: Vec::new() }
            }
        }
    }

    /// Replaces the live beams, the `first`-th and following rows of `logits`, by the best of their children.
    fn expand(&mut self, logits: &NodeLogits, first: usize, trie: &Trie, decode: &DecodeConfig) {
        let length = |node: Node| trie.path(node).len() as f64;
        let longest = (trie.depth() as f64).powf(decode.length_penalty);
        let mut next: Vec<(f64, Node, usize)> = Vec::new();
        for (b, beam) in self.live.iter().enumerate() {
            let (masked, full) = logits.log_probs(first + b, beam.node, trie, self.prior);
            let step = if decode.scoring == Scoring::Masked { masked } else { full };
            for (child, step) in trie.children(beam.node).zip(step) {
                let log_prob = beam.log_prob + step;
                let node = if decode.scoring == Scoring::Masked { trie.follow_forced(child) } else { child };
                if trie.is_leaf(node) {
                    let score = log_prob / length(node).powf(decode.length_penalty);
                    self.found.push(Ranked { leaf: node, log_prob, score });
                } else {
                    next.push((log_prob, node, b));
                }
            }
        }
        self.found.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.leaf.cmp(&b.leaf)));
        self.found.truncate(decode.beams);
        let promise = |(log_prob, node, _): &(f64, Node, usize)| log_prob + self.outlook.get(*node as usize).unwrap_or(&0.0);
        next.sort_by(|a, b| promise(b).total_cmp(&promise(a)).then(a.1.cmp(&b.1)));
        next.truncate(decode.beams);
        // Log-probabilities only fall, and the longest title divides them most.
        if let Some(worst) = self.found.get(decode.beams - 1) {
            next.retain(|(log_prob, _, _)| log_prob / longest > worst.score);
        }
        self.live = next
            .into_iter()
            .map(|(log_prob, node, parent)| {
                let parent = &self.live[parent];
                let path = trie.path(node);
                let pending = path[trie.path(parent.node).len()..].iter().map(|&n| trie.token(n)).collect();
                Beam { node, log_prob, slots: parent.slots.clone(), pending }
            })
            .collect();
    }
}

/// Runs all prompts; the hidden state `[users with beams, hidden]` of each one's last token, and the cache.
fn run_prompts<B: Backend>(
    model: &ItemLanguageModel<B>,
    users: &[User],
    width: usize,
    device: &B::Device,
) -> (Tensor<B, 2>, KeyValues<B>) {
    let prompts = || users.iter().map(|user| user.prompt.as_slice());
    let run = model.forward(&padded(prompts(), width), users.len(), first_needed(prompts()));
    let own = width - run.skipped;
    let last = users.iter().enumerate().filter(|(_, u)| !u.live.is_empty());
    let last = last.map(|(n, u)| n * own + u.prompt.len() - 1 - run.skipped).collect();
    (select(run.output.hidden.clone(), last, device), model.whole_cache(run))
}

/// Runs every live beam's pending tokens; the hidden state `[beams, hidden]` of each one's last, and the longer cache.
fn run_pending<B: Backend>(
    llm: &Llama<B>,
    users: &mut [User],
    cache: KeyValues<B>,
    device: &B::Device,
) -> (Tensor<B, 2>, KeyValues<B>) {
    let before = cache.0[0].0.dims()[2];
    let new = users.iter().map(|u| u.live.iter().map(|b| b.pending.len()).sum()).max().unwrap_or(0);
    let total = before + new;
    let batch = users.len();
    let mut tokens = vec![0; batch * new];
    let mut positions = vec![0u32; batch * new];
    let mut mask = vec![MASKED; batch * new * total];
    let mut last = Vec::new();
    for (u, user) in users.iter_mut().enumerate() {
        let mut at = 0;
        for beam in &mut user.live {
            for &token in &beam.pending {
                let row = u * new + at;
                tokens[row] = token as usize;
                positions[row] = (user.prompt.len() + beam.slots.len()) as u32;
                beam.slots.push(before + at);
                let seen = &mut mask[row * total..(row + 1) * total];
                seen[..user.prompt.len()].fill(0.0);
                beam.slots.iter().for_each(|&slot| seen[slot] = 0.0);
                at += 1;
            }
            beam.pending.clear();
            last.push(u * new + at - 1);
        }
    }
    let tokens = ints::<B>(tokens.into_iter(), batch, new, device);
    let mask = Tensor::from_data(TensorData::new(mask, [batch, 1, new, total]), device);
    let output = llm.forward(llm.embed(tokens), &positions, mask, Some(&cache));
    (select(output.hidden, last, device), output.key_values)
}

/// Rows of `[batch, seq, hidden]`, flattened.
pub(super) fn select<B: Backend>(hidden: Tensor<B, 3>, at: Vec<usize>, device: &B::Device) -> Tensor<B, 2> {
    let [batch, seq, width] = hidden.dims();
    let index: Vec<i32> = at.iter().map(|&a| a as i32).collect();
    let index = Tensor::<B, 1, Int>::from_data(TensorData::new(index, [at.len()]), device);
    hidden.reshape([batch * seq, width]).select(0, index)
}
