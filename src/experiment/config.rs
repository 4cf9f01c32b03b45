//! The experiment file: which runs, seeds and baselines make a table.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::axes::{Axis, Variant, combinations};
use crate::config::{Extended, Objective, RunConfig, Scoring, read_extended};
use crate::core::files::sha256;
use crate::data::Split;
use crate::rankers::RankerSpec;
use crate::{Error, Result};

/// Most runs of an experiment.
const MOST_RUNS: usize = 10_000;

/// An experiment file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentConfig {
    /// The run file that all cells start from; relative to the working directory, as all paths in
    /// run files.
    pub run: PathBuf,
    /// Seeds of each cell's runs: the run file's `seed`.
    pub seeds: Vec<u64>,
    /// Rankers without a language model to compare with, as `itemlm baseline` takes them.
    #[serde(default)]
    pub baselines: Vec<String>,
    /// Every combination of the axes' values is a cell. A name that is a key of the run file has a
    /// list of its values; any other name has a list of tables, each with a `name` and the keys
    /// that it sets, if any. Keys are as in `--set`.
    #[serde(default)]
    pub axes: toml::Table,
    /// Options of the ranking, as the flags of `itemlm evaluate`.
    #[serde(default)]
    pub evaluate: EvaluateKeys,
}

/// `[evaluate]` of an experiment file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateKeys {
    /// Split whose windows are ranked.
    #[serde(default = "test")]
    pub split: Split,
    /// The first so many windows; all by default.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Beams in place of the run file's.
    #[serde(default)]
    pub beams: Option<usize>,
    /// Scoring in place of the run file's.
    #[serde(default)]
    pub scoring: Option<Scoring>,
    /// Length penalty in place of the run file's.
    #[serde(default)]
    pub length_penalty: Option<f64>,
    /// Weight of the prior in place of the run file's.
    #[serde(default)]
    pub prior_weight: Option<f64>,
    /// The prompt set, of runs with `data.prompt_sets`.
    #[serde(default)]
    pub task: Option<String>,
    /// The prompt of the set: `seen:N` or `unseen`.
    #[serde(default)]
    pub prompt: Option<String>,
}

fn test() -> Split {
    Split::Test
}

impl Default for EvaluateKeys {
    fn default() -> Self {
        Self {
            split: test(),
            limit: None,
            beams: None,
            scoring: None,
            length_penalty: None,
            prior_weight: None,
            task: None,
            prompt: None,
        }
    }
}

impl EvaluateKeys {
    /// Returns the options of `itemlm evaluate`.
    pub fn options(&self) -> Vec<(&'static str, String)> {
        let scoring = self.scoring.map(|scoring| if scoring == Scoring::Full { "full" } else { "masked" });
        let more = [
            ("beams", self.beams.map(|n| n.to_string())),
            ("scoring", scoring.map(String::from)),
            ("length-penalty", self.length_penalty.map(|x| x.to_string())),
            ("prior-weight", self.prior_weight.map(|x| x.to_string())),
            ("task", self.task.clone()),
            ("prompt", self.prompt.clone()),
        ];
        let more = more.into_iter().filter_map(|(name, value)| Some((name, value?)));
        self.windows().into_iter().chain(more).collect()
    }

    /// Returns those of the options that `itemlm baseline` takes as well: which windows are ranked.
    pub fn windows(&self) -> Vec<(&'static str, String)> {
        let limit = self.limit.map(|n| ("limit", n.to_string()));
        [("split", self.split.to_string())].into_iter().chain(limit).collect()
    }
}

/// A combination of the axes' values: one row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Name of the row and of the cell's directory.
    pub name: String,
    /// The keys that the cell sets, in the order of the axes.
    pub set: Vec<(String, toml::Value)>,
    /// A run a seed, in the order of the seeds.
    pub runs: Vec<CellRun>,
}

/// A run of a cell.
#[derive(Debug, Clone, PartialEq)]
pub struct CellRun {
    /// The seed.
    pub seed: u64,
    /// The run file, with the cell's keys and the seed in it.
    pub config: RunConfig,
    /// [`CellRun::config`] as TOML.
    pub toml: String,
}

impl ExperimentConfig {
    /// Reads an experiment file, and those that it extends as a run file does.
    ///
    /// # Errors
    /// An unreadable file (exit 1); bad TOML, an unknown key, a value out of range or a baseline
    /// that does not exist (exit 2).
    pub fn open(path: &Path) -> Result<Self> {
        let Extended { table, name } = read_extended(path)?;
        let usage = |e: &dyn std::fmt::Display| Error::usage(format!("{name}: {e}"));
        let config: Self = table.try_into().map_err(|e: toml::de::Error| usage(&e))?;
        config.validate().map_err(|e| usage(&e))?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        let distinct: BTreeSet<&u64> = self.seeds.iter().collect();
        if self.seeds.is_empty() || distinct.len() < self.seeds.len() {
            return Err(Error::usage("seeds must be a list of at least one number, each of them once"));
        }
        if self.seeds.iter().any(|&seed| seed > i64::MAX as u64) {
            return Err(Error::usage("seeds: a seed must be below 2^63"));
        }
        for (index, name) in self.baselines.iter().enumerate() {
            RankerSpec::new(name, toml::Table::new()).map_err(|e| Error::usage(format!("baselines: {e}")))?;
            if self.baselines[..index].contains(name) {
                return Err(Error::usage(format!("baselines: {name} is there twice")));
            }
        }
        for (key, value) in [("limit", self.evaluate.limit), ("beams", self.evaluate.beams)] {
            if value == Some(0) {
                return Err(Error::usage(format!("evaluate.{key} is 0, it must be at least 1")));
            }
        }
        let axes = self.axes()?;
        let runs = axes.iter().try_fold(self.seeds.len(), |runs, axis| runs.checked_mul(axis.variants.len()));
        match runs.filter(|&runs| runs <= MOST_RUNS) {
            Some(_) => Ok(()),
            None => Err(Error::usage(format!("axes and seeds make more than {MOST_RUNS} runs"))),
        }
    }

    /// Returns the axes in the order of their names.
    fn axes(&self) -> Result<Vec<Axis>> {
        let names: Vec<&str> = self.axes.keys().map(String::as_str).collect();
        let mut axes: Vec<Axis> =
            self.axes.iter().map(|(name, value)| Axis::new(name, value, &names)).collect::<Result<_>>()?;
        axes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(axes)
    }

    /// Returns the cells in the order of the axes' values, the first axis the slowest; with the
    /// run file of each run.
    ///
    /// # Errors
    /// A run file that cannot be read; usage errors of a cell's run file, with the cell's name; a
    /// run that writes texts.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let axes = self.axes()?;
        let mut cells: Vec<Cell> = Vec::new();
        let mut names = BTreeSet::new();
        for combination in combinations(&axes) {
            let mut set: Vec<(String, toml::Value)> = combination.iter().flat_map(|v| v.set.clone()).collect();
            let name = self.cell_name(&combination);
            if !names.insert(name.clone()) {
                return Err(Error::usage(format!("axes: two cells have the name {name}")));
            }
            // The rows of the table, and what they beat, are told apart by their names.
            if self.baselines.contains(&name) {
                return Err(Error::usage(format!(
                    "axes: the cell {name} has the name of a baseline; name it otherwise"
                )));
            }
            // A table before the keys in it, which it would else replace.
            set.sort_by_key(|(key, _)| key.matches('.').count());
            if let Some((key, _)) = set.iter().enumerate().find_map(|(n, pair)| set[..n].iter().find(|p| p.0 == pair.0))
            {
                return Err(Error::usage(format!("axes: in the cell {name} two axes set {key}")));
            }
            let runs: Vec<CellRun> =
                self.seeds.iter().map(|&seed| self.run(&name, &set, seed)).collect::<Result<_>>()?;
            if let Some(same) = cells.iter().find(|cell| cell.runs[0].toml == runs[0].toml) {
                let other = &same.name;
                return Err(Error::usage(format!(
                    "axes: the cells {other} and {name} are one run file; leave one out"
                )));
            }
            cells.push(Cell { name, set, runs });
        }
        Ok(cells)
    }

    fn cell_name(&self, combination: &[&Variant]) -> String {
        let labels: Vec<&str> = combination.iter().map(|variant| variant.label.as_str()).collect();
        let stem = || self.run.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
        file_name(&if labels.is_empty() { stem() } else { labels.join(",") })
    }

    fn run(&self, cell: &str, set: &[(String, toml::Value)], seed: u64) -> Result<CellRun> {
        let assignments = set.iter().map(|(key, value)| format!("{key}={value}"));
        let assignments: Vec<String> = assignments.chain([format!("seed={seed}")]).collect();
        let config = RunConfig::open(&self.run, &assignments).map_err(|e| match e.exit_code() {
            2 => Error::usage(format!("cell {cell}: {e}")),
            _ => e,
        })?;
        if config.objective() != Objective::Items {
            return Err(Error::usage(format!(
                "{}: a run with data.text_tasks ranks no items, so no table can compare it",
                self.run.display()
            )));
        }
        Ok(CellRun { seed, toml: config.to_toml()?, config })
    }

    /// Returns the corpora of the cells, each once, in the order of the cells.
    pub fn corpora(cells: &[Cell]) -> Vec<String> {
        let mut corpora: Vec<String> = Vec::new();
        for run in cells.iter().flat_map(|cell| &cell.runs) {
            if !corpora.contains(&run.config.data.corpus) {
                corpora.push(run.config.data.corpus.clone());
            }
        }
        corpora
    }
}

/// Makes a file's name of any text: letters, digits and `.,=+-_` stay, all else is `_`. Of a long
/// text the end is replaced by its SHA-256.
pub(super) fn file_name(text: &str) -> String {
    const LONGEST: usize = 120;
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".,=+-_".contains(c);
    let mut name: String = text.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    if name.len() > LONGEST {
        name.truncate(LONGEST - 9);
        name += &format!("-{}", &sha256(text.as_bytes())[..8]);
    }
    name
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with a run file, and the experiment file of `text`.
    fn open(text: &str) -> (tempfile::TempDir, Result<ExperimentConfig>) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("run.toml"), "[data]\ncorpus = \"c\"\n[llm]\npath = \"m\"\n").unwrap();
        let text = format!("run = {:?}\n{text}", path("run.toml"));
        fs::write(path("grid.toml"), text).unwrap();
        let config = ExperimentConfig::open(&dir.path().join("grid.toml"));
        (dir, config)
    }

    #[test]
    fn every_combination_is_a_cell() {
        let (_dir, config) = open(
            "seeds = [1, 2]\n[axes]\n\"loss.kind\" = [\"lml\", \"msl\"]\n\"loss.temperature\" = [1.5, 3]\n[evaluate]\n\
             limit = 20\nscoring = \"full\"\n",
        );
        let config = config.unwrap();
        let cells = config.cells().unwrap();
        let names: Vec<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "kind=lml,temperature=1.5",
                "kind=lml,temperature=3",
                "kind=msl,temperature=1.5",
                "kind=msl,temperature=3"
            ]
        );
        let run = &cells[2].runs[1];
        assert_eq!((run.seed, run.config.seed), (2, 2));
        assert_eq!(run.config.loss.temperature, crate::config::Temperature::Fixed(1.5));
        let files: BTreeSet<&String> = cells.iter().flat_map(|cell| &cell.runs).map(|run| &run.toml).collect();
        assert_eq!(files.len(), 8, "every run has its run file");
        let options: Vec<String> =
            config.evaluate.options().iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(options, ["split=test", "limit=20", "scoring=full"]);
        assert_eq!(config.evaluate.windows().len(), 2);
        assert_eq!(ExperimentConfig::corpora(&cells).len(), 1);
    }

    #[test]
    fn named_variants_and_no_axes() {
        let (_dir, config) = open(
            "seeds = [1]\n[axes]\nmethod = [\n{ name = \"MSL + ATS\", \"loss.kind\" = \"msl\", \"decode.scoring\" = \
             \"full\" },\n{ name = \"LML\", \"loss.kind\" = \"lml\" },\n]\n",
        );
        let cells = config.unwrap().cells().unwrap();
        assert_eq!((cells[0].name.as_str(), cells[1].name.as_str()), ("MSL_+_ATS", "LML"));
        assert_eq!(cells[0].runs[0].config.decode.scoring, Scoring::Full);
        assert_eq!(cells[0].set.len(), 2);
        let (_dir, config) = open("seeds = [1]\n");
        let cells = config.unwrap().cells().unwrap();
        assert_eq!((cells.len(), cells[0].name.as_str(), cells[0].set.len()), (1, "run", 0));
        // A table does not replace the key in it that another axis sets, whichever name sorts
        // first.
        let (_dir, config) = open(
            "seeds = [1]\n[axes]\n\"items.queries\" = [2, 4]\nz = [{ name = \"MLP\", items = { encoder = \"mlp\", \
             vectors = \"v\" } }]\n",
        );
        let queries: Vec<_> = config.unwrap().cells().unwrap().iter().map(|c| c.runs[0].config.items.queries).collect();
        assert_eq!(queries, [Some(2), Some(4)]);
    }

    #[test]
    fn one_error_names_the_key() {
        for (text, named) in [
            ("seeds = []\n", "seeds"),
            ("seeds = [1, 1]\n", "seeds"),
            ("", "seeds"),
            ("seeds = [1]\nbaseline = [\"markov\"]\n", "baseline"),
            ("seeds = [1]\nbaselines = [\"magic\"]\n", "magic"),
            ("seeds = [1]\nbaselines = [\"text\", \"text\"]\n", "twice"),
            ("seeds = [1]\n[axes]\n\"loss.kind\" = \"lml\"\n", "loss.kind"),
            ("seeds = [1]\n[axes]\n\"loss.kind\" = []\n", "loss.kind"),
            ("seeds = [1]\n[axes]\n\"loss.kind\" = [\"lml\", \"lml\"]\n", "twice"),
            ("seeds = [1]\n[axes]\nseed = [1, 2]\n", "seeds"),
            ("seeds = [1]\n[axes]\nx = [{ name = \"a\", seed = 2 }]\n", "seeds"),
            ("seeds = [1]\n[axes]\nx = [{ name = \"a\", \"loss.kind\" = \"lml\" }, 3]\n", "name"),
            ("seeds = [1]\n[evaluate]\nlimits = 3\n", "limits"),
            ("seeds = [1]\n[evaluate]\nlimit = 0\n", "evaluate.limit"),
            ("seeds = [1]\n[evaluate]\nsplit = \"all\"\n", "split"),
        ] {
            let error = open(text).1.unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains(named), "{text}: {error}");
        }
        for (axis, named) in [
            ("\"loss.kind\" = [\"lml\", \"mse\"]", "cell kind=mse"),
            ("los = [1]", "cell los=1"),
            ("x = [{ name = \"a+b\" }, { name = \"a b\", \"train.epochs\" = 9 }, { name = \"a_b\" }]", "name a_b"),
            ("x = [{ name = \"text\" }]", "text has the name of a baseline"),
            ("x = [{ name = \"a\", \"loss.kind\" = \"lml\" }]\n\"loss.kind\" = [\"msl\"]", "two axes set loss.kind"),
            ("\"loss.temperature\" = [1, 1.0]", "temperature=1 and temperature=1.0 are one run file"),
        ] {
            let (_dir, config) = open(&format!("seeds = [1]\nbaselines = [\"text\"]\n[axes]\n{axis}\n"));
            let error = config.unwrap().cells().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{axis}");
            assert!(error.to_string().contains(named), "{axis}: {error}");
        }
        let large: String = (0..4).map(|n| format!("x{n} = {:?}\n", (0..12).collect::<Vec<_>>())).collect();
        assert!(open(&format!("seeds = [1]\n[axes]\n{large}")).1.unwrap_err().to_string().contains("10000 runs"));
    }

    #[test]
    fn names_of_files() {
        assert_eq!(file_name("aligned=runs/ilm-it"), "aligned=runs_ilm-it");
        assert_eq!(file_name(".."), "_.");
        let long = |c: &str| file_name(&c.repeat(200));
        assert!(long("a").len() == 120 && long("a") != file_name(&"a".repeat(201)));
        assert_eq!(file_name(&"ü".repeat(300)).len(), 120);
    }
}
