//! A linear layer without bias, with an optional LoRA adapter beside it.
//!
//! LoRA: arXiv 2106.09685; semantics as PEFT's `LoraLayer` (peft/tuners/lora/layer.py, `Linear.forward`).

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;

use super::fused::dropout;

/// `y = x Wᵀ (+ scale · dropout(x) Aᵀ Bᵀ)`. The weight is `[out, in]`, as Hugging Face stores it.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// The adapter, where this projection has one.
    pub lora: Option<Lora<B>>,
}

/// A low-rank update `scale · B A` of a weight `[out, in]`.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// `[rank, in]`, starts kaiming-uniform with a = √5: uniform in ±1/√in.
    pub a: Param<Tensor<B, 2>>,
    /// `[out, rank]`, starts at zero.
    pub b: Param<Tensor<B, 2>>,
    /// On the input, only while training.
    pub dropout: Dropout,
    /// alpha / rank.
    pub scale: f64,
}

impl<B: Backend> Linear<B> {
    /// `[n, in]` → `[n, out]`. The adapter's two thin products run on their own: neither `B A` nor a gradient of the frozen
    /// weight's shape is ever formed.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = x.clone().matmul(self.weight.val().transpose());
        match &self.lora {
            None => y,
            Some(lora) => y + lora.forward(x),
        }
    }

    /// `[out, in]`: the weight with the adapter merged into it.
    pub fn merged(&self) -> Tensor<B, 2> {
        match &self.lora {
            None => self.weight.val(),
            Some(lora) => self.weight.val() + lora.b.val().matmul(lora.a.val()).mul_scalar(lora.scale),
        }
    }
}

impl<B: Backend> Lora<B> {
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let down = dropout(&self.dropout, x).matmul(self.a.val().transpose()).mul_scalar(self.scale);
        down.matmul(self.b.val().transpose())
    }
}
