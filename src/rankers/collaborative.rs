//! Collaborative filtering: vectors of items and users from who took what, learnt from the training
//! windows alone.
//!
//! Three models: [`als`] (implicit-feedback least squares), [`bpr`] (pairwise ranking) and
//! [`sasrec`] (self-attention over the history). All rank after any history of catalogue items, so
//! that users unseen in training are ranked too. What no training window holds is unknown to them:
//! its vector is zero and its score minus infinity.

use std::fmt::{self, Display};
use std::ops::{AddAssign, Mul};
use std::str::FromStr;
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;

use super::{Interactions, Settings, Vectors, als, bpr, sasrec};
use crate::core::panic::DeviceGuard;
use crate::data::Corpus;
use crate::{Context, Error, Result};

/// A way to learn collaborative vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Alternating least squares on implicit feedback (Hu, Koren, Volinsky 2008).
    Als,
    /// Matrix factorisation by Bayesian personalised ranking (Rendle et al. 2009).
    Bpr,
    /// Self-attentive sequential recommendation (Kang, McAuley 2018).
    Sasrec,
}

impl Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Als => "als",
            Self::Bpr => "bpr",
            Self::Sasrec => "sasrec",
        })
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "als" => Ok(Self::Als),
            "bpr" => Ok(Self::Bpr),
            "sasrec" => Ok(Self::Sasrec),
            _ => Err(Error::usage(format!("collaborative method `{text}`: use als, bpr or sasrec"))),
        }
    }
}

/// What a method learnt, as a ranker.
#[derive(Clone, Debug)]
pub struct Model<B: Backend> {
    pub(crate) scorer: Scorer<B>,
    pub(crate) interactions: Arc<Interactions>,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // There is one, for as long as the model is used.
pub(crate) enum Scorer<B: Backend> {
    Als(als::Als),
    Bpr(bpr::Factors),
    Sasrec(sasrec::SasRec<B>),
}

/// A model and how it came about.
#[derive(Clone, Debug)]
pub struct Trained<B: Backend> {
    /// The model, of the best epoch.
    pub model: Model<B>,
    /// ALS: its objective at the end; the others: the mean loss of the kept epoch's batches.
    pub loss: f64,
    /// The epoch (ALS: iteration) kept, from 1.
    pub epoch: usize,
}

/// Judges a model after an epoch, the higher the better; `None` where there is no validation
/// window.
pub type Validate<'a, M> = &'a mut dyn FnMut(&M) -> Result<Option<f64>>;

/// Learns from a corpus's training windows. BPR and SASRec keep the epoch that `validate` finds
/// best; where it returns `None` (no validation window) they keep the last. `say` gets a line an
/// epoch.
///
/// * `device`: one that tracks gradients.
///
/// # Errors
/// A corpus without training windows; a loss that is not finite; what `validate` returns.
pub fn train<B: AutodiffBackend>(
    settings: &Settings,
    corpus: &Corpus,
    device: &B::Device,
    validate: Validate<Model<B::InnerBackend>>,
    say: &mut dyn FnMut(&str),
) -> Result<Trained<B::InnerBackend>> {
    let interactions = Arc::new(Interactions::of_training(corpus)?);
    let model = |scorer| Model { scorer, interactions: interactions.clone() };
    let trained = match settings {
        Settings::Als(config) => {
            let (als, loss) = als::train(config, &interactions, say)?;
            Trained { model: model(Scorer::Als(als)), loss, epoch: config.iterations }
        }
        Settings::Bpr(config) => {
            let mut validate = |factors: &bpr::Factors| validate(&model(Scorer::Bpr(factors.clone())));
            let kept = bpr::train::<B>(config, &interactions, device, &mut validate, say)?;
            Trained { model: model(Scorer::Bpr(kept.model)), loss: kept.loss, epoch: kept.epoch }
        }
        Settings::Sasrec(config) => {
            let mut validate =
                |sasrec: &sasrec::SasRec<B::InnerBackend>| validate(&model(Scorer::Sasrec(sasrec.clone())));
            let kept = sasrec::train::<B>(config, &interactions, device, &mut validate, say)?;
            Trained { model: model(Scorer::Sasrec(kept.model)), loss: kept.loss, epoch: kept.epoch }
        }
    };
    Ok(trained)
}

impl<B: Backend> Model<B> {
    /// The training interactions.
    pub fn interactions(&self) -> &Interactions {
        &self.interactions
    }

    /// A score for each history (dense item indices, oldest first) and each item of the catalogue,
    /// `[histories, items]`, row after row. Items of no training window score minus infinity; in a
    /// history they are passed over.
    ///
    /// ALS solves for the user's vector given the history, BPR takes the mean of the history's item
    /// vectors, SASRec its state after the history.
    pub fn scores(&self, histories: &[&[u32]]) -> Vec<f32> {
        let known = &self.interactions.items;
        let histories: Vec<Vec<u32>> = histories.iter().map(|history| self.interactions.known(history)).collect();
        let scores = match &self.scorer {
            Scorer::Als(als) => als.scores(&histories),
            Scorer::Bpr(factors) => factors.scores(&histories),
            Scorer::Sasrec(sasrec) => sasrec.scores(&histories),
        };
        let catalogue = self.interactions.catalogue();
        let mut all = vec![f32::NEG_INFINITY; histories.len() * catalogue];
        for (row, scores) in all.chunks_exact_mut(catalogue).zip(scores.chunks_exact(known.len())) {
            for (&item, &score) in known.iter().zip(scores) {
                row[item as usize] = score;
            }
        }
        all
    }

    /// The vectors of all items and users of the corpus. A user's is the one that ALS and BPR
    /// learnt, and for SASRec its state after the user's last training interaction.
    pub fn vectors(&self) -> Vectors {
        let log = &self.interactions;
        let (dim, items, users) = match &self.scorer {
            Scorer::Als(als) => (als.dim, als.items.iter().map(|&v| v as f32).collect(), als.user_vectors()),
            Scorer::Bpr(factors) => (factors.dim, factors.items.clone(), factors.users.clone()),
            Scorer::Sasrec(sasrec) => {
                let histories: Vec<Vec<u32>> = log.last_runs().into_iter().map(<[u32]>::to_vec).collect();
                (sasrec.dim(), sasrec.item_vectors(), sasrec.states(&histories))
            }
        };
        let mut vectors = Vectors::zeros(log.catalogue(), log.users, dim);
        for (&item, vector) in log.items.iter().zip(items.chunks_exact(dim)) {
            vectors.items[item as usize * dim..][..dim].copy_from_slice(vector);
        }
        for ((row, vector), run) in
            vectors.users.chunks_exact_mut(dim).zip(users.chunks_exact(dim)).zip(log.last_runs())
        {
            if !run.is_empty() {
                row.copy_from_slice(vector);
            }
        }
        vectors
    }
}

/// What [`keep_best`] kept.
pub(crate) struct Kept<M> {
    pub(crate) model: M,
    pub(crate) loss: f64,
    pub(crate) epoch: usize,
}

/// Runs epochs (from 0) until `patience` of them in a row have not raised what `validate` measures;
/// keeps the best, or the last where there is nothing to validate on.
pub(crate) fn keep_best<M>(
    epochs: usize,
    patience: usize,
    mut train_epoch: impl FnMut(usize) -> Result<(M, f64)>,
    finite: impl Fn(&M) -> bool,
    validate: &mut dyn FnMut(&M) -> Result<Option<f64>>,
    say: &mut dyn FnMut(&str),
) -> Result<Kept<M>> {
    let mut best: Option<(Kept<M>, f64)> = None;
    for epoch in 1..=epochs {
        let started = std::time::Instant::now();
        let (model, loss) = train_epoch(epoch - 1)?;
        if let Some(panic) = DeviceGuard::current().panic() {
            return Err(Error::device(format!("epoch {epoch}: a thread of the device died ({panic})")));
        }
        // The loss is of the batches before the last step: that one may have spoilt the model yet.
        if !loss.is_finite() || !finite(&model) {
            let what =
                if loss.is_finite() { "a vector is not finite".to_string() } else { format!("the loss is {loss}") };
            return Err(Error::failed(format!(
                "epoch {epoch}: {what}; try a lower learning_rate (--set learning_rate=…)"
            )));
        }
        let found = validate(&model).context(format_args!("epoch {epoch}"))?;
        let metric = found.map_or(String::new(), |ndcg| format!("  valid NDCG@10 {ndcg:.4}"));
        say(&format!("epoch {epoch}  loss {loss:.4}{metric}  {:.1} s", started.elapsed().as_secs_f64()));
        // Without a metric every epoch replaces the one before.
        if best.as_ref().is_none_or(|(_, known)| found.is_none_or(|found| found > *known)) {
            best = Some((Kept { model, loss, epoch }, found.unwrap_or(f64::NEG_INFINITY)));
        } else if best.as_ref().is_some_and(|(kept, _)| epoch - kept.epoch >= patience) {
            break;
        }
    }
    best.map(|(kept, _)| kept).ok_or_else(|| Error::usage("epochs is 0, it must be at least 1"))
}

/// Fills `count` rows of `width` values, on all cores. No row sees another, so the numbers do not
/// depend on the threads.
pub(crate) fn fill_rows<T: Clone + Default + Send>(
    count: usize,
    width: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let mut rows = vec![T::default(); count * width];
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = count.div_ceil(threads).max(1);
    let fill = &fill;
    std::thread::scope(|scope| {
        for (part, chunk) in rows.chunks_mut(share * width).enumerate() {
            scope.spawn(move || {
                for (index, row) in chunk.chunks_exact_mut(width).enumerate() {
                    fill(part * share + index, row);
                }
            });
        }
    });
    rows
}

/// The dot product of equally long vectors, in eight sums that the compiler can keep in SIMD
/// registers.
pub(crate) fn dot<T: Copy + Default + AddAssign + Mul<Output = T>>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::default(); 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += a * b;
    }
    let mut total = T::default();
    sums.into_iter().for_each(|sum| total += sum);
    total
}

/// Draws from N(0, deviation²), the same on every backend (Box and Muller).
pub(crate) fn normal(rng: &mut impl rand::Rng, count: usize, deviation: f64) -> Vec<f32> {
    let draw = |_| {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos() * deviation) as f32
    };
    (0..count).map(draw).collect()
}

/// `[rows]` of indices on a device.
pub(crate) fn indices<B: Backend>(values: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let ints: Vec<i32> = values.iter().map(|&v| v as i32).collect();
    Tensor::from_data(TensorData::new(ints, [values.len()]), device)
}

/// A tensor's values on the host, row after row.
pub(crate) fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().expect("converted to f32 above")
}
