//! Files of tensors: safetensors, GGUF, and what both are opened as.

pub mod gguf;
pub mod safetensors;
pub mod tensor_store;
