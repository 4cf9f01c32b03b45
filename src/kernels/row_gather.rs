//! Gathers and scatters rows of a matrix.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::cpu_op::{CpuOperation, floats, is_cpu, primitive, run};

/// A gather of rows that can be inverted: for each output row its input row, or none (the output
/// row is then 0), and for each input row its output row.
#[derive(Debug, Clone)]
pub(crate) struct RowGather {
    from: Arc<[Option<u32>]>,
    to: Arc<[Option<u32>]>,
}

impl RowGather {
    /// Makes a gather.
    ///
    /// * `from`: for each output row the index of its input row; each of the `rows` at most once.
    pub fn new(from: Vec<Option<u32>>, rows: usize) -> Self {
        let mut to = vec![None; rows];
        for (output, row) in from.iter().enumerate() {
            if let Some(row) = row {
                to[*row as usize] = Some(output as u32);
            }
        }
        Self { from: from.into(), to: to.into() }
    }

    /// Returns the inverse: each output row back to its input row.
    pub fn inverse(&self) -> Self {
        Self { from: self.to.clone(), to: self.from.clone() }
    }

    /// Gathers the rows of `x`.
    ///
    /// # Shapes
    /// `x`: `[rows, width]`; output: `[output rows, width]`.
    ///
    /// # Errors
    /// `x` itself, unchanged, where it is not in the CPU's memory.
    pub fn apply<B: Backend>(&self, x: Tensor<B, 2>) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
        match is_cpu(&x) {
            true => Ok(run(self.clone(), [primitive(x)])),
            false => Err(x),
        }
    }
}

impl CpuOperation<1> for RowGather {
    type SavedForBackward = ();

    fn forward(&self, [x]: [TensorData; 1]) -> (TensorData, ()) {
        (gather(&x, &self.from), ())
    }

    fn backward(&self, _: &(), grad: TensorData, _: [bool; 1]) -> [Option<TensorData>; 1] {
        [Some(gather(&grad, &self.to))]
    }
}

/// Smallest number of rows that one thread copies at a time.
const ROWS: usize = 32;

fn gather(x: &TensorData, from: &[Option<u32>]) -> TensorData {
    let (width, x) = (x.shape[1], floats(x));
    let mut output = vec![0.0; from.len() * width];
    output.par_chunks_mut(width.max(1)).zip(from).with_min_len(ROWS).for_each(|(output, row)| {
        if let Some(row) = row {
            output.copy_from_slice(&x[*row as usize * width..][..width]);
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
        assert_eq!(values(moves.inverse().apply(there.clone()).unwrap()), [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
        let weights = Tensor::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        let grads = (there * weights).sum().backward();
        let gradient = x.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap();
        assert_eq!(gradient, [5.0, 6.0, 0.0, 0.0, 1.0, 2.0]);
    }
}
