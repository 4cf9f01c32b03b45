//! How an operation on the host's memory becomes a step of burn's autodiff.

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

/// An operation of `N` inputs, f32 and contiguous, in the host's memory.
pub(crate) trait CpuOperation<const N: usize>: Debug + Send + 'static {
    /// What its backward needs.
    type Saved: Debug + Send + Sync + 'static;

    /// The inputs → the output and what backward needs.
    fn forward(&self, inputs: [TensorData; N]) -> (TensorData, Self::Saved);

    /// The output's gradient → the inputs', of those that are `wanted`.
    fn backward(&self, saved: &Self::Saved, grad: TensorData, wanted: [bool; N]) -> [Option<TensorData>; N];
}

/// Whether [`run`] can run on this tensor's device.
pub(crate) fn on_host<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> bool {
    tensor.dtype() == DType::F32 && is_cpu::<B>(&tensor.device())
}

/// Whether tensors of this device are in the host's memory, and not of an autodiff that [`run`]
/// cannot add to.
pub(crate) fn is_cpu<B: Backend>(device: &B::Device) -> bool {
    (is::<B, Concrete>() || is::<B, Training>()) && (device as &dyn Any).downcast_ref().is_some_and(is_cpu_device)
}

fn is_cpu_device(device: &DispatchDevice) -> bool {
    match device {
        #[cfg(feature = "cpu")]
        DispatchDevice::Flex(_) => true,
        _ => false,
    }
}

/// Runs an operation on tensors that are [`on_host`], tracked if any of them is.
pub(crate) fn run<B: Backend, O: CpuOperation<N>, const N: usize, const D: usize>(
    operation: O,
    inputs: [FloatTensor<B>; N],
) -> Tensor<B, D> {
    let output: FloatTensor<B> = match is::<B, Training>() {
        true => cast(tracked(operation, cast(inputs))),
        false => {
            let inputs: [FloatTensor<Concrete>; N] = cast(inputs);
            let device = Concrete::float_device(&inputs[0]);
            cast(Concrete::float_from_data(operation.forward(inputs.map(read)).0, &device))
        }
    };
    Tensor::from_primitive(TensorPrimitive::Float(output))
}

/// Runs `work` on the numbers of untracked tensors that are [`on_host`], and gives the tensors
/// back: nothing is copied of those that are contiguous and that nothing else holds.
pub(crate) fn lend<B: Backend, const D: usize>(
    tensors: Vec<Tensor<B, D>>,
    work: impl FnOnce(&[TensorData]) -> TensorData,
) -> (Tensor<B, D>, Vec<Tensor<B, D>>) {
    let device = tensors[0].device();
    let numbers: Vec<TensorData> = tensors.into_iter().map(Tensor::into_data).collect();
    let output = Tensor::from_data(work(&numbers), &device);
    (output, numbers.into_iter().map(|data| Tensor::from_data(data, &device)).collect())
}

/// Whether tensors of this backend may be tracked by autodiff.
pub(crate) fn is_tracked<B: Backend>() -> bool {
    is::<B, Training>()
}

/// As [`run`] takes them.
pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

fn tracked<O: CpuOperation<N>, const N: usize>(
    operation: O,
    inputs: [FloatTensor<Training>; N],
) -> FloatTensor<Training> {
    let device = Concrete::float_device(&inputs[0].primitive);
    registered(HostStep(operation), inputs, |HostStep(operation), inputs| {
        let (output, saved) = operation.forward(inputs.map(read));
        (Arc::new(saved), Concrete::float_from_data(output, &device))
    })
}

/// The output of an operation, which autodiff tracks if it does any of the inputs.
///
/// * `forward`: the inputs → what backward needs and the output.
pub(crate) fn registered<O: Backward<Concrete, N>, const N: usize>(
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

#[derive(Debug)]
struct HostStep<O>(O);

impl<O: CpuOperation<N>, const N: usize> Backward<Concrete, N> for HostStep<O> {
    type State = Arc<O::Saved>;

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

/// Without a copy where nothing else holds the tensor and it is contiguous.
fn read(tensor: FloatTensor<Concrete>) -> TensorData {
    read_sync(Concrete::float_into_data(tensor)).expect("the CPU's memory can be read")
}

/// The numbers of an operation's input.
pub(crate) fn floats(data: &TensorData) -> &[f32] {
    data.as_slice().expect("f32, as on_host asked")
}

/// The same, to be written over.
pub(crate) fn floats_mut(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("f32, as on_host asked")
}

pub(crate) fn is<A: 'static, B: 'static>() -> bool {
    TypeId::of::<A>() == TypeId::of::<B>()
}

/// `value` as what it is: `T` and `U` are the same type, which the compiler does not know.
pub(crate) fn cast<T: 'static, U: 'static>(value: T) -> U {
    let mut value = Some(value);
    let same: Option<&mut Option<U>> = (&mut value as &mut dyn Any).downcast_mut();
    same.and_then(Option::take).expect("the backend is the one compared with")
}
