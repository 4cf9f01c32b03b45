//! Windows on the interaction log, and the split that each belongs to.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A slice of one user's interactions: the last one is the target, those before it the history,
/// oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Dense user index.
    pub user: u32,
    /// Offset of the oldest interaction in [`Corpus::interactions`](super::Corpus::interactions).
    pub start: u32,
    /// Number of interactions, the target included; at least 2.
    pub len: u32,
}

impl Window {
    /// Returns the window's offsets in [`Corpus::interactions`](super::Corpus::interactions).
    pub fn range(&self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        start..start.saturating_add(self.len as usize)
    }
}

/// Purpose of windows: training, validation or test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Windows to learn from.
    Train,
    /// Windows by which models and steps are chosen.
    Valid,
    /// Windows whose results are reported; nothing is chosen by them.
    Test,
}

impl Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "train" => Ok(Self::Train),
            "valid" => Ok(Self::Valid),
            "test" => Ok(Self::Test),
            _ => Err(Error::usage(format!("split `{text}`: use train, valid or test"))),
        }
    }
}

/// Number of windows of each split.
///
/// `train` counts all windows of the source's training file: where no validation windows were
/// released, it includes the `valid` ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowCounts {
    /// Training windows, as released.
    pub train: usize,
    /// Validation windows.
    pub valid: usize,
    /// Test windows, as released.
    pub test: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_by_name() {
        for split in [Split::Train, Split::Valid, Split::Test] {
            assert_eq!(split.to_string().parse::<Split>(), Ok(split));
        }
        assert_eq!("tset".parse::<Split>().unwrap_err().exit_code(), 2);
    }
}
