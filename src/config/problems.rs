//! Everything that is wrong with a file, collected.

use crate::{Error, Result};

/// The problems of a file's values, in the order in which they are looked for.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    /// Adds a problem that names its key.
    pub(crate) fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// Adds the problem of a check that failed.
    pub(crate) fn add_error(&mut self, check: Result<()>) {
        self.0.extend(check.err().map(|error| error.to_string()));
    }

    /// Returns all of them.
    pub(crate) fn into_vec(self) -> Vec<String> {
        self.0
    }

    /// Returns the first as an error.
    ///
    /// # Errors
    /// A usage error, where there is one.
    pub(crate) fn first(self) -> Result<()> {
        self.0.into_iter().next().map_or(Ok(()), |problem| Err(Error::usage(problem)))
    }
}
