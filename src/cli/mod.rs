//! The command line: parses the arguments, calls a command, prints its report.

mod arguments;
mod compare;
mod configs;
mod doctor;
mod experiment;
mod flags;
mod inspect;
mod plan;
mod prepare;
mod profile;
mod recommend;
mod serve;
mod text;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use burn::train::Interrupter;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use serde::Serialize;

use self::arguments::{Cli, Command, EvaluateArgs, RunArgs, ScoringName, UiName};
use crate::commands;
use crate::commands::{BaselineOptions, CfOptions, EvaluateOptions, EvaluateReport, InspectOptions, ScoreOptions};
use crate::config::{AlignConfig, RunConfig, Scoring};
use crate::core::log::log;
use crate::evaluate::CompareOptions;
use crate::run::TrainOptions;
use crate::train::Ui;
use crate::{Context, Error, Result};

/// Returns the command line as clap describes it, for the generated reference in `docs/`.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line; returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let command = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return 0;
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            log("error: no command; try itemlm quickstart, or see itemlm --help");
            return 2;
        }
        Err(error) => {
            let text = error.to_string();
            let message: Vec<&str> = text.split("\n\n").next().unwrap_or(&text).split_whitespace().collect();
            let message = message.join(" ");
            let message = message.strip_prefix("error: ").unwrap_or(&message);
            log(format_args!("error: {message}; see itemlm --help"));
            return 2;
        }
    };
    match command.run() {
        Ok(()) => 0,
        Err(error) => {
            log(format_args!("error: {}", flags::with_flags(&error.to_string())));
            error.exit_code()
        }
    }
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Self::Quickstart { backend, out, json } => {
                let report = commands::quickstart(&out, backend, &mut |line| log(line))?;
                show(json, &report, text::quickstart)
            }
            Self::Prepare(arguments) => arguments.run(),
            Self::Train { run: RunArgs { run, backend, set, json, .. }, profile: true, .. } => {
                let config = RunConfig::open(&run, &set)?;
                let report = commands::profile(&config, backend, stop_on_signal(Ui::None)?)?;
                show(json, &report, profile::text)
            }
            Self::Train { run: RunArgs { run, backend, set, json, .. }, plan: true, .. } => {
                let report = commands::plan(&RunConfig::open(&run, &set)?, backend)?;
                show(json, &report, plan::text)
            }
            Self::Train { run, trust_device, .. } => run.train(trust_device),
            Self::Align(run) => run.align(),
            Self::Evaluate(arguments) => arguments.run(),
            Self::Experiment(arguments) => arguments.run(),
            Self::Report { dir, out } => commands::report(&dir, &out),
            Self::Recommend(arguments) => arguments.run(),
            Self::Score { llm, adapter, catalogue, input, backend } => commands::score(
                &ScoreOptions { llm, adapter, catalogue, input, backend },
                &mut std::io::stdout().lock(),
            ),
            Self::Serve(arguments) => arguments.run(),
            Self::Merge { run, out } => commands::merge(&run, &out),
            Self::Inspect { corpus, llm, prompt, examples, json } => {
                let report = commands::inspect(&corpus, &InspectOptions { llm, prompt, examples })?;
                show(json, &report, inspect::text)
            }
            Self::Cf { name, corpus, out, set, backend, json } => {
                let options = CfOptions { set, backend };
                let report = commands::cf(&name, &corpus, &out, &options, &mut |line| log(line))?;
                show(json, &report, text::vectors)
            }
            Self::Doctor { warm: Some(run), backend: Some(backend), json } => {
                let report = commands::warm(&RunConfig::open(&run, &[])?, backend, stop_on_signal(Ui::None)?)?;
                show(json, &report, doctor::warm_report)?;
                report.verdict()
            }
            Self::Doctor { json, .. } => {
                let report = commands::doctor()?;
                show(json, &report, doctor::text)?;
                report.verdict()
            }
            Self::Configs { action } => action.run(),
            Self::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut command(), "itemlm", &mut script);
                print(&String::from_utf8_lossy(&script))
            }
            Self::Compare { runs, metric, split, test, json } => {
                let options = CompareOptions { metric, test, ..CompareOptions::default() };
                let comparisons = commands::compare(&runs, split, &options, &mut |line| log(line))?;
                show(json, &comparisons, |comparisons| compare::text(comparisons))
            }
            Self::Baseline { name, corpus, split, limit, at, out, trec, set, backend, json } => {
                let options = BaselineOptions { split, limit, at, out, trec, set, backend };
                let report = commands::baseline(&corpus, &name, &options, &mut |line| log(line))?;
                show(json, &report, |report| text::table(&[(name.as_str(), &report.summary)]))
            }
        }
    }
}

impl RunArgs {
    fn train(self, trust_device: bool) -> Result<()> {
        let Self { run, backend, out, set, resume, max_steps, ui, json } = self;
        let config = RunConfig::open(&run, &set)?;
        let out = out.unwrap_or_else(|| run_directory(&run));
        let ui = match ui {
            Some(UiName::Tui) if !std::io::stdout().is_terminal() => {
                return Err(Error::usage("--ui tui needs a terminal on stdout; use --ui plain"));
            }
            Some(UiName::Tui) => Ui::Tui,
            Some(UiName::Plain) => Ui::Plain,
            Some(UiName::None) => Ui::None,
            None if std::io::stdout().is_terminal() && !json => Ui::Tui,
            None => Ui::Plain,
        };
        let interrupter = stop_on_signal(ui)?;
        let options = TrainOptions { out, backend, resume, max_steps, ui, interrupter, trust_device };
        show(json, &commands::train(&config, options)?, text::train_report)
    }

    fn align(self) -> Result<()> {
        let Self { run, backend, out, set, resume, max_steps, ui, json } = self;
        let config = AlignConfig::open(&run, &set)?;
        let out = out.unwrap_or_else(|| run_directory(&run));
        let ui = match ui {
            Some(UiName::Tui) => return Err(Error::usage("--ui tui: align has no dashboard; use --ui plain")),
            Some(UiName::None) => Ui::None,
            Some(UiName::Plain) | None => Ui::Plain,
        };
        let interrupter = stop_on_signal(ui)?;
        let options = TrainOptions { out, backend, resume, max_steps, ui, interrupter, trust_device: true };
        show(json, &commands::align(&config, options)?, text::align_report)
    }
}

impl EvaluateArgs {
    fn run(self) -> Result<()> {
        let scoring = self.scoring.map(|name| match name {
            ScoringName::Masked => Scoring::Masked,
            ScoringName::Full => Scoring::Full,
        });
        let options = EvaluateOptions {
            split: self.split,
            beams: self.beams,
            limit: self.limit,
            scoring,
            length_penalty: self.length_penalty,
            choice: self.choice.into(),
            prior_weights: self.prior_weight,
            fit_prior: self.fit_prior,
            trust_device: self.trust_device,
            at: self.at,
            trec: self.trec,
            sentence_encoder: self.sentence_encoder,
            backend: self.backend,
            progress: true,
        };
        show(self.json, &commands::evaluate(&self.run, &options)?, |report| match report {
            EvaluateReport::Items(evaluation) => text::evaluation(&self.run, evaluation),
            EvaluateReport::Texts(evaluation) => text::texts(evaluation),
        })
    }
}

/// Returns `runs/<name of the run file>`.
fn run_directory(run: &Path) -> PathBuf {
    Path::new("runs").join(run.file_stem().unwrap_or(run.as_os_str()))
}

/// Makes the first signal end training after the current step, with a checkpoint; the second ends
/// the process.
fn stop_on_signal(ui: Ui) -> Result<Interrupter> {
    let interrupter = Interrupter::new();
    let stop = interrupter.clone();
    ctrlc::set_handler(move || {
        if stop.should_stop() {
            crate::train::restore_terminal(ui);
            log("error: stopped at once by a second signal; go on from the last checkpoint with --resume");
            std::process::exit(1);
        }
        stop.stop(Some("signal"));
        if ui == Ui::Plain {
            log("stopping after this step, with a checkpoint; once more to stop at once");
        }
    })
    .context("signal handler")?;
    Ok(interrupter)
}

/// Prints one JSON document, or a text for people.
fn show<T: Serialize>(json: bool, report: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    if json { print_json(report) } else { print(&text(report)) }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string(value).context("JSON")?))
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("stdout")
}
