//! The command line: parses, calls a recipe, prints what it returns.

mod doctor;
mod inspect;
mod plan;
mod prepare;
mod profile;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use burn::train::Interrupter;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::json;

use self::prepare::PrepareArgs;
use crate::backend::BackendChoice;
use crate::cf::Method;
use crate::config::{AlignConfig, RankerName, RunConfig, Scoring};
use crate::data::Split;
use crate::evaluate::{Group, Summary, TextQuality};
use crate::log::log;
use crate::recipes::{
    self, BaselineOptions, CfOptions, EvaluateOptions, InspectOptions, ScoreOptions, TaskChoice, TrainOptions,
};
use crate::text::PromptChoice;
use crate::train::Ui;
use crate::{Context, Error, Result};

/// Tune a language model into a recommender.
#[derive(Parser)]
#[command(name = "itemlm", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole pipeline on synthetic data: no download, no GPU
    Quickstart {
        /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s list
        #[arg(long, value_name = "BACKEND[:DEVICE]", default_value = "cpu")]
        backend: BackendChoice,
        /// Where its corpus, model and runs go
        #[arg(long, default_value = "runs/quickstart")]
        out: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Raw data to a corpus
    Prepare(PrepareArgs),
    /// Train a run, or go on with it
    Train {
        #[command(flatten)]
        run: RunArgs,
        /// Take a few steps, save nothing, and print where their time goes
        #[arg(long, conflicts_with_all = ["out", "resume", "max_steps", "ui"])]
        profile: bool,
        /// Train nothing, save nothing, and print what the run needs of memory
        #[arg(long, conflicts_with_all = ["out", "resume", "max_steps", "ui", "profile"])]
        plan: bool,
    },
    /// Phase 1 of ILM: train a Q-Former on items, their texts and pairs of items and users, or go on with it
    Align(RunArgs),
    /// Rank a split with a trained run, or write the texts of one that learnt rows of tasks
    Evaluate {
        /// The run directory
        run: PathBuf,
        /// train, valid or test
        #[arg(long, default_value = "test")]
        split: Split,
        /// Beams, and items returned
        #[arg(long, value_parser = positive)]
        beams: Option<usize>,
        /// The first so many windows; of rows so many, the tasks taking turns
        #[arg(long, value_parser = positive)]
        limit: Option<usize>,
        /// masked: softmax over the trie's children; full: over the vocabulary, then masked
        #[arg(long, value_enum)]
        scoring: Option<ScoringName>,
        /// Divide an item's log-probability by its tokens to this power
        #[arg(long)]
        length_penalty: Option<f64>,
        #[command(flatten)]
        choice: TaskArgs,
        /// Weight of the prior; of several, the best on --split valid is kept for the run
        #[arg(long, value_name = "X[,X…]", value_delimiter = ',')]
        prior_weight: Vec<f64>,
        /// For texts: a BERT directory that compares them; models/minilm-l6 by default
        #[arg(long, value_name = "DIR")]
        sentence_encoder: Option<PathBuf>,
        /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s list, cuda:0,1 to rank on two
        #[arg(long, value_name = "BACKEND[:DEVICE[,DEVICE…]]", default_value = "cpu")]
        backend: BackendChoice,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// The best items for one history
    Recommend {
        /// The run directory
        run: PathBuf,
        /// A title, oldest first; repeat it
        #[arg(long, value_name = "TITLE")]
        history: Vec<String>,
        /// A user of the corpus, for a run whose prompt has {user}
        #[arg(long, value_name = "ID")]
        user: Option<String>,
        #[command(flatten)]
        choice: TaskArgs,
        /// How many
        #[arg(short, default_value_t = 10, value_parser = positive)]
        k: usize,
        /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s list
        #[arg(long, value_name = "BACKEND[:DEVICE]", default_value = "cpu")]
        backend: BackendChoice,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Log-probabilities of item texts given prompts, as JSON lines
    Score {
        /// A Hugging Face directory or a .gguf file
        #[arg(long)]
        llm: PathBuf,
        /// A run directory whose tuned weights to use
        #[arg(long, value_name = "RUN_DIR")]
        adapter: Option<PathBuf>,
        /// One item text a line
        #[arg(long)]
        catalogue: PathBuf,
        /// Lines of {"prompt": …, "items": […]}
        #[arg(long)]
        input: PathBuf,
        /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s list
        #[arg(long, value_name = "BACKEND[:DEVICE]", default_value = "cpu")]
        backend: BackendChoice,
    },
    /// Write a trained run's model, its adapter merged, as a Hugging Face directory
    Merge {
        /// The run directory
        run: PathBuf,
        /// The directory to make
        #[arg(long)]
        out: PathBuf,
    },
    /// Statistics, histograms and example windows of a corpus
    Inspect {
        /// The corpus directory
        corpus: PathBuf,
        /// Show the examples token by token: a Hugging Face directory or a .gguf file
        #[arg(long)]
        llm: Option<PathBuf>,
        /// As data.prompt of a run file: an embedded prompt template or a file with {history}
        #[arg(long)]
        prompt: Option<String>,
        /// How many windows to show, the first of test
        #[arg(long, default_value_t = 2)]
        examples: usize,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Collaborative vectors of items and users, learnt from the training windows
    Cf {
        /// als, bpr or sasrec
        name: Method,
        /// The corpus directory
        corpus: PathBuf,
        /// The safetensors file; the ids go beside it, to FILE.items.parquet and FILE.users.parquet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Another value of a setting
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Where to train bpr and sasrec
        #[arg(long, value_name = "BACKEND[:DEVICE]", default_value = "cpu")]
        backend: BackendChoice,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Backends of this build, their devices and speed, and a numerics self-check of each against the CPU
    Doctor {
        /// Choose a run's kernels on --backend before it begins (feature tuned), and hold its first steps to the CPU's
        #[arg(long, value_name = "RUN.toml", requires = "backend")]
        warm: Option<PathBuf>,
        /// Where to: wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of the list
        #[arg(long, value_name = "BACKEND[:DEVICE]", requires = "warm")]
        backend: Option<BackendChoice>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// A ranker without a language model, on the same split
    Baseline {
        /// popularity, markov, cooccurrence, als, bpr or sasrec
        name: RankerName,
        /// The corpus directory
        corpus: PathBuf,
        /// train, valid or test
        #[arg(long, default_value = "test")]
        split: Split,
        /// The first so many windows
        #[arg(long, value_parser = positive)]
        limit: Option<usize>,
        /// als, bpr, sasrec: another value of a setting
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// bpr, sasrec: where to train
        #[arg(long, value_name = "BACKEND[:DEVICE]", default_value = "cpu")]
        backend: BackendChoice,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
}

/// What the commands that train take.
#[derive(Args)]
struct RunArgs {
    /// The run file
    run: PathBuf,
    /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s list; train: cuda:0,1 for two
    #[arg(long, value_name = "BACKEND[:DEVICE[,DEVICE…]]", default_value = "cpu")]
    backend: BackendChoice,
    /// The run directory; runs/<name of the run file> by default
    #[arg(long)]
    out: Option<PathBuf>,
    /// Overrides the run file: key.path=value
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on from the last checkpoint
    #[arg(long)]
    resume: bool,
    /// Stop after this many optimiser steps of the run (its schedule stays)
    #[arg(long)]
    max_steps: Option<usize>,
    /// tui on a terminal, else plain; align has no tui
    #[arg(long, value_enum)]
    ui: Option<UiName>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What ranks of a run with tasks.
#[derive(Args)]
struct TaskArgs {
    /// One of the run's data.tasks; `evaluate` without --task and --prompt ranks seen:0 and unseen of all
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Its prompt: one it was trained with, from seen:0, or unseen
    #[arg(long, value_name = "seen:N|unseen")]
    prompt: Option<PromptChoice>,
}

impl From<TaskArgs> for TaskChoice {
    fn from(arguments: TaskArgs) -> Self {
        Self { task: arguments.task, prompt: arguments.prompt }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum UiName {
    Tui,
    Plain,
    None,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScoringName {
    Masked,
    Full,
}

fn positive(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "it must be a whole number of at least 1".to_string())
}

/// Runs the command line; the exit code.
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
            log(format_args!("error: {error}"));
            error.exit_code()
        }
    }
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Self::Quickstart { backend, out, json } => {
                let report = recipes::quickstart(&out, backend, &mut |line| log(line))?;
                if json { print_json(&report) } else { print(&quickstart_text(&report)) }
            }
            Self::Prepare(arguments) => arguments.run(),
            Self::Train { run: RunArgs { run, backend, set, json, .. }, profile: true, .. } => {
                let config = RunConfig::open(&run, &set)?;
                let report = recipes::profile(&config, backend, stop_on_signal(Ui::None)?)?;
                if json { print_json(&report) } else { print(&profile::text(&report)) }
            }
            Self::Train { run: RunArgs { run, backend, set, json, .. }, plan: true, .. } => {
                let report = recipes::plan(&RunConfig::open(&run, &set)?, backend)?;
                if json { print_json(&report) } else { print(&plan::text(&report)) }
            }
            Self::Train { run: RunArgs { run, backend, out, set, resume, max_steps, ui, json }, .. } => {
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
                let options = TrainOptions { out, backend, resume, max_steps, ui, interrupter: stop_on_signal(ui)? };
                let report = recipes::train(&config, options)?;
                if json {
                    return print_json(&report);
                }
                print(&format!(
                    "{}: {} of {} steps, {} samples, loss {} → {}, temperature {:.3}, {:.2} samples/s, {} MiB at most\n",
                    report.run.display(),
                    report.steps,
                    report.total_steps,
                    report.samples,
                    number(report.loss.first),
                    number(report.loss.last),
                    report.temperature,
                    report.samples_per_second,
                    report.peak_memory_bytes >> 20
                ))
            }
            Self::Align(RunArgs { run, backend, out, set, resume, max_steps, ui, json }) => {
                let config = AlignConfig::open(&run, &set)?;
                let out = out.unwrap_or_else(|| run_directory(&run));
                let ui = match ui {
                    Some(UiName::Tui) => return Err(Error::usage("--ui tui: align has no dashboard; use --ui plain")),
                    Some(UiName::None) => Ui::None,
                    Some(UiName::Plain) | None => Ui::Plain,
                };
                let options = TrainOptions { out, backend, resume, max_steps, ui, interrupter: stop_on_signal(ui)? };
                let report = recipes::align(&config, options)?;
                if json {
                    return print_json(&report);
                }
                let recall = report.retrieval.map_or("-".to_string(), |r| {
                    format!("text→item {:.4}, item→text {:.4} of {}", r.text_to_item.at_10, r.item_to_text.at_10, r.items)
                });
                print(&format!(
                    "{}: {} of {} steps, loss {} → {}, temperature {:.3}, recall@10 {recall}, {:.1} samples/s, {} MiB at most\n",
                    report.run.display(),
                    report.steps,
                    report.total_steps,
                    number(report.loss.first),
                    number(report.loss.last),
                    report.temperature,
                    report.samples_per_second,
                    report.peak_memory_bytes >> 20
                ))
            }
            Self::Evaluate {
                run,
                split,
                beams,
                limit,
                scoring,
                length_penalty,
                choice,
                prior_weight,
                sentence_encoder,
                backend,
                json,
            } => {
                let scoring = scoring.map(|name| match name {
                    ScoringName::Masked => Scoring::Masked,
                    ScoringName::Full => Scoring::Full,
                });
                let progress = std::io::stderr().is_terminal();
                let options = EvaluateOptions {
                    split,
                    beams,
                    limit,
                    scoring,
                    length_penalty,
                    choice: choice.into(),
                    prior_weights: prior_weight,
                    sentence_encoder,
                    backend,
                    progress,
                };
                if recipes::writes_texts(&run)? {
                    let evaluation = recipes::evaluate_texts(&run, &options)?;
                    return if json { print_json(&evaluation) } else { print(&texts_table(&evaluation)) };
                }
                let then = || "while the windows were ranked: lower --beams, or rank with --backend cpu".to_string();
                let evaluation = recipes::within_memory(&options.backend, then, || recipes::evaluate(&run, &options))?;
                if json {
                    return print_json(&evaluation);
                }
                let mut rows = vec![(run.display().to_string(), &evaluation.summary)];
                if let (Some(task), Some(prompt)) = (&evaluation.task, evaluation.prompt) {
                    rows[0].0 = format!("{task}, {prompt}");
                }
                rows.extend(evaluation.tasks.iter().skip(1).map(|t| (format!("{}, {}", t.task, t.prompt), &t.summary)));
                let rows: Vec<(&str, &Summary)> = rows.iter().map(|(name, summary)| (name.as_str(), *summary)).collect();
                print(&format!("{}{}\n{:.2} users/s\n", table(&rows), prior_text(&evaluation), evaluation.users_per_second))
            }
            Self::Recommend { run, history, user, choice, k, backend, json } => {
                let items = recipes::recommend(&run, &history, user.as_deref(), &choice.into(), k, backend)?;
                if json {
                    return print_json(&json!({ "items": items }));
                }
                let line = |i: &recipes::Recommendation| format!("{:>3}  {:>9.4}  {}\n", i.rank, i.log_prob, i.title);
                print(&items.iter().map(line).collect::<String>())
            }
            Self::Score { llm, adapter, catalogue, input, backend } => {
                recipes::score(&ScoreOptions { llm, adapter, catalogue, input, backend }, &mut std::io::stdout().lock())
            }
            Self::Merge { run, out } => recipes::merge(&run, &out),
            Self::Inspect { corpus, llm, prompt, examples, json } => {
                let report = recipes::inspect(&corpus, &InspectOptions { llm, prompt, examples })?;
                if json { print_json(&report) } else { print(&inspect::text(&report)) }
            }
            Self::Cf { name, corpus, out, set, backend, json } => {
                let options = CfOptions { method: name, set, backend };
                let report = recipes::cf(&corpus, &out, &options, &mut |line| log(line))?;
                if json {
                    return print_json(&report);
                }
                print(&format!(
                    "{}: {} items and {} users, {} numbers each; {:.0} s, loss {:.4}, valid NDCG@10 {}\n",
                    report.out.display(),
                    report.items,
                    report.users,
                    report.dim,
                    report.seconds,
                    report.loss,
                    number(report.valid_ndcg_at_10)
                ))
            }
            Self::Doctor { warm: Some(run), backend: Some(backend), json } => {
                let report = recipes::warm(&RunConfig::open(&run, &[])?, backend, stop_on_signal(Ui::None)?)?;
                if json {
                    print_json(&report)?
                } else {
                    print(&doctor::warmed(&report))?
                }
                report.verdict()
            }
            Self::Doctor { json, .. } => {
                let report = recipes::doctor()?;
                if json {
                    print_json(&report)?
                } else {
                    print(&doctor::text(&report))?
                }
                report.verdict()
            }
            Self::Baseline { name, corpus, split, limit, set, backend, json } => {
                let options = BaselineOptions { split, limit, set, backend };
                let report = recipes::baseline(&corpus, name, &options, &mut |line| log(line))?;
                if json { print_json(&report) } else { print(&table(&[(name.to_string().as_str(), &report.summary)])) }
            }
        }
    }
}

/// `runs/<name of the run file>`
fn run_directory(run: &Path) -> PathBuf {
    Path::new("runs").join(run.file_stem().unwrap_or(run.as_os_str()))
}

/// The first signal lets the step at hand end and a checkpoint be written; the second ends the process.
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

fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string(value).context("JSON")?))
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("stdout")
}

/// Four digits, or a dash where no step ran.
fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |v| format!("{v:.4}"))
}

fn quickstart_text(report: &recipes::QuickstartReport) -> String {
    let rows: Vec<(&str, &Summary)> = report.results.iter().map(|r| (r.name.as_str(), &r.summary)).collect();
    let mut text = format!("\nSYNTHETIC data, {} test windows. {}\n", report.windows, table(&rows));
    for example in &report.examples {
        text += &format!("\n{} read: {}\n  then: {}\n", example.user, example.history.join(" · "), example.target);
        for (place, title) in example.top.iter().enumerate() {
            text += &format!("  {}. {title}{}\n", place + 1, if *title == example.target { "  <- this" } else { "" });
        }
    }
    let runs: Vec<String> = report.runs.iter().map(|r| r.display().to_string()).collect();
    text += &format!("\nRun directories: {} ({:.0} s in all)\n", runs.join(", "), report.seconds);
    text
}

/// The prior that ranked, and how its weight was chosen.
fn prior_text(evaluation: &recipes::Evaluation) -> String {
    let Some(prior) = &evaluation.prior else { return String::new() };
    let mut text = format!("prior: {}, weight {}", prior.ranker, prior.weight);
    if !evaluation.tried.is_empty() {
        let tried = evaluation.tried.iter().map(|t| format!("{:.4} at {}", t.ndcg_at_10, t.weight)).collect::<Vec<_>>();
        text += &format!(", kept for the run: NDCG@10 on valid is {}", tried.join(", "));
    }
    text + "\n"
}

/// Log-perplexity and semantic consistency, task by task.
fn texts_table(evaluation: &recipes::TextEvaluation) -> String {
    let (tasks, mean) = (&evaluation.summary.tasks, &evaluation.summary.mean);
    let rows = tasks.iter().map(|(name, quality)| (name.as_str(), quality)).chain(mean.iter().map(|mean| ("mean", mean)));
    let line = |(name, quality): (&str, &TextQuality)| {
        let (rows, perplexity) = (quality.rows, quality.log_perplexity);
        format!("{name:25}  {rows:>6}  {perplexity:>14.4}  {:>20}\n", number(quality.semantic_consistency))
    };
    let header = format!("{:25}  {:>6}  {:>14}  {:>20}\n", "task", "rows", "log-perplexity", "semantic consistency");
    format!("{header}{}{:.2} rows/s\n", rows.map(line).collect::<String>(), evaluation.rows_per_second)
}

/// NDCG and HR with 95 % intervals; cold and warm NDCG@10 beside.
fn table(rows: &[(&str, &Summary)]) -> String {
    let cell = |group: &Group, metric: &str| match (group.metric(metric), group.intervals.get(metric)) {
        (Some(value), Some([low, high])) => format!("{value:.4} [{low:.4}, {high:.4}]"),
        _ => "-".to_string(),
    };
    let plain = |group: &Group| group.metric("ndcg@10").map_or("-".to_string(), |v| format!("{v:.4}"));
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = format!(
        "95 % bootstrap intervals in brackets.\n{:width$}  {:24}  {:24}  {:24}  {:>8}  {:>8}\n",
        "", "NDCG@5", "NDCG@10", "HR@10", "cold N10", "warm N10"
    );
    for (name, summary) in rows {
        text += &format!(
            "{name:width$}  {:24}  {:24}  {:24}  {:>8}  {:>8}\n",
            cell(&summary.all, "ndcg@5"),
            cell(&summary.all, "ndcg@10"),
            cell(&summary.all, "hr@10"),
            plain(&summary.cold),
            plain(&summary.warm)
        );
    }
    text
}
