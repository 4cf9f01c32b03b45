//! Attention masks: which keys each query sees.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::kernels::MASKED;
use crate::kernels::cpu_op::{is_cpu, is_cpu_device};

/// The mask of each row's own keys: which of them each query sees. The queries are the last tokens
/// among the keys.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    /// Rows of the batch, or 1 where all rows have the same mask.
    pub(super) rows: usize,
    queries: usize,
    keys: usize,
    /// `[rows, queries, keys]`.
    seen: Arc<[bool]>,
    /// `[rows, queries]`: the range from the first key that a query sees to the last; empty where
    /// it sees none.
    spans: Arc<[(usize, usize)]>,
    /// `[rows, queries]`: the first shared key that a query sees, where a sliding window hides
    /// earlier ones; `None` where every query sees all.
    shared_starts: Option<Arc<[usize]>>,
}

impl AttentionMask {
    /// Makes a mask.
    ///
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
        Self { rows, queries, keys, seen: seen.into(), spans, shared_starts: None }
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

    /// Returns the mask of a sliding window: a query sees the keys at its own position and the
    /// `window - 1` positions before it, among them the shared keys, which stand at positions 0, 1,
    /// …
    ///
    /// * `queries`, `keys`: positions of each row's queries and own keys.
    pub fn window(queries: &[Vec<u32>], keys: &[Vec<u32>], window: usize) -> Self {
        let alike = |rows: &[Vec<u32>]| rows.iter().all(|row| *row == rows[0]);
        let rows = if alike(queries) && alike(keys) { 1 } else { queries.len() };
        let counts = (queries.first().map_or(0, Vec::len), keys.first().map_or(0, Vec::len));
        let seen = (0..rows).flat_map(|row| {
            let keys = &keys[row % keys.len()];
            queries[row]
                .iter()
                .flat_map(move |&query| keys.iter().map(move |&key| key <= query && ((query - key) as usize) < window))
        });
        let starts = queries[..rows].iter().flatten().map(|&query| (query as usize + 1).saturating_sub(window));
        let starts: Vec<usize> = starts.collect();
        let mask = Self::new(rows, counts.0, counts.1, seen.collect());
        Self { shared_starts: Some(starts.into()), ..mask }
    }

    /// Returns the mask of the keys that both masks let a query see.
    ///
    /// # Panics
    /// If they are of other queries and keys.
    pub(crate) fn intersect(&self, other: &Self) -> Self {
        let rows = self.rows.max(other.rows);
        other.check(rows, self.queries, self.keys);
        let pairs = (0..rows).flat_map(|row| (0..self.queries).map(move |query| (row, query)));
        let both =
            |(row, query)| self.seen_keys(row, query).iter().zip(other.seen_keys(row, query)).map(|(a, b)| *a && *b);
        let seen = pairs.clone().flat_map(both).collect();
        let start = |(row, query)| self.shared_start(row, query).max(other.shared_start(row, query));
        let starts: Vec<usize> = pairs.map(start).collect();
        let shared_starts = (self.shared_starts.is_some() || other.shared_starts.is_some()).then(|| starts.into());
        Self { shared_starts, ..Self::new(rows, self.queries, self.keys, seen) }
    }

    /// Returns the first shared key that query `query` of `row` sees.
    pub(crate) fn shared_start(&self, row: usize, query: usize) -> usize {
        self.shared_starts.as_ref().map_or(0, |starts| starts[self.query_index(row, query)])
    }

    /// Converts an additive mask, `[rows, 1, queries, past + keys]`, of 0 and [`MASKED`]. `None` if
    /// it holds other values, or if a query does not see all of the past.
    fn try_from_additive(mask: &[f32], [rows, queries, total]: [usize; 3], past: usize) -> Option<Self> {
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
    pub fn seen_keys(&self, row: usize, query: usize) -> &[bool] {
        let at = self.query_index(row, query) * self.keys;
        &self.seen[at..at + self.keys]
    }

    /// Returns the range from the first key that any of `queries` sees to the last.
    pub(crate) fn span(&self, row: usize, queries: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let spans = &self.spans[self.query_index(row, queries.start)..][..queries.len()];
        let some = spans.iter().filter(|(start, end)| start < end);
        let (start, end) = some.fold((self.keys, 0), |(a, b), &(start, end)| (a.min(start), b.max(end)));
        start.min(end)..end
    }

    fn query_index(&self, row: usize, query: usize) -> usize {
        row % self.rows * self.queries + query
    }
}

/// The mask of one forward pass, in the form that is fastest on its device.
#[derive(Debug, Clone)]
pub enum Mask<B: Backend> {
    /// A mask for the CPU.
    Visible(AttentionMask),
    /// `[batch or 1, 1, seq, past + keys]`, added to the scores: 0 for a key that is seen,
    /// [`MASKED`] for others.
    Additive(Tensor<B, 4>),
}

impl<B: Backend> Mask<B> {
    /// Converts an additive mask whose first `past` keys all rows share.
    ///
    /// # Shapes
    /// `mask`: `[batch or 1, 1, seq, past + keys]`.
    pub fn from_additive(mask: Tensor<B, 4>, past: usize) -> Self {
        let [rows, _, queries, total] = mask.dims();
        let host = is_cpu(&mask).then(|| mask.to_data().to_vec::<f32>().ok()).flatten();
        let visible = host.and_then(|values| AttentionMask::try_from_additive(&values, [rows, queries, total], past));
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

    /// Returns the mask that sees what both see; `past` keys are shared by all rows.
    pub fn intersect(&self, other: &AttentionMask, past: usize) -> Self {
        match self {
            Self::Visible(mask) => Self::Visible(mask.intersect(other)),
            // Twice `MASKED` is the least finite number.
            Self::Additive(mask) => {
                let other = Self::Visible(other.clone()).additive(past, &mask.device());
                Self::Additive(mask.clone() + other)
            }
        }
    }

    /// Returns the mask as numbers to add to the scores.
    ///
    /// # Shapes
    /// Returns `[batch or 1, 1, seq, past + keys]`.
    pub(crate) fn additive(&self, past: usize, device: &B::Device) -> Tensor<B, 4> {
        match self {
            Self::Additive(mask) => mask.clone(),
            Self::Visible(mask) => {
                let AttentionMask { rows, queries, keys, .. } = mask;
                let additive = |seen: bool| if seen { 0.0 } else { MASKED };
                let pairs = (0..*rows).flat_map(|row| (0..*queries).map(move |query| (row, query)));
                let values = pairs.flat_map(|(row, query)| {
                    let start = mask.shared_start(row, query);
                    let shared = (0..past).map(move |key| key >= start);
                    shared.chain(mask.seen_keys(row, query).iter().copied()).map(additive)
                });
                Tensor::from_data(
                    TensorData::new(values.collect::<Vec<f32>>(), [*rows, 1, *queries, past + keys]),
                    device,
                )
            }
        }
    }
}
