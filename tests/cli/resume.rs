//! A run that was stopped in any way ends as one that never was.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::lab::{Lab, document, succeeded};

const ADAPTER: &str = "adapter/adapter_model.safetensors";

#[test]
fn resumed_equals_uninterrupted() {
    let lab = Lab::new();
    for (name, weights, set) in [
        ("lora", ADAPTER, ""),
        ("full", "model/model.safetensors", "--set llm.tune=full --set loss.temperature=2"),
        ("lml", ADAPTER, "--set loss.kind=lml --set train.micro_batch_size=8"),
    ] {
        let (whole, parts) = (format!("{name}-whole"), format!("{name}-parts"));
        let reference = lab.json(&format!("train run.toml --out {whole} {set}"));
        let line = format!("train run.toml --out {parts} {set}");
        assert_eq!(lab.json(&format!("{line} --max-steps 3"))["steps"], 3);
        // Exactly at the end of an epoch, and a second time with nothing left to do.
        for stop in [5, 5, 8] {
            assert_eq!(lab.json(&format!("{line} --resume --max-steps {stop}"))["steps"], stop);
        }
        let report = lab.json(&format!("{line} --resume"));
        lab.same_run(&whole, &parts, weights);
        for key in ["steps", "samples", "loss", "temperature", "valid_ndcg_at_10"] {
            assert_eq!(report[key], reference[key], "{name}: {key}");
        }
        assert!(lab.leftovers(&parts).is_empty());
        let again = lab.json(&format!("{line} --resume"));
        assert_eq!((&again["steps"], &again["loss"]["last"]), (&reference["steps"], &serde_json::Value::Null));
        lab.same_run(&whole, &parts, weights);
    }
}

/// The temperature of a resumed run is the one that was saved, to the last bit: stop after every
/// single step.
#[test]
fn resumed_at_every_step() {
    let lab = Lab::new();
    let line = "train run.toml --set train.epochs=4 --ui none --out";
    lab.ok(&format!("{line} whole"));
    lab.ok(&format!("{line} parts --max-steps 1"));
    for step in 2..=20 {
        lab.ok(&format!("{line} parts --resume --max-steps {step}"));
    }
    lab.same_run("whole", "parts", ADAPTER);
    let optimizer = |run: &str| fs::read(lab.path(&format!("{run}/checkpoints/step-00000020/optimizer.bin"))).unwrap();
    assert!(optimizer("whole") == optimizer("parts"), "equal runs write equal files");
    // Another alpha would scale the adapter.
    let run_file = String::from_utf8(lab.read("parts/run.toml")).unwrap();
    let alpha = run_file.lines().find(|line| line.starts_with("alpha = ")).unwrap();
    lab.write("parts/run.toml", run_file.replace(alpha, "alpha = 999.0"));
    lab.assert_refused("evaluate parts", 1, &["alpha", "999"]);
}

fn lines(lab: &Lab, run: &str) -> usize {
    fs::read_to_string(lab.path(&format!("{run}/metrics.jsonl"))).map_or(0, |text| text.lines().count())
}

#[test]
fn interrupt_leaves_a_checkpoint() {
    let lab = Lab::new();
    let line = "train run.toml --set train.epochs=40 --set train.checkpoint_steps=1000 --json --out";
    lab.ok(&format!("{line} whole"));
    for signal in ["-INT", "-TERM"] {
        let child = lab.spawn(&format!("{line} parts"));
        let started = Instant::now();
        while lines(&lab, "parts") < 7 {
            assert!(started.elapsed() < Duration::from_secs(60), "no step in a minute");
            sleep(Duration::from_millis(2));
        }
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let report = document(&succeeded(line, child.wait_with_output().unwrap()));
        let steps = report["steps"].as_u64().unwrap() as usize;
        assert!((7..200).contains(&steps), "the signal came too late");
        assert_eq!((lines(&lab, "parts"), lab.checkpoints("parts").last()), (steps, Some(&steps)));
        lab.ok(&format!("{line} parts --resume"));
        lab.same_run("whole", "parts", ADAPTER);
        fs::remove_dir_all(lab.path("parts")).unwrap();
    }
}

#[test]
fn killed_again_and_again() {
    let lab = Lab::new();
    let line = "train run.toml --set train.epochs=12 --set train.checkpoint_steps=1 --ui none --out";
    lab.ok(&format!("{line} whole"));
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (mut reached, mut midway) = (0, 0);
    for round in 0..60 {
        let resume = if lab.path("parts/run.toml").exists() { "--resume" } else { "" };
        let mut child = lab.spawn(&format!("{line} parts {resume}"));
        sleep(Duration::from_millis(rng.random_range(10..150 + 10 * round)));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.code() == Some(0) {
            break;
        }
        assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
        let last = lab.checkpoints("parts").last().copied().unwrap_or(0);
        assert!(last >= reached, "step {reached} had a checkpoint, now the last is {last}");
        assert!(lines(&lab, "parts") >= last);
        midway += usize::from(last > reached);
        reached = last;
    }
    assert!(midway >= 2, "killed midway only {midway} times");
    lab.ok(&format!("{line} parts --resume"));
    lab.same_run("whole", "parts", ADAPTER);
    assert!(lab.leftovers("parts").is_empty(), "{:?}", lab.leftovers("parts"));
}

/// As after a kill between the two renames that replace a checkpoint, and within writing and
/// removing one.
#[test]
fn replaced_checkpoint_comes_back() {
    let lab = Lab::new();
    lab.ok("train run.toml --out whole");
    lab.ok("train run.toml --out parts --max-steps 5");
    let place = |name: &str| lab.path("parts/checkpoints").join(name);
    fs::rename(place("step-00000005"), place(".replaced-5")).unwrap();
    for name in [".writing-x", ".removed-1"] {
        fs::create_dir(place(name)).unwrap();
        fs::write(place(name).join("adapter_model.safetensors"), "half").unwrap();
    }
    fs::write(place(".DS_Store"), "not itemlm's").unwrap();
    // Ranking beside a training run removes nothing of it.
    lab.ok("evaluate parts --limit 1");
    assert!(place(".writing-x").exists() && place(".replaced-5").exists());
    lab.ok("train run.toml --out parts --resume");
    lab.same_run("whole", "parts", ADAPTER);
    assert_eq!(lab.leftovers("parts"), [".DS_Store"]);
    let text = fs::read_to_string(lab.path("parts/metrics.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 10);
}

/// Weights that run away: the step is named and the checkpoint before it stays.
#[test]
fn not_finite() {
    let lab = Lab::new();
    let set = "--set train.learning_rate=3e38 --set train.warmup_steps=0 --set train.checkpoint_steps=1 --ui none";
    let output = lab.command(&format!("train run.toml --out run {set}")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with("error: step 2: the "), "{stderr}");
    assert_eq!(lab.checkpoints("run"), [1]);
    assert!(lab.leftovers("run").is_empty());

    let overflow = set.replace("3e38", "1e39");
    let output = lab.command(&format!("train run.toml --out overflow {overflow}")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with("error: step 1: ") && stderr.contains("lora_A"), "{stderr}");
    assert!(lab.checkpoints("overflow").is_empty());
    let output = lab.command(&format!("train run.toml --out all --set llm.tune=full {overflow}")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("model.safetensors: tensor ") && stderr.contains("not written"), "{stderr}");
    assert!(lab.checkpoints("all").is_empty());

    lab.copy("llm", "damaged");
    lab.edit_tensors("damaged/model.safetensors", |tensors| {
        let (_, bytes) = tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap();
        bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let output = lab.command("train run.toml --out run-of-damaged --set llm.path=damaged --ui none").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with("error: step 1: the loss is NaN"), "{stderr}");

    lab.ok("train run.toml --out untrained --set llm.path=damaged --max-steps 0");
    lab.write("titles.txt", "A\nB\n");
    lab.write("input.jsonl", "{\"prompt\": \"x\", \"items\": [\"B\"]}");
    lab.assert_refused("evaluate untrained --limit 2", 1, &["untrained", "NaN"]);
    lab.assert_refused("recommend untrained --history x", 1, &["untrained", "NaN"]);
    lab.assert_refused("score --llm damaged --catalogue titles.txt --input input.jsonl", 1, &["input.jsonl:1", "NaN"]);
}

/// The formats' own tests compare the bytes with Python's tensorboard.
#[test]
fn tensorboard_files_are_written_where_the_run_file_asks() {
    let lab = Lab::new();
    lab.ok("train run.toml --out run --ui none --max-steps 3 --set train.tensorboard=true");
    lab.ok("train run.toml --out run --ui none --max-steps 5 --set train.tensorboard=true --resume");
    let files: Vec<_> = std::fs::read_dir(lab.path("run/tensorboard")).unwrap().map(|f| f.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "one a call");
    let bytes: Vec<u8> = files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
    let count = |tag: &str| bytes.windows(tag.len()).filter(|window| *window == tag.as_bytes()).count();
    assert_eq!((count("train/loss"), count("train/temperature"), count("brain.Event:2")), (5, 5, 2));
    lab.ok("train run.toml --out other --ui none --max-steps 1");
    assert!(!lab.path("other/tensorboard").exists());
}
