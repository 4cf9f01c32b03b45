//! The files that a run reads beside its corpus, and their digests: a changed file makes another
//! run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::config::RunConfig;
use crate::core::files::{hex, sha256};

/// Bytes of a file up to which all of it is read; of a larger one, blocks of it.
const WHOLE: u64 = 32 << 20;
/// Bytes of a block of a large file.
const BLOCK: u64 = 1 << 18;
/// Blocks of a large file, spread evenly from its first to its last byte.
const BLOCKS: u64 = 64;
/// Files of a model's directory that decide what it computes; a README does not.
const EXTENSIONS: [&str; 7] = ["safetensors", "gguf", "bin", "json", "toml", "model", "txt"];

/// Digests of files and directories by their paths, each computed once.
#[derive(Default)]
pub(super) struct Digests(BTreeMap<String, Option<String>>);

impl Digests {
    /// Returns the digests of what a run reads beside its corpus, by the paths in its run file:
    /// models, adapters, vectors, what `align` wrote, and prompts. A path where nothing is has no
    /// entry; reading it is an error of the run.
    pub fn of_run(&mut self, config: &RunConfig) -> BTreeMap<String, String> {
        paths(config)
            .into_iter()
            .filter_map(|path| {
                Some((path.clone(), self.0.entry(path.clone()).or_insert_with(|| digest(&path)).clone()?))
            })
            .collect()
    }
}

/// Returns the paths of a run file beside the corpus's.
fn paths(config: &RunConfig) -> Vec<String> {
    let mut paths = vec![config.llm.path.clone()];
    let items = &config.items;
    paths.extend(config.llm.adapter.clone());
    paths.extend(items.vectors.clone());
    paths.extend(items.aligned.clone());
    paths.extend(items.qformer.iter().map(|qformer| qformer.text.clone()));
    paths.extend(config.data.prompt.clone());
    paths.extend(config.data.prompt_sets.clone());
    if let Some(prior) = &config.prior {
        paths.extend(prior.vectors.clone());
        // Settings that name a file or directory, such as a sentence encoder's.
        let tables = prior.settings.values().filter_map(|value| value.as_table());
        let values = tables.flat_map(|table| table.values()).chain(prior.settings.values());
        paths.extend(values.filter_map(|value| value.as_str().map(String::from)));
    }
    paths
}

/// Returns the SHA-256 of a file with what `cf` wrote beside it, or of a directory's files; `None`
/// where there is nothing to read.
fn digest(path: &str) -> Option<String> {
    let path = Path::new(path);
    let mut files = match path.is_dir() {
        true => model_files(path),
        false => vec![path.to_path_buf()],
    };
    if !path.is_dir() && path.is_file() {
        // What `cf` writes beside its vectors.
        let beside = ["items.parquet", "users.parquet", "network.safetensors"];
        files.extend(beside.map(|name| PathBuf::from(format!("{}.{name}", path.display()))));
        files.retain(|file| file.is_file());
    }
    files.sort();
    let lines: Option<Vec<String>> = files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(path).unwrap_or(file);
            Some(format!("{} {}", name.display(), file_digest(file).ok()?))
        })
        .collect();
    let lines = lines.filter(|lines| !lines.is_empty())?;
    Some(sha256(lines.join("\n").as_bytes()))
}

/// Returns the files of a model's directory, and of the directory `qformer` that `align` writes.
fn model_files(dir: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let aligned = dir.join("qformer");
    let folder = if aligned.is_dir() { aligned } else { dir.to_path_buf() };
    let of_model = |file: &PathBuf| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        file.is_file() && extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
    };
    // A PEFT adapter or a sentence encoder may have folders.
    let nested = entries(&folder).filter(|path| path.is_dir()).flat_map(|path| entries(&path).collect::<Vec<_>>());
    entries(&folder).chain(nested).filter(of_model).collect()
}

/// Returns the SHA-256 of a file's length and content; of a large file's [`BLOCKS`] blocks.
pub(super) fn file_digest(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    if length <= WHOLE {
        std::io::copy(&mut file, &mut hash)?;
        return Ok(hex(&hash.finalize()));
    }
    let mut block = vec![0; BLOCK as usize];
    for index in 0..BLOCKS {
        file.seek(SeekFrom::Start((length - BLOCK) / (BLOCKS - 1) * index))?;
        file.read_exact(&mut block)?;
        hash.update(&block);
    }
    file.seek(SeekFrom::Start(length - BLOCK))?;
    file.read_exact(&mut block)?;
    hash.update(&block);
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_has_another_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("v"), "vectors").unwrap();
        let vectors = digest(&path("v")).unwrap();
        fs::write(path("v.items.parquet"), "ids").unwrap();
        let with_ids = digest(&path("v")).unwrap();
        assert_ne!(vectors, with_ids);
        fs::write(path("v"), "vectorz").unwrap();
        assert_ne!(digest(&path("v")).unwrap(), with_ids);
        assert_eq!((digest(&path("absent")), digest("items")), (None, None));

        fs::create_dir_all(path("llm")).unwrap();
        assert_eq!(digest(&path("llm")), None, "an empty directory");
        fs::write(path("llm/model.safetensors"), "w").unwrap();
        let model = digest(&path("llm")).unwrap();
        fs::write(path("llm/README.md"), "about").unwrap();
        assert_eq!(digest(&path("llm")).unwrap(), model);
        fs::write(path("llm/config.json"), "{}").unwrap();
        assert_ne!(digest(&path("llm")).unwrap(), model);

        // Of what `align` wrote, the Q-Former alone: its log grows.
        fs::create_dir_all(path("aligned/qformer")).unwrap();
        fs::write(path("aligned/qformer/model.safetensors"), "q").unwrap();
        let aligned = digest(&path("aligned")).unwrap();
        fs::write(path("aligned/identity.json"), "{}").unwrap();
        assert_eq!(digest(&path("aligned")).unwrap(), aligned);
    }

    #[test]
    fn of_a_large_file_its_ends_and_its_middle_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let length = WHOLE + 12_345;
        File::create(&path).unwrap().set_len(length).unwrap();
        let mut seen = vec![file_digest(&path).unwrap()];
        // One more byte, then other bytes at the beginning, at the end and in a block between.
        for at in [length, 0, length - 1, (length - BLOCK) / (BLOCKS - 1) * 31] {
            let mut file = File::options().write(true).open(&path).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            std::io::Write::write_all(&mut file, b"x").unwrap();
            let digest = file_digest(&path).unwrap();
            assert!(!seen.contains(&digest), "byte {at}");
            seen.push(digest);
        }
    }
}
