//! Every command after the other, with the keys of the fixed command line.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::lab::{ITEMS, Lab, USERS, document, succeeded, titles};

fn keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(*key).is_some_and(|v| !v.is_null()), "no {key} in {value}");
    }
}

fn summary(value: &Value) {
    keys(value, &["split", "users", "metrics", "cold", "warm", "users_per_second", "scoring"]);
    assert!(value.get("beams").is_some());
    for (group, users) in [(value, USERS), (&value["cold"], 2), (&value["warm"], USERS - 2)] {
        assert_eq!(group["users"], users);
        for metric in ["ndcg@5", "ndcg@10", "hr@5", "hr@10"] {
            let found = group["metrics"][metric].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&found), "{metric} is {found}");
        }
    }
    assert_eq!(value["split"], "test");
}

#[test]
fn from_raw_data_to_recommendations() {
    let lab = Lab::new();
    let prepared = lab.json("prepare msl toy --out corpus");
    keys(&prepared, &["users", "items", "interactions", "windows", "dropped"]);
    assert_eq!((&prepared["users"], &prepared["items"]), (&json!(USERS), &json!(ITEMS)));
    assert_eq!(prepared["interactions"], 7 * USERS);
    assert_eq!(prepared["windows"], json!({"train": 3 * USERS, "valid": USERS, "test": USERS}));
    assert!(prepared["dropped"].is_object());

    let trained = lab.json("train run.toml --out run");
    keys(&trained, &["steps", "samples", "seconds", "samples_per_second", "peak_memory_bytes", "loss", "temperature"]);
    assert_eq!((&trained["run"], &trained["steps"], &trained["samples"]), (&json!("run"), &json!(10), &json!(80)));
    keys(&trained["loss"], &["first", "last"]);
    let metrics = lab.metrics("run");
    assert_eq!(metrics.len(), 10);
    for (n, line) in metrics.iter().enumerate() {
        keys(line, &["step", "epoch", "loss", "lr", "temperature", "tokens", "seconds"]);
        assert_eq!((&line["step"], &line["epoch"]), (&json!(n + 1), &json!(n / 5 + 1)));
    }
    assert_eq!((&metrics[0]["loss"], &metrics[9]["loss"]), (&trained["loss"]["first"], &trained["loss"]["last"]));
    assert_eq!((&metrics[0]["lr"], &metrics[2]["lr"]), (&json!(0.0), &json!(1e-2)));
    assert_eq!(metrics[9]["temperature"], trained["temperature"]);
    assert!(trained["temperature"].as_f64().unwrap() > 1.5, "the adaptive temperature never left its floor");
    assert!(lab.path("run/adapter/adapter_config.json").is_file());
    assert!(lab.leftovers("run").is_empty());

    let evaluation = lab.json("evaluate run");
    summary(&evaluation);
    assert_eq!((&evaluation["scoring"], &evaluation["beams"]), (&json!("masked"), &json!(5)));
    let written: Value = serde_json::from_slice(&lab.read("run/evaluation-test.json")).unwrap();
    assert_eq!(written, evaluation);
    assert!(lab.path("run/ranks-test.parquet").is_file());
    let other = lab.json("evaluate run --split valid --limit 3 --beams 7 --scoring full --length-penalty 0.5");
    assert_eq!((&other["split"], &other["users"]), (&json!("valid"), &json!(3)));
    assert_eq!((&other["scoring"], &other["beams"]), (&json!("full"), &json!(7)));
    assert!(lab.path("run/evaluation-valid.json").is_file());

    for name in ["popularity", "markov", "cooccurrence"] {
        summary(&lab.json(&format!("baseline {name} corpus")));
    }
    let text = lab.ok("baseline markov corpus").stdout;
    assert!(String::from_utf8(text).unwrap().contains("NDCG@10"));
    let text = lab.ok("evaluate run --limit 2").stdout;
    assert!(String::from_utf8(text).unwrap().contains("NDCG@10"));
}

#[test]
fn recommended_titles_are_in_the_catalogue() {
    let lab = Lab::new();
    lab.ok("train run.toml --out run --max-steps 3");
    let catalogue: HashSet<String> = titles().into_iter().collect();
    for (k, expected) in [(1, 1), (7, 7), (50, ITEMS - 1)] {
        let line = format!("recommend run --json -k {k}");
        let mut command = lab.command(&line);
        command.args(["--history", "Red Pen 0", "--history", "never seen: \u{1f58a} \"\n"]);
        let found = document(&succeeded(&line, command.output().unwrap()));
        let items = found["items"].as_array().unwrap();
        assert_eq!(items.len(), expected, "equal titles are one item");
        let shown: HashSet<String> = items.iter().map(|i| i["title"].as_str().unwrap().to_string()).collect();
        assert_eq!(shown.len(), expected);
        assert!(shown.is_subset(&catalogue));
        let log_probs: Vec<f64> = items.iter().map(|i| i["log_prob"].as_f64().unwrap()).collect();
        assert!(log_probs.is_sorted_by(|a, b| a >= b) && log_probs[0] <= 0.0);
        assert!(items.iter().zip(1..).all(|(item, rank)| item["rank"] == rank));
    }
}

#[test]
fn scores_are_a_line_an_input() {
    let lab = Lab::new();
    lab.ok("train run.toml --out run");
    let titles = titles();
    lab.write("titles.txt", titles.join("\n"));
    let line = |prompt: &str, items: &[String]| format!("{}\n", json!({"prompt": prompt, "items": items}));
    lab.write("input.jsonl", line("History: ", &titles) + &line("x", &titles[..2]) + &line("y", &[]));
    let score = |more: &str| -> Vec<Value> {
        let output = lab.ok(&format!("score --llm llm --catalogue titles.txt --input input.jsonl {more}"));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let numbers =
        |value: &Value| -> Vec<f64> { value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let scores = score("");
    assert_eq!(scores.len(), 3);
    for (value, count) in scores.iter().zip([ITEMS, 2, 0]) {
        let (full, masked) = (numbers(&value["full"]), numbers(&value["masked"]));
        assert_eq!((full.len(), masked.len()), (count, count));
        assert!(full.iter().zip(&masked).all(|(full, masked)| full < masked && *masked <= 0.0));
    }
    // Over the whole catalogue the masked probabilities are a distribution; the twins share one
    // leaf.
    let total: f64 = numbers(&scores[0]["masked"]).iter().map(|l| l.exp()).sum();
    let twin = numbers(&scores[0]["masked"])[5].exp();
    assert!((total - twin - 1.0).abs() < 1e-4, "{total} {twin}");
    let tuned = score("--adapter run");
    assert_ne!(tuned, scores);

    lab.ok("merge run --out merged");
    lab.copy("merged", "llm");
    for (merged, tuned) in score("").iter().zip(&tuned) {
        for kind in ["full", "masked"] {
            let pairs = numbers(&merged[kind]).into_iter().zip(numbers(&tuned[kind]));
            pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-3, "{kind}: {a} {b}"));
        }
    }
}

/// One step's windows as 1 × 8, 2 × 4 and 8 × 1 give the same losses.
#[test]
fn accumulation_changes_nothing() {
    let lab = Lab::new();
    let set = "--set llm.lora.dropout=0 --set train.epochs=1 --set train.valid_windows=0 --set train.batch_size=8";
    for (name, loss) in [
        ("lml", "--set loss.kind=lml"),
        ("msl", "--set loss.temperature=2.5"),
        ("ats", "--set loss.temperature=adaptive"),
    ] {
        let losses = [8, 4, 1].map(|micro| {
            let out = format!("{name}-{micro}");
            lab.ok(&format!("train run.toml --out {out} {set} {loss} --set train.micro_batch_size={micro}"));
            lab.losses(&out)
        });
        assert_eq!(losses[0].len(), 5);
        for other in &losses[1..] {
            for (a, b) in losses[0].iter().zip(other) {
                assert!((a - b).abs() <= 1e-5 * a.abs(), "{name}: {losses:?}");
            }
        }
    }
}
