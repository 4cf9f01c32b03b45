//! `train --profile`.

use serde_json::json;

use crate::lab::{Lab, snapshot};

#[test]
fn a_profile_adds_up_and_changes_nothing() {
    let lab = Lab::new();
    // Adaptive temperature, two micro-batches a step, dropout; 7 steps are more than an epoch.
    let before = snapshot(&lab.path(""));
    let profile = lab.json("train run.toml --profile");
    assert_eq!(snapshot(&lab.path("")), before, "a profile leaves nothing behind");
    lab.ok("train run.toml --out run --max-steps 7 --ui none");
    let losses: Vec<f64> = profile["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert_eq!(losses, lab.losses("run"), "losses are those of a run without a clock, to the last bit");

    assert_eq!((&profile["warm_up"], &profile["steps"]), (&json!(2), &json!(5)));
    let metrics = lab.metrics("run");
    for key in ["tokens", "plain_tokens"] {
        let mean = metrics[2..].iter().map(|line| line[key].as_f64().unwrap()).sum::<f64>() / 5.0;
        assert!((profile[key].as_f64().unwrap() - mean).abs() < 1e-9, "{key}");
    }
    let parts = profile["parts"].as_array().unwrap();
    let names: Vec<_> = parts.iter().map(|part| (part["part"].as_str().unwrap(), part["pass"].as_str())).collect();
    let (forward, backward) = (Some("forward"), Some("backward"));
    let expected = [
        ("data", None),
        ("embedding", forward),
        ("embedding", backward),
        ("attention", forward),
        ("attention", backward),
        ("mlp", forward),
        ("mlp", backward),
        ("loss", forward),
        ("loss", backward),
        ("optimizer", None),
        ("rest", None),
    ];
    assert_eq!(names, expected);
    let sum = |key: &str| parts.iter().map(|part| part[key].as_f64().unwrap()).sum::<f64>();
    let whole = |key: &str| profile[key].as_f64().unwrap();
    assert!((sum("share") - 1.0).abs() < 1e-9);
    assert!((sum("seconds") / whole("seconds_per_step") - 1.0).abs() < 1e-9);
    assert!((sum("flops") / whole("flops") - 1.0).abs() < 1e-9);
    for part in parts.iter().filter(|part| part["part"] != "embedding") {
        assert!(part["seconds"].as_f64().unwrap() > 0.0, "{part}");
        let products = ["attention", "mlp", "loss"].iter().any(|name| part["part"] == *name);
        assert_eq!(part["share_of_peak"].as_f64().is_some_and(|share| share > 0.0), products, "{part}");
    }
    assert!(whole("share_of_peak") > 0.0 && profile["peak"]["gflops"].as_f64().unwrap() > 0.0);

    for flag in ["--out run", "--resume", "--max-steps 3", "--ui plain"] {
        lab.assert_refused(
            &format!("train run.toml --profile {flag}"),
            2,
            &["--profile", flag.split(' ').next().unwrap()],
        );
    }
    lab.assert_refused("align run.toml --profile", 2, &["--profile"]);
}
