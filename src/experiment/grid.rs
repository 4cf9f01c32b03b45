//! All runs of an experiment, side by side on several devices, and the files that come of them.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn::train::Interrupter;

use super::cell::{BaselineJob, Progress, RunJob};
use super::config::{Cell, ExperimentConfig, file_name};
use super::inputs::Digests;
use super::live::Live;
use super::results::{ExperimentReport, RESULTS, Row, RunResult, Status, best, compare, read_row};
use super::tables::{csv, latex, markdown};
use crate::core::files::write_atomic;
use crate::data::Manifest;
use crate::{Context, Error, Result};

/// Options of the command line.
pub struct GridOptions {
    /// Directory of the experiment.
    pub out: PathBuf,
    /// Go on with runs that were begun.
    pub resume: bool,
    /// Values of `--backend`: one run at a time on each.
    pub devices: Vec<String>,
    /// Stops the experiment.
    pub interrupter: Interrupter,
}

/// An experiment whose file is read and whose directory is checked.
pub struct Grid {
    config: ExperimentConfig,
    cells: Vec<Cell>,
    jobs: Vec<Job>,
    options: GridOptions,
    /// Held until the experiment ends.
    _lock: fs::File,
}

/// A run of a cell, or a baseline.
#[allow(clippy::large_enum_variant, reason = "an experiment has at most 10,000")]
enum Job {
    Run(RunJob),
    Baseline(BaselineJob),
}

impl Job {
    fn dir(&self) -> &Path {
        match self {
            Self::Run(job) => &job.dir,
            Self::Baseline(job) => &job.dir,
        }
    }

    fn progress(&self) -> Result<Progress> {
        match self {
            Self::Run(job) => job.progress(),
            Self::Baseline(job) => job.progress(),
        }
    }

    fn run(&self, device: &str, interrupter: &Interrupter, watch: &mut dyn FnMut(&Path)) -> Result<Progress> {
        match self {
            Self::Run(job) => job.run(device, interrupter, watch),
            Self::Baseline(job) => job.run(device, interrupter, watch),
        }
    }
}

impl Grid {
    /// Reads the run file of every cell, and checks what the directory holds already.
    ///
    /// # Errors
    /// Those of [`ExperimentConfig::cells`]; usage errors: a directory that another program uses
    /// or filled, a run in it of another run file or corpus, begun runs without `resume`.
    pub fn open(config: ExperimentConfig, options: GridOptions) -> Result<Self> {
        let cells = config.cells()?;
        let corpora = ExperimentConfig::corpora(&cells);
        if corpora.len() > 1 && !config.baselines.is_empty() {
            return Err(Error::usage(format!(
                "baselines: the cells have {} corpora, and a baseline ranks one; make an experiment of each corpus",
                corpora.len()
            )));
        }
        let digests = corpora.iter().map(|corpus| Ok((corpus.clone(), Manifest::digest(Path::new(corpus))?)));
        let digests: BTreeMap<String, String> = digests.collect::<Result<_>>()?;
        let out = &options.out;
        let (mut jobs, mut inputs) = (Vec::new(), Digests::default());
        for name in &config.baselines {
            let Some(run) = cells.first().and_then(|cell| cell.runs.first()) else { continue };
            jobs.push(Job::Baseline(BaselineJob {
                dir: out.join(baseline_dir(name)),
                name: name.clone(),
                corpus: run.config.data.corpus.clone(),
                digest: digests[&run.config.data.corpus].clone(),
                evaluate: config.evaluate.clone(),
            }));
        }
        for (cell, run) in cells.iter().flat_map(|cell| cell.runs.iter().map(move |run| (cell, run))) {
            let dir = out.join(run_dir(&cell.name, run.seed));
            let corpus = digests[&run.config.data.corpus].clone();
            let (run, evaluate, alone) = (run.clone(), config.evaluate.clone(), options.devices.len() == 1);
            jobs.push(Job::Run(RunJob { dir, corpus, inputs: inputs.of_run(&run.config), run, evaluate, alone }));
        }
        let mut begun = None;
        for job in &jobs {
            let open = matches!(job, Job::Run(_)) && job.progress()? != Progress::Done;
            begun = begun.or((open && job.dir().exists()).then(|| job.dir().display().to_string()));
        }
        match begun {
            Some(dir) if !options.resume => {
                return Err(Error::usage(format!(
                    "{dir} was begun; go on with option `resume`, or choose another option `out`"
                )));
            }
            _ => {}
        }
        fs::create_dir_all(out).context(out.display())?;
        let lock = lock(out)?;
        Ok(Self { config, cells, jobs, options, _lock: lock })
    }

    /// Runs what is not done yet, then writes the tables and `experiment.json`. A run that fails
    /// becomes a row that says why.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub fn run(&self) -> Result<ExperimentReport> {
        let mut progress = self.jobs.iter().map(Job::progress).collect::<Result<Vec<_>>>()?;
        let open: VecDeque<usize> = (0..self.jobs.len()).filter(|&job| progress[job] == Progress::Open).collect();
        let done = self.jobs.len() - open.len();
        let live = Live::new(&self.options.devices, self.jobs.len(), done);
        live.say(&format!("{} runs, {done} of them done", self.jobs.len()));
        let state = Mutex::new(Shared { open, progress: &mut progress, done, error: None });
        std::thread::scope(|scope| {
            for device in 0..self.options.devices.len() {
                let (state, live) = (&state, &live);
                scope.spawn(move || self.work(device, state, live));
            }
        });
        let error = state.into_inner().unwrap_or_else(PoisonError::into_inner).error;
        drop(live);
        error.map_or(Ok(()), Err)?;
        let report = self.report(&progress)?;
        self.write(&report)?;
        Ok(report)
    }

    /// Runs one job after the other on a device, until none is left or the user stops.
    ///
    /// * `device`: index in the list of devices.
    fn work(&self, device: usize, state: &Mutex<Shared>, live: &Live) {
        let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.options.interrupter.should_stop() && lock().error.is_none() {
            let Some(index) = lock().open.pop_front() else { return };
            let (job, began) = (&self.jobs[index], std::time::Instant::now());
            let place = job.dir().strip_prefix(&self.options.out).unwrap_or(job.dir()).display().to_string();
            live.begin(device, &place);
            let mut watch = |log: &Path| live.follow(device, log);
            let result = job.run(&self.options.devices[device], &self.options.interrupter, &mut watch);
            let mut state = lock();
            state.done += 1;
            let count = format!("[{}/{}] {place}", state.done, self.jobs.len());
            let seconds = began.elapsed().as_secs_f64();
            match &result {
                Ok(Progress::Done) => live.say(&format!("{count}: done in {seconds:.0} s")),
                Ok(Progress::Failed(why)) => live.say(&format!("{count}: failed: {why}")),
                Ok(Progress::Open) => live.say(&format!("{count}: stopped, with a checkpoint")),
                Err(_) => {}
            }
            live.end(device, state.done);
            match result {
                Ok(progress) => state.progress[index] = progress,
                Err(error) => state.error = Some(error),
            }
        }
    }

    fn report(&self, progress: &[Progress]) -> Result<ExperimentReport> {
        let (out, split) = (&self.options.out, self.config.evaluate.split);
        let mut states = self.jobs.iter().zip(progress);
        let mut rows = Vec::new();
        for name in &self.config.baselines {
            let runs = states.by_ref().take(1).map(|(job, progress)| result(job, progress, out)).collect();
            rows.push(read_row(out, name, Default::default(), runs, split)?);
        }
        for Cell { name, set, runs } in &self.cells {
            let runs = states.by_ref().take(runs.len()).map(|(job, progress)| result(job, progress, out)).collect();
            let set = set.iter().map(|(key, value)| Ok((key.clone(), serde_json::to_value(value).context(key)?)));
            rows.push(read_row(out, name, set.collect::<Result<_>>()?, runs, split)?);
        }
        let (mut baselines, ranked): (Vec<Row>, Vec<_>) = rows.into_iter().unzip();
        let (comparisons, not_compared) = compare(&ranked, best(&baselines))?;
        let cells = baselines.split_off(self.config.baselines.len());
        let (run, limit) = (self.config.run.clone(), self.config.evaluate.limit);
        Ok(ExperimentReport { run, split, limit, cells, baselines, comparisons, not_compared })
    }

    fn write(&self, report: &ExperimentReport) -> Result<()> {
        let path = |name: &str| self.options.out.join(name);
        let json = serde_json::to_string_pretty(report).context(RESULTS)? + "\n";
        write_atomic(&path("results.csv"), &csv(report)?)?;
        write_atomic(&path("results.md"), markdown(report).as_bytes())?;
        write_atomic(&path("results.tex"), latex(report).as_bytes())?;
        write_atomic(&path(RESULTS), json.as_bytes())
    }
}

/// State that the devices' threads share.
struct Shared<'a> {
    open: VecDeque<usize>,
    progress: &'a mut Vec<Progress>,
    done: usize,
    error: Option<Error>,
}

fn result(job: &Job, progress: &Progress, out: &Path) -> RunResult {
    let (seed, key, corpus) = match job {
        Job::Run(job) => (Some(job.run.seed), job.key(), job.corpus.clone()),
        Job::Baseline(job) => (None, job.state().key, job.digest.clone()),
    };
    let (status, why) = match progress {
        Progress::Done => (Status::Done, None),
        Progress::Failed(why) => (Status::Failed, Some(why.clone())),
        Progress::Open => (Status::Open, None),
    };
    let dir = job.dir().strip_prefix(out).unwrap_or(job.dir()).to_path_buf();
    RunResult { seed, dir, key, corpus, status, why, summary: None }
}

fn baseline_dir(name: &str) -> PathBuf {
    Path::new("baselines").join(file_name(name))
}

fn run_dir(cell: &str, seed: u64) -> PathBuf {
    Path::new("cells").join(cell).join(format!("seed-{seed}"))
}

/// Keeps a second process from the experiment.
fn lock(out: &Path) -> Result<fs::File> {
    let path = out.join(".lock");
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path).context(path.display())?;
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::usage(format!("{}: another process runs this experiment", out.display())))
        }
        // Or a file system without locks.
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}
