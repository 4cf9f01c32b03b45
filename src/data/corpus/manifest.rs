//! `corpus.toml`: what a corpus holds, where it comes from, and its files' SHA-256.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layout::MANIFEST;
use crate::{Context, Error, Result};

const FORMAT: u32 = 1;

/// The contents of `corpus.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout: 1.
    pub format: u32,
    /// The data set's name.
    pub name: String,
    /// Source of the data.
    pub source: String,
    /// The program that wrote it.
    pub software: String,
    /// Sentence about how the validation windows were chosen.
    pub validation: String,
    /// Number of training windows that became validation windows because none were released.
    pub valid_from_train: u32,
    /// Sizes.
    pub counts: Counts,
    /// The source's files.
    #[serde(default)]
    pub inputs: Vec<FileDigest>,
    /// The corpus's own files.
    pub files: Vec<FileDigest>,
    /// Steps from the source to the corpus.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// Sizes of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Users.
    pub users: usize,
    /// Items of the catalogue.
    pub items: usize,
    /// Interactions.
    pub interactions: usize,
    /// Training windows as released.
    pub train: usize,
    /// Validation windows.
    pub valid: usize,
    /// Test windows.
    pub test: usize,
}

/// A file's name, size and checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// File name, without its folder.
    pub name: String,
    /// Size, bytes.
    pub bytes: u64,
    /// SHA-256, in hex.
    pub sha256: String,
}

impl FileDigest {
    /// Returns the digest of a file with these contents.
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self { name: name.into(), bytes: bytes.len() as u64, sha256: crate::core::files::sha256(bytes) }
    }

    /// Returns the digest of a file.
    pub(in crate::data) fn from_file(path: &Path) -> Result<Self> {
        let mut hash = Sha256::new();
        let bytes = std::io::copy(&mut File::open(path).context(path.display())?, &mut hash).context(path.display())?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, bytes, sha256: crate::core::files::hex(&hash.finalize()) })
    }
}

/// One step from the source to the corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Name of the step.
    pub name: String,
    /// Rows before the step.
    pub before: usize,
    /// Rows after the step.
    pub after: usize,
    /// Users after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<usize>,
    /// Items after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<usize>,
    /// Description of the step.
    pub what: String,
}

/// Origin of a corpus, for `corpus.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Source of the data.
    pub source: String,
    /// The source's files.
    pub inputs: Vec<FileDigest>,
    /// Steps from the source to the corpus.
    pub steps: Vec<Step>,
}

impl Manifest {
    pub(in crate::data) fn new(
        name: String,
        provenance: Provenance,
        validation: String,
        valid_from_train: u32,
        counts: Counts,
        files: Vec<FileDigest>,
    ) -> Self {
        Self {
            format: FORMAT,
            name,
            source: provenance.source,
            software: format!("itemlm {}", env!("CARGO_PKG_VERSION")),
            validation,
            valid_from_train,
            counts,
            inputs: provenance.inputs,
            files,
            steps: provenance.steps,
        }
    }

    /// Writes `dir/corpus.toml`.
    pub(in crate::data) fn write(&self, dir: &Path) -> Result<()> {
        let text = toml::to_string(self).context(MANIFEST)?;
        write(&dir.join(MANIFEST), text.as_bytes())
    }

    /// Returns the SHA-256 of `dir/corpus.toml`, which holds the digests of the corpus's other
    /// files.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn digest(dir: &Path) -> Result<String> {
        let path = dir.join(MANIFEST);
        Ok(crate::core::files::sha256(&fs::read(&path).context(path.display())?))
    }

    /// Reads `dir/corpus.toml` and checks its version.
    pub fn read(dir: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let path = dir.join(MANIFEST);
        let shown = path.display();
        let text = fs::read_to_string(&path)
            .map_err(|e| Error::failed(format!("{shown}: {e}; is this what `prepare` wrote?")))?;
        let Version { format } = toml::from_str(&text).context(shown.to_string())?;
        if format != FORMAT {
            return Err(Error::failed(format!(
                "{shown}: format = {format}, this itemlm reads {FORMAT}: run `prepare` again"
            )));
        }
        toml::from_str(&text).context(shown)
    }
}

/// Writes and syncs a file of a corpus that is not at its final path yet.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).context(path.display())?;
    file.write_all(bytes).context(path.display())?;
    file.sync_all().context(path.display())
}
