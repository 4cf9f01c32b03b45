//! The Q-Former with the heads that phase 1 trains it with.
//!
//! Reference: LAVIS, lavis/models/blip2_models/blip2_qformer.py (`Blip2Qformer`: `vision_proj`,
//! `text_proj`, `itm_head`, `temp`).

use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use crate::Result;
use crate::model::bert::{Linear, unit_length};
use crate::model::parameters::{BertTensors, Init, Parameters};
use crate::model::{QFormer, QFormerConfig};

/// Bounds of the learned temperatures (ALBEF's; LAVIS has none, and could divide by zero).
const TEMPERATURES: (f64, f64) = (0.001, 0.5);

/// A Q-Former with the heads that only phase 1 needs.
#[derive(Module, Debug)]
pub struct Aligner<B: Backend> {
    /// The Q-Former, which phase 2 trains further.
    pub qformer: QFormer<B>,
    /// Projection of a query's hidden state to the space that contrastive losses compare, `[p,
    /// hidden]`.
    pub query_projection: Linear<B>,
    /// Projection of `[CLS]`'s hidden state to the same space, `[p, hidden]`.
    pub text_projection: Linear<B>,
    /// Projection of a query's hidden state to "does not match" and "matches", `[2, hidden]`.
    pub matching: Linear<B>,
    /// Learned temperature of item and text, `[1]`.
    pub temperature: Param<Tensor<B, 1>>,
    /// Learned temperature of item and item, user and item, `[1]`.
    pub pair_temperature: Param<Tensor<B, 1>>,
}

impl<B: Backend> Aligner<B> {
    /// Returns the names and shapes of the parameters that show every size of an aligner.
    pub fn sizes(config: &QFormerConfig, width: usize) -> Vec<(String, Vec<usize>)> {
        let (text, hidden) = (&config.text, config.text.hidden_size);
        let mut sizes = vec![
            ("qformer.query_tokens".to_string(), vec![1, config.queries, hidden]),
            ("qformer.vector_norm.gamma".to_string(), vec![config.vector_width]),
            ("qformer.embeddings.words".to_string(), vec![text.vocab_size + 1, hidden]),
            ("qformer.embeddings.positions".to_string(), vec![text.max_position_embeddings, hidden]),
            ("query_projection.weight".to_string(), vec![width, hidden]),
        ];
        for layer in 0..text.num_hidden_layers {
            let name = |part: &str| format!("qformer.layers.{layer}.{part}.weight");
            sizes.push((name("attention.query"), vec![hidden, hidden]));
            sizes.push((name("text_feed_forward.intermediate"), vec![text.intermediate_size, hidden]));
            if layer.is_multiple_of(config.cross_attention_every) {
                sizes.push((name("cross_attention.key"), vec![hidden, config.vector_width]));
            }
        }
        sizes
    }

    /// Makes a Q-Former to train ([`QFormer::new`]) with heads that begin as torch's linear layers:
    /// uniform in ±1/√hidden. `width` is that of the contrastive space.
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
        let mut from = Parameters { weights, seed, trains: true, device, count: 0 };
        let qformer = QFormer::build(config, &mut from)?;
        let hidden = config.text.hidden_size;
        let init = Init::Uniform(1.0 / (hidden as f32).sqrt());
        let mut head = |out| Linear::init(&mut from, out, hidden, init);
        let (query_projection, text_projection, matching) = (head(width), head(width), head(2));
        let mut scalar = || from.init([1], Init::Constant(temperature as f32));
        let (temperature, pair_temperature) = (scalar(), scalar());
        Ok(Self { qformer, query_projection, text_projection, matching, temperature, pair_temperature })
    }

    /// Projects the queries' hidden states to vectors of length 1.
    ///
    /// # Shapes
    /// `[b, K, hidden]` → `[b, K, p]`.
    pub fn query_features(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [b, k, width] = hidden.dims();
        let features = unit_length(self.query_projection.forward(hidden.reshape([b * k, width])));
        let p = features.dims()[1];
        features.reshape([b, k, p])
    }

    /// Projects the hidden state of each text's first token to a vector of length 1.
    ///
    /// # Shapes
    /// `[b, seq, hidden]` → `[b, p]`.
    pub fn text_features(&self, hidden: Tensor<B, 3>) -> Tensor<B, 2> {
        let [b, _, width] = hidden.dims();
        unit_length(self.text_projection.forward(hidden.narrow(1, 0, 1).reshape([b, width])))
    }

    /// Computes the logits of "does not match" and "matches", averaged over the queries, of the
    /// hidden states of queries that ran together with a text.
    ///
    /// # Shapes
    /// `[b, K, hidden]` → `[b, 2]`.
    pub fn match_logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 2> {
        let [b, _, width] = hidden.dims();
        // The head is linear: the mean of its outputs is its output for the mean.
        self.matching.forward(hidden.mean_dim(1).reshape([b, width]))
    }

    /// Divides similarities by the learned temperature.
    ///
    /// # Shapes
    /// `similarity` and the result `[rows, columns]`.
    pub fn over_temperature(similarity: Tensor<B, 2>, temperature: &Param<Tensor<B, 1>>) -> Tensor<B, 2> {
        similarity / temperature.val().unsqueeze()
    }
}

impl<B: AutodiffBackend> Aligner<B> {
    /// Moves the learned temperatures back between 0.001 and 0.5; to be called after each optimiser
    /// step.
    ///
    /// CLIP does so with its `logit_scale`, and so does ALBEF: a clamp in the forward pass has no
    /// gradient beyond its bounds, so a temperature that a step takes there would never come back.
    pub fn clamp_temperatures(mut self) -> Self {
        let clamped = |param: Param<Tensor<B, 1>>| {
            param.map(|tensor| {
                let trains = tensor.is_require_grad();
                Tensor::from_inner(tensor.inner().clamp(TEMPERATURES.0, TEMPERATURES.1)).set_require_grad(trains)
            })
        };
        (self.temperature, self.pair_temperature) = (clamped(self.temperature), clamped(self.pair_temperature));
        self
    }
}

#[cfg(test)]
mod tests {
    use burn::optim::{GradientsParams, Optimizer};
    use burn::tensor::TensorData;
    use burn::{Dispatch, DispatchDevice};

    use super::*;
    use crate::device::BackendName;
    use crate::model::BertConfig;
    use crate::tensor::AUTODIFF;
    use crate::train::adamw;

    /// A step past a bound ends at the bound, and the next step may leave it again.
    #[test]
    fn temperatures_come_back_from_their_bounds() {
        let _one_graph = AUTODIFF.lock().unwrap();
        let device = DispatchDevice::autodiff(BackendName::Cpu.device().unwrap());
        let text = BertConfig {
            vocab_size: 5,
            hidden_size: 4,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 4,
            max_position_embeddings: 4,
            ..BertConfig::default()
        };
        let config = QFormerConfig { queries: 1, vector_width: 2, cross_attention_every: 1, text };
        let mut aligner = Aligner::<Dispatch>::new(&config, 2, 0.49, None, 1, &device).unwrap();
        let mut optimizer = adamw::<Aligner<Dispatch>, Dispatch>(0.0);
        let mut values = Vec::new();
        // The loss falls with the temperature, then rises with it: Adam's first moment takes some
        // steps to turn.
        for sign in [1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0] {
            let one = Tensor::<Dispatch, 2>::from_data(TensorData::new(vec![sign], [1, 1]), &device);
            let loss = Aligner::over_temperature(one, &aligner.temperature).sum();
            let grads = GradientsParams::from_grads(loss.backward(), &aligner);
            aligner = optimizer.step(0.05, aligner, grads).clamp_temperatures();
            values.push(aligner.temperature.val().into_scalar().elem::<f64>());
        }
        assert!(values[..2].iter().all(|value| (value - 0.5).abs() < 1e-6), "{values:?}");
        assert!(values[7] < 0.49, "{values:?}");
        assert!(aligner.temperature.val().is_require_grad());
    }
}
