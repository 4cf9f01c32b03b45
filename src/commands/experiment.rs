//! `itemlm experiment FILE`

use std::path::Path;

use crate::Result;
use crate::core::files::write_atomic;
use crate::experiment::{ExperimentConfig, ExperimentReport, Grid, GridOptions};
use crate::report::experiment_page;

/// The page in an experiment's directory.
pub const PAGE: &str = "report.html";

/// Trains and evaluates all runs of an experiment file that are not done yet; writes the tables,
/// `experiment.json` and the report.
///
/// # Errors
/// Those of [`ExperimentConfig::open`], [`Grid::open`] and [`Grid::run`]. A run that fails is no
/// error: [`ExperimentReport::failures`] has it.
pub fn experiment(file: &Path, options: GridOptions) -> Result<ExperimentReport> {
    let config = ExperimentConfig::open(file)?;
    let out = options.out.clone();
    let report = Grid::open(config, options)?.run()?;
    write_atomic(&out.join(PAGE), experiment_page(&out, &report)?.as_bytes())?;
    Ok(report)
}
