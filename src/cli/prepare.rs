//! `itemlm prepare`.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use clap::Args;

use super::inspect::escaped;
use super::show;
use crate::data::{Columns, PrepareOptions, Report, STOP, Source, prepare};
use crate::{Context, Error, Result};

#[derive(Args)]
pub(super) struct PrepareArgs {
    /// What the inputs hold
    #[arg(value_enum)]
    source: Source,
    /// Files, or folders of them; gzip and zstd are fine
    #[arg(required = true)]
    input: Vec<PathBuf>,
    /// The corpus directory
    #[arg(long)]
    out: PathBuf,
    /// Cleaning steps, split and expected sizes, as in configs/data; by default items without a
    /// title go, then a 5-core, then MSL's split (openp5: leave one out)
    #[arg(long)]
    config: Option<PathBuf>,
    /// The format within the source, rather than the one found in the files
    #[arg(long)]
    format: Option<String>,
    /// Leave out up to so many bad rows
    #[arg(long, default_value_t = 0)]
    skip_bad: u64,
    /// Memory to work in, such as 512MB or 8GB, beside what ids and titles take; half of the
    /// machine's, or of its container's limit, by default
    #[arg(long, value_parser = memory)]
    memory: Option<u64>,
    /// table: the column of users
    #[arg(long, value_name = "COLUMN")]
    user: Option<String>,
    /// table: the column of items
    #[arg(long, value_name = "COLUMN")]
    item: Option<String>,
    /// table: the column of times; without, the order of the rows counts
    #[arg(long, value_name = "COLUMN")]
    time: Option<String>,
    /// table: the column of titles
    #[arg(long, value_name = "COLUMN")]
    title: Option<String>,
    /// table: the column of ratings
    #[arg(long, value_name = "COLUMN")]
    rating: Option<String>,
    /// table: a column with more text on the item
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// movielens, openp5: also write rows of ELM's tasks made of titles, genres, tags and plots, as
    /// JSON lines
    #[arg(long, value_name = "FILE")]
    tasks: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl PrepareArgs {
    pub(super) fn run(self) -> Result<()> {
        let Self {
            source,
            input,
            out,
            config,
            format,
            skip_bad,
            memory,
            user,
            item,
            time,
            title,
            rating,
            text,
            tasks,
            json,
        } = self;
        let columns = Columns { user, item, time, title, rating, text };
        if source != Source::Table && columns != Columns::default() {
            return Err(Error::usage(format!("columns are named for the source table only, not for {source}")));
        }
        // Once is enough: the work stops at the next block of rows, and its temporary folders go.
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("signal handler")?;
        let options = PrepareOptions { source, inputs: input, out, config, format, skip_bad, memory, columns, tasks };
        show(json, &prepare(&options)?, |report| prepare_text(&options.out, report))
    }
}

/// Bytes, from such as 512MB or 8GB.
fn memory(text: &str) -> std::result::Result<u64, String> {
    const LEAST: u64 = 256 << 20;
    let upper = text.to_ascii_uppercase();
    let (number, power) = [("GIB", 3), ("GB", 3), ("G", 3), ("MIB", 2), ("MB", 2), ("M", 2)]
        .into_iter()
        .find_map(|(unit, power)| Some((upper.strip_suffix(unit)?.trim().to_string(), power)))
        .ok_or("it must be a size such as 512MB or 8GB")?;
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << (10 * power)));
    let bytes = bytes.ok_or("it must be a size such as 512MB or 8GB")?;
    if bytes < LEAST {
        return Err(format!("it must be at least {} MB", LEAST >> 20));
    }
    Ok(bytes)
}

fn prepare_text(out: &Path, report: &Report) -> String {
    let mut text = format!("{}\n", report.format);
    for step in &report.steps {
        let left = match (step.users, step.items) {
            (Some(users), Some(items)) => format!(", {users} users, {items} items"),
            _ => String::new(),
        };
        text += &format!("  {:14} {:>11} -> {:>11} rows{left}: {}\n", step.name, step.before, step.after, step.what);
    }
    let (r, w) = (report, &report.windows);
    text += &format!(
        "{}: {} users, {} items, {} interactions; windows {} train / {} valid / {} test\n{}\n",
        out.display(),
        r.users,
        r.items,
        r.interactions,
        w.train,
        w.valid,
        w.test,
        r.validation
    );
    text += &format!(
        "{} of {} test targets are cold (in no training window); {} of {} test users are new.\n",
        r.cold_test_targets, w.test, r.new_test_users, r.test_users
    );
    if !r.tasks.is_empty() {
        let tasks: Vec<String> = r.tasks.iter().map(|(task, rows)| format!("{task} {rows}")).collect();
        text += &format!("Rows of tasks: {}\n", tasks.join(", "));
    }
    for warning in &r.warnings {
        text += &format!("warning: {}\n", escaped(warning));
    }
    text
}
