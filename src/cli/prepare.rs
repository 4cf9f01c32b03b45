//! `itemlm prepare`.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use clap::Args;

use super::flags::with_flags;
use super::inspect::escape;
use super::show;
use crate::data::{
    Columns, Encoding, PrepareOptions, Report, STOP, Source, TableOptions, TitleChoice, TitleFrom, Unit, prepare,
};
use crate::{Context, Result};

#[derive(Args)]
pub(super) struct PrepareArgs {
    /// What the inputs hold
    #[arg(value_enum)]
    source: Source,
    /// Files, folders of them (with folders of the form key=value in them) or zip archives; gzip,
    /// zstd and bzip2 are recognised
    #[arg(required = true)]
    input: Vec<PathBuf>,
    /// The corpus directory
    #[arg(long)]
    out: PathBuf,
    /// Cleaning steps, split and expected sizes, as in configs/data; by default items without a
    /// title are dropped, then users and items of fewer than 5 events, then MSL's split (openp5:
    /// leave one out)
    #[arg(long)]
    config: Option<PathBuf>,
    /// The format within the source, rather than the one found in the files
    #[arg(long)]
    format: Option<String>,
    /// Number of bad rows to leave out before one more is an error
    #[arg(long, default_value_t = 0)]
    skip_bad: u64,
    /// Memory to work in, such as 512MB or 8GB, beside what ids and titles take; half of the
    /// machine's, or of its container's limit, by default
    #[arg(long, value_parser = memory)]
    memory: Option<u64>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    table: TableArgs,
    /// movielens, openp5: also write rows of ELM's tasks made of titles, genres, tags and plots, as
    /// JSON lines
    #[arg(long, value_name = "FILE")]
    tasks: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The columns of a table.
#[derive(Args)]
struct ColumnArgs {
    /// table: the column of users; a name such as reviewer.user is that of a key in another
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
    /// table: the column of ratings; an event may be without
    #[arg(long, value_name = "COLUMN")]
    rating: Option<String>,
    /// table: a column with more text on the item
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
}

/// Arguments about the format of a table's files.
#[derive(Args)]
struct TableArgs {
    /// table: the character between fields, or tab; by default what the first lines show
    #[arg(long, value_name = "CHARACTER")]
    delimiter: Option<String>,
    /// table: the character around fields, or none; by default ", and none in tab-separated files
    #[arg(long, value_name = "CHARACTER")]
    quote: Option<String>,
    /// table: the character that takes the meaning of the one after it, mostly a backslash
    #[arg(long, value_name = "CHARACTER")]
    escape: Option<String>,
    /// table: the encoding of text; UTF-8 by default, UTF-16 is recognised
    #[arg(long, value_enum)]
    encoding: Option<Encoding>,
    /// table: names for the columns of files without a header, a,b,c, or FILE=a,b,c for one file;
    /// after c... the last column takes what is left of a line
    #[arg(long = "columns", value_name = "NAMES")]
    names: Vec<String>,
    /// table: the column of items in catalogues, where it has another name there
    #[arg(long, value_name = "COLUMN")]
    catalogue_item: Option<String>,
    /// table: where titles come from; by default catalogues, if any has the column
    #[arg(long, value_enum)]
    title_from: Option<TitleFrom>,
    /// table: which title an item keeps that has several; the first by default
    #[arg(long, value_enum)]
    title_choice: Option<TitleChoice>,
    /// table: the unit of times that are numbers; by default what most rows of a file show
    #[arg(long, value_enum)]
    time_unit: Option<Unit>,
    /// table: the strftime pattern of times that are text, such as %d/%m/%Y; by default what the
    /// rows show
    #[arg(long, value_name = "PATTERN")]
    time_format: Option<String>,
    /// table: what separates several items in the column of items, each of them an event
    #[arg(long, value_name = "TEXT")]
    item_separator: Option<String>,
    /// table: the ending of those items that were clicked, such as -1; the others are no events
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    clicked_suffix: Option<String>,
}

impl PrepareArgs {
    pub(super) fn run(self) -> Result<()> {
        let ColumnArgs { user, item, time, title, rating, text } = self.columns;
        let table = self.table;
        let options = PrepareOptions {
            source: self.source,
            inputs: self.input,
            out: self.out,
            config: self.config,
            format: self.format,
            skip_bad: self.skip_bad,
            memory: self.memory,
            columns: Columns { user, item, time, title, rating, text },
            table: TableOptions {
                delimiter: table.delimiter,
                quote: table.quote,
                escape: table.escape,
                encoding: table.encoding,
                names: table.names,
                catalogue_item: table.catalogue_item,
                title_from: table.title_from,
                title_choice: table.title_choice,
                time_unit: table.time_unit,
                time_format: table.time_format,
                item_separator: table.item_separator,
                clicked_suffix: table.clicked_suffix,
            },
            tasks: self.tasks,
        };
        // One signal is enough: the work stops at the next block of rows, and its temporary folders
        // are removed.
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("signal handler")?;
        let mut report = prepare(&options)?;
        report.warnings.iter_mut().for_each(|warning| *warning = with_flags(warning));
        show(self.json, &report, |report| prepare_text(&options.out, report))
    }
}

/// Parses a number of bytes such as 512MB or 8GB.
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
    let mut text = format!("{}\n", escape(&report.format));
    // A folder may hold thousands of parts.
    const SHOWN: usize = 20;
    for file in report.files.iter().take(SHOWN) {
        text += &format!("  {:>11} rows in {}\n", file.rows, escape(&file.file));
    }
    if let Some(more) = report.files.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        let rows: u64 = report.files.iter().skip(SHOWN).map(|file| file.rows).sum();
        text += &format!("  {rows:>11} rows in {more} more files\n");
    }
    if !report.passed_over.is_empty() {
        let shown: Vec<&str> = report.passed_over.iter().take(SHOWN).map(String::as_str).collect();
        let more = if report.passed_over.len() > SHOWN { ", …" } else { "" };
        text += &format!("passed over {}: {}{more}\n", report.passed_over.len(), escape(&shown.join(", ")));
    }
    for step in &report.steps {
        let left = match (step.users, step.items) {
            (Some(users), Some(items)) => format!(", {users} users, {items} items"),
            _ => String::new(),
        };
        text += &format!(
            "  {:14} {:>11} -> {:>11} rows{left}: {}\n",
            step.name,
            step.before,
            step.after,
            escape(&step.what)
        );
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
        text += &format!("warning: {}\n", escape(warning));
    }
    text
}
