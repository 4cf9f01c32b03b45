//! Rows as delimited text.

use std::io::{BufRead, Read};

use super::rows::{Block, Cell, Row, RowKind, time_value};
use super::settings::Settings;
use super::{Format, Table};
use crate::data::sources::delimited::{DelimitedFile, Dialect, Record, is_section};
use crate::data::sources::encoding::Encoding;
use crate::data::sources::fields::shorten;
use crate::data::sources::files::max_rows;
use crate::data::sources::input::Input;
use crate::data::sources::python;
use crate::data::sources::read_context::ReadContext;
use crate::data::sources::source_file::SourceFile;
use crate::data::sources::times::TimeSample;
use crate::{Error, Result};

/// Number of first lines that show a file's format.
const LINES: usize = 100;

/// Finds the format of a file by its first lines.
pub(super) fn find_format(file: &SourceFile, settings: &Settings) -> Result<Format> {
    let lines = first_lines(file, settings.encoding)?;
    let Some(first) = lines.first() else { return Ok(Format::Csv) };
    if first.starts_with("PAR1") {
        return Ok(Format::Parquet);
    }
    if first.trim_start().starts_with('{') {
        return objects_format(file, &lines);
    }
    if first.trim() == "[" || first.trim_start().starts_with("[{") {
        let what = "one JSON array, but one object a line is read: jq -c '.[]' writes it so";
        return Err(Error::failed(format!("{file}: line 1: {what}")));
    }
    if settings.delimiter().is_some() {
        return Ok(Format::Csv);
    }
    let is_tsv_name = [".tsv", ".tab"].iter().any(|ending| file.plain_name().ends_with(ending));
    let count = |delimiter: char| lines.iter().take(20).map(move |line| line.matches(delimiter).count());
    let even = |delimiter: char| {
        let most = count(delimiter).max();
        most > Some(0) && count(delimiter).min() == most
    };
    let is_tsv = match (even('\t'), even(',')) {
        _ if is_tsv_name && first.contains('\t') => true,
        (true, false) => true,
        (false, true) => false,
        _ => count('\t').next() > count(',').next(),
    };
    Ok(if is_tsv { Format::Tsv } else { Format::Csv })
}

/// Returns JSON or Python, by the first lines that are either.
fn objects_format(file: &SourceFile, lines: &[String]) -> Result<Format> {
    let is_json = |line: &&String| serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok();
    let json = lines.iter().filter(is_json).count();
    let python = lines.iter().filter(|line| python::parse(line).is_ok()).count();
    // A line whose end was not read says nothing.
    if json == 0 && python == 0 && lines.iter().all(|line| line.len() < FIRST) {
        let first = lines.first().map(String::as_str).unwrap_or_default();
        let what = match serde_json::from_str::<serde::de::IgnoredAny>(first) {
            Err(error) if error.is_eof() => "an object does not end on its line; one object a line is read".into(),
            Err(error) if error.to_string().starts_with("trailing") => {
                "several objects on one line; one object a line is read".into()
            }
            Err(error) => format!("neither a JSON object nor a Python literal: {error}"),
            Ok(_) => "not an object".to_string(),
        };
        return Err(Error::failed(format!("{file}: line 1: {what}")));
    }
    Ok(if python > json { Format::Python } else { Format::Jsonl })
}

/// Bytes of a file's beginning that show its format.
const FIRST: usize = 1 << 20;

/// Returns the first lines that are not blank.
fn first_lines(file: &SourceFile, encoding: Encoding) -> Result<Vec<String>> {
    let mut input = Input::peek_as(file, encoding)?;
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let mut left = FIRST as u64;
    while lines.len() < LINES && left > 0 {
        line.clear();
        let read = input.content().take(left).read_until(b'\n', &mut line);
        let count = read.map_err(|error| input.read_error(&error))?;
        if count == 0 {
            break;
        }
        left -= count as u64;
        // The last line may be cut.
        if left > 0 || lines.is_empty() {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_string();
            if !text.trim().is_empty() {
                lines.push(text);
            }
        }
    }
    Ok(lines)
}

/// Opens a file of delimited text; returns whether it has sections (see [`Dialect::sections`]).
pub(super) fn open(file: &SourceFile, format: Format, settings: &Settings) -> Result<(DelimitedFile, bool)> {
    let sections = is_section(&Input::first_line_as(file, settings.encoding)?);
    let dialect = Dialect { sections, ..settings.dialect(format) };
    let Some((names, last_takes_rest, for_it_alone)) = settings.names_of(file) else {
        return Ok((DelimitedFile::open(file, Dialect { sections: false, ..dialect })?, false));
    };
    // Names for all files are not for those that have a header of their own.
    let columns = &settings.columns;
    if let Ok(with_header) = DelimitedFile::open(file, dialect) {
        let has = |name: &Option<String>| name.as_ref().is_some_and(|name| with_header.header.contains(name));
        let ids = has(&columns.user) || has(&columns.item) || has(&settings.catalogue_item);
        if with_header.header == names || (!for_it_alone && ids) {
            return Ok((with_header, sections));
        }
    }
    for (index, name) in names.iter().enumerate() {
        if names.iter().skip(index + 1).any(|other| other == name && !name.is_empty()) {
            return Err(Error::usage(format!("table: option `names` names `{}` twice", shorten(name))));
        }
    }
    Ok((DelimitedFile::with_names(file, dialect, names.to_vec(), last_takes_rest), sections))
}

/// Returns about the number of rows of a text file, by its first 64 KiB.
pub(super) fn count_rows(file: &SourceFile, encoding: Encoding) -> Result<u64> {
    let mut start = Vec::new();
    let mut input = Input::peek_as(file, encoding)?;
    input.content().take(1 << 16).read_to_end(&mut start).map_err(|error| input.read_error(&error))?;
    let lines = start.iter().filter(|b| **b == b'\n').count().max(1);
    max_rows([file], (start.len() / lines) as u64)
}

/// The source of a column's values.
#[derive(Clone, Copy)]
enum Field<'a> {
    Constant(&'a str),
    Column(usize),
    /// The record's section.
    Section,
}

impl<'a> Field<'a> {
    fn new(table: &'a Table, records: &DelimitedFile, name: &'a Option<String>) -> Result<Self> {
        match name {
            Some(name) if records.header.contains(name) => Ok(Self::Column(records.column(name)?)),
            Some(_)
                if *name == table.columns.item
                    && table.file.partition.iter().all(|(key, _)| Some(key) != name.as_ref()) =>
            {
                Ok(Self::Section)
            }
            name => Ok(Self::Constant(table.constant(name))),
        }
    }

    fn get<'r>(self, record: Record<'r>) -> &'r str
    where
        'a: 'r,
    {
        match self {
            Self::Constant(value) => value,
            Self::Column(index) => record.get(index),
            Self::Section => record.section,
        }
    }
}

/// Adds the times of the first rows to a sample.
pub(super) fn sample_times(table: &Table, records: &DelimitedFile, sample: &mut TimeSample) -> Result<()> {
    let time = Field::new(table, records, &table.columns.time)?;
    records.for_each(|record| match time_value(Cell::Text(time.get(record))) {
        Ok(Some(value)) => sample.add(value),
        _ => true,
    })
}

/// Reads the rows of a table in blocks.
pub(super) fn read(
    table: &Table,
    records: &DelimitedFile,
    kind: &RowKind,
    context: &mut ReadContext,
    sink: impl FnMut(&mut ReadContext, Block) -> Result<()> + Send,
) -> Result<()> {
    let field = |name| Field::new(table, records, name);
    let c = &table.columns;
    let (user, item, time) = (field(&c.user)?, field(&c.item)?, field(&c.time)?);
    let (rating, title, text) = (field(&c.rating)?, field(&c.title)?, field(&c.text)?);
    let parse = |_, record: Record, block: &mut Block| {
        let row = Row {
            user: user.get(record),
            item: item.get(record),
            time: Cell::Text(time.get(record)),
            rating: Cell::Text(rating.get(record)),
            title: title.get(record),
            text: text.get(record),
        };
        block.push(&row, kind)
    };
    records.read(context, parse, sink)
}
