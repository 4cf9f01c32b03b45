//! Code that the rankers with trained vectors share: the task of the training loop, and small
//! numerics.

use std::ops::{AddAssign, Mul};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::Interrupter;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::tensor::{AUTODIFF, scalar};
use crate::train::{
    AdamW, LoopOptions, Progress, Score, StepReport, Task, Ui, Validation, adamw, check_finite, clip_grad_norm,
};
use crate::{Context, Error, Result};

/// The model of the best epoch.
#[derive(Clone, Debug)]
pub struct BestEpoch<M> {
    /// The model.
    pub model: M,
    /// The mean loss of the epoch's batches; of ALS the objective at the end.
    pub loss: f64,
    /// The epoch (of ALS the iteration), from 1.
    pub epoch: usize,
}

impl<M> BestEpoch<M> {
    /// Converts the model.
    pub fn map<N>(self, convert: impl FnOnce(M) -> N) -> BestEpoch<N> {
        BestEpoch { model: convert(self.model), loss: self.loss, epoch: self.epoch }
    }
}

/// A method that is trained by epochs of optimiser steps.
pub(crate) trait EpochLearner<B: AutodiffBackend> {
    /// The parameters.
    type Module: AutodiffModule<B>;
    /// The input of one optimiser step.
    type Batch;
    /// The model that an epoch gives.
    type Model;

    /// Returns the batches of an epoch, from 0: a function of the epoch alone.
    fn batches(&self, epoch: usize) -> Vec<Self::Batch>;

    /// Returns the mean loss of a batch, `[1]`, and the number of predictions that it is the mean
    /// of.
    ///
    /// * `number`: the optimiser step, from 1.
    fn loss(&self, module: &Self::Module, number: usize, batch: &Self::Batch) -> (Tensor<B, 1>, usize);

    /// Returns the model that the parameters make.
    ///
    /// # Errors
    /// A device that failed.
    fn model(&self, module: <Self::Module as AutodiffModule<B>>::InnerModule) -> Result<Self::Model>;

    /// Returns numbers of the model that are finite where all its parameters are.
    ///
    /// # Errors
    /// A device that failed.
    fn numbers(&self, model: &Self::Model) -> Result<Vec<f32>>;
}

/// Options of [`train_epochs`].
pub(crate) struct EpochOptions<'a, M> {
    /// Passes over what is learnt from, at most.
    pub epochs: usize,
    /// Epochs in a row without a better score after which it ends.
    pub patience: usize,
    /// AdamW's learning rate.
    pub learning_rate: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// The file that gets a line an optimiser step, if any.
    pub metrics: Option<PathBuf>,
    /// Measures a model on the validation windows, the higher the better; `None` where there are
    /// none.
    pub validate: &'a mut dyn FnMut(&M) -> Result<Option<f64>>,
    /// Gets a line an epoch.
    pub say: &'a mut dyn FnMut(&str),
}

/// Trains in the loop of [`crate::train`]; keeps the epoch with the best validation score, or the
/// last one where there is nothing to validate on.
///
/// # Errors
/// A loss, a gradient or a parameter that is not finite; a device whose thread died; a metrics file
/// that cannot be written; what `options.validate` returns.
pub(crate) fn train_epochs<B: AutodiffBackend, L: EpochLearner<B>>(
    learner: L,
    module: L::Module,
    options: EpochOptions<L::Model>,
) -> Result<BestEpoch<L::Model>> {
    let loop_options = LoopOptions {
        metrics: options.metrics.clone(),
        epochs: options.epochs,
        patience: Some(options.patience),
        checkpoint_steps: None,
        max_steps: None,
        tensorboard: None,
        ui: Ui::None,
        interrupter: Interrupter::new(),
    };
    let mut task = EpochTask {
        steps_per_epoch: learner.batches(0).len(),
        optimizer: adamw(options.weight_decay),
        learner,
        module,
        options,
        loss_sum: 0.0,
        predictions: 0,
        started: Instant::now(),
        candidate: None,
        best: None,
    };
    crate::train::train(&mut task, Progress::default(), &loop_options)?;
    task.best.ok_or_else(|| Error::usage("epochs is 0, it must be at least 1"))
}

/// Advice for a number that is not finite.
const REMEDY: &str = "nothing is written; try a lower learning_rate (option `set` learning_rate=…)";

/// A method's training as a [`Task`] of the training loop.
struct EpochTask<'a, B: AutodiffBackend, L: EpochLearner<B>> {
    learner: L,
    module: L::Module,
    optimizer: AdamW<L::Module, B>,
    options: EpochOptions<'a, L::Model>,
    steps_per_epoch: usize,
    /// The sum of the losses of the epoch's predictions so far.
    loss_sum: f64,
    /// Predictions of the epoch so far.
    predictions: usize,
    /// Start of the epoch.
    started: Instant,
    /// The model of the epoch that has just ended, with its mean loss.
    candidate: Option<(L::Model, f64)>,
    best: Option<BestEpoch<L::Model>>,
}

/// NDCG@10 on the validation windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct ValidNdcg {
    #[serde(rename = "ndcg@10")]
    ndcg_at_10: f64,
}

impl Score for ValidNdcg {
    fn is_better_than(&self, other: &Self) -> bool {
        self.ndcg_at_10 > other.ndcg_at_10
    }

    fn describe(&self) -> String {
        format!("valid NDCG@10 {:.4}", self.ndcg_at_10)
    }

    fn curves(&self) -> Vec<(&'static str, f64)> {
        vec![("NDCG@10", self.ndcg_at_10)]
    }
}

impl<B: AutodiffBackend, L: EpochLearner<B>> Task for EpochTask<'_, B, L> {
    type Work = L::Batch;
    type Score = ValidNdcg;

    fn steps_per_epoch(&self) -> usize {
        self.steps_per_epoch
    }

    fn epoch(&self, epoch: usize) -> Vec<L::Batch> {
        self.learner.batches(epoch)
    }

    fn step(&mut self, number: usize, batch: L::Batch) -> Result<StepReport> {
        let _one_graph = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
        let learning_rate = self.options.learning_rate;
        let (loss, predictions) = self.learner.loss(&self.module, number, &batch);
        let mean = scalar(loss.clone(), "the loss")?;
        check_finite(number, "loss", mean, REMEDY)?;
        let mut gradients = GradientsParams::from_grads(loss.backward(), &self.module);
        // No norm is clipped; the norm is for the guard and the metrics.
        let grad_norm = clip_grad_norm(&self.module, &mut gradients, f64::INFINITY)?;
        check_finite(number, "gradient norm", grad_norm, REMEDY)?;
        self.module = self.optimizer.step(learning_rate, self.module.clone(), gradients);
        self.loss_sum += mean * predictions as f64;
        self.predictions += predictions;
        Ok(StepReport { loss: mean, learning_rate, grad_norm, samples: predictions, ..StepReport::default() })
    }

    fn validate(&mut self, epoch: usize, step: usize) -> Result<Validation<ValidNdcg>> {
        let loss = self.loss_sum / self.predictions.max(1) as f64;
        let model = self.learner.model(self.module.valid())?;
        // The losses are of the parameters before the last step, which may have spoilt them.
        let spoilt = self.learner.numbers(&model)?.into_iter().find(|number| !number.is_finite());
        spoilt.map_or(Ok(()), |number| check_finite(step, "value of a vector", number.into(), REMEDY))?;
        let measured = (self.options.validate)(&model).context(format_args!("epoch {epoch}"))?;
        let score = measured.map(|ndcg_at_10| ValidNdcg { ndcg_at_10 });
        let metric = score.map_or(String::new(), |score| format!("  {}", score.describe()));
        let seconds = self.started.elapsed().as_secs_f64();
        (self.options.say)(&format!("epoch {epoch}  loss {loss:.4}{metric}  {seconds:.1} s"));
        self.candidate = Some((model, loss));
        (self.loss_sum, self.predictions, self.started) = (0.0, 0, Instant::now());
        Ok(score.map_or(Validation::None, Validation::Measured))
    }

    /// Keeps the model in memory at the end of an epoch that is the best so far; without a score
    /// every epoch is.
    fn save(&mut self, progress: &Progress<ValidNdcg>) -> Result<()> {
        if let Some((model, loss)) = self.candidate.take()
            && progress.epochs_since_best == 0
        {
            self.best = Some(BestEpoch { model, loss, epoch: progress.epoch });
        }
        Ok(())
    }
}

/// Fills `count` rows of `width` values, on all cores; returns `[count, width]`. No row sees
/// another, so the numbers do not depend on the threads.
pub(crate) fn fill_rows<T: Clone + Default + Send>(
    count: usize,
    width: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let mut rows = vec![T::default(); count * width];
    rows.par_chunks_exact_mut(width).enumerate().for_each(|(index, row)| fill(index, row));
    rows
}

/// Returns the dot product of equally long vectors, in eight sums that the compiler can keep in
/// SIMD registers.
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

/// Draws `count` values from N(0, deviation²) by Box and Muller's transform: the same on every
/// backend, and the same as those that earlier versions of `itemlm cf` began with.
pub(crate) fn normal(rng: &mut impl rand::Rng, count: usize, deviation: f64) -> Vec<f32> {
    let draw = |_| {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos() * deviation) as f32
    };
    (0..count).map(draw).collect()
}

/// Copies a tensor's values to the host, row after row.
///
/// # Shapes
/// Any.
pub(crate) fn to_host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().expect("converted to f32 above")
}
