//! The one error type: what went wrong, where, and whose fault it is.

use std::fmt::{self, Display};

/// An error shown to the user as one line, `error: <what, where, what to do>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// The work failed (bad data, bad model file, full disk): exit code 1.
    Failed(String),
}

/// A result with itemlm's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// The work failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// The process exit code: 2 for usage, 1 for failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(message) | Self::Failed(message)) = self;
        // One line of characters that a terminal does not obey, whatever a library's message or a
        // file's name holds.
        let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
        if !line.contains(char::is_control) {
            return f.write_str(&line);
        }
        line.chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}

impl std::error::Error for Error {}

/// Names the file, row, key or tensor that a foreign error is about.
pub trait Context<T> {
    /// `Err(e)` becomes `Error::Failed("<place>: <e>")`.
    fn context(self, place: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, place: impl Display) -> Result<T> {
        self.map_err(|e| Error::Failed(format!("{place}: {e}")))
    }
}
