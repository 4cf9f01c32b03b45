//! Keys and values of the prompts that were answered last.
//!
//! A user's next request has the prompt of the one before with items added, so the keys and values
//! of its first tokens are known. But an answer must be the same to the bit whatever was asked
//! before, and a token's keys depend in their last bits on how many tokens run with it. So after
//! the instruction a prompt always runs in blocks of [`BLOCK`] tokens, the last one shorter, and a
//! cached prompt stands in for the blocks that it has in common with the next one.
//!
//! Source: the automatic prefix caching of vLLM, which shares blocks between requests too
//! (arXiv 2309.06180, section 4.4). Ours keeps whole prompts, since no two users share a history.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::device::Concrete;
use crate::model::{ItemLanguageModel, PrefixCache};

/// Number of tokens of a block.
pub const BLOCK: usize = 64;
/// Bytes of keys and values that are kept, at most.
const MOST_BYTES: usize = 256 << 20;
/// Number of prompts that are kept, at most: each is compared with every new one.
const MOST_PROMPTS: usize = 1024;

/// The prompts that were answered last, with their keys and values.
#[derive(Debug)]
pub(super) struct PromptCache {
    prompts: Mutex<Prompts>,
    tokens: AtomicU64,
    cached: AtomicU64,
}

/// The prompts' whole blocks, the least recently used first.
#[derive(Debug)]
struct Prompts {
    prefixes: VecDeque<PrefixCache<Concrete>>,
    most_bytes: usize,
}

/// Numbers of tokens of the prompts that were answered alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptTokens {
    /// Tokens after the instruction.
    pub all: u64,
    /// Those of them whose keys and values were cached.
    pub cached: u64,
}

impl Default for PromptCache {
    fn default() -> Self {
        let prompts = Prompts { prefixes: VecDeque::new(), most_bytes: MOST_BYTES };
        Self { prompts: Mutex::new(prompts), tokens: AtomicU64::new(0), cached: AtomicU64::new(0) }
    }
}

impl PromptCache {
    /// Returns `model` with the keys and values of all whole blocks of `prompt` before its last
    /// token, and keeps them.
    ///
    /// * `model`: has those of the instruction.
    pub fn prefill(&self, model: &ItemLanguageModel<Concrete>, prompt: &[u32]) -> ItemLanguageModel<Concrete> {
        let start = model.cached_len(prompt);
        let last = prompt.len().saturating_sub(1);
        let end = start + last.saturating_sub(start) / BLOCK * BLOCK;
        self.tokens.fetch_add((prompt.len() - start) as u64, Relaxed);
        if end == start {
            return model.clone();
        }
        let known = self.lock().find(&prompt[..end], start);
        let mut done = start;
        let mut model = model.clone();
        if let Some(known) = known {
            done = known.len();
            self.cached.fetch_add((done - start) as u64, Relaxed);
            model = model.with_prefix(known);
        }
        while done < end {
            done += BLOCK;
            model = model.with_longer_prefix(&prompt[..done]);
        }
        if let Some(prefix) = model.prefix() {
            self.lock().keep(prefix.clone());
        }
        model
    }

    /// Returns the numbers of tokens since the last call.
    pub fn take_tokens(&self) -> PromptTokens {
        PromptTokens { all: self.tokens.swap(0, Relaxed), cached: self.cached.swap(0, Relaxed) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Prompts> {
        self.prompts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Prompts {
    /// Returns the keys and values of as many whole blocks after `start` as one of the kept prompts
    /// has in common with `tokens`; `None` for no block.
    fn find(&self, tokens: &[u32], start: usize) -> Option<PrefixCache<Concrete>> {
        let blocks = |prefix: &PrefixCache<Concrete>| prefix.common_prefix_len(tokens).saturating_sub(start) / BLOCK;
        let best = (0..self.prefixes.len()).max_by_key(|&n| blocks(&self.prefixes[n]))?;
        let common = blocks(&self.prefixes[best]);
        (common > 0).then(|| self.prefixes[best].first_tokens(start + common * BLOCK))
    }

    /// Keeps a prompt as the one that was used last, in place of those that it begins with.
    fn keep(&mut self, prefix: PrefixCache<Concrete>) {
        let longer = self.prefixes.iter().position(|other| other.common_prefix_len(prefix.tokens()) == prefix.len());
        let prefix = longer.and_then(|n| self.prefixes.remove(n)).unwrap_or(prefix);
        self.prefixes.retain(|other| prefix.common_prefix_len(other.tokens()) < other.len());
        self.prefixes.push_back(prefix);
        while self.bytes() > self.most_bytes || self.prefixes.len() > MOST_PROMPTS {
            self.prefixes.pop_front();
        }
    }

    /// Returns the bytes of all kept keys and values.
    fn bytes(&self) -> usize {
        self.prefixes.iter().map(PrefixCache::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;
    use crate::device::BackendName;

    /// Returns a prefix of one layer with a head of two numbers: 16 bytes a token.
    fn prefix(tokens: &[u32]) -> PrefixCache<Concrete> {
        let device = BackendName::Cpu.device().unwrap();
        let zeros = || vec![Tensor::zeros([1, 1, tokens.len(), 2], &device)];
        PrefixCache::new(zeros(), zeros(), tokens.to_vec())
    }

    fn kept(prompts: &Prompts) -> Vec<(u32, usize)> {
        prompts.prefixes.iter().map(|prefix| (prefix.tokens()[1], prefix.len())).collect()
    }

    /// The common blocks of the prompt that has most of them are found; a prompt replaces those
    /// that it begins with; the least recently used go first.
    #[test]
    fn blocks_are_found_and_bounded() {
        let prompt = |user: u32, blocks: usize| -> Vec<u32> {
            [7].into_iter().chain(std::iter::repeat_n(user, blocks * BLOCK)).collect()
        };
        let bytes = 16 * (1 + 2 * BLOCK);
        let mut prompts = Prompts { prefixes: VecDeque::new(), most_bytes: 3 * bytes };
        for user in 1..=3 {
            prompts.keep(prefix(&prompt(user, 2)));
        }
        assert_eq!((kept(&prompts), prompts.bytes()), (vec![(1, 129), (2, 129), (3, 129)], 3 * bytes));
        let find = |prompts: &Prompts, tokens: &[u32]| prompts.find(tokens, 1).map(|found| found.len());
        assert_eq!(find(&prompts, &prompt(2, 5)), Some(1 + 2 * BLOCK));
        assert_eq!(find(&prompts, &prompt(2, 1)), Some(1 + BLOCK));
        assert_eq!(find(&prompts, &[prompt(2, 1), vec![9; BLOCK]].concat()), Some(1 + BLOCK));
        assert_eq!(find(&prompts, &prompt(2, 1)[..BLOCK]), None, "less than a block");
        assert_eq!(find(&prompts, &prompt(4, 2)), None);
        // A shorter prompt makes the longer one the last used; a longer one replaces it.
        prompts.keep(prefix(&prompt(1, 1)));
        assert_eq!(kept(&prompts), [(2, 129), (3, 129), (1, 129)]);
        prompts.keep(prefix(&prompt(2, 3)));
        assert_eq!(kept(&prompts), [(1, 129), (2, 193)], "the oldest went for want of room");
        prompts.keep(prefix(&prompt(5, 9)));
        assert_eq!((kept(&prompts), prompts.bytes()), (vec![], 0), "one that is larger than the room is not kept");
    }
}
