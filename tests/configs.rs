//! The run files of `configs/`.

use std::fs;
use std::path::Path;

use itemlm::config::RunConfig;
use itemlm::text::Prompt;

/// Each one parses, names a prompt template that exists, and has a comment on every line.
#[test]
fn shipped_run_files() {
    let mut names = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let place = path.display();
        let config = RunConfig::open(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        let prompt = config.data.prompt.unwrap_or_else(|| panic!("{place}: no data.prompt"));
        Prompt::open(&prompt).unwrap_or_else(|e| panic!("{place}: {e}"));
        for line in fs::read_to_string(&path).unwrap().lines() {
            assert!(line.is_empty() || line.contains("# "), "{place}: no comment: {line}");
        }
        names.push(path.file_stem().unwrap().to_str().unwrap().to_string());
    }
    names.sort();
    assert_eq!(names, ["books", "books-smoke", "clothing", "clothing-smoke", "office", "office-smoke", "toys", "toys-smoke"]);
}
