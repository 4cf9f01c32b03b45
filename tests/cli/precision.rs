//! `llm.precision`, and whose word counts of two keys for the micro-batch.

use crate::common::fixture;
use crate::lab::Lab;

#[test]
fn bf16_trains_f32_masters_and_f16_only_ranks() {
    let lab = Lab::new();
    let sets = "--set train.epochs=1 --set train.valid_windows=0 --set llm.precision=";
    lab.assert_refused(&format!("train run.toml {sets}f16"), 2, &["llm.precision", "f16"]);
    lab.assert_refused(&format!("train run.toml {sets}f16 --profile"), 2, &["llm.precision", "f16"]);
    lab.assert_refused("train run.toml --set llm.precision=int8", 2, &["precision", "int8"]);

    lab.ok(&format!("train run.toml --out f32 --ui none {sets}f32"));
    lab.ok(&format!("train run.toml --out bf16 --ui none {sets}bf16"));
    let losses = |run: &str| {
        let text = String::from_utf8(lab.read(&format!("{run}/metrics.jsonl"))).unwrap();
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
        text.lines().map(loss).collect::<Vec<f64>>()
    };
    let (exact, rounded) = (losses("f32"), losses("bf16"));
    assert_eq!(exact.len(), rounded.len());
    assert_ne!(exact, rounded, "bf16 rounds somewhere");
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert!((exact - rounded).abs() < 0.05 * exact.abs().max(0.1), "{rounded} beside {exact}");
    }
    lab.ok("evaluate bf16 --limit 4");

    // What `merge` writes of a full tuning are its masters, to the last bit.
    lab.ok(&format!("train run.toml --out full --ui none --set llm.tune=full {sets}bf16"));
    lab.ok("merge full --out merged");
    assert!(lab.read("merged/model.safetensors") == lab.read("full/model/model.safetensors"), "masters were rounded");

    lab.ok(&format!("train run.toml --out untuned --ui none --max-steps 0 {sets}f16"));
    lab.ok("evaluate untuned --limit 4");
}

#[test]
fn matrices_stay_quantised_and_nothing_else_changes() {
    let lab = Lab::new();
    let tiny = fixture("gguf/tiny.gguf");
    let sets = "--set train.epochs=1 --set train.valid_windows=0";
    lab.assert_refused(
        &format!("train run.toml {sets} --set llm.quantized=true"),
        2,
        &["llm.quantized", "llm: ", "blocks"],
    );
    let sets = format!("{sets} --set llm.path={}", tiny.display());
    let full = format!("train run.toml {sets} --set llm.quantized=true --set llm.tune=full");
    lab.assert_refused(&full, 2, &["llm.quantized", "full"]);
    for (run, quantized) in [("plain", false), ("kept", true)] {
        let shown = lab.ok(&format!("train run.toml --out {run} --ui plain {sets} --set llm.quantized={quantized}"));
        let shown = String::from_utf8(shown.stderr).unwrap();
        assert_eq!(shown.contains("12 matrices stay quantised"), quantized, "{shown}");
        lab.ok(&format!("evaluate {run} --limit 4"));
        lab.ok(&format!("merge {run} --out {run}-merged"));
    }
    for file in ["adapter/adapter_model.safetensors", "ranks-test.parquet"] {
        assert!(lab.read(&format!("plain/{file}")) == lab.read(&format!("kept/{file}")), "{file}");
    }
    assert!(lab.read("plain-merged/model.safetensors") == lab.read("kept-merged/model.safetensors"));
}

#[test]
fn an_override_replaces_the_other_key() {
    let lab = Lab::new();
    let run = lab.json("train run.toml --out tokens --ui none --max-steps 2 --set train.micro_batch_tokens=60");
    assert_eq!(run["steps"], 2);
    let config = String::from_utf8(lab.read("tokens/run.toml")).unwrap();
    assert!(config.contains("micro_batch_tokens = 60") && !config.contains("micro_batch_size"), "{config}");
    lab.write(
        "both.toml",
        String::from_utf8(lab.read("run.toml")).unwrap().replace("epochs = 2", "epochs = 2\nmicro_batch_tokens = 9"),
    );
    lab.assert_refused("train both.toml", 2, &["micro_batch_tokens", "micro_batch_size"]);
    for backend in ["gpu", "cpu:0", "wgpu:"] {
        lab.assert_refused(&format!("train run.toml --backend {backend}"), 2, &["--backend"]);
    }
}
