//! Arguments of the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::configs::ConfigsCommand;
use super::experiment::ExperimentArgs;
use super::prepare::PrepareArgs;
use super::recommend::RecommendArgs;
use super::serve::ServeArgs;
use crate::data::Split;
use crate::device::BackendChoice;
use crate::evaluate::Metric;
use crate::evaluate::statistics::PairedTest;
use crate::run::PromptSelection;
use crate::text::PromptChoice;

/// Tune a language model into a recommender.
#[derive(Parser)]
#[command(name = "itemlm", version)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// The whole pipeline on synthetic data: no download, no GPU
    Quickstart {
        /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s
        /// list
        #[arg(long, value_name = "BACKEND[:DEVICE]", default_value = "cpu")]
        backend: BackendChoice,
        /// Folder of its corpus, model and runs
        #[arg(long, default_value = "runs/quickstart")]
        out: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Raw data to a corpus
    Prepare(Box<PrepareArgs>),
    /// Train a run, or go on with it
    Train {
        #[command(flatten)]
        run: RunArgs,
        /// Do not compare a GPU's gradients with the CPU's before the first step
        #[arg(long)]
        trust_device: bool,
        /// Take a few steps, save nothing, and print where their time goes
        #[arg(long, conflicts_with_all = ["out", "resume", "max_steps", "ui", "trust_device"])]
        profile: bool,
        /// Train nothing, save nothing, and print what the run needs of memory
        #[arg(long, conflicts_with_all = ["out", "resume", "max_steps", "ui", "trust_device", "profile"])]
        plan: bool,
    },
    /// Phase 1 of ILM: train a Q-Former on items, their texts and pairs of items and users, or go
    /// on with it
    Align(RunArgs),
    /// Rank a split with a trained run, or write the texts of one that learnt rows of tasks
    Evaluate(EvaluateArgs),
    /// Train and evaluate a grid of runs; write their table, comparisons and report
    Experiment(ExperimentArgs),
    /// Write one self-contained HTML page on a run or an experiment
    Report {
        /// The directory of a run, or of an experiment
        dir: PathBuf,
        /// The HTML file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// The best items for one history, or for many users
    Recommend(RecommendArgs),
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
        /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s
        /// list
        #[arg(long, value_name = "BACKEND[:DEVICE]", default_value = "cpu")]
        backend: BackendChoice,
    },
    /// Serve a trained run, or a ranker without a language model, over HTTP
    Serve(ServeArgs),
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
        /// Number of windows to show, the first of test
        #[arg(long, default_value_t = 2)]
        examples: usize,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Collaborative vectors of items and users, learnt from the training windows
    Cf {
        /// als, bpr or sasrec
        name: String,
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
    /// Backends of this build, their devices and speed, and a numerics self-check of each against
    /// the CPU
    Doctor {
        /// Choose a run's kernels on --backend before it begins (feature tuned), and hold its first
        /// steps to the CPU's
        #[arg(long, value_name = "RUN.toml", requires = "backend")]
        warm: Option<PathBuf>,
        /// The device: wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of the list
        #[arg(long, value_name = "BACKEND[:DEVICE]", requires = "warm")]
        backend: Option<BackendChoice>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Paired comparison of evaluated runs on the same users: differences with 95 % bootstrap
    /// intervals, p by a randomisation test, and Holm's correction
    Compare {
        /// Two or more directories that `evaluate` or `baseline --out` has written to; every pair
        /// is compared
        #[arg(required = true, num_args = 2.., value_name = "RUN_DIR")]
        runs: Vec<PathBuf>,
        /// ndcg@K, hr@K or mrr@K
        #[arg(long, default_value = "ndcg@10")]
        metric: Metric,
        /// train, valid or test
        #[arg(long, default_value = "test")]
        split: Split,
        /// What gives p: randomisation (of signs over users) or wilcoxon (signed ranks)
        #[arg(long, default_value = "randomisation", value_name = "TEST")]
        test: PairedTest,
        /// Print one JSON document, an array
        #[arg(long)]
        json: bool,
    },
    /// The run files that come with the program, and checks of one's own
    Configs {
        #[command(subcommand)]
        action: ConfigsCommand,
    },
    /// Print the completions of a shell, to be sourced or put where it looks for them
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// A ranker without a language model, on the same split
    Baseline {
        /// popularity, markov, cooccurrence, text, als, bpr or sasrec; joined by + they are a
        /// mixture
        name: String,
        /// The corpus directory
        corpus: PathBuf,
        /// train, valid or test
        #[arg(long, default_value = "test")]
        split: Split,
        /// The first so many windows
        #[arg(long, value_parser = positive)]
        limit: Option<usize>,
        /// Further k of the metrics, beside 1, 5 and 10
        #[arg(long, value_name = "K[,K…]", value_delimiter = ',')]
        at: Vec<u32>,
        /// Write the files that `evaluate` writes into a run directory here, for `compare`
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Write the lists and targets here for trec_eval and ranx, run-<split>.txt and
        /// qrels-<split>.txt
        #[arg(long, value_name = "DIR")]
        trec: Option<PathBuf>,
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

/// Arguments of `itemlm evaluate`.
#[derive(Args)]
pub(super) struct EvaluateArgs {
    /// The run directory
    pub(super) run: PathBuf,
    /// train, valid or test
    #[arg(long, default_value = "test")]
    pub(super) split: Split,
    /// Beams, and items returned
    #[arg(long, value_parser = positive)]
    pub(super) beams: Option<usize>,
    /// Number of windows to rank, the first of the split; of rows, the tasks taking turns
    #[arg(long, value_parser = positive)]
    pub(super) limit: Option<usize>,
    /// masked: softmax over the trie's children; full: over the vocabulary, then masked
    #[arg(long, value_enum)]
    pub(super) scoring: Option<ScoringName>,
    /// Divide an item's log-probability by its tokens to this power
    #[arg(long)]
    pub(super) length_penalty: Option<f64>,
    #[command(flatten)]
    pub(super) choice: TaskArgs,
    /// Weight of the prior; of several, the best on --split valid is kept for the run
    #[arg(long, value_name = "X[,X…]", value_delimiter = ',')]
    pub(super) prior_weight: Vec<f64>,
    /// Fit the weights of prior and LLM to the windows of --split valid, and keep them for the run
    #[arg(long)]
    pub(super) fit_prior: bool,
    /// Do not compare a GPU's scores with the CPU's before ranking
    #[arg(long)]
    pub(super) trust_device: bool,
    /// Further k of the metrics, beside 1, 5 and 10; at most the number of beams
    #[arg(long, value_name = "K[,K…]", value_delimiter = ',')]
    pub(super) at: Vec<u32>,
    /// Write the lists and targets here for trec_eval and ranx, run-<split>.txt and
    /// qrels-<split>.txt
    #[arg(long, value_name = "DIR")]
    pub(super) trec: Option<PathBuf>,
    /// For texts: a BERT directory that compares them; models/minilm-l6 by default
    #[arg(long, value_name = "DIR")]
    pub(super) sentence_encoder: Option<PathBuf>,
    /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s
    /// list, cuda:0,1 to rank on two
    #[arg(long, value_name = "BACKEND[:DEVICE[,DEVICE…]]", default_value = "cpu")]
    pub(super) backend: BackendChoice,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Arguments of the commands that train.
#[derive(Args)]
pub(super) struct RunArgs {
    /// The run file
    pub(super) run: PathBuf,
    /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s
    /// list; train: cuda:0,1 for two
    #[arg(long, value_name = "BACKEND[:DEVICE[,DEVICE…]]", default_value = "cpu")]
    pub(super) backend: BackendChoice,
    /// The run directory; runs/<name of the run file> by default
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    /// Overrides the run file: key.path=value
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Go on from the last checkpoint
    #[arg(long)]
    pub(super) resume: bool,
    /// Stop after this many optimiser steps of the run (its schedule stays)
    #[arg(long)]
    pub(super) max_steps: Option<usize>,
    /// tui on a terminal, else plain; align has no tui
    #[arg(long, value_enum)]
    pub(super) ui: Option<UiName>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// The prompt to rank with, of a run with prompt sets.
#[derive(Args)]
pub(super) struct TaskArgs {
    /// A prompt set of the run (data.prompt_sets), the first by default; `evaluate` without --task
    /// and --prompt ranks with seen:0 and unseen of every set
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// A prompt of the set: one that the run was trained with, from seen:0, or unseen
    #[arg(long, value_name = "seen:N|unseen")]
    prompt: Option<PromptChoice>,
}

impl From<TaskArgs> for PromptSelection {
    fn from(arguments: TaskArgs) -> Self {
        Self { set: arguments.task, prompt: arguments.prompt }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum UiName {
    Tui,
    Plain,
    None,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum ScoringName {
    Masked,
    Full,
}

pub(super) fn positive(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "it must be a whole number of at least 1".to_string())
}
