//! The Q-Former with the heads that phase 1 trains it through.
//!
//! Reference: LAVIS, lavis/models/blip2_models/blip2_qformer.py (`Blip2Qformer`: `vision_proj`, `text_proj`, `itm_head`, `temp`).

use std::path::Path;

use burn::module::Param;
use burn::prelude::*;

use super::bert::{Dense, unit_length};
use super::parameters::{BertTensors, Parameters, Start};
use super::{QFormer, QFormerConfig};
use crate::Result;

/// The learned temperatures act within these (ALBEF's bounds; LAVIS has none, and could come to divide by zero).
const TEMPERATURES: (f64, f64) = (0.001, 0.5);

/// A Q-Former with what phase 1 alone needs.
#[derive(Module, Debug)]
pub struct Aligner<B: Backend> {
    /// What phase 2 takes over.
    pub qformer: QFormer<B>,
    /// From a query's hidden state to the space of contrast, `[p, hidden]`.
    pub query_projection: Dense<B>,
    /// From `[CLS]`'s hidden state to it, `[p, hidden]`.
    pub text_projection: Dense<B>,
    /// From a query's hidden state to "does not match" and "matches", `[2, hidden]`.
    pub matching: Dense<B>,
    /// Learned, `[1]`: of item and text.
    pub temperature: Param<Tensor<B, 1>>,
    /// Learned, `[1]`: of item and item, user and item.
    pub pair_temperature: Param<Tensor<B, 1>>,
}

impl<B: Backend> Aligner<B> {
    /// As [`QFormer::new`]; the heads start as torch's linear layers: uniform in ±1/√hidden. `width` is that of the space of contrast.
    ///
    /// # Errors
    /// Those of [`QFormer::new`].
    pub fn new(
        config: &QFormerConfig,
        width: usize,
        temperature: f64,
        bert: Option<&Path>,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self> {
        let weights = bert.map(BertTensors::open).transpose()?;
        let mut from = Parameters { weights, seed, trains: true, device, made: 0 };
        let qformer = QFormer::build(config, &mut from)?;
        let hidden = config.text.hidden_size;
        let start = Start::Uniform(1.0 / (hidden as f32).sqrt());
        let mut head = |out| Dense::drawn(&mut from, out, hidden, start);
        let (query_projection, text_projection, matching) = (head(width), head(width), head(2));
        let mut scalar = || from.drawn([1], Start::Constant(temperature as f32));
        let (temperature, pair_temperature) = (scalar(), scalar());
        Ok(Self { qformer, query_projection, text_projection, matching, temperature, pair_temperature })
    }

    /// Hidden states of queries `[b, K, hidden]` → `[b, K, p]`, of length 1.
    pub fn query_features(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [b, k, width] = hidden.dims();
        let features = unit_length(self.query_projection.forward(hidden.reshape([b * k, width])));
        let p = features.dims()[1];
        features.reshape([b, k, p])
    }

    /// Hidden states of texts `[b, seq, hidden]` → `[b, p]`, of length 1: those of the first token.
    pub fn text_features(&self, hidden: Tensor<B, 3>) -> Tensor<B, 2> {
        let [b, _, width] = hidden.dims();
        unit_length(self.text_projection.forward(hidden.narrow(1, 0, 1).reshape([b, width])))
    }

    /// Hidden states of queries that met a text, `[b, K, hidden]` → logits `[b, 2]`, averaged over the queries.
    pub fn match_logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 2> {
        let [b, _, width] = hidden.dims();
        // The head is linear: the mean of its outputs is its output for the mean.
        self.matching.forward(hidden.mean_dim(1).reshape([b, width]))
    }

    /// Similarities over the learned temperature.
    pub fn over_temperature(similarity: Tensor<B, 2>, temperature: &Param<Tensor<B, 1>>) -> Tensor<B, 2> {
        similarity / temperature.val().clamp(TEMPERATURES.0, TEMPERATURES.1).unsqueeze()
    }
}
