//! The run files of `configs/`.

use std::fs;
use std::path::Path;

use itemlm::config::{AlignConfig, RunConfig};
use itemlm::text::Prompt;

/// Each one parses and has a comment on every line; one that trains an LLM names a prompt template that exists.
#[test]
fn shipped_run_files() {
    let mut names = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let place = path.display();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        if name.starts_with("ilm-") {
            let config = AlignConfig::open(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
            let pairs = (config.loss.item_item > 0.0, config.loss.user_item > 0.0);
            assert_eq!(pairs, (name.contains("-ii"), name.contains("-ui")), "{place}");
            assert!(config.loss.item_text_contrastive > 0.0, "{place}");
        } else {
            let config = RunConfig::open(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
            let prompt = config.data.prompt.unwrap_or_else(|| panic!("{place}: no data.prompt"));
            Prompt::open(&prompt).unwrap_or_else(|e| panic!("{place}: {e}"));
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            assert!(line.is_empty() || line.contains("# "), "{place}: no comment: {line}");
        }
        names.push(name);
    }
    names.sort();
    let known = ["books", "clothing", "ilm-it", "ilm-it-ii", "ilm-it-ui", "office", "toys"];
    let mut known: Vec<String> = known.iter().flat_map(|name| [name.to_string(), format!("{name}-smoke")]).collect();
    known.sort();
    assert_eq!(names, known);
}
