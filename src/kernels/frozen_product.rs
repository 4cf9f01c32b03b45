//! Product with a frozen matrix that is computed again where it is needed.

use std::fmt::{Debug, Formatter};
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, TensorPrimitive};

use super::cpu_op::{cast, primitive, register, same_type};
use crate::device::{Concrete, Training};

/// Returns `x Wᵀ`, computed in the precision of the weight W.
///
/// `weight` makes W once for the forward and once for the backward pass. Between the two nothing of
/// it is kept, where autodiff's own product would keep it.
///
/// # Shapes
/// `x`: f32 `[n, in]`; W: `[out, in]`; output: f32 `[n, out]`.
pub fn frozen_product<B: Backend>(
    x: Tensor<B, 2>,
    weight: impl Fn() -> Tensor<Concrete, 2> + Send + Sync + 'static,
) -> Tensor<B, 2> {
    let output: FloatTensor<B> = match same_type::<B, Training>() {
        true => cast(register(FrozenProduct, [cast(primitive(x))], |_, [x]| {
            let output = product(x, weight().transpose());
            (Weight(Arc::new(weight)), output)
        })),
        false => {
            let x: FloatTensor<Concrete> = cast(primitive(x));
            cast(product(x, weight().transpose()))
        }
    };
    Tensor::from_primitive(TensorPrimitive::Float(output))
}

#[derive(Clone)]
struct Weight(Arc<dyn Fn() -> Tensor<Concrete, 2> + Send + Sync>);

impl Debug for Weight {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("Weight")
    }
}

fn product(x: FloatTensor<Concrete>, weight: Tensor<Concrete, 2>) -> FloatTensor<Concrete> {
    let x = Tensor::<Concrete, 2>::from_primitive(TensorPrimitive::Float(x));
    let precision: FloatDType = weight.dtype().into();
    primitive(x.cast(precision).matmul(weight).cast(FloatDType::F32))
}

#[derive(Debug)]
struct FrozenProduct;

impl Backward<Concrete, 1> for FrozenProduct {
    type State = Weight;

    fn backward(self, ops: Ops<Weight, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let grad = gradients.consume::<Concrete>(&ops.node);
        if let [Some(parent)] = ops.parents {
            gradients.register::<Concrete>(parent.id, product(grad, (ops.state.0)()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::BackendName;
    use crate::kernels::testing::{assert_same, numbers};

    #[test]
    fn equals_the_plain_product() {
        let weight = numbers([7, 12], 3, 1.0);
        let device = BackendName::Cpu.device().unwrap();
        assert_same(
            [numbers([5, 12], 1, 1.0)],
            |[x]| x.clone().matmul(Tensor::from_data(weight.clone(), &device).transpose()),
            |[x]| {
                let (weight, device) = (weight.clone(), device.clone());
                frozen_product(x.clone(), move || Tensor::from_data(weight.clone(), &device))
            },
        );
    }
}
