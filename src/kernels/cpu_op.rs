//! Operations on the CPU's memory as steps of burn's autodiff.

use std::any::{Any, TypeId};
use std::fmt::Debug;
use std::sync::Arc;

use burn::DispatchDevice;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::prelude::*;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{DType, TensorData, TensorPrimitive, read_sync};

use crate::device::{Concrete, Training};

/// An operation of `N` inputs, f32 and contiguous, in the CPU's memory.
pub(crate) trait CpuOperation<const N: usize>: Debug + Send + 'static {
    /// Tensors that the backward pass needs.
    type SavedForBackward: Debug + Send + Sync + 'static;

    /// Returns the output, and what the backward pass needs.
    fn forward(&self, inputs: [TensorData; N]) -> (TensorData, Self::SavedForBackward);

    /// Returns the gradients of the `wanted` inputs, from the gradient of the output.
    fn backward(&self, saved: &Self::SavedForBackward, grad: TensorData, wanted: [bool; N]) -> [Option<TensorData>; N];
}

/// Returns whether `tensor` is f32 in the CPU's memory, so that [`run`] can run on it.
pub(crate) fn is_cpu<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> bool {
    tensor.dtype() == DType::F32 && is_cpu_device::<B>(&tensor.device())
}

/// Returns whether tensors of this device are in the CPU's memory, and of a backend whose autodiff
/// [`run`] can add to.
pub(crate) fn is_cpu_device<B: Backend>(device: &B::Device) -> bool {
    (same_type::<B, Concrete>() || same_type::<B, Training>())
        && (device as &dyn Any).downcast_ref().is_some_and(is_flex)
}

fn is_flex(device: &DispatchDevice) -> bool {
    match device {
        #[cfg(feature = "cpu")]
        DispatchDevice::Flex(_) => true,
        _ => false,
    }
}

/// Runs an operation on tensors that satisfy [`is_cpu`]; autodiff tracks the output if it tracks
/// any input.
pub(crate) fn run<B: Backend, O: CpuOperation<N>, const N: usize, const D: usize>(
    operation: O,
    inputs: [FloatTensor<B>; N],
) -> Tensor<B, D> {
    let output: FloatTensor<B> = match same_type::<B, Training>() {
        true => cast(run_tracked(operation, cast(inputs))),
        false => {
            let inputs: [FloatTensor<Concrete>; N] = cast(inputs);
            let device = Concrete::float_device(&inputs[0]);
            cast(Concrete::float_from_data(operation.forward(inputs.map(read)).0, &device))
        }
    };
    Tensor::from_primitive(TensorPrimitive::Float(output))
}

/// Runs `work` on the numbers of untracked tensors that satisfy [`is_cpu`], and returns its output
/// and the tensors. Tensors that are contiguous and have no other owner are not copied.
///
/// # Shapes
/// Any; the output has the shape that `work` returns.
pub(crate) fn with_cpu_data<B: Backend, const D: usize>(
    tensors: Vec<Tensor<B, D>>,
    work: impl FnOnce(&[TensorData]) -> TensorData,
) -> (Tensor<B, D>, Vec<Tensor<B, D>>) {
    let device = tensors[0].device();
    let numbers: Vec<TensorData> = tensors.into_iter().map(Tensor::into_data).collect();
    let output = Tensor::from_data(work(&numbers), &device);
    (output, numbers.into_iter().map(|data| Tensor::from_data(data, &device)).collect())
}

/// Returns whether autodiff may track tensors of this backend.
pub(crate) fn may_be_tracked<B: Backend>() -> bool {
    same_type::<B, Training>()
}

/// Returns the primitive of a float tensor, as [`run`] takes it.
pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

fn run_tracked<O: CpuOperation<N>, const N: usize>(
    operation: O,
    inputs: [FloatTensor<Training>; N],
) -> FloatTensor<Training> {
    let device = Concrete::float_device(&inputs[0].primitive);
    register(CpuStep(operation), inputs, |CpuStep(operation), inputs| {
        let (output, saved) = operation.forward(inputs.map(read));
        (Arc::new(saved), Concrete::float_from_data(output, &device))
    })
}

/// Registers an operation with autodiff and returns its output, tracked if any input is.
///
/// * `forward`: returns what the backward pass needs, and the output.
pub(crate) fn register<O: Backward<Concrete, N>, const N: usize>(
    operation: O,
    inputs: [FloatTensor<Training>; N],
    forward: impl FnOnce(&O, [FloatTensor<Concrete>; N]) -> (O::State, FloatTensor<Concrete>),
) -> FloatTensor<Training> {
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    // A step's parents must live until it is registered.
    let _alive = inputs.each_ref().map(|input| input.rc.clone());
    let (state, output) = forward(&operation, inputs.map(|input| input.primitive));
    match operation.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(state, output),
        OpsKind::UnTracked(step) => step.finish(output),
    }
}

/// A [`CpuOperation`] as a backward step of autodiff.
#[derive(Debug)]
struct CpuStep<O>(O);

impl<O: CpuOperation<N>, const N: usize> Backward<Concrete, N> for CpuStep<O> {
    type State = Arc<O::SavedForBackward>;

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let grad = gradients.consume::<Concrete>(&ops.node);
        let device = Concrete::float_device(&grad);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = self.0.backward(&ops.state, read(grad), wanted);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                gradients.register::<Concrete>(parent.id, Concrete::float_from_data(grad, &device));
            }
        }
    }
}

/// Reads a tensor; without a copy where it is contiguous and has no other owner.
fn read(tensor: FloatTensor<Concrete>) -> TensorData {
    read_sync(Concrete::float_into_data(tensor)).expect("the CPU's memory can be read")
}

/// Returns the numbers of an operation's input.
pub(crate) fn floats(data: &TensorData) -> &[f32] {
    data.as_slice().expect("f32, as is_cpu checked")
}

/// Returns the numbers of an operation's input, to be overwritten.
pub(crate) fn floats_mut(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("f32, as is_cpu checked")
}

/// Returns whether `A` and `B` are the same type.
pub(crate) fn same_type<A: 'static, B: 'static>() -> bool {
    TypeId::of::<A>() == TypeId::of::<B>()
}

/// Returns `value` as a `U`; `T` and `U` must be the same type, which the compiler cannot know.
pub(crate) fn cast<T: 'static, U: 'static>(value: T) -> U {
    let mut value = Some(value);
    let same: Option<&mut Option<U>> = (&mut value as &mut dyn Any).downcast_mut();
    same.and_then(Option::take).expect("the backend is the one compared with")
}
