//! Rotary position embedding of the halves of a head (`rotate_half` of transformers), not of
//! interleaved pairs.
//! Paper: arXiv 2104.09864.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::cpu_op::{CpuOperation, floats_mut, is_cpu, primitive, run};
use super::simd::wide;

/// The rotations of the tokens of one forward pass.
pub(crate) enum Rotary<B: Backend> {
    /// Angles for the CPU.
    Cpu(Angles),
    /// Tables for other devices, where rotation is `x cos + (x H) sin`: H swaps the two halves of
    /// each head and negates the first. As a product over flat rows every operand is contiguous.
    Tensors {
        /// cos and sin, `[batch or 1, seq · heads · head_dim]`.
        queries: (Tensor<B, 2>, Tensor<B, 2>),
        /// cos and sin, `[batch or 1, seq · kv_heads · head_dim]`.
        keys: (Tensor<B, 2>, Tensor<B, 2>),
        /// The matrix H, `[head_dim, head_dim]`.
        half_turn: Tensor<B, 2>,
        /// Number of tokens of a row.
        seq: usize,
    },
}

/// Cosines and sines of each token's angles, `[batch · seq or seq, half]`.
#[derive(Debug, Clone)]
pub(crate) struct Angles {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    /// Number of pairs of a head that are rotated.
    half: usize,
    /// Width of a head; its numbers after the first `2 · half` are not rotated.
    dim: usize,
}

/// Angles of rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RotaryFrequencies {
    /// Angle per position of each rotated pair, radians; at most `head_dim / 2` pairs.
    pub frequencies: Vec<f32>,
    /// Factor of the rotated numbers (YaRN's `attention_factor`).
    pub factor: f32,
}

impl<B: Backend> Rotary<B> {
    /// Computes the rotations of one forward pass.
    ///
    /// * `positions`: `[batch · seq]`, row after row.
    /// * `heads`: number of heads of queries, and of keys.
    /// * `half_turn`: the result of [`half_turn`] for the head's dimension.
    pub(crate) fn new(
        positions: &[u32],
        seq: usize,
        RotaryFrequencies { frequencies, factor }: &RotaryFrequencies,
        heads: [usize; 2],
        half_turn: &Tensor<B, 2>,
    ) -> Self {
        // Rows at the same positions share one table.
        let one_row = positions.chunks(seq).all(|row| row == &positions[..seq]);
        let positions = if one_row { &positions[..seq] } else { positions };
        let table = |of: fn(f32) -> f32| -> Arc<[f32]> {
            positions.iter().flat_map(|&p| frequencies.iter().map(move |f| factor * of(p as f32 * f))).collect()
        };
        let dim = half_turn.dims()[0];
        let angles = Angles { cos: table(f32::cos), sin: table(f32::sin), half: frequencies.len(), dim };
        if is_cpu(half_turn) {
            return Self::Cpu(angles);
        }
        let of = |heads| {
            let table = |values: &[f32], rest| angles.tensor(values, rest, heads, seq, half_turn);
            (table(&angles.cos, 1.0), table(&angles.sin, 0.0))
        };
        Self::Tensors { queries: of(heads[0]), keys: of(heads[1]), half_turn: half_turn.clone(), seq }
    }

    /// Rotates queries.
    ///
    /// # Shapes
    /// `x` and the output: `[batch · seq, heads · head_dim]`.
    pub(crate) fn queries(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.rotate(x, |queries, _| queries)
    }

    /// Rotates keys.
    ///
    /// # Shapes
    /// `x` and the output: `[batch · seq, kv_heads · head_dim]`.
    pub(crate) fn keys(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.rotate(x, |_, keys| keys)
    }

    fn rotate(&self, x: Tensor<B, 2>, table: for<'a> fn(&'a Table<B>, &'a Table<B>) -> &'a Table<B>) -> Tensor<B, 2> {
        match self {
            Self::Cpu(angles) => run(angles.clone(), [primitive(x)]),
            Self::Tensors { queries, keys, half_turn, seq } => {
                let (cos, sin) = table(queries, keys);
                let [tokens, width] = x.dims();
                let (dim, flat) = (half_turn.dims()[0], [tokens / seq, seq * width]);
                let turned = x.clone().reshape([tokens * width / dim, dim]).matmul(half_turn.clone());
                let rotated = x.reshape(flat) * cos.clone() + turned.reshape(flat) * sin.clone();
                rotated.reshape([tokens, width])
            }
        }
    }
}

type Table<B> = (Tensor<B, 2>, Tensor<B, 2>);

/// Returns the matrix H of [`Rotary::Tensors`]: of the first `rotated` numbers `(x H)[j]` is
/// `-x[j + rotated / 2]` in the first half and `x[j - rotated / 2]` in the second; of the others it
/// is 0.
///
/// # Shapes
/// Returns `[dim, dim]`.
pub(crate) fn half_turn<B: Backend>(dim: usize, rotated: usize, device: &B::Device) -> Tensor<B, 2> {
    let mut values = vec![0.0; dim * dim];
    for j in 0..rotated / 2 {
        values[(j + rotated / 2) * dim + j] = -1.0;
        values[j * dim + j + rotated / 2] = 1.0;
    }
    Tensor::from_data(TensorData::new(values, [dim, dim]), device)
}

impl Angles {
    /// Returns `values` repeated for both halves of each of `heads` heads, with `rest` for the
    /// numbers that are not rotated: `[batch or 1, seq · heads · head_dim]`.
    fn tensor<B: Backend>(
        &self,
        values: &[f32],
        rest: f32,
        heads: usize,
        seq: usize,
        like: &Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let rows = values.len() / self.half / seq;
        let mut repeated = Vec::with_capacity(rows * seq * heads * self.dim);
        for token in values.chunks(self.half) {
            for _ in 0..heads {
                repeated.extend(token.iter().chain(token));
                repeated.extend(std::iter::repeat_n(rest, self.dim - 2 * self.half));
            }
        }
        Tensor::from_data(TensorData::new(repeated, [rows, seq * heads * self.dim]), &like.device())
    }

    /// Rotates `x`, `[batch · seq, heads · head_dim]`, forward for `direction` 1 and backward for
    /// -1.
    fn turn(&self, mut x: TensorData, direction: f32) -> TensorData {
        let width = x.shape[1];
        floats_mut(&mut x).par_chunks_mut(width).enumerate().for_each(|(token, heads)| {
            let at = token * self.half % self.cos.len();
            let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
            wide(|| {
                for head in heads.chunks_exact_mut(self.dim) {
                    let (first, second) = head.split_at_mut(self.half);
                    for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                        let s = direction * s;
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
            });
        });
        x
    }
}

impl CpuOperation<1> for Angles {
    type SavedForBackward = ();

    fn forward(&self, [x]: [TensorData; 1]) -> (TensorData, ()) {
        (self.turn(x, 1.0), ())
    }

    fn backward(&self, _: &(), grad: TensorData, _: [bool; 1]) -> [Option<TensorData>; 1] {
        [Some(self.turn(grad, -1.0))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Training;
    use crate::kernels::testing::{assert_same, numbers};

    /// One table for all rows, and one for each; whole heads, and heads of which a part is rotated.
    #[test]
    fn equals_the_plain_operations() {
        for (positions, dim) in [([0, 1, 2, 0, 1, 2], 6), ([4, 5, 6, 1, 2, 2], 6), ([4, 5, 6, 1, 2, 2], 8)] {
            let heads = 2;
            let frequencies = RotaryFrequencies { frequencies: vec![1.0, 0.3, 0.01], factor: 1.3 };
            let plain = |x: &Tensor<Training, 2>| {
                let half_turn = half_turn(dim, 6, &x.device());
                let angles = match Rotary::new(&positions, 3, &frequencies, [heads, 1], &half_turn) {
                    Rotary::Cpu(angles) => angles,
                    Rotary::Tensors { .. } => unreachable!("the tensors are on the CPU"),
                };
                let table = |values: &[f32], rest| angles.tensor(values, rest, heads, 3, &half_turn);
                let queries = (table(&angles.cos, 1.0), table(&angles.sin, 0.0));
                Rotary::Tensors { queries: queries.clone(), keys: queries, half_turn, seq: 3 }.queries(x.clone())
            };
            let fused = |x: &Tensor<Training, 2>| {
                let half_turn = half_turn(dim, 6, &x.device());
                Rotary::new(&positions, 3, &frequencies, [heads, 1], &half_turn).queries(x.clone())
            };
            assert_same([numbers([6, heads * dim], 1, 1.0)], |[x]| plain(x), |[x]| fused(x));
        }
    }
}
