use super::*;

const SMOLLM2: &str = r#"{"model_type": "llama", "head_dim": 64, "hidden_act": "silu", "hidden_size": 576,
    "intermediate_size": 1536, "max_position_embeddings": 8192, "mlp_bias": false, "num_attention_heads": 9,
    "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "vocab_size": 49152}"#;

fn parse(text: &str) -> Result<DecoderConfig> {
    DecoderConfig::from_json(Path::new("m/config.json"), text)
}

/// Parses SmolLM2's configuration with `keys` set.
fn config_with(keys: Value) -> Result<DecoderConfig> {
    let mut config: Value = serde_json::from_str(SMOLLM2).unwrap();
    let keys = keys.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(keys);
    parse(&config.to_string())
}

#[test]
fn reads_both_generations() {
    let new = parse(SMOLLM2).unwrap();
    assert_eq!((new.rope_theta, new.head_dim, new.parameters()), (100000.0, 64, Some(134_515_008)));
    let total: usize = new.tensors().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(total, 134_515_008);
    let old = config_with(json!({"rope_parameters": null, "rope_theta": 100000, "head_dim": null})).unwrap();
    assert_eq!(old, new);
    assert_eq!(parse(&new.to_json(2)).unwrap(), new);

    let scaling = json!({"type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let keys = json!({"rope_parameters": null, "rope_theta": 100000, "rope_scaling": scaling,
        "tie_word_embeddings": false});
    let scaled = config_with(keys).unwrap();
    let Some(RopeScaling::Llama3(llama3)) = &scaled.rope_scaling else { panic!("it is Llama 3's") };
    assert_eq!(llama3.factor, 32.0);
    assert_eq!(scaled.rope_theta, 100000.0);
    assert_eq!(parse(&scaled.to_json(2)).unwrap(), scaled);
}

#[test]
fn defaults_are_hugging_face_s() {
    let config = parse(r#"{"model_type": "llama"}"#).unwrap();
    assert_eq!((config.vocab_size, config.hidden_size, config.head_dim), (32000, 4096, 128));
    assert_eq!((config.num_key_value_heads, config.rms_norm_eps, config.rope_theta), (32, 1e-6, 1e4));
    assert!(!config.tie_word_embeddings && config.rope_scaling.is_none());
}

#[test]
fn refuses_by_name() {
    for (keys, needle) in [
        (json!({"model_type": "qwen2_moe"}), "qwen2_moe"),
        (json!({"model_type": null}), "model_type"),
        (json!({"attention_bias": "yes"}), "attention_bias"),
        (json!({"mlp_bias": 1}), "mlp_bias"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
        (json!({"rope_scaling": {"type": "longrope", "factor": 2}}), "longrope"),
        (json!({"rope_parameters": {"rope_type": "linear"}}), "rope_parameters.factor"),
        (json!({"rope_scaling": {"type": "yarn", "factor": -2}}), "rope_scaling.factor"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5 is not supported in llama"),
        (json!({"model_type": "phi3", "partial_rotary_factor": 0.01}), "partial_rotary_factor rotates 0"),
        (json!({"model_type": "gemma3_text", "use_bidirectional_attention": true}), "use_bidirectional_attention"),
        (json!({"model_type": "gemma3_text", "hidden_activation": "gelu"}), "hidden_activation"),
        (json!({"model_type": "gemma3_text", "attn_logit_softcapping": 3.0}), "attn_logit_softcapping"),
        (json!({"model_type": "gemma2", "layer_types": ["chunked_attention"]}), "chunked_attention"),
        (json!({"model_type": "gemma2", "layer_types": ["full_attention"]}), "layer_types"),
        (json!({"model_type": "mistral", "sliding_window": 0}), "sliding_window"),
        (json!({"rope_scaling": {"rope_type": "llama3"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": 3}), "rope_scaling"),
        (json!({"num_key_value_heads": 2}), "num_key_value_heads"),
        (json!({"num_attention_heads": 0, "head_dim": null}), "num_attention_heads"),
        (json!({"head_dim": 63}), "head_dim"),
        (json!({"vocab_size": 0}), "vocab_size"),
        (json!({"vocab_size": -1}), "vocab_size"),
        (json!({"hidden_size": 1u64 << 60}), "hidden_size"),
        (json!({"num_hidden_layers": u64::MAX}), "num_hidden_layers"),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps"),
        (json!({"rope_parameters": {"rope_theta": "big"}}), "rope_parameters.rope_theta"),
    ] {
        let error = config_with(keys.clone()).expect_err(&keys.to_string()).to_string();
        assert!(error.starts_with("m/config.json: ") && error.contains(needle), "{keys}: {error}");
    }
    assert!(parse("[]").is_err() && parse("").is_err());
}

/// As transformers 5.24 reads it: a base that stands in `rope_parameters` is not read either.
#[test]
fn rope_scaling_comes_before_flat_rope_parameters() {
    let parameters = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0});
    let read = |mut keys: Value| {
        keys["model_type"] = json!("llama");
        let config = parse(&keys.to_string()).unwrap();
        (config.rope_theta, config.rope_scaling)
    };
    let linear = |factor| Some(RopeScaling::Linear(factor));
    assert_eq!(read(json!({"rope_parameters": parameters})), (500.0, linear(2.0)));
    let scaling = json!({"type": "linear", "factor": 4.0});
    assert_eq!(read(json!({"rope_parameters": parameters, "rope_scaling": scaling})), (10_000.0, linear(4.0)));
    let both = json!({"rope_parameters": parameters, "rope_scaling": scaling, "rope_theta": 700.0});
    assert_eq!(read(both), (700.0, linear(4.0)));
    assert_eq!(read(json!({"rope_parameters": parameters, "rope_scaling": {}})), (500.0, linear(2.0)));
}

#[test]
fn no_bytes_panic() {
    for end in 0..SMOLLM2.len() {
        assert!(parse(&SMOLLM2[..end]).is_err());
    }
    for at in 0..SMOLLM2.len() {
        for byte in [b'0', b'9', b'"', b'}', b'-', b'n'] {
            let mut bytes = SMOLLM2.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = parse(std::str::from_utf8(&bytes).unwrap());
        }
    }
    assert!(parse(&"[".repeat(100_000)).is_err());
}

/// transformers refuses `"query_pre_attn_scalar": 8.0`, so an export writes 8.
#[test]
fn gemma_exports_its_query_scalar_as_an_integer() {
    for name in ["gemma2", "gemma3"] {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/reference/families/{name}/config.json"));
        let config = parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        let written: Value = serde_json::from_str(&config.to_json(1)).unwrap();
        assert!(written["query_pre_attn_scalar"].is_u64(), "{name}: {written}");
        assert_eq!(parse(&config.to_json(1)).unwrap(), config);
    }
}
