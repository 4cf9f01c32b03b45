//! Catalogues of ids and titles: CSV, JSON lines or Parquet.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use polars::prelude::{DataType, ParquetReader, SerReader};
use serde::Deserialize;

use super::Item;
use super::id::Id;
use crate::core::files::refuse_lfs_pointer;
use crate::{Context, Error, Result};

/// Reads a catalogue: a file whose name ends in `.csv` (with a header), `.tsv`, `.jsonl`, `.ndjson`
/// or `.parquet`. Columns or keys other than `id` and `title` are passed over.
///
/// # Errors
/// Another file; a row without id or title, named; an id that is there twice; no row.
pub fn read_items(path: &Path) -> Result<Vec<Item>> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let items = match ending.as_deref() {
        Some("csv") => read_csv(path, b',')?,
        Some("tsv") => read_csv(path, b'\t')?,
        Some("jsonl" | "ndjson") => read_json_lines(path)?,
        Some("parquet") => read_parquet(path)?,
        _ => {
            return Err(Error::usage(format!(
                "{}: a catalogue is a .csv, .tsv, .jsonl or .parquet file with id and title",
                path.display()
            )));
        }
    };
    let mut ids = HashSet::with_capacity(items.len());
    if let Some((row, item)) = (1..).zip(&items).find(|(_, item)| !ids.insert(item.id.as_str())) {
        return Err(Error::failed(format!("{}: row {row}: the id {:?} is there twice", path.display(), item.id)));
    }
    match items.is_empty() {
        true => Err(Error::failed(format!("{}: there is no item", path.display()))),
        false => Ok(items),
    }
}

/// Makes an item of a row, from 1.
fn item(path: &Path, row: usize, id: Option<String>, title: Option<String>) -> Result<Item> {
    let missing = |what: &str| Error::failed(format!("{}: row {row}: there is no {what}", path.display()));
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| missing("id"))?;
    Ok(Item { id, title: title.ok_or_else(|| missing("title"))? })
}

fn read_csv(path: &Path, delimiter: u8) -> Result<Vec<Item>> {
    let file = File::open(path).context(path.display())?;
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let header = reader.headers().context(path.display())?.clone();
    let column = |name: &str| {
        let mut columns = header.iter().enumerate().filter(|(_, column)| column.trim_start_matches('\u{feff}') == name);
        match (columns.next(), columns.next()) {
            (Some((column, _)), None) => Ok(column),
            (None, _) => Err(Error::failed(format!("{}: the header has no column {name}", path.display()))),
            (Some(_), Some(_)) => Err(Error::failed(format!("{}: two columns are called {name}", path.display()))),
        }
    };
    let (id, title) = (column("id")?, column("title")?);
    let mut items = Vec::new();
    for (row, record) in (1..).zip(reader.into_records()) {
        let record = record.context(format_args!("{}: row {row}", path.display()))?;
        items.push(item(path, row, record.get(id).map(String::from), record.get(title).map(String::from))?);
    }
    Ok(items)
}

fn read_json_lines(path: &Path) -> Result<Vec<Item>> {
    #[derive(Deserialize)]
    struct Line {
        id: Option<Id>,
        title: Option<String>,
    }
    let mut items = Vec::new();
    for (row, line) in (1..).zip(BufReader::new(File::open(path).context(path.display())?).lines()) {
        let line = line.context(format_args!("{}: row {row}", path.display()))?;
        if row == 1 {
            refuse_lfs_pointer(path, line.as_bytes())?;
        }
        if line.trim().is_empty() {
            continue;
        }
        let Line { id, title } = serde_json::from_str(&line).context(format_args!("{}: row {row}", path.display()))?;
        items.push(item(path, row, id.map(Id::into_text), title)?);
    }
    Ok(items)
}

fn read_parquet(path: &Path) -> Result<Vec<Item>> {
    let reader = ParquetReader::new(File::open(path).context(path.display())?);
    let frame = reader.with_columns(Some(vec!["id".into(), "title".into()])).finish().context(path.display())?;
    let texts = |name: &str| {
        let column = frame.column(name).context(path.display())?;
        let column = match column.dtype() {
            DataType::String => column.clone(),
            dtype if dtype.is_integer() && name == "id" => column.cast(&DataType::String).context(path.display())?,
            dtype => {
                let what = format!("{}: column {name} holds {dtype}, not texts", path.display());
                return Err(Error::failed(what));
            }
        };
        let texts = column.str().context(path.display())?;
        Ok(texts.iter().map(|text| text.map(String::from)).collect::<Vec<_>>())
    };
    let (ids, titles) = (texts("id")?, texts("title")?);
    (1..).zip(ids.into_iter().zip(titles)).map(|(row, (id, title))| item(path, row, id, title)).collect()
}

#[cfg(test)]
mod tests {
    use polars::prelude::Column;

    use super::*;
    use crate::data::corpus::parquet_bytes;

    fn read(name: &str, content: &[u8]) -> std::result::Result<Vec<(String, String)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let items = read_items(&path).map_err(|error| error.to_string())?;
        Ok(items.into_iter().map(|item| (item.id, item.title)).collect())
    }

    #[test]
    fn one_catalogue_in_every_format() {
        let expected = Ok([("7", "Red Pen"), ("8", "Pad, \"A5\"")].map(|(a, b)| (a.into(), b.into())).to_vec());
        assert_eq!(read("a.csv", b"price,title,id\n1,Red Pen,7\n2,\"Pad, \"\"A5\"\"\",8\n"), expected);
        assert_eq!(read("a.tsv", b"id\ttitle\n7\tRed Pen\n8\t\"Pad, \"\"A5\"\"\"\n"), expected);
        let lines =
            b"{\"id\": 7, \"title\": \"Red Pen\"}\n\n{\"title\": \"Pad, \\\"A5\\\"\", \"id\": \"8\", \"x\": [1]}";
        assert_eq!(read("a.jsonl", lines), expected);
        let titles = || Column::new("title".into(), ["Red Pen", "Pad, \"A5\""]);
        for ids in [Column::new("id".into(), ["7", "8"]), Column::new("id".into(), [7i64, 8])] {
            let extra = Column::new("price".into(), [1.5f64, 2.5]);
            assert_eq!(read("a.parquet", &parquet_bytes(vec![extra, titles(), ids]).unwrap()), expected);
        }
    }

    #[test]
    fn bad_catalogues_are_named() {
        let numbers = parquet_bytes(vec![Column::new("id".into(), [1i64]), Column::new("title".into(), [2i64])]);
        let cases: [(&str, &[u8], &str); 11] = [
            ("a.csv", b"id,name\n1,x\n", "no column title"),
            ("a.csv", b"id,id,title\n1,1,x\n", "two columns are called id"),
            ("a.csv", b"id,title\n1,x\n,y\n", "row 2: there is no id"),
            ("a.csv", b"id,title\n1,x\n2\n", "row 2"),
            ("a.csv", b"id,title\n", "there is no item"),
            ("a.csv", b"id,title\n1,x\n1,y\n", "row 2: the id \"1\" is there twice"),
            ("a.csv", b"id,title\n1,\xff\n", "row 1"),
            ("a.jsonl", b"{\"id\": 1, \"title\": \"x\"}\n{\"id\": 2}\n", "row 2: there is no title"),
            ("a.jsonl", b"{\"id\": 1.5, \"title\": \"x\"}\n", "row 1: an id is text or a whole number"),
            ("a.parquet", &numbers.unwrap(), "column title holds i64"),
            ("a.txt", b"id,title\n1,x\n", ".jsonl"),
        ];
        for (name, content, expected) in cases {
            let error = read(name, content).unwrap_err();
            assert!(error.contains(expected) && error.contains(name), "{error} has no {expected}");
        }
        assert!(read("a.parquet", b"no parquet").is_err());
    }
}
