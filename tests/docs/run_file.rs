//! `docs/reference/run-file.md`, generated from the structs of `src/config` and their doc comments.
//!
//! Rust keeps no doc comments at run time, so the sources are parsed with syn. Defaults come from
//! parsing the smallest run file, or from literals in the sources.

use std::fmt::Write;

use itemlm::config::{AlignConfig, RunConfig};

use crate::assert_current;
use crate::command_line::cell;
use crate::sources::{Field, Item, Keys, Sources};

const PAGE: &str = "docs/reference/run-file.md";

const HEAD: &str = "# Run files

<!-- Generated from src/config; do not edit. UPDATE_DOCS=1 cargo test --release --test docs -->

This page is generated from the doc comments of the structs in `src/config`. All files are TOML. An unknown key is an
error that names it. `--set key.path=value` overrides a key of the run file; the value is TOML, or a bare string.
A run file of `train` or `align`, or an experiment file, may begin with `extends = \"office.toml\"`: its keys are those
of that file, but for its own, which take their place one by one, in tables too. The path is relative to the file that
names it. A run directory keeps the run file as a whole.
Files in `configs/` have each key with a comment on its line.
";

/// A part of the page: a heading, an introduction, and the struct whose keys it lists.
struct Part {
    title: &'static str,
    intro: &'static str,
    root: &'static str,
    /// The file with its defaults filled in; empty where defaults are read from the sources.
    defaults: toml::Table,
}

#[test]
fn the_run_file_reference_is_current() {
    assert_current(PAGE, &page());
}

fn page() -> String {
    let sources = Sources::open(&crate::root().join("src"));
    let mut page = HEAD.to_string();
    for part in parts() {
        write!(page, "\n## {}\n\n{}\n", part.title, part.intro).unwrap();
        if let Some(item) = sources.find(part.root) {
            table(&mut page, &sources, &item, "", &part.defaults);
        }
    }
    page
}

fn parts() -> [Part; 8] {
    let run = "[data]\ncorpus = \"c\"\n[llm]\npath = \"m\"\n";
    let align = "[data]\ncorpus = \"c\"\nvectors = \"v\"\n[qformer]\ntext = \"m\"\n";
    let run = RunConfig::parse(run, &[], "run.toml").unwrap().to_toml().unwrap();
    let align = AlignConfig::parse(align, &[], "run.toml").unwrap().to_toml().unwrap();
    let part = |title, intro, root| Part { title, intro, root, defaults: toml::Table::new() };
    [
        Part {
            title: "Training: `itemlm train RUN.toml`",
            intro: "The guide is [Training](../guide/training.md).",
            root: "RunConfig",
            defaults: run.parse().unwrap(),
        },
        Part {
            title: "Phase 1 of ILM: `itemlm align RUN.toml`",
            intro: "The guide is [Item vectors](../guide/item-vectors.md).",
            root: "AlignConfig",
            defaults: align.parse().unwrap(),
        },
        part(
            "Experiments: `itemlm experiment FILE`",
            "The guide is [Experiments](../guide/experiments.md). Examples are in `configs/experiments`.",
            "ExperimentConfig",
        ),
        part(
            "Preparing data: `itemlm prepare --config FILE`",
            "The guide is [Data](../guide/data.md). Examples are in `configs/data`.",
            "PrepareConfig",
        ),
        part("Titles: `itemlm baseline text --set KEY=VALUE`", "Also for `prior.settings`.", "TextConfig"),
        part("ALS: `itemlm cf als --set KEY=VALUE`", "Also for `itemlm baseline als`.", "AlsConfig"),
        part("BPR: `itemlm cf bpr --set KEY=VALUE`", "Also for `itemlm baseline bpr`.", "BprConfig"),
        part("SASRec: `itemlm cf sasrec --set KEY=VALUE`", "Also for `itemlm baseline sasrec`.", "SasRecConfig"),
    ]
}

/// Writes the keys of a table at `path`, then the tables in it.
fn table(page: &mut String, sources: &Sources, item: &Item, path: &str, defaults: &toml::Table) {
    match &item.keys {
        Keys::Fields(fields) => {
            let (tables, keys): (Vec<_>, Vec<_>) = fields.iter().partition(|f| sources.is_table(&f.kind));
            if !path.is_empty() {
                write!(page, "\n### `{path}`\n\n").unwrap();
                if !item.doc.is_empty() {
                    write!(page, "{}\n\n", item.doc).unwrap();
                }
            } else if !keys.is_empty() {
                page.push('\n');
            }
            if !keys.is_empty() {
                page.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
            }
            for field in keys {
                let default = default_of(sources, item, field, path, defaults);
                let (kind, values) = sources.describe(&field.kind);
                let mut meaning = [field.doc.as_str(), &values].join(" ").trim().to_string();
                if !field.aliases.is_empty() {
                    let old: Vec<String> = field.aliases.iter().map(|a| format!("`{a}`")).collect();
                    write!(meaning, " Older spelling: {}.", old.join(", ")).unwrap();
                }
                writeln!(page, "| `{}` | {kind} | {default} | {} |", field.name, cell(&meaning)).unwrap();
            }
            for field in tables {
                let inner = sources.find(&field.kind.name).expect("a table");
                let name = match (path.trim_matches(['[', ']']), field.kind.list) {
                    ("", false) => format!("[{}]", field.name),
                    ("", true) => format!("[[{}]]", field.name),
                    (outer, false) => format!("[{outer}.{}]", field.name),
                    (outer, true) => format!("[[{outer}.{}]]", field.name),
                };
                let inner =
                    Item { doc: format!("{} {}", field.doc, inner.doc_beyond(&field.name)).trim().into(), ..inner };
                table(page, sources, &inner, &name, defaults);
            }
        }
        Keys::Tagged(tag, variants) => {
            write!(page, "\n### `{path}`\n\n{}\n\n", item.doc).unwrap();
            writeln!(page, "| `{tag}` | meaning | keys |\n|---|---|---|").unwrap();
            for (name, doc, fields) in variants {
                let keys = fields.iter().map(|f| {
                    let default = match sources.default_of(item, f) {
                        default if default.is_empty() => default,
                        default => format!(", default {default}"),
                    };
                    format!("`{}` ({}{default}): {}", f.name, sources.describe(&f.kind).0, f.doc)
                });
                let keys = keys.collect::<Vec<_>>().join(" ");
                writeln!(page, "| `{name}` | {} | {} |", cell(doc), cell(&keys)).unwrap();
            }
        }
    }
}

fn default_of(sources: &Sources, item: &Item, field: &Field, path: &str, defaults: &toml::Table) -> String {
    let keys = path.trim_matches(['[', ']']).split('.').filter(|k| !k.is_empty());
    let found = keys.clone().try_fold(defaults, |table, key| table.get(key)?.as_table());
    let required = field.default.is_none() && !field.kind.optional && !item.has_default;
    match found.and_then(|table| table.get(&field.name)) {
        _ if required => "required".to_string(),
        Some(value) => format!("`{value}`"),
        None if field.default.is_some() => sources.default_of(item, field),
        None => sources.default_in_impl(item, &field.name),
    }
}

#[test]
fn the_sources_tell_docs_defaults_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let text = "/// `[x]`: a table.\n#[derive(Deserialize)] pub struct X {\n/// Which [`crate::a::Way`].\n\
                #[serde(default = \"two\", alias = \"old\")] pub number: usize,\n\
                /// How. [`X::MOST`] at most.\npub way: Option<Way>,\n#[serde(default)] pub far: bool,\n\
                #[serde(default)] pub which: Way, }\n\
                impl X { const MOST: usize = 7; }\nfn two() -> usize { 2 }\n\
                #[derive(Deserialize)] #[serde(rename_all = \"snake_case\")] pub enum Way \
                { /// Fast.\n FarAway, #[default] Near }\n";
    std::fs::write(folder.path().join("x.rs"), text).unwrap();
    let sources = Sources::open(folder.path());
    let item = sources.find("X").unwrap();
    let mut page = String::new();
    assert_eq!(item.doc_beyond("x"), "A table.");
    table(&mut page, &sources, &Item { doc: String::new(), ..item }, "[x]", &toml::Table::new());
    let expected = "\n### `[x]`\n\n| key | type | default | meaning |\n|---|---|---|---|\n\
                    | `number` | integer | `2` | Which `Way`. Older spelling: `old`. |\n\
                    | `way` | string |  | How. 7 at most. `far_away`: Fast. `near`. |\n\
                    | `far` | boolean | `false` |  |\n\
                    | `which` | string | `\"near\"` | `far_away`: Fast. `near`. |\n";
    assert_eq!(page, expected);
    assert!(Sources::open(&crate::root().join("src")).find("RunConfig").is_some());
}
