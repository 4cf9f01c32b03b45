//! The decoder of the LLM, its adapters, caches, sizes and files.

pub mod block;
pub mod config;
pub mod decoder;
pub mod flops;
pub mod gguf;
mod gguf_config;
pub mod kv_cache;
mod load;
pub mod lora_linear;
pub mod norm;
pub mod open;
pub mod peft;
mod peft_targets;
pub mod quantized;
pub mod save;
pub mod tensors;
