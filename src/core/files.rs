//! Atomic writes: a file is complete or absent, whenever the process dies.

use std::io::{self, BufWriter, IntoInnerError, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use serde::Serialize;

use crate::{Context, Error, Result};

/// Returns the SHA-256 of `bytes`, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns `bytes` in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes `bytes` beside `path`, syncs them, then renames them onto it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary_beside(path)?;
    file.write_all(bytes).context(path.display())?;
    persist(file, path)
}

/// Writes `value` to `path` as JSON for people, as [`write_atomic`] does.
///
/// # Errors
/// A value that JSON cannot hold; a file that cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value).context(path.display())?;
    write_atomic(path, json.as_bytes())
}

/// Writes what `write` produces to a temporary file beside `path`, syncs it, then renames it onto
/// `path`; returns the SHA-256 of the content, in hex.
pub fn write_atomic_with(path: &Path, write: impl FnOnce(&mut HashingWriter) -> io::Result<()>) -> Result<String> {
    let mut hashing =
        HashingWriter { file: BufWriter::with_capacity(1 << 20, temporary_beside(path)?), digest: Sha256::new() };
    write(&mut hashing).context(path.display())?;
    let file = hashing.file.into_inner().map_err(IntoInnerError::into_error).context(path.display())?;
    persist(file, path)?;
    Ok(hex(&hashing.digest.finalize()))
}

/// Returns the folder of a file: its parent, or `.`.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a temporary file for [`persist`], in the folder of `path`.
pub fn temporary_beside(path: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    // Permissions of any new file (0666 without the umask's bits); tempfile's own default is 0600.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder(path)).context(path.display())
}

/// A file that computes the digest of what is written to it.
pub struct HashingWriter {
    file: BufWriter<NamedTempFile>,
    digest: Sha256,
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Syncs a temporary file and renames it onto `path`.
pub fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    file.as_file().sync_all().context(path.display())?;
    file.persist(path).map_err(|e| e.error).context(path.display())?;
    Ok(())
}

/// Refuses a file that Git LFS left in place of a large one.
///
/// # Errors
/// `bytes`, the beginning of `path`, are a pointer to another file.
pub fn refuse_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    match bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        true => Err(Error::failed(format!(
            "{}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`, or download it again",
            path.display()
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Whatever the umask of the tests is.
    #[cfg(unix)]
    #[test]
    fn the_umask_applies() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        fs::write(dir.path().join("plain"), "").unwrap();
        write_atomic(&dir.path().join("atomic"), b"").unwrap();
        assert_eq!(mode("atomic"), mode("plain"));
    }

    #[test]
    fn what_is_written_bit_by_bit_is_whole_and_digested() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let digest =
            write_atomic_with(&path, |file| (0..300_000u32).try_for_each(|n| file.write_all(&n.to_le_bytes())))
                .unwrap();
        let written = fs::read(&path).unwrap();
        assert_eq!((written.len(), &digest), (1_200_000, &sha256(&written)));
        let failed = write_atomic_with(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("no more"))
        });
        assert!(failed.unwrap_err().to_string().ends_with("state: no more"));
        assert!(fs::read(&path).unwrap() == written && fs::read_dir(dir.path()).unwrap().count() == 1);
    }
}
