//! Atomic writes: a file is whole or absent, whenever the process dies.

use std::fs;
use std::io::{self, BufWriter, IntoInnerError, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{Context, Result};

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes `bytes` beside `path`, syncs them, then renames them onto it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = beside(path)?;
    file.write_all(bytes).context(path.display())?;
    persist(file, path)
}

/// As [`write_atomic`], of what `write` writes as it is made: its SHA-256 in hex.
pub fn write_atomic_with(path: &Path, write: impl FnOnce(&mut Digesting) -> io::Result<()>) -> Result<String> {
    let mut digesting = Digesting { file: BufWriter::with_capacity(1 << 20, beside(path)?), digest: Sha256::new() };
    write(&mut digesting).context(path.display())?;
    let file = digesting.file.into_inner().map_err(IntoInnerError::into_error).context(path.display())?;
    persist(file, path)?;
    Ok(hex(&digesting.digest.finalize()))
}

fn beside(path: &Path) -> Result<NamedTempFile> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    NamedTempFile::new_in(parent.unwrap_or(Path::new("."))).context(path.display())
}

/// A file, and the digest of what was written.
pub struct Digesting {
    file: BufWriter<NamedTempFile>,
    digest: Sha256,
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Syncs a whole file written beside `path`, then renames it onto it.
pub fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    file.as_file().sync_all().context(path.display())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644));
    }
    file.persist(path).map_err(|e| e.error).context(path.display())?;
    Ok(())
}
