//! Sources of prompts: an asset that is embedded in the program, or a file.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Context, Error, Result};

/// Largest file of prompts, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Assets of one kind, each with its name.
pub(super) struct Library {
    /// The kind of the assets, for errors: "prompt template".
    pub kind: &'static str,
    /// Name and text of each asset.
    pub embedded: &'static [(&'static str, &'static str)],
}

impl Library {
    /// Returns the text of the embedded asset `name`, or else of the file at the path `name`.
    ///
    /// # Errors
    /// `name` is neither; the file cannot be read, is larger than 1 MiB or not UTF-8.
    pub fn read(&self, name: &str) -> Result<Cow<'static, str>> {
        if let Some((_, text)) = self.embedded.iter().find(|(embedded, _)| *embedded == name) {
            return Ok(Cow::Borrowed(text));
        }
        if !Path::new(name).is_file() {
            let names: Vec<&str> = self.embedded.iter().map(|(name, _)| *name).collect();
            return Err(Error::usage(format!(
                "{} {name:?} is neither a file nor an embedded one ({})",
                self.kind,
                names.join(", ")
            )));
        }
        let mut bytes = Vec::new();
        File::open(name)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .context(format_args!("{} {name}", self.kind))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(self.refuse(name, format_args!("it is larger than {MAX_BYTES} bytes")));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Cow::Owned(text)),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
                Err(self.refuse(name, format_args!("line {line} is not UTF-8")))
            }
        }
    }

    /// Returns a usage error about `name`, an asset or a file of this kind.
    pub fn refuse(&self, name: &str, what: impl std::fmt::Display) -> Error {
        Error::usage(format!("{} {name}: {what}", self.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLOURS: Library = Library { kind: "colour", embedded: &[("red", "#f00"), ("blue", "#00f")] };

    #[test]
    fn embedded_first_then_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.txt");
        let name = path.to_str().unwrap();
        let error = || COLOURS.read(name).unwrap_err().to_string();
        assert_eq!(COLOURS.read("red").unwrap(), "#f00");
        assert!(error().contains("mine.txt") && error().contains("neither") && error().contains("red, blue"));
        std::fs::write(&path, "a\nb").unwrap();
        assert_eq!(COLOURS.read(name).unwrap(), "a\nb");
        std::fs::write(&path, b"a\nb\xff").unwrap();
        assert!(error().contains("mine.txt: line 2 is not UTF-8"));
        std::fs::write(&path, "x".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(error().contains("larger"));
        assert!(COLOURS.read(dir.path().to_str().unwrap()).is_err(), "a directory is no file");
        assert_eq!(COLOURS.read("").unwrap_err().exit_code(), 2);
    }
}
