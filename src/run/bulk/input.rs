//! Users and their histories, row by row.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use polars::prelude::{Column, DataType, ParquetReader, SerReader};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{BulkUsers, UserHistory};
use crate::core::files::{hex, refuse_lfs_pointer};
use crate::data::Id;
use crate::run::Session;
use crate::{Context, Error, Result};

/// Rows of a Parquet file that are read at a time.
const CHUNK: usize = 2048;

/// Users that can be read from any row on.
pub(super) enum Users {
    /// Those of the corpus.
    All,
    /// A file of JSON lines, and its SHA-256.
    Lines(PathBuf, String),
    /// A Parquet file, its SHA-256 and its number of rows.
    Parquet(PathBuf, String, usize),
}

/// A row's number, from 1, and what it holds.
type Row = Result<(u64, UserHistory)>;

/// Rows in their order.
pub(super) type Rows<'a> = Box<dyn Iterator<Item = Row> + Send + 'a>;

impl Users {
    /// Opens the users.
    ///
    /// # Errors
    /// A file that cannot be read, or of another format.
    pub fn open(users: &BulkUsers) -> Result<Self> {
        let BulkUsers::File(path) = users else { return Ok(Self::All) };
        let mut digest = Sha256::new();
        let mut file = File::open(path).context(path.display())?;
        io::copy(&mut file, &mut digest).context(path.display())?;
        let digest = hex(&digest.finalize());
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("jsonl" | "ndjson") => Ok(Self::Lines(path.clone(), digest)),
            Some("parquet") => {
                let file = File::open(path).context(path.display())?;
                let rows = ParquetReader::new(file).num_rows().context(path.display())?;
                Ok(Self::Parquet(path.clone(), digest, rows))
            }
            _ => Err(Error::usage(format!(
                "{}: users are in a .jsonl or .parquet file with user and history",
                path.display()
            ))),
        }
    }

    /// Returns the name of the file, or what stands in its place.
    pub fn name(&self) -> String {
        match self {
            Self::All => "the corpus".into(),
            Self::Lines(path, _) | Self::Parquet(path, _, _) => path.display().to_string(),
        }
    }

    /// Names a row in errors.
    pub fn place(&self, row: u64) -> String {
        format!("{}: row {row}", self.name())
    }

    /// Returns a digest of the users.
    pub fn digest(&self) -> &str {
        match self {
            Self::All => "all",
            Self::Lines(_, digest) | Self::Parquet(_, digest, _) => digest,
        }
    }

    /// Returns the error of a file that has fewer rows than a moment ago.
    pub fn changed(&self) -> Error {
        Error::failed(format!("{}: changed while it was read", self.name()))
    }

    /// Iterates over the rows.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn rows<'a>(&'a self, session: &'a Session) -> Result<Rows<'a>> {
        Ok(match self {
            Self::All => {
                let corpus = &session.context.corpus;
                let id = |&item: &u32| corpus.items[item as usize].id.clone();
                Box::new((0..corpus.users() as u32).map(move |user| {
                    let history = corpus.user_interactions(user).iter().map(id).collect();
                    Ok((u64::from(user) + 1, UserHistory { user: corpus.user_id(user).to_string(), history }))
                }))
            }
            Self::Lines(path, _) => Box::new(lines(path)?),
            Self::Parquet(path, _, count) => {
                let chunk = move |first: usize| match parquet_rows(path, first, CHUNK.min(count - first)) {
                    Ok(rows) => rows,
                    Err(error) => vec![Err(error)],
                };
                Box::new((0..*count).step_by(CHUNK).flat_map(chunk))
            }
        })
    }
}

/// Iterates over the lines that are not blank.
fn lines(path: &Path) -> Result<impl Iterator<Item = Row>> {
    #[derive(Deserialize)]
    struct Line {
        user: Id,
        history: Vec<Id>,
    }
    let lines = BufReader::new(File::open(path).context(path.display())?).lines();
    let read = |row: u64, line: io::Result<String>| {
        let line = line.context(format_args!("{}: row {row}", path.display()))?;
        if row == 1 {
            refuse_lfs_pointer(path, line.as_bytes())?;
        }
        if line.trim().is_empty() {
            return Ok(None);
        }
        let Line { user, history } =
            serde_json::from_str(&line).context(format_args!("{}: row {row}", path.display()))?;
        let history = history.into_iter().map(Id::into_text).collect();
        Ok(Some((row, UserHistory { user: user.into_text(), history })))
    };
    Ok((1..).zip(lines).filter_map(move |(row, line)| read(row, line).transpose()))
}

/// Reads `count` rows after the first `first`.
fn parquet_rows(path: &Path, first: usize, count: usize) -> Result<Vec<Row>> {
    let reader = ParquetReader::new(File::open(path).context(path.display())?);
    let columns = Some(vec!["user".into(), "history".into()]);
    let frame = reader.with_columns(columns).with_slice(Some((first, count))).finish().context(path.display())?;
    let column = |name: &str, texts: DataType, fits: fn(&DataType) -> bool| -> Result<Column> {
        let column = frame.column(name).context(path.display())?;
        match fits(column.dtype()) {
            true => column.cast(&texts).context(path.display()),
            false => Err(Error::failed(format!(
                "{}: column {name} holds {}, not ids: texts or whole numbers{}",
                path.display(),
                column.dtype(),
                if name == "history" { ", in lists" } else { "" }
            ))),
        }
    };
    let is_id = |dtype: &DataType| *dtype == DataType::String || dtype.is_integer();
    let users = column("user", DataType::String, is_id)?;
    let are_ids = |dtype: &DataType| match dtype {
        DataType::List(inner) => matches!(**inner, DataType::String | DataType::Null) || inner.is_integer(),
        _ => false,
    };
    let histories = column("history", DataType::List(Box::new(DataType::String)), are_ids)?;
    let (users, histories) = (users.str().context(path.display())?, histories.list().context(path.display())?);
    let mut rows = Vec::with_capacity(count);
    for (row, n) in (first as u64 + 1..).zip(0..users.len()) {
        let missing = |what: &str| Error::failed(format!("{}: row {row}: there is no {what}", path.display()));
        let history = histories.get_as_series(n).ok_or_else(|| missing("history"));
        let row_of = || {
            let user = users.get(n).ok_or_else(|| missing("user"))?.to_string();
            let ids = history?;
            let ids = ids.str().context(path.display())?.iter();
            let history = ids.map(|id| id.map(String::from).ok_or_else(|| missing("id in an entry of history")));
            Ok((row, UserHistory { user, history: history.collect::<Result<_>>()? }))
        };
        rows.push(row_of());
    }
    Ok(rows)
}
