//! `llm.layers`: plans, profiles, runs, merged models and scores of a model's first blocks.

use serde_json::{Value, json};

use crate::lab::{Lab, document, succeeded, write_llm_as};

const FIRST: &str = "--set llm.layers=2";

#[test]
fn the_first_blocks_are_the_model() {
    let lab = Lab::new();
    write_llm_as(&lab.path("llm"), 3, |config| config.num_hidden_layers = 5);
    let [whole, first] = ["", FIRST].map(|set| lab.json(&format!("train run.toml --plan {set}")));
    // q [16, 16], k and v [8, 16], o [16, 16], gate and up [32, 16], down [16, 32]; two norms.
    let block = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 32 * 16 + 2 * 16;
    let adapter = 4 * (16 + 16 + 16 + 8);
    let number = |plan: &Value, pointer: &str| plan.pointer(pointer).unwrap().as_u64().unwrap();
    let less = |pointer: &str| number(&whole, pointer) - number(&first, pointer);
    assert_eq!((less("/parameters/frozen"), less("/parameters/trained")), (3 * block, 3 * adapter));
    assert_eq!(less("/optimizer_bytes"), 8 * 3 * adapter);
    for pointer in ["/step/activations", "/ranking/cache"] {
        assert!(number(&first, pointer) * 2 < number(&whole, pointer), "{pointer}: {first} {whole}");
    }
    // What the program holds beside differs from process to process.
    let run = |plan: &Value| number(plan, "/peak_bytes") - number(plan, "/program_bytes");
    assert!(run(&first) < run(&whole), "{first} {whole}");

    let [deep, profile] = ["", FIRST].map(|set| lab.json(&format!("train run.toml --profile {set}")));
    let flops = |profile: &Value, part: &str| -> f64 {
        let parts = profile["parts"].as_array().unwrap().iter().filter(|entry| entry["part"] == part);
        parts.map(|entry| entry["flops"].as_f64().unwrap()).sum()
    };
    // The last block computes only what is predicted from.
    assert!(flops(&profile, "mlp") < 0.4 * flops(&deep, "mlp"), "{profile} {deep}");
    assert!((flops(&profile, "loss") / flops(&deep, "loss") - 1.0).abs() < 1e-9);
    lab.ok(&format!("train run.toml --out run --max-steps 7 --ui none {FIRST}"));
    assert_eq!(profile["losses"], json!(lab.losses("run")));

    // The merged model is an ordinary one of two blocks.
    lab.ok("merge run --out merged");
    let config: Value = serde_json::from_slice(&lab.read("merged/config.json")).unwrap();
    assert_eq!(config["num_hidden_layers"], 2);
    let plan = lab.json("train run.toml --plan --set llm.path=\"merged\"");
    assert_eq!((&plan["parameters"], &plan["weights"]), (&first["parameters"], &first["weights"]));
    lab.write("titles.txt", "Red Pen\nStapler\n");
    lab.write("prompts.jsonl", "{\"prompt\": \"Next: \", \"items\": [\"Red Pen\", \"Stapler\"]}\n");
    let score = |llm: &str| -> Vec<f64> {
        let line = format!("score --llm {llm} --catalogue titles.txt --input prompts.jsonl");
        let found = document(&succeeded(&line, lab.command(&line).output().unwrap()));
        found["full"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect()
    };
    let [trained, merged, untrained] = ["llm --adapter run", "merged", "llm"].map(score);
    // One rounding of each merged weight.
    assert!(trained.iter().zip(&merged).all(|(a, b)| (a - b).abs() < 1e-4), "{trained:?} {merged:?}");
    assert!(trained.iter().zip(&untrained).all(|(a, b)| (a - b).abs() > 1e-2), "{trained:?} {untrained:?}");

    lab.edit("run/run.toml", "layers = 2", "layers = 3");
    lab.refused("train run/run.toml --out run --resume --ui none", 1, &["run"]);
    lab.refused("evaluate run", 1, &["run"]);
    for wrong in [0, 6] {
        let named = format!("llm.layers is {wrong}; the model has 5 blocks, give 1 to 5");
        lab.refused(&format!("train run.toml --plan --set llm.layers={wrong}"), 2, &["llm", &named]);
    }
}
