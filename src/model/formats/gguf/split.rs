//! GGUF files in parts, `NAME-00001-of-00003.gguf`, as llama.cpp's gguf-split writes them.

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{GgufTensor, Header};
use crate::core::files::refuse_lfs_pointer;
use crate::model::formats::tensor_store::map_file;
use crate::{Context, Error, Result};

/// Most parts that are read; no model has more.
const MOST_PARTS: usize = 10_000;

/// A GGUF file, or one part of it.
pub(crate) struct GgufFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Mmap,
    pub(crate) header: Header,
}

/// A model in one GGUF file, or in several; the first has the metadata.
pub(crate) struct Gguf {
    pub(crate) first: GgufFile,
    pub(crate) others: Vec<GgufFile>,
}

impl Gguf {
    /// Opens a GGUF file with all its parts, whichever of them `path` is.
    ///
    /// # Errors
    /// A damaged file, a missing part, a part of another model.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut parts = open_parts(path)?.into_iter();
        match parts.next() {
            Some(first) => Ok(Self { first, others: parts.collect() }),
            None => Err(Error::failed(format!("{}: no part of a model", path.display()))),
        }
    }

    /// Returns the metadata; its arrays lie in the bytes of [`Gguf::first`].
    pub(crate) fn header(&self) -> &Header {
        &self.first.header
    }

    /// Finds a tensor and its bytes, in whichever part.
    pub(crate) fn tensor(&self, name: &str) -> Option<(&GgufTensor, &[u8])> {
        std::iter::once(&self.first).chain(&self.others).find_map(|part| {
            let tensor = part.header.tensors.iter().find(|tensor| tensor.name == name)?;
            Some((tensor, part.bytes.get(tensor.range.clone())?))
        })
    }

    /// Returns the parts in order.
    pub(crate) fn into_parts(self) -> impl Iterator<Item = GgufFile> {
        std::iter::once(self.first).chain(self.others)
    }
}

/// Opens all parts of the model that `path` is one of.
fn open_parts(path: &Path) -> Result<Vec<GgufFile>> {
    let file = open_one(path)?;
    let (count, number) = (size(&file, "split.count")?, size(&file, "split.no")?);
    let Some(count) = count.filter(|count| *count > 1) else { return Ok(vec![file]) };
    let number = number.unwrap_or(0);
    let place = path.display();
    if count > MOST_PARTS || number >= count {
        return Err(Error::failed(format!("{place}: split.no is {number} of split.count {count}")));
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&format!("-{:05}-of-{count:05}.gguf", number + 1)) else {
        return Err(Error::failed(format!(
            "{place}: is part {} of {count} of a split model, but is not called \
             NAME-{:05}-of-{count:05}.gguf; give the parts the names that they were published under",
            number + 1,
            number + 1
        )));
    };
    let mut given = Some(file);
    let mut parts = Vec::with_capacity(count);
    for part in 0..count {
        let file = match given.take_if(|_| part == number) {
            Some(file) => file,
            None => {
                let path = path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", part + 1));
                if !path.exists() {
                    return Err(Error::failed(format!(
                        "{place}: is part {} of {count} of a split model, and {} is missing",
                        number + 1,
                        path.display()
                    )));
                }
                open_one(&path)?
            }
        };
        if (size(&file, "split.no")?.unwrap_or(0), size(&file, "split.count")?) != (part, Some(count)) {
            return Err(Error::failed(format!("{}: is not part {} of {count}", file.path.display(), part + 1)));
        }
        parts.push(file);
    }
    let tensors: usize = parts.iter().map(|part| part.header.tensors.len()).sum();
    match size(&parts[0], "split.tensors.count")? {
        Some(needed) if needed != tensors => Err(Error::failed(format!(
            "{}: split.tensors.count is {needed}, but the {count} parts hold {tensors} tensors",
            parts[0].path.display()
        ))),
        _ => Ok(parts),
    }
}

fn open_one(path: &Path) -> Result<GgufFile> {
    let bytes = map_file(path)?;
    refuse_lfs_pointer(path, &bytes)?;
    let header = Header::parse(&bytes).context(path.display())?;
    Ok(GgufFile { path: path.to_owned(), bytes, header })
}

fn size(file: &GgufFile, key: &str) -> Result<Option<usize>> {
    file.header.size(key).context(file.path.display())
}
