//! Attention masks: which keys each query sees.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::kernels::MASKED;
use crate::kernels::cpu_op::{is_cpu, is_cpu_device};

/// Which of its row's own keys each query sees. The queries are the last tokens among the keys.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    /// Rows of the batch, or 1 where all rows have the same mask.
    rows: usize,
    queries: usize,
    keys: usize,
    /// `[rows, queries, keys]`.
    seen: Arc<[bool]>,
    /// `[rows, queries]`: the range from the first key that a query sees to the last; empty where
    /// it sees none.
    spans: Arc<[(usize, usize)]>,
}

impl AttentionMask {
    /// * `seen`: `[rows, queries, keys]`; one row stands for all rows of a batch.
    ///
    /// # Panics
    /// If `seen` is not that long.
    pub fn new(rows: usize, queries: usize, keys: usize, seen: Vec<bool>) -> Self {
        assert_eq!(seen.len(), rows * queries * keys, "rows × queries × keys");
        let span = |query: &[bool]| {
            let end = query.iter().rposition(|&s| s).map_or(0, |last| last + 1);
            (query.iter().position(|&s| s).unwrap_or(0), end)
        };
        let spans = seen.chunks(keys.max(1)).map(span).collect();
        Self { rows, queries, keys, seen: seen.into(), spans }
    }

    /// Returns the causal mask: each of `seq` tokens sees itself and those before it.
    pub fn causal(seq: usize) -> Self {
        Self::new(1, seq, seq, (0..seq * seq).map(|at| at % seq <= at / seq).collect())
    }

    /// Returns the mask of token trees: each token sees itself and its ancestors.
    ///
    /// * `rows`: for each token of a row the index of its parent, which comes before it; shorter
    ///   rows are padded with tokens that see only themselves.
    ///
    /// # Panics
    /// If a parent does not come before its child.
    pub fn trees(rows: &[Vec<Option<usize>>]) -> Self {
        let seq = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut seen = vec![false; rows.len() * seq * seq];
        for (row, parents) in seen.chunks_mut((seq * seq).max(1)).zip(rows) {
            for token in 0..seq {
                if let Some(&Some(parent)) = parents.get(token) {
                    assert!(parent < token, "a parent comes before its children");
                    row.copy_within(parent * seq..(parent + 1) * seq, token * seq);
                }
                row[token * seq + token] = true;
            }
        }
        Self::new(rows.len(), seq, seq, seen)
    }

    /// Converts an additive mask, `[rows, 1, queries, past + keys]`, of 0 and [`MASKED`]. `None` if
    /// it holds other values, or if a query does not see all of the past.
    fn of_additive(mask: &[f32], [rows, queries, total]: [usize; 3], past: usize) -> Option<Self> {
        let known = mask.iter().all(|&m| m == 0.0 || m <= MASKED);
        let sees_past = mask.chunks(total).all(|query| query[..past].iter().all(|&m| m == 0.0));
        let own = || mask.chunks(total).flat_map(|query| query[past..].iter().map(|&m| m == 0.0)).collect();
        (known && sees_past).then(|| Self::new(rows, queries, total - past, own()))
    }

    /// Checks the mask against the shape of a pass.
    ///
    /// # Panics
    /// If they differ.
    pub(crate) fn check(&self, batch: usize, queries: usize, keys: usize) {
        assert!(self.rows == 1 || self.rows == batch, "the mask's rows are the batch's");
        assert_eq!((self.queries, self.keys), (queries, keys), "the mask is of these queries and keys");
    }

    /// Returns, for each key, whether query `query` of `row` sees it.
    pub fn of(&self, row: usize, query: usize) -> &[bool] {
        let at = self.at(row, query) * self.keys;
        &self.seen[at..at + self.keys]
    }

    /// Returns the range from the first key that any of `queries` sees to the last.
    pub(crate) fn span(&self, row: usize, queries: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let spans = &self.spans[self.at(row, queries.start)..][..queries.len()];
        let some = spans.iter().filter(|(start, end)| start < end);
        let (start, end) = some.fold((self.keys, 0), |(a, b), &(start, end)| (a.min(start), b.max(end)));
        start.min(end)..end
    }

    fn at(&self, row: usize, query: usize) -> usize {
        row % self.rows * self.queries + query
    }
}

/// The mask of one forward pass, in the form that is fastest on its device.
#[derive(Debug, Clone)]
pub enum Mask<B: Backend> {
    /// On the CPU.
    Visible(AttentionMask),
    /// `[batch or 1, 1, seq, past + keys]`, added to the scores: 0 for a key that is seen,
    /// [`MASKED`] for others.
    Additive(Tensor<B, 4>),
}

impl<B: Backend> Mask<B> {
    /// Converts an additive mask, `[batch or 1, 1, seq, past + keys]`, whose first `past` keys all
    /// rows share.
    pub fn from_additive(mask: Tensor<B, 4>, past: usize) -> Self {
        let [rows, _, queries, total] = mask.dims();
        let host = is_cpu(&mask).then(|| mask.to_data().to_vec::<f32>().ok()).flatten();
        let visible = host.and_then(|values| AttentionMask::of_additive(&values, [rows, queries, total], past));
        visible.map_or(Self::Additive(mask), Self::Visible)
    }

    /// Returns `visible` in the form for `device`; before the own keys stand `past` keys that all
    /// rows share.
    pub fn new(visible: AttentionMask, past: usize, device: &B::Device) -> Self {
        match is_cpu_device::<B>(device) {
            true => Self::Visible(visible),
            false => Self::Additive(Self::Visible(visible).additive(past, device)),
        }
    }

    /// Returns the additive mask, `[batch or 1, 1, seq, past + keys]`.
    pub(crate) fn additive(&self, past: usize, device: &B::Device) -> Tensor<B, 4> {
        match self {
            Self::Additive(mask) => mask.clone(),
            Self::Visible(AttentionMask { rows, queries, keys, seen, .. }) => {
                let values = seen.chunks((*keys).max(1)).flat_map(|query| {
                    let own = query.iter().map(|&seen| if seen { 0.0 } else { MASKED });
                    std::iter::repeat_n(0.0, past).chain(own)
                });
                Tensor::from_data(
                    TensorData::new(values.collect::<Vec<f32>>(), [*rows, 1, *queries, past + keys]),
                    device,
                )
            }
        }
    }
}
