//! Runs with a collaborative prior: in the loss, at ranking, its weight chosen on valid and used
//! from then on.

use serde_json::json;

use crate::lab::{Lab, document, succeeded};

const PRIOR: &str = "--set train.valid_windows=0 --set prior.ranker=cooccurrence --set prior.weight=0.7";

#[test]
fn at_ranking_and_in_the_loss() {
    let lab = Lab::new();
    lab.ok("train run.toml --out alone --set train.valid_windows=0");
    lab.ok(&format!("train run.toml --out run {PRIOR}"));
    lab.ok(&format!("train run.toml --out learnt {PRIOR} --set prior.in_loss=true"));
    lab.same_run("alone", "run", "adapter/adapter_model.safetensors");
    assert_ne!(lab.losses("learnt"), lab.losses("run"));
    let parts = format!("train run.toml --out parts {PRIOR} --set prior.in_loss=true");
    lab.ok(&format!("{parts} --max-steps 3"));
    lab.ok(&format!("{parts} --resume"));
    lab.same_run("learnt", "parts", "adapter/adapter_model.safetensors");

    let ranked = lab.json("evaluate run");
    assert_eq!(
        ranked["prior"],
        json!({"ranker": "cooccurrence", "weight": 0.7, "llm_weight": 1.0, "smoothing": 0.5, "in_loss": false})
    );
    assert!(lab.json("evaluate alone").get("prior").is_none());
    let with = lab.read("run/ranks-test.parquet");
    lab.ok("evaluate run --prior-weight 0");
    assert!(
        lab.read("run/ranks-test.parquet") == lab.read("alone/ranks-test.parquet"),
        "with weight 0 the LLM ranks alone"
    );
    assert!(with != lab.read("alone/ranks-test.parquet"));

    let recommend = |run: &str| {
        let mut command = lab.command(&format!("recommend {run} --json -k 5"));
        command.args(["--history", "Red Pen 0", "--history", "never seen"]);
        document(&succeeded(run, command.output().unwrap()))
    };
    assert_ne!(recommend("run"), recommend("alone"));
}

/// ALS, BPR and SASRec rank beside the LLM, from the files that `cf` wrote.
#[test]
fn of_vectors() {
    let lab = Lab::new();
    for (method, set) in [("als", "dim=4"), ("bpr", "epochs=2"), ("sasrec", "epochs=2")] {
        lab.ok(&format!("cf {method} corpus --out {method}.safetensors --set {set}"));
    }
    lab.ok("train run.toml --out run --set train.valid_windows=0 --max-steps 2");
    let alone = {
        lab.ok("evaluate run");
        lab.read("run/ranks-test.parquet")
    };
    let recommend = || {
        let mut command = lab.command("recommend run --json -k 5");
        command.args(["--history", "Red Pen 0", "--history", "never seen"]);
        document(&succeeded("run", command.output().unwrap()))
    };
    let recommended = recommend();
    let run = String::from_utf8(lab.read("run/run.toml")).unwrap();
    for method in ["als", "bpr", "sasrec"] {
        let prior = format!(
            "[prior]\nranker = \"{method}\"\nvectors = \"{method}.safetensors\"\nweight = 3.0\nsmoothing = 0.1\n"
        );
        lab.write("run/run.toml", format!("{run}\n{prior}"));
        let found = lab.json("evaluate run");
        assert_eq!((&found["prior"]["ranker"], &found["prior"]["weight"]), (&json!(method), &json!(3.0)));
        assert!(lab.read("run/ranks-test.parquet") != alone, "{method}");
        assert_ne!(recommend(), recommended, "{method}");
        lab.ok("evaluate run --prior-weight 0");
        assert!(lab.read("run/ranks-test.parquet") == alone, "{method}: with weight 0 the LLM ranks alone");
    }
    // Over titles; and what reads a directory that is not there names it.
    lab.assert_refused("cf sasrec corpus --out titles.safetensors --set text=nowhere", 1, &["text", "nowhere"]);
    lab.ok("cf sasrec corpus --out titles.safetensors --set text=tfidf --set text_dim=8 --set epochs=2");
    let metrics = String::from_utf8(lab.read("titles.safetensors.metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!((last["step"].as_u64(), last["epoch"].as_u64()), (Some(metrics.lines().count() as u64), Some(2)));
    lab.write("run/run.toml", format!("{run}\n[prior]\nranker = \"sasrec\"\nvectors = \"titles.safetensors\"\n"));
    lab.ok("evaluate run --prior-weight 3");
    assert!(lab.read("run/ranks-test.parquet") != alone);
    let mixture = lab.json("baseline sasrec+text corpus --set sasrec.text=tfidf --set sasrec.epochs=2");
    assert!(mixture["mixture"]["sasrec"].as_f64().is_some_and(|weight| (0.0..=1.0).contains(&weight)), "{mixture}");

    let prior = "--set prior.ranker=sasrec --set prior.vectors=sasrec.safetensors";
    lab.ok(&format!("train run.toml --out with {prior}"));
    lab.assert_refused(
        &format!("train run.toml --out new {prior} --set prior.in_loss=true"),
        2,
        &["prior.in_loss", "sasrec"],
    );
    lab.assert_refused("train run.toml --out new --set prior.ranker=sasrec", 2, &["prior.vectors", "itemlm cf sasrec"]);
    lab.assert_refused(
        &format!("train run.toml --out new {prior} --set prior.ranker=als"),
        1,
        &["prior.vectors", "sasrec.safetensors"],
    );
    lab.assert_refused(
        &format!("train run.toml --out new {prior} --set prior.vectors=none"),
        1,
        &["prior.vectors", "none"],
    );

    lab.ok("evaluate with --split valid --prior-weight 1,2");
    lab.ok("cf sasrec corpus --out sasrec.safetensors --set epochs=1");
    let output = lab.ok("evaluate with --json");
    assert_eq!(document(&output)["prior"]["weight"], 1.0);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("prior.json"), "a weight chosen with other vectors is not used: {stderr}");
}

/// The fit is at least as likely as either alone, is kept, and ranks test; a run trained with the
/// LLM at another weight begins with another loss.
#[test]
fn its_weights_are_fitted_on_valid() {
    let lab = Lab::new();
    lab.ok(&format!("train run.toml --out run {PRIOR}"));
    lab.ok("train run.toml --out alone --max-steps 1");
    for (line, named) in [
        ("evaluate run --fit-prior", "--split valid"),
        ("evaluate run --fit-prior --split valid --prior-weight 1", "--prior-weight"),
        ("evaluate run --fit-prior --split valid --scoring full", "masked"),
        ("evaluate alone --fit-prior --split valid", "[prior]"),
    ] {
        lab.assert_refused(line, 2, &["--fit-prior", named]);
    }
    let fitted = lab.json("evaluate run --fit-prior --split valid");
    let fit = |key: &str| fitted["fit"][key].as_f64().unwrap();
    assert!(fit("loss") <= fit("llm_alone").min(fit("ranker_alone")), "{}", fitted["fit"]);
    assert_eq!(fitted["fit"]["windows"], fitted["users"]);
    let (prior, llm) = (&fitted["prior"]["weight"], &fitted["prior"]["llm_weight"]);
    assert!(prior.as_f64().is_some_and(|weight| weight > 0.0) && llm.as_f64().is_some_and(|weight| weight >= 0.0));
    let ranked = lab.json("evaluate run");
    assert_eq!((&ranked["prior"]["weight"], &ranked["prior"]["llm_weight"]), (prior, llm));
    assert!(ranked.get("fit").is_none());
    let given = lab.json("evaluate run --prior-weight 0.3");
    let weights = (&given["prior"]["weight"], &given["prior"]["llm_weight"]);
    assert_eq!(weights, (&json!(0.3), &json!(1.0)), "the LLM's weight is the run file's beside a given one");
    lab.ok("evaluate run --prior-weight 0");
    let alone = lab.read("run/ranks-test.parquet");
    lab.edit("run/run.toml", "weight = 0.7", "weight = 0.0");
    std::fs::remove_file(lab.path("run/prior.json")).unwrap();
    lab.ok("evaluate run");
    assert!(lab.read("run/ranks-test.parquet") == alone, "with weight 0 the LLM ranks alone");

    let learned = format!("train run.toml --max-steps 1 {PRIOR} --set prior.in_loss=true");
    lab.ok(&format!("{learned} --out whole"));
    lab.ok(&format!("{learned} --out less --set prior.llm_weight=0.1"));
    assert_ne!(lab.losses("whole"), lab.losses("less"));
    lab.assert_refused(&format!("{learned} --out none --set prior.llm_weight=0"), 2, &["prior.llm_weight"]);
}

#[test]
fn its_weight_is_chosen_on_valid() {
    let lab = Lab::new();
    lab.ok(&format!("train run.toml --out run {PRIOR}"));
    lab.ok("train run.toml --out alone --max-steps 1");
    for (line, named) in [
        ("evaluate run --prior-weight 0,1", "--split valid"),
        ("evaluate run --prior-weight=-1", "--prior-weight"),
        ("evaluate run --prior-weight nan", "--prior-weight"),
        ("evaluate run --prior-weight ,", "--prior-weight"),
        ("evaluate alone --prior-weight 1", "[prior]"),
    ] {
        lab.assert_refused(line, 2, &[named]);
    }

    let chosen = lab.json("evaluate run --split valid --prior-weight 0,0.5,2");
    let tried = chosen["tried"].as_array().unwrap();
    assert_eq!(tried.iter().map(|t| t["weight"].as_f64().unwrap()).collect::<Vec<_>>(), [0.0, 0.5, 2.0]);
    let best = tried.iter().map(|t| t["ndcg@10"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(chosen["metrics"]["ndcg@10"], best);
    let weight = &chosen["prior"]["weight"];
    assert!(tried.iter().any(|t| t["weight"] == *weight && t["ndcg@10"] == best));
    assert_eq!(lab.json("evaluate run")["prior"]["weight"], *weight);
    assert_eq!(lab.json("evaluate run --prior-weight 0.3")["prior"]["weight"], 0.3);
    assert_eq!(lab.json("evaluate run")["prior"]["weight"], *weight, "one weight chooses nothing");

    let note = |line: &str| String::from_utf8_lossy(&lab.ok(line).stderr).into_owned();
    let stderr = note("evaluate run --beams 3");
    assert!(stderr.contains("5 beams") && stderr.contains("3 beams"), "{stderr}");
    assert!(!note("evaluate run").contains("chosen with"));
    assert!(!note("evaluate run --beams 3 --prior-weight 1").contains("chosen with"));

    let written = lab.read("run/prior.json");
    lab.edit("run/prior.json", "\"step\": 10", "\"step\": 9");
    let output = lab.ok("evaluate run --json");
    assert_eq!(document(&output)["prior"]["weight"], 0.7, "a weight chosen at another step is not used");
    assert!(String::from_utf8_lossy(&output.stderr).contains("prior.json"));
    for bytes in [&written[..written.len() / 2], b"?"] {
        lab.write("run/prior.json", bytes);
        lab.assert_refused("evaluate run", 1, &["run/prior.json"]);
    }
}
