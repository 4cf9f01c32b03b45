//! One user's beams: the prefixes that a search keeps at each step.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::lookahead::Lookahead;
use super::{ItemFilter, PrefixMass, Query};
use crate::config::{DecodeConfig, Scoring, SearchKind};
use crate::text::{Node, ROOT, Trie};

/// A title that a search returns, with its log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedItem {
    /// The title's leaf, which all items of that title share.
    pub leaf: Node,
    /// Log-probability in nats, summed over the title's tokens.
    pub log_prob: f64,
    /// `log_prob / tokens^length_penalty`, by which items are ranked.
    pub score: f64,
}

/// A prefix of a title.
#[derive(Debug, Clone, Copy)]
struct Beam {
    node: Node,
    log_prob: f64,
}

/// The inputs that stay the same during a search.
#[derive(Clone, Copy)]
pub(super) struct SearchSettings<'a> {
    pub trie: &'a Trie,
    pub decode: &'a DecodeConfig,
}

impl SearchSettings<'_> {
    fn is_masked(self) -> bool {
        self.decode.scoring == Scoring::Masked
    }

    /// Returns whether a single token may follow `node`.
    fn is_forced(self, node: Node) -> bool {
        self.trie.children(node).len() == 1
    }

    /// Returns whether the log-probabilities after `node` need no run of the LLM: under masked
    /// scoring a forced token has log-probability 0.
    pub fn is_certain(self, node: Node) -> bool {
        self.is_masked() && self.is_forced(node)
    }

    /// Divides a log-probability by the length penalty of `tokens` tokens.
    fn apply_length_penalty(self, log_prob: f64, tokens: usize) -> f64 {
        log_prob / (tokens as f64).powf(self.decode.length_penalty)
    }
}

/// The state of one user's search.
pub(super) struct BeamState<'a> {
    /// The prompt's tokens, with those that every item begins with under masked scoring.
    pub prompt: Vec<u32>,
    /// The node at which the prompt ends.
    pub start: Node,
    pub prior: Option<&'a PrefixMass<'a>>,
    /// The log-probability that the prior will still add; transformers' search does not look ahead.
    lookahead: Option<Lookahead<'a>>,
    filter: Option<&'a ItemFilter>,
    /// The prefixes that the search extends; all of one length in transformers' search.
    beams: Vec<Beam>,
    /// The best complete items, best first.
    pub complete: Vec<RankedItem>,
    /// Index of the keys of each node that ran, among the keys of the user's search.
    pub slots: HashMap<Node, usize>,
    /// Log-probabilities of the children of each node that ran, in the trie's order.
    child_log_probs: HashMap<Node, Vec<f64>>,
}

impl<'a> BeamState<'a> {
    pub fn new(query: &Query<'a>, settings: SearchSettings) -> Self {
        let trie = settings.trie;
        // Under masked scoring the tokens with which every title begins need no search: they join
        // the prompt.
        let start = if settings.is_masked() { trie.follow_forced(ROOT) } else { ROOT };
        let forced = trie.path(start);
        let prompt = query.prompt.iter().copied().chain(forced.iter().map(|&node| trie.token(node))).collect();
        let looks_ahead = query.prior.filter(|_| settings.decode.search == SearchKind::Trie);
        let mut state = Self {
            prompt,
            start,
            prior: query.prior,
            lookahead: looks_ahead.map(|prior| Lookahead::new(prior, trie, query.filter)),
            filter: query.filter,
            beams: Vec::new(),
            complete: Vec::new(),
            slots: HashMap::new(),
            child_log_probs: HashMap::new(),
        };
        match (state.allows(start), trie.is_leaf(start)) {
            (false, _) => {}
            (true, true) => state.complete.push(RankedItem { leaf: start, log_prob: 0.0, score: 0.0 }),
            (true, false) => state.beams.push(Beam { node: start, log_prob: 0.0 }),
        }
        state
    }

    fn allows(&self, node: Node) -> bool {
        self.filter.is_none_or(|filter| filter.allows_node(node))
    }

    /// Returns whether the search has ended.
    pub fn is_done(&self) -> bool {
        self.beams.is_empty()
    }

    /// Sets the log-probabilities of a node's children, in the trie's order.
    pub fn insert(&mut self, node: Node, child_log_probs: Vec<f64>) {
        self.child_log_probs.insert(node, child_log_probs);
    }

    /// Takes steps as long as all log-probabilities that a step needs are computed.
    pub fn advance(&mut self, settings: SearchSettings) {
        while !self.is_done() && self.beams.iter().all(|beam| self.is_computed(beam.node, settings)) {
            match settings.decode.search {
                SearchKind::Trie => self.step(settings),
                SearchKind::Transformers => self.transformers_step(settings),
            }
        }
    }

    /// Returns whether the log-probabilities of the node's children are computed.
    fn is_computed(&self, node: Node, settings: SearchSettings) -> bool {
        settings.is_certain(node) || self.child_log_probs.contains_key(&node)
    }

    /// Returns all allowed continuations of the beams by one token, beam by beam.
    fn continuations(&self, settings: SearchSettings) -> Vec<Beam> {
        let trie = settings.trie;
        let mut continuations = Vec::new();
        for beam in &self.beams {
            let children = trie.children(beam.node);
            let log_probs: &[f64] = match settings.is_certain(beam.node) {
                true => &[0.0],
                false => &self.child_log_probs[&beam.node],
            };
            let allowed = children.zip(log_probs).filter(|(child, _)| self.allows(*child));
            continuations.extend(allowed.map(|(node, step)| Beam { node, log_prob: beam.log_prob + step }));
        }
        continuations
    }

    /// Replaces the beams by the best of their continuations; complete items leave the beams.
    fn step(&mut self, settings: SearchSettings) {
        let SearchSettings { trie, decode } = settings;
        let mut next: Vec<(f64, Beam)> = Vec::new();
        for Beam { node, log_prob } in self.continuations(settings) {
            let node = if settings.is_masked() { trie.follow_forced(node) } else { node };
            if trie.is_leaf(node) {
                let score = settings.apply_length_penalty(log_prob, trie.depth_of(node));
                self.complete.push(RankedItem { leaf: node, log_prob, score });
            } else {
                let priority = log_prob + self.lookahead.as_ref().map_or(0.0, |lookahead| lookahead.log_gain(node));
                next.push((priority, Beam { node, log_prob }));
            }
        }
        keep_best(&mut self.complete, decode.beams, |a, b| b.score.total_cmp(&a.score).then(a.leaf.cmp(&b.leaf)));
        keep_best(&mut next, decode.beams, |(a, x), (b, y)| b.total_cmp(a).then(x.node.cmp(&y.node)));
        self.beams = next.into_iter().map(|(_, beam)| beam).collect();
        // Log-probabilities only fall, and the longest title divides them most.
        if let Some(worst) = self.complete.get(decode.beams - 1) {
            self.beams.retain(|beam| settings.apply_length_penalty(beam.log_prob, trie.depth()) > worst.score);
        }
    }

    /// Replaces the beams as transformers' `_beam_search` with `early_stopping=False` does
    /// (transformers 5.24, generation/utils.py).
    fn transformers_step(&mut self, settings: SearchSettings) {
        let SearchSettings { trie, decode } = settings;
        let mut candidates = self.continuations(settings);
        // There is one EOS token: twice as many candidates as beams are considered, so that enough
        // continue.
        keep_best(&mut candidates, decode.beams.saturating_mul(2), |a, b| {
            b.log_prob.total_cmp(&a.log_prob).then(a.node.cmp(&b.node))
        });
        self.beams.clear();
        for (rank, candidate) in candidates.into_iter().enumerate() {
            let Beam { node, log_prob } = candidate;
            if !trie.is_leaf(node) {
                self.beams.push(candidate);
            } else if rank < decode.beams {
                let score = settings.apply_length_penalty(log_prob, trie.depth_of(node));
                self.complete.push(RankedItem { leaf: node, log_prob, score });
            }
        }
        self.beams.truncate(decode.beams);
        keep_best(&mut self.complete, decode.beams, |a, b| b.score.total_cmp(&a.score).then(a.leaf.cmp(&b.leaf)));
        // The heuristic assumes that the best beam gains nothing by growing longer.
        let best =
            self.beams.first().map(|best| settings.apply_length_penalty(best.log_prob, trie.depth_of(best.node)));
        if let (Some(best), Some(worst)) = (best, self.complete.get(decode.beams - 1))
            && best <= worst.score
        {
            self.beams.clear();
        }
    }

    /// Returns the nodes to run for the next step, each after its ancestors, and gives them slots
    /// from `first` on.
    pub fn missing_nodes(&mut self, settings: SearchSettings, first: usize) -> Vec<Node> {
        let trie = settings.trie;
        // Under full scoring, if all beams are at forced tokens, each runs to its next branching.
        let run_ahead = !settings.is_masked() && self.beams.iter().all(|beam| settings.is_forced(beam.node));
        let mut missing = Vec::new();
        for beam in self.beams.iter().filter(|beam| !settings.is_certain(beam.node)) {
            let mut path = Vec::new();
            let mut node = beam.node;
            while node != self.start && !self.slots.contains_key(&node) {
                path.push(node);
                node = trie.parent(node);
            }
            path.reverse();
            let mut node = beam.node;
            while run_ahead && settings.is_forced(node) && !trie.is_leaf(trie.children(node).start) {
                node = trie.children(node).start;
                path.push(node);
            }
            for node in path {
                if let Entry::Vacant(slot) = self.slots.entry(node) {
                    slot.insert(first + missing.len());
                    missing.push(node);
                }
            }
        }
        missing
    }
}

/// Keeps the first `count` of `values` by `order`, sorted.
fn keep_best<T>(values: &mut Vec<T>, count: usize, mut order: impl FnMut(&T, &T) -> Ordering) {
    if count < values.len() {
        values.select_nth_unstable_by(count, &mut order);
        values.truncate(count);
    }
    values.sort_unstable_by(order);
}
