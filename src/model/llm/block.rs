//! One block of a decoder: attention and a gated feed-forward, each added to the residual stream.

use burn::prelude::*;

use super::config::DecoderConfig;
use super::kv_cache::Packing;
use super::lora_linear::LoraLinear;
use super::norm::Norm;
use super::tensors::{NormRole, Projection, Role};
use crate::core::profiler::Part;
use crate::kernels::{LayerCache, Mask, Rotary, attention, gated_linear_unit, profile_scope};

/// One decoder block. It has the projections and norms of its family's table
/// ([`DecoderConfig::block_tensors`]), in that order.
#[derive(Module, Debug)]
pub struct DecoderBlock<B: Backend> {
    /// The projections.
    pub linears: Vec<LoraLinear<B>>,
    /// The norms.
    pub norms: Vec<Norm<B>>,
    /// Role of each of the projections.
    #[module(skip)]
    pub projections: Vec<Projection>,
    /// Role of each of the norms.
    #[module(skip)]
    pub norm_roles: Vec<NormRole>,
}

/// Inputs that all blocks of a forward pass have in common.
pub(crate) struct BlockInputs<B: Backend> {
    pub packing: Packing<B>,
    pub mask: Mask<B>,
    pub rotary: Rotary<B>,
    /// Mask of windowed layers.
    pub window_mask: Option<Mask<B>>,
    /// Rotations of windowed layers, where they have their own.
    pub window_rotary: Option<Rotary<B>>,
}

impl<B: Backend> BlockInputs<B> {
    fn mask(&self, windowed: bool) -> &Mask<B> {
        self.window_mask.as_ref().filter(|_| windowed).unwrap_or(&self.mask)
    }

    fn rotary(&self, windowed: bool) -> &Rotary<B> {
        self.window_rotary.as_ref().filter(|_| windowed).unwrap_or(&self.rotary)
    }
}

impl<B: Backend> DecoderBlock<B> {
    /// Returns a projection, if the block has it.
    pub fn find_linear(&self, projection: Projection) -> Option<&LoraLinear<B>> {
        self.projections.iter().position(|&other| other == projection).map(|index| &self.linears[index])
    }

    /// Returns a projection.
    ///
    /// # Panics
    /// If the family's blocks do not have it.
    pub fn linear(&self, projection: Projection) -> &LoraLinear<B> {
        self.find_linear(projection).expect("the block has this projection")
    }

    /// Returns a projection for changes.
    ///
    /// # Panics
    /// If the family's blocks do not have it.
    pub fn linear_mut(&mut self, projection: Projection) -> &mut LoraLinear<B> {
        let index = self.projections.iter().position(|&other| other == projection);
        index.map(|index| &mut self.linears[index]).expect("the block has this projection")
    }

    /// Returns the module that holds a tensor of the table.
    pub(super) fn parts(&self, role: Role) -> (Option<&LoraLinear<B>>, Option<&Norm<B>>) {
        match role {
            Role::Weight(projection) | Role::Bias(projection) => (self.find_linear(projection), None),
            Role::Norm(role) => (None, self.find_norm(role)),
        }
    }

    fn find_norm(&self, role: NormRole) -> Option<&Norm<B>> {
        self.norm_roles.iter().position(|&other| other == role).map(|index| &self.norms[index])
    }

    /// Normalises `x` if the block has the norm.
    fn norm<const D: usize>(&self, role: NormRole, x: Tensor<B, D>) -> Tensor<B, D> {
        match self.find_norm(role) {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// Runs the block, the `layer`-th of its decoder. Also returns the cache with this pass's keys
    /// and values as a further own block.
    ///
    /// # Shapes
    /// `x` and the result: `[batch, seq, hidden]`, with the rows that the packing describes.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        layer: usize,
        inputs: &BlockInputs<B>,
        mut cache: LayerCache<B>,
        config: &DecoderConfig,
    ) -> (Tensor<B, 3>, LayerCache<B>) {
        let [batch, seq, hidden] = x.dims();
        let (heads, kv_heads, dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let (packing, windowed) = (&inputs.packing, config.window(layer).is_some());

        let x = profile_scope(x, Part::Attention);
        let normed = self.norm(NormRole::BeforeAttention, x.clone()).reshape([batch * seq, hidden]);
        let [mut q, mut k, v] = self.queries_keys_values(normed, config);
        q = self.norm_heads(NormRole::Query, q);
        k = self.norm_heads(NormRole::Key, k);
        if config.is_rotated(layer) {
            let rotary = inputs.rotary(windowed);
            (q, k) = (rotary.queries(q), rotary.keys(k));
        }
        let q = packing.pad(q, heads, dim);
        cache.own.push((packing.pad(k, kv_heads, dim), packing.pad(v, kv_heads, dim)));
        let (attended, cache) = attention(q, cache, inputs.mask(windowed), config.score_scaling());
        let attended = self.linear(Projection::AttentionOutput).forward(packing.unpad(attended));
        let attended = self.norm(NormRole::AfterAttention, attended);
        let x = profile_scope(x + attended.reshape([batch, seq, hidden]), Part::Mlp);

        let normed = self.norm(NormRole::BeforeMlp, x.clone()).reshape([batch * seq, hidden]);
        let [gate, up] = self.gate_and_up(normed, config.intermediate_size);
        let inner = gated_linear_unit(config.switches.activation, gate, up);
        let output = self.norm(NormRole::AfterMlp, self.linear(Projection::Down).forward(inner));
        (x + output.reshape([batch, seq, hidden]), cache)
    }

    fn queries_keys_values(&self, x: Tensor<B, 2>, config: &DecoderConfig) -> [Tensor<B, 2>; 3] {
        let Some(fused) = self.find_linear(Projection::QueryKeyValue) else {
            let q = self.linear(Projection::Query).forward(x.clone());
            let k = self.linear(Projection::Key).forward(x.clone());
            return [q, k, self.linear(Projection::Value).forward(x)];
        };
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let all = fused.forward(x);
        let part = |first, width| all.clone().narrow(1, first, width);
        [part(0, queries), part(queries, keys), part(queries + keys, keys)]
    }

    fn gate_and_up(&self, x: Tensor<B, 2>, inner: usize) -> [Tensor<B, 2>; 2] {
        let Some(fused) = self.find_linear(Projection::GateUp) else {
            let gate = self.linear(Projection::Gate).forward(x.clone());
            return [gate, self.linear(Projection::Up).forward(x)];
        };
        let both = fused.forward(x);
        [both.clone().narrow(1, 0, inner), both.narrow(1, inner, inner)]
    }

    /// Normalises queries or keys, `[tokens, heads · head_dim]`: each head alone or all of a
    /// token's heads together, by the width of the norm.
    fn norm_heads(&self, role: NormRole, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let Some(norm) = self.find_norm(role) else { return x };
        let ([tokens, width], [group]) = (x.dims(), norm.gamma.dims());
        norm.forward(x.reshape([tokens * width / group, group])).reshape([tokens, width])
    }
}
