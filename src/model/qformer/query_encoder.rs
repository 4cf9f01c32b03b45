//! The Q-Former's queries without its text branch, as phase 2 uses them.
//!
//! Reference: LAVIS, lavis/models/blip2_models/blip2_opt.py, which drops the text's embeddings,
//! feed-forwards and head.

use burn::module::Param;
use burn::nn::{Dropout, LayerNorm};
use burn::prelude::*;

use crate::model::QFormer;
use crate::model::bert::{Attention, FeedForward};

/// Learned queries that read an entity's vectors.
#[derive(Module, Debug)]
pub struct QueryEncoder<B: Backend> {
    /// Learned queries, `[1, K, hidden]`; they have no positions.
    pub query_tokens: Param<Tensor<B, 3>>,
    /// Norm of each of the entity's vectors.
    pub vector_norm: LayerNorm<B>,
    /// Norm of the queries.
    pub norm: LayerNorm<B>,
    /// Dropout after the norm.
    pub dropout: Dropout,
    /// The blocks, first to last.
    pub layers: Vec<QueryLayer<B>>,
}

/// One block.
#[derive(Module, Debug)]
pub struct QueryLayer<B: Backend> {
    /// Self-attention of the queries.
    pub attention: Attention<B>,
    /// Attention from the queries to the entity's vectors, in some of the blocks.
    pub cross_attention: Option<Attention<B>>,
    /// Feed-forward of the queries.
    pub feed_forward: FeedForward<B>,
}

impl<B: Backend> QueryEncoder<B> {
    /// Takes the query branch of `qformer`; the two share their parameters.
    pub fn new(qformer: &QFormer<B>) -> Self {
        let layers = qformer.layers.iter().map(|layer| QueryLayer {
            attention: layer.attention.clone(),
            cross_attention: layer.cross_attention.clone(),
            feed_forward: layer.query_feed_forward.clone(),
        });
        Self {
            query_tokens: qformer.query_tokens.clone(),
            vector_norm: qformer.vector_norm.clone(),
            norm: qformer.embeddings.norm.clone(),
            dropout: qformer.embeddings.dropout.clone(),
            layers: layers.collect(),
        }
    }

    /// Runs the queries over an entity's vectors.
    ///
    /// # Shapes
    /// `[batch, n, vector_width]` → `[batch, K, hidden]`.
    pub fn forward(&self, vectors: Tensor<B, 3>) -> Tensor<B, 3> {
        let queries = self.query_tokens.val().repeat_dim(0, vectors.dims()[0]);
        let vectors = self.vector_norm.forward(vectors);
        let x = self.dropout.forward(self.norm.forward(queries));
        self.layers.iter().fold(x, |x, layer| {
            let x = layer.attention.forward(x, None, None);
            let x = match &layer.cross_attention {
                Some(cross) => cross.forward(x, Some(vectors.clone()), None),
                None => x,
            };
            layer.feed_forward.forward(x)
        })
    }
}
