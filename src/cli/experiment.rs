//! `itemlm experiment` and its results as text.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{run_directory, show, stop_on_signal};
use crate::commands;
use crate::device::BackendChoice;
use crate::experiment::{ExperimentReport, GridOptions, Row, Status};
use crate::train::Ui;
use crate::{Error, Result};

/// Arguments of `itemlm experiment`.
#[derive(Args)]
pub(super) struct ExperimentArgs {
    /// The experiment file
    file: PathBuf,
    /// The directory of its runs, tables and report; runs/<name of the file> by default
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on with runs that were begun
    #[arg(long)]
    resume: bool,
    /// Devices, one run at a time on each: cuda:0,cuda:1, cuda:0,1 or wgpu; cpu,cpu for two runs
    /// beside one another
    #[arg(long, value_name = "BACKEND[:DEVICE],…", value_delimiter = ',', default_value = "cpu")]
    devices: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl ExperimentArgs {
    pub(super) fn run(self) -> Result<()> {
        let devices = devices(&self.devices)?;
        let out = self.out.unwrap_or_else(|| run_directory(&self.file));
        let interrupter = stop_on_signal(Ui::Plain)?;
        let options = GridOptions { out: out.clone(), resume: self.resume, devices, interrupter };
        let report = commands::experiment(&self.file, options)?;
        show(self.json, &report, |report| text(&out, report))?;
        let failures = report.failures();
        match failures.first() {
            None => Ok(()),
            Some((_, run)) => Err(Error::failed(format!(
                "{} of the runs failed; {}: {}; the others are in {}",
                failures.len(),
                out.join(&run.dir).display(),
                run.why.as_deref().unwrap_or("no reason is known"),
                out.join("results.md").display()
            ))),
        }
    }
}

/// Returns a value of `--backend` for each device; an index alone is of the backend before it.
fn devices(list: &[String]) -> Result<Vec<String>> {
    let mut devices: Vec<String> = Vec::new();
    let mut backend = None;
    for part in list.iter().map(|part| part.trim()) {
        let name = part.split(':').next().unwrap_or_default();
        let device = match name.parse::<BackendChoice>() {
            Ok(_) => {
                backend = Some(name.to_string());
                part.to_string()
            }
            Err(error) => match &backend {
                Some(backend) if backend != "cpu" && !part.contains(':') => format!("{backend}:{part}"),
                _ => return Err(Error::usage(format!("option `devices` {part}: {error}"))),
            },
        };
        let choice: BackendChoice =
            device.parse().map_err(|error| Error::usage(format!("option `devices` {part}: {error}")))?;
        if !choice.name.is_compiled() {
            // The refusal of a build without the backend says how to get one.
            choice.devices()?;
        }
        if choice.name != crate::device::BackendName::Cpu && devices.contains(&device) {
            return Err(Error::usage(format!("option `devices`: {device} is there twice")));
        }
        devices.push(device);
    }
    Ok(devices)
}

/// A line a row, and where the files are.
fn text(out: &Path, report: &ExperimentReport) -> String {
    let width = report.rows().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let value = |row: &Row, metric: &str| match row.metrics.get(metric) {
        Some(found) => format!("{:.4} [{:.4}, {:.4}]", found.mean, found.low, found.high),
        None => "-".into(),
    };
    let mut text = format!("{:width$}  {:24}  {:24}  runs\n", "", "NDCG@10", "HR@10");
    for row in report.rows() {
        let done = row.runs.iter().filter(|run| run.status == Status::Done).count();
        let [ndcg, hr] = ["ndcg@10", "hr@10"].map(|metric| value(row, metric));
        text += &format!("{:width$}  {ndcg:24}  {hr:24}  {done} of {}\n", row.name, row.runs.len());
    }
    let open = report.open_runs();
    if open > 0 {
        text += &format!("stopped: {open} runs are not finished; go on with --resume\n");
    }
    text + &format!("{}\n", out.join(commands::PAGE).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_list() {
        let parse = |list: &str| devices(&list.split(',').map(String::from).collect::<Vec<_>>());
        assert_eq!(parse("cpu").unwrap(), ["cpu"]);
        assert_eq!(parse("cpu,cpu").unwrap(), ["cpu", "cpu"]);
        if crate::device::BackendName::Wgpu.is_compiled() {
            assert_eq!(parse("wgpu:0,1, cpu").unwrap(), ["wgpu:0", "wgpu:1", "cpu"]);
            assert!(parse("wgpu:0,0").unwrap_err().to_string().contains("twice"));
        }
        for wrong in ["", "gpu", "1", "cpu,1", "cpu:0", "cuda:,"] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }
}
