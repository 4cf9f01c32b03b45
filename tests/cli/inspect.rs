//! `inspect`, as text and as JSON, at text level and token by token.

use itemlm::text::Tokenizer;
use serde_json::{Value, json};

use crate::lab::{ITEMS, Lab, USERS, titles};

fn stdout(lab: &Lab, line: &str) -> String {
    String::from_utf8(lab.ok(line).stdout).unwrap()
}

fn counts(histogram: &Value) -> u64 {
    histogram.as_array().unwrap().iter().map(|bin| bin["count"].as_u64().unwrap()).sum()
}

#[test]
fn statistics_and_histograms() {
    let lab = Lab::new();
    let prepared = lab.json("prepare msl toy --out corpus");
    let found = lab.json("inspect corpus");
    for key in
        ["users", "items", "interactions", "windows", "cold_test_targets", "test_users", "new_test_users", "steps"]
    {
        assert_eq!(found[key], prepared[key], "{key}");
    }
    assert_eq!(found["density"], json!((7 * USERS) as f64 / (USERS * ITEMS) as f64));
    // Only the first two users' tests end with the two cold items; all users have training windows.
    assert_eq!((&found["cold_test_targets"], &found["new_test_users"]), (&json!(2), &json!(0)));
    assert_eq!((&found["titles"]["duplicates"], &found["titles"]["missing"]), (&json!(2), &json!(0)));
    assert_eq!(found["sequence_lengths"]["histogram"], json!([{"from": 7, "to": 7, "count": USERS}]));
    assert_eq!(counts(&found["popularity"]["histogram"]), ITEMS as u64);
    assert_eq!(found["steps"][0]["after"], json!(7 * USERS));
    let examples = found["examples"].as_array().unwrap();
    assert_eq!((examples.len(), &examples[0]["user"]), (2, &json!("u0")));
    assert!(examples[0].get("tokens").is_none());

    let text = stdout(&lab, "inspect corpus");
    assert!(text.contains(&"█".repeat(50)) && text.contains("label, predicted"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let none = stdout(&lab, "inspect corpus --examples 0");
    assert!(none.contains("none asked for"), "{none}");
}

#[test]
fn tokens_are_those_that_train() {
    let lab = Lab::new();
    let tokenizer = Tokenizer::from_dir(&lab.path("llm")).unwrap();
    let found = lab.json("inspect corpus --llm llm --prompt short --examples 3");
    for example in found["examples"].as_array().unwrap() {
        let tokens = example["tokens"].as_array().unwrap();
        let ids: Vec<u32> = tokens.iter().map(|t| t["id"].as_u64().unwrap() as u32).collect();
        let prompt = tokenizer.encode(example["prompt"].as_str().unwrap()).unwrap();
        let target = tokenizer.encode(example["label"].as_str().unwrap()).unwrap();
        assert_eq!(ids, [&prompt[..], &target, &[tokenizer.eos()]].concat());
        for (place, token) in tokens.iter().enumerate() {
            let masked = place < prompt.len();
            assert_eq!(token["label"], if masked { json!(-100) } else { token["id"].clone() });
            assert_eq!(token["children"].is_null(), masked);
            assert_eq!(token["loss"], json!(token["children"].as_u64().is_some_and(|children| children > 1)));
        }
        // The tokenizer joins the quote and the first letter: Red, Blue, Café, Stapler, A5.
        assert_eq!(tokens[prompt.len()]["children"], 5);
    }
    let text = stdout(&lab, "inspect corpus --llm llm --prompt short");
    assert!(text.contains("carry loss under MSL"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn hostile_and_missing_data_are_shown() {
    let lab = Lab::new();
    let names: serde_json::Map<String, Value> = (100..)
        .map(|id: usize| id.to_string())
        .zip(titles())
        .map(|(id, title)| {
            (id, json!(if title.contains("Pen") { String::new() } else { format!("{title}\u{1b}[2J\u{9b}\r\n") }))
        })
        .collect();
    lab.write("toy/id2name4Rec.json", serde_json::to_vec(&names).unwrap());
    lab.write("toy/test.csv", "user_id,item_ids,timestamp\nu\u{1b}c,\"[100, 102, 103]\",9000\n");
    lab.ok("prepare msl toy --out corpus");
    for line in ["inspect corpus", "inspect corpus --llm llm --prompt short"] {
        let text = stdout(&lab, line);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }
    let text = stdout(&lab, "inspect corpus");
    assert!(text.contains("\\u{1b}[2J\\u{9b}\\r") && text.contains("user u\\u{1b}c"), "{text}");
    lab.write("toy/test.csv", "user_id,item_ids,timestamp\n");
    lab.ok("prepare msl toy --out corpus");
    assert!(stdout(&lab, "inspect corpus --llm llm --prompt short").contains("the test split has no window"));
    assert_eq!(lab.json("inspect corpus")["cold_test_share"], Value::Null);
}
