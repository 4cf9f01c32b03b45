//! Reads and writes the corpus's Parquet files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use polars::prelude::{Column, DataFrame, ParquetReader, ParquetWriter, SerReader};

use super::in_memory::{Corpus, Item};
use super::layout::{INTERACTIONS, ITEMS, MANIFEST, SPLITS, data_files, windows_file};
use super::manifest::{Counts, FileDigest, Manifest, Provenance, write};
use super::output_dir::OutputDir;
use super::window::{Split, Window};
use crate::{Context, Error, Result};

/// Returns a data frame as the bytes of a Parquet file. Equal frames give equal bytes.
pub(crate) fn parquet_bytes(columns: Vec<Column>) -> Result<Vec<u8>> {
    let mut frame = DataFrame::new_infer_height(columns).context("Parquet")?;
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame).context("Parquet")?;
    Ok(bytes)
}

/// One Parquet file that has been read and checked against its digest.
struct Table {
    path: PathBuf,
    frame: DataFrame,
}

impl Table {
    fn open(dir: &Path, name: &str, manifest: &Manifest) -> Result<Self> {
        let path = dir.join(name);
        let bytes = fs::read(&path).context(path.display())?;
        let listed = manifest.files.iter().find(|f| f.name == name);
        if listed != Some(&FileDigest::from_bytes(name, &bytes)) {
            return Err(Error::failed(format!(
                "{}: size or SHA-256 is not the one in {MANIFEST}: run `prepare` again",
                path.display()
            )));
        }
        let frame = ParquetReader::new(Cursor::new(bytes)).finish().context(path.display())?;
        Ok(Self { path, frame })
    }

    fn column(&self, name: &str) -> Result<&Column> {
        self.frame.column(name).context(self.path.display())
    }

    fn u32s(&self, name: &str) -> Result<Vec<u32>> {
        let values = self.column(name)?.u32().context(self.path.display())?;
        values.iter().enumerate().map(|(row, v)| self.present(name, row, v)).collect()
    }

    fn i64s(&self, name: &str) -> Result<Vec<Option<i64>>> {
        Ok(self.column(name)?.i64().context(self.path.display())?.iter().collect())
    }

    fn strings(&self, name: &str) -> Result<Vec<String>> {
        let values = self.column(name)?.str().context(self.path.display())?;
        let owned = values.iter().map(|v| v.map(str::to_string));
        owned.enumerate().map(|(row, v)| self.present(name, row, v)).collect()
    }

    /// Returns the text columns other than `known`, by name.
    fn attributes(&self, known: &[&str]) -> BTreeMap<String, Vec<Option<String>>> {
        let further = self.frame.columns().iter().filter(|c| !known.contains(&c.name().as_str()));
        let texts = further.filter_map(|c| Some((c.name().to_string(), c.str().ok()?)));
        texts.map(|(name, values)| (name, values.iter().map(|v| v.map(str::to_string)).collect())).collect()
    }

    fn present<T>(&self, name: &str, row: usize, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(row, format!("column {name} is null")))
    }

    fn error(&self, row: usize, what: impl std::fmt::Display) -> Error {
        Error::failed(format!("{}: row {row}: {what}", self.path.display()))
    }
}

impl Corpus {
    /// Reads a corpus and checks every index in it; rows count from 0 in its errors.
    pub fn open(dir: &Path) -> Result<Corpus> {
        let manifest = Manifest::read(dir)?;

        let table = Table::open(dir, ITEMS, &manifest)?;
        for (row, index) in table.u32s("item")?.into_iter().enumerate() {
            if index as usize != row {
                return Err(table.error(row, format!("item is {index}, it should be {row}")));
            }
        }
        let (ids, titles) = (table.strings("id")?, table.strings("title")?);
        let items = ids.into_iter().zip(titles).map(|(id, title)| Item { id, title }).collect();
        let attributes = table.attributes(&["item", "id", "title"]);

        let table = Table::open(dir, INTERACTIONS, &manifest)?;
        let mut users: Vec<String> = Vec::new();
        let mut bounds = Vec::new();
        let names = table.strings("user_id")?;
        let rows = u32::try_from(names.len()).context(table.path.display())?;
        for (row, (user, id)) in table.u32s("user")?.into_iter().zip(names).enumerate() {
            if user as usize == users.len() {
                bounds.push(row as u32);
                users.push(id);
            } else if user as usize + 1 != users.len() {
                return Err(table.error(row, format!("user {user} is out of order")));
            } else if users.last() != Some(&id) {
                return Err(table.error(row, format!("user {user} has two ids, here `{id}`")));
            }
        }
        bounds.push(rows);
        let (interactions, timestamps) = (table.u32s("item")?, table.i64s("timestamp")?);

        let mut windows = SPLITS.map(|_| Vec::new());
        for (split, windows) in SPLITS.into_iter().zip(&mut windows) {
            let table = Table::open(dir, &windows_file(split), &manifest)?;
            let columns = (table.u32s("user")?, table.u32s("start")?, table.u32s("len")?);
            let rows = columns.0.into_iter().zip(columns.1).zip(columns.2);
            *windows = rows.map(|((user, start), len)| Window { user, start, len }).collect();
        }
        let [released_train, valid, test] = windows;

        let mut corpus = Corpus {
            name: manifest.name,
            items,
            attributes,
            interactions,
            timestamps,
            released_train,
            validation: manifest.validation,
            users,
            bounds,
            train: Vec::new(),
            valid,
            test,
            valid_from_train: manifest.valid_from_train,
        };
        if corpus.valid_from_train > 0 && corpus.valid_from_train as usize != corpus.valid.len() {
            return Err(Error::failed(format!(
                "{}: valid_from_train = {}, but {} has {} rows",
                dir.join(MANIFEST).display(),
                corpus.valid_from_train,
                windows_file(Split::Valid),
                corpus.valid.len()
            )));
        }
        corpus.check(dir)?;
        if corpus.counts() != manifest.counts {
            let path = dir.join(MANIFEST);
            return Err(Error::failed(format!(
                "{}: [counts] do not fit the files: run `prepare` again",
                path.display()
            )));
        }
        corpus.exclude_validation();
        Ok(corpus)
    }

    /// Writes the corpus to `dir`, whole or not at all. A corpus already there is replaced;
    /// anything else there is a usage error.
    pub fn save(&self, dir: &Path, provenance: &Provenance) -> Result<()> {
        let output = OutputDir::check(dir)?;
        let finished =
            tempfile::Builder::new().prefix(".itemlm-").tempdir_in(&output.parent).context(output.parent.display())?;
        self.write(finished.path(), provenance)?;
        output.replace(finished)
    }

    /// Writes the corpus's files into an empty folder.
    pub(in crate::data) fn write(&self, dir: &Path, provenance: &Provenance) -> Result<Manifest> {
        let mut files = Vec::new();
        for name in data_files() {
            let bytes = self.file(&name)?;
            write(&dir.join(&name), &bytes)?;
            files.push(FileDigest::from_bytes(name, &bytes));
        }
        let manifest = Manifest::new(
            self.name.clone(),
            provenance.clone(),
            self.validation.clone(),
            self.valid_from_train,
            self.counts(),
            files,
        );
        manifest.write(dir)?;
        Ok(manifest)
    }

    fn counts(&self) -> Counts {
        Counts {
            users: self.users.len(),
            items: self.items.len(),
            interactions: self.interactions.len(),
            train: self.released_train.len(),
            valid: self.valid.len(),
            test: self.test.len(),
        }
    }

    fn file(&self, name: &str) -> Result<Vec<u8>> {
        if name == ITEMS {
            let ids: Vec<&str> = self.items.iter().map(|i| i.id.as_str()).collect();
            let titles: Vec<&str> = self.items.iter().map(|i| i.title.as_str()).collect();
            let index: Vec<u32> = (0..self.items.len() as u32).collect();
            let mut columns = vec![
                Column::new("item".into(), index),
                Column::new("id".into(), ids),
                Column::new("title".into(), titles),
            ];
            columns.extend(self.attributes.iter().map(|(name, values)| Column::new(name.as_str().into(), values)));
            return parquet_bytes(columns);
        }
        if name == INTERACTIONS {
            let mut users = Vec::with_capacity(self.interactions.len());
            let mut ids = Vec::with_capacity(self.interactions.len());
            for (user, id) in self.users.iter().enumerate() {
                let count = self.user_interactions(user as u32).len();
                users.resize(users.len() + count, user as u32);
                ids.resize(ids.len() + count, id.as_str());
            }
            return parquet_bytes(vec![
                Column::new("user".into(), users),
                Column::new("user_id".into(), ids),
                Column::new("item".into(), &self.interactions),
                Column::new("timestamp".into(), &self.timestamps),
            ]);
        }
        let windows = match SPLITS.into_iter().find(|s| windows_file(*s) == name) {
            None | Some(Split::Train) => &self.released_train,
            Some(split) => self.windows(split),
        };
        let column = |f: fn(&Window) -> u32| windows.iter().map(f).collect::<Vec<u32>>();
        let times: Vec<Option<i64>> = windows.iter().map(|w| self.timestamp(w)).collect();
        parquet_bytes(vec![
            Column::new("user".into(), column(|w| w.user)),
            Column::new("start".into(), column(|w| w.start)),
            Column::new("len".into(), column(|w| w.len)),
            Column::new("timestamp".into(), times),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Step;
    use crate::data::corpus::in_memory::tests::small;

    fn provenance() -> Provenance {
        Provenance {
            source: "made up".into(),
            inputs: vec![FileDigest::from_bytes("raw.csv", b"abc")],
            steps: vec![Step { name: "s".into(), before: 2, after: 1, users: None, items: None, what: "w".into() }],
        }
    }

    #[test]
    fn reads_what_it_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("x/a"), folder.path().join("b"));
        let corpus = small();
        corpus.save(&a, &provenance()).unwrap();
        corpus.save(&b, &provenance()).unwrap();
        corpus.save(&b, &provenance()).unwrap(); // Replaces itself.
        assert_eq!(Corpus::open(&a).unwrap(), corpus);
        let manifest = Manifest::read(&a).unwrap();
        assert_eq!(manifest.counts.interactions, 11);
        assert_eq!(manifest.inputs[0].sha256.get(..8), Some("ba7816bf"));
        for file in fs::read_dir(&a).unwrap() {
            let name = file.unwrap().file_name();
            let bytes = fs::read(a.join(&name)).unwrap();
            assert_eq!(bytes, fs::read(b.join(&name)).unwrap(), "{name:?} differs");
        }
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "temporary folders stay: {left:?}");
    }

    #[test]
    fn keeps_what_is_not_a_corpus() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("d");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("thesis.tex"), "x").unwrap();
        let error = small().save(&dir, &provenance()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("thesis.tex"));
        assert_eq!(fs::read(dir.join("thesis.tex")).unwrap(), b"x");
        let file = dir.join("thesis.tex");
        assert_eq!(small().save(&file, &provenance()).unwrap_err().exit_code(), 2);
        fs::remove_file(file).unwrap();
        small().save(&dir, &provenance()).unwrap();
        fs::write(dir.join("vectors.safetensors"), "x").unwrap();
        assert!(small().save(&dir, &provenance()).is_err());
    }

    #[test]
    fn names_what_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("d");
        let open = || Corpus::open(&dir).unwrap_err().to_string();
        assert!(open().contains("corpus.toml"));
        small().save(&dir, &provenance()).unwrap();
        let toml = fs::read_to_string(dir.join(MANIFEST)).unwrap();
        fs::write(dir.join(MANIFEST), toml.replace("format = 1", "format = 7")).unwrap();
        assert!(open().contains("format = 7"));
        fs::write(dir.join(MANIFEST), toml.replace("test = 1", "test = 2")).unwrap();
        assert!(open().contains("[counts]"));
        fs::write(dir.join(MANIFEST), &toml).unwrap();
        let items = fs::read(dir.join(ITEMS)).unwrap();
        fs::write(dir.join(ITEMS), &items[..items.len() - 3]).unwrap();
        assert!(open().contains("items.parquet") && open().contains("SHA-256"));
    }

    #[test]
    fn validation_from_train_survives() {
        let users = vec![super::super::UserLog { id: "u".into(), events: (0..21).map(|i| (0, Some(i))).collect() }];
        let items = vec![Item { id: "1".into(), title: String::new() }];
        let train = (0..20).map(|start| Window { user: 0, start, len: 2 }).collect();
        let corpus = Corpus::new("n", items, users, train, None, vec![]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("d");
        corpus.save(&dir, &Provenance::default()).unwrap();
        let back = Corpus::open(&dir).unwrap();
        assert_eq!(back, corpus);
        assert_eq!(back.windows(Split::Train).len(), 18);
        assert_eq!(back.released_train.len(), 20);
    }
}
