//! The run files of `configs/` and the data sets of `configs/data/`.

mod common;

use std::fs;

use common::root;
use itemlm::config::{AlignConfig, RunConfig, SHIPPED};
use itemlm::data::{CleaningStep, PrepareConfig, Protocol, Source};
use itemlm::experiment::ExperimentConfig;
use itemlm::text::{Prompt, PromptSet};

/// Each one parses and has a comment on every line; one that trains an LLM names a prompt template
/// or tasks that exist, or rows of tasks.
#[test]
fn shipped_run_files() {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let place = path.display();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        if name.starts_with("ilm-") {
            let config = AlignConfig::open(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
            let pairs = (config.loss.item_item > 0.0, config.loss.user_item > 0.0);
            assert_eq!(pairs, (name.contains("-ii"), name.contains("-ui")), "{place}");
            assert!(config.loss.item_text_contrastive > 0.0, "{place}");
        } else {
            let config = RunConfig::open(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
            for name in &config.data.prompt_sets {
                let set = PromptSet::open(name).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert!(config.data.prompts_per_window.is_some_and(|count| count <= set.seen.len()), "{place}");
            }
            if config.data.prompt_sets.is_empty() && config.data.text_tasks.is_none() {
                let prompt = config.data.prompt.unwrap_or_else(|| panic!("{place}: no data.prompt"));
                Prompt::open(&prompt).unwrap_or_else(|e| panic!("{place}: {e}"));
            }
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            assert!(line.is_empty() || line.contains("# "), "{place}: no comment: {line}");
        }
        names.push(name);
    }
    names.sort();
    let known = [
        "books",
        "clothing",
        "elm24",
        "ilm-it",
        "ilm-it-ii",
        "ilm-it-ui",
        "office",
        "office-ilm",
        "openp5-ml-1m",
        "toys",
    ];
    let mut known: Vec<String> = known.iter().flat_map(|name| [name.to_string(), format!("{name}-smoke")]).collect();
    known.sort();
    assert_eq!(names, known);
}

/// Each data set says where its raw files are, under which terms, what is done to them and what
/// should come out.
#[test]
fn shipped_data_sets() {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("configs/data")).unwrap() {
        let path = entry.unwrap().path();
        let place = path.display();
        let config = PrepareConfig::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        assert_eq!(config.name.as_deref(), Some(name.as_str()), "{place}");
        assert!(config.obtain.is_some_and(|o| o.starts_with("http")) && config.licence.is_some(), "{place}");
        let expected = config.expect.unwrap_or_else(|| panic!("{place}: no [expect]"));
        assert!(expected.users.is_some() && expected.items.is_some() && expected.interactions.is_some(), "{place}");
        if config.source == Some(Source::Openp5) {
            assert_eq!((config.steps.len(), config.split), (0, Protocol::LeaveOneOut { history: 20 }), "{place}");
        } else {
            assert_eq!((config.source, config.split), (Some(Source::Amazon), Protocol::Msl { history: 10 }), "{place}");
            assert_eq!(config.steps.first(), Some(&CleaningStep::Titled {}), "{place}");
            assert_eq!(config.steps.last(), Some(&CleaningStep::KCore { user: 5, item: 5 }), "{place}");
        }
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["books", "clothing", "office", "openp5-beauty", "openp5-clothing", "openp5-ml-1m", "toys"]);
}

/// Each experiment parses and its cells resolve; each has a smoke twin with cells of the same names
/// or fewer, and a comment on every line.
#[test]
fn shipped_experiments() {
    let (root, mut names) = (root(), Vec::new());
    for entry in fs::read_dir(root.join("configs/experiments")).unwrap() {
        let path = entry.unwrap().path();
        let place = path.display();
        let config = ExperimentConfig::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let cells = config.cells().unwrap_or_else(|e| panic!("{place}: {e}"));
        assert!(cells.len() > 1 && cells.iter().all(|cell| cell.runs.len() == config.seeds.len()), "{place}");
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        let runs = cells.iter().flat_map(|cell| &cell.runs);
        let samples: Vec<_> = runs.map(|run| run.config.data.train_samples).collect();
        match name.strip_suffix("-smoke") {
            None => assert!(samples.iter().all(|samples| samples.is_some_and(|n| n > 1000)), "{place}"),
            Some(whole) => {
                assert!(samples.iter().all(|samples| samples.is_some_and(|n| n < 100)), "{place}");
                assert!(config.evaluate.limit.is_some_and(|limit| limit < 20), "{place}");
                let whole = ExperimentConfig::open(&root.join(format!("configs/experiments/{whole}.toml"))).unwrap();
                let whole: Vec<String> = whole.cells().unwrap().into_iter().map(|cell| cell.name).collect();
                assert!(cells.iter().all(|cell| whole.contains(&cell.name)), "{place}");
            }
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            assert!(line.is_empty() || line.contains("# "), "{place}: no comment: {line}");
        }
        names.push(name);
    }
    names.sort();
    let shipped = ["ilm-ablation", "ilm-queries", "msl-losses", "msl-temperatures", "priors"];
    let mut shipped: Vec<String> = shipped.iter().flat_map(|n| [n.to_string(), format!("{n}-smoke")]).collect();
    shipped.sort();
    assert_eq!(names, shipped);
}

/// `itemlm configs` has every file of `configs/`, each with a first line that says what it is for.
#[test]
fn all_files_are_embedded() {
    let root = root().join("configs");
    let (mut folders, mut names) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => names.push(path.strip_prefix(&root).unwrap().with_extension("").display().to_string()),
            }
        }
    }
    names.sort();
    let mut embedded: Vec<&str> = SHIPPED.iter().map(|shipped| shipped.name).collect();
    embedded.sort_unstable();
    assert_eq!(embedded, names, "add a new file to src/config/shipped.rs");
    for shipped in SHIPPED {
        assert!(shipped.text.starts_with("# ") && shipped.summary().len() > 20, "{}", shipped.name);
    }
}
