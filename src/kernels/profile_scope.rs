//! The identity, which tells the profile's clock that it was passed.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::ops::FloatTensor;

use super::cpu_op::{cast, is, primitive, registered};
use crate::core::profiler;
use crate::core::profiler::Part;
use crate::device::{Concrete, Training};

/// `x`. Where the [profile](crate::core::profiler) is recorded, what follows belongs to `part`;
/// backward, what follows (it came before `x`) to the part that ended here.
///
/// burn runs backward steps by their depth in the graph, the deepest first. So the marks must lie
/// on every way through the graph, as they do on a decoder's residual stream. Of tensors that meet
/// other ones of their own depth, such as a prefix's layers those of the trees after it, each
/// layer's marks come together.
pub fn profile_scope<B: Backend, const D: usize>(x: Tensor<B, D>, part: Part) -> Tensor<B, D> {
    match profiler::begin(part) {
        Some(ended) if is::<B, Training>() => {
            let output: FloatTensor<B> = cast(registered(Mark, [cast(primitive(x))], |_, [x]| (ended, x)));
            Tensor::from_primitive(TensorPrimitive::Float(output))
        }
        _ => x,
    }
}

#[derive(Debug)]
struct Mark;

impl Backward<Concrete, 1> for Mark {
    type State = Part;

    fn backward(self, ops: Ops<Part, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let grad = gradients.consume::<Concrete>(&ops.node);
        profiler::begin(ops.state);
        if let [Some(parent)] = ops.parents {
            gradients.register::<Concrete>(parent.id, grad);
        }
    }
}
