//! A session with another catalogue than the one that its run was trained on.

use std::collections::HashMap;
use std::sync::Arc;

use super::prompt_context::PromptContext;
use super::session::Session;
use crate::data::{Corpus, Item};
use crate::decode::TriePrior;
use crate::rankers::{Ranker, Scores};
use crate::text::Catalogue;
use crate::{Error, Result};

/// The numbers of a live catalogue's items: first its own items, in their order, then those items
/// of the training catalogue that it lacks. The latter can stand in a history and are never
/// recommended.
#[derive(Debug)]
pub(crate) struct LiveNumbers {
    /// Number of the catalogue's own items.
    live: usize,
    /// `[items]`: each item's number in the training catalogue; `None` for a new item.
    trained: Vec<Option<u32>>,
    /// `[training items]`: each training item's number here.
    here: Vec<u32>,
}

impl LiveNumbers {
    /// Numbers `items`, whose ids differ, and what `corpus` has besides. Returns all items by
    /// number.
    fn new(corpus: &Corpus, mut items: Vec<Item>) -> (Self, Vec<Item>) {
        let live = items.len();
        let numbers: HashMap<&str, u32> = items.iter().map(|item| item.id.as_str()).zip(0..).collect();
        let known: Vec<Option<u32>> = corpus.items.iter().map(|item| numbers.get(item.id.as_str()).copied()).collect();
        drop(numbers);
        let mut trained = vec![None; live];
        let mut here = Vec::with_capacity(known.len());
        for (old, (number, item)) in (0u32..).zip(known.into_iter().zip(&corpus.items)) {
            let number = number.unwrap_or_else(|| {
                items.push(item.clone());
                trained.push(None);
                items.len() as u32 - 1
            });
            trained[number as usize] = Some(old);
            here.push(number);
        }
        (Self { live, trained, here }, items)
    }

    /// Returns `corpus` with its interactions under the numbers of `self`.
    ///
    /// * `items`: all items by number.
    fn renumber(&self, corpus: &Corpus, items: Vec<Item>) -> Corpus {
        let mut renumbered = corpus.clone();
        renumbered.items = items;
        renumbered.attributes.clear();
        renumbered.interactions.iter_mut().for_each(|item| *item = self.here[*item as usize]);
        renumbered
    }

    /// Returns an item's number in the training catalogue; `None` for a new item.
    pub fn training_number(&self, item: u32) -> Option<u32> {
        self.trained[item as usize]
    }
}

/// A ranker of the training catalogue that ranks a live one. New items score 0.
#[derive(Debug)]
struct LiveRanker {
    ranker: Arc<dyn Ranker>,
    numbers: Arc<LiveNumbers>,
}

impl Ranker for LiveRanker {
    fn items(&self) -> usize {
        self.numbers.live
    }

    fn scores(&self, history: &[u32]) -> Scores {
        let history: Vec<u32> = history.iter().filter_map(|&item| self.numbers.training_number(item)).collect();
        let scores = self.ranker.scores(&history);
        let here = scores.positive().map(|(item, score)| (self.numbers.here[item as usize], score));
        Scores::from_pairs(here.filter(|&(item, _)| (item as usize) < self.numbers.live).collect())
    }

    fn excludes_history(&self) -> bool {
        self.ranker.excludes_history()
    }
}

/// Gives a ranker another catalogue than the one that it was fitted to. Returns the ranker, and the
/// corpus under the numbers of the new catalogue: its items come first, then the training items
/// that it lacks, which have no score.
///
/// # Errors
/// No item; too many.
pub fn rank_live_items(
    ranker: Arc<dyn Ranker>,
    corpus: &Corpus,
    items: Vec<Item>,
) -> Result<(Arc<dyn Ranker>, Corpus)> {
    check(&items, corpus)?;
    let (numbers, items) = LiveNumbers::new(corpus, items);
    let corpus = numbers.renumber(corpus, items);
    Ok((Arc::new(LiveRanker { ranker, numbers: Arc::new(numbers) }), corpus))
}

fn check(items: &[Item], corpus: &Corpus) -> Result<()> {
    match (items.len(), items.len() + corpus.items.len() < u32::MAX as usize) {
        (0, _) => Err(Error::failed("the catalogue is empty: there is no item to recommend")),
        (_, false) => Err(Error::failed("a catalogue holds fewer than 2^32 - 1 items")),
        (_, true) => Ok(()),
    }
}

impl Session {
    /// Returns a session of the same run that recommends `items` in place of the training
    /// catalogue. It shares the model. New items are cold: a prior gives them what its smoothing
    /// gives, and prompts show them by their titles alone. Items of the training catalogue that are
    /// not among `items` can stand in a history and are not recommended.
    ///
    /// * `items`: ids that differ, and titles.
    ///
    /// # Errors
    /// No item; a title that cannot be tokenised; a run whose items are called by another text than
    /// their title; a longest title that leaves no room for a prompt.
    pub fn with_items(&self, items: Vec<Item>) -> Result<Self> {
        let context = &self.context;
        check(&items, &context.corpus)?;
        if self.text_tasks.is_some() {
            return Err(Error::usage("this run writes texts and ranks no items"));
        }
        if context.live.is_some() {
            return Err(Error::usage("give another catalogue to the session of the training catalogue"));
        }
        if let Some(attribute) = self.config.items.attribute() {
            return Err(Error::usage(format!(
                "this run calls items by items.text = {attribute:?}, and a catalogue of ids and titles does not have it"
            )));
        }
        let catalogue = Catalogue::new(&context.tokenizer, items.iter().map(|item| item.title.as_str()))?;
        let (numbers, items) = LiveNumbers::new(&context.corpus, items);
        let corpus = numbers.renumber(&context.corpus, items);
        let numbers = Arc::new(numbers);
        let prior = context.prior.as_ref().map(|prior| {
            let ranker = LiveRanker { ranker: prior.ranker(), numbers: numbers.clone() };
            let live = TriePrior::new(Arc::new(ranker), &catalogue.trie, prior.weights.prior, prior.smoothing);
            live.with_weights(prior.weights)
        });
        let context = PromptContext {
            corpus,
            names: None,
            prompt: context.prompt.clone(),
            tokenizer: context.tokenizer.clone(),
            catalogue,
            prior,
            live: Some(numbers),
            ..*context
        };
        Ok(self.with_context(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, synthetic};
    use crate::rankers::testing::fit;

    #[test]
    fn a_ranker_keeps_its_scores_in_another_catalogue() {
        let (corpus, _) = synthetic(1);
        let ranker = fit("cooccurrence", &corpus);
        let history = corpus.history(&corpus.windows(Split::Test)[3]);
        let expected = ranker.scores(history);
        // Every other item, from the last to the first, and two new ones.
        let new = ["new 1", "new 2"].map(|id| Item { id: id.into(), title: id.into() });
        let kept: Vec<Item> = corpus.items.iter().rev().step_by(2).cloned().collect();
        let items: Vec<Item> = [&new[..1], &kept, &new[1..]].concat();
        let (live, renumbered) = rank_live_items(ranker.clone(), &corpus, items.clone()).unwrap();
        assert_eq!((live.items(), renumbered.items.len()), (items.len(), corpus.items.len() + 2));
        let number = |id: &str| renumbered.items.iter().position(|item| item.id == id).unwrap() as u32;
        let history_here: Vec<u32> = history.iter().map(|&item| number(&corpus.items[item as usize].id)).collect();
        let found = live.scores(&history_here);
        for (item, score) in (0..).zip(expected.to_dense(corpus.items.len())) {
            let here = number(&corpus.items[item as usize].id);
            let expected = if (here as usize) < items.len() { score } else { 0.0 };
            assert_eq!(found.get(here), expected, "item {item}");
        }
        assert_eq!([0, items.len() as u32 - 1].map(|item| found.get(item)), [0.0; 2]);
        assert_eq!(renumbered.cold_items(Split::Test).iter().filter(|cold| !**cold).count(), {
            corpus.cold_items(Split::Test).iter().filter(|cold| !**cold).count()
        });
        assert!(rank_live_items(ranker, &corpus, Vec::new()).is_err());
    }
}
