//! Training of SASRec.

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{SasRec, SasRecConfig, SasRecLoss, Sequences};
use crate::Result;
use crate::rankers::Interactions;
use crate::rankers::bpr::other_item;
use crate::rankers::training::{Kept, host, keep_best};
use crate::tensor::AUTODIFF;
use crate::train::adamw;

/// Measures a model on the validation windows; `None` where there are none.
type Validate<'a, M> = &'a mut dyn FnMut(&M) -> Result<Option<f64>>;

/// Trains with early stopping.
pub(crate) fn train<B: AutodiffBackend>(
    config: &SasRecConfig,
    interactions: &Interactions,
    device: &B::Device,
    validate: Validate<SasRec<B::InnerBackend>>,
    say: &mut dyn FnMut(&str),
) -> Result<Kept<SasRec<B::InnerBackend>>> {
    let taken = interactions.by_user();
    let items = interactions.items.len();
    let mut model: SasRec<B> = config.init(items, device);
    let mut optimizer = adamw::<SasRec<B>, B>(config.weight_decay);
    let mut steps = 0u64;
    let epoch = |epoch: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(epoch as u64 + 1);
        let mut rows = cut(interactions, config.max_len, &mut rng);
        rows.shuffle(&mut rng);
        let (mut sum, mut count) = (0.0, 0);
        for batch in rows.chunks(config.batch_size) {
            let mut sequences = Sequences::default();
            for &(user, row) in batch {
                let Some((_, inputs)) = row.split_last() else { continue };
                sequences.inputs.push(inputs.to_vec());
                sequences.targets.push(row[1..].to_vec());
                if config.loss == SasRecLoss::Bce {
                    // A user who has taken all items gets any.
                    let taken = &taken[user as usize];
                    let mut other =
                        || other_item(taken, items, &mut rng).unwrap_or_else(|| rng.random_range(0..items as u32));
                    sequences.negatives.push(inputs.iter().map(|_| other()).collect());
                }
            }
            let predictions = sequences.inputs.iter().map(Vec::len).sum::<usize>();
            let _one_graph = AUTODIFF.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            B::seed(device, config.seed.wrapping_add(steps).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let loss = model.loss(&sequences, config.loss);
            sum += loss.clone().into_scalar().elem::<f64>() * predictions as f64;
            count += predictions;
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(config.learning_rate, model.clone(), gradients);
            steps += 1;
        }
        Ok((model.valid(), sum / count.max(1) as f64))
    };
    // A state depends on every parameter but the vectors of other items.
    let longest: Vec<u32> = vec![0; config.max_len];
    let finite = |model: &SasRec<B::InnerBackend>| {
        let states = model.states(std::slice::from_ref(&longest));
        host(model.items.val()).iter().chain(&states).all(|v| v.is_finite())
    };
    keep_best(config.epochs, config.patience, epoch, finite, validate, say)
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
        let log = Interactions::of_training(&corpus).unwrap();
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
