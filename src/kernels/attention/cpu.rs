//! Attention in the CPU's memory, where every tensor is `[rows, tokens, heads, head_dim]`.

use std::ops::Range;

use burn::tensor::TensorData;
use rayon::prelude::*;

use super::ScoreScaling;
use super::mask::AttentionMask;
use super::product::{Matrix, OutputMode, product};
use crate::kernels::cpu_op::{CpuOperation, floats};
use crate::kernels::simd::{dot, exp_all, max_of, wide};

/// Attention of one layer, for tensors of these sizes.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub scaling: ScoreScaling,
    pub visible: AttentionMask,
    /// Whether all rows share some keys.
    pub shared: bool,
}

/// Tensors that the backward pass needs: the inputs, and `[batch, seq, heads]` logs of the sums of
/// exponentials.
#[derive(Debug)]
pub(crate) struct SavedAttention<const N: usize> {
    inputs: [TensorData; N],
    log_sums: Vec<f32>,
}

/// Number of rows of scores that are computed at once: enough to keep a matrix product busy, and
/// few enough to stay in the cache.
const SCORES: usize = 128;

impl<const N: usize> CpuOperation<N> for Attention {
    type SavedForBackward = SavedAttention<N>;

    /// Computes attention of q, own k and v in one block, and shared k and v where all rows share
    /// keys.
    fn forward(&self, inputs: [TensorData; N]) -> (TensorData, SavedAttention<N>) {
        let (output, log_sums) = self.attend(&inputs);
        (output, SavedAttention { inputs, log_sums })
    }

    fn backward(&self, saved: &SavedAttention<N>, grad: TensorData, wanted: [bool; N]) -> [Option<TensorData>; N] {
        let tensors = Tensors::new(self, &saved.inputs);
        let grads = floats(&grad);
        let tasks: Vec<(usize, usize)> =
            (0..tensors.batch).flat_map(|row| (0..self.kv_heads).map(move |kv| (row, kv))).collect();
        let parts: Vec<Part> =
            tasks.into_par_iter().map(|(row, kv)| tensors.backward(row, kv, grads, &saved.log_sums)).collect();

        // A part holds one key/value head; the tensors hold them side by side.
        let rows = |of: fn(&Part) -> &[f32], width: usize| {
            let tokens = of(&parts[0]).len() / width;
            let mut output = vec![0.0; parts.len() * tokens * width];
            output.par_chunks_mut(tokens * width * self.kv_heads).zip(parts.par_chunks(self.kv_heads)).for_each(
                |(row, parts)| {
                    for (kv, part) in parts.iter().enumerate() {
                        for (token, values) in row.chunks_mut(width * self.kv_heads).zip(of(part).chunks(width)) {
                            token[kv * width..(kv + 1) * width].copy_from_slice(values);
                        }
                    }
                },
            );
            output
        };
        // All rows share the past.
        let past = |of: fn(&Part) -> &[f32]| {
            let mut output = vec![0.0; tensors.past * self.kv_heads * self.dim];
            for (n, part) in parts.iter().enumerate() {
                let kv = n % self.kv_heads;
                for (token, values) in output.chunks_mut(self.kv_heads * self.dim).zip(of(part).chunks(self.dim)) {
                    token[kv * self.dim..].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
            }
            output
        };
        std::array::from_fn(|input| {
            wanted[input].then(|| {
                let values = match input {
                    0 => rows(|part| &part.q, self.heads / self.kv_heads * self.dim),
                    1 => rows(|part| &part.k, self.dim),
                    2 => rows(|part| &part.v, self.dim),
                    3 => past(|part| &part.past_k),
                    _ => past(|part| &part.past_v),
                };
                TensorData::new(values, saved.inputs[input].shape.clone())
            })
        })
    }
}

impl Attention {
    /// Returns the output, `[batch, seq, heads, head_dim]`, and for each query and head the log of
    /// the sum of its exponentials, `[batch, seq, heads]`.
    ///
    /// * `inputs`: q; k and v of each block of own keys; k and v of the shared keys, if any.
    pub(crate) fn attend(&self, inputs: &[TensorData]) -> (TensorData, Vec<f32>) {
        let tensors = Tensors::new(self, inputs);
        let (heads, width) = (self.heads, self.heads * self.dim);
        let mut output = vec![0.0; inputs[0].num_elements()];
        let mut log_sums = vec![0.0; output.len() / self.dim];
        let block = tensors.block();
        let rows =
            output.par_chunks_mut(tensors.seq * width).zip(log_sums.par_chunks_mut(tensors.seq * heads)).enumerate();
        rows.for_each(|(row, (output, log_sums))| {
            let blocks = output.par_chunks_mut(block * width).zip(log_sums.par_chunks_mut(block * heads)).enumerate();
            blocks.for_each(|(n, (output, log_sums))| {
                let queries = n * block..n * block + output.len() / width;
                let mut work = Block::new(&tensors, row, queries);
                for kv in 0..self.kv_heads {
                    work.forward(kv, output, log_sums);
                }
            });
        });
        (TensorData::new(output, inputs[0].shape.clone()), log_sums)
    }
}

/// The operation, with the numbers of its inputs.
struct Tensors<'a> {
    attention: &'a Attention,
    q: &'a [f32],
    own: Vec<Keys<'a>>,
    shared: Option<Keys<'a>>,
    batch: usize,
    seq: usize,
    /// Number of own keys of a row.
    keys: usize,
    /// Number of shared keys.
    past: usize,
}

/// Keys (0) and values (1), `[rows, keys, kv_heads, head_dim]`.
struct Keys<'a> {
    numbers: [&'a [f32]; 2],
    /// Positions of these keys among the row's own keys.
    positions: Range<usize>,
}

impl<'a> Keys<'a> {
    fn new(inputs: &'a [TensorData], first: usize) -> Self {
        Self { numbers: [floats(&inputs[0]), floats(&inputs[1])], positions: first..first + inputs[0].shape[1] }
    }

    /// Returns the keys or values of one row and key/value head at the positions `span`, and the
    /// first such position; `None` where there are none.
    fn matrix_at(
        &self,
        span: &Range<usize>,
        which: usize,
        row: usize,
        [kv, kv_heads, dim]: [usize; 3],
    ) -> Option<(usize, Matrix<'a>)> {
        let (start, end) = (span.start.max(self.positions.start), span.end.min(self.positions.end));
        let stride = kv_heads * dim;
        let at = (row * self.positions.len() + start - self.positions.start) * stride + kv * dim;
        (start < end).then(|| (start, Matrix::new(&self.numbers[which][at..], end - start, dim, stride)))
    }
}

/// Gradients to which one row and key/value head contributes.
struct Part {
    /// `[seq, heads of the group, head_dim]`.
    q: Vec<f32>,
    /// `[keys, head_dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[past, head_dim]`.
    past_k: Vec<f32>,
    past_v: Vec<f32>,
}

impl<'a> Tensors<'a> {
    fn new(attention: &'a Attention, inputs: &'a [TensorData]) -> Self {
        let (own, shared) = inputs[1..].split_at(inputs.len() - 1 - 2 * usize::from(attention.shared));
        let shared = attention.shared.then(|| Keys::new(shared, 0));
        let mut keys = 0;
        let block = |inputs: &'a [TensorData]| {
            let block = Keys::new(inputs, keys);
            keys = block.positions.end;
            block
        };
        Self {
            attention,
            q: floats(&inputs[0]),
            own: own.chunks(2).map(block).collect(),
            batch: inputs[0].shape[0],
            seq: inputs[0].shape[1],
            past: shared.as_ref().map_or(0, |shared| shared.positions.end),
            shared,
            keys,
        }
    }

    /// Returns the number of query heads that share a key.
    fn group(&self) -> usize {
        self.attention.heads / self.attention.kv_heads
    }

    /// Returns the number of queries of a block.
    fn block(&self) -> usize {
        (SCORES / self.group()).max(1)
    }

    fn backward(&self, row: usize, kv: usize, grads: &[f32], log_sums: &[f32]) -> Part {
        let dim = self.attention.dim;
        let zeros = |tokens: usize| vec![0.0; tokens * dim];
        let (own, past) = (self.keys, self.past);
        let mut part = Part {
            q: zeros(self.seq * self.group()),
            k: zeros(own),
            v: zeros(own),
            past_k: zeros(past),
            past_v: zeros(past),
        };
        for start in (0..self.seq).step_by(self.block()) {
            let queries = start..(start + self.block()).min(self.seq);
            Block::new(self, row, queries).backward(kv, grads, log_sums, &mut part);
        }
        part
    }
}

/// A block of a row's queries and the keys that any of them sees: the shared ones, then `span` of
/// the row's own. A block that sees none of its own is padding, and sees nothing.
///
/// Its rows are (query, head of the group), since those share the keys.
struct Block<'a> {
    tensors: &'a Tensors<'a>,
    row: usize,
    queries: Range<usize>,
    span: Range<usize>,
    /// `[queries · group, head_dim]`.
    gathered: Vec<f32>,
    /// The shared keys that any of the queries sees.
    past: Range<usize>,
    /// `[queries · group, past + span]`.
    scores: Vec<f32>,
}

impl<'a> Block<'a> {
    fn new(tensors: &'a Tensors<'a>, row: usize, queries: Range<usize>) -> Self {
        let span = tensors.attention.visible.span(row, queries.clone());
        let lines = queries.len() * tensors.group();
        let starts = queries.clone().map(|query| tensors.attention.visible.shared_start(row, query));
        let past = match starts.min() {
            Some(start) if !span.is_empty() => start.min(tensors.past)..tensors.past,
            _ => 0..0,
        };
        let scores = vec![0.0; lines * (past.len() + span.len())];
        Self { tensors, row, queries, span, gathered: vec![0.0; lines * tensors.attention.dim], past, scores }
    }

    fn lines(&self) -> usize {
        self.queries.len() * self.tensors.group()
    }

    /// Returns the number of keys that the block meets.
    fn width(&self) -> usize {
        self.past.len() + self.span.len()
    }

    /// Returns the block's keys (`which` 0) or values (1), each part with its column among the
    /// scores.
    fn keys(&self, which: usize, kv: usize) -> impl Iterator<Item = (usize, Matrix<'a>)> {
        let (tensors, row, past, span) = (self.tensors, self.row, self.past.clone(), self.span.clone());
        let head = [kv, tensors.attention.kv_heads, tensors.attention.dim];
        let before = past.len();
        let shared = tensors.shared.iter().filter_map(move |keys| {
            keys.matrix_at(&past, which, 0, head).map(|(first, keys)| (first - past.start, keys))
        });
        let own = tensors.own.iter().filter_map(move |keys| {
            keys.matrix_at(&span, which, row, head).map(|(first, keys)| (before + first - span.start, keys))
        });
        shared.chain(own)
    }

    /// Copies the block's lines of `tensor`, `[batch, seq, heads, head_dim]`, into `into`.
    fn gather(&self, tensor: &[f32], kv: usize, into: &mut [f32]) {
        let (dim, group) = (self.tensors.attention.dim, self.tensors.group());
        let stride = self.tensors.attention.heads * dim;
        let start = self.row * self.tensors.seq + self.queries.start;
        let tokens = tensor[start * stride..].chunks(stride);
        for (lines, token) in into.chunks_mut(group * dim).zip(tokens) {
            lines.copy_from_slice(&token[kv * group * dim..][..group * dim]);
        }
    }

    /// Computes `scores = scale · lines · [past; own]ᵀ`, with keys (`which` 0) or values (1).
    fn score(&self, lines: &[f32], which: usize, kv: usize, scale: f32, scores: &mut [f32]) {
        let dim = self.tensors.attention.dim;
        let lines = Matrix::new(lines, self.lines(), dim, dim);
        for (column, keys) in self.keys(which, kv) {
            product(&mut scores[column..], self.width(), lines, keys.transpose(), scale, OutputMode::Replace);
        }
    }

    /// Computes `output = scale · weights · [past; own]`, with keys (`which` 0) or values (1).
    fn mix(&self, weights: &[f32], which: usize, kv: usize, scale: f32, output: &mut [f32]) {
        let mut mode = OutputMode::Replace;
        for (column, keys) in self.keys(which, kv) {
            let weights = Matrix::new(&weights[column..], self.lines(), keys.rows(), self.width());
            product(output, self.tensors.attention.dim, weights, keys, scale, mode);
            mode = OutputMode::Add;
        }
    }

    /// Adds `weightsᵀ · lines` to `[past; own]`.
    fn collect(&self, weights: &[f32], lines: &[f32], past_sum: &mut [f32], own_sum: &mut [f32]) {
        let (dim, width, past) = (self.tensors.attention.dim, self.width(), self.past.len());
        let lines = Matrix::new(lines, self.lines(), dim, dim);
        if past > 0 {
            let weights = Matrix::new(weights, self.lines(), past, width).transpose();
            product(&mut past_sum[self.past.start * dim..], dim, weights, lines, 1.0, OutputMode::Add);
        }
        if !self.span.is_empty() {
            let weights = Matrix::new(&weights[past..], self.lines(), self.span.len(), width).transpose();
            product(&mut own_sum[self.span.start * dim..], dim, weights, lines, 1.0, OutputMode::Add);
        }
    }

    /// Returns the factor of the products of queries and keys.
    fn scale(&self) -> f32 {
        1.0 / (self.tensors.attention.scaling.query_scalar as f32).sqrt()
    }

    /// Returns the derivatives of the capped scores, of `masked_scores`, by the uncapped ones.
    fn cap_slopes(&self) -> Option<Vec<f32>> {
        let cap = self.tensors.attention.scaling.soft_cap? as f32;
        let slope = |&score: &f32| if score.is_finite() { 1.0 - (score / cap) * (score / cap) } else { 0.0 };
        Some(self.scores.iter().map(slope).collect())
    }

    /// Computes the scores of the queries, -∞ for keys that they do not see.
    fn masked_scores(&mut self, kv: usize) {
        let (mut gathered, mut scores) = (std::mem::take(&mut self.gathered), std::mem::take(&mut self.scores));
        self.gather(self.tensors.q, kv, &mut gathered);
        self.score(&gathered, 0, kv, self.scale(), &mut scores);
        if let Some(cap) = self.tensors.attention.scaling.soft_cap {
            let cap = cap as f32;
            scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
        }
        let past = self.past.len();
        for (line, scores) in scores.chunks_mut(self.width().max(1)).enumerate() {
            let query = self.queries.start + line / self.tensors.group();
            let visible = &self.tensors.attention.visible;
            let hidden = visible.shared_start(self.row, query).saturating_sub(self.past.start).min(past);
            scores[..hidden].fill(f32::NEG_INFINITY);
            let seen = &visible.seen_keys(self.row, query)[self.span.clone()];
            wide(|| {
                for (score, &seen) in scores[past..].iter_mut().zip(seen) {
                    *score = if seen { *score } else { f32::NEG_INFINITY };
                }
            });
        }
        (self.gathered, self.scores) = (gathered, scores);
    }

    /// Writes `[queries, heads, head_dim]` and the logs of the sums, `[queries, heads]`, of one
    /// key/value head.
    fn forward(&mut self, kv: usize, output: &mut [f32], log_sums: &mut [f32]) {
        if self.width() == 0 {
            log_sums.fill(f32::INFINITY);
            return;
        }
        self.masked_scores(kv);
        let (group, dim, heads) = (self.tensors.group(), self.tensors.attention.dim, self.tensors.attention.heads);
        let width = self.width();
        let mut factors = vec![0.0; self.lines()];
        for (line, scores) in self.scores.chunks_mut(width).enumerate() {
            let (shift, sum) = wide(|| {
                let shift = max_of(scores);
                // The weights of a query that sees nothing are all 0.
                let shift = if shift == f32::NEG_INFINITY { 0.0 } else { shift };
                (shift, exp_all(scores, shift))
            });
            factors[line] = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            let at = line / group * heads + kv * group + line % group;
            log_sums[at] = if sum == 0.0 { f32::INFINITY } else { shift + sum.ln() };
        }
        let mut attended = std::mem::take(&mut self.gathered);
        self.mix(&self.scores, 1, kv, 1.0, &mut attended);
        for (line, (values, factor)) in attended.chunks(dim).zip(&factors).enumerate() {
            let at = (line / group * heads + kv * group + line % group) * dim;
            wide(|| output[at..at + dim].iter_mut().zip(values).for_each(|(y, value)| *y = value * factor));
        }
        self.gathered = attended;
    }

    /// Computes the gradients. With P the weights and dO the output's gradient: `dV = Pᵀ dO`, `dP =
    /// dO Vᵀ`, `dS = P ∘ (dP − Σ P ∘ dP)`, times the slope of a soft cap, `dQ = dS K`, `dK = dSᵀ
    /// Q`.
    fn backward(&mut self, kv: usize, grads: &[f32], log_sums: &[f32], part: &mut Part) {
        if self.width() == 0 {
            return;
        }
        self.masked_scores(kv);
        let (group, dim, heads) = (self.tensors.group(), self.tensors.attention.dim, self.tensors.attention.heads);
        let width = self.width();
        let slopes = self.cap_slopes();
        let first = (self.row * self.tensors.seq + self.queries.start) * heads;
        for (line, scores) in self.scores.chunks_mut(width).enumerate() {
            let log_sum = log_sums[first + line / group * heads + kv * group + line % group];
            wide(|| exp_all(scores, log_sum));
        }
        let mut grad = vec![0.0; self.gathered.len()];
        self.gather(grads, kv, &mut grad);
        self.collect(&self.scores, &grad, &mut part.past_v, &mut part.v);
        let mut for_scores = vec![0.0; self.scores.len()];
        self.score(&grad, 1, kv, 1.0, &mut for_scores);
        let scale = self.scale();
        for (d, p) in for_scores.chunks_mut(width).zip(self.scores.chunks(width)) {
            wide(|| {
                let mean = dot(d, p);
                d.iter_mut().zip(p).for_each(|(d, p)| *d = scale * p * (*d - mean));
            });
        }
        if let Some(slopes) = slopes {
            for_scores.iter_mut().zip(slopes).for_each(|(d, slope)| *d *= slope);
        }
        self.collect(&for_scores, &self.gathered, &mut part.past_k, &mut part.k);
        let lines = self.queries.start * group * dim..self.queries.end * group * dim;
        self.mix(&for_scores, 0, kv, 1.0, &mut part.q[lines]);
    }
}
