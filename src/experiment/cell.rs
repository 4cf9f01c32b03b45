//! A run of a cell: its directory, what is done of it, and the child processes that do the rest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::train::Interrupter;
use serde::{Deserialize, Serialize};

use super::config::{CellRun, EvaluateKeys};
use super::inputs::file_digest;
use super::process::{Arguments, ChildExit, run_child};
use super::results::run_key;
use crate::core::energy::{EnergyMeter, POWERCAP};
use crate::core::files::write_atomic;
use crate::data::Split;
use crate::run::{dir, evaluation_file};
use crate::{Context, Error, Result};

/// Longest wait for a run's lock, which a killed process may hold until it is gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// Contents of `cell.json` in a run directory of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// SHA-256 of the resolved run file and the corpus.
    pub key: String,
    /// SHA-256 of the corpus's `corpus.toml`.
    pub corpus: String,
    /// Digests of the other files that the run reads, by their paths; empty in directories of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, String>,
    /// Whether the last optimiser step is done.
    pub trained: bool,
    /// The options of `evaluate` whose results the directory holds, as `name=value`.
    pub evaluated: Option<Vec<String>>,
    /// Digests of the files with those results, by their names; empty in directories of earlier
    /// versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub results: BTreeMap<String, String>,
    /// Energy of the machine's processors while the run trained and was evaluated, joules; absent
    /// where the system does not tell it, and where several runs shared the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules: Option<f64>,
}

impl State {
    /// Reads the state of a run directory; none where there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or that this program has not written.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(dir::CELL);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).context(path.display())?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).context(path.display()),
        }
    }

    /// Adds what a meter counted to `before`, the energy of earlier executions. Of a run that was
    /// once executed without a meter nothing is known.
    fn count_energy(&mut self, before: Option<f64>, meter: Option<&mut EnergyMeter>) {
        self.joules = before.and_then(|before| Some(before + meter?.joules()));
    }

    /// Returns whether the results of a split are there as they were written: another `evaluate`
    /// writes files of the same names.
    fn has_results(&self, run: &Path, split: Split) -> bool {
        let there = results(run, split);
        let needed = [evaluation_file(split), format!("ranks-{split}.parquet")];
        needed.iter().all(|name| there.contains_key(name)) && (self.results.is_empty() || self.results == there)
    }

    fn write(&self, run: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context(dir::CELL)?;
        write_atomic(&run.join(dir::CELL), json.as_bytes())
    }
}

/// Progress of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing is left to do.
    Done,
    /// It failed; the reason.
    Failed(String),
    /// It has not begun, or was stopped.
    Open,
}

/// A run of a cell, and where it is.
#[derive(Debug, Clone)]
pub(super) struct RunJob {
    /// The run directory.
    pub dir: PathBuf,
    /// The run file, resolved.
    pub run: CellRun,
    /// SHA-256 of the corpus's `corpus.toml`.
    pub corpus: String,
    /// Digests of the other files that it reads, by their paths.
    pub inputs: BTreeMap<String, String>,
    /// Options of its evaluation.
    pub evaluate: EvaluateKeys,
    /// Whether no other run shares the machine.
    pub alone: bool,
}

impl RunJob {
    /// Returns the SHA-256 of the run file and the corpus.
    pub fn key(&self) -> String {
        run_key(&self.run.toml, &self.corpus)
    }

    /// Returns whether all is done.
    ///
    /// # Errors
    /// A usage error where the directory holds a run of another run file or corpus.
    pub fn progress(&self) -> Result<Progress> {
        let place = self.dir.display();
        let Some(state) = State::read(&self.dir)? else {
            return match self.dir.exists() && !dir::is_blank(&self.dir) {
                true => Err(Error::usage(format!("{place}: is no run of an experiment; choose another option `out`"))),
                false => Ok(Progress::Open),
            };
        };
        // Of a run that failed before its first step nothing is left that a change could spoil.
        if dir::is_blank(&self.dir) {
            return Ok(Progress::Open);
        }
        // A file that is gone, or that an earlier version did not record, is not known to differ.
        let changed =
            state.inputs.iter().find(|(path, before)| self.inputs.get(*path).is_some_and(|now| now != *before));
        let what = match (state.key == self.key(), changed) {
            (true, None) => None,
            (true, Some((path, _))) => Some(format!("another {path} than is there now")),
            (false, _) if state.corpus == self.corpus => Some(self.changed_line()),
            (false, _) => Some(format!("another corpus than {} holds now", self.run.config.data.corpus)),
        };
        if let Some(what) = what {
            return Err(Error::usage(format!(
                "{place}: was begun with {what}; choose another option `out`, or delete that directory"
            )));
        }
        let done = state.trained
            && state.evaluated.as_ref() == Some(&words(&self.evaluate.options()))
            && state.has_results(&self.dir, self.evaluate.split);
        Ok(if done { Progress::Done } else { Progress::Open })
    }

    /// Returns the first line in which the directory's run file differs.
    fn changed_line(&self) -> String {
        let before = fs::read_to_string(self.dir.join(dir::CELL_RUN)).unwrap_or_default();
        let pair = before.lines().zip(self.run.toml.lines()).find(|(before, now)| before != now);
        pair.map_or("another run file".into(), |(before, now)| format!("`{before}`, not `{now}`"))
    }

    /// Trains and evaluates, as far as that is not done.
    ///
    /// * `watch`: gets the log of the child at hand twice a second.
    ///
    /// # Errors
    /// A directory that cannot be written, a child that cannot be started. What a child fails with
    /// is no error but [`Progress::Failed`].
    pub fn run(&self, device: &str, interrupter: &Interrupter, watch: &mut dyn FnMut(&Path)) -> Result<Progress> {
        fs::create_dir_all(&self.dir).context(self.dir.display())?;
        let mut energy = if self.alone { EnergyMeter::open(Path::new(POWERCAP)) } else { None };
        let path = |name: &str| self.dir.join(name).display().to_string();
        let begun = if dir::is_blank(&self.dir) { None } else { State::read(&self.dir)? };
        let mut state = begun.unwrap_or_else(|| State {
            key: self.key(),
            corpus: self.corpus.clone(),
            inputs: self.inputs.clone(),
            trained: false,
            evaluated: None,
            results: BTreeMap::new(),
            joules: energy.is_some().then_some(0.0),
        });
        // If this process is killed, nothing is known of the energy.
        let joules_before = state.joules.take();
        write_atomic(&self.dir.join(dir::CELL_RUN), self.run.toml.as_bytes())?;
        state.write(&self.dir)?;
        let out = self.dir.display().to_string();
        if !state.trained {
            self.wait_for_lock()?;
            let (config, log) = (path(dir::CELL_RUN), self.dir.join("train.log"));
            let arguments = Arguments::new("train", &[&config]).option("out", &out).option("backend", device);
            let arguments = arguments.option("ui", "plain").flag("json");
            let arguments = if dir::is_run(&self.dir) { arguments.flag("resume") } else { arguments };
            let ended = run_child(&arguments, &log, interrupter, &mut |log| {
                watch(log);
                // A counter must be read before it has gone round.
                energy.as_mut().map(EnergyMeter::joules);
            })?;
            state.count_energy(joules_before, energy.as_mut());
            state.write(&self.dir)?;
            match ended {
                ChildExit::Success(report) => match is_complete(&report).context(log.display())? {
                    true => state.trained = true,
                    false => return Ok(Progress::Open),
                },
                ChildExit::Failure(why) => return Ok(Progress::Failed(format!("train: {why}"))),
                ChildExit::Stopped => return Ok(Progress::Open),
            }
            state.write(&self.dir)?;
        }
        // What an interrupted evaluation leaves is no result of the one before.
        state.evaluated = None;
        state.results.clear();
        state.joules = None;
        state.write(&self.dir)?;
        let options = self.evaluate.options();
        let arguments = Arguments::new("evaluate", &[&out]).option("backend", device).flag("json").options(&options);
        let ended = run_child(&arguments, &self.dir.join("evaluate.log"), interrupter, &mut |log| {
            watch(log);
            energy.as_mut().map(EnergyMeter::joules);
        })?;
        state.count_energy(joules_before, energy.as_mut());
        match ended {
            ChildExit::Success(_) => {
                state.evaluated = Some(words(&options));
                state.results = results(&self.dir, self.evaluate.split);
                state.write(&self.dir)?;
                Ok(Progress::Done)
            }
            ChildExit::Failure(why) => Ok(Progress::Failed(format!("evaluate: {why}"))),
            ChildExit::Stopped => Ok(Progress::Open),
        }
    }

    /// Waits until no process trains the run: a killed one may take a moment to be gone.
    fn wait_for_lock(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            match dir::lock(&self.dir) {
                Err(_) if began.elapsed() < LOCK_PATIENCE => std::thread::sleep(Duration::from_millis(50)),
                other => return other.map(drop),
            }
        }
    }
}

/// Returns the digests of those files of an evaluation that are there, by their names.
fn results(dir: &Path, split: Split) -> BTreeMap<String, String> {
    let names = [evaluation_file(split), format!("ranks-{split}.parquet"), format!("lists-{split}.parquet")];
    names.into_iter().filter_map(|name| Some((name.clone(), file_digest(&dir.join(name)).ok()?))).collect()
}

fn words(options: &[(&str, String)]) -> Vec<String> {
    options.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Returns whether a report of `train --json` is of a run whose last step is done.
fn is_complete(report: &str) -> Result<bool> {
    #[derive(Deserialize)]
    struct Steps {
        steps: usize,
        total_steps: usize,
    }
    let Steps { steps, total_steps } = serde_json::from_str(report).context("report of train")?;
    Ok(steps >= total_steps)
}

/// A baseline on a corpus, and where its results are.
#[derive(Debug, Clone)]
pub(super) struct BaselineJob {
    /// Directory of the results.
    pub dir: PathBuf,
    /// Name of the ranker.
    pub name: String,
    /// Corpus directory.
    pub corpus: String,
    /// SHA-256 of the corpus's `corpus.toml`.
    pub digest: String,
    /// Options of its evaluation.
    pub evaluate: EvaluateKeys,
}

impl BaselineJob {
    /// Returns the state that the results belong to.
    pub fn state(&self) -> State {
        let key = crate::core::files::sha256(format!("{}\n{}", self.name, self.digest).as_bytes());
        let (corpus, evaluated) = (self.digest.clone(), Some(words(&self.evaluate.windows())));
        State { key, corpus, inputs: BTreeMap::new(), trained: true, evaluated, results: BTreeMap::new(), joules: None }
    }

    /// Returns whether the results are there. Those of another corpus, split or limit are made
    /// anew: a baseline takes seconds.
    ///
    /// # Errors
    /// A file that this program has not written.
    pub fn progress(&self) -> Result<Progress> {
        let done = State::read(&self.dir)?.is_some_and(|state| {
            let same = State { results: BTreeMap::new(), ..state.clone() } == self.state();
            same && state.has_results(&self.dir, self.evaluate.split)
        });
        Ok(if done { Progress::Done } else { Progress::Open })
    }

    /// Fits and ranks.
    ///
    /// * `watch`: gets the log of the child twice a second.
    ///
    /// # Errors
    /// A directory that cannot be written, a child that cannot be started.
    pub fn run(&self, device: &str, interrupter: &Interrupter, watch: &mut dyn FnMut(&Path)) -> Result<Progress> {
        fs::create_dir_all(&self.dir).context(self.dir.display())?;
        // What an interrupted ranking leaves is no result of the one before.
        State { evaluated: None, ..self.state() }.write(&self.dir)?;
        let arguments = Arguments::new("baseline", &[&self.name, &self.corpus]).option("backend", device).flag("json");
        let arguments = arguments.option("out", &self.dir.display().to_string()).options(&self.evaluate.windows());
        match run_child(&arguments, &self.dir.join("baseline.log"), interrupter, watch)? {
            ChildExit::Success(_) => {
                let results = results(&self.dir, self.evaluate.split);
                State { results, ..self.state() }.write(&self.dir)?;
                Ok(Progress::Done)
            }
            ChildExit::Failure(why) => Ok(Progress::Failed(format!("baseline: {why}"))),
            ChildExit::Stopped => Ok(Progress::Open),
        }
    }
}
