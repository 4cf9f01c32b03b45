//! `compare`, the directories that it reads, and the lists and TREC's files of an evaluation.

use std::collections::HashMap;
use std::fs::File;

use itemlm::evaluate::read_ranks;
use itemlm::evaluate::statistics::holm;
use polars::prelude::{ParquetReader, SerReader};
use serde_json::{Value, json};

use crate::lab::{ITEMS, Lab, USERS};

/// Two runs of other seeds, evaluated.
fn two_runs() -> Lab {
    let lab = Lab::new();
    for seed in [1, 2] {
        lab.ok(&format!("train run.toml --out run-{seed} --max-steps 4 --ui none --set seed={seed}"));
        lab.ok(&format!("evaluate run-{seed}"));
    }
    lab
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn runs_and_baselines_are_compared() {
    let lab = two_runs();
    lab.ok("baseline markov corpus --out markov");
    let found = lab.json("compare run-1 run-2 markov --metric ndcg@5");
    let comparisons = found.as_array().unwrap();
    let pairs: Vec<[&Value; 2]> = comparisons.iter().map(|c| [&c["a"], &c["b"]]).collect();
    assert_eq!(json!(pairs), json!([["run-1", "run-2"], ["run-1", "markov"], ["run-2", "markov"]]));
    for comparison in comparisons {
        for (group, users) in [(comparison, USERS), (&comparison["cold"], 2), (&comparison["warm"], USERS - 2)] {
            assert_eq!(group["users"], users);
            let [difference, low, high, p] = ["difference", "low", "high", "p"].map(|key| number(&group[key]));
            assert!((number(&group["mean_a"]) - number(&group["mean_b"]) - difference).abs() < 1e-12);
            assert!(low <= difference + 1e-12 && difference <= high + 1e-12, "{group}");
            assert!((0.0..=1.0).contains(&p) && number(&group["p_holm"]) >= p, "{group}");
        }
        assert_eq!((&comparison["metric"], &comparison["test"]), (&json!("ndcg@5"), &json!("randomisation")));
    }
    // The means are those that `evaluate` and `baseline` state.
    for (name, mean) in [
        ("run-1", &comparisons[0]["mean_a"]),
        ("run-2", &comparisons[0]["mean_b"]),
        ("markov", &comparisons[1]["mean_b"]),
    ] {
        let evaluation: Value = serde_json::from_slice(&lab.read(&format!("{name}/evaluation-test.json"))).unwrap();
        assert!((number(&evaluation["metrics"]["ndcg@5"]) - number(mean)).abs() < 1e-12, "{name}");
    }
    let p: Vec<f64> = comparisons.iter().map(|c| number(&c["p"])).collect();
    assert_eq!(comparisons.iter().map(|c| number(&c["p_holm"])).collect::<Vec<_>>(), holm(&p));
    assert_eq!(lab.json("compare run-1 run-2 markov --metric ndcg@5"), found);
    let wilcoxon = lab.json("compare run-1 markov --metric hr@5 --test wilcoxon");
    assert_eq!(wilcoxon[0]["test"], "wilcoxon");
    let text = String::from_utf8(lab.ok("compare run-1 markov --metric hr@5").stdout).unwrap();
    assert!(text.contains("Holm") && text.contains("cold"), "{text}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let lab = two_runs();
    lab.refused("compare run-1", 2, &["2 values"]);
    lab.refused("compare run-1 run-1", 2, &["run-1 is named twice"]);
    lab.refused("compare run-1 ./run-1/", 2, &["./run-1/ is named twice"]);
    lab.refused("compare run-1 corpus", 2, &["corpus", "not evaluated on test", "itemlm evaluate"]);
    lab.refused("compare run-1 run-2 --split valid", 2, &["not evaluated on valid"]);
    lab.refused("compare run-1 run-2 --metric map@5", 2, &["map@5", "ndcg@K"]);
    lab.refused("compare run-1 run-2 --test t", 2, &["randomisation", "wilcoxon"]);
    // Lists of 5 items, against lists of 10.
    lab.ok("baseline markov corpus --out markov");
    lab.refused("compare run-1 markov --metric ndcg@10", 2, &["ndcg@10", "5 and 10 items"]);
    lab.refused("baseline markov corpus --out run-1", 2, &["run-1", "run directory"]);

    lab.ok("evaluate run-2 --limit 7");
    lab.refused("compare run-1 run-2", 2, &["40 windows and 7", "--limit"]);
    lab.ok("evaluate run-2 --beams 4");
    lab.refused("compare run-1 run-2", 2, &["other beams (5 and 4)"]);
    lab.ok("evaluate run-2 --scoring full");
    lab.refused("compare run-1 run-2", 2, &["other scoring (masked and full)"]);
    lab.ok("evaluate run-2 --length-penalty 0.5");
    let output = lab.ok("compare run-1 run-2 --json");
    assert!(String::from_utf8_lossy(&output.stderr).contains("differ in length_penalty: 0 and 0.5"));
    lab.copy("toy", "toy-2");
    lab.edit("toy-2/id2name4Rec.json", "Stapler 3", "Stapler three");
    lab.ok("prepare msl toy-2 --out other");
    lab.ok("baseline markov other --out markov");
    lab.refused("compare run-1 markov --metric hr@5", 2, &["other corpora"]);

    // Evaluations of earlier versions state no corpus: their identity.json does.
    let old = lab.read("run-2/evaluation-test.json");
    let mut old: Value = serde_json::from_slice(&old).unwrap();
    for key in ["corpus", "depth", "list_metrics", "by_history"] {
        assert!(old.as_object_mut().unwrap().remove(key).is_some(), "{key}");
    }
    lab.write("run-2/evaluation-test.json", old.to_string());
    assert_eq!(lab.json("compare run-1 run-2"), serde_json::from_slice::<Value>(&output.stdout).unwrap());
    lab.write("run-2/evaluation-test.json", "{\"split\": \"test\"");
    lab.refused("compare run-1 run-2", 1, &["run-2/evaluation-test.json"]);
}

/// Column `name` of `lists-test.parquet`.
fn column(lab: &Lab, file: &str, name: &str) -> Vec<u32> {
    let frame = ParquetReader::new(File::open(lab.path(file)).unwrap()).finish().unwrap();
    frame.column(name).unwrap().u32().unwrap().iter().flatten().collect()
}

#[test]
fn lists_say_what_is_recommended() {
    let lab = Lab::new();
    lab.ok("train run.toml --out run --max-steps 3 --ui none");
    let evaluation = lab.json("evaluate run --at 3,7 --beams 7 --trec trec");
    for (key, most) in [("coverage", 1.0), ("gini", 1.0), ("popularity", 200.0), ("novelty", 20.0), ("similarity", 1.0)]
    {
        for k in [3, 5, 7, 10] {
            let value = number(&evaluation["list_metrics"][format!("{key}@{k}")]);
            assert!((0.0..=most).contains(&value), "{key}@{k}: {value}");
        }
    }
    let metric = |name: &str| number(&evaluation["metrics"][name]);
    assert!(metric("hr@1") <= metric("hr@3") && metric("hr@3") <= metric("hr@7"));
    assert!(metric("mrr@7") <= metric("ndcg@7") && evaluation["intervals"]["mrr@7"].is_array());
    // Test windows have histories of at most 4 in the toy data set.
    let groups = evaluation["by_history"].as_array().unwrap();
    assert_eq!(groups.iter().map(|group| group["users"].as_u64().unwrap()).sum::<u64>(), USERS as u64);

    let [windows, ranks, items] = ["window", "rank", "item"].map(|name| column(&lab, "run/lists-test.parquet", name));
    assert_eq!(windows.len(), 7 * USERS);
    assert!((0..).zip(&ranks).all(|(row, &rank)| rank == row % 7));
    let mut recommended: Vec<u32> = items.clone();
    recommended.sort_unstable();
    recommended.dedup();
    // Items 5 and 6 have one title.
    let coverage = recommended.len() as f64 / (ITEMS - 1) as f64;
    assert!((number(&evaluation["list_metrics"]["coverage@7"]) - coverage).abs() < 1e-12);

    // TREC's files, ranked by score as trec_eval does it, give the same hits.
    let read = |name: &str| String::from_utf8(lab.read(&format!("trec/{name}-test.txt"))).unwrap();
    let mut lists: HashMap<String, Vec<(f32, String)>> = HashMap::new();
    for line in read("run").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!((fields.len(), fields[1], fields[5]), (6, "Q0", "run"));
        lists.entry(fields[0].into()).or_default().push((fields[4].parse().unwrap(), fields[2].into()));
    }
    let rows = read_ranks(&lab.path("run/ranks-test.parquet")).unwrap();
    let qrels = read("qrels");
    assert_eq!((rows.len(), qrels.lines().count()), (USERS, USERS));
    for (row, line) in rows.iter().zip(qrels.lines()) {
        let fields: Vec<&str> = line.split(' ').collect();
        let list = lists.get_mut(fields[0]).unwrap();
        assert!(list.windows(2).all(|pair| pair[0].0 > pair[1].0), "scores fall: {list:?}");
        let rank = list.iter().position(|(_, item)| item == fields[2]).map(|rank| rank as u32);
        assert_eq!((fields[0], rank), (row.window.to_string().as_str(), row.rank));
    }

    lab.refused("evaluate run --at 20", 2, &["--at 20", "5 items", "--beams 20"]);
    lab.refused("evaluate run --at 0", 2, &["--at"]);
    lab.refused("baseline markov corpus --at 1001", 2, &["--at"]);
    let baseline = lab.json("baseline popularity corpus --at 20 --trec trec-popularity --out popularity");
    assert_eq!((&baseline["depth"], &baseline["beams"]), (&json!(20), &json!(null)));
    assert!(number(&baseline["metrics"]["hr@20"]) >= number(&baseline["metrics"]["hr@10"]));
    let written: Value = serde_json::from_slice(&lab.read("popularity/evaluation-test.json")).unwrap();
    assert_eq!(written, baseline);
    assert!(lab.path("popularity/lists-test.parquet").is_file() && lab.path("trec-popularity/run-test.txt").is_file());
}
