//! Training samples by index, laid out when a step needs them.

use rand::SeedableRng;
use rand::seq::SliceRandom;

use crate::Result;
use crate::batch::Example;

/// The samples of a run. Both functions must depend on their argument alone: a resumed run calls
/// them again.
pub struct Samples {
    /// Number of optimiser steps of every epoch.
    pub steps_per_epoch: usize,
    /// The samples of each optimiser step of an epoch (from 0), `steps_per_epoch` lists.
    pub epoch: Box<dyn Fn(usize) -> Vec<Vec<usize>>>,
    /// Returns the examples of a sample. Examples whose prompts begin with the same tokens run as
    /// one tree.
    pub examples: Box<dyn Fn(usize) -> Result<Vec<Example>>>,
}

impl Samples {
    /// Makes an epoch of `count` samples, `batch_size` an optimiser step.
    ///
    /// * `shuffle`: whether each epoch has a new seeded order; else the samples keep their order.
    pub fn new(
        count: usize,
        batch_size: usize,
        shuffle: bool,
        seed: u64,
        examples: impl Fn(usize) -> Result<Vec<Example>> + 'static,
    ) -> Self {
        let epoch = move |epoch: usize| {
            let mut order: Vec<usize> = (0..count).collect();
            if shuffle {
                let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(epoch as u64 + 1);
                order.shuffle(&mut rng);
            }
            order.chunks(batch_size).map(<[usize]>::to_vec).collect()
        };
        Self { steps_per_epoch: count.div_ceil(batch_size), epoch: Box::new(epoch), examples: Box::new(examples) }
    }
}
