//! A model on another device.

use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;

use super::{ItemLanguageModel, Weight};

impl<B: Backend> ItemLanguageModel<B> {
    /// Copies the model to `device`, which may be the model's own: with the same parameter ids, the
    /// same parameters that train, a graph of its own, and the prefix cache, if there is one.
    ///
    /// The copy goes through the host's memory, a tensor at a time: wgpu's devices of burn 0.21
    /// panic when a tensor is to move between them (`comm_init` of cubecl-runtime 0.10's
    /// `server/base.rs` is not implemented), and CUDA's need NCCL.
    pub fn clone_to_device(&self, device: &B::Device) -> Self {
        let mut model = self.clone().map(&mut CopyTo { device });
        // These tensors are no parameters.
        model.llm.half_turn = copy_tensor(model.llm.half_turn, device);
        for linear in model.llm.layers.iter_mut().flat_map(|block| &mut block.linears) {
            if let Weight::Quantized(blocks) = &mut linear.weight {
                *blocks = blocks.clone().clone_to_device(device);
            }
        }
        model.entities = model.entities.map(|mut entities| {
            entities.vectors = copy_tensor(entities.vectors, device);
            entities
        });
        model.prefix = model.prefix.map(|mut prefix| {
            for tensors in [&mut prefix.keys, &mut prefix.values] {
                *tensors = tensors.drain(..).map(|tensor| copy_tensor(tensor, device)).collect();
            }
            prefix
        });
        assert!(model.devices().iter().all(|found| found == device), "a tensor of the model stayed behind");
        model
    }
}

struct CopyTo<'a, B: Backend> {
    device: &'a B::Device,
}

impl<B: Backend> ModuleMapper<B> for CopyTo<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(|tensor| copy_tensor(tensor, self.device))
    }
}

/// Copies a tensor to `device`; the copy trains if the tensor does.
///
/// # Shapes
/// Any; the copy has the tensor's.
pub(crate) fn copy_tensor<B: Backend, const D: usize>(tensor: Tensor<B, D>, device: &B::Device) -> Tensor<B, D> {
    let (trains, dtype) = (tensor.is_require_grad(), tensor.dtype());
    let copy = Tensor::from_data(tensor.into_data(), (device, dtype));
    if trains { copy.require_grad() } else { copy }
}
