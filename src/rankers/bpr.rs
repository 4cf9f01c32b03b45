//! Matrix factorisation by Bayesian personalised ranking.
//!
//! Paper: Rendle et al., *BPR: Bayesian Personalized Ranking from Implicit Feedback*, UAI 2009
//! (BPR-MF), without item biases. Each training interaction (u, i) meets one item j that the user
//! has not, drawn evenly:
//!
//! mean of −ln σ(x_u·y_i − x_u·y_j) + λ (|x_u|² + |y_i|² + |y_j|²)
//!
//! The paper steps by SGD on single triples; here Adam steps on batches of them. A user it has not
//! seen is the mean of the item vectors of the history.

use std::sync::Arc;

use burn::DispatchDevice;
use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::log_sigmoid;
use burn::tensor::backend::AutodiffBackend;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::registry::{Entry, Method};
use super::settings::{check_number, check_whole, read};
use super::training::{BestEpoch, EpochLearner, EpochOptions, dot, fill_rows, normal, train_epochs};
use super::vector_ranker::{SavedModel, VectorTraining};
use super::{Interactions, VectorMethod, VectorModel};
use crate::device::Concrete;
use crate::tensor::to_vec;
use crate::{Context, Result};

pub(super) const ENTRY: Entry = Entry {
    name: "bpr",
    about: "vectors by Bayesian personalised ranking; a user's is the mean of the history's items",
    method: |table| {
        let config: BprConfig = read("bpr", table)?;
        check_whole("dim", config.dim, 4096)?;
        check_whole("batch_size", config.batch_size, 1 << 24)?;
        check_whole("epochs", config.epochs, 1 << 20)?;
        check_whole("patience", config.patience, 1 << 20)?;
        check_number("learning_rate", config.learning_rate, 0.0, 1e3)?;
        check_number("regularization", config.regularization, 0.0, 1e9)?;
        Ok(Method::Vectors(Box::new(config)))
    },
};

/// Settings of BPR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BprConfig {
    /// Seed of the first vectors, of the order and of the negatives.
    pub seed: u64,
    /// Length of a vector.
    pub dim: usize,
    /// Adam's learning rate.
    pub learning_rate: f64,
    /// λ, the weight of the squared norms.
    pub regularization: f64,
    /// Triples of one optimiser step.
    pub batch_size: usize,
    /// Passes over the interactions, at most.
    pub epochs: usize,
    /// Epochs without a better validation NDCG@10 before it stops.
    pub patience: usize,
}

impl Default for BprConfig {
    fn default() -> Self {
        Self {
            seed: 42,
            dim: 128,
            learning_rate: 1e-3,
            regularization: 1e-3,
            batch_size: 1024,
            epochs: 200,
            patience: 10,
        }
    }
}

/// The two factors as burn parameters.
#[derive(Module, Debug)]
pub struct Bpr<B: Backend> {
    /// `[users, dim]`.
    pub users: Param<Tensor<B, 2>>,
    /// `[items, dim]`.
    pub items: Param<Tensor<B, 2>>,
}

impl BprConfig {
    /// Draws vectors from N(0, 0.1²).
    pub fn init<B: Backend>(&self, users: usize, items: usize, device: &B::Device) -> Bpr<B> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut matrix = |rows: usize| {
            let values = normal(&mut rng, rows * self.dim, 0.1);
            Param::from_tensor(Tensor::from_data(TensorData::new(values, [rows, self.dim]), device))
        };
        Bpr { users: matrix(users), items: matrix(items) }
    }
}

impl<B: Backend> Bpr<B> {
    /// Returns the mean loss of triples of a user, an item that the user took and one that the user
    /// did not take.
    ///
    /// # Shapes
    /// `users`, `taken`, `others`: `[triples]`. Returns `[1]`.
    pub fn loss(&self, users: &[u32], taken: &[u32], others: &[u32], regularization: f64) -> Tensor<B, 1> {
        let device = self.users.val().device();
        let select = |of: &Param<Tensor<B, 2>>, rows: &[u32]| {
            let rows = crate::tensor::indices(rows.iter().map(|&row| row as usize), of.dims()[0], &device);
            of.val().select(0, rows)
        };
        let (user, taken, other) =
            (select(&self.users, users), select(&self.items, taken), select(&self.items, others));
        let margin = (user.clone() * (taken.clone() - other.clone())).sum_dim(1);
        let squares = user.square().sum() + taken.square().sum() + other.square().sum();
        let penalty = squares.mul_scalar(regularization / users.len() as f64);
        log_sigmoid(margin).mean().neg() + penalty
    }
}

/// BPR's trained vectors, in the host's memory.
#[derive(Clone, Debug)]
pub struct Factors {
    /// Length of a vector.
    pub dim: usize,
    /// `[rows, dim]`: the items' vectors.
    pub items: Vec<f32>,
    /// `[users, dim]`: the users' vectors.
    pub users: Vec<f32>,
}

impl VectorModel for Factors {
    /// Returns the product of the mean of the history's item vectors with each item's vector.
    fn scores(&self, histories: &[Vec<u32>]) -> Vec<f32> {
        fill_rows(histories.len(), self.items.len() / self.dim, |h, row: &mut [f32]| {
            let mut mean = vec![0f32; self.dim];
            for &item in &histories[h] {
                let vector = &self.items[item as usize * self.dim..][..self.dim];
                mean.iter_mut().zip(vector).for_each(|(m, v)| *m += v / histories[h].len() as f32);
            }
            for (score, item) in row.iter_mut().zip(self.items.chunks_exact(self.dim)) {
                *score = dot(&mean, item);
            }
        })
    }

    fn item_vectors(&self) -> Vec<f32> {
        self.items.clone()
    }

    fn user_vectors(&self, _interactions: &Interactions) -> Vec<f32> {
        self.users.clone()
    }
}

impl VectorMethod for BprConfig {
    fn dim(&self) -> usize {
        self.dim
    }

    fn settings_json(&self) -> Result<String> {
        serde_json::to_string(self).context("settings of bpr")
    }

    fn train(&self, training: &mut VectorTraining) -> Result<BestEpoch<Arc<dyn VectorModel>>> {
        let validate = &mut *training.validate;
        let learner = BprLearner::new(self, training.interactions);
        let device = DispatchDevice::autodiff(training.device.clone());
        let module: Bpr<Concrete> = self.init(training.interactions.users, learner.items, &device);
        let options = EpochOptions {
            epochs: self.epochs,
            patience: self.patience,
            learning_rate: self.learning_rate,
            weight_decay: 0.0,
            metrics: training.metrics.clone(),
            validate: &mut |factors: &Factors| validate(Arc::new(factors.clone())),
            say: &mut *training.say,
        };
        let best = train_epochs(learner, module, options)?;
        Ok(best.map(|factors| Arc::new(factors) as Arc<dyn VectorModel>))
    }

    fn restore(&self, saved: SavedModel) -> Result<Arc<dyn VectorModel>> {
        Ok(Arc::new(Factors { dim: self.dim, items: saved.items, users: saved.users }))
    }
}

/// Training of BPR on interactions.
struct BprLearner<'a> {
    config: &'a BprConfig,
    /// For each user the items that the user took, ascending, with their number.
    taken: Vec<Vec<(u32, u32)>>,
    /// Every interaction as its user and item.
    pairs: Vec<(u32, u32)>,
    items: usize,
}

impl<'a> BprLearner<'a> {
    fn new(config: &'a BprConfig, interactions: &Interactions) -> Self {
        let sequences = interactions.sequences.iter();
        let pairs = sequences.flat_map(|of| of.rows.iter().map(move |&item| (of.user, item))).collect();
        Self { config, taken: interactions.by_user(), pairs, items: interactions.items.len() }
    }
}

impl<B: AutodiffBackend> EpochLearner<B> for BprLearner<'_> {
    type Module = Bpr<B>;
    /// Triples of a user, an item that the user took and one that the user did not take.
    type Batch = Vec<[u32; 3]>;
    type Model = Factors;

    fn batches(&self, epoch: usize) -> Vec<Vec<[u32; 3]>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(epoch as u64 + 1);
        let mut triples: Vec<[u32; 3]> = Vec::with_capacity(self.pairs.len());
        for &(user, item) in &self.pairs {
            let other = other_item(&self.taken[user as usize], self.items, &mut rng);
            triples.extend(other.map(|other| [user, item, other]));
        }
        triples.shuffle(&mut rng);
        triples.chunks(self.config.batch_size).map(<[_]>::to_vec).collect()
    }

    fn loss(&self, module: &Bpr<B>, _number: usize, batch: &Vec<[u32; 3]>) -> (Tensor<B, 1>, usize) {
        let column = |c: usize| batch.iter().map(|triple| triple[c]).collect::<Vec<u32>>();
        (module.loss(&column(0), &column(1), &column(2), self.config.regularization), batch.len())
    }

    fn model(&self, module: Bpr<B::InnerBackend>) -> Result<Factors> {
        let (items, users) = (to_vec(module.items.val(), "items")?, to_vec(module.users.val(), "users")?);
        Ok(Factors { dim: self.config.dim, items, users })
    }

    fn numbers(&self, model: &Factors) -> Result<Vec<f32>> {
        Ok([&model.items[..], &model.users].concat())
    }
}

/// Draws evenly an item that is not among `taken` (ascending); none where the user has all of them.
pub(crate) fn other_item(taken: &[(u32, u32)], items: usize, rng: &mut ChaCha8Rng) -> Option<u32> {
    let free = items - taken.len();
    if free == 0 {
        return None;
    }
    // The n-th free item: each taken one at or before it pushes it on.
    let mut other = rng.random_range(0..free as u32);
    for &(item, _) in taken {
        if item > other {
            break;
        }
        other += 1;
    }
    Some(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_items_are_all_that_are_not_taken_evenly() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut drawn = [0; 7];
        for _ in 0..7000 {
            drawn[other_item(&[(0, 1), (3, 2), (4, 1)], 7, &mut rng).unwrap() as usize] += 1;
        }
        for (item, count) in drawn.into_iter().enumerate() {
            let expected = if [0, 3, 4].contains(&item) { 0..1 } else { 1600..1900 };
            assert!(expected.contains(&count), "item {item}: {count}");
        }
        assert_eq!(other_item(&[(0, 1), (1, 1)], 2, &mut rng), None);
    }
}
