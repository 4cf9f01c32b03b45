//! Steps from raw logs to a corpus: cleaning steps in order, a split, and the sizes that should
//! come out.

use std::fmt::{self, Display};
use std::fs;
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::data::sources::{Columns, TableOptions};
use crate::{Error, Result};

/// Source of raw data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// MSL's released windows: a folder with train.csv, test.csv, perhaps valid.csv,
    /// id2name4Rec.json
    Msl,
    /// Amazon reviews and metadata, as of 2014, 2018 or 2023
    Amazon,
    /// MovieLens 100K, 1M, 10M, 20M, 25M, 32M, latest
    Movielens,
    /// OpenP5's user sequences and item indexings
    Openp5,
    /// Any CSV, TSV, JSONL or Parquet files, with the names of their columns
    Table,
}

impl Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Msl => "msl",
            Self::Amazon => "amazon",
            Self::Movielens => "movielens",
            Self::Openp5 => "openp5",
            Self::Table => "table",
        })
    }
}

/// A configuration of `prepare`, as in `configs/data/`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareConfig {
    /// The data set's name; the output folder's by default.
    pub name: Option<String>,
    /// The source that the raw files must be of.
    pub source: Option<Source>,
    /// Format of the raw files, where their content should not decide.
    pub format: Option<String>,
    /// Instructions for getting the raw files.
    pub obtain: Option<String>,
    /// Licence or terms of the raw files.
    pub licence: Option<String>,
    /// Names of a table's columns.
    #[serde(default)]
    pub columns: Columns,
    /// Format of a table's files.
    #[serde(default)]
    pub table: TableOptions,
    /// Cleaning steps of the events, in order.
    pub steps: Vec<CleaningStep>,
    /// Protocol by which windows are cut and split.
    pub split: Protocol,
    /// Expected sizes of the corpus.
    pub expect: Option<ExpectedCounts>,
}

/// A cleaning step.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum CleaningStep {
    /// Drops events rated lower than `min`, and unrated ones.
    Rating {
        /// Lowest rating that stays.
        min: f32,
    },
    /// Keeps the first of events with the same user, item and time, in the order of the input. The
    /// source must have times.
    Duplicates {},
    /// Drops items without a title, or with nothing but white space for one.
    Titled {},
    /// Rewrites titles; drops none.
    CleanTitles {
        /// Decodes HTML entities: `&amp;` becomes `&`.
        #[serde(default)]
        entities: bool,
        /// Replaces control characters by spaces, and runs of white space by one space.
        #[serde(default)]
        control: bool,
    },
    /// Drops items by the length of their title in characters; an item without one has length 0.
    TitleLength {
        /// Length of the shortest title that stays, characters.
        #[serde(default)]
        min: usize,
        /// Length of the longest title that stays, characters.
        #[serde(default = "no_limit")]
        max: usize,
    },
    /// Keeps `count` items at random: those with the smallest SHA-256 of `seed:id`, whatever the
    /// order of the input.
    SampleItems {
        /// Number of items that stay.
        count: usize,
        /// Seed of the choice.
        seed: u64,
    },
    /// Drops users with fewer than `user` events and items with fewer than `item`, until there are
    /// no such users and items.
    KCore {
        /// Least number of events of a user.
        user: u32,
        /// Least number of events of an item.
        item: u32,
    },
}

fn no_limit() -> usize {
    usize::MAX
}

impl CleaningStep {
    /// Returns the step's name, as in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rating { .. } => "rating",
            Self::Duplicates {} => "duplicates",
            Self::Titled {} => "titled",
            Self::CleanTitles { .. } => "clean_titles",
            Self::TitleLength { .. } => "title_length",
            Self::SampleItems { .. } => "sample_items",
            Self::KCore { .. } => "k_core",
        }
    }
}

/// Protocol by which a user's sequence becomes windows, and by which these train, validate or test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "protocol", rename_all = "snake_case", deny_unknown_fields)]
pub enum Protocol {
    /// MSL (arXiv 2504.04178, section 5.1.1): users with more than `history` + 1 events give a
    /// window of `history` + 1 ending at each event from there on, others one window. All windows
    /// by their target's time: the first ⌊0.8 n⌋ train, those up to ⌊0.9 n⌋ validate, the rest
    /// test.
    Msl {
        /// Largest number of items before the target.
        #[serde(default = "msl_history")]
        history: u32,
    },
    /// OpenP5's protocol: a user's last event tests, the one before validates, every earlier one
    /// with an event before it trains. Users of fewer than three events only train.
    LeaveOneOut {
        /// Largest number of items before the target.
        #[serde(default = "openp5_history")]
        history: u32,
    },
}

fn msl_history() -> u32 {
    10
}

fn openp5_history() -> u32 {
    20
}

/// Expected sizes; those not given are not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedCounts {
    /// Users.
    pub users: Option<usize>,
    /// Items.
    pub items: Option<usize>,
    /// Interactions.
    pub interactions: Option<usize>,
    /// Training windows.
    pub train: Option<usize>,
    /// Validation windows.
    pub valid: Option<usize>,
    /// Test windows.
    pub test: Option<usize>,
}

impl PrepareConfig {
    /// Reads a configuration file.
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| Error::usage(format!("{}: {e}", path.display())))?;
        let config: Self = toml::from_str(&text).map_err(|e| Error::usage(format!("{}: {e}", path.display())))?;
        config.check().map_err(|what| Error::usage(format!("{}: {what}", path.display())))?;
        Ok(config)
    }

    /// Returns the configuration of a source that is given none: MSL's protocol, and for OpenP5's
    /// sequences OpenP5's.
    pub fn defaults(source: Source) -> Self {
        let (steps, split) = if source == Source::Openp5 {
            (vec![], Protocol::LeaveOneOut { history: openp5_history() })
        } else {
            (
                vec![CleaningStep::Titled {}, CleaningStep::KCore { user: 5, item: 5 }],
                Protocol::Msl { history: msl_history() },
            )
        };
        let columns = Columns::default();
        Self {
            name: None,
            source: None,
            format: None,
            obtain: None,
            licence: None,
            columns,
            table: TableOptions::default(),
            steps,
            split,
            expect: None,
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        let (Protocol::Msl { history } | Protocol::LeaveOneOut { history }) = self.split;
        if history == 0 {
            return Err("split.history must be 1 or more".into());
        }
        for step in &self.steps {
            match step {
                CleaningStep::Rating { min } if !min.is_finite() => {
                    return Err("steps: rating: min must be a number".into());
                }
                CleaningStep::TitleLength { min, max } if min > max => {
                    return Err(format!("steps: title_length: min {min} is above max {max}"));
                }
                CleaningStep::SampleItems { count: 0, .. } => {
                    return Err("steps: sample_items: count must be 1 or more".into());
                }
                CleaningStep::CleanTitles { entities: false, control: false } => {
                    return Err("steps: clean_titles: entities or control must be true".into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl ExpectedCounts {
    /// Returns one line for each size that differs, with both numbers.
    pub(super) fn compare(&self, users: usize, items: usize, interactions: usize, windows: [usize; 3]) -> Vec<String> {
        let [train, valid, test] = windows;
        let pairs = [
            ("users", self.users, users),
            ("items", self.items, items),
            ("interactions", self.interactions, interactions),
            ("train windows", self.train, train),
            ("valid windows", self.valid, valid),
            ("test windows", self.test, test),
        ];
        let differ = pairs.into_iter().filter_map(|(what, expected, found)| Some((what, expected?, found)));
        differ.filter(|(_, e, f)| e != f).map(|(what, e, f)| format!("{f} {what}, expected {e}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PrepareConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        PrepareConfig::open(file.path())
    }

    #[test]
    fn reads_steps_in_order() {
        let text = "source = \"amazon\"\n[[steps]]\nstep = \"rating\"\nmin = 4\n[[steps]]\nstep = \"titled\"\n\
                    [[steps]]\nstep = \"k_core\"\nuser = 5\nitem = 4\n[split]\nprotocol = \
                    \"leave_one_out\"\n[expect]\nusers = 3\n";
        let config = parse(text).unwrap();
        let steps =
            [CleaningStep::Rating { min: 4.0 }, CleaningStep::Titled {}, CleaningStep::KCore { user: 5, item: 4 }];
        assert_eq!(config.steps, steps);
        assert_eq!(config.split, Protocol::LeaveOneOut { history: 20 });
        let expected = config.expect.unwrap();
        assert_eq!(expected.compare(4, 1, 1, [1, 1, 1]), ["4 users, expected 3"]);
        assert!(expected.compare(3, 9, 9, [9, 9, 9]).is_empty());
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let split = "[split]\nprotocol = \"msl\"\n";
        for (text, what) in [
            (format!("steps = []\nsteeps = 1\n{split}"), "steeps"),
            (format!("[[steps]]\nstep = \"k_cor\"\n{split}"), "k_cor"),
            (format!("[[steps]]\nstep = \"k_core\"\nuser = -1\nitem = 2\n{split}"), "-1"),
            (format!("[[steps]]\nstep = \"sample_items\"\ncount = 0\nseed = 1\n{split}"), "count"),
            (format!("[[steps]]\nstep = \"title_length\"\nmin = 9\nmax = 3\n{split}"), "above"),
            ("steps = []\n[split]\nprotocol = \"msl\"\nhistory = 0\n".into(), "history"),
            ("steps = []\n".into(), "split"),
        ] {
            let error = parse(&text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
