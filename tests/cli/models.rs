//! Models and tokenizers as they are found in the wild: what public bug reports were about, on tiny
//! models. Where a number is expected, transformers 5.24 (f64 sums of its f32 logits) printed it
//! for the publisher's own files.

use std::fs;

use serde_json::{Value, json};

use crate::common::fixture;
use crate::lab::{Lab, document, succeeded};

/// A folder with parts of `tests/fixtures/models`.
pub struct Models(pub Lab);

impl Models {
    pub fn new() -> Self {
        Self(Lab::empty())
    }

    /// Copies a fixture.
    pub fn take(&self, from: &str, to: &str) {
        self.0.write(to, fs::read(fixture("models").join(from)).unwrap());
    }

    /// Writes a Hugging Face directory with `vocab` embeddings.
    pub fn directory(&self, name: &str, vocab: usize, tokenizer: &str) {
        fs::create_dir_all(self.0.path(name)).unwrap();
        self.take(&format!("{vocab}.safetensors"), &format!("{name}/model.safetensors"));
        self.take(tokenizer, &format!("{name}/tokenizer.json"));
        self.json(
            &format!("{name}/tokenizer_config.json"),
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}),
        );
        self.config(name, json!({"vocab_size": vocab}));
    }

    /// Writes `config.json` with some keys changed.
    pub fn config(&self, name: &str, changes: Value) {
        let mut config: Value =
            serde_json::from_slice(&fs::read(fixture("models").join("config.json")).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        self.json(&format!("{name}/config.json"), config);
    }

    pub fn json(&self, name: &str, value: Value) {
        self.0.write(name, value.to_string());
    }

    pub fn inputs(&self, prompt: &str, titles: &[&str]) {
        self.0.write("titles.txt", titles.join("\n") + "\n");
        self.0.write("prompts.jsonl", json!({"prompt": prompt, "items": titles}).to_string() + "\n");
    }

    /// Returns the line that `score` prints.
    pub fn score(&self, llm: &str) -> Value {
        let line = format!("score --llm {llm} --catalogue titles.txt --input prompts.jsonl");
        document(&succeeded(&line, self.0.command(&line).output().unwrap()))
    }

    /// Checks the scores within 1e-3, the tolerance of the reports: each is the sum of some twenty
    /// f32 log-probabilities.
    pub fn scores(&self, llm: &str, full: &[f64], masked: &[f64]) {
        let found = self.score(llm);
        for (key, expected) in [("full", full), ("masked", masked)] {
            for (n, expected) in expected.iter().enumerate() {
                let found = found[key][n].as_f64().unwrap();
                assert!((found - expected).abs() < 1e-3, "{llm}: {key} {n}: {found}, not {expected}");
            }
        }
    }

    pub fn assert_refused(&self, llm: &str, named: &[&str]) {
        self.0.assert_refused(&format!("score --llm {llm} --catalogue titles.txt --input prompts.jsonl"), 1, named);
    }
}

#[test]
fn gguf_smollm_splits_digits_first() {
    let models = Models::new();
    models.take("smollm.gguf", "model.gguf");
    models.inputs("Pens:\n\n1. ", &["Ball Pens,  8 Pack", "Ball Pens, 8 Pack"]);
    models.scores("model.gguf", &[-145.65018414077664, -144.62195856845827], &[-1.269349552064582, -0.32991387632434]);
}

#[test]
fn gguf_llama_bpe_ignores_merges() {
    let models = Models::new();
    models.take("llama-bpe.gguf", "model.gguf");
    models.inputs("A Pack of", &["Red Pack", "Red Pen"]);
    let (full, masked) = ([-44.580093031369266, -60.262489726017186], [-0.31921001776416963, -1.2972690115805454]);
    models.scores("model.gguf", &full, &masked);
    // llama.cpp's converter gave this name to Llama 3 files that put no BOS first.
    let mut bytes = models.0.read("model.gguf");
    let at = bytes.windows(9).position(|part| part == b"llama-bpe").unwrap();
    bytes[at..at + 9].copy_from_slice(b"smaug-bpe");
    models.0.write("smaug.gguf", bytes);
    models.scores("smaug.gguf", &full, &masked);
}

#[test]
fn gguf_without_pre_takes_the_split_of_its_vocabulary() {
    let models = Models::new();
    models.take("no-pre.gguf", "model.gguf");
    models.inputs("Next: ", &["Red Pen", "Blue Pen"]);
    models.scores("model.gguf", &[-52.68442788495206, -76.13853901255305], &[-0.5348618698168205, -0.8812865805974492]);
    let output = models.0.ok("score --llm model.gguf --catalogue titles.txt --input prompts.jsonl");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("note: tokenizer.ggml.pre is missing") && stderr.contains("Llama 3"), "{stderr}");
}

#[test]
fn a_head_that_differs_from_tied_embeddings_is_read() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 259, "tokenizer.json");
    models.scores("llm", &[-72.10121083119223], &[0.0]);
    models.config("llm", json!({"vocab_size": 259, "tie_word_embeddings": true}));
    models.scores("llm", &[-72.10121083119223], &[0.0]);
    let output = models.0.ok("score --llm llm --catalogue titles.txt --input prompts.jsonl");
    assert!(String::from_utf8_lossy(&output.stderr).contains("lm_head.weight differs from the embeddings"));
}

#[test]
fn special_tokens_map_decides_where_no_added_tokens_decoder_is() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 259, "tokenizer.json");
    models.json("llm/special_tokens_map.json", json!({"eos_token": "<|endoftext|>"}));
    models.scores("llm", &[-75.24153989413091], &[0.0]);
    models.json(
        "llm/tokenizer_config.json",
        json!({"eos_token": "<|im_end|>", "added_tokens_decoder": {"2": {"content": "<|im_end|>", "special": true}}}),
    );
    models.scores("llm", &[-72.10121083119223], &[0.0]);
}

#[test]
fn expressions_are_oniguruma_s() {
    let models = Models::new();
    models.inputs("x 1234", &["Size 1234", "Cé 12"]);
    models.directory("llm", 264, "tokenizer-split.json");
    models.scores("llm", &[-52.98717173756382, -34.472490738661186], &[-0.026105983472256677, -3.658615334248929]);
}

#[test]
fn added_tokens_of_other_files_are_added() {
    let models = Models::new();
    models.inputs("Hello<|sep|>", &["Red Pen"]);
    models.directory("llm", 260, "tokenizer.json");
    models.json("llm/added_tokens.json", json!({"<|sep|>": 259}));
    models.scores("llm", &[-68.36627438713495], &[0.0]);
    fs::remove_file(models.0.path("llm/added_tokens.json")).unwrap();
    let token = |content: &str| json!({"content": content, "special": true, "normalized": false});
    let config = |id: &str| {
        let added = json!({"0": token("<|endoftext|>"), id: token("<|sep|>")});
        json!({"eos_token": "<|im_end|>", "added_tokens_decoder": added})
    };
    models.json("llm/tokenizer_config.json", config("259"));
    models.scores("llm", &[-68.36627438713495], &[0.0]);
    models.json("llm/tokenizer_config.json", config("270"));
    models.assert_refused("llm", &["tokenizer_config.json", "<|sep|>", "270"]);
}

#[test]
fn a_token_beyond_the_embeddings_is_refused_where_a_text_needs_it() {
    let models = Models::new();
    models.directory("llm", 259, "tokenizer.json");
    models.json("llm/added_tokens.json", json!({"<|pad|>": 259}));
    models.inputs("Hello", &["Red Pen"]);
    models.scores("llm", &[-72.10121083119223], &[0.0]);
    models.inputs("Hello<|pad|>", &["Red Pen"]);
    models.assert_refused("llm", &["prompts.jsonl:1", "<|pad|>", "259"]);
}

/// A prompt with BOS is the prompt that begins with the token's text.
#[test]
fn bos_is_put_first_where_the_tokenizer_puts_it() {
    let models = Models::new();
    models.directory("llm", 259, "tokenizer.json");
    let scores = |prompt: &str| {
        models.inputs(prompt, &["Red Pen"]);
        models.score("llm")["full"][0].as_f64().unwrap()
    };
    let (with, without) = (scores("<|im_start|>Hello"), scores("Hello"));
    assert!((with - without).abs() > 0.1);
    models.json(
        "llm/tokenizer_config.json",
        json!({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "add_bos_token": true}),
    );
    assert_eq!(scores("Hello"), with);
    models.json("llm/tokenizer_config.json", json!({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}));
    assert_eq!(scores("Hello"), without);
    let mut tokenizer: Value = serde_json::from_slice(&models.0.read("llm/tokenizer.json")).unwrap();
    tokenizer["post_processor"] = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
         "special_tokens": {
             "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]},
             "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}}]});
    models.json("llm/tokenizer.json", tokenizer);
    assert_eq!(scores("Hello"), with, "what comes after the text is left out");
}

#[test]
fn rules_of_a_normalizer_are_checked() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 259, "tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(&models.0.read("llm/tokenizer.json")).unwrap();
    for rules in [json!(null), json!(""), json!("AAAAAA=="), json!("////////")] {
        let mut tokenizer = tokenizer.clone();
        tokenizer["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": rules});
        models.json("llm/tokenizer.json", tokenizer);
        models.assert_refused("llm", &["llm/tokenizer.json: normalizer.precompiled_charsmap"]);
    }
}

#[test]
fn split_gguf_files_are_read_together() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    let part = |n: usize| format!("split-{n:05}-of-00003.gguf");
    (1..=3).for_each(|n| models.take(&part(n), &part(n)));
    let found = [1, 2, 3].map(|n| models.score(&part(n))["full"][0].as_f64().unwrap());
    // The directory has the same weights, and the vocabulary splits so short a text alike.
    models.directory("llm", 260, "tokenizer-260.json");
    let expected = models.score("llm")["full"][0].as_f64().unwrap();
    assert!(found.iter().all(|found| (found - expected).abs() < 1e-4), "{found:?} {expected}");
    fs::copy(models.0.path(&part(2)), models.0.path("other.gguf")).unwrap();
    models.assert_refused("other.gguf", &["other.gguf: is part 2 of 3 of a split model"]);
    fs::remove_file(models.0.path(&part(3))).unwrap();
    models.assert_refused(&part(1), &["is part 1 of 3 of a split model", &part(3)]);
    fs::copy(models.0.path(&part(2)), models.0.path(&part(3))).unwrap();
    models.assert_refused(&part(1), &[&part(3), "is not part 3 of 3"]);
}

#[test]
fn types_of_gguf_are_known_or_named() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    for (file, named) in [
        // The files hold no whole model; their type is no fault any more.
        ("Q2_K.gguf", "tokenizer.ggml.merges"),
        ("Q3_K.gguf", "tokenizer.ggml.merges"),
        ("Q5_K.gguf", "tokenizer.ggml.merges"),
        ("IQ4_XS.gguf", "token_embd.weight: has type IQ4_XS"),
    ] {
        models.take(file, file);
        models.assert_refused(file, &[file, named]);
    }
}

#[test]
fn layouts_that_are_not_read_say_what_to_do() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    let make = |name: &str| models.directory(name, 260, "tokenizer-260.json");
    make("bin-only");
    fs::rename(models.0.path("bin-only/model.safetensors"), models.0.path("bin-only/pytorch_model.bin")).unwrap();
    models.assert_refused("bin-only", &["bin-only: holds pytorch_model.bin", "save_pretrained"]);
    make("sentencepiece-only");
    fs::rename(models.0.path("sentencepiece-only/tokenizer.json"), models.0.path("sentencepiece-only/tokenizer.model"))
        .unwrap();
    models.assert_refused("sentencepiece-only", &["holds tokenizer.model and no tokenizer.json", "save_pretrained"]);
    make("lfs");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 130760\n";
    models.0.write("lfs/model.safetensors", pointer);
    models.assert_refused("lfs", &["lfs/model.safetensors: is a Git LFS pointer"]);
    models.0.write("pointer.gguf", pointer);
    models.assert_refused("pointer.gguf", &["pointer.gguf: is a Git LFS pointer"]);
    make("lfs-tokenizer");
    models.0.write("lfs-tokenizer/tokenizer.json", pointer);
    models.assert_refused("lfs-tokenizer", &["lfs-tokenizer/tokenizer.json: is a Git LFS pointer"]);
    fs::create_dir(models.0.path("gguf-inside")).unwrap();
    models.take("smollm.gguf", "gguf-inside/model.gguf");
    models.assert_refused("gguf-inside", &["give the file itself: gguf-inside/model.gguf"]);
    fs::create_dir(models.0.path("adapter")).unwrap();
    models.take("peft/regex/adapter_config.json", "adapter/adapter_config.json");
    models.assert_refused("adapter", &["adapter: holds a PEFT adapter", "llm.adapter"]);
}

#[test]
fn an_adapter_beside_a_whole_model_is_noted() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 260, "tokenizer-260.json");
    let score = || models.0.ok("score --llm llm --catalogue titles.txt --input prompts.jsonl");
    assert!(!String::from_utf8_lossy(&score().stderr).contains("adapter"));
    models.take("peft/regex/adapter_config.json", "llm/adapter_config.json");
    assert!(String::from_utf8_lossy(&score().stderr).contains("note: llm: adapter_config.json is not read"));
}

/// Tokens of `extra_special_tokens`, a list or an object by roles, are special: a prompt's text of
/// one is the token.
#[test]
fn extra_special_tokens_by_role_or_in_a_list() {
    let models = Models::new();
    models.inputs("Hello<|sep|>", &["Red Pen"]);
    models.directory("llm", 260, "tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&models.0.read("llm/tokenizer.json")).unwrap();
    tokenizer["model"]["vocab"]["<|sep|>"] = json!(259);
    models.json("llm/tokenizer.json", tokenizer);
    let with = |extra: Value| {
        models.json("llm/tokenizer_config.json", json!({"eos_token": "<|im_end|>", "extra_special_tokens": extra}));
        models.score("llm")["full"][0].as_f64().unwrap()
    };
    let [none, list, roles] = [json!([]), json!(["<|sep|>"]), json!({"sep": "<|sep|>"})].map(with);
    // The figure of `added_tokens_of_other_files_are_added`.
    assert!((list + 68.36627438713495).abs() < 1e-3 && (roles - list).abs() < 1e-9, "{list} {roles}");
    assert!((none - list).abs() > 0.1);
}

/// Scalings of RoPE as older files have them; transformers 5.24 printed the scores.
#[test]
fn rope_scalings_of_older_files() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 260, "tokenizer-260.json");
    let scores = |scaling: Value, expected: f64| {
        models.config("llm", json!({"vocab_size": 260, "rope_scaling": scaling}));
        models.scores("llm", &[expected], &[0.0]);
    };
    scores(json!({"type": "linear", "factor": 4.0}), -63.72725744664324);
    // The context before the scaling is then max_position_embeddings, 256.
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    scores(llama3, -66.27013800321396);
}

/// A LlamaModel that was saved alone, with its head: it scores as with the prefix.
#[test]
fn names_without_the_model_s_prefix_are_completed() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 260, "tokenizer-260.json");
    let expected = models.score("llm");
    let bytes = models.0.read("llm/model.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap().replace("\"model.", "\"");
    models.0.write(
        "llm/model.safetensors",
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat(),
    );
    assert_eq!(models.score("llm"), expected);
}

/// Adapters as peft 0.21.2 writes them, on the projections that their tensors' names say. Their B
/// is zero, so ones are put into it: each then changes the scores, and equal ones change them
/// equally.
#[test]
fn peft_adapters_however_their_modules_are_named() {
    let models = Models::new();
    models.inputs("Hello", &["Red Pen"]);
    models.directory("llm", 259, "tokenizer.json");
    let plain = models.score("llm")["full"][0].as_f64().unwrap();
    let score = |name: &str| {
        let dir = models.0.path(name);
        fs::create_dir_all(&dir).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            models.take(&format!("peft/{name}/{file}"), &format!("{name}/{file}"));
        }
        let line = format!("score --llm llm --adapter {name} --catalogue titles.txt --input prompts.jsonl");
        let untrained =
            document(&succeeded(&line, models.0.command(&line).output().unwrap()))["full"][0].as_f64().unwrap();
        assert!((untrained - plain).abs() < 1e-4, "{name}: {untrained}, not {plain}");
        models.0.edit_tensors(&format!("{name}/adapter_model.safetensors"), |tensors| {
            for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
                assert!(name.starts_with("base_model.model.model.layers."));
                tensor.1 = tensor.1.chunks(4).flat_map(|_| 0.05f32.to_le_bytes()).collect();
            }
        });
        document(&succeeded(&line, models.0.command(&line).output().unwrap()))["full"][0].as_f64().unwrap()
    };
    let [all, suffixes, regex, one_layer] = ["all-linear", "suffixes", "regex", "one-layer"].map(score);
    assert_eq!(suffixes, regex);
    for changed in [all, suffixes, one_layer] {
        assert!((changed - plain).abs() > 1e-3, "{changed} {plain}");
    }
    assert!((one_layer - suffixes).abs() > 1e-3);
}

#[test]
fn sentence_encoders_say_how_they_pool() {
    let models = Models::new();
    models.directory("llm", 259, "tokenizer.json");
    fs::create_dir(models.0.path("toy")).unwrap();
    for split in ["train", "valid", "test"] {
        let rows: Vec<String> = (0..8)
            .map(|u| format!("u{u},\"[{}, {}, {}]\",{}", 100 + u, 100 + (u + 1) % 8, 100 + (u + 3) % 8, 1000 + u))
            .collect();
        models.0.write(&format!("toy/{split}.csv"), format!("user_id,item_ids,timestamp\n{}\n", rows.join("\n")));
    }
    let names = ["Red Pen", "Blue Pen", "Stapler", "Paper 500 sheets", "Pad, ruled", "Glue", "Ink", "Tape"];
    let names: serde_json::Map<String, Value> =
        names.iter().zip(100..).map(|(name, id)| (id.to_string(), json!(name))).collect();
    models.json("toy/id2name4Rec.json", Value::Object(names));
    models.take("tasks.jsonl", "tasks.jsonl");
    models.0.write(
        "rows.toml",
        "seed = 7\n[data]\ncorpus = \"corpus\"\ntext_tasks = \"tasks.jsonl\"\n[llm]\npath = \
                                 \"llm\"\nlora = \
                                 { rank = 4, alpha = 8, dropout = 0.0, targets = [\"q_proj\"] }\n[loss]\nkind = \
                                 \"lml\"\n[train]\nepochs = 1\nbatch_size = 4\nmicro_batch_size = 2\nlearning_rate = \
                                 1e-2\nwarmup_steps = 1\ncheckpoint_steps = 4\nvalid_windows = 2\n",
    );
    models.0.ok("prepare msl toy --out corpus");
    models.0.ok("train rows.toml --out run --max-steps 0");
    fs::create_dir_all(models.0.path("bert/1_Pooling")).unwrap();
    for file in ["config.json", "model.safetensors", "vocab.txt"] {
        models.take(&format!("bert/{file}"), &format!("bert/{file}"));
    }
    let consistency = || {
        let report = models.0.json("evaluate run --sentence-encoder bert");
        report["mean"]["semantic_consistency"].as_f64().unwrap()
    };
    let pooling = |cls: bool| {
        models.json(
            "bert/1_Pooling/config.json",
            json!({"word_embedding_dimension": 32, "pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": !cls}),
        )
    };
    // transformers' BertModel over the texts of `texts-test.jsonl`, pooled and cut as
    // sentence-transformers does; 1e-5 is the rounding of f32 in two blocks.
    let near = |expected: f64| {
        let found = consistency();
        assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
    };
    pooling(false);
    near(0.9262231588363647);
    pooling(true);
    near(0.9473406970500946);
    pooling(false);
    models.json("bert/sentence_bert_config.json", json!({"max_seq_length": 8, "do_lower_case": false}));
    near(0.9514985233545303);
    let mut config: Value = serde_json::from_slice(&models.0.read("bert/config.json")).unwrap();
    config["is_decoder"] = json!(true);
    models.json("bert/config.json", config);
    models.0.assert_refused("evaluate run --sentence-encoder bert", 1, &["bert/config.json", "is_decoder"]);
}
