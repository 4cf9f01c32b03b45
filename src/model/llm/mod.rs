//! The decoder of the LLM, its adapters, caches, sizes and files.

pub mod config;
pub mod decoder;
pub mod flops;
pub mod gguf;
pub mod kv_cache;
pub mod lora_linear;
pub mod open;
pub mod peft;
mod peft_targets;
pub mod quantized;
pub mod save;
