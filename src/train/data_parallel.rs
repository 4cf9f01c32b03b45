//! Copies of a model on several devices: the assignment of micro-batches, the sum of the gradients,
//! and the copies of updated parameters.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::mem;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{TensorData, Transaction};

use crate::model::ItemLanguageModel;
use crate::{Error, Result};

/// Returns the device of each micro-batch, by their tokens: the largest first, each to the device
/// that has the fewest so far. No device is left out if there are as many micro-batches.
pub(super) fn assign_micro_batches(tokens: &[usize], devices: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&batch| Reverse(tokens[batch]));
    let (mut loads, mut to) = (vec![0; devices], vec![0; tokens.len()]);
    for batch in order {
        let least = (0..devices).min_by_key(|&device| loads[device]).unwrap_or_default();
        loads[least] += tokens[batch].max(1);
        to[batch] = least;
    }
    to
}

/// Sums all devices' gradients on the device of `first`.
///
/// * `of_devices`: each device's gradients, first those of the device of `first`. A device's
///   gradients are read all at once, after which the device has no work left.
///
/// # Errors
/// A device that failed.
pub(super) fn reduce_gradients<B: AutodiffBackend>(
    first: &ItemLanguageModel<B>,
    of_devices: Vec<GradientsParams>,
) -> Result<GradientsParams> {
    let mut of_devices = of_devices.into_iter();
    let mut sum = of_devices.next().unwrap_or_default();
    let device = first.device();
    for mut grads in of_devices {
        let mut read = ReadGradients::<B> { grads: &mut grads, ids: Vec::new(), transaction: Transaction::default() };
        first.visit(&mut read);
        let data = read.ids.into_iter().zip(execute(read.transaction)?).collect();
        first.visit(&mut AddGradients::<B> { sum: &mut sum, data, device: &device });
    }
    Ok(sum)
}

/// Copies the trainable parameters of `models[0]` to all other replicas.
///
/// # Errors
/// A device that failed.
pub(super) fn broadcast_parameters<B: AutodiffBackend>(models: &mut [ItemLanguageModel<B>]) -> Result<()> {
    let Some((first, others)) = models.split_first_mut().filter(|(_, others)| !others.is_empty()) else {
        return Ok(());
    };
    let mut read = ReadTrainable::<B>(Transaction::default());
    first.visit(&mut read);
    let data = execute(read.0)?;
    for other in others {
        let device = other.device();
        *other = other.clone().map(&mut WriteTrainable::<B> { data: data.iter(), device: &device });
    }
    Ok(())
}

fn execute<B: Backend>(transaction: Transaction<B>) -> Result<Vec<TensorData>> {
    transaction.try_execute().map_err(|e| Error::failed(format!("reading tensors from a device: {e}")))
}

struct ReadGradients<'a, B: AutodiffBackend> {
    grads: &'a mut GradientsParams,
    ids: Vec<ParamId>,
    transaction: Transaction<B::InnerBackend>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for ReadGradients<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            self.ids.push(param.id);
            self.transaction = mem::take(&mut self.transaction).register(grad);
        }
    }
}

struct AddGradients<'a, B: AutodiffBackend> {
    sum: &'a mut GradientsParams,
    data: HashMap<ParamId, TensorData>,
    device: &'a B::Device,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for AddGradients<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(data) = self.data.remove(&param.id) else { return };
        let more = Tensor::<B::InnerBackend, D>::from_data(data, self.device);
        let sum = match self.sum.remove::<B::InnerBackend, D>(param.id) {
            Some(sum) => sum + more,
            None => more,
        };
        self.sum.register(param.id, sum);
    }
}

struct ReadTrainable<B: AutodiffBackend>(Transaction<B::InnerBackend>);

impl<B: AutodiffBackend> ModuleVisitor<B> for ReadTrainable<B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if param.is_require_grad() {
            self.0 = mem::take(&mut self.0).register(param.val().inner());
        }
    }
}

struct WriteTrainable<'a, B: AutodiffBackend> {
    data: std::slice::Iter<'a, TensorData>,
    device: &'a B::Device,
}

impl<B: AutodiffBackend> ModuleMapper<B> for WriteTrainable<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() {
            return param;
        }
        let Some(data) = self.data.next() else { return param };
        param.map(|_| Tensor::from_data(data.clone(), self.device).require_grad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_have_similar_numbers_of_tokens() {
        assert_eq!(assign_micro_batches(&[5, 9, 4, 4], 2), [1, 0, 1, 0]);
        assert_eq!(assign_micro_batches(&[5, 9], 1), [0, 0]);
        assert_eq!(assign_micro_batches(&[0, 0, 7], 3), [1, 2, 0]);
        assert!(assign_micro_batches(&[], 2).is_empty());
    }
}
