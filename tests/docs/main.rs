//! Tests of README.md, CONTRIBUTING.md, CHANGELOG.md and the book in `docs/`: links and paths lead
//! somewhere, commands and run files in them parse, and the generated references are current.
//!
//! `UPDATE_DOCS=1 cargo test --release --test docs` rewrites the references
//! (`docs/reference/command-line.md` and `docs/reference/run-file.md`).

mod command_line;
#[path = "../common/mod.rs"]
mod common;
mod examples;
mod links;
mod run_file;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

use common::{files_with_extension, root};

/// Returns the Markdown files under test, relative to [`root`], sorted.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/reference/README.md"].map(PathBuf::from).to_vec();
    let book = files_with_extension(&root().join("docs"), "md");
    pages.extend(book.iter().filter_map(|page| Some(page.strip_prefix(root()).ok()?.to_path_buf())));
    pages.sort();
    pages
}

/// Returns the text of a page of [`pages`].
fn read(page: &Path) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{}: {e}", page.display()))
}

/// Compares a generated page with the file, or rewrites the file where `UPDATE_DOCS` is set.
fn assert_current(page: &str, expected: &str) {
    let path = root().join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    let line = expected.lines().zip(current.lines()).position(|(a, b)| a != b);
    let line = line.unwrap_or_else(|| expected.lines().count().min(current.lines().count()));
    assert!(
        current == expected,
        "{page} is stale from line {}: run UPDATE_DOCS=1 cargo test --release --test \
         docs\n  file:     {}\n  expected: {}",
        line + 1,
        current.lines().nth(line).unwrap_or(""),
        expected.lines().nth(line).unwrap_or("")
    );
}

/// Whatever the registry has, the guide describes.
#[test]
fn every_ranker_is_in_the_guide() {
    let guide = read(Path::new("docs/guide/rankers-and-priors.md"));
    for entry in itemlm::rankers::registry::REGISTRY {
        let row = format!("| `{}` |", entry.name);
        assert!(guide.contains(&row), "docs/guide/rankers-and-priors.md has no row for the ranker {}", entry.name);
    }
}

/// The README is a first page, not a manual.
#[test]
fn the_readme_is_short() {
    let bytes = read(Path::new("README.md")).len();
    assert!(bytes <= 10 * 1024, "README.md has {bytes} bytes, at most 10 KB; what is longer belongs into docs/");
}
