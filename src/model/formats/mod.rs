//! Files of tensors: safetensors and GGUF, both opened as [`tensor_store::Weights`].

pub(crate) mod blocks;
pub mod gguf;
pub mod gguf_tokenizer;
pub mod safetensors;
pub mod tensor_store;
