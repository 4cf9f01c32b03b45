//! Rankers for tests.

use std::sync::Arc;

use super::registry::{FitContext, vector_method};
use super::training::BestEpoch;
use super::{FittedRanker, Ranker, RankerSpec, VectorRanker};
use crate::data::Corpus;
use crate::device::BackendName;

/// Fits a ranker of the registry without settings on the CPU.
pub(crate) fn fit(name: &str, corpus: &Corpus) -> Arc<dyn Ranker> {
    fit_with(name, &[], corpus)
}

/// Fits a ranker of the registry with settings on the CPU.
pub(crate) fn fit_with(name: &str, sets: &[&str], corpus: &Corpus) -> Arc<dyn Ranker> {
    let spec = RankerSpec::new(name, settings(sets)).unwrap();
    with_context(corpus, |context| spec.fit(context).unwrap().ranker)
}

/// Learns vectors by a method of the registry, with settings, on the CPU; without validation.
pub(crate) fn train_vectors(name: &str, sets: &[&str], corpus: &Corpus) -> BestEpoch<VectorRanker> {
    let method = vector_method(name, settings(sets)).unwrap();
    with_context(corpus, |context| VectorRanker::train(&*method, context).unwrap())
}

/// Makes a table of `key=value` settings.
pub(crate) fn settings(sets: &[&str]) -> toml::Table {
    crate::config::settings_table(&sets.iter().map(|set| set.to_string()).collect::<Vec<_>>()).unwrap()
}

fn with_context<T>(corpus: &Corpus, work: impl FnOnce(&mut FitContext) -> T) -> T {
    let device = || BackendName::Cpu.device();
    work(&mut FitContext { corpus, device: &device, validate: &|_| None, metrics: None, say: &mut |_| {} })
}

/// Fits a mixture of the registry's rankers, its weights by the validation windows.
pub(crate) fn fit_mixture(names: &str, corpus: &Corpus) -> FittedRanker {
    let spec = RankerSpec::new(names, toml::Table::new()).unwrap();
    with_context(corpus, |context| spec.fit(context).unwrap())
}
