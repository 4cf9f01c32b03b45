//! Tensors in Hugging Face's safetensors files, single or sharded.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;

use super::tensor_store::{Encoding, StoredTensor, Weights, is_ignored, map_file, read_text};
use crate::core::files::refuse_lfs_pointer;
use crate::{Context, Error, Result};

/// Longest header, bytes: real headers are far shorter, and the crate alone would parse up to 100
/// MB.
const LONGEST_HEADER: u64 = 32 << 20;
const LONGEST_INDEX: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
pub(crate) fn open(dir: &Path) -> Result<Weights> {
    let mut weights = Weights::new(dir);
    let single = dir.join("model.safetensors");
    if single.exists() {
        add_file(&mut weights, &single)?;
        return Ok(weights);
    }
    let index_path = dir.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Err(no_tensors(dir));
    }
    let text = read_text(&index_path, LONGEST_INDEX)?;
    let index: Index = serde_json::from_str(&text).context(index_path.display())?;
    let mut shards: BTreeMap<&str, (PathBuf, usize)> = BTreeMap::new();
    for file in index.weight_map.values() {
        if shards.contains_key(file.as_str()) {
            continue;
        }
        let mut parts = Path::new(file).components();
        let (Some(Component::Normal(_)), None) = (parts.next(), parts.next()) else {
            let message = format!("{}: {file:?} is not the name of a file beside it", index_path.display());
            return Err(Error::failed(message));
        };
        let path = dir.join(file);
        let number = add_file(&mut weights, &path)?;
        shards.insert(file, (path, number));
    }
    for (tensor, file) in &index.weight_map {
        let Some((path, number)) = shards.get(file.as_str()) else {
            continue;
        };
        if !is_ignored(tensor) && weights.file_of(tensor) != Some(*number) {
            return Err(Error::failed(format!(
                "{}: no tensor {tensor}, which {} says is there",
                path.display(),
                index_path.display()
            )));
        }
    }
    Ok(weights)
}

/// Returns an error that says what a directory without safetensors holds, and what to do.
fn no_tensors(dir: &Path) -> Error {
    let names =
        || std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let place = dir.display();
    let mut others: Vec<String> = names()
        .filter(|name| {
            [".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".safetensors"].iter().any(|end| name.ends_with(end))
        })
        .collect();
    others.sort();
    match others.first() {
        None => Error::failed(format!("{place}: holds neither model.safetensors nor model.safetensors.index.json")),
        Some(other) if other.ends_with(".gguf") => Error::failed(format!(
            "{place}: holds {other} and no model.safetensors; give the file itself: {place}/{other}"
        )),
        Some(other) if other.ends_with(".safetensors") => Error::failed(format!(
            "{place}: holds {other}, but neither model.safetensors nor model.safetensors.index.json; download the \
             missing file"
        )),
        Some(other) => Error::failed(format!(
            "{place}: holds {other} and no model.safetensors; pickled weights can run code and are not read, convert \
             them with Python: from transformers import AutoModelForCausalLM; \
             AutoModelForCausalLM.from_pretrained({:?}).save_pretrained({:?}, safe_serialization=True)",
            place.to_string(),
            place.to_string()
        )),
    }
}

/// Maps one file whose tensors may have any names.
pub(crate) fn open_file(path: &Path) -> Result<Weights> {
    let mut weights = Weights::new(path);
    add_file(&mut weights, path)?;
    Ok(weights)
}

/// Adds a file's tensors and returns the file's number.
fn add_file(weights: &mut Weights, path: &Path) -> Result<usize> {
    let bytes = map_file(path)?;
    refuse_lfs_pointer(path, &bytes)?;
    let claimed = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    if claimed.is_some_and(|length| length > LONGEST_HEADER.min(bytes.len() as u64)) {
        return Err(Error::failed(format!(
            "{}: the header claims {} bytes, more than the file or any model has; download it again",
            path.display(),
            claimed.unwrap_or_default()
        )));
    }
    let (header, metadata) =
        SafeTensors::read_metadata(&bytes).context(format_args!("{}: not a whole safetensors file", path.display()))?;
    let file = weights.add_mapped(path, bytes);
    let tensors: BTreeMap<_, _> = metadata.tensors().into_iter().collect();
    for (name, info) in tensors {
        if is_ignored(&name) {
            continue;
        }
        let encoding = match info.dtype {
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::BF16 => Encoding::Bf16,
            other => {
                return Err(Error::failed(format!(
                    "{}: tensor {name} is {other:?}; only F32, F16 and BF16 are supported",
                    path.display()
                )));
            }
        };
        // `read_metadata` has checked the offsets against the file's length.
        let (start, end) = info.data_offsets;
        let range = 8 + header + start..8 + header + end;
        let shape = info.shape.clone();
        weights.add(name, StoredTensor { file, range, shape, encoding, interleaved_heads: None, offset: 0.0 })?;
    }
    Ok(file)
}
