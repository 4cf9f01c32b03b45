//! Runs that learn rows of text tasks, end to end: vectors in the prompts, texts out.

use serde_json::{Value, json};

use crate::common::fixture;
use crate::lab::{ITEMS, Lab, USERS};

/// 24 train rows: 6 steps of 4 an epoch.
const RUN: &str = r#"
seed = 7
[data]
corpus = "corpus"
text_tasks = "tasks.jsonl"
mixing = 0.5
[llm]
path = "llm"
tune = "frozen"
[items]
encoder = "linear"
vectors = "als.safetensors"
beside_text = false
queries = 2
[loss]
kind = "lml"
[train]
epochs = 4
batch_size = 4
micro_batch_size = 2
learning_rate = 3e-2
warmup_steps = 2
checkpoint_steps = 4
valid_windows = 5
"#;

/// Returns the rows of three tasks. Of the items 100 to 119 the last eight are not trained on. The
/// answer about an item depends on whether its id is even.
fn rows() -> String {
    let mut lines = String::new();
    let mut line = |value: Value| lines += &format!("{value}\n");
    for item in 0..ITEMS {
        let id = (100 + item).to_string();
        let split = ["train", "valid", "test"][(item.max(11) - 11).div_ceil(4).min(2)];
        let kind = ["a pen", "a pad"][item % 2];
        line(json!({"task": "summary", "items": [id], "text": format!("It is {kind}."), "split": split}));
        if item % 2 == 0 {
            let user = (item % 4 == 0).then(|| format!("u{}", item % USERS));
            let text = "Take it: it is a pen.";
            line(json!({"task": "convince1", "items": [id], "user": user, "text": text, "split": split}));
        } else {
            let text = "Both are pads.";
            line(json!({"task": "common with nn", "items": [id, 101 + 2 * (item % 3)], "text": text, "split": split}));
        }
    }
    lines
}

fn lab() -> Lab {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("bert")).unwrap();
    for file in ["config.json", "model.safetensors", "vocab.txt"] {
        std::fs::copy(fixture("reference/bert").join(file), lab.path("bert").join(file)).unwrap();
    }
    lab.ok("cf als corpus --out als.safetensors --set dim=6");
    lab.write("tasks.jsonl", rows());
    lab.write("tasks.toml", RUN);
    lab
}

fn texts(lab: &Lab, file: &str) -> Vec<Value> {
    let text = String::from_utf8(lab.read(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn trains_resumes_and_writes() {
    let lab = lab();
    let report = lab.json("train tasks.toml --out whole");
    assert_eq!((&report["steps"], &report["total_steps"], &report["samples"]), (&24.into(), &24.into(), &96.into()));
    assert_eq!(report["valid_ndcg_at_10"], Value::Null);
    assert!(report["validation"].as_str().unwrap().contains("5 of 8 valid rows"), "{}", report["validation"]);
    lab.ok("train tasks.toml --out parts --max-steps 0");
    for stop in [1, 4, 7] {
        assert_eq!(lab.json(&format!("train tasks.toml --out parts --resume --max-steps {stop}"))["steps"], stop);
    }
    assert_eq!(lab.json("train tasks.toml --out parts --resume")["loss"], report["loss"]);
    lab.same_run("whole", "parts", "encoder/entity_encoder.safetensors");

    lab.ok("train tasks.toml --out untrained --max-steps 0");
    let evaluate = |run: &str| lab.json(&format!("evaluate {run} --sentence-encoder bert"));
    let (before, after) = (evaluate("untrained"), evaluate("whole"));
    println!("{}\n{}", before["tasks"], after["tasks"]);
    for (task, rows) in [("summary", 4), ("convince1", 2), ("common with nn", 2)] {
        let [before, after] = [&before, &after].map(|evaluation| &evaluation["tasks"][task]);
        assert_eq!((&after["rows"], &after["decoded"]), (&rows.into(), &rows.into()));
        let [was, is] = [before, after].map(|quality| quality["log_perplexity"].as_f64().unwrap());
        assert!(is > 0.0 && is < was - 0.1, "{task}: {was} to {is}");
        assert!(after["semantic_consistency"].as_f64().is_some_and(|cosine| (-1.001..1.001).contains(&cosine)));
    }
    let perplexity = |quality: &Value| quality["log_perplexity"].as_f64().unwrap();
    let tasks: Vec<f64> = after["tasks"].as_object().unwrap().values().map(perplexity).collect();
    assert!((perplexity(&after["mean"]) - tasks.iter().sum::<f64>() / 3.0).abs() < 1e-9);
    let step = after["step"].as_u64().unwrap();
    assert!(step > 0 && step.is_multiple_of(6), "the end of an epoch, not {step}");
    let written: Value = serde_json::from_slice(&lab.read("whole/evaluation-test.json")).unwrap();
    assert_eq!(written, after);

    let lines = texts(&lab, "whole/texts-test.jsonl");
    assert_eq!(lines.len(), 8);
    let (summary, user) = (&lines[0], &lines[1]);
    assert_eq!(
        (&summary["task"], &summary["items"], &summary["target"]),
        (&"summary".into(), &json!(["116"]), &"It is a pen.".into())
    );
    assert!(summary["decoded"].is_string() && summary["cosine"].is_f64() && summary.get("user").is_none());
    assert_eq!((&user["task"], &user["user"]), (&"convince1".into(), &"u16".into()));

    // Without an encoder of sentences: log-perplexity alone, the same, and a note. The tasks take
    // turns.
    let output = lab.ok("evaluate whole --limit 4 --json");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        stderr.lines().filter(|line| line.starts_with("note: ") && line.contains("just bert")).count(),
        1,
        "{stderr}"
    );
    let alone = crate::lab::document(&output);
    let rows: Vec<&Value> = alone["tasks"].as_object().unwrap().values().map(|quality| &quality["rows"]).collect();
    assert_eq!((rows, &alone["sentence_encoder"]), (vec![&Value::from(1), &1.into(), &2.into()], &Value::Null));
    assert_eq!(texts(&lab, "whole/texts-test.jsonl")[0]["decoded"], Value::Null);
    assert_eq!(lab.json("evaluate whole --split valid")["mean"]["rows"], 8);
    assert!(String::from_utf8_lossy(&lab.ok("evaluate whole").stdout).contains("log-perplexity"));
}

/// Titles in place of vectors, every weight trained: the baseline of text alone learns what is
/// said.
#[test]
fn titles_alone() {
    let lab = lab();
    let set =
        "--set items={encoder=\"none\"} --set llm.tune=full --set train.learning_rate=5e-3 --set train.valid_windows=0";
    let report = lab.json(&format!("train tasks.toml --out titles {set} --set train.epochs=12"));
    assert!(report["validation"].as_str().unwrap().contains("no row validates"));
    let evaluation = lab.json("evaluate titles --sentence-encoder bert");
    println!("{}", evaluation["tasks"]);
    assert!(evaluation["mean"]["log_perplexity"].as_f64().unwrap() < 1.5, "{}", evaluation["mean"]);
    let lines = texts(&lab, "titles/texts-test.jsonl");
    println!("{lines:?}");
    assert!(lines.iter().any(|line| line["decoded"] == line["target"]), "no text is as it was");
}

/// Templates of one's own, from a file.
#[test]
fn templates_from_a_file() {
    let lab = lab();
    let template = "[[task]]\nname = \"colour\"\nprompt = \"Of what colour is {item}?\\n\"\n";
    lab.write("mine.toml", template);
    let row = |item: usize| {
        let split = if item < 12 { "train" } else { "test" };
        format!("{}\n", json!({"task": "colour", "items": [100 + item], "text": "red", "split": split}))
    };
    lab.write("colours.jsonl", (0..ITEMS).map(row).collect::<String>());
    let set = "--set data.text_tasks=colours.jsonl --set data.text_task_prompts=mine.toml";
    lab.ok(&format!("train tasks.toml --out mine {set} --max-steps 2"));
    let evaluation = lab.json("evaluate mine");
    assert_eq!(evaluation["tasks"].as_object().unwrap().keys().collect::<Vec<_>>(), ["colour"]);
    lab.assert_refused(
        "train tasks.toml --out new --set data.text_tasks=colours.jsonl",
        1,
        &["colours.jsonl: line 1", "colour"],
    );
    lab.write("mine.toml", template.replace("colour is", "shade is"));
    lab.assert_refused("evaluate mine", 1, &["mine", "another prompt template"]);
    lab.write("mine.toml", "[[task]]\nname = \"colour\"\nprompt = \"{history}\"\n");
    lab.assert_refused(&format!("train tasks.toml --out new {set}"), 2, &["mine.toml", "colour"]);
}

#[test]
fn refusals() {
    let lab = lab();
    let refused = |set: &str, code, named: &[&str]| {
        lab.assert_refused(&format!("train tasks.toml --out new {set}"), code, named);
    };
    refused("--set loss.kind=msl", 2, &["data.text_tasks", "loss.kind"]);
    refused("--set data.prompt=short", 2, &["data.text_tasks", "data.prompt"]);
    refused("--set data.mixing=2", 2, &["data.mixing"]);
    refused("--set train.shuffle=false", 2, &["train.shuffle"]);
    refused("--set data.text_tasks=none.jsonl", 1, &["none.jsonl"]);
    lab.assert_refused("train run.toml --out new --set data.mixing=1", 2, &["data.mixing", "data.text_tasks"]);

    let good = rows();
    let first = "{\"items\":[\"100\"]";
    let bad = |from: &str, to: &str, named: &[&str]| {
        lab.write("tasks.jsonl", good.replacen(from, to, 1));
        lab.assert_refused("train tasks.toml --out new", 1, named);
        lab.write("tasks.jsonl", &good);
    };
    bad("\"summary\"", "\"sumary\"", &["tasks.jsonl: line 1", "sumary"]);
    bad(first, "{\"items\":[\"99\"]", &["tasks.jsonl: line 1", "99"]);
    bad("It is a pen.", &"It is a pen. ".repeat(60), &["tasks.jsonl: line 1", "tokens", "512"]);
    lab.write("tasks.jsonl", good.replace("\"train\"", "\"test\""));
    lab.assert_refused("train tasks.toml --out new", 1, &["tasks.jsonl", "no row to train on"]);
    lab.write("tasks.jsonl", &good);

    lab.ok("train tasks.toml --out run --max-steps 1");
    lab.assert_refused("recommend run --history x", 2, &["run", "tasks.jsonl", "ranks no items"]);
    for flag in ["--beams 3", "--scoring full", "--length-penalty 1", "--prior-weight 1"] {
        lab.assert_refused(&format!("evaluate run {flag}"), 2, &["--beams", "for ranking"]);
    }
    lab.assert_refused("evaluate run --sentence-encoder none", 1, &["none"]);
    lab.assert_refused("train tasks.toml --out run --resume --set data.mixing=1", 2, &["mixing"]);
    lab.write("tasks.jsonl", good.replacen("a pen", "one pen", 1));
    lab.assert_refused("evaluate run", 1, &["run", "file of rows", "tasks.jsonl"]);
    lab.assert_refused("train tasks.toml --out run --resume", 1, &["file of rows"]);
    lab.write(
        "tasks.jsonl",
        good.lines().filter(|line| !line.contains("test")).map(|line| format!("{line}\n")).collect::<String>(),
    );
    lab.ok("train tasks.toml --out untested --max-steps 1");
    lab.assert_refused("evaluate untested", 1, &["tasks.jsonl", "no row of the split test"]);

    lab.ok("train run.toml --out ranks --max-steps 1");
    lab.assert_refused("evaluate ranks --sentence-encoder bert", 2, &["--sentence-encoder", "ranks items"]);
}
