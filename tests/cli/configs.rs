//! `configs` and `completions`.

use serde_json::json;

use crate::lab::Lab;

#[test]
fn shipped_files_are_listed_shown_and_valid() {
    let lab = Lab::empty();
    let list = lab.json("configs list");
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"office") && names.contains(&"ilm-it") && names.contains(&"data/office"), "{names:?}");
    for (name, kind) in [("office", "train"), ("ilm-it", "align"), ("data/office", "prepare")] {
        let shown = lab.ok(&format!("configs show {name}")).stdout;
        lab.write("file.toml", shown);
        assert_eq!(lab.json("configs check file.toml"), json!({"file": "file.toml", "kind": kind, "problems": []}));
    }
    lab.assert_refused("configs show offic", 2, &["offic", "configs list"]);
}

#[test]
fn a_check_finds_all_errors() {
    let lab = Lab::empty();
    lab.write("run.toml", "[data]\ncorpus = \"c\"\n[llm]\npath = 3\n[train]\nepochs = 0\nlearning_rat = 1\n");
    lab.assert_refused("configs check run.toml", 2, &["run.toml:4: llm.path", "(and 2 more)"]);
    let output = lab.command("configs check run.toml --json").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines: Vec<_> = report["problems"].as_array().unwrap().iter().map(|problem| &problem["line"]).collect();
    assert_eq!(json!(lines), json!([4, 6, 7]));
    lab.write("run.toml", "[data\n");
    lab.assert_refused("configs check run.toml", 2, &["run.toml:1: "]);
    lab.assert_refused("configs check none.toml", 1, &["none.toml"]);

    lab.write("base.toml", "[data]\ncorpus = \"c\"\n[llm]\npath = \"m\"\n");
    lab.write("run.toml", "extends = \"base.toml\"\n[train]\nepochs = 2\n");
    assert_eq!(lab.json("configs check run.toml")["problems"], json!([]));
    lab.write("run.toml", "extends = \"base.toml\"\n[train]\nepochs = 0\n");
    lab.assert_refused("configs check run.toml", 2, &["run.toml:3: train.epochs"]);
    lab.write("run.toml", "extends = \"nowhere.toml\"\n");
    lab.assert_refused("configs check run.toml", 2, &["run.toml", "nowhere.toml"]);
    lab.write("grid.toml", "run = \"base.toml\"\nseeds = [1]\n[axes]\n\"train.epochs\" = [1, 0]\n");
    lab.assert_refused("configs check grid.toml", 2, &["grid.toml", "train.epochs"]);
}

#[test]
fn schema_and_completions() {
    let lab = Lab::empty();
    for kind in ["", "train", "align"] {
        let output = lab.ok(&format!("configs schema {kind}"));
        let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(schema["properties"]["train"].is_object(), "{kind}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = String::from_utf8(lab.ok(&format!("completions {shell}")).stdout).unwrap();
        assert!(script.contains("itemlm") && script.contains("compare"), "{shell}");
    }
    lab.assert_refused("completions sh", 2, &["sh"]);
}
