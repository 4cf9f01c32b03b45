//! Origin of the numbers: files, programs, machine, time.

use std::collections::BTreeSet;
use std::path::Path;

use super::curves::{Step, steps};
use crate::core::system;
use crate::experiment::{ExperimentReport, State};
use crate::run::dir;
use crate::run::identity::Identity;

/// Origin of the numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Provenance {
    /// Facts about all runs, with their names.
    pub facts: Vec<(&'static str, Fact)>,
    /// A line a run.
    pub runs: Vec<RunLine>,
}

/// Something to know.
#[derive(Debug, Clone)]
pub(super) struct Fact {
    /// In words.
    pub text: String,
    /// Whether it is another for each machine or execution of the same experiment.
    pub is_time: bool,
}

/// A run.
#[derive(Debug, Clone)]
pub(super) struct RunLine {
    /// Its directory, below the experiment's.
    pub dir: String,
    /// Optimiser steps taken.
    pub steps: usize,
    /// Time of the optimiser steps, hours.
    pub hours: f64,
    /// SHA-256 of run file and corpus, its beginning.
    pub key: String,
    /// Fingerprint of the base model, its beginning.
    pub model: String,
}

/// Collects what the run directories tell.
pub(super) fn provenance(root: &Path, report: &ExperimentReport) -> Provenance {
    let mut lines = Vec::new();
    let (mut corpora, mut models) = (BTreeSet::new(), BTreeSet::new());
    for run in report.rows().flat_map(|row| &row.runs) {
        let folder = root.join(&run.dir);
        let steps: Vec<Step> = steps(&folder);
        let model = dir::read_identity::<Identity>(&folder).map_or(String::new(), |identity| identity.llm);
        let config = dir::is_run(&folder).then(|| dir::read_config(&folder).ok()).flatten();
        if let Some(config) = &config {
            corpora.insert(format!("{}: SHA-256 {}", config.data.corpus, run.corpus));
            models.insert(format!("{}: fingerprint {model}", config.llm.path));
        }
        lines.push(RunLine {
            dir: run.dir.display().to_string(),
            steps: steps.len(),
            hours: steps.iter().map(|step| step.seconds).sum::<f64>() / 3600.0,
            key: short(&run.key),
            model: short(&model),
        });
    }
    let hours: f64 = lines.iter().map(|line| line.hours).sum();
    let fact = |text: String| Fact { text, is_time: false };
    let time = |text: String| Fact { text, is_time: true };
    let mut facts = Vec::new();
    let names = [("run file", report.run.display().to_string())];
    facts.extend(names.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, fact(text))));
    facts.extend(corpora.into_iter().map(|text| ("corpus", fact(text))));
    facts.extend(models.into_iter().map(|text| ("model", fact(text))));
    facts.push(("program", fact(format!("itemlm {}", env!("CARGO_PKG_VERSION")))));
    facts.push(("machine of this page", time(machine())));
    facts.push(("time", time(format!("{hours:.2} hours in optimiser steps, over all runs"))));
    let joules: Vec<f64> = report
        .rows()
        .flat_map(|row| &row.runs)
        .filter_map(|run| State::read(&root.join(&run.dir)).ok().flatten()?.joules)
        .collect();
    if !joules.is_empty() {
        let (kilojoules, count) = (joules.iter().sum::<f64>() / 1e3, joules.len());
        let watt_hours = kilojoules / 3.6;
        let text =
            format!("{kilojoules:.1} kJ ({watt_hours:.1} Wh) of the machine's processors, while {count} runs ran");
        facts.push(("energy", time(text)));
    }
    Provenance { facts, runs: lines }
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// Returns the machine in words.
fn machine() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let memory =
        system::memory_bytes().map_or(String::new(), |bytes| format!(", {:.0} GiB", bytes as f64 / 2f64.powi(30)));
    let processor = system::processor().map_or(String::new(), |name| format!(", {name}"));
    format!("{} {}{processor}, {threads} threads{memory}", std::env::consts::OS, std::env::consts::ARCH)
}
