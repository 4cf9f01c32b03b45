//! `itemlm recommend`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::arguments::{TaskArgs, positive};
use super::{print, print_json, show, text};
use crate::commands::{self, BulkOptions, RecommendOptions};
use crate::core::log::log;
use crate::device::BackendChoice;
use crate::run::{BulkUsers, Recommendations};
use crate::{Error, Result};

/// Arguments of `itemlm recommend`.
#[derive(Args)]
pub(super) struct RecommendArgs {
    /// The run directory
    run: PathBuf,
    /// A title, oldest first; repeat it
    #[arg(long, value_name = "TITLE")]
    history: Vec<String>,
    /// A user of the corpus, for a run whose prompt shows the user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    #[command(flatten)]
    choice: TaskArgs,
    /// How many
    #[arg(short, default_value_t = 10, value_parser = positive)]
    k: usize,
    /// Many users: a .jsonl or .parquet file with user and history, a list of item ids, oldest
    /// first
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with_all = ["history", "user", "users"])]
    input: Option<PathBuf>,
    /// Many users: those of the corpus, after all of their interactions
    #[arg(long, value_enum, requires = "out", conflicts_with_all = ["history", "user"])]
    users: Option<UsersName>,
    /// Of many users: the Parquet file to write, with user, rank, item, title and score; a call
    /// that was interrupted goes on where it stopped
    #[arg(long, value_name = "FILE.parquet", conflicts_with_all = ["history", "user"])]
    out: Option<PathBuf>,
    /// Where to run: cpu, wgpu or cuda; wgpu:DEVICE or cuda:DEVICE for one of `itemlm doctor`'s
    /// list, cuda:0,1 to answer many users on two
    #[arg(long, value_name = "BACKEND[:DEVICE[,DEVICE…]]", default_value = "cpu")]
    backend: BackendChoice,
    /// Do not compare a GPU's scores with the CPU's before the first answer
    #[arg(long)]
    trust_device: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum UsersName {
    All,
}

impl RecommendArgs {
    pub(super) fn run(self) -> Result<()> {
        let Self { run, history, user, choice, k, input, users, out, backend, trust_device, json } = self;
        let prompt = choice.into();
        let many = input.map(BulkUsers::File).or(users.map(|UsersName::All| BulkUsers::All));
        match (many, out) {
            (Some(users), Some(out)) => {
                let report =
                    commands::recommend_users(BulkOptions { run, users, prompt, k, out, backend, trust_device })?;
                show(json, &report, text::bulk)
            }
            (None, None) => {
                let options = RecommendOptions { run, history, user, prompt, k, backend, trust_device };
                let Recommendations { items, notes } = commands::recommend(options)?;
                notes.iter().for_each(|note| log(format_args!("note: {note}")));
                match json {
                    true => print_json(&json!({ "items": items })),
                    false => print(&text::recommendations(&items)),
                }
            }
            (_, _) => Err(Error::usage("--out is for many users: name them by --input FILE or --users all")),
        }
    }
}
