//! An example: a prompt, what follows it, and the sequence of tokens that both make.

use crate::text::{Catalogue, Node, ROOT};

/// A prompt and what to predict after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Tokens of the prompt, at least one; [`crate::text::EntityTokens`] may be among them.
    pub prompt: Vec<u32>,
    /// The target: what the LLM writes after the prompt.
    pub target: Target,
    /// Numbers that a collaborative prior adds to the logits on the way to the target
    /// ([`crate::decode::PrefixMass::logit_bias_to`]): one for each child of each branching node of
    /// the target's path, in that order. Empty without a prior in the loss.
    pub logit_bias: Vec<f32>,
}

/// The target of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An item of the catalogue, by its index.
    Item(u32),
    /// Tokens of any text, EOS included. Only [`Candidates::Vocabulary`] can learn it.
    Text(Vec<u32>),
}

/// The tokens over which the loss's softmax is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidates {
    /// The whole vocabulary, at every target token (LML).
    Vocabulary,
    /// The trie's children, at target tokens with more than one (MSL).
    Children,
}

/// A token to predict within the sequence of an [`Example`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PredictedToken {
    /// Index, in the sequence, of the token before the predicted one.
    pub before: usize,
    /// The token to predict.
    pub token: u32,
    /// The trie's node before the token ([`ROOT`] for a text).
    pub node: Node,
}

/// An example as one sequence of tokens.
pub(super) struct ExampleSequence {
    /// The tokens that are run: the last one stands before the last predicted token.
    pub tokens: Vec<u32>,
    /// The tokens to predict, in order.
    pub predicted: Vec<PredictedToken>,
    /// All tokens of the target, EOS included.
    pub target_tokens: usize,
    /// Tokens of the target with more than one valid token in their place.
    pub branching_tokens: usize,
}

impl ExampleSequence {
    /// Lays out `example`.
    pub fn new(example: &Example, catalogue: &Catalogue, candidates: Candidates) -> Self {
        assert!(!example.prompt.is_empty(), "a prompt holds at least one token");
        let last_of_prompt = example.prompt.len() - 1;
        let sequence = |target: &[u32], run: usize| [example.prompt.as_slice(), &target[..run]].concat();
        let item = match &example.target {
            Target::Item(item) => *item,
            Target::Text(text) => {
                assert!(candidates == Candidates::Vocabulary, "a text is not in the trie");
                let predicted = |(t, &token)| PredictedToken { before: last_of_prompt + t, token, node: ROOT };
                return Self {
                    tokens: sequence(text, text.len().saturating_sub(1)),
                    predicted: text.iter().enumerate().map(predicted).collect(),
                    target_tokens: text.len(),
                    branching_tokens: 0,
                };
            }
        };
        let (trie, target) = (&catalogue.trie, &catalogue.targets[item as usize]);
        let (mut predicted, mut branching_tokens, mut node) = (Vec::new(), 0, ROOT);
        for (t, &token) in target.iter().enumerate() {
            let branches = trie.valid_tokens(node).len() > 1;
            branching_tokens += usize::from(branches);
            if branches || candidates == Candidates::Vocabulary {
                predicted.push(PredictedToken { before: last_of_prompt + t, token, node });
            }
            node = trie.child(node, token).expect("the trie holds every target");
        }
        let run = predicted.last().map_or(0, |last| last.before - last_of_prompt);
        Self { tokens: sequence(target, run), predicted, target_tokens: target.len(), branching_tokens }
    }
}
