//! A linear layer with an optional LoRA adapter beside it.
//!
//! LoRA: arXiv 2106.09685; semantics as PEFT's `LoraLayer` (peft/tuners/lora/layer.py,
//! `LoraLinear.forward`).

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use burn::tensor::FloatDType;

use super::quantized::QuantizedWeight;
use crate::config::Precision;
use crate::kernels::{dropout, frozen_product};

/// `y = x Wᵀ (+ bias) (+ scale · dropout(x) Aᵀ Bᵀ)`. The weight is `[out, in]`, as Hugging Face
/// stores it.
#[derive(Module, Debug)]
pub struct LoraLinear<B: Backend> {
    /// `[out, in]`.
    pub weight: Weight<B>,
    /// `[out]`, f32, of the families that have biases.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// The adapter, where this projection has one; in f32.
    pub lora: Option<Lora<B>>,
    /// The number type in which `x Wᵀ` is computed.
    #[module(skip)]
    pub precision: Precision,
}

/// A linear layer's `[out, in]` matrix.
#[derive(Module, Debug)]
pub enum Weight<B: Backend> {
    /// The matrix, in [`LoraLinear::precision`] where it is frozen, in f32 where it trains.
    Plain(Param<Tensor<B, 2>>),
    /// A frozen matrix in the blocks of its GGUF file.
    Quantized(QuantizedWeight<B>),
}

impl<B: Backend> Weight<B> {
    /// Returns the matrix in the type in which it is kept; f32 for blocks.
    ///
    /// # Shapes
    /// Output: `[out, in]`.
    pub fn dense(&self) -> Tensor<B, 2> {
        match self {
            Self::Plain(weight) => weight.val(),
            Self::Quantized(blocks) => blocks.dequantize(),
        }
    }

    /// Returns the shape, `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Plain(weight) => weight.dims(),
            Self::Quantized(blocks) => blocks.dims(),
        }
    }

    /// Returns whether the matrix trains.
    pub fn is_require_grad(&self) -> bool {
        matches!(self, Self::Plain(weight) if weight.val().is_require_grad())
    }
}

/// A low-rank update `scale · B A` of a weight `[out, in]`.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// `[rank, in]`; its initial values are kaiming-uniform with a = √5: uniform in ±1/√in.
    pub a: Param<Tensor<B, 2>>,
    /// `[out, rank]`; its initial values are 0.
    pub b: Param<Tensor<B, 2>>,
    /// Dropout of the input, only while training.
    pub dropout: Dropout,
    /// Factor of the update, alpha / rank.
    pub scale: f64,
}

impl<B: Backend> LoraLinear<B> {
    /// Applies the layer. The adapter's two thin products run on their own: neither `B A` nor a
    /// gradient of the frozen weight's shape is ever formed.
    ///
    /// # Shapes
    /// `x`: `[n, in]`; the result: `[n, out]`; both f32.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let precision = self.precision.dtype();
        let y = match &self.weight {
            Weight::Plain(weight) => {
                let weight = weight.val().cast(precision);
                x.clone().cast(precision).matmul(weight.transpose()).cast(FloatDType::F32)
            }
            Weight::Quantized(blocks) => {
                let blocks = blocks.clone().without_autodiff();
                frozen_product(x.clone(), move || blocks.dequantize().cast(precision))
            }
        };
        let y = match &self.bias {
            None => y,
            Some(bias) => y + bias.val().unsqueeze(),
        };
        match &self.lora {
            None => y,
            Some(lora) => y + lora.forward(x),
        }
    }

    /// Returns the weight with the adapter merged into it, f32.
    ///
    /// # Shapes
    /// Output: `[out, in]`.
    pub fn merged_weight(&self) -> Tensor<B, 2> {
        let weight = self.weight.dense().cast(FloatDType::F32);
        match &self.lora {
            None => weight,
            Some(lora) => weight + lora.b.val().matmul(lora.a.val()).mul_scalar(lora.scale),
        }
    }
}

impl<B: Backend> Lora<B> {
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let down = dropout(&self.dropout, x).matmul(self.a.val().transpose()).mul_scalar(self.scale);
        down.matmul(self.b.val().transpose())
    }
}
