//! `itemlm configs` and `itemlm completions`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{print, print_json};
use crate::Result;
use crate::commands::{check_config, shipped_config};
use crate::config::{RunFileKind, SHIPPED, run_file_schema};
use crate::core::log::log;

#[derive(Subcommand)]
pub(super) enum ConfigsCommand {
    /// The run files and data sets that come with the program
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Print a shipped file, with a comment on every line
    Show {
        /// A name of `configs list`
        name: String,
    },
    /// Check a run file; all its errors at once
    Check {
        /// A file of train, align or prepare
        file: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON schema of run files, for editors
    Schema {
        /// The command that takes the file
        #[arg(value_enum, default_value = "train")]
        kind: SchemaKind,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum SchemaKind {
    Train,
    Align,
}

impl ConfigsCommand {
    pub(super) fn run(self) -> Result<()> {
        match self {
            Self::List { json: true } => {
                let all = SHIPPED.iter().map(|shipped| json!({ "name": shipped.name, "about": shipped.summary() }));
                print_json(&all.collect::<Vec<Value>>())
            }
            Self::List { json: false } => {
                let width = SHIPPED.iter().map(|shipped| shipped.name.len()).max().unwrap_or(0);
                let line = SHIPPED.iter().map(|shipped| format!("{:width$}  {}\n", shipped.name, shipped.summary()));
                print(&line.collect::<String>())
            }
            Self::Show { name } => print(shipped_config(&name)?.text),
            Self::Check { file, json } => {
                let report = check_config(&file)?;
                if json {
                    print_json(&report)?;
                } else {
                    report.problems.iter().skip(1).for_each(|problem| log(report.line(problem)));
                    let kind = report.kind.as_deref().unwrap_or("TOML");
                    if report.problems.is_empty() {
                        print(&format!("{}: no error; a file of {kind}\n", file.display()))?;
                    }
                }
                report.verdict()
            }
            Self::Schema { kind } => print_json(&run_file_schema(match kind {
                SchemaKind::Train => RunFileKind::Train,
                SchemaKind::Align => RunFileKind::Align,
            })?),
        }
    }
}
