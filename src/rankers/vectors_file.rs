//! Collaborative vectors on disk, itemlm's own or others.
//!
//! | file | holds |
//! |---|---|
//! | `FILE` | safetensors: `item` `[items, dim]` and `user` `[users, dim]`, f32 |
//! | `FILE.items.parquet`, `FILE.users.parquet` | `row` in the tensor and the source's `id`, one row each |
//! | `FILE.network.safetensors` | SASRec by `itemlm cf`: the network; see [`crate::rankers::VectorRanker`] |
//!
//! The rows may come in any order; in memory they are in the corpus's.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use polars::prelude::{Column, DataType, ParquetReader, SerReader};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;

use super::vector_ranker::RankerMetadata;
use crate::core::files::{sha256, write_atomic};
use crate::data::{Corpus, parquet_bytes};
use crate::{Context, Error, Result};

/// The key of itemlm's metadata in the safetensors file: [`About`] as JSON.
const ABOUT: &str = "itemlm";

/// Origin of vectors that itemlm wrote.
#[derive(Debug, Deserialize)]
pub(crate) struct About {
    /// The settings of the method, by its name.
    pub(crate) settings: serde_json::Map<String, serde_json::Value>,
    /// Metadata of the ranker that uses the vectors.
    pub(crate) ranks: Option<RankerMetadata>,
}

/// Vectors of all items and users of a corpus, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    /// Length of a vector, the same for items and users.
    pub dim: usize,
    /// `[items, dim]`: the items' vectors.
    pub items: Vec<f32>,
    /// `[users, dim]`: the users' vectors.
    pub users: Vec<f32>,
}

/// The two kinds of rows: the name of their tensor, and of their file of ids.
const KINDS: [(&str, &str); 2] = [("item", "items"), ("user", "users")];

/// Returns the Parquet file with the ids of `items` or `users`.
fn ids_file(path: &Path, kind: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{kind}.parquet"));
    PathBuf::from(name)
}

fn ids<'a>(corpus: &'a Corpus, kind: &str) -> Vec<&'a str> {
    match kind {
        "items" => corpus.items.iter().map(|item| item.id.as_str()).collect(),
        _ => (0..corpus.users() as u32).map(|user| corpus.user_id(user)).collect(),
    }
}

impl Vectors {
    /// Returns zeros for `items` items and `users` users.
    pub fn zeros(items: usize, users: usize, dim: usize) -> Self {
        Self { dim, items: vec![0.0; items * dim], users: vec![0.0; users * dim] }
    }

    /// Writes `path` and, before it, the files of ids beside it; returns the SHA-256 of `path`.
    /// Equal vectors and settings give equal bytes.
    ///
    /// * `settings`: the method's settings, as JSON: `{"als": {…}}`.
    ///
    /// # Errors
    /// A vector that is not finite; a file that cannot be written.
    pub fn save(&self, path: &Path, corpus: &Corpus, settings: &str) -> Result<String> {
        self.check(path)?;
        self.write(path, corpus, settings, None)
    }

    /// Refuses vectors that are not finite.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        for (name, values) in [("item", &self.items), ("user", &self.users)] {
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::failed(format!(
                    "{}: the vector of {name} {} holds {}, it must be finite; nothing is written",
                    path.display(),
                    at / self.dim,
                    values[at]
                )));
            }
        }
        Ok(())
    }

    /// Writes vectors that [`Vectors::check`] accepted, as [`Vectors::save`] does.
    pub(crate) fn write(
        &self,
        path: &Path,
        corpus: &Corpus,
        settings: &str,
        ranker: Option<&RankerMetadata>,
    ) -> Result<String> {
        let mut both = Vec::new();
        for (_, kind) in KINDS {
            let ids = ids(corpus, kind);
            let rows: Vec<u32> = (0..ids.len() as u32).collect();
            let bytes = parquet_bytes(vec![Column::new("row".into(), rows), Column::new("id".into(), ids)])?;
            write_atomic(&ids_file(path, kind), &bytes)?;
            both.extend(bytes);
        }
        let ranker = ranker.map(serde_json::to_string).transpose().context(path.display())?;
        let ranker = ranker.map_or(String::new(), |ranker| format!(",\"ranks\":{ranker}"));
        let about = format!("{{\"settings\":{settings},\"ids\":\"{}\"{ranker}}}", sha256(&both));
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (items, users) = (bytes(&self.items), bytes(&self.users));
        let view = |bytes, rows: usize| {
            TensorView::new(Dtype::F32, vec![rows / self.dim, self.dim], bytes).context(path.display())
        };
        let tensors = [("item", view(&items, self.items.len())?), ("user", view(&users, self.users.len())?)];
        let metadata = HashMap::from([(ABOUT.to_string(), about)]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).context(path.display())?;
        write_atomic(path, &bytes)?;
        Ok(sha256(&bytes))
    }

    /// Reads vectors and sorts them into the corpus's order.
    ///
    /// # Errors
    /// A missing or damaged file; a tensor that is missing, not f32, not a matrix or not finite; an
    /// id that the corpus does not have, or has and the file lacks; ids of another run of itemlm.
    pub fn open(path: &Path, corpus: &Corpus) -> Result<Self> {
        Ok(Self::read(path, corpus)?.0)
    }

    /// Reads vectors as [`Vectors::open`] does, with the metadata of files that itemlm wrote.
    pub(crate) fn read(path: &Path, corpus: &Corpus) -> Result<(Self, Option<About>)> {
        let file = path.display();
        let bytes = fs::read(path).context(&file)?;
        let tensors = SafeTensors::deserialize(&bytes).context(format_args!("{file}: not a whole safetensors file"))?;
        let mut matrices = Vec::new();
        let mut both = Vec::new();
        for (name, kind) in KINDS {
            let (rows, dim, values) = matrix(&tensors, name).context(format_args!("{file}: tensor {name}"))?;
            let beside = ids_file(path, kind);
            let parquet = fs::read(&beside).context(beside.display())?;
            both.extend_from_slice(&parquet);
            let order = order(parquet, &ids(corpus, kind), rows, kind).context(beside.display())?;
            let ordered: Vec<f32> = order.into_iter().flat_map(|row| &values[row * dim..][..dim]).copied().collect();
            matrices.push((dim, ordered));
        }
        let (_, metadata) = SafeTensors::read_metadata(&bytes).context(&file)?;
        let about = metadata.metadata().as_ref().and_then(|entries| entries.get(ABOUT));
        let ours: Option<serde_json::Value> = about.and_then(|about| serde_json::from_str(about).ok());
        if ours.as_ref().is_some_and(|ours| ours["ids"] != sha256(&both)) {
            return Err(Error::failed(format!(
                "{file}: the Parquet files beside it are not those it was written with; write the vectors again"
            )));
        }
        let about = ours.and_then(|ours| serde_json::from_value(ours).ok());
        match <[_; 2]>::try_from(matrices) {
            Ok([(dim, items), (same, users)]) if dim == same => Ok((Self { dim, items, users }, about)),
            Ok([(item, _), (user, _)]) => Err(Error::failed(format!(
                "{file}: tensor item has vectors of {item} numbers and user of {user}; they must agree"
            ))),
            Err(_) => Err(Error::failed(format!("{file}: not two tensors"))),
        }
    }

    /// Returns the SHA-256 of the two files of ids beside `path`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn ids_digest(path: &Path) -> Result<String> {
        let mut both = Vec::new();
        for (_, kind) in KINDS {
            let file = ids_file(path, kind);
            both.extend(fs::read(&file).context(file.display())?);
        }
        Ok(sha256(&both))
    }

    /// Returns an item's vector, `[dim]`.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn item(&self, item: u32) -> &[f32] {
        &self.items[item as usize * self.dim..][..self.dim]
    }

    /// Returns a user's vector, `[dim]`.
    ///
    /// # Panics
    /// If there is no such user.
    pub fn user(&self, user: u32) -> &[f32] {
        &self.users[user as usize * self.dim..][..self.dim]
    }
}

/// Reads a finite f32 matrix: rows, columns, values.
fn matrix(tensors: &SafeTensors, name: &str) -> Result<(usize, usize, Vec<f32>)> {
    let view =
        tensors.tensor(name).map_err(|_| Error::failed(format!("it is not there; the file has {}", list(tensors))))?;
    if view.dtype() != Dtype::F32 {
        return Err(Error::failed(format!("it is {:?}, it must be F32", view.dtype())));
    }
    let &[rows, dim] = view.shape() else {
        return Err(Error::failed(format!("its shape is {:?}, it must be [rows, dim]", view.shape())));
    };
    if dim == 0 {
        return Err(Error::failed(format!("its shape is {:?}: vectors need at least one number", view.shape())));
    }
    let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::failed(format!(
            "row {}, column {} is {}, it must be finite",
            at / dim,
            at % dim,
            values[at]
        )));
    }
    Ok((rows, dim, values))
}

fn list(tensors: &SafeTensors) -> String {
    let mut names = tensors.names();
    names.sort_unstable();
    match names.is_empty() {
        true => "no tensor".into(),
        false => names.join(", "),
    }
}

/// Returns the row of the vector of each of the corpus's `ids`.
fn order(parquet: Vec<u8>, ids: &[&str], rows: usize, kind: &str) -> Result<Vec<usize>> {
    // polars panics on some damaged files.
    let frame = crate::core::panic::catch(|| {
        let mut reader = ParquetReader::new(Cursor::new(parquet));
        // The number of rows is checked before anything of that size is allocated.
        let found = reader.num_rows().context("not a readable Parquet file")?;
        if found != rows {
            return Err(Error::failed(format!("it has {found} ids, but the tensor has {rows} rows")));
        }
        reader.finish().context("not a readable Parquet file")
    });
    let frame = frame.map_err(|panic| Error::failed(format!("not a readable Parquet file ({})", panic.message)))?;
    let frame = frame?;
    let column = |name: &str, kind: &DataType| {
        let column = frame.column(name).context("columns `row` and `id` are needed")?;
        column.strict_cast(kind).context(format_args!("column {name}"))
    };
    let (numbers, names) = (column("row", &DataType::Int64)?, column("id", &DataType::String)?);
    let (numbers, names) = (numbers.i64().context("column row")?, names.str().context("column id")?);
    if numbers.len() != rows {
        return Err(Error::failed(format!("it has {} ids, but the tensor has {rows} rows", numbers.len())));
    }

    let index: HashMap<&str, usize> = ids.iter().zip(0..).map(|(id, index)| (*id, index)).collect();
    let mut order: Vec<Option<usize>> = vec![None; ids.len()];
    let mut used = vec![false; rows];
    for (line, (row, id)) in numbers.iter().zip(names.iter()).enumerate() {
        let (Some(row), Some(id)) = (row, id) else {
            return Err(Error::failed(format!("row {line}: `row` and `id` must not be null")));
        };
        let at = usize::try_from(row).ok().filter(|&at| at < rows);
        let at = at.ok_or_else(|| Error::failed(format!("row {line}: row {row} is not one of the tensor's {rows}")))?;
        if std::mem::replace(&mut used[at], true) {
            return Err(Error::failed(format!("row {line}: the tensor's row {row} is there twice")));
        }
        let slot = index.get(id).and_then(|&index| order.get_mut(index));
        let slot = slot.ok_or_else(|| {
            Error::failed(format!("row {line}: the id `{id}` is none of the corpus's {} {kind}", ids.len()))
        })?;
        if slot.replace(at).is_some() {
            return Err(Error::failed(format!("row {line}: the id `{id}` is there twice")));
        }
    }
    let missing = order.iter().filter(|row| row.is_none()).count();
    ids.iter()
        .zip(order)
        .map(|(id, row)| {
            row.ok_or_else(|| {
                Error::failed(format!("it lacks {missing} of the corpus's {} {kind}, such as `{id}`", ids.len()))
            })
        })
        .collect()
}
