//! A run with OpenP5's two prompt sets, on a small data set in its layout: ids for items, prompts
//! with the user.

use std::collections::HashSet;
use std::fs;

use serde_json::{Value, json};

use crate::lab::{ITEMS, Lab, document, titles};

const USERS: usize = 12;

/// 10 windows, 2 prompts of each set: 5 steps for a set and 10 for an epoch.
const RUN: &str = r#"
seed = 7
[data]
corpus = "p5-corpus"
prompt_sets = ["sequential", "straightforward"]
prompts_per_window = 2
train_samples = 10
[items]
text = "random_id"
[llm]
path = "llm"
lora = { rank = 4, alpha = 8, dropout = 0.05, targets = ["q_proj", "v_proj"] }
[train]
epochs = 2
batch_size = 4
micro_batch_size = 2
learning_rate = 1e-2
warmup_steps = 2
checkpoint_steps = 3
valid_windows = 4
[decode]
beams = 5
"#;

fn id(item: usize) -> usize {
    1001 + (item * 7) % ITEMS
}

fn lab() -> Lab {
    let lab = Lab::new();
    fs::create_dir(lab.path("p5")).unwrap();
    let sequence =
        |user: usize| (0..6).map(|n| format!(" a{}", (user * 3 + n * (1 + user % 4)) % ITEMS)).collect::<String>();
    lab.write(
        "p5/user_sequence.txt",
        (0..USERS).map(|user| format!("u{user}{}\n", sequence(user))).collect::<String>(),
    );
    lab.write(
        "p5/asin_title.tsv",
        titles().iter().enumerate().map(|(n, title)| format!("a{n}\t{title}\n")).collect::<String>(),
    );
    lab.write("p5/item_random_indexing.txt", (0..ITEMS).map(|n| format!("a{n} {}\n", id(n))).collect::<String>());
    lab.ok("prepare openp5 p5 --out p5-corpus");
    lab.write("tasks.toml", RUN);
    lab
}

fn metrics(row: &Value) -> &Value {
    assert_eq!(row["users"], USERS, "{row}");
    assert!(["ndcg@5", "ndcg@10", "hr@5", "hr@10"].iter().all(|name| row["metrics"][*name].is_f64()), "{row}");
    &row["metrics"]
}

#[test]
fn trains_resumes_ranks_and_recommends() {
    let lab = lab();
    let report = lab.json("train tasks.toml --out run");
    assert_eq!((&report["steps"], &report["total_steps"], &report["samples"]), (&json!(20), &json!(20), &json!(80)));
    // The user and a history take more tokens than the user alone, by which the steps' sets can be
    // told.
    let tokens: Vec<u64> = lab.metrics("run").iter().map(|line| line["tokens"].as_u64().unwrap()).collect();
    assert!(tokens.chunks(2).all(|turn| turn[0] > turn[1]), "{tokens:?}");
    lab.ok("train tasks.toml --out parts --max-steps 1");
    for stop in [2, 9, 10, 15] {
        assert_eq!(lab.json(&format!("train tasks.toml --out parts --resume --max-steps {stop}"))["steps"], stop);
    }
    lab.ok("train tasks.toml --out parts --resume");
    lab.same_run("run", "parts", "adapter/adapter_model.safetensors");

    let table = lab.json("evaluate run");
    let selected = |row: &Value| format!("{} {}", row["task"].as_str().unwrap(), row["prompt"].as_str().unwrap());
    let rows = table["tasks"].as_array().unwrap();
    let names = ["sequential seen:0", "sequential unseen", "straightforward seen:0", "straightforward unseen"];
    assert_eq!(rows.iter().map(selected).collect::<Vec<_>>(), names);
    assert_eq!((selected(&table), metrics(&table)), (names[0].to_string(), metrics(&rows[0])));
    let written: Value = serde_json::from_slice(&lab.read("run/evaluation-test.json")).unwrap();
    assert_eq!(written, table);
    for row in rows {
        let (task, prompt) = (row["task"].as_str().unwrap(), row["prompt"].as_str().unwrap());
        let one = lab.json(&format!("evaluate run --task {task} --prompt {prompt}"));
        assert_eq!((selected(&one), metrics(&one), one.get("tasks")), (selected(row), metrics(row), None));
    }
    assert_eq!(selected(&lab.json("evaluate run --task straightforward --limit 2")), names[2]);
    assert_eq!(selected(&lab.json("evaluate run --prompt seen:9 --split valid --limit 2")), "sequential seen:9");
    let text = String::from_utf8(lab.ok("evaluate run --limit 2").stdout).unwrap();
    assert!(["sequential, seen:0", "straightforward, unseen"].iter().all(|name| text.contains(name)), "{text}");

    let ids: HashSet<String> = (0..ITEMS).map(|item| id(item).to_string()).collect();
    let recommend = |line: &str| {
        let found = document(&lab.ok(&format!("recommend run --json -k 5 {line}")));
        let items: Vec<String> =
            found["items"].as_array().unwrap().iter().map(|i| i["title"].as_str().unwrap().into()).collect();
        assert!(items.len() == 5 && items.iter().all(|item| ids.contains(item)), "{items:?}");
        found
    };
    let first = recommend("--user u1 --history 1001 --history 1008");
    assert_eq!(recommend("--user u1 --history 1001 --history 1008 --task sequential --prompt seen:0"), first);
    assert_ne!(recommend("--user u1 --history 1001 --history 1008 --prompt unseen"), first);
    assert_ne!(recommend("--user u1 --task straightforward"), recommend("--user u2 --task straightforward"));
}

/// Vectors of items and users, the LLM frozen: the prefix that is run once differs from prompt to
/// prompt.
#[test]
fn with_vectors_and_a_prior() {
    let lab = lab();
    lab.ok("cf als p5-corpus --out als.safetensors --set dim=4");
    let line = "train tasks.toml --set llm.tune=frozen --set items.encoder=linear --set items.vectors=als.safetensors \
                --set prior.ranker=cooccurrence --out";
    let report = lab.json(&format!("{line} run"));
    assert!(report["loss"]["last"].as_f64().is_some_and(f64::is_finite));
    lab.ok(&format!("{line} parts --max-steps 7"));
    lab.ok(&format!("{line} parts --resume"));
    lab.same_run("run", "parts", "encoder/entity_encoder.safetensors");
    let table = lab.json("evaluate run --split valid --prior-weight 0,1");
    assert_eq!((table["tasks"].as_array().map(Vec::len), table["tried"].as_array().map(Vec::len)), (Some(4), Some(2)));
    lab.ok("recommend run --task straightforward --user u1 --history 1001");
}

/// A prompt set of one's own, beside an embedded one; an edited file is another set.
#[test]
fn a_prompt_set_from_a_file() {
    let lab = lab();
    let text = "# mine\nseen: After {history}, {user}?\nseen: {user} had {history};\nunseen: {history} by {user}:\n";
    lab.write("mine.txt", text);
    let line = "train tasks.toml --out own --set data.prompt_sets=[\"straightforward\",\"mine.txt\"]";
    assert_eq!(lab.json(&format!("{line} --max-steps 4"))["steps"], 4);
    lab.ok(&format!("{line} --resume"));
    let table = lab.json("evaluate own --limit 2");
    let names: Vec<&str> = table["tasks"].as_array().unwrap().iter().map(|row| row["task"].as_str().unwrap()).collect();
    assert_eq!(names, ["straightforward", "straightforward", "mine", "mine"]);
    lab.ok("recommend own --user u1 --history 1001 --task mine --prompt seen:1");
    lab.assert_refused("evaluate own --task mine --prompt seen:2", 2, &["mine", "seen:1"]);
    lab.write("mine.txt", text.replace("After", "Past"));
    lab.assert_refused("evaluate own", 1, &["own", "another prompt template"]);
}

/// No list has an item of the history; the other items have the order and the log-probabilities
/// that they have without the filter.
#[test]
fn lists_without_the_history() {
    let lab = lab();
    lab.ok("train tasks.toml --out plain --max-steps 2");
    lab.ok("train tasks.toml --out filtered --max-steps 2 --set decode.exclude_history=true");
    let list = |run: &str| -> Vec<(String, f64)> {
        let line = format!("recommend {run} --json -k {ITEMS} --user u1 --history 1001 --history 1008");
        let found = document(&lab.ok(&line));
        let pair = |row: &Value| (row["title"].as_str().unwrap().to_string(), row["log_prob"].as_f64().unwrap());
        found["items"].as_array().unwrap().iter().map(pair).collect()
    };
    let (mut plain, filtered) = (list("plain"), list("filtered"));
    assert_eq!(plain.len(), ITEMS);
    plain.retain(|(title, _)| title != "1001" && title != "1008");
    assert_eq!((plain.len(), filtered.len()), (ITEMS - 2, ITEMS - 2));
    for (a, b) in plain.iter().zip(&filtered) {
        assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-5, "{a:?} {b:?}: f32 noise of other keys beside them");
    }
    let hits = |run: &str| {
        let found = lab.json(&format!("evaluate {run} --beams {ITEMS} --task sequential"));
        found["metrics"]["hr@10"].as_f64().unwrap()
    };
    assert!(hits("plain") <= 1.0 && hits("filtered") <= 1.0);
}

#[test]
fn wrong_folders_are_refused() {
    let lab = lab();
    lab.write("bad.txt", "seen: {user}?\nseen: {item}\nunseen: {user}!\n");
    for (set, named) in [
        ("data.prompt_sets=[\"direct\"]", "direct"),
        ("data.prompt_sets=[\"bad.txt\"]", "bad.txt: line 2"),
        ("data.prompt_sets=[\"sequential\",\"sequential\"]", "twice"),
        ("data.prompt_sets=[]", "data.prompts_per_window"),
        ("data.prompts_per_window=0", "data.prompts_per_window"),
        ("data.prompts_per_window=11", "10 seen"),
        ("data.prompt=short", "data.prompt_sets"),
        ("items.text=sequential_id", "random_id"),
    ] {
        lab.assert_refused(&format!("train tasks.toml --out run --set {set}"), 2, &[named]);
    }
    lab.ok("train tasks.toml --out run --max-steps 1");
    lab.ok("train run.toml --out plain --max-steps 1");
    for (line, named) in [
        ("evaluate run --task direct", "sequential, straightforward"),
        ("evaluate run --prompt seen:10", "seen:9"),
        ("evaluate run --prompt other", "seen:N"),
        ("evaluate plain --task sequential", "data.prompt_sets"),
        ("evaluate plain --prompt unseen", "data.prompt_sets"),
        ("recommend run --history 1001", "--user"),
        ("recommend run --user u1", "--history"),
        ("recommend run --user u1 --history 1001 --task straightforward", "--history"),
        ("recommend run --user u1 --task direct", "straightforward"),
        ("train tasks.toml --out run --resume --set data.prompts_per_window=3", "prompts_per_window = 3"),
    ] {
        lab.assert_refused(line, 2, &[named]);
    }
    lab.assert_refused("recommend run --user nobody --history 1001", 1, &["nobody"]);
    // Other prompts than these, as of another version.
    let mut identity: Value = serde_json::from_slice(&lab.read("run/identity.json")).unwrap();
    identity["prompt"] = json!("0");
    lab.write("run/identity.json", identity.to_string());
    for line in ["evaluate run", "recommend run --user u1 --history 1001", "train tasks.toml --out run --resume"] {
        lab.assert_refused(line, 1, &["run", "another prompt template"]);
    }
}
