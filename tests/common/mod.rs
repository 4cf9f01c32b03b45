//! Helpers of the integration tests: files, the binary, and what a refusal must look like.

#![allow(dead_code, reason = "each test crate uses a part of this module")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the path of a file or folder in `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

/// Returns a folder of the real data: in `ITEMLM_DATA`, or `../shared/data` beside the project.
pub fn real_data(name: &str) -> PathBuf {
    let folder = std::env::var_os("ITEMLM_DATA").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    let folder = folder.join(name);
    assert!(folder.is_dir(), "{} is absent", folder.display());
    folder
}

/// Returns the command `itemlm`, to run in `dir` with nothing on stdin.
pub fn itemlm(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_itemlm"));
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// Asserts that a command succeeded and printed no error.
#[track_caller]
pub fn succeeded(what: &str, output: Output) -> Output {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "itemlm {what}: {}\n{stderr}", output.status);
    assert!(!stderr.contains("panicked") && !stderr.contains("error:"), "itemlm {what}:\n{stderr}");
    output
}

/// Parses stdout as exactly one JSON document.
#[track_caller]
pub fn document(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("stdout is not one JSON document ({e}): {text}"))
}

/// Returns what is wrong with a refusal, if anything is. It must exit with `code`, print nothing on
/// stdout and one short `error:` line at the end of stderr, which has all of `named`, no character
/// that a terminal obeys and no trace of a panic.
pub fn faults_of_refusal(what: &str, output: &Output, code: i32, named: &[&str]) -> Vec<String> {
    const LONGEST: usize = 600;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    println!("itemlm {what}\n  {last}");
    let mut faults = Vec::new();
    if output.status.code() != Some(code) {
        faults.push(format!("{}, not exit {code}", output.status));
    }
    if !last.starts_with("error: ") || stderr.matches("error:").count() != 1 {
        faults.push("not one error line, at the end".into());
    }
    if last.len() > LONGEST || last.contains(char::is_control) {
        faults.push("a long line, or control characters".into());
    }
    for defect in ["panicked", "backtrace", "unwrap", "internal error", "RUST_", "with overflow", "overflowed", ".rs:"]
    {
        if stderr.contains(defect) {
            faults.push(format!("stderr shows {defect:?}"));
        }
    }
    faults.extend(named.iter().filter(|n| !last.contains(**n)).map(|n| format!("{n:?} is not named")));
    if !output.stdout.is_empty() {
        faults.push("something on stdout".into());
    }
    faults
}

/// Returns every file's bytes and every directory in `dir`.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => {
                found.extend(snapshot(&path));
                found.insert(path, None);
            }
            false => {
                let bytes = fs::read(&path).unwrap();
                found.insert(path, Some(bytes));
            }
        }
    }
    found
}

/// Returns the names in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Copies a folder with all that is in it; the copy's files are writable.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => fs::write(target, fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

/// Returns the files with an extension in a folder and its folders, sorted.
pub fn files_with_extension(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_path_buf()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|found| found == extension) => files.push(path),
                false => {}
            }
        }
    }
    files.sort();
    files
}
