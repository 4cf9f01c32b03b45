//! The table of a decoder block's tensors. Loading, export, PEFT, GGUF, FLOPs and the estimate of
//! memory all read it.

use super::config::{BlockNorms, DecoderConfig, QkNorm};

/// A linear projection of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Queries, keys and values in one matrix.
    QueryKeyValue,
    /// Attention's output.
    AttentionOutput,
    /// The feed-forward's gate.
    Gate,
    /// The feed-forward's other factor, which the gate multiplies.
    Up,
    /// Gate and up in one matrix.
    GateUp,
    /// The feed-forward's output.
    Down,
}

/// A norm of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NormRole {
    /// Norm of attention's input.
    BeforeAttention,
    /// Norm of the queries.
    Query,
    /// Norm of the keys.
    Key,
    /// Norm of attention's output.
    AfterAttention,
    /// Norm of the feed-forward's input.
    BeforeMlp,
    /// Norm of the feed-forward's output.
    AfterMlp,
}

/// The role of a tensor in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A projection's weight, `[out, in]`; it may have a LoRA adapter.
    Weight(Projection),
    /// A projection's bias, `[out]`.
    Bias(Projection),
    /// A norm's weight, `[width]`.
    Norm(NormRole),
}

/// One tensor of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTensor {
    /// Its role in the block.
    pub role: Role,
    /// Hugging Face's name, after `model.layers.N.`.
    pub name: &'static str,
    /// GGUF's name, after `blk.N.`.
    pub gguf: &'static str,
    /// `[out, in]` or `[width]`.
    pub shape: Vec<usize>,
}

impl BlockTensor {
    /// Returns the name of the tensor's module in Hugging Face's model, as PEFT names targets:
    /// `self_attn.q_proj`.
    pub fn module(&self) -> &'static str {
        self.name.strip_suffix(".weight").or_else(|| self.name.strip_suffix(".bias")).unwrap_or(self.name)
    }

    /// Returns the tensor's name in a whole model: `model.layers.3.self_attn.q_proj.weight`.
    pub fn full_name(&self, layer: usize) -> String {
        format!("model.layers.{layer}.{}", self.name)
    }
}

impl DecoderConfig {
    /// Returns the table: every tensor of a block, in the order of the parameters' ids.
    pub fn block_tensors(&self) -> Vec<BlockTensor> {
        let mut table = Table(Vec::new());
        self.attention_tensors(&mut table);
        self.mlp_tensors(&mut table);
        table.0
    }

    fn attention_tensors(&self, table: &mut Table) {
        use NormRole::{AfterAttention, BeforeAttention, Key, Query};
        let (hidden, switches) = (self.hidden_size, &self.switches);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        if switches.norms != BlockNorms::After {
            table.norm(BeforeAttention, "input_layernorm.weight", "attn_norm.weight", hidden);
        }
        match switches.fused_projections {
            true => {
                let names = ["self_attn.qkv_proj.weight", "self_attn.qkv_proj.bias"];
                let gguf = ["attn_qkv.weight", "attn_qkv.bias"];
                let shape = [queries + 2 * keys, hidden];
                table.linear(Projection::QueryKeyValue, names, gguf, shape, switches.qkv_bias);
            }
            false => {
                let names = ["self_attn.q_proj.weight", "self_attn.q_proj.bias"];
                let gguf = ["attn_q.weight", "attn_q.bias"];
                table.linear(Projection::Query, names, gguf, [queries, hidden], switches.qkv_bias);
                let names = ["self_attn.k_proj.weight", "self_attn.k_proj.bias"];
                let gguf = ["attn_k.weight", "attn_k.bias"];
                table.linear(Projection::Key, names, gguf, [keys, hidden], switches.qkv_bias);
                let names = ["self_attn.v_proj.weight", "self_attn.v_proj.bias"];
                let gguf = ["attn_v.weight", "attn_v.bias"];
                table.linear(Projection::Value, names, gguf, [keys, hidden], switches.qkv_bias);
            }
        }
        if let Some(over) = switches.qk_norm {
            let width = |heads: usize| if over == QkNorm::Head { self.head_dim } else { heads * self.head_dim };
            let (queries, keys) = (width(self.num_attention_heads), width(self.num_key_value_heads));
            table.norm(Query, "self_attn.q_norm.weight", "attn_q_norm.weight", queries);
            table.norm(Key, "self_attn.k_norm.weight", "attn_k_norm.weight", keys);
        }
        let names = ["self_attn.o_proj.weight", "self_attn.o_proj.bias"];
        let gguf = ["attn_output.weight", "attn_output.bias"];
        table.linear(Projection::AttentionOutput, names, gguf, [hidden, queries], switches.output_bias);
        if switches.norms != BlockNorms::Before {
            table.norm(AfterAttention, "post_attention_layernorm.weight", "post_attention_norm.weight", hidden);
        }
    }

    fn mlp_tensors(&self, table: &mut Table) {
        use NormRole::{AfterMlp, BeforeMlp};
        let (hidden, inner, switches) = (self.hidden_size, self.intermediate_size, &self.switches);
        match switches.norms {
            BlockNorms::Before => table.norm(BeforeMlp, "post_attention_layernorm.weight", "ffn_norm.weight", hidden),
            BlockNorms::BeforeAndAfter => {
                table.norm(BeforeMlp, "pre_feedforward_layernorm.weight", "ffn_norm.weight", hidden);
            }
            BlockNorms::After => {}
        }
        match switches.fused_projections {
            true => {
                let names = ["mlp.gate_up_proj.weight", "mlp.gate_up_proj.bias"];
                let gguf = ["ffn_up.weight", "ffn_up.bias"];
                table.linear(Projection::GateUp, names, gguf, [2 * inner, hidden], switches.mlp_bias);
            }
            false => {
                let names = ["mlp.gate_proj.weight", "mlp.gate_proj.bias"];
                let gguf = ["ffn_gate.weight", "ffn_gate.bias"];
                table.linear(Projection::Gate, names, gguf, [inner, hidden], switches.mlp_bias);
                let names = ["mlp.up_proj.weight", "mlp.up_proj.bias"];
                let gguf = ["ffn_up.weight", "ffn_up.bias"];
                table.linear(Projection::Up, names, gguf, [inner, hidden], switches.mlp_bias);
            }
        }
        let names = ["mlp.down_proj.weight", "mlp.down_proj.bias"];
        let gguf = ["ffn_down.weight", "ffn_down.bias"];
        table.linear(Projection::Down, names, gguf, [hidden, inner], switches.mlp_bias);
        if switches.norms != BlockNorms::Before {
            table.norm(AfterMlp, "post_feedforward_layernorm.weight", "post_ffw_norm.weight", hidden);
        }
    }

    /// Returns a block's projections: module name and shape, `[out, in]`.
    pub fn projections(&self) -> Vec<(Projection, &'static str, [usize; 2])> {
        let of = |tensor: BlockTensor| match (tensor.role, tensor.shape.as_slice()) {
            (Role::Weight(projection), &[out, width]) => Some((projection, tensor.module(), [out, width])),
            _ => None,
        };
        self.block_tensors().into_iter().filter_map(of).collect()
    }

    /// Returns every tensor of the model: its Hugging Face name and shape (`[out, in]`).
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
        let table = vec![self.vocab_size, self.hidden_size];
        let head = (!self.tie_word_embeddings).then(|| (HEAD.to_owned(), table.clone()));
        let block = self.block_tensors();
        let layers = (0..self.num_hidden_layers).flat_map(move |layer| {
            let named = |tensor: &BlockTensor| (tensor.full_name(layer), tensor.shape.clone());
            block.iter().map(named).collect::<Vec<_>>()
        });
        std::iter::once((EMBEDDINGS.to_owned(), table))
            .chain(layers)
            .chain([(LAST_NORM.to_owned(), vec![self.hidden_size])])
            .chain(head)
    }

    /// Returns the number of parameters; `None` if it overflows.
    pub fn parameters(&self) -> Option<usize> {
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let block = self.block_tensors();
        let block = block.iter().try_fold(0usize, |n, tensor| n.checked_add(count(&tensor.shape)?))?;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        let total = block.checked_mul(self.num_hidden_layers)?;
        total.checked_add(count(&[tables, self.vocab_size, self.hidden_size])?)?.checked_add(self.hidden_size)
    }

    /// Returns the Hugging Face name of a tensor that llama.cpp names `name`; `None` if the model
    /// has no such tensor.
    pub fn name_from_gguf(&self, name: &str) -> Option<String> {
        match name {
            "token_embd.weight" => return Some(EMBEDDINGS.into()),
            "output_norm.weight" => return Some(LAST_NORM.into()),
            "output.weight" => return Some(HEAD.into()),
            _ => {}
        }
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let tensor = self.block_tensors().into_iter().find(|tensor| tensor.gguf == part)?;
        Some(tensor.full_name(layer))
    }
}

/// Hugging Face's name of the embedding table.
pub(crate) const EMBEDDINGS: &str = "model.embed_tokens.weight";
/// Hugging Face's name of the norm after the last block.
pub(crate) const LAST_NORM: &str = "model.norm.weight";
/// Hugging Face's name of the output projection.
pub(crate) const HEAD: &str = "lm_head.weight";

struct Table(Vec<BlockTensor>);

impl Table {
    fn norm(&mut self, role: NormRole, name: &'static str, gguf: &'static str, width: usize) {
        self.0.push(BlockTensor { role: Role::Norm(role), name, gguf, shape: vec![width] });
    }

    /// Adds a weight, and a bias if there is one; `name` and `gguf` are the names of both.
    fn linear(
        &mut self,
        projection: Projection,
        [weight, bias]: [&'static str; 2],
        [gguf_weight, gguf_bias]: [&'static str; 2],
        shape: [usize; 2],
        has_bias: bool,
    ) {
        let role = Role::Weight(projection);
        self.0.push(BlockTensor { role, name: weight, gguf: gguf_weight, shape: shape.to_vec() });
        if has_bias {
            let role = Role::Bias(projection);
            self.0.push(BlockTensor { role, name: bias, gguf: gguf_bias, shape: vec![shape[0]] });
        }
    }
}
