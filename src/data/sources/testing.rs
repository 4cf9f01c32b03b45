//! Helpers of the sources' tests.

use std::fs;
use std::path::{Path, PathBuf};

use super::{RawDataset, ReadContext, ReadOptions, SourceFile, list_files};
use crate::Result;
use crate::data::sharded_table::{Workspace, collect, i64s, u32s};

pub(super) fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

pub(super) fn options() -> ReadOptions {
    ReadOptions { workspace: Workspace { memory: 1 << 30, scratch: std::env::temp_dir() }, ..ReadOptions::default() }
}

/// Reads all files of a folder.
pub(super) fn read_folder(
    dir: &Path,
    read: fn(&[SourceFile], &ReadOptions, &mut ReadContext) -> Result<RawDataset>,
    options: &ReadOptions,
    skip_bad: u64,
) -> Result<RawDataset> {
    let mut context = ReadContext::quiet();
    context.skip_bad = skip_bad;
    read(&list_files(&[dir.to_path_buf()], &std::env::temp_dir())?.files, options, &mut context)
}

/// Returns the events of a log of one shard: user, item, time, rating (NaN becomes -1).
pub(super) fn events(raw: &RawDataset) -> Vec<(String, String, i64, f32)> {
    let mut all = Vec::new();
    for shard in 0..raw.log.shards.len() {
        let frame = collect(raw.log.shards.lazy(shard).unwrap()).unwrap();
        let (users, items) = (u32s(&frame, "user").unwrap(), u32s(&frame, "item").unwrap());
        let ratings: Vec<f32> = match frame.column("rating") {
            Ok(column) => column.f32().unwrap().iter().map(|r| r.filter(|r| r.is_finite()).unwrap_or(-1.0)).collect(),
            Err(_) => vec![-1.0; frame.height()],
        };
        let ids = users.into_iter().zip(items).map(|(user, item)| (raw.log.users.get(user), raw.log.items.get(item)));
        for (((user, item), time), rating) in ids.zip(i64s(&frame, "time").unwrap()).zip(ratings) {
            all.push((user.to_string(), item.to_string(), time, rating));
        }
    }
    all
}

/// Returns a folder of the real data: in `ITEMLM_DATA`, or `../shared/data` beside the project.
pub(super) fn real(name: &str) -> PathBuf {
    let root = std::env::var_os("ITEMLM_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let dir = root.join(name);
    assert!(dir.is_dir(), "{} is absent", dir.display());
    dir
}
