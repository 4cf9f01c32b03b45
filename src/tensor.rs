//! Reads of tensors, tensors of indices, and the lock of automatic differentiation.

use std::sync::Mutex;

use burn::prelude::*;
use burn::tensor::{BasicOps, TensorData};

use crate::{Error, Result};

/// Lock that a thread holds while it builds a graph and runs its backward pass.
///
/// burn 0.21's `backward` frees autodiff steps that another thread is still building, and a
/// gradient is silently lost (tracel-ai/burn#5573; seen here in one run of twenty). So one training
/// step at a time in a process; code that differentiates beside it must take turns as well.
pub static AUTODIFF: Mutex<()> = Mutex::new(());

/// Reads `tensor` from its device: its values as `f32`, row-major.
///
/// # Shapes
/// `tensor`: any.
///
/// # Errors
/// A device that failed; the message names `what` was read.
pub fn to_vec<B: Backend, const D: usize>(tensor: Tensor<B, D>, what: &str) -> Result<Vec<f32>> {
    floats(read(tensor, what)?, what)
}

/// Reads the only number of `tensor` from its device.
///
/// # Shapes
/// `tensor`: `[1]`.
///
/// # Errors
/// A device that failed; the message names `what` was read.
pub fn scalar<B: Backend>(tensor: Tensor<B, 1>, what: &str) -> Result<f64> {
    let values = to_vec(tensor, what)?;
    values.first().map(|&value| value.into()).ok_or_else(|| Error::failed(format!("reading {what}: no number")))
}

/// Reads `tensor` from its device.
///
/// # Shapes
/// `tensor`: any.
///
/// # Errors
/// A device that failed; the message names `what` was read.
pub fn read<B: Backend, const D: usize, K: BasicOps<B>>(tensor: Tensor<B, D, K>, what: &str) -> Result<TensorData> {
    tensor.try_into_data().map_err(|e| Error::failed(format!("reading {what} from the device: {e}")))
}

/// Converts `data` of any number type to `f32`.
///
/// # Errors
/// Data that is no numbers; the message names `what` it is.
pub fn floats(data: TensorData, what: &str) -> Result<Vec<f32>> {
    data.convert::<f32>().into_vec::<f32>().map_err(|e| Error::failed(format!("{what}: not numbers: {e:?}")))
}

/// Copies indices into a dimension of `size` to a device.
///
/// All index tensors of the library are made here. With an index out of range the CPU panics, and a
/// GPU may read or write the memory of another tensor; so indices are checked on the host.
///
/// # Shapes
/// The result: `[values]`.
///
/// # Panics
/// On an index of `size` or more, which is a defect of the caller.
pub fn indices<B: Backend>(
    values: impl IntoIterator<Item = usize>,
    size: usize,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let checked = |index: usize| match i32::try_from(index) {
        Ok(value) if index < size => value,
        _ => panic!("index {index} is out of range for a dimension of {size}"),
    };
    let values: Vec<i32> = values.into_iter().map(checked).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BackendName, Concrete};

    #[test]
    fn an_index_out_of_range_does_not_get_to_a_device() {
        let device = BackendName::Cpu.device().unwrap();
        let made = indices::<Concrete>([0, 4, 2], 5, &device);
        assert_eq!(read(made, "indices").unwrap().convert::<i32>().to_vec::<i32>().unwrap(), [0, 4, 2]);
        for (values, size) in [(vec![0, 5], 5), (vec![0], 0), (vec![1 << 31], usize::MAX), (vec![usize::MAX], 7)] {
            let refused = crate::core::panic::catch(|| indices::<Concrete>(values.clone(), size, &device));
            let message = refused.err().unwrap().message;
            assert!(message.contains("out of range"), "{values:?} of {size}: {message}");
        }
    }

    #[test]
    fn reads_floats_of_any_width() {
        let device = BackendName::Cpu.device().unwrap();
        let tensor = Tensor::<Concrete, 2>::from_data([[1.0, 2.5], [3.0, -4.0]], &device);
        assert_eq!(to_vec(tensor.clone(), "a tensor").unwrap(), [1.0, 2.5, 3.0, -4.0]);
        assert_eq!(floats(TensorData::from([1.5f64, 2.0]), "data").unwrap(), [1.5, 2.0]);
        let ints = read(tensor.int(), "a tensor").unwrap();
        assert_eq!(ints.shape.to_vec(), [2, 2]);
    }
}
