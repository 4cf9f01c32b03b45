//! `doctor`: every backend is reported, those of this build are checked, and nothing is written where it runs.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::{document, snapshot, succeeded};

/// Mesa's drivers load libwayland, which writes `error: XDG_RUNTIME_DIR is invalid` to stderr where that is not set.
fn command(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_itemlm"));
    command.args(line.split_whitespace()).current_dir(dir).env("XDG_RUNTIME_DIR", dir);
    command
}

#[test]
fn every_backend_is_reported_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let report = document(&succeeded("doctor --json", command(dir.path(), "doctor --json").output().unwrap()));
    assert_eq!((&report["passed"], &report["itemlm"]), (&json!(true), &json!(env!("CARGO_PKG_VERSION"))));
    assert!(report["burn"].as_str().unwrap().starts_with("0."), "{report}");
    let host = &report["host"];
    assert!(host["threads"].as_u64() > Some(0) && host["memory_bytes"].as_u64() > Some(0), "{host}");

    let compiled = [("cpu", cfg!(feature = "cpu")), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))];
    let backends = report["backends"].as_array().unwrap();
    assert_eq!(backends.len(), compiled.len());
    for (backend, (name, compiled)) in backends.iter().zip(compiled) {
        assert_eq!(backend["name"], name);
        let reason = backend["reason"].as_str().unwrap_or_default();
        match backend["status"].as_str().unwrap() {
            "not_compiled" => assert!(!compiled && reason.contains(&format!("--features {name}")), "{backend}"),
            // Only CUDA's device may be missing where the tests run: wgpu has Mesa's software Vulkan.
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
    let checks = backend["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, if name == "cpu" { vec!["decoding"] } else { vec!["forward", "gradient", "decoding"] });
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
