//! Experiments and reports: grids that are killed, cells that fail, pages that need nothing.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::lab::{Lab, document, succeeded};

const GRID: &str = "run = \"run.toml\"\nseeds = [1, 2, 3]\nbaselines = [\"popularity\", \"markov\"]\n[axes]\n\
                    \"loss.kind\" = [\"lml\", \"msl\"]\n[evaluate]\nlimit = 12\n";

fn lab() -> Lab {
    let lab = Lab::new();
    // As many items as a baseline's lists have: fewer cannot be compared at 10.
    lab.edit("run.toml", "beams = 5", "beams = 10");
    lab.write("grid.toml", GRID);
    lab
}

/// The page without what is of this machine and moment: text of elements of the class `time`.
fn timeless(html: &str) -> String {
    let mut parts = html.split("class=\"time\">");
    let mut text = parts.next().unwrap().to_string();
    for part in parts {
        text += part.split_once('<').unwrap().1;
    }
    let mut parts = text.split("class=\"left wrap time\">");
    let first = parts.next().unwrap().to_string();
    parts.fold(first, |text, part| text + part.split_once('<').unwrap().1)
}

/// Runs the grid as a whole, and again with kills at random moments.
fn killed(kills: usize) {
    let lab = lab();
    let began = Instant::now();
    lab.ok("experiment grid.toml --out whole");
    let whole = began.elapsed();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let (mut done, mut midway) = (0, 0);
    let finished = || {
        let runs = fs::read_dir(lab.path("parts/cells")).into_iter().flatten().flatten();
        let runs = runs.flat_map(|cell| fs::read_dir(cell.path()).unwrap().flatten());
        runs.filter(|run| run.path().join("evaluation-test.json").exists()).count()
    };
    for _ in 0..kills {
        let mut child = lab.spawn("experiment grid.toml --out parts --resume");
        sleep(whole.mul_f64(rng.random_range(0.02..0.4)));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.code() == Some(0) {
            // It was faster than the clock; begin anew.
            fs::remove_dir_all(lab.path("parts")).unwrap();
            done = 0;
            continue;
        }
        assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
        assert!(finished() >= done, "a finished run is gone");
        midway += usize::from(finished() < 6);
        done = finished();
    }
    assert!(midway > 0, "no kill came in time");
    lab.ok("experiment grid.toml --out parts --resume");
    for name in ["results.csv", "results.md", "results.tex", "experiment.json"] {
        assert!(lab.read(&format!("whole/{name}")) == lab.read(&format!("parts/{name}")), "{name}");
    }
    let [a, b] = ["whole", "parts"].map(|dir| String::from_utf8(lab.read(&format!("{dir}/report.html"))).unwrap());
    assert_eq!(timeless(&a), timeless(&b));
    for run in ["cells/kind=lml/seed-1", "cells/kind=msl/seed-3"] {
        lab.same_run(&format!("whole/{run}"), &format!("parts/{run}"), "adapter/adapter_model.safetensors");
    }
}

#[test]
fn a_killed_grid_ends_as_one_that_was_not() {
    killed(4);
}

#[test]
#[ignore = "needs minutes; just test-real"]
fn a_grid_killed_20_times_ends_as_one_that_was_not() {
    killed(20);
}

#[test]
fn finished_runs_are_never_run_again() {
    let lab = lab();
    let report = lab.json("experiment grid.toml --out out --devices cpu,cpu");
    let written: Value = serde_json::from_slice(&lab.read("out/experiment.json")).unwrap();
    assert_eq!(report, written);
    let cells = report["cells"].as_array().unwrap();
    assert_eq!((cells.len(), &cells[1]["name"], &cells[1]["seeds"]), (2, &"kind=msl".into(), &vec![1, 2, 3].into()));
    assert_eq!(cells[0]["set"]["loss.kind"], "lml");
    let interval = &cells[0]["metrics"]["ndcg@10"];
    let number = |key: &str| interval[key].as_f64().unwrap();
    assert!(number("low") <= number("mean") && number("mean") <= number("high"), "{interval}");
    // Two cells and two baselines make six pairs.
    let comparisons = report["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len(), 6);
    for key in ["a", "b", "metric", "difference", "low", "high", "p", "p_holm"] {
        assert!(comparisons.iter().all(|c| !c[key].is_null()), "{key}");
    }
    let table = String::from_utf8(lab.read("out/results.md")).unwrap();
    assert!(table.contains("| kind=msl |") && table.contains("| popularity |"), "{table}");
    let csv = String::from_utf8(lab.read("out/results.csv")).unwrap();
    assert_eq!(csv.lines().filter(|line| line.starts_with("cell,") && line.contains(",all,ndcg@10,")).count(), 2 + 6);
    assert!(String::from_utf8(lab.read("out/results.tex")).unwrap().contains("\\textbf{"));

    // Nothing is trained, evaluated or logged again; a new seed is.
    let log = |seed: usize| lab.read(&format!("out/cells/kind=lml/seed-{seed}/train.log"));
    let before = log(1);
    fs::remove_file(lab.path("out/report.html")).unwrap();
    lab.edit("grid.toml", "[1, 2, 3]", "[1, 4]");
    let again = lab.json("experiment grid.toml --out out");
    assert_eq!(again["cells"][0]["seeds"], Value::from(vec![1, 4]));
    assert!(log(1) == before && !log(4).is_empty() && lab.path("out/report.html").exists());
    // Another evaluation alone is no reason to train.
    lab.edit("grid.toml", "limit = 12", "limit = 9");
    lab.assert_refused("experiment grid.toml --out out", 2, &["seed-1", "--resume"]);
    let again = lab.json("experiment grid.toml --out out --resume");
    assert_eq!(again["limit"], 9);
    assert!(log(1) == before);
    // A run of another run file is not taken for one of this.
    lab.edit("run.toml", "warmup_steps = 2", "warmup_steps = 3");
    lab.assert_refused(
        "experiment grid.toml --out out --resume",
        2,
        &["seed-1", "warmup_steps = 2", "warmup_steps = 3"],
    );
}

#[test]
fn a_failed_cell_is_a_row_that_says_why() {
    let lab = lab();
    lab.edit("grid.toml", "\"loss.kind\" = [\"lml\", \"msl\"]", "\"llm.path\" = [\"llm\", \"no-<where>\"]");
    lab.edit("grid.toml", "[1, 2, 3]", "[1]");
    let output = lab.command("experiment grid.toml --out out --json").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("error: 1 of the runs failed") && last.contains("path=no-_where_"), "{last}");
    let report = document(&output);
    let [good, bad] = [0, 1].map(|cell| report["cells"][cell].clone());
    assert_eq!((&good["seeds"], &bad["seeds"]), (&vec![1].into(), &Value::Array(Vec::new())));
    assert!(bad["runs"][0]["why"].as_str().unwrap().contains("no-<where>"), "{bad}");
    assert_eq!(bad["runs"][0]["status"], "failed");
    for file in ["results.md", "results.csv", "results.tex", "report.html"] {
        assert!(
            String::from_utf8(lab.read(&format!("out/{file}"))).unwrap().contains("no-_where_")
                || file == "results.tex"
        );
    }
    let html = String::from_utf8(lab.read("out/report.html")).unwrap();
    assert!(html.contains("no-&lt;where&gt;") && !html.contains("no-<where>"));
    // It failed before its first step: with the model in its place it begins.
    lab.copy("llm", "no-<where>");
    let report = lab.json("experiment grid.toml --out out --resume");
    assert_eq!(
        (&report["cells"][1]["seeds"], &report["cells"][1]["runs"][0]["status"]),
        (&vec![1].into(), &"done".into())
    );
}

/// A finished run is known by what its files hold, not by their names.
#[test]
fn other_weights_or_prompts_are_not_taken_for_those_of_a_finished_run() {
    let lab = lab();
    lab.write("prompt.txt", "{history} then");
    lab.edit("run.toml", "prompt = \"short\"", "prompt = \"prompt.txt\"");
    lab.edit("grid.toml", "[1, 2, 3]", "[1]");
    let report = lab.json("experiment grid.toml --out out");
    let state: Value = serde_json::from_slice(&lab.read("out/cells/kind=lml/seed-1/cell.json")).unwrap();
    assert_eq!(state["inputs"].as_object().unwrap().keys().collect::<Vec<_>>(), ["llm", "prompt.txt"], "{state}");
    lab.write("prompt.txt", "{history} and then");
    lab.assert_refused("experiment grid.toml --out out --resume", 2, &["kind=lml", "seed-1", "another prompt.txt"]);
    lab.write("prompt.txt", "{history} then");
    let weights = lab.read("llm/model.safetensors");
    let mut other = weights.clone();
    *other.last_mut().unwrap() ^= 1;
    lab.write("llm/model.safetensors", &other);
    lab.assert_refused("experiment grid.toml --out out", 2, &["seed-1", "another llm"]);
    // Finished runs need no model any more, and a baseline whose file is gone is made anew.
    fs::remove_dir_all(lab.path("llm")).unwrap();
    fs::remove_file(lab.path("out/baselines/markov/ranks-test.parquet")).unwrap();
    assert_eq!(lab.json("experiment grid.toml --out out"), report);
    // A directory of an earlier version recorded no files.
    let mut state = state;
    state.as_object_mut().unwrap().remove("inputs");
    lab.write("out/cells/kind=lml/seed-1/cell.json", state.to_string());
    lab.write("prompt.txt", "{history} and then");
    lab.assert_refused("experiment grid.toml --out out", 2, &["kind=msl", "another prompt.txt"]);
}

/// Two processes at once: one runs, the other is refused and harms nothing.
#[test]
fn a_second_process_is_refused() {
    let lab = lab();
    lab.edit("grid.toml", "[1, 2, 3]", "[1]");
    let mut children = [0, 1].map(|_| lab.spawn("experiment grid.toml --out out --resume --json"));
    let codes = children.each_mut().map(|child| child.wait().unwrap().code());
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    let [refused, ran] = if codes[0] == Some(0) { [&outputs[1], &outputs[0]] } else { [&outputs[0], &outputs[1]] };
    assert_eq!((ran.status.code(), refused.status.code()), (Some(0), Some(2)));
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("out: another process runs this experiment"), "{stderr}");
    assert_eq!(document(ran)["cells"][1]["runs"][0]["status"], "done");
}

/// The step at hand ends, a checkpoint is written, and the experiment ends well; --resume goes on.
#[cfg(unix)]
#[test]
fn a_signal_stops_the_running_cell_with_a_checkpoint() {
    let lab = lab();
    lab.edit("run.toml", "epochs = 2", "epochs = 40");
    lab.edit("run.toml", "checkpoint_steps = 2", "checkpoint_steps = 1000");
    lab.edit("grid.toml", "[1, 2, 3]", "[1]");
    let run = "out/cells/kind=lml/seed-1";
    let child = lab.spawn("experiment grid.toml --out out --json");
    let began = Instant::now();
    let steps = || fs::read_to_string(lab.path(&format!("{run}/metrics.jsonl"))).map_or(0, |text| text.lines().count());
    while steps() < 7 && began.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let report = document(&succeeded("experiment", child.wait_with_output().unwrap()));
    assert_eq!(report["cells"][0]["runs"][0]["status"], "open");
    let taken = steps();
    assert!((7..200).contains(&taken), "{taken} steps: the signal came too late");
    assert_eq!(lab.checkpoints(run).last(), Some(&taken));
    lab.assert_refused("experiment grid.toml --out out", 2, &["seed-1", "--resume"]);
    let report = lab.json("experiment grid.toml --out out --resume");
    assert_eq!((&report["cells"][0]["runs"][0]["status"], steps()), (&"done".into(), 200));
}

#[test]
fn a_report_of_a_run_is_one_page() {
    let lab = lab();
    lab.ok("train run.toml --out run");
    lab.ok("report run --out before.html");
    assert!(String::from_utf8(lab.read("before.html")).unwrap().contains("not been evaluated yet"));
    lab.ok("evaluate run --limit 12");
    lab.ok("report run --out run.html");
    let html = String::from_utf8(lab.read("run.html")).unwrap();
    for shown in ["<h1>Run run</h1>", "Learning curves", "Some users", "Caf\u{e9} \"Noir\" &amp; Co", "coverage@10"] {
        assert!(html.contains(shown), "{shown}");
    }
    assert!(!html.contains("<script") && html.contains("default-src 'none'"));
    lab.assert_refused("report corpus --out x.html", 2, &["corpus", "neither an experiment"]);
    lab.assert_refused("report run", 2, &["--out"]);
    lab.assert_refused("experiment nowhere.toml --out x", 1, &["nowhere.toml"]);
    lab.write("bad.toml", "run = \"run.toml\"\nseeds = [1]\nbaselines = [\"magic\"]\n");
    lab.assert_refused("experiment bad.toml --out x", 2, &["bad.toml", "magic"]);
    lab.assert_refused("experiment grid.toml --out x --devices cpu:7", 2, &["--devices", "cpu:7"]);
    lab.write("child.toml", "extends = \"parent.toml\"\n");
    lab.assert_refused("train child.toml --out x", 2, &["child.toml", "extends", "parent.toml"]);
}

/// Another `evaluate` in a run's directory, or in a baseline's, writes over what the table is of.
#[test]
fn results_of_another_evaluation_are_not_taken_for_those_of_the_experiment() {
    let lab = lab();
    lab.edit("grid.toml", "[1, 2, 3]", "[1]");
    lab.edit("grid.toml", "[\"lml\", \"msl\"]", "[\"lml\"]");
    let report = lab.json("experiment grid.toml --out out");
    lab.ok("evaluate out/cells/kind=lml/seed-1 --limit 5");
    lab.ok("baseline markov corpus --limit 5 --out out/baselines/markov");
    let log = lab.read("out/cells/kind=lml/seed-1/train.log");
    lab.assert_refused("experiment grid.toml --out out", 2, &["seed-1", "--resume"]);
    assert_eq!(lab.json("experiment grid.toml --out out --resume"), report);
    assert!(lab.read("out/cells/kind=lml/seed-1/train.log") == log, "nothing is trained again");
}
