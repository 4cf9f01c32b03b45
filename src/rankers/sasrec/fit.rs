//! Training of SASRec.

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{SasRec, SasRecConfig, SasRecLoss, Sequences};
use crate::Result;
use crate::rankers::Interactions;
use crate::rankers::bpr::other_item;
use crate::rankers::text::DenseVectors;
use crate::rankers::training::EpochLearner;
use crate::tensor::to_vec;

/// Training of SASRec on interactions.
pub(super) struct SasRecLearner<'a, B: Backend> {
    config: &'a SasRecConfig,
    interactions: &'a Interactions,
    /// The vectors of all titles of the catalogue, if they take part.
    titles: Option<&'a DenseVectors>,
    /// For each user the rows of the items that the user took, ascending, with their number.
    taken: Vec<Vec<(u32, u32)>>,
    device: B::Device,
}

impl<'a, B: Backend> SasRecLearner<'a, B> {
    /// * `interactions`: only items with training interactions have a row.
    pub(super) fn new(
        config: &'a SasRecConfig,
        interactions: &'a Interactions,
        titles: Option<&'a DenseVectors>,
        device: B::Device,
    ) -> Self {
        Self { config, interactions, titles, taken: interactions.by_user(), device }
    }

    /// Draws the parameters.
    pub(super) fn init(&self) -> SasRec<B> {
        let items = &self.interactions.items;
        let text = self.titles.map(|titles| {
            let values: Vec<f32> = items.iter().flat_map(|&item| titles.vector(item)).copied().collect();
            Tensor::from_data(TensorData::new(values, [items.len(), titles.dim()]), &self.device)
        });
        self.config.init(items.len(), text, &self.device)
    }

    /// Lays out the parts of some users' sequences; draws an item that the user has not taken for
    /// each prediction where the loss needs it.
    fn sequences(&self, parts: &[(u32, &[u32])], rng: &mut ChaCha8Rng) -> Sequences {
        let items = self.interactions.items.len();
        let mut sequences = Sequences::default();
        for &(user, row) in parts {
            let Some((_, inputs)) = row.split_last() else { continue };
            sequences.inputs.push(inputs.to_vec());
            sequences.targets.push(row[1..].to_vec());
            if self.config.loss == SasRecLoss::Bce {
                // A user who has taken all items gets any.
                let taken = &self.taken[user as usize];
                let mut other = || other_item(taken, items, rng).unwrap_or_else(|| rng.random_range(0..items as u32));
                sequences.negatives.push(inputs.iter().map(|_| other()).collect());
            }
        }
        sequences
    }
}

impl<B: AutodiffBackend> EpochLearner<B> for SasRecLearner<'_, B> {
    type Module = SasRec<B>;
    type Batch = Sequences;
    type Model = SasRec<B::InnerBackend>;

    fn batches(&self, epoch: usize) -> Vec<Sequences> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(epoch as u64 + 1);
        let mut parts = cut(self.interactions, self.config.max_len, &mut rng);
        parts.shuffle(&mut rng);
        parts.chunks(self.config.batch_size).map(|parts| self.sequences(parts, &mut rng)).collect()
    }

    fn loss(&self, module: &SasRec<B>, number: usize, batch: &Sequences) -> (Tensor<B, 1>, usize) {
        // Of dropout.
        let step = number as u64 - 1;
        B::seed(&self.device, self.config.seed.wrapping_add(step).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        (module.loss(batch, self.config.loss), batch.inputs.iter().map(Vec::len).sum())
    }

    fn model(&self, module: SasRec<B::InnerBackend>) -> Result<SasRec<B::InnerBackend>> {
        match self.titles {
            None => Ok(module),
            Some(titles) => module.with_all_items(titles, &self.interactions.items),
        }
    }

    /// A state depends on every parameter but the vectors of other items.
    fn numbers(&self, model: &SasRec<B::InnerBackend>) -> Result<Vec<f32>> {
        let longest: Vec<u32> = vec![0; self.config.max_len];
        let mut numbers = to_vec(model.items.val(), "items")?;
        numbers.extend(model.states(std::slice::from_ref(&longest)));
        Ok(numbers)
    }
}

/// Cuts every sequence into parts of 2 to `max_len + 1` items, each of which begins with the last
/// item of the part before, so that all items but a sequence's first are a target once. The first
/// cut of a sequence too long for one part is drawn.
fn cut<'a>(interactions: &'a Interactions, max_len: usize, rng: &mut ChaCha8Rng) -> Vec<(u32, &'a [u32])> {
    let mut rows = Vec::new();
    for sequence in &interactions.sequences {
        let last = sequence.rows.len() - 1;
        let mut start = 0;
        let mut end = if last > max_len { rng.random_range(1..=max_len) } else { last };
        while start < last {
            rows.push((sequence.user, &sequence.rows[start..=end]));
            (start, end) = (end, last.min(end + max_len));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic;
    use crate::rankers::UserSequence;

    #[test]
    fn every_interaction_is_a_target_once_an_epoch() {
        let (corpus, _) = synthetic(3);
        let log = Interactions::from_training(&corpus).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for max_len in [1, 2, 7, 500] {
            let rows = cut(&log, max_len, &mut rng);
            assert!(rows.iter().all(|(_, row)| (2..=max_len + 1).contains(&row.len())));
            let mut rows = rows.into_iter();
            for UserSequence { user, rows: items } in &log.sequences {
                let mut rebuilt = items[..1].to_vec();
                while rebuilt.len() < items.len() {
                    let (owner, row) = rows.next().unwrap();
                    assert_eq!((owner, row.first()), (*user, rebuilt.last()));
                    rebuilt.extend(&row[1..]);
                }
                assert_eq!(&rebuilt, items);
            }
            assert_eq!(rows.next(), None);
        }
    }
}
