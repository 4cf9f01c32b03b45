use std::fs;
use std::path::PathBuf;

use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use super::*;
use crate::model::save_llm_dir;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/tiny.gguf");
const TINY_JSON: &str = include_str!("../../../../tests/fixtures/gguf/tiny.json");

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn tiny_config() -> DecoderConfig {
    let text = r#"{"model_type": "llama", "vocab_size": 260, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": false}"#;
    DecoderConfig::from_json(Path::new("tiny"), text).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::train_bpe(["a b c", "a b"].map(String::from).into_iter(), 260).unwrap()
}

fn random_tensors(config: &DecoderConfig) -> Tensors {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let fill =
        |shape: &[usize]| -> Vec<f32> { (0..shape.iter().product()).map(|_| random.random_range(-1.0..1.0)).collect() };
    let mut fill = fill;
    config
        .tensors()
        .map(|(name, shape)| {
            let values = fill(&shape);
            (name, shape, values)
        })
        .collect()
}

fn save(tensors: Tensors) -> (tempfile::TempDir, DecoderConfig) {
    let (dir, config) = (tempfile::tempdir().unwrap(), tiny_config());
    save_llm_dir(dir.path(), &config, tensors.into_iter().map(Ok), &tokenizer()).unwrap();
    (dir, config)
}

fn failure(path: &Path) -> String {
    let error = open_llm(path).err().expect("opened").to_string();
    assert!(!error.contains('\n'));
    error
}

/// Writes a safetensors file byte by byte: (name, dtype, shape, bytes).
fn write_shard(path: &Path, tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert((*name).to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

#[test]
fn what_is_saved_opens_again() {
    let mut tensors = random_tensors(&tiny_config());
    tensors.reverse();
    let (dir, config) = save(tensors.clone());
    let mut llm = open_llm(dir.path()).unwrap();
    assert_eq!((&llm.config, llm.tokenizer.eos(), llm.fingerprint.len()), (&config, 0, 64));
    assert!(open_llm(dir.path()).unwrap().weights.finish().unwrap_err().to_string().contains("and 16 more"));
    for (name, shape, values) in &tensors {
        assert_eq!(&llm.weights.take(name, shape).unwrap(), values);
    }
    assert!(llm.weights.take("model.norm.weight", &[8]).is_err(), "a tensor is taken once");
    llm.weights.finish().unwrap();

    assert_eq!(open_llm(dir.path()).unwrap().fingerprint, llm.fingerprint);
    tensors[0].2[0] += 1.0;
    assert_ne!(open_llm(save(tensors).0.path()).unwrap().fingerprint, llm.fingerprint);
}

#[test]
fn saving_refuses_what_the_configuration_does_not_ask_for() {
    let config = tiny_config();
    let dir = tempfile::tempdir().unwrap();
    let save = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = random_tensors(&config);
        change(&mut tensors);
        save_llm_dir(dir.path(), &config, tensors.into_iter().map(Ok), &tokenizer()).unwrap_err().to_string()
    };
    assert!(save(&|t| t[0].0.push('x')).contains("model.embed_tokens.weightx"));
    assert!(save(&|t| t[1].2.push(0.0)).contains("model.layers.0.input_layernorm.weight"));
    assert!(save(&|t| drop(t.pop())).contains("lm_head.weight"));
    assert!(
        save(&|t| {
            let twice = t[0].clone();
            t.push(twice)
        })
        .contains("twice")
    );
    let unread = random_tensors(&config).into_iter().map(Ok).chain([Err(Error::device("dead"))]);
    let error = save_llm_dir(dir.path(), &config, unread, &tokenizer()).unwrap_err();
    assert_eq!(error, Error::device("dead"), "a tensor that cannot be read");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_named() {
    let (dir, config) = save(random_tensors(&tiny_config()));
    let rewrite = |change: &dyn Fn(&mut DecoderConfig)| {
        let mut config = config.clone();
        change(&mut config);
        fs::write(dir.path().join("config.json"), config.to_json(0)).unwrap();
    };
    rewrite(&|c| c.intermediate_size = 13);
    let error = failure(dir.path());
    assert!(
        error.contains("model.safetensors: tensor model.layers.0.mlp.gate_proj.weight has shape [12, 8]"),
        "{error}"
    );
    assert!(error.ends_with("the model needs [13, 8]"), "{error}");
    rewrite(&|c| c.num_hidden_layers = 3);
    assert!(failure(dir.path()).contains("no tensor model.layers.2.input_layernorm.weight"));
    rewrite(&|c| c.num_hidden_layers = 1);
    let error = failure(dir.path());
    assert!(
        error.contains("unexpected") && error.contains("model.layers.1.") && error.contains("and 4 more"),
        "{error}"
    );
    rewrite(&|c| c.vocab_size = 259);
    assert!(failure(dir.path()).contains("embed_tokens"));
    rewrite(&|c| c.tie_word_embeddings = true);
    let llm = open_llm(dir.path()).expect("a head that differs from a tied table is read");
    assert!(!llm.config.tie_word_embeddings);

    fs::write(dir.path().join("config.json"), r#"{"model_type": "gpt_neox"}"#).unwrap();
    assert!(failure(dir.path()).contains("gpt_neox"));
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(failure(dir.path()).contains("config.json"));
}

#[test]
fn a_tokenizer_that_does_not_fit_is_an_error() {
    let (dir, _) = save(random_tensors(&tiny_config()));
    let texts = (0..9).map(|n| format!("longer texts make more tokens {n}"));
    let large = Tokenizer::train_bpe(texts, 270).unwrap();
    fs::write(dir.path().join("tokenizer.json"), large.to_json()).unwrap();
    let error = failure(dir.path());
    assert!(error.contains("token id 269") && error.contains("260 embeddings"), "{error}");
}

#[test]
fn half_precision_shards() {
    let (dir, config) = save(random_tensors(&tiny_config()));
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let f16 = |x: f32| half::f16::from_f32(x).to_le_bytes();
    let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes();
    let tensors: Vec<_> = config.tensors().collect();
    let (mut shards, mut map) = ([Vec::new(), Vec::new()], Map::new());
    for (number, (name, shape)) in tensors.iter().enumerate() {
        let values = (0..shape.iter().product::<usize>()).map(|n| n as f32 - 3.5);
        let (dtype, bytes): (_, Vec<u8>) = if number % 2 == 0 {
            ("F16", values.flat_map(f16).collect())
        } else {
            ("BF16", values.flat_map(bf16).collect())
        };
        shards[number % 2].push((name.as_str(), dtype, shape.clone(), bytes));
        map.insert(name.clone(), json!(format!("shard-{}.safetensors", number % 2)));
    }
    shards[0].push(("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", vec![1], vec![0; 4]));
    for (number, shard) in shards.iter().enumerate() {
        write_shard(&dir.path().join(format!("shard-{number}.safetensors")), shard);
    }
    let index = |map: &Map<String, Value>| {
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    };
    index(&map);
    let mut llm = open_llm(dir.path()).unwrap();
    for (name, shape) in &tensors {
        let values = llm.weights.take(name, shape).unwrap();
        assert_eq!((values[0], values[4], values.len()), (-3.5, 0.5, shape.iter().product()));
    }
    llm.weights.finish().unwrap();

    let first = tensors[0].0.as_str();
    for (file, needle) in [
        ("../shard-0.safetensors", "name of a file"),
        ("/etc/passwd", "name of a file"),
        ("shard-1.safetensors", "no tensor model.embed_tokens.weight"),
        ("shard-2.safetensors", "shard-2.safetensors"),
    ] {
        let mut lying = map.clone();
        lying.insert(first.to_owned(), json!(file));
        index(&lying);
        assert!(failure(dir.path()).contains(needle), "{file}: {}", failure(dir.path()));
    }
    index(&map);
    shards[1].push((first, "F32", vec![0], vec![]));
    write_shard(&dir.path().join("shard-1.safetensors"), &shards[1]);
    assert!(failure(dir.path()).contains("a second tensor model.embed_tokens.weight"));
    shards[1].pop();
    shards[1][0].1 = "I16";
    write_shard(&dir.path().join("shard-1.safetensors"), &shards[1]);
    assert!(failure(dir.path()).contains("is I16"));
}

#[test]
fn lying_safetensors_are_errors() {
    let (dir, config) = save(random_tensors(&tiny_config()));
    let path = dir.path().join("model.safetensors");
    let good = fs::read(&path).unwrap();
    let header_end = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let try_bytes = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let weights = safetensors::open(dir.path())
            .and_then(|weights| weights.check(config.tensors(), config.tie_word_embeddings));
        weights.map_err(|error| error.to_string())
    };
    for end in (0..header_end).step_by(7).chain((header_end..good.len()).step_by(501)) {
        let error = try_bytes(&good[..end]).err().expect("truncated");
        assert!(error.contains("model.safetensors: ") && !error.contains('\n'), "{error}");
    }
    for length in [u64::MAX, 1 << 40, good.len() as u64 + 1] {
        let lying = [&length.to_le_bytes(), &good[8..]].concat();
        assert!(try_bytes(&lying).err().unwrap().contains("claims"));
    }
    for _ in 0..3000 {
        let mut bytes = good.clone();
        bytes[random.random_range(0..header_end)] = random.random();
        if let Ok(mut weights) = try_bytes(&bytes) {
            for (name, shape) in config.tensors() {
                weights.take(&name, &shape).unwrap();
            }
        }
    }
}

/// Values, names, shapes and the order of q's and k's rows are what transformers reads from the
/// same file (tests/reference/gguf_reference.py). The file holds every tensor type.
#[test]
fn gguf_agrees_with_transformers() {
    let reference: Value = serde_json::from_str(TINY_JSON).unwrap();
    let mut llm = open_llm(Path::new(TINY)).unwrap();
    let config = &llm.config;
    assert_eq!((config.vocab_size, config.head_dim, config.num_key_value_heads), (32, 4, 1));
    assert_eq!((config.rope_theta, config.rms_norm_eps as f32, config.tie_word_embeddings), (5e4, 1e-5, false));
    assert_eq!(reference["eos"], llm.tokenizer.eos());
    for (text, ids) in reference["ids"].as_object().unwrap() {
        assert_eq!(&json!(llm.tokenizer.encode(text).unwrap()), ids, "{text}");
    }
    let tensors = reference["tensors"].as_object().unwrap();
    assert_eq!(tensors.len(), 21);
    for (name, wanted) in tensors {
        let shape: Vec<usize> = serde_json::from_value(wanted["shape"].clone()).unwrap();
        let values = llm.weights.take(name, &shape).unwrap();
        let exact = |x: &f32| f64::from(*x);
        let samples: Vec<f64> = serde_json::from_value(wanted["samples"].clone()).unwrap();
        // f32's rounding: numpy and candle multiply in different orders.
        for (ours, theirs) in values.iter().step_by((values.len() / 8).max(1)).zip(&samples) {
            assert!((exact(ours) - theirs).abs() <= 1e-6 * theirs.abs().max(0.1), "{name}: {ours} {theirs}");
        }
        let absolute: f64 = values.iter().map(|x| exact(x).abs()).sum();
        let weight = |n: usize| (n * 7919 % 101) as f64 / 101.0;
        let weighted: f64 = values.iter().enumerate().map(|(n, x)| exact(x) * weight(n)).sum();
        let scale = wanted["absolute"].as_f64().unwrap();
        assert!((absolute - scale).abs() <= 1e-6 * scale, "{name}");
        assert!((weighted - wanted["weighted"].as_f64().unwrap()).abs() <= 1e-6 * scale, "{name}");
    }
    llm.weights.finish().unwrap();
}

/// Replaces the first occurrence of `from` in the tiny GGUF file by `to`, of the same length.
fn failure_after_replacing(from: &[u8], to: &[u8]) -> String {
    let mut bytes = fs::read(TINY).unwrap();
    let at = bytes.windows(from.len()).position(|part| part == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("altered.gguf");
    fs::write(&path, bytes).unwrap();
    let error = failure(&path);
    assert!(error.contains("altered.gguf: "), "{error}");
    error
}

#[test]
fn gguf_at_fault_is_named() {
    let number = |key: &str, n: u32| [key.as_bytes(), &4u32.to_le_bytes(), &n.to_le_bytes()].concat();
    let size = |key: &str, from: u32, to: u32| failure_after_replacing(&number(key, from), &number(key, to));
    assert!(failure_after_replacing(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0qwen2").contains("qwen2"));
    assert!(failure_after_replacing(b"llama.block_count", b"llama.block_cound").contains("llama.block_count"));
    assert!(failure_after_replacing(b"gpt2", b"bert").contains("bert"));
    assert!(failure_after_replacing(b"smollm", b"zmollm").contains("zmollm"));
    assert!(
        failure_after_replacing(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight")
            .contains("model.layers.0.self_attn.q_proj.weight")
    );
    assert!(failure_after_replacing(b"blk.0.attn_q.weight", b"blk.1.attn_q.weight").contains("comes twice"));
    assert!(size("llama.block_count", 2, 3).contains("model.layers.2."));
    assert!(size("llama.block_count", 2, u32::MAX).contains("num_hidden_layers"));
    assert!(size("llama.block_count", 2, 1).contains("unexpected tensors"));
    assert!(size("llama.rope.dimension_count", 4, 2).contains("llama.rope.dimension_count"));
    assert!(size("llama.attention.head_count_kv", 1, 0).contains("num_key_value_heads"));
    assert!(size("tokenizer.ggml.eos_token_id", 0, 32).contains("eos_token_id"));
    assert!(failure(Path::new("/nowhere/model.gguf")).contains("/nowhere/model.gguf"));
    let dir = tempfile::tempdir().unwrap();
    assert!(failure(dir.path()).contains("config.json"));
    let whole = fs::read(TINY).unwrap();
    fs::write(dir.path().join("cut.gguf"), &whole[..whole.len() - 1000]).unwrap();
    assert!(failure(&dir.path().join("cut.gguf")).contains("truncated"));
    fs::write(dir.path().join("cut.gguf"), b"").unwrap();
    assert!(failure(&dir.path().join("cut.gguf")).contains("truncated"));
}

/// A key under another name is a key that the file lacks: llama.cpp then has Gemma 2's own caps, 50
/// and 30, and a window of 4096; Gemma 3 needs its window.
#[test]
fn keys_that_gemma_s_files_may_lack() {
    let open = |name: &str, keys: &[&str]| {
        let file = format!("{}/tests/fixtures/reference/families/{name}/model.gguf", env!("CARGO_MANIFEST_DIR"));
        let mut bytes = fs::read(file).unwrap();
        for key in keys {
            let at = bytes.windows(key.len()).position(|part| part == key.as_bytes()).unwrap();
            bytes[at..at + 8].copy_from_slice(b"general.");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        open_llm(&path).map(|llm| llm.config.switches)
    };
    let keys = ["gemma2.attn_logit_softcapping", "gemma2.final_logit_softcapping", "gemma2.attention.sliding_window"];
    let whole = open("gemma2", &[]).unwrap();
    let caps = |switches: &crate::model::Switches| (switches.attention_soft_cap, switches.logit_soft_cap);
    assert!(caps(&whole) != (Some(50.0), Some(30.0)) && whole.sliding_window != Some(4096), "{whole:?}");
    let lacking = open("gemma2", &keys).unwrap();
    assert_eq!((caps(&lacking), lacking.sliding_window), ((Some(50.0), Some(30.0)), Some(4096)));
    let error = open("gemma3-gguf", &["gemma3.attention.sliding_window"]).unwrap_err().to_string();
    assert!(error.ends_with("no metadata key gemma3.attention.sliding_window"), "{error}");
}

/// Whatever happens to a byte of the header, opening returns.
#[test]
fn no_gguf_bytes_panic() {
    let good = fs::read(TINY).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for _ in 0..2000 {
        let mut bytes = good.clone();
        bytes[random.random_range(0..4000)] = random.random();
        fs::write(&path, bytes).unwrap();
        if let Ok(mut llm) = open_llm(&path) {
            let tensors: Vec<_> = llm.config.tensors().collect();
            tensors.iter().for_each(|(name, shape)| drop(llm.weights.take(name, shape).unwrap()));
            llm.tokenizer.encode("abc d").unwrap();
        }
    }
}

/// A real model, if there is one: ITEMLM_TEST_GGUF is SmolLM2's file, ITEMLM_TEST_HF the directory
/// that transformers made from it, ITEMLM_TEST_IDS a JSON list of [text, ids] by transformers.
#[test]
#[ignore = "needs ITEMLM_TEST_GGUF and ITEMLM_TEST_HF"]
fn real_model_agrees_with_transformers() {
    let variable = |name: &str| std::env::var(name).map(PathBuf::from);
    let (gguf, hf) = (variable("ITEMLM_TEST_GGUF").unwrap(), variable("ITEMLM_TEST_HF").unwrap());
    let start = std::time::Instant::now();
    let mut ours = open_llm(&gguf).unwrap();
    eprintln!("opened the GGUF file in {:?}, fingerprint {}", start.elapsed(), ours.fingerprint);
    let start = std::time::Instant::now();
    let mut theirs = open_llm(&hf).unwrap();
    eprintln!("opened the directory in {:?}, fingerprint {}", start.elapsed(), theirs.fingerprint);
    assert_eq!(ours.config, theirs.config);
    let (mut largest, mut values, mut spent) = (0f32, 0, std::time::Duration::ZERO);
    for (name, shape) in theirs.config.tensors() {
        let start = std::time::Instant::now();
        let a = ours.weights.take(&name, &shape).unwrap();
        spent += start.elapsed();
        let b = theirs.weights.take(&name, &shape).unwrap();
        values += a.len();
        largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
    }
    ours.weights.finish().unwrap();
    theirs.weights.finish().unwrap();
    eprintln!("{values} weights dequantised in {spent:?}, largest difference {largest:e}");
    assert!(largest <= 1e-6);
    assert_eq!(ours.tokenizer.eos(), theirs.tokenizer.eos());
    let Ok(ids) = variable("ITEMLM_TEST_IDS") else {
        return;
    };
    let cases: Vec<(String, Vec<u32>)> = serde_json::from_str(&fs::read_to_string(ids).unwrap()).unwrap();
    let start = std::time::Instant::now();
    let wrong = |t: &Tokenizer| cases.iter().filter(|(text, ids)| &t.encode(text).unwrap() != ids).count();
    let (gguf, directory) = (wrong(&ours.tokenizer), wrong(&theirs.tokenizer));
    let tokens: usize = cases.iter().map(|(_, ids)| ids.len()).sum();
    let (texts, spent) = (cases.len(), start.elapsed() / 2);
    eprintln!("{texts} texts, {tokens} tokens: {gguf} differ by GGUF, {directory} by directory ({spent:?})");
    assert_eq!((gguf, directory), (0, 0));
}
