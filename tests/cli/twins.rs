//! One model as a Hugging Face directory, with the publisher's kind of `tokenizer.json`, and as
//! GGUF, with its vocabulary as llama.cpp's converter writes it: both score alike.

use std::collections::BTreeMap;
use std::fs;

use itemlm::model::{DecoderConfig, save_llm_dir};
use itemlm::text::Tokenizer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::common::fixture;
use crate::lab::{Lab, succeeded};

/// A string as GGUF stores it.
fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A key of the metadata with a value of one of GGUF's types.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key)[..], &kind.to_le_bytes(), value].concat()
}

fn number(key: &str, value: u64) -> Vec<u8> {
    entry(key, 4, &(value as u32).to_le_bytes())
}

fn array(key: &str, kind: u32, values: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
    entry(key, 9, &values.fold(head, |bytes, value| [bytes, value].concat()))
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// The keys `tokenizer.ggml.*` of a vocabulary of `publishers.json`.
fn vocabulary(case: &Value) -> Vec<Vec<u8>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let floats = |values: &Value| -> Vec<Vec<u8>> {
        values.as_array().unwrap().iter().map(|x| (x.as_f64().unwrap() as f32).to_le_bytes().to_vec()).collect()
    };
    let strings = |name: &str| array(&key(name), 8, texts(&case[name]).into_iter().map(string));
    let types = case["types"].as_array().unwrap().iter().map(|kind| (kind.as_f64().unwrap() as i32).to_le_bytes());
    let types = types.map(Vec::from).collect::<Vec<_>>();
    let mut entries = vec![
        entry(&key("model"), 8, &string(case["model"].as_str().unwrap())),
        strings("tokens"),
        array(&key("token_type"), 5, types.into_iter()),
    ];
    entries.extend(case["pre"].as_str().map(|pre| entry(&key("pre"), 8, &string(pre))));
    entries.extend(case.get("merges").map(|_| strings("merges")));
    entries.extend(case.get("scores").map(|scores| array(&key("scores"), 6, floats(scores).into_iter())));
    for (name, ours) in [("eos_token_id", "eos"), ("bos_token_id", "bos"), ("unknown_token_id", "unknown")] {
        entries.extend(case[ours].as_u64().map(|id| number(&key(name), id)));
    }
    for (name, ours) in [("add_bos_token", "add_bos"), ("add_space_prefix", "add_space_prefix")] {
        entries.extend(case[ours].as_bool().map(|flag| entry(&key(name), 7, &[u8::from(flag)])));
    }
    entries
}

/// Qwen3: llama.cpp's converter keeps the order of the rows of its matrices.
fn config(vocab: usize) -> DecoderConfig {
    let config = json!({
        "model_type": "qwen3", "vocab_size": vocab, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": true,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 256
    });
    DecoderConfig::from_json("config.json".as_ref(), &config.to_string()).unwrap()
}

type Weights = Vec<(String, Vec<usize>, Vec<f32>)>;

fn weights(config: &DecoderConfig) -> Weights {
    let mut random = ChaCha8Rng::seed_from_u64(20);
    let mut tensor = |(name, shape): (String, Vec<usize>)| {
        let near = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values = (0..shape.iter().product()).map(|_| near + random.random_range(-0.5..0.5f32)).collect();
        (name, shape, values)
    };
    config.tensors().map(&mut tensor).collect()
}

/// llama.cpp's name of a tensor.
fn gguf_name(name: &str) -> String {
    let parts = [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("model.layers", "blk"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
    ];
    parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(&format!("{from}."), &format!("{to}.")))
}

/// A GGUF file of F32 tensors.
fn gguf(config: &DecoderConfig, weights: &Weights, vocabulary: Vec<Vec<u8>>) -> Vec<u8> {
    let mut entries = vec![entry("general.architecture", 8, &string("qwen3"))];
    for (key, value) in [
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("context_length", config.max_position_embeddings),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
    ] {
        entries.push(number(&format!("qwen3.{key}"), value as u64));
    }
    for (key, value) in [("rope.freq_base", 1e4f32), ("attention.layer_norm_rms_epsilon", 1e-6)] {
        entries.push(entry(&format!("qwen3.{key}"), 6, &value.to_le_bytes()));
    }
    entries.extend(vocabulary);
    let (mut infos, mut data) = (Vec::new(), Vec::<u8>::new());
    for (name, shape, values) in weights {
        data.resize(data.len().next_multiple_of(32), 0);
        infos.extend(string(&gguf_name(name)));
        infos.extend((shape.len() as u32).to_le_bytes());
        infos.extend(shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        infos.extend(0u32.to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
    bytes.extend((weights.len() as u64).to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend(entries.concat());
    bytes.extend(infos);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    [bytes, data].concat()
}

/// A `tokenizer.json` of `tokenizers.json`, with the vocabulary and merges of `publishers.json`.
fn tokenizer_json(tokenizer: &Value, case: &Value) -> String {
    let mut tokenizer = tokenizer.clone();
    let kinds = case["types"].as_array().unwrap();
    let spelled = |(id, token): (usize, &str)| {
        let token = if kinds[id] == 4.0 { token.replace(' ', "▁") } else { token.to_owned() };
        (token, json!(id))
    };
    let vocabulary: Map<String, Value> = texts(&case["tokens"]).into_iter().enumerate().map(spelled).collect();
    tokenizer["model"]["vocab"] = Value::Object(vocabulary);
    if tokenizer["model"]["merges"].is_null() {
        tokenizer["model"]["merges"] = case["merges"].clone();
    }
    tokenizer.to_string()
}

/// Prompts and titles have digits, double and leading spaces, texts of special tokens, accents and
/// CJK. Weights are the same numbers, so scores differ only where tokens do.
#[test]
fn directories_and_gguf_score_alike() {
    let read = |name: &str| -> BTreeMap<String, Value> {
        serde_json::from_slice(&fs::read(fixture("gguf").join(name)).unwrap()).unwrap()
    };
    let (cases, tokenizers) = (read("publishers.json"), read("tokenizers.json"));
    assert!(cases.keys().eq(tokenizers.keys()) && cases.len() == 13);
    for (name, case) in &cases {
        let lab = Lab::empty();
        let tokens = texts(&case["tokens"]);
        let config = config(tokens.len());
        let weights = weights(&config);
        lab.write("model.gguf", gguf(&config, &weights, vocabulary(case)));
        let tokenizer = tokenizer_json(&tokenizers[name], case);
        let eos = case["eos"].as_u64().unwrap() as u32;
        let parsed = Tokenizer::from_json(&tokenizer, eos).unwrap();
        save_llm_dir(&lab.path("llm"), &config, weights.into_iter().map(Ok), &parsed).unwrap();
        lab.write("llm/tokenizer.json", tokenizer);
        let token = |id: &str| case[id].as_u64().map(|id| tokens[id as usize]);
        let roles = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": token("eos"),
            "bos_token": token("bos")});
        lab.write("llm/tokenizer_config.json", roles.to_string());

        let prompts = texts(&case["texts"]);
        let titles: Vec<&str> = prompts.iter().copied().filter(|text| !text.contains(['\n', '\r'])).collect();
        let titles: Vec<&str> = titles.into_iter().filter(|text| !text.trim().is_empty()).collect();
        lab.write("titles.txt", titles.join("\n") + "\n");
        let line = |prompt: &&str| json!({"prompt": format!("{prompt}."), "items": titles}).to_string() + "\n";
        lab.write("prompts.jsonl", prompts.iter().map(line).collect::<String>());
        let scores = |llm: &str| -> Vec<Value> {
            let line = format!("score --llm {llm} --catalogue titles.txt --input prompts.jsonl");
            let output = succeeded(&line, lab.command(&line).output().unwrap());
            let lines = String::from_utf8(output.stdout).unwrap();
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let (directory, file) = (scores("llm"), scores("model.gguf"));
        assert_eq!((directory.len(), file.len()), (prompts.len(), prompts.len()), "{name}");
        let mut differing = 0;
        for (prompt, (expected, found)) in prompts.iter().zip(directory.iter().zip(&file)) {
            for key in ["full", "masked"] {
                let numbers = |line: &Value| -> Vec<f64> {
                    line[key].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect()
                };
                let (expected, found) = (numbers(expected), numbers(found));
                assert_eq!((expected.len(), found.len()), (titles.len(), titles.len()));
                for (title, (expected, found)) in titles.iter().zip(expected.iter().zip(&found)) {
                    let what = format!("{name}: {key} of {title:?} after {prompt:?}");
                    assert!((expected - found).abs() <= 1e-4, "{what}: {found}, not {expected}");
                }
                differing += usize::from(expected.windows(2).any(|pair| (pair[0] - pair[1]).abs() > 0.1));
            }
        }
        assert_eq!(differing, 2 * prompts.len(), "{name}: titles are told apart");
    }
}
