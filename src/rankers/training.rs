//! What the rankers that learn vectors share: the loop over epochs, and small numerics.

use std::ops::{AddAssign, Mul};
use std::time::Instant;

use burn::prelude::*;
use burn::tensor::TensorData;
use rayon::prelude::*;

use crate::{Context, Error, Result};

/// The model of the best epoch.
#[derive(Clone, Debug)]
pub struct Kept<M> {
    /// The model.
    pub model: M,
    /// The mean loss of the epoch's batches; of ALS the objective at the end.
    pub loss: f64,
    /// The epoch (of ALS the iteration), from 1.
    pub epoch: usize,
}

impl<M> Kept<M> {
    /// Converts the model.
    pub fn map<N>(self, convert: impl FnOnce(M) -> N) -> Kept<N> {
        Kept { model: convert(self.model), loss: self.loss, epoch: self.epoch }
    }
}

/// Runs epochs (from 0) until `patience` of them in a row have not raised what `validate` measures;
/// keeps the best, or the last where there is nothing to validate on.
///
/// # Errors
/// A loss that is not finite, a model that is not `finite`, a device whose thread died; what
/// `train_epoch` and `validate` return.
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
        let started = Instant::now();
        let (model, loss) = train_epoch(epoch - 1)?;
        if let Some(panic) = crate::core::panic::DeviceGuard::current().panic() {
            return Err(Error::device(format!("epoch {epoch}: a thread of the device died ({panic})")));
        }
        // The loss is of the batches before the last step: that step may have spoilt the model.
        if !loss.is_finite() || !finite(&model) {
            let what =
                if loss.is_finite() { "a vector is not finite".to_string() } else { format!("the loss is {loss}") };
            return Err(Error::failed(format!(
                "epoch {epoch}: {what}; try a lower learning_rate (option `set` learning_rate=…)"
            )));
        }
        let measured = validate(&model).context(format_args!("epoch {epoch}"))?;
        let metric = measured.map_or(String::new(), |ndcg| format!("  valid NDCG@10 {ndcg:.4}"));
        say(&format!("epoch {epoch}  loss {loss:.4}{metric}  {:.1} s", started.elapsed().as_secs_f64()));
        // Without a metric every epoch replaces the one before.
        if best.as_ref().is_none_or(|(_, so_far)| measured.is_none_or(|measured| measured > *so_far)) {
            best = Some((Kept { model, loss, epoch }, measured.unwrap_or(f64::NEG_INFINITY)));
        } else if best.as_ref().is_some_and(|(kept, _)| epoch - kept.epoch >= patience) {
            break;
        }
    }
    best.map(|(kept, _)| kept).ok_or_else(|| Error::usage("epochs is 0, it must be at least 1"))
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

/// Returns an index tensor, `[values]`.
pub(crate) fn indices<B: Backend>(values: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let ints: Vec<i32> = values.iter().map(|&v| v as i32).collect();
    Tensor::from_data(TensorData::new(ints, [values.len()]), device)
}

/// Copies a tensor's values to the host, row after row.
pub(crate) fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().expect("converted to f32 above")
}
