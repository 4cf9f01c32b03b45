//! The report: one HTML page of an experiment or of a single run, that needs nothing beside itself.

mod curves;
mod examples;
mod page;
mod plots;
mod provenance;
mod svg;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::data::Split;
use crate::experiment::{ExperimentReport, RESULTS, RunFiles, run_report};
use crate::run::dir;
use crate::{Error, Result};

/// Returns the report on a directory: an experiment's, or a run's.
///
/// # Errors
/// A usage error for any other directory; files of it that cannot be read.
pub fn report_page(root: &Path) -> Result<String> {
    if root.join(RESULTS).is_file() {
        return experiment_page(root, &ExperimentReport::open(root)?);
    }
    if !dir::is_run(root) {
        return Err(Error::usage(format!(
            "{}: neither an experiment (it holds no {RESULTS}) nor a run directory (no {})",
            root.display(),
            dir::CONFIG
        )));
    }
    let evaluated = |split: &Split| root.join(crate::run::evaluation_file(*split)).is_file();
    let split = [Split::Test, Split::Valid, Split::Train].into_iter().find(evaluated);
    let name = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    let name = name.file_name().map_or_else(|| root.display().to_string(), |name| name.to_string_lossy().into_owned());
    let files = RunFiles { name: name.clone(), dir: PathBuf::new(), is_baseline: false };
    let report = run_report(root, &[files], split.unwrap_or(Split::Test), split.is_some())?;
    let lead = match split {
        Some(_) => String::new(),
        None => "This run has not been evaluated yet: run `itemlm evaluate` on it.".into(),
    };
    html(root, &report, format!("Run {name}"), lead)
}

/// Returns the report on an experiment in `root`.
///
/// # Errors
/// Files of the experiment that cannot be read.
pub fn experiment_page(root: &Path, report: &ExperimentReport) -> Result<String> {
    let name = report.run.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let (failed, open) = (report.failures().len(), report.open_runs());
    let mut lead = String::new();
    if failed > 0 {
        lead += &format!("{failed} runs failed; their rows say why. ");
    }
    if open > 0 {
        lead += &format!("{open} runs are not finished.");
    }
    html(root, report, format!("Experiment: {name}"), lead.trim().into())
}

/// Returns the report on several runs and baselines in `root`.
///
/// # Errors
/// Files of theirs that cannot be read.
pub fn runs_page(root: &Path, runs: &[RunFiles], split: Split, title: &str, lead: &str) -> Result<String> {
    html(root, &run_report(root, runs, split, true)?, title.into(), lead.into())
}

fn html(root: &Path, report: &ExperimentReport, title: String, lead: String) -> Result<String> {
    page::Page {
        title,
        lead,
        report,
        losses: curves::losses(root, report),
        against: curves::against(report),
        users: examples::example_users(root, report)?,
        provenance: provenance::provenance(root, report),
    }
    .html()
}
