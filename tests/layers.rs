//! The shape of the sources: which module may use which, and how long files and lines may be.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{files_with_extension, root};

/// The modules of the crate. A module uses only itself and those before it.
const ORDER: [&str; 20] = [
    "core",
    "device",
    "tensor",
    "config",
    "data",
    "text",
    "batch",
    "kernels",
    "model",
    "loss",
    "train",
    "rankers",
    "decode",
    "evaluate",
    "run",
    "serve",
    "experiment",
    "report",
    "commands",
    "cli",
];

/// Lines of a file.
const LONGEST_FILE: usize = 450;
/// Columns of a line.
const LONGEST_LINE: usize = 120;
/// Files that hold rows of public files as they are published, one a line.
const SAMPLES: [&str; 4] = ["amazon/tests.rs", "movielens/tests.rs", "prepare/datasets.rs", "prepare/generator.rs"];

fn sources(folder: &str) -> Vec<PathBuf> {
    files_with_extension(&root().join(folder), "rs")
}

/// Returns the top module of a file below `src`: `src/data/corpus.rs` is of `data`.
fn top_module(path: &Path) -> Option<String> {
    let below = path.strip_prefix(root().join("src")).ok()?;
    let first = below.components().next()?.as_os_str().to_string_lossy().into_owned();
    Some(first.trim_end_matches(".rs").to_string())
}

/// Returns the modules of the crate that a line of code names: `a` and `b` of
/// `use crate::a::{…}; crate::b::f()`.
fn named_modules(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").map(|(at, name)| {
        let rest = &line[at + name.len()..];
        &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())]
    })
}

/// Returns the upward imports of a file: its line numbers and lines. Tests may use every module.
fn upward_imports(module: &str, text: &str) -> Vec<String> {
    let rank = |name: &str| ORDER.iter().position(|&other| other == name);
    let Some(own) = rank(module) else { return Vec::new() };
    let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]") && *line != "mod tests {");
    let numbered = (1..).zip(code).filter(|(_, line)| !line.trim_start().starts_with("//"));
    let upward =
        numbered.filter(|(_, line)| named_modules(line).any(|name| rank(name).is_some_and(|other| other > own)));
    upward.map(|(number, line)| format!("{number}: {}", line.trim())).collect()
}

#[test]
fn no_module_uses_one_after_it() {
    let mut upward = Vec::new();
    for path in sources("src") {
        let module = top_module(&path).unwrap();
        // Tests may use any module.
        if path.file_stem().is_some_and(|name| name == "tests")
            || path.parent().is_some_and(|folder| folder.ends_with("tests"))
        {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        upward.extend(upward_imports(&module, &text).into_iter().map(|line| format!("{}:{line}", path.display())));
    }
    assert!(upward.is_empty(), "imports of a later module:\n{}", upward.join("\n"));
}

#[test]
fn every_module_has_its_rank() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut declared: Vec<&str> =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut ranked = ORDER.to_vec();
    declared.sort_unstable();
    ranked.sort_unstable();
    assert_eq!(declared, ranked);
}

/// Returns whether a line is a row of a table in a doc comment, which cannot be broken.
fn is_table_row(line: &str) -> bool {
    ["//! |", "/// |"].iter().any(|start| line.trim_start().starts_with(start))
}

#[test]
fn files_and_lines_are_short() {
    let mut long = Vec::new();
    for path in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            long.push(format!("{}: {lines} lines", path.display()));
        }
        let samples = SAMPLES.iter().any(|file| path.ends_with(file));
        let wide = (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > LONGEST_LINE);
        let wide = wide.filter(|(_, line)| !samples && !is_table_row(line));
        long.extend(
            wide.map(|(number, line)| format!("{}:{number}: {} columns", path.display(), line.chars().count())),
        );
    }
    assert!(long.is_empty(), "more than {LONGEST_FILE} lines or {LONGEST_LINE} columns:\n{}", long.join("\n"));
}

/// Comments are read beside the code: they are narrower than it, but for tables, diagrams and
/// links.
#[test]
fn comments_are_narrow_and_summaries_are_phrases() {
    const WIDEST: usize = 100;
    const QUESTIONS: [&str; 6] = ["What ", "How ", "Where ", "Why ", "Who ", "When "];
    let mut found = Vec::new();
    for path in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).unwrap();
        // Doc comments of arguments are the help texts of the command line.
        let library = path.starts_with(root().join("src")) && !path.starts_with(root().join("src/cli"));
        let mut before = "";
        for (number, line) in (1..).zip(text.lines()) {
            let comment = line.trim_start();
            let drawn = ["│", "─", "┌", "└", "http", "\\n"].iter().any(|part| comment.contains(part));
            let drawn = drawn || is_table_row(line);
            if comment.starts_with("//") && line.chars().count() > WIDEST && !drawn {
                found.push(format!("{}:{number}: a comment of {} columns", path.display(), line.chars().count()));
            }
            let doc = |line: &str| line.strip_prefix("/// ").or(line.strip_prefix("//! ")).map(String::from);
            let first = !before.starts_with("///") && !before.starts_with("//!");
            let summary = doc(comment).filter(|_| first && library).unwrap_or_default();
            if QUESTIONS.iter().any(|question| summary.starts_with(question)) {
                found.push(format!("{}:{number}: a summary that is no phrase: {summary}", path.display()));
            }
            before = comment;
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// An index out of range is undefined on some devices, and `tensor::indices` refuses it on the
/// host.
#[test]
fn index_tensors_are_made_in_one_function() {
    let mut others = Vec::new();
    for path in sources("src").into_iter().filter(|path| !path.ends_with("src/tensor.rs")) {
        let text = fs::read_to_string(&path).unwrap();
        let made = |line: &str| line.contains("Int>::from_data") || line.contains("Int>::from_ints");
        let lines = (1..).zip(text.lines()).filter(|(_, line)| made(line));
        others.extend(lines.map(|(number, _)| format!("{}:{number}", path.display())));
    }
    assert!(others.is_empty(), "index tensors beside `tensor::indices`:\n{}", others.join("\n"));
}

/// Returns the lines of a source file that name a flag of the command line, such as `--resume`, in
/// code. A flag of Cargo is none of them.
fn named_flags(text: &str) -> Vec<String> {
    let code = |line: &str| !line.trim_start().starts_with("//") && !line.contains("cargo ");
    let flag = |line: &str| {
        line.match_indices("--").any(|(at, _)| {
            !line[..at].ends_with(|c: char| c == '-' || c.is_alphanumeric())
                && line[at + 2..].starts_with(|c: char| c.is_ascii_lowercase())
        })
    };
    let named = (1..).zip(text.lines()).filter(|(_, line)| code(line) && flag(line));
    named.map(|(number, line)| format!("{number}: {}", line.trim())).collect()
}

/// Below the commands a message names an option as "option `resume`"; the command line shows it as
/// `--resume`.
#[test]
fn messages_of_the_library_name_no_flags() {
    let commands = ORDER.iter().position(|module| *module == "commands").unwrap();
    let mut named = Vec::new();
    for path in sources("src") {
        let module = top_module(&path).unwrap();
        if ORDER[..commands].contains(&module.as_str()) {
            let text = fs::read_to_string(&path).unwrap();
            named.extend(named_flags(&text).into_iter().map(|line| format!("{}:{line}", path.display())));
        }
    }
    assert!(named.is_empty(), "flags in messages of the library:\n{}", named.join("\n"));
    let text = "// --out\n\"choose another --out\"\ni --;\n\"cargo build --release\"\n\"a--b ----\"\n";
    assert_eq!(named_flags(text), ["2: \"choose another --out\""]);
}

#[test]
fn an_upward_import_is_found() {
    let text = "use crate::core::files;\nuse crate::train::step;\nfn f() { crate::cli::run() }\n// crate::cli\n\
                #[cfg(test)]\nmod tests {\n    use crate::cli;\n}\n";
    assert_eq!(upward_imports("model", text), ["2: use crate::train::step;", "3: fn f() { crate::cli::run() }"]);
    assert!(upward_imports("cli", text).is_empty());
}
