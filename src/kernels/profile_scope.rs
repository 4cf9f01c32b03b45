//! The identity function, which also switches the clock of the [profiler](crate::core::profiler).

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::ops::FloatTensor;

use super::cpu_op::{cast, primitive, register, same_type};
use crate::core::profiler;
use crate::core::profiler::Part;
use crate::device::{Concrete, Training};

/// Returns `x` and starts the part `part` of the [profile](crate::core::profiler), where one is
/// recorded. In the backward pass it starts the part that came before `x` in the forward pass.
///
/// # Shapes
/// `x` and the output: any shape, the same.
///
/// burn runs backward steps by their depth in the graph, the deepest first. So every path through
/// the graph must pass the scopes, as it does on a decoder's residual stream. Where two passes have
/// layers of the same depth (a shared prefix and the trees after it), their scopes of a layer run
/// next to each other.
pub fn profile_scope<B: Backend, const D: usize>(x: Tensor<B, D>, part: Part) -> Tensor<B, D> {
    match profiler::begin(part) {
        Some(ended) if same_type::<B, Training>() => {
            let output: FloatTensor<B> = cast(register(Mark, [cast(primitive(x))], |_, [x]| (ended, x)));
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
