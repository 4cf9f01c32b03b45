//! The files that the inputs name: files, folders of them, zip archives.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::ZipArchive;

use super::fields::shorten;
use super::input::{Input, is_compressed, signature};
use super::signature::Signature;
use super::source_file::SourceFile;
use crate::data::progress::check_stop;
use crate::{Context, Error, Result};

/// Most folders inside one another: a link may point at one above it.
const MAX_DEPTH: usize = 16;
/// Bytes copied between two checks of Ctrl-C, and bytes compared first.
const CHUNK: usize = 1 << 16;

/// The files of the inputs, in order.
#[derive(Default)]
pub(crate) struct FileList {
    pub(crate) files: Vec<SourceFile>,
    /// Files that hold no data, by their names.
    pub(crate) passed_over: Vec<String>,
    /// Folder of the entries of archives.
    unpacked: Option<TempDir>,
}

/// Lists the files of the inputs: a folder stands for the files in it, by name, with those in its
/// folders of the form `key=value`, and a zip archive for its entries, which go to temporary files
/// in `scratch`.
///
/// # Errors
/// Other folders in folders, and what is no regular file, are refused by name.
pub(crate) fn list_files(inputs: &[PathBuf], scratch: &Path) -> Result<FileList> {
    let mut list = FileList::default();
    for input in inputs {
        let kind = fs::metadata(input).context(input.display())?;
        if kind.is_dir() {
            list.add_folder(input, &[], scratch, 0)?;
        } else {
            list.add_file(SourceFile::new(input), scratch)?;
        }
    }
    Ok(list)
}

/// Returns whether a file in a folder holds no data, by its name: hidden files and markers
/// (`.DS_Store`, `_SUCCESS`), checksums, and texts about the data.
fn is_passed_over(name: &str) -> bool {
    const CHECKSUMS: [&str; 6] = [".crc", ".md5", ".sha1", ".sha256", ".sha512", ".sfv"];
    const LISTS: [&str; 6] = ["md5sums", "sha1sums", "sha256sums", "sha512sums", "checksums", "checksums.txt"];
    const TEXTS: [&str; 4] = ["readme", "license", "licence", "citation"];
    let name = name.to_lowercase();
    let stem = name.split('.').next().unwrap_or_default();
    let is_text = TEXTS.contains(&stem) && !name.ends_with(".csv") && !name.ends_with(".json");
    name.starts_with(['_', '.'])
        || CHECKSUMS.iter().any(|ending| name.ends_with(ending))
        || LISTS.contains(&name.as_str())
        || is_text
        || name.ends_with(".md")
}

/// Returns the column and value of a folder `key=value`; Spark escapes some characters as `%3A`.
fn partition_of(name: &str) -> Option<(String, String)> {
    let (key, value) = name.split_once('=').filter(|(key, _)| !key.is_empty())?;
    let value = if value == "__HIVE_DEFAULT_PARTITION__" { String::new() } else { percent_decode(value) };
    Some((key.to_string(), value))
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_string())
}

impl FileList {
    /// Returns the stored size of all files, bytes.
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size().unwrap_or(0)).sum()
    }

    fn add_folder(
        &mut self,
        folder: &Path,
        partition: &[(String, String)],
        scratch: &Path,
        depth: usize,
    ) -> Result<()> {
        let entries = fs::read_dir(folder).context(folder.display())?;
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.context(folder.display())?.path());
        }
        paths.sort();
        for path in paths {
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            if is_passed_over(&name) {
                self.passed_over.push(path.display().to_string());
                continue;
            }
            // A link that points nowhere is named.
            if fs::metadata(&path).context(path.display())?.is_dir() {
                let Some(pair) = partition_of(&name).filter(|_| depth < MAX_DEPTH) else {
                    return Err(Error::failed(format!(
                        "{}: a folder in a folder: give it as an input of its own, or move it away",
                        path.display()
                    )));
                };
                let mut pairs = partition.to_vec();
                pairs.push(pair);
                self.add_folder(&path, &pairs, scratch, depth + 1)?;
            } else {
                let mut file = SourceFile::new(path);
                file.partition = partition.to_vec();
                self.add_file(file, scratch)?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, file: SourceFile, scratch: &Path) -> Result<()> {
        file.check_regular()?;
        if signature(&file)? == Signature::Zip {
            return self.unpack(&file, scratch);
        }
        self.files.push(file);
        Ok(())
    }

    /// Adds the entries of a zip archive.
    fn unpack(&mut self, file: &SourceFile, scratch: &Path) -> Result<()> {
        let mut archive = ZipArchive::new(BufReader::new(file.open()?)).context(file)?;
        if archive.file_names().flatten().any(|name| name == "[Content_Types].xml") {
            return Err(Error::failed(format!("{file}: an Excel or other Office file: save it as CSV")));
        }
        if self.unpacked.is_none() {
            let folder = tempfile::Builder::new().prefix(".itemlm-").tempdir_in(scratch);
            self.unpacked = Some(folder.context(scratch.display())?);
        }
        let Some(folder) = self.unpacked.as_ref().map(|folder| folder.path().to_path_buf()) else { return Ok(()) };
        let mut indices: Vec<(String, usize)> = Vec::new();
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).context(file)?;
            if !entry.is_dir() {
                indices.push((entry.name().context(file)?.into_owned(), index));
            }
        }
        indices.sort();
        for (entry_name, index) in indices {
            let name = format!("{file}/{}", shorten(&entry_name));
            let parts: Vec<&str> = entry_name.split(['/', '\\']).collect();
            let Some((base, folders)) = parts.split_last() else { continue };
            if parts.iter().any(|part| part.starts_with(['_', '.'])) || is_passed_over(base) {
                self.passed_over.push(name);
                continue;
            }
            let mut entry = archive.by_index(index).context(&name)?;
            let target = folder.join(self.files.len().to_string());
            fs::create_dir_all(&target).context(target.display())?;
            let path = target.join(base);
            copy(&mut entry, &path, &name)?;
            let mut unpacked = SourceFile::with_name(path, name);
            unpacked.partition = folders.iter().filter_map(|folder| partition_of(folder)).collect();
            if signature(&unpacked)? == Signature::Zip {
                return Err(Error::failed(format!("{unpacked}: a zip archive inside a zip archive: unpack it")));
            }
            self.files.push(unpacked);
        }
        Ok(())
    }

    /// Refuses two files of equal content, however compressed, that hold any row.
    pub(crate) fn check_distinct(&self) -> Result<()> {
        let mut alike: BTreeMap<u64, Vec<&SourceFile>> = BTreeMap::new();
        for file in &self.files {
            if file.size()? > 0 {
                alike.entry(first_chunk(file)?).or_default().push(file);
            }
        }
        for files in alike.values().filter(|files| files.len() > 1) {
            let mut digests: BTreeMap<[u8; 32], &SourceFile> = BTreeMap::new();
            for file in files {
                let Some(digest) = content_digest(file)? else { continue };
                if let Some(other) = digests.insert(digest, file) {
                    return Err(Error::failed(format!(
                        "{file}: its content is that of {other}, so every event would count twice: give one of them"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Copies an archive's entry to a file.
fn copy(entry: &mut impl Read, path: &Path, name: &str) -> Result<()> {
    let mut file = File::create(path).context(path.display())?;
    let mut buffer = vec![0; CHUNK];
    loop {
        check_stop()?;
        match entry.read(&mut buffer).map_err(|e| Error::failed(format!("{name}: {e}; is the archive damaged?")))? {
            0 => return Ok(()),
            count => file.write_all(buffer.get(..count).unwrap_or_default()).context(path.display())?,
        }
    }
}

/// Returns a hash of the beginning of the content. Content that cannot be read is reported when it
/// is read in full, with a better message.
fn first_chunk(file: &SourceFile) -> Result<u64> {
    let mut start = Vec::new();
    if let Ok(mut input) = Input::peek(file) {
        let read = input.content().take(CHUNK as u64).read_to_end(&mut start);
        check_stop()?;
        if read.is_err() {
            start.clear();
        }
    }
    let mut hasher = DefaultHasher::new();
    if start.is_empty() {
        hasher.write(file.name().as_bytes());
    }
    hasher.write(&start);
    Ok(hasher.finish())
}

/// Returns the SHA-256 of the content; `None` if it holds no rows, as the empty parts of a table,
/// or cannot be read.
fn content_digest(file: &SourceFile) -> Result<Option<[u8; 32]>> {
    let Ok(mut input) = Input::peek(file) else { return Ok(None) };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let (mut lines, mut in_line, mut first) = (0u64, false, None);
    loop {
        let count = match input.content().read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(_) => return check_stop().map(|()| None),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        hash.update(bytes);
        first = first.or(bytes.iter().find(|b| !b.is_ascii_whitespace()).copied());
        for byte in bytes.iter().filter(|byte| **byte == b'\n' || !byte.is_ascii_whitespace()) {
            lines += u64::from(*byte != b'\n' && !in_line);
            in_line = *byte != b'\n';
        }
    }
    let is_parquet = signature(file)? == Signature::Parquet;
    let rows = if is_parquet { super::parquet_columns::count_rows(file).unwrap_or(1) } else { lines };
    // A single line is a header, unless it is an object.
    let is_empty = if is_parquet { rows == 0 } else { rows < 2 && first != Some(b'{') };
    Ok((!is_empty).then(|| hash.finalize().into()))
}

/// Returns about how many events `files` may hold at most, if each takes `bytes` bytes or more
/// before compression.
pub(crate) fn max_rows<'a>(files: impl IntoIterator<Item = &'a SourceFile>, bytes: u64) -> Result<u64> {
    let mut total = 0u64;
    for file in files {
        // Logs as JSON or CSV shrink to a fifth or an eighth.
        let factor = if is_compressed(file)? { 12 } else { 1 };
        total = total.saturating_add(file.size()?.saturating_mul(factor));
    }
    Ok(total / bytes.max(1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_data() {
        for name in
            ["_SUCCESS", ".part-0.crc", "x.csv.md5", "SHA256SUMS", "README", "README.txt", "readme.html", "notes.md"]
        {
            assert!(is_passed_over(name), "{name}");
        }
        for name in ["part-0.parquet", "ratings.dat", "readme_reviews.csv", "license.csv", "u.data", "x"] {
            assert!(!is_passed_over(name), "{name}");
        }
        assert_eq!(partition_of("day=2014-05-13%3A1"), Some(("day".into(), "2014-05-13:1".into())));
        assert_eq!(partition_of("user=__HIVE_DEFAULT_PARTITION__"), Some(("user".into(), String::new())));
        assert_eq!(partition_of("raw"), None);
    }
}
