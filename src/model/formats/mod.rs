//! Files of tensors: safetensors, GGUF, and what both are opened as.

pub(crate) mod blocks;
pub mod gguf;
pub mod gguf_tokenizer;
pub mod safetensors;
pub mod tensor_store;
