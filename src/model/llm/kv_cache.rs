//! Keys and values of earlier tokens, and the layout of rows of different lengths.

use burn::prelude::*;

use crate::kernels::{LayerCache, RowGather};
use crate::tensor::indices;

/// Keys and values of earlier tokens, one [`LayerCache`] a layer; empty before the first pass.
///
/// A pass takes it and returns it with one more block, so that nothing in it is copied.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    /// The cache of each block.
    pub layers: Vec<LayerCache<B>>,
    /// Positions of each row's own keys, `[rows, keys]`, where the decoder has sliding windows;
    /// else empty. The keys that rows share stand at positions 0, 1, …
    pub(crate) own_positions: Vec<Vec<u32>>,
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self { layers: Vec::new(), own_positions: Vec::new() }
    }
}

impl<B: Backend> KvCache<B> {
    /// Makes a cache of keys and values that all rows share.
    pub(crate) fn from_shared(layers: Vec<LayerCache<B>>) -> Self {
        Self { layers, own_positions: Vec::new() }
    }

    /// Converts the cache of a single row, which began at position 0, into one that all rows of
    /// later passes share.
    pub fn into_shared(self) -> Self {
        let layer = |layer: LayerCache<B>| LayerCache { shared: Some(layer.into_whole()), own: Vec::new() };
        Self::from_shared(self.layers.into_iter().map(layer).collect())
    }

    /// Joins all own blocks after the first: the keys that are added token by token are copied, the
    /// first block is not.
    pub fn join_grown(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.join(1));
    }

    /// Returns the number of tokens that all rows share.
    pub(crate) fn shared_tokens(&self) -> usize {
        self.layers.first().and_then(|layer| layer.shared.as_ref()).map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Returns the positions of the rows' own keys, followed by those of one more block.
    pub(crate) fn positions_with(&self, block: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
        let own = |row: usize| self.own_positions.get(row % self.own_positions.len().max(1));
        let joined = |(row, more): (usize, Vec<u32>)| [own(row).map_or(&[][..], Vec::as_slice), &more].concat();
        block.into_iter().enumerate().map(joined).collect()
    }
}

/// Layout of tokens in rows.
///
/// Tokens stand one after the other, without padding, for everything but attention, where rows
/// stand side by side, padded on the right to the longest.
#[derive(Debug, Clone)]
pub struct Packing<B: Backend> {
    rows: usize,
    seq: usize,
    /// The layout where rows differ in length.
    ragged: Option<Ragged<B>>,
}

#[derive(Debug, Clone)]
struct Ragged<B: Backend> {
    /// `[rows]`: number of tokens of each row.
    lengths: Vec<usize>,
    /// `[rows · seq]`: index of the token of each padded slot.
    tokens: Tensor<B, 1, Int>,
    /// `[tokens]`: index of the padded slot of each token.
    slots: Tensor<B, 1, Int>,
    /// The gather from tokens to slots, for the CPU.
    gather: RowGather,
}

impl<B: Backend> Packing<B> {
    /// Returns the layout of rows of `seq` tokens each.
    pub fn even(rows: usize, seq: usize) -> Self {
        Self { rows, seq, ragged: None }
    }

    /// Returns the layout of rows of these lengths; some may be 0, but not all.
    pub fn new(lengths: &[usize], device: &B::Device) -> Self {
        let (rows, seq) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        if lengths.iter().all(|&length| length == seq) {
            return Self::even(rows, seq);
        }
        let mut tokens: Vec<Option<u32>> = Vec::with_capacity(rows * seq);
        let mut slots: Vec<usize> = Vec::new();
        for (row, &length) in lengths.iter().enumerate() {
            let first = slots.len();
            tokens.extend((0..seq).map(|at| (at < length).then_some((first + at) as u32)));
            slots.extend(row * seq..row * seq + length);
        }
        let gather = RowGather::new(tokens.clone(), slots.len());
        // A padded slot holds any token; no query sees it.
        let tokens = tokens.into_iter().map(|token| token.unwrap_or(0) as usize);
        let tokens = indices(tokens, slots.len(), device);
        let slots = indices(slots, rows * seq, device);
        Self { rows, seq, ragged: Some(Ragged { lengths: lengths.to_vec(), tokens, slots, gather }) }
    }

    /// Returns the number of tokens of the longest row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Returns the number of tokens of a row, if all rows have the same number.
    pub(super) fn even_seq(&self) -> Option<usize> {
        self.ragged.is_none().then_some(self.seq)
    }

    /// Splits `positions`, one for each token, into rows, padded on the right with further
    /// positions.
    pub(super) fn padded_positions(&self, positions: &[u32]) -> Vec<Vec<u32>> {
        let mut rest = positions;
        let row = |row: usize| {
            let length = self.ragged.as_ref().map_or(self.seq, |ragged| ragged.lengths[row]);
            let (own, after) = rest.split_at(length);
            rest = after;
            let next = own.last().map_or(0, |last| last + 1);
            own.iter().copied().chain(next..).take(self.seq).collect()
        };
        (0..self.rows).map(row).collect()
    }

    /// Pads rows on the right for attention.
    ///
    /// # Shapes
    /// `x`: `[tokens, heads · head_dim]`; the result: `[rows, heads, seq, head_dim]`.
    pub(crate) fn pad(&self, x: Tensor<B, 2>, heads: usize, dim: usize) -> Tensor<B, 4> {
        let x = match &self.ragged {
            None => x,
            Some(ragged) => ragged.gather.apply(x).unwrap_or_else(|x| x.select(0, ragged.tokens.clone())),
        };
        x.reshape([self.rows, self.seq, heads, dim]).swap_dims(1, 2)
    }

    /// Removes the padding.
    ///
    /// # Shapes
    /// `x`: `[rows, heads, seq, head_dim]`; the result: `[tokens, heads · head_dim]`.
    pub(crate) fn unpad(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let [_, heads, _, dim] = x.dims();
        let x = x.swap_dims(1, 2).reshape([self.rows * self.seq, heads * dim]);
        match &self.ragged {
            None => x,
            Some(ragged) => ragged.gather.inverse().apply(x).unwrap_or_else(|x| x.select(0, ragged.slots.clone())),
        }
    }
}
