//! What a forward pass keeps of the tokens it ran, and how rows of different lengths run together.

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::kernels::{LayerCache, RowGather};

/// Keys and values of the tokens that ran, one [`LayerCache`] a layer; of none, empty.
///
/// A pass takes it and gives it back with a block more, so that nothing in it is copied.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    /// A cache of each block.
    pub layers: Vec<LayerCache<B>>,
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self { layers: Vec::new() }
    }
}

impl<B: Backend> KvCache<B> {
    /// Of a single row: shared by all rows of the passes to come.
    pub fn into_shared(self) -> Self {
        let layer = |layer: LayerCache<B>| LayerCache { shared: Some(layer.into_whole()), own: Vec::new() };
        Self { layers: self.layers.into_iter().map(layer).collect() }
    }

    /// All own blocks behind the first as one: what grows token by token is copied, what it grows
    /// from is not.
    pub fn join_grown(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.join(1));
    }

    /// Tokens that all rows share.
    pub(crate) fn shared_tokens(&self) -> usize {
        self.layers.first().and_then(|layer| layer.shared.as_ref()).map_or(0, |(keys, _)| keys.dims()[2])
    }
}

/// Which tokens are which rows'.
///
/// Tokens stand one after the other, without padding, for everything but attention, where rows
/// stand side by side, padded on the right to the longest.
#[derive(Debug, Clone)]
pub struct Packing<B: Backend> {
    rows: usize,
    seq: usize,
    /// Where rows differ in length.
    ragged: Option<Ragged<B>>,
}

#[derive(Debug, Clone)]
struct Ragged<B: Backend> {
    /// `[rows · seq]`: the token at each place.
    tokens: Tensor<B, 1, Int>,
    /// `[tokens]`: the place of each token.
    places: Tensor<B, 1, Int>,
    /// From tokens to places, for the CPU.
    moves: RowGather,
}

impl<B: Backend> Packing<B> {
    /// Rows of `seq` tokens each.
    pub fn even(rows: usize, seq: usize) -> Self {
        Self { rows, seq, ragged: None }
    }

    /// Rows of these lengths; some may be 0, not all.
    pub fn new(lengths: &[usize], device: &B::Device) -> Self {
        let (rows, seq) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        if lengths.iter().all(|&length| length == seq) {
            return Self::even(rows, seq);
        }
        let mut tokens: Vec<Option<u32>> = Vec::with_capacity(rows * seq);
        let mut places: Vec<i32> = Vec::new();
        for (row, &length) in lengths.iter().enumerate() {
            let first = places.len();
            tokens.extend((0..seq).map(|at| (at < length).then_some((first + at) as u32)));
            places.extend((row * seq..row * seq + length).map(|place| place as i32));
        }
        let ints = |values: Vec<i32>| {
            let count = values.len();
            Tensor::from_data(TensorData::new(values, [count]), device)
        };
        let moves = RowGather::new(tokens.clone(), places.len());
        // Padding is some token, which nobody sees.
        let tokens = ints(tokens.into_iter().map(|token| token.unwrap_or(0) as i32).collect());
        Self { rows, seq, ragged: Some(Ragged { tokens, places: ints(places), moves }) }
    }

    /// Tokens of the longest row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// `[tokens, heads · head_dim]` → `[rows, heads, seq, head_dim]`.
    pub(crate) fn pad(&self, x: Tensor<B, 2>, heads: usize, dim: usize) -> Tensor<B, 4> {
        let x = match &self.ragged {
            None => x,
            Some(ragged) => ragged.moves.apply(x).unwrap_or_else(|x| x.select(0, ragged.tokens.clone())),
        };
        x.reshape([self.rows, self.seq, heads, dim]).swap_dims(1, 2)
    }

    /// `[rows, heads, seq, head_dim]` → `[tokens, heads · head_dim]`.
    pub(crate) fn unpad(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let [_, heads, _, dim] = x.dims();
        let x = x.swap_dims(1, 2).reshape([self.rows * self.seq, heads * dim]);
        match &self.ragged {
            None => x,
            Some(ragged) => ragged.moves.inverse().apply(x).unwrap_or_else(|x| x.select(0, ragged.places.clone())),
        }
    }
}
