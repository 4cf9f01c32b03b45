//! `doctor`: every backend is reported, those of this build are checked, and nothing is written
//! where it runs.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::itemlm;
use crate::lab::{Lab, document, snapshot, succeeded};

/// Returns the command with XDG_RUNTIME_DIR set. Without it libwayland, which Mesa's drivers load,
/// writes `error: XDG_RUNTIME_DIR is invalid` to stderr.
fn command(dir: &Path, line: &str) -> Command {
    let mut command = itemlm(dir);
    command.args(line.split_whitespace()).env("XDG_RUNTIME_DIR", dir);
    command
}

#[test]
fn every_backend_is_reported_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let report = document(&succeeded("doctor --json", command(dir.path(), "doctor --json").output().unwrap()));
    assert_eq!((&report["passed"], &report["itemlm"]), (&json!(true), &json!(env!("CARGO_PKG_VERSION"))));
    assert!(report["burn"].as_str().unwrap().starts_with("0."), "{report}");
    let host = &report["host"];
    assert!(["AVX-512", "AVX2", "SSE2", "NEON"].contains(&host["instruction_set"].as_str().unwrap()), "{host}");
    assert!(host["threads"].as_u64() > Some(0) && host["memory_bytes"].as_u64() > Some(0), "{host}");

    let compiled = [("cpu", cfg!(feature = "cpu")), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))];
    let backends = report["backends"].as_array().unwrap();
    assert_eq!(backends.len(), compiled.len());
    for (backend, (name, compiled)) in backends.iter().zip(compiled) {
        assert_eq!(backend["name"], name);
        let reason = backend["reason"].as_str().unwrap_or_default();
        match backend["status"].as_str().unwrap() {
            "not_compiled" => assert!(!compiled && reason.contains(&format!("--features {name}")), "{backend}"),
            // Only CUDA's device may be missing where the tests run: wgpu has Mesa's software
            // Vulkan.
            "no_device" => assert!(compiled && name == "cuda" && reason.contains("NVIDIA"), "{backend}"),
            "passed" => {
                assert!(compiled && reason.is_empty(), "{backend}");
                checked(name, backend);
            }
            other => panic!("{other}: {backend}"),
        }
    }
    assert_eq!(snapshot(dir.path()).len(), 0, "nothing is written");
}

fn checked(name: &str, backend: &Value) {
    let used = backend["adapters"].as_array().unwrap().iter().filter(|adapter| adapter["used"] == true).count();
    assert_eq!(used, 1, "{backend}");
    for rate in [&backend["matmul"]["gflops"], &backend["copy"]["gb_per_second"]] {
        assert!(rate.as_f64().unwrap() > 0.0, "{backend}");
    }
    let products = backend["step_products"].as_array().unwrap();
    assert!(products.len() == 4 && products.iter().all(|rate| rate["gflops"].as_f64() > Some(0.0)), "{backend}");
    let checks = backend["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    let model = if name == "cpu" { vec!["decoding"] } else { vec!["forward", "gradient", "decoding"] };
    assert_eq!(names, [model, vec!["products", "stages", "views", "fused", "scatter"]].concat());
    for check in checks {
        assert_eq!(check["passed"], true, "{check}");
        assert!(check["max_relative_difference"].as_f64() <= check["tolerance"].as_f64(), "{check}");
    }
}

#[test]
fn as_text_without_any_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(dir.path(), "doctor");
    // Vulkan's loader finds no driver there.
    let missing = dir.path().join("none.json");
    command.envs(["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].map(|name| (name, &missing)));
    let text = String::from_utf8(succeeded("doctor", command.output().unwrap()).stdout).unwrap();
    assert!(text.contains("\ncpu  ok\n") && text.contains("GFLOP/s") && text.contains("decoding"), "{text}");
    let expected = if cfg!(feature = "wgpu") { "\nwgpu  no device: " } else { "\nwgpu  not compiled: " };
    assert!(text.contains(expected), "{text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn only_a_gpu_is_warmed() {
    let lab = Lab::new();
    lab.assert_refused("doctor --warm run.toml --backend cpu", 2, &["--warm", "wgpu or cuda"]);
    lab.assert_refused("doctor --warm run.toml", 2, &["--backend"]);
    lab.assert_refused("doctor --backend wgpu", 2, &["--warm"]);
    lab.assert_refused("doctor --warm run.toml --backend wgpu:0,1", 2, &["one device"]);
}

/// A user's cache is kept out of it. Built with `tuned` the choice of kernels is there afterwards,
/// and is not made again.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
#[test]
fn a_run_is_warmed_and_equals_the_cpu() {
    let lab = Lab::new();
    let cache = tempfile::tempdir().unwrap();
    let before = snapshot(&lab.path(""));
    let warm = || {
        let mut command = lab.command("doctor --warm run.toml --backend wgpu --json");
        command.envs([("XDG_CACHE_HOME", cache.path()), ("XDG_RUNTIME_DIR", cache.path())]);
        document(&succeeded("doctor --warm", command.output().unwrap()))
    };
    let report = warm();
    assert_eq!(snapshot(&lab.path("")), before, "the run's folder is left as it was");
    assert_eq!((&report["passed"], &report["tuned"]), (&json!(true), &json!(cfg!(feature = "tuned"))));
    let [steps, cpu] = ["steps", "cpu"].map(|key| report[key].as_array().unwrap());
    assert!(steps.len() == 3 && cpu.len() == 3, "{report}");
    assert!(steps.iter().all(|step| step["grad_norm"].as_f64() > Some(0.0)), "{report}");
    assert!(report["max_relative_difference"].as_f64().unwrap() < 1e-4, "{report}");
    assert!(report["ranking_seconds"].as_f64().unwrap() > 0.0, "{report}");

    let kernels = report["kernels"].as_str().map(Path::new);
    assert_eq!(kernels.is_some(), cfg!(feature = "tuned"));
    if let Some(kernels) = kernels {
        assert!(
            kernels.starts_with(cache.path().join("itemlm/kernels")) && kernels.join("autotune").is_dir(),
            "{report}"
        );
        let kept = snapshot(kernels);
        warm();
        assert_eq!(snapshot(kernels), kept);
    }
}
