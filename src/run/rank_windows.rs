//! The ranking of a split's windows: `evaluate`, and validation while training.

use super::prompt_context::PromptContext;
use crate::config::DecodeConfig;
use crate::data::{Split, Window};
use crate::decode::{BatchedSearch, ItemFilter, RankedItem, TriePrior};
use crate::device::Concrete;
use crate::evaluate::{Outcome, RankedList, RankedSplit};
use crate::model::ItemLanguageModel;
use crate::{Context, Result};

/// Ranks `windows` of `split`, each with its index in the split; `None` if `go_on(done, total)`
/// returned false.
///
/// * `models`: one, or copies of it on several devices, which share the windows
///   ([`ItemLanguageModel::clone_to_device`]).
///
/// # Errors
/// Those of `WindowRanking::new` and `WindowRanking::rank`.
pub fn rank_windows(
    models: &[ItemLanguageModel<Concrete>],
    context: &PromptContext,
    split: Split,
    windows: &[(u32, Window)],
    decode: &DecodeConfig,
    go_on: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<RankedSplit>> {
    WindowRanking::new(models, context, split, windows)?.rank(context, decode, go_on)
}

/// Windows whose prompts are tokenised, which can be ranked any number of times.
pub(crate) struct WindowRanking<'a> {
    split: Split,
    /// Windows, each with its index in the split.
    windows: &'a [(u32, Window)],
    /// Number of windows whose oldest items do not fit into the prompt.
    pub shortened: usize,
    search: BatchedSearch<Concrete>,
}

impl<'a> WindowRanking<'a> {
    /// Tokenises the windows' prompts and runs their common prefix.
    ///
    /// # Errors
    /// A prompt that leaves no room for the longest title.
    pub fn new(
        models: &[ItemLanguageModel<Concrete>],
        context: &PromptContext,
        split: Split,
        windows: &'a [(u32, Window)],
    ) -> Result<Self> {
        let (mut prompts, mut shortened) = (Vec::with_capacity(windows.len()), 0);
        for (index, window) in windows {
            let tokens = context.window_tokens(&context.prompt, window);
            let (tokens, dropped) = tokens.context(context.window_place(split, *index, window))?;
            prompts.push(tokens);
            shortened += usize::from(dropped > 0);
        }
        Ok(Self { split, windows, shortened, search: BatchedSearch::new(models, prompts) })
    }

    /// Ranks the windows, with the context's prior if it has one; `None` if `go_on(done, total)`
    /// returned false. Outcomes and lists are in the windows' order.
    ///
    /// * `context`: the context of the prompts; its prior's weight may differ.
    ///
    /// # Errors
    /// Those of [`BatchedSearch::run`].
    pub fn rank(
        &self,
        context: &PromptContext,
        decode: &DecodeConfig,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<RankedSplit>> {
        let corpus = &context.corpus;
        let prior = |n: usize| {
            context
                .prior
                .as_ref()
                .map(|prior| TriePrior::mass_for_window(prior, corpus, self.split, &self.windows[n].1))
        };
        let history = |n: usize| corpus.history(&self.windows[n].1);
        let filter =
            |n| decode.exclude_history.then(|| ItemFilter::without_titles(&context.catalogue.trie, history(n)));
        let Some(ranked) = self.search.run(&context.catalogue, &prior, &filter, decode, go_on)? else {
            return Ok(None);
        };
        let cold = corpus.cold_items(self.split);
        let outcome = |(&(index, window), ranked): (&(u32, Window), &Vec<RankedItem>)| {
            let target = corpus.target(&window);
            let rank = context.rank_of(target, ranked.iter().map(|ranked| ranked.leaf));
            Outcome { window: index, user: window.user, target, cold: cold[target as usize], rank }
        };
        let outcomes = self.windows.iter().zip(&ranked).map(outcome).collect();
        let first_item = |ranked: &RankedItem| context.catalogue.trie.items(ranked.leaf).next();
        let list = |ranked: &Vec<RankedItem>| {
            let (items, scores) = ranked.iter().filter_map(|item| Some((first_item(item)?, item.score))).unzip();
            RankedList { items, scores }
        };
        Ok(Some(RankedSplit { outcomes, lists: ranked.iter().map(list).collect() }))
    }
}
