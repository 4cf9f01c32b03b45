//! Numbers and bytes of a model's weights and of the optimiser's state.

use serde::Serialize;

use super::{F32, MemoryEstimator};
use crate::config::Precision;
use crate::model::{QuantizedSize, Tune};

/// Number of parameters of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ParameterCount {
    /// Parameters that have a gradient.
    pub trained: u64,
    /// Parameters that have none.
    pub frozen: u64,
}

/// Bytes of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WeightBytes {
    /// The blocks' projections: in `llm.precision` or quantised where they are frozen, in f32 where
    /// they train.
    pub projections: u64,
    /// The embeddings, the norms and the biases, f32.
    pub embeddings: u64,
    /// The output projection, f32; 0 where the embeddings serve as the output projection.
    pub head: u64,
    /// LoRA's matrices, f32.
    pub adapters: u64,
    /// The encoder of items and users and the vectors that it reads, f32.
    pub encoder: u64,
}

impl WeightBytes {
    /// Returns their sum.
    pub fn total(&self) -> u64 {
        self.projections + self.embeddings + self.head + self.adapters + self.encoder
    }
}

impl MemoryEstimator<'_> {
    /// Counts the parameters of the whole model.
    pub fn parameters(&self) -> ParameterCount {
        let llm = self.projection_numbers() + self.embedding_numbers() + self.head_numbers();
        let encoder = self.encoder.map_or(0, |encoder| encoder.num_params(self.hidden() as usize));
        match self.tune {
            Tune::Full => ParameterCount { trained: llm + encoder, frozen: 0 },
            _ => ParameterCount { trained: self.adapter_numbers() + encoder, frozen: llm },
        }
    }

    /// Returns the bytes of the whole model.
    pub fn weights(&self) -> WeightBytes {
        let halved = self.precision != Precision::F32 && !self.is_full();
        let QuantizedSize { bytes, plain_bytes, .. } = self.quantized.unwrap_or_default();
        let plain = self.projection_numbers() - plain_bytes as u64 / F32;
        let vectors = self.encoder.map_or(0, |encoder| (self.entities * encoder.vector_width()) as u64);
        WeightBytes {
            projections: bytes as u64 + plain * if halved { 2 } else { F32 },
            embeddings: self.embedding_numbers() * F32,
            head: self.head_numbers() * F32,
            adapters: self.adapter_numbers() * F32,
            encoder: (self.encoder.map_or(0, |encoder| encoder.num_params(self.hidden() as usize)) + vectors) * F32,
        }
    }

    /// Returns the bytes of AdamW's two moments of all trainable parameters.
    pub fn optimizer(&self) -> u64 {
        2 * self.parameters().trained * F32
    }

    fn projection_numbers(&self) -> u64 {
        let projections = self.decoder.projections().into_iter();
        self.layers() * projections.map(|(_, _, [out, width])| (out * width) as u64).sum::<u64>()
    }

    /// Counts the numbers of a block's norms and biases.
    fn vector_numbers(&self) -> u64 {
        let vectors = self.decoder.block_tensors().into_iter().filter(|tensor| tensor.shape.len() == 1);
        vectors.map(|tensor| tensor.shape[0] as u64).sum()
    }

    fn adapter_numbers(&self) -> u64 {
        let Tune::Lora(lora, _) = self.tune else { return 0 };
        let adapted = self.decoder.projections().into_iter().filter(|(_, module, _)| lora.adapts(module));
        self.layers() * adapted.map(|(_, _, [out, width])| (lora.rank * (out + width)) as u64).sum::<u64>()
    }

    pub(super) fn embedding_rows(&self) -> u64 {
        self.decoder.vocab_size as u64 * self.hidden()
    }

    /// Returns the numbers of the embeddings, of all norms and of all biases.
    fn embedding_numbers(&self) -> u64 {
        self.embedding_rows() + self.layers() * self.vector_numbers() + self.hidden()
    }

    fn head_numbers(&self) -> u64 {
        if self.decoder.tie_word_embeddings { 0 } else { self.embedding_rows() }
    }
}
