//! Keys of models' files that change what is computed: each is honoured, or refused by name.

use std::fs;

use serde_json::{Value, json};

use crate::models::Models;

/// A value of GGUF's metadata.
enum Gguf<'a> {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'a str),
}

/// Returns the bytes of a metadata entry.
fn entry(key: &str, value: &Gguf) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let (kind, value): (u32, Vec<u8>) = match value {
        Gguf::U32(n) => (4, n.to_le_bytes().to_vec()),
        Gguf::F32(x) => (6, x.to_le_bytes().to_vec()),
        Gguf::Bool(flag) => (7, vec![u8::from(*flag)]),
        Gguf::Text(t) => (8, text(t)),
    };
    [text(key), kind.to_le_bytes().to_vec(), value].concat()
}

/// Puts an entry first in a GGUF file's metadata, and a description that keeps the tensors aligned
/// to 32 bytes.
fn with_entry(file: &[u8], key: &str, value: &Gguf) -> Vec<u8> {
    let added = entry(key, value);
    let description = |length: usize| entry("general.description", &Gguf::Text(&"x".repeat(length)));
    let length = (0..32).find(|length| (added.len() + description(*length).len()).is_multiple_of(32)).unwrap();
    let count = u64::from_le_bytes(file[16..24].try_into().unwrap()) + 2;
    [&file[..16], &count.to_le_bytes(), &added, &description(length), &file[24..]].concat()
}

#[test]
fn keys_of_gguf() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.take("smollm.gguf", "model.gguf");
    let file = models.0.read("model.gguf");
    let plain = models.score("model.gguf");
    for (key, value) in [
        ("tokenizer.ggml.add_eos_token", Gguf::Bool(true)),
        ("tokenizer.ggml.token_type_count", Gguf::U32(2)),
        ("tokenizer.ggml.fim_pre_token_id", Gguf::U32(1)),
        ("tokenizer.chat_template", Gguf::Text("{{ messages }}")),
        ("general.quantized_by", Gguf::Text("someone")),
        ("llama.rope.scaling.type", Gguf::Text("none")),
        ("llama.expert_count", Gguf::U32(0)),
        ("llama.attention.causal", Gguf::Bool(true)),
    ] {
        models.0.write("model.gguf", with_entry(&file, key, &value));
        assert_eq!(models.score("model.gguf"), plain, "{key}");
    }
    for (key, value) in [
        ("llama.attention.causal", Gguf::Bool(false)),
        ("llama.attention.clamp_kqv", Gguf::F32(8.0)),
        ("llama.attn_logit_softcapping", Gguf::F32(50.0)),
        ("llama.expert_count", Gguf::U32(8)),
        ("llama.logit_scale", Gguf::F32(0.5)),
        ("llama.embedding_scale", Gguf::F32(12.0)),
        ("llama.residual_scale", Gguf::F32(0.2)),
        ("llama.attention.sliding_window", Gguf::U32(4)),
        ("llama.rope.scaling.type", Gguf::Text("longrope")),
        ("llama.rope.scaling.attn_factor", Gguf::F32(1.5)),
        ("llama.a_key_of_a_later_llama.cpp", Gguf::U32(1)),
        ("tokenizer.ggml.remove_extra_whitespaces", Gguf::Bool(true)),
        ("tokenizer.ggml.precompiled_charsmap", Gguf::Text("AAAA")),
        ("tokenizer.ggml.a_key_of_a_later_llama.cpp", Gguf::U32(1)),
        ("general.type", Gguf::Text("adapter")),
    ] {
        models.0.write("model.gguf", with_entry(&file, key, &value));
        models.refused("model.gguf", &["model.gguf", key]);
    }
    // A BOS that the file puts first, and a linear scaling, are honoured: another score.
    for (key, value) in
        [("tokenizer.ggml.add_bos_token", Gguf::Bool(true)), ("llama.rope.scaling.factor", Gguf::F32(4.0))]
    {
        models.0.write("model.gguf", with_entry(&file, key, &value));
        assert_ne!(models.score("model.gguf"), plain, "{key}");
    }
}

#[test]
fn keys_of_directories() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 259, "tokenizer.json");
    let config = |key: &str, value: Value| models.config("llm", json!({"vocab_size": 259, key: value}));
    for (scaling, named) in [
        (json!({"factor": 2.0}), "rope_scaling.factor"),
        (json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}), "longrope"),
        (json!({"type": "su"}), "\"su\""),
        (json!({"type": "mrope", "mrope_section": [1, 1, 2]}), "\"mrope\""),
        (json!({"type": "linear"}), "rope_scaling.factor"),
        (json!({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}), "rope_scaling.low_freq_factor"),
        (json!({"type": "yarn", "factor": 0.0}), "rope_scaling.factor"),
        (json!("linear"), "rope_scaling"),
    ] {
        config("rope_scaling", scaling);
        models.refused("llm", &["llm/config.json", named]);
    }
    for (key, value) in [("hidden_act", json!("relu")), ("quantization_config", json!({"quant_method": "gptq"}))] {
        config(key, value);
        models.refused("llm", &["llm/config.json", key]);
    }
    config("model_type", json!("llama"));
    models.json("llm/tokenizer_config.json", json!({"eos_token": "<|im_end|>", "split_special_tokens": true}));
    models.refused("llm", &["llm/tokenizer_config.json", "split_special_tokens"]);
    models.json("llm/tokenizer_config.json", json!({"eos_token": "<|im_end|>"}));
    let plain = models.score("llm");
    // What cuts and pads batches is no part of a text's tokens.
    let tokenizer: Value = serde_json::from_slice(&models.0.read("llm/tokenizer.json")).unwrap();
    let mut cutting = tokenizer.clone();
    cutting["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    cutting["padding"] = json!({"strategy": {"Fixed": 32}, "direction": "Left", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    models.json("llm/tokenizer.json", cutting);
    assert_eq!(models.score("llm"), plain);
    let mut dropping = tokenizer;
    dropping["model"]["dropout"] = json!(0.1);
    models.json("llm/tokenizer.json", dropping);
    models.refused("llm", &["llm/tokenizer.json", "dropout"]);
}

#[test]
fn pickled_adapters_are_named() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 259, "tokenizer.json");
    fs::create_dir(models.0.path("adapter")).unwrap();
    models.take("peft/suffixes/adapter_config.json", "adapter/adapter_config.json");
    models.0.write("adapter/adapter_model.bin", "pickle");
    let line = "score --llm llm --adapter adapter --catalogue titles.txt --input prompts.jsonl";
    models.0.refused(line, 1, &["adapter: holds adapter_model.bin", "save_pretrained"]);
    fs::remove_file(models.0.path("adapter/adapter_model.bin")).unwrap();
    models.0.refused(line, 1, &["adapter/adapter_model.safetensors"]);
    models.0.write("adapter/adapter_model.safetensors", "version https://git-lfs.github.com/spec/v1\nsize 1\n");
    models.0.refused(line, 1, &["adapter/adapter_model.safetensors: is a Git LFS pointer"]);
}
