//! The error type: its kind, its message, and the error that caused it.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;

/// The kind of an error: who can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Wrong usage or configuration: the caller asks for something that cannot be.
    Usage,
    /// The request names an item, a user, a file or a run that does not exist.
    NotFound,
    /// A file could not be read or written.
    Io,
    /// A model, whose files are damaged or whose numbers are not finite.
    Model,
    /// A device that died, or whose memory gave out. Its owner is of no use any more.
    Device,
    /// Bad data, and all other work that failed.
    Failed,
}

/// An error, shown to the user as one line, `error: <what, where, what to do>`.
///
/// The message names files, rows, keys and tensors. It names no flag of the command line. An option
/// of the library that is the remedy is named in the form "option `time_format`", which the command
/// line shows as its flag.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// A result with itemlm's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Makes an error of wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// Makes an error of work that failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// Makes an error of a name that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Makes an error of a model.
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Model, message)
    }

    /// Makes an error of a device.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Device, message)
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the exit code of a process that ends with this error: 2 for usage, else 1.
    pub fn exit_code(&self) -> u8 {
        if self.kind == ErrorKind::Usage { 2 } else { 1 }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line of characters that a terminal does not obey, whatever a library's message or a
        // file's name holds.
        let line = self.message.split_whitespace().collect::<Vec<_>>().join(" ");
        if !line.contains(char::is_control) {
            return f.write_str(&line);
        }
        line.chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.message) == (other.kind, &other.message)
    }
}

impl Eq for Error {}

/// Names the file, row, key or tensor that an error is about.
pub trait Context<T> {
    /// Turns `Err(e)` into an error with the message `<place>: <e>`.
    ///
    /// The kind is [`ErrorKind::Io`] for an [`io::Error`] and that of an [`Error`]; a usage error
    /// becomes [`ErrorKind::Failed`], for what a file says is no usage.
    fn context(self, place: impl Display) -> Result<T>;
}

impl<T, E: Display + Any> Context<T> for std::result::Result<T, E> {
    fn context(self, place: impl Display) -> Result<T> {
        self.map_err(|e| {
            let message = format!("{place}: {e}");
            let e: Box<dyn Any> = Box::new(e);
            let e = match e.downcast::<Error>() {
                Ok(e) => {
                    let kind = if e.kind == ErrorKind::Usage { ErrorKind::Failed } else { e.kind };
                    return Error { kind, message, source: e.source };
                }
                Err(e) => e,
            };
            match e.downcast::<io::Error>() {
                Ok(e) => Error { kind: ErrorKind::Io, message, source: Some(Arc::new(*e)) },
                Err(_) => Error::failed(message),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_kind_and_source() {
        let io: std::result::Result<(), _> = Err(io::Error::from(io::ErrorKind::NotFound));
        let error = io.context("a").context("b").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().starts_with("b: a: "), "{error}");
        assert!(error.source().is_some_and(|source| source.is::<io::Error>()));
        let kind = |error: Error| Err::<(), _>(error).context("x").unwrap_err().kind();
        assert_eq!(kind(Error::device("dead")), ErrorKind::Device);
        assert_eq!(kind(Error::usage("wrong")), ErrorKind::Failed);
        assert_eq!(Err::<(), _>("text").context("x").unwrap_err(), Error::failed("x: text"));
        assert_eq!((Error::usage("").exit_code(), Error::not_found("").exit_code()), (2, 1));
    }
}
