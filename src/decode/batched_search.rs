//! Searches over many prompts: batches by token budget, on one device or on several.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;

use burn::prelude::*;

use super::{
    ItemFilter, PrefixMass, Query, RankedItem, TOKENS_PER_BEAM, check_log_probs, common_prefix, prompts_per_pass,
    search,
};
use crate::config::DecodeConfig;
use crate::core::panic::{DeviceGuard, catch};
use crate::model::ItemLanguageModel;
use crate::text::Catalogue;
use crate::{Error, Result};

/// Prompts that can be searched any number of times.
#[derive(Debug)]
pub struct BatchedSearch<B: Backend> {
    prompts: Vec<Vec<u32>>,
    /// Number of tokens with which all prompts begin.
    prefix_len: usize,
    /// `[devices]`: a model with the keys and values of the common prefix.
    models: Vec<ItemLanguageModel<B>>,
}

impl<B: Backend> BatchedSearch<B> {
    /// Runs the common prefix of `prompts` once.
    ///
    /// * `models`: one, or copies of it on several devices, which share the prompts
    ///   ([`ItemLanguageModel::clone_to_device`]).
    pub fn new(models: &[ItemLanguageModel<B>], prompts: Vec<Vec<u32>>) -> Self {
        let prefix = common_prefix(&prompts);
        let models = models.iter().map(|model| model.clone().with_prefix_cache(prefix)).collect();
        let prefix_len = prefix.len();
        Self { prompts, prefix_len, models }
    }

    /// Returns the items that the search finds for each prompt, the best first; `None` if
    /// `go_on(done, total)` returned false.
    ///
    /// Prompts run together by token budget, ordered by length. The batches are the same on one
    /// device and on several, each of which has a thread that takes the next one.
    ///
    /// * `prior`: the prior of the prompt with this index, if there is one.
    /// * `filter`: the items that may answer the prompt with this index; all for `None`.
    ///
    /// # Errors
    /// A log-probability that is NaN; a device that died.
    pub fn run<'a>(
        &self,
        catalogue: &Catalogue,
        prior: &(dyn Fn(usize) -> Option<PrefixMass<'a>> + Sync),
        filter: &(dyn Fn(usize) -> Option<ItemFilter> + Sync),
        decode: &DecodeConfig,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<Vec<Vec<RankedItem>>>> {
        let batches = self.batches(decode.beams);
        let (total, next, done, stop) =
            (self.prompts.len(), AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let work = |model: &ItemLanguageModel<B>, go_on: &mut dyn FnMut(usize, usize) -> bool| {
            let mut ranked = Vec::new();
            while !stop.load(Relaxed)
                && let Some(batch) = batches.get(next.fetch_add(1, Relaxed))
            {
                if !go_on(done.load(Relaxed), total) {
                    stop.store(true, Relaxed);
                    break;
                }
                let inputs: Vec<_> = batch.iter().map(|&n| (&self.prompts[n], prior(n), filter(n))).collect();
                let queries = inputs.iter().map(|(prompt, prior, filter)| Query {
                    prompt,
                    prior: prior.as_ref(),
                    filter: filter.as_ref(),
                });
                let queries: Vec<Query> = queries.collect();
                let lists = search(model, catalogue, &queries, decode, &model.device())
                    .and_then(|lists| {
                        check_log_probs(lists.iter().flatten().map(|ranked| ranked.log_prob))?;
                        Ok(lists)
                    })
                    .inspect_err(|_| stop.store(true, Relaxed))?;
                ranked.extend(batch.iter().copied().zip(lists));
                done.fetch_add(batch.len(), Relaxed);
            }
            Ok::<_, Error>(ranked)
        };
        let Some((first, others)) = self.models.split_first() else {
            return Err(Error::usage("there is no model to rank with"));
        };
        let guard = DeviceGuard::current();
        let parts = std::thread::scope(|scope| {
            // A panic on one device ends the work of the others.
            let (work, guard, stop) = (&work, &guard, &stop);
            let others = others.iter().map(|model| {
                scope.spawn(move || {
                    let done = catch(|| guard.scope(|| work(model, &mut |_, _| true)));
                    done.inspect_err(|_| stop.store(true, Relaxed))
                })
            });
            let others: Vec<_> = others.collect();
            let first = catch(|| work(first, go_on)).inspect_err(|_| stop.store(true, Relaxed));
            // Every thread is joined before an error returns: the scope panics for a thread that
            // nobody joined, with a worse message.
            let others: Vec<_> = others.into_iter().map(ScopedJoinHandle::join).collect();
            let others = others.into_iter().map(|part| match part {
                Ok(Ok(part)) => part,
                Ok(Err(panic)) => panic.resume(),
                Err(panic) => resume_unwind(panic),
            });
            let first = first.unwrap_or_else(|panic| panic.resume());
            std::iter::once(first).chain(others).collect::<Result<Vec<_>>>()
        })?;
        if stop.load(Relaxed) {
            return Ok(None);
        }
        go_on(total, total);
        let mut ranked: Vec<(usize, Vec<RankedItem>)> = parts.into_iter().flatten().collect();
        ranked.sort_by_key(|&(prompt, _)| prompt);
        Ok(Some(ranked.into_iter().map(|(_, ranked)| ranked).collect()))
    }

    /// Returns the indices of the prompts that run together.
    fn batches(&self, beams: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.prompts.len()).collect();
        order.sort_by_key(|&n| std::cmp::Reverse(self.prompts[n].len()));
        let mut batches = Vec::new();
        let mut left = order.as_slice();
        while let Some(&longest) = left.first() {
            let longest = self.prompts[longest].len() - self.prefix_len + TOKENS_PER_BEAM * beams;
            let (now, later) = left.split_at(left.len().min(prompts_per_pass(longest)));
            batches.push(now.to_vec());
            left = later;
        }
        batches
    }
}
