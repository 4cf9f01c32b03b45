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

pub use config::{Cleaning, Expected, PrepareConfig, Protocol, Source};
use serde::{Deserialize, Serialize};

use self::clean::PresentIds;
use super::corpus::{Counts, Manifest, OutputDir, Provenance, Step, WindowCounts};
use super::progress::Progress;
use super::sharded_table::Workspace;
use super::sources;
use super::sources::{Columns, ReadContext, ReadOptions};
use crate::core::{files, system};
use crate::{Context, Error, Result};

/// What to prepare.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// What the inputs hold.
    pub source: Source,
    /// Files, or folders of them.
    pub inputs: Vec<PathBuf>,
    /// The corpus folder.
    pub out: PathBuf,
    /// Steps and split; the source's defaults without.
    pub config: Option<PathBuf>,
    /// The format within the source, rather than the one found.
    pub format: Option<String>,
    /// So many bad rows are left out before one is an error.
    pub skip_bad: u64,
    /// Memory to work in, in bytes; half of the machine's, or of its container's limit, by default.
    pub memory: Option<u64>,
    /// Names of a table's columns; they win over the configuration's.
    pub columns: Columns,
    /// Where rows of tasks made of the items' texts go, outside the corpus folder; see
    /// [`super::read_text_tasks`].
    pub tasks: Option<PathBuf>,
}

/// What `prepare --json` prints.
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
    /// What validates, in one sentence.
    pub validation: String,
    /// The format found.
    pub format: String,
    /// What was done, with the events before and after.
    pub steps: Vec<Step>,
    /// Test windows whose target is in no training window.
    pub cold_test_targets: usize,
    /// Users with a test window.
    pub test_users: usize,
    /// Those of them without a training window.
    pub new_test_users: usize,
    /// Training windows whose target is later than the earliest test target.
    pub late_train_targets: usize,
    /// Rows of the task file, by task; empty if none was asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, usize>,
    /// What a reader of results should know.
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
        let parent = files::folder(path);
        let parent = fs::canonicalize(parent).context(parent.display())?;
        let same = options.out.file_name() == path.file_name()
            && fs::canonicalize(&output.parent).context(output.parent.display())? == parent;
        if same || fs::canonicalize(&options.out).is_ok_and(|out| out == parent) {
            let what = "a corpus folder holds the corpus alone: choose another output for the tasks";
            return Err(Error::usage(format!("{}: {what}", path.display())));
        }
        if path.is_dir() {
            return Err(Error::usage(format!("{}: a folder is there: name a file for the tasks", path.display())));
        }
    }
    let config = match &options.config {
        Some(path) => PrepareConfig::open(path)?,
        None => PrepareConfig::of(options.source),
    };
    if let (Some(path), Some(source)) = (&options.config, config.source)
        && source != options.source
    {
        return Err(Error::usage(format!("{}: it is for the source {source}, not {}", path.display(), options.source)));
    }
    if options.source == Source::Msl {
        return prepare_msl(options, output);
    }
    let name = config.name.clone().unwrap_or_else(|| folder_name(&options.out));

    if options.source != Source::Table && config.columns != Columns::default() {
        return Err(Error::usage(format!("columns are named for the source table only, not for {}", options.source)));
    }
    let files = sources::list_files(&options.inputs)?;
    let total = files.iter().map(|file| fs::metadata(file).map_or(0, |m| m.len())).sum();
    let mut context = ReadContext::new(options.skip_bad, total);
    let read_options = ReadOptions {
        format: options.format.clone().or(config.format.clone()),
        workspace: Workspace {
            memory: options.memory.map_or_else(half_of_memory, Ok)?,
            scratch: output.parent.clone(),
        },
        columns: options.columns.clone().or(&config.columns),
    };
    let mut raw = match options.source {
        Source::Amazon => sources::amazon::read(&files, &read_options, &mut context)?,
        Source::Movielens => sources::movielens::read(&files, &read_options, &mut context)?,
        Source::Openp5 => sources::openp5::read(&files, &read_options, &mut context)?,
        Source::Msl | Source::Table => sources::table::read(&files, &read_options, &mut context)?,
    };
    let ReadContext { skipped, inputs, progress, .. } = context;
    drop(progress);

    let (users, items) = PresentIds::of(&raw.log)?.counts();
    let events = raw.log.shards.rows();
    let what = format!("{}; {skipped} bad rows left out", raw.format);
    let mut steps =
        vec![Step { name: "read".into(), before: events, after: events, users: Some(users), items: Some(items), what }];
    if events == 0 {
        return Err(Error::failed(format!("{}: no event in it", show(&options.inputs))));
    }
    let mut progress = Progress::new("cleaning", config.steps.len() as u64);
    for step in &config.steps {
        steps.push(clean::clean(&mut raw, step)?);
        progress.bytes.fetch_add(1, Ordering::Relaxed);
        progress.add(raw.log.shards.rows() as u64)?;
    }
    drop(progress);

    let finished =
        tempfile::Builder::new().prefix(".itemlm-").tempdir_in(&output.parent).context(output.parent.display())?;
    let written = write::write(&mut raw, config.split, finished.path(), &read_options.workspace)?;
    if written.windows.iter().all(|windows| *windows == 0) {
        return Err(Error::failed(format!("{}: no user has two events, so there is no window", show(&options.inputs))));
    }
    let validation = config.split.validation(written.windows);
    let [train, valid, test] = written.windows;
    let manifest = Manifest::new(
        name,
        Provenance { source: raw.format.clone(), inputs, steps: steps.clone() },
        validation.clone(),
        0,
        Counts {
            users: written.users,
            items: written.item_order.len(),
            interactions: written.interactions,
            train,
            valid,
            test,
        },
        written.files,
    );
    manifest.write(finished.path())?;

    let mut warnings = Vec::new();
    if written.untitled > 0 {
        warnings.push(format!(
            "{} of {} items have no title: add the step `titled` to drop them",
            written.untitled,
            written.item_order.len()
        ));
    }
    if test == 0 {
        warnings.push("no window is left to test".into());
    }
    if let Some(expected) = &config.expect {
        let Counts { users, items, interactions, .. } = manifest.counts;
        warnings.extend(expected.compare(users, items, interactions, written.windows));
    }
    let mut dropped = BTreeMap::new();
    if skipped > 0 {
        dropped.insert("bad rows".to_string(), skipped as usize);
    }
    for step in manifest.steps.iter().filter(|step| step.before > step.after) {
        *dropped.entry(step.name.clone()).or_default() += step.before - step.after;
    }
    let mut report = report(finished.path(), &manifest, raw.format.clone(), dropped, warnings)?;
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

/// The released windows, kept as they are split.
fn prepare_msl(options: &PrepareOptions, output: OutputDir) -> Result<Report> {
    let [dir] = options.inputs.as_slice() else {
        return Err(Error::usage(
            "prepare msl takes one folder: train.csv, test.csv, perhaps valid.csv, id2name4Rec.json",
        ));
    };
    if options.config.is_some() || options.format.is_some() || options.skip_bad > 0 || options.tasks.is_some() {
        return Err(Error::usage(
            "prepare msl keeps the released windows: --config, --format, --skip-bad and --tasks do not apply to it",
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
        warnings,
    })
}

impl Protocol {
    fn validation(self, [train, valid, test]: [usize; 3]) -> String {
        match self {
            Self::Msl { history } => format!(
                "Windows of at most {history} + 1 by their target's time: the first 8 tenths ({train}) train, the next tenth \
                 ({valid}) validates, the rest ({test}) tests."
            ),
            Self::LeaveOneOut { history } => format!(
                "Leave one out: each user's last event tests ({test}), the one before validates ({valid}), the earlier ones \
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

/// Of the machine's memory, or of the limit on the container.
fn half_of_memory() -> Result<u64> {
    let known = [system::memory_bytes(), system::limit_bytes()].into_iter().flatten().min();
    known.map(|bytes| bytes / 2).ok_or_else(|| Error::usage("this system does not tell its memory: give --memory"))
}
