//! Raw files → corpus: read, clean, cut windows, write, audit; whole or not at all.

mod audit;
mod clean;
mod config;
mod text_tasks;
mod windows;
mod write;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

pub use config::{CleaningStep, ExpectedCounts, PrepareConfig, Protocol, Source};
use serde::{Deserialize, Serialize};

use self::clean::PresentIds;
use super::corpus::{Counts, FileDigest, Manifest, OutputDir, Provenance, Step, WindowCounts};
use super::progress::Progress;
use super::sharded_table::Workspace;
use super::sources;
use super::sources::{Columns, FileRows, RawDataset, ReadContext, ReadOptions, TableOptions, TitleChoice};
use crate::core::{files, system};
use crate::{Context, Error, Result};

/// Options of [`prepare`].
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Kind of the inputs.
    pub source: Source,
    /// Files, or folders of them.
    pub inputs: Vec<PathBuf>,
    /// The corpus folder.
    pub out: PathBuf,
    /// Configuration with steps and split; by default the source's own.
    pub config: Option<PathBuf>,
    /// Format of the source's files, in place of the detected one.
    pub format: Option<String>,
    /// Number of bad rows that are left out before one is an error.
    pub skip_bad: u64,
    /// Memory to work in, in bytes; half of the machine's, or of its container's limit, by default.
    pub memory: Option<u64>,
    /// Names of a table's columns; they win over the configuration's.
    pub columns: Columns,
    /// Format of a table's files; it wins over the configuration's.
    pub table: TableOptions,
    /// Path of a file of text tasks made of the items' texts, outside the corpus folder; see
    /// [`super::read_text_tasks`].
    pub tasks: Option<PathBuf>,
}

/// The report of `prepare --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Users with at least one interaction.
    pub users: usize,
    /// Items of the catalogue.
    pub items: usize,
    /// Interactions in the log.
    pub interactions: usize,
    /// Windows of each split.
    pub windows: WindowCounts,
    /// Rows of the source left out, by step.
    pub dropped: BTreeMap<String, usize>,
    /// Sentence about how the validation windows were chosen.
    pub validation: String,
    /// The detected format.
    pub format: String,
    /// The steps, with the events before and after.
    pub steps: Vec<Step>,
    /// Test windows whose target is in no training window.
    pub cold_test_targets: usize,
    /// Users with a test window.
    pub test_users: usize,
    /// Test users without a training window.
    pub new_test_users: usize,
    /// Training windows whose target is later than the earliest test target.
    pub late_train_targets: usize,
    /// Rows of the task file, by task; empty where there is no such file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, usize>,
    /// The files read, with their rows.
    #[serde(default)]
    pub files: Vec<FileRows>,
    /// Files of the inputs that were not read.
    #[serde(default)]
    pub passed_over: Vec<String>,
    /// Interactions with the user, item and time of another.
    #[serde(default)]
    pub repeated_interactions: usize,
    /// Warnings for a reader of results.
    pub warnings: Vec<String>,
}

/// Turns raw files into the corpus `options.out`.
///
/// Users and items are numbered by their ids in byte order. A user's events are ordered by time,
/// ties by the order of the input (files as given, then rows). The same input gives the same bytes,
/// whatever the threads and the memory.
pub fn prepare(options: &PrepareOptions) -> Result<Report> {
    let output = OutputDir::check(&options.out)?;
    if let Some(path) = &options.tasks {
        check_tasks_file(path, options, &output)?;
    }
    let config = match &options.config {
        Some(path) => PrepareConfig::open(path)?,
        None => PrepareConfig::defaults(options.source),
    };
    if let (Some(path), Some(source)) = (&options.config, config.source)
        && source != options.source
    {
        return Err(Error::usage(format!("{}: it is for the source {source}, not {}", path.display(), options.source)));
    }
    if options.source == Source::Msl {
        return prepare_msl(options, output);
    }
    let configured = config.columns != Columns::default() || config.table != TableOptions::default();
    let stated = options.columns != Columns::default() || options.table != TableOptions::default();
    if options.source != Source::Table && (configured || stated) {
        return Err(Error::usage(format!(
            "columns and their dialect are named for the source table only, not for {}",
            options.source
        )));
    }
    let workspace =
        Workspace { memory: options.memory.map_or_else(half_of_memory, Ok)?, scratch: output.parent.clone() };
    let mut source = read_source(options, &config, &workspace)?;
    let steps = clean_events(&mut source, options, &config)?;
    write_corpus(source, steps, options, &config, &workspace, output)
}

/// Refuses a file of text tasks in the corpus folder, or with its name.
fn check_tasks_file(path: &Path, options: &PrepareOptions, output: &OutputDir) -> Result<()> {
    let parent = files::folder(path);
    let parent = fs::canonicalize(parent).context(parent.display())?;
    let same = options.out.file_name() == path.file_name()
        && fs::canonicalize(&output.parent).context(output.parent.display())? == parent;
    if same || fs::canonicalize(&options.out).is_ok_and(|out| out == parent) {
        let what = "a corpus folder holds the corpus alone: choose another file for the tasks";
        return Err(Error::usage(format!("{}: {what}", path.display())));
    }
    if path.is_dir() {
        return Err(Error::usage(format!("{}: a folder is there: name a file for the tasks", path.display())));
    }
    Ok(())
}

/// The raw data, and what the report says of them.
struct ReadSource {
    raw: RawDataset,
    inputs: Vec<FileDigest>,
    files: Vec<FileRows>,
    passed_over: Vec<String>,
    skipped: u64,
    warnings: Vec<String>,
}

/// Reads the inputs into a log and a catalogue.
fn read_source(options: &PrepareOptions, config: &PrepareConfig, workspace: &Workspace) -> Result<ReadSource> {
    let list = sources::list_files(&options.inputs, &workspace.scratch)?;
    // Two item indexings of OpenP5 may be equal, and so may two splits of released windows.
    if matches!(options.source, Source::Amazon | Source::Movielens | Source::Table) {
        list.check_distinct()?;
    }
    let mut context = ReadContext::new(options.skip_bad, list.size());
    let read_options = ReadOptions {
        format: options.format.clone().or(config.format.clone()),
        workspace: workspace.clone(),
        columns: options.columns.clone().or(&config.columns),
        table: options.table.clone().or(&config.table),
    };
    let read = match options.source {
        Source::Amazon => sources::amazon::read,
        Source::Movielens => sources::movielens::read,
        Source::Openp5 => sources::openp5::read,
        Source::Msl | Source::Table => sources::table::read,
    };
    let raw = read(&list.files, &read_options, &mut context)?;
    let ReadContext { skipped, inputs, rows, unused, mut warnings, .. } = context;
    let retitled = raw.catalogue.retitled_items();
    if retitled > 0 {
        let kept = if read_options.table.title_choice == Some(TitleChoice::Last) { "last" } else { "first" };
        warnings
            .push(format!("{retitled} items have more than one title; the {kept} one counts (option `title_choice`)"));
    }
    let passed_over = list.passed_over.into_iter().chain(unused).collect();
    Ok(ReadSource { raw, inputs, files: rows, passed_over, skipped, warnings })
}

/// Runs the cleaning steps.
fn clean_events(source: &mut ReadSource, options: &PrepareOptions, config: &PrepareConfig) -> Result<Vec<Step>> {
    let raw = &mut source.raw;
    let (users, items) = PresentIds::collect(&raw.log)?.counts();
    let events = raw.log.shards.rows();
    let what = format!("{}; {} bad rows left out", raw.format, source.skipped);
    let mut steps =
        vec![Step { name: "read".into(), before: events, after: events, users: Some(users), items: Some(items), what }];
    if events == 0 {
        return Err(Error::failed(format!("{}: no event in it", show(&options.inputs))));
    }
    let mut progress = Progress::new("cleaning", config.steps.len() as u64);
    for step in &config.steps {
        steps.push(clean::clean(raw, step)?);
        progress.bytes.fetch_add(1, Ordering::Relaxed);
        progress.add(raw.log.shards.rows() as u64)?;
    }
    Ok(steps)
}

/// Cuts windows, writes all tables and moves them to the output folder.
fn write_corpus(
    source: ReadSource,
    steps: Vec<Step>,
    options: &PrepareOptions,
    config: &PrepareConfig,
    workspace: &Workspace,
    output: OutputDir,
) -> Result<Report> {
    let ReadSource { mut raw, inputs, files: rows, passed_over, skipped, mut warnings } = source;
    let finished =
        tempfile::Builder::new().prefix(".itemlm-").tempdir_in(&output.parent).context(output.parent.display())?;
    let ids = clean::ids_apart(&raw.log, &raw.catalogue, &PresentIds::collect(&raw.log)?.items);
    let written = write::write(&mut raw, config.split, finished.path(), workspace)?;
    if written.windows.iter().all(|windows| *windows == 0) {
        return Err(Error::failed(format!("{}: no user has two events, so there is no window", show(&options.inputs))));
    }
    let validation = config.split.validation(written.windows);
    let [train, valid, test] = written.windows;
    let items = written.item_order.len();
    let manifest = Manifest::new(
        config.name.clone().unwrap_or_else(|| folder_name(&options.out)),
        Provenance { source: raw.format.clone(), inputs, steps },
        validation,
        0,
        Counts { users: written.users, items, interactions: written.interactions, train, valid, test },
        written.files,
    );
    manifest.write(finished.path())?;

    if written.untitled > 0 {
        let ids = ids.filter(|_| written.untitled == items).map(|ids| format!("; {ids}")).unwrap_or_default();
        let untitled = written.untitled;
        warnings.push(format!("{untitled} of {items} items have no title: add the step `titled` to drop them{ids}"));
    }
    if written.repeated > 0 {
        warnings.push(format!(
            "repeats: {} interactions have the user, item and time of another: is a file there twice? The step \
             `duplicates` drops them",
            written.repeated
        ));
    }
    if test == 0 {
        warnings.push("no window is left to test".into());
    }
    if let Some(expected) = &config.expect {
        warnings.extend(expected.compare(written.users, items, written.interactions, written.windows));
    }
    let mut dropped = BTreeMap::new();
    if skipped > 0 {
        dropped.insert("bad rows".to_string(), skipped as usize);
    }
    for step in manifest.steps.iter().filter(|step| step.before > step.after) {
        *dropped.entry(step.name.clone()).or_default() += step.before - step.after;
    }
    let mut report = report(finished.path(), &manifest, raw.format.clone(), dropped, warnings)?;
    report.files = rows;
    report.passed_over = passed_over;
    report.repeated_interactions = written.repeated;
    let Some(path) = &options.tasks else {
        output.replace(finished)?;
        return Ok(report);
    };
    let (rows, counts) = text_tasks::write_text_tasks(&raw, &written.item_order, path)?;
    report.tasks = counts;
    output.replace(finished)?;
    files::persist(rows, path)?;
    Ok(report)
}

/// Writes MSL's released windows as a corpus, and keeps their split.
fn prepare_msl(options: &PrepareOptions, output: OutputDir) -> Result<Report> {
    let [dir] = options.inputs.as_slice() else {
        return Err(Error::usage(
            "prepare msl takes one folder: train.csv, test.csv, perhaps valid.csv, id2name4Rec.json",
        ));
    };
    if options.config.is_some() || options.format.is_some() || options.skip_bad > 0 || options.tasks.is_some() {
        return Err(Error::usage(
            "prepare msl keeps the released windows: option `config`, option `format`, option `skip_bad` and option \
             `tasks` do not apply to it",
        ));
    }
    let memory = options.memory.map_or_else(half_of_memory, Ok)?;
    let (corpus, provenance) = sources::read_msl(dir, memory)?;
    let finished =
        tempfile::Builder::new().prefix(".itemlm-").tempdir_in(&output.parent).context(output.parent.display())?;
    let format = provenance.source.clone();
    let manifest = corpus.write(finished.path(), &provenance)?;
    let report = report(finished.path(), &manifest, format, BTreeMap::new(), vec![])?;
    output.replace(finished)?;
    Ok(report)
}

fn report(
    dir: &Path,
    manifest: &Manifest,
    format: String,
    dropped: BTreeMap<String, usize>,
    mut warnings: Vec<String>,
) -> Result<Report> {
    let Counts { users, items, interactions, train, valid, test } = manifest.counts;
    let audit = audit::audit(dir, interactions, items)?;
    if audit.late_train_targets > 0 {
        warnings.push(format!(
            "leakage: {} of {train} training targets are later than the earliest test target",
            audit.late_train_targets
        ));
    }
    if audit.out_of_order > 0 {
        warnings.push(format!("leakage: {} interactions are earlier than the one before them", audit.out_of_order));
    }
    if let Some(earliest) = audit.earliest.and_then(|time| chrono::DateTime::from_timestamp(time, 0)) {
        warnings.push(format!(
            "times: {} of {interactions} interactions are before 1990, the earliest at {}: is their unit right (table: \
             option `time_unit`)?",
            audit.early,
            earliest.format("%Y-%m-%dT%H:%M:%SZ")
        ));
    }
    Ok(Report {
        users,
        items,
        interactions,
        windows: WindowCounts { train, valid, test },
        dropped,
        validation: manifest.validation.clone(),
        format,
        steps: manifest.steps.clone(),
        cold_test_targets: audit.cold_test_targets,
        test_users: audit.test_users,
        new_test_users: audit.new_test_users,
        late_train_targets: audit.late_train_targets,
        tasks: BTreeMap::new(),
        files: Vec::new(),
        passed_over: Vec::new(),
        repeated_interactions: 0,
        warnings,
    })
}

impl Protocol {
    fn validation(self, [train, valid, test]: [usize; 3]) -> String {
        match self {
            Self::Msl { history } => format!(
                "Windows of at most {history} + 1 by their target's time: the first 8 tenths ({train}) train, the \
                 next tenth \
                 ({valid}) validates, the rest ({test}) tests."
            ),
            Self::LeaveOneOut { history } => format!(
                "Leave one out: each user's last event tests ({test}), the one before validates ({valid}), the \
                 earlier ones \
                 train ({train}); histories of at most {history}."
            ),
        }
    }
}

fn folder_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "corpus".into(), |name| name.to_string_lossy().into_owned())
}

fn show(inputs: &[PathBuf]) -> String {
    inputs.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Returns half of the machine's memory, or of the container's limit, bytes.
fn half_of_memory() -> Result<u64> {
    let known = [system::memory_bytes(), system::limit_bytes()].into_iter().flatten().min();
    let unknown = || Error::usage("this system does not report its memory: set option `memory`");
    known.map(|bytes| bytes / 2).ok_or_else(unknown)
}
