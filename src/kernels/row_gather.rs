//! Rows of a matrix put elsewhere.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::cpu_op::{CpuOperation, floats, on_host, primitive, run};

/// Which row of the input each row of the output is, or none (then it is 0), and the other way.
#[derive(Debug, Clone)]
pub(crate) struct RowGather {
    from: Arc<[Option<u32>]>,
    to: Arc<[Option<u32>]>,
}

impl RowGather {
    /// * `from`: each of the input's `rows` at most once.
    pub fn new(from: Vec<Option<u32>>, rows: usize) -> Self {
        let mut to = vec![None; rows];
        for (place, row) in from.iter().enumerate() {
            if let Some(row) = row {
                to[*row as usize] = Some(place as u32);
            }
        }
        Self { from: from.into(), to: to.into() }
    }

    /// Every output row's input row back to where it came from.
    pub fn back(&self) -> Self {
        Self { from: self.to.clone(), to: self.from.clone() }
    }

    /// `[rows, width]` → `[places, width]`, where the tensor is in the host's memory.
    pub fn apply<B: Backend>(&self, x: Tensor<B, 2>) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
        match on_host(&x) {
            true => Ok(run(self.clone(), [primitive(x)])),
            false => Err(x),
        }
    }
}

impl CpuOperation<1> for RowGather {
    type Saved = ();

    fn forward(&self, [x]: [TensorData; 1]) -> (TensorData, ()) {
        (moved(&x, &self.from), ())
    }

    fn backward(&self, _: &(), grad: TensorData, _: [bool; 1]) -> [Option<TensorData>; 1] {
        [Some(moved(&grad, &self.to))]
    }
}

/// Rows that one thread copies at a time, at least.
const ROWS: usize = 32;

fn moved(x: &TensorData, from: &[Option<u32>]) -> TensorData {
    let (width, x) = (x.shape[1], floats(x));
    let mut output = vec![0.0; from.len() * width];
    output.par_chunks_mut(width.max(1)).zip(from).with_min_len(ROWS).for_each(|(place, row)| {
        if let Some(row) = row {
            place.copy_from_slice(&x[*row as usize * width..][..width]);
        }
    });
    TensorData::new(output, [from.len(), width])
}

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;

    use super::*;
    use crate::device::{BackendName, Training};
    use crate::tensor::AUTODIFF;

    #[test]
    fn there_and_back_with_gradients() {
        let device = BackendName::Cpu.device().unwrap();
        let _turn = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
        let x = Tensor::<Training, 2>::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device).require_grad();
        let moves = RowGather::new(vec![Some(2), None, Some(0)], 3);
        let there = moves.apply(x.clone()).unwrap();
        let values = |t: Tensor<Training, 2>| t.into_data().to_vec::<f32>().unwrap();
        assert_eq!(values(there.clone()), [5.0, 6.0, 0.0, 0.0, 1.0, 2.0]);
        assert_eq!(values(moves.back().apply(there.clone()).unwrap()), [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
        let weights = Tensor::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        let grads = (there * weights).sum().backward();
        let gradient = x.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap();
        assert_eq!(gradient, [5.0, 6.0, 0.0, 0.0, 1.0, 2.0]);
    }
}
