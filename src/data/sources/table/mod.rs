//! Any log as a table: delimited text, JSON lines, Python literals or Parquet, whose columns are
//! named by the user.
//!
//! A file with the user column is a log and may have titles too; a file with the item column and
//! titles, but no users, is a catalogue.

mod objects;
mod parquet;
mod rows;
mod settings;
mod text;

use self::rows::{Block, RowKind};
use self::settings::Settings;
use super::dataset::{Catalogue, RawDataset};
use super::delimited::{DelimitedFile, missing_column};
use super::options::{Columns, ReadOptions, TitleFrom};
use super::parquet_columns::ParquetFile;
use super::read_context::ReadContext;
use super::source_file::SourceFile;
use super::times::{TimeParser, TimeSample};
use crate::data::event_log::EventLog;
use crate::{Error, Result};

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Delimited by commas or the delimiter that the user names.
    Csv,
    Tsv,
    Jsonl,
    Python,
    Parquet,
}

impl Format {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "jsonl" => Ok(Self::Jsonl),
            "python" => Ok(Self::Python),
            "parquet" => Ok(Self::Parquet),
            _ => Err(Error::usage(format!(
                "table has no format `{}`: use csv, tsv, jsonl, python or parquet",
                super::fields::shorten(name)
            ))),
        }
    }

    /// Returns whether a row is an object with keys of its own.
    fn is_objects(self) -> bool {
        matches!(self, Self::Jsonl | Self::Python)
    }

    fn is_text(self) -> bool {
        matches!(self, Self::Csv | Self::Tsv)
    }
}

/// Reader of a file's rows.
enum Reader {
    Text(DelimitedFile),
    Objects,
    Parquet(ParquetFile),
}

/// An input file and its columns.
struct Table {
    file: SourceFile,
    format: Format,
    reader: Reader,
    /// Whether the file is a log; else it is a catalogue.
    log: bool,
    /// The selected columns that the file has; the item's column is that of logs or that of
    /// catalogues.
    columns: Columns,
    /// Whether the first rows have titles; later objects may have what these lack.
    has_titles: bool,
    /// About the number of rows.
    rows: u64,
    /// The times of a log.
    times: Option<TimeParser>,
}

impl Table {
    /// Opens a file and looks at its first rows.
    fn open(file: &SourceFile, settings: &Settings) -> Result<Self> {
        let format = match settings.format {
            Some(format) => format,
            None => text::find_format(file, settings)?,
        };
        let wanted = &settings.columns;
        let mut sections = false;
        let (reader, names, rows) = match format {
            Format::Csv | Format::Tsv => {
                let (records, with_sections) = text::open(file, format, settings)?;
                sections = with_sections;
                let names = records.header.clone();
                (Reader::Text(records), names, text::count_rows(file, settings.encoding)?)
            }
            Format::Jsonl | Format::Python => {
                let names = objects::keys(file, format, settings)?;
                (Reader::Objects, names, text::count_rows(file, settings.encoding)?)
            }
            Format::Parquet => {
                let parquet = ParquetFile::open(file)?;
                let (names, rows) = (parquet.names.clone(), parquet.rows());
                (Reader::Parquet(parquet), names, rows)
            }
        };
        let is_there = |name: &str| {
            let inside = matches!(&reader, Reader::Parquet(parquet) if parquet.has(name));
            inside || names.iter().any(|n| n == name) || file.partition.iter().any(|(key, _)| key == name)
        };
        let has = |name: &Option<String>| name.clone().filter(|name| is_there(name));
        let (user, title, text) = (has(&wanted.user), has(&wanted.title), has(&wanted.text));
        let item = if sections { wanted.item.clone() } else { has(&wanted.item) };
        let catalogue_item = has(&settings.catalogue_item);
        // Later objects may hold what the first ones lack.
        let describes = title.is_some()
            || text.is_some()
            || (format.is_objects() && (wanted.title.is_some() || wanted.text.is_some()));
        let log = user.is_some() || catalogue_item.is_none() || !describes;
        let columns = Columns {
            user,
            item: if log { item } else { catalogue_item },
            time: has(&wanted.time).filter(|_| log),
            title,
            rating: has(&wanted.rating).filter(|_| log),
            text,
        };
        let has_titles = columns.title.is_some();
        let mut table = Self { file: file.clone(), format, reader, log, columns, has_titles, rows, times: None };
        table.check_columns(settings, &names)?;
        if format.is_objects() {
            table.columns.user.clone_from(&wanted.user);
            table.columns.title.clone_from(&wanted.title);
            table.columns.text.clone_from(&wanted.text);
        }
        Ok(table)
    }

    /// Refuses a log that lacks a selected column.
    fn check_columns(&self, settings: &Settings, names: &[String]) -> Result<()> {
        let (wanted, found) = (&settings.columns, &self.columns);
        if !self.log {
            return Ok(());
        }
        for (wanted, found) in [
            (&wanted.user, &found.user),
            (&wanted.item, &found.item),
            (&wanted.time, &found.time),
            (&wanted.rating, &found.rating),
        ] {
            if let (Some(name), None) = (wanted, found) {
                let error = missing_column(&self.file, name, names).to_string();
                let mut hint = String::new();
                if self.columns.user.is_none() && self.columns.title.is_some() {
                    let item = settings.catalogue_item.as_deref().unwrap_or_default();
                    hint = format!(
                        "; a catalogue needs the column `{}` (option `catalogue_item` names it)",
                        super::fields::shorten(item)
                    );
                } else if let ([only], true) = (names, self.format.is_text())
                    && let Some(delimiter) = [';', '|', '\t', ':'].into_iter().find(|c| only.contains(*c))
                {
                    hint = format!("; is it delimited by `{}` (option `delimiter`)?", delimiter.escape_default());
                }
                return Err(Error::failed(error + &hint));
            }
        }
        Ok(())
    }

    /// Returns whether the file has the columns of titles and of texts, or may have them.
    fn describes(&self) -> [bool; 2] {
        [self.columns.title.is_some(), self.columns.text.is_some()]
    }

    /// Finds the form of a log's times.
    fn sample_times(&mut self, settings: &Settings) -> Result<()> {
        if !self.log || self.columns.time.is_none() {
            return Ok(());
        }
        let mut sample = TimeSample::new(&settings.times);
        match &self.reader {
            Reader::Text(records) => text::sample_times(self, records, &mut sample)?,
            Reader::Objects => objects::sample_times(self, settings, &mut sample)?,
            Reader::Parquet(parquet) => parquet::sample_times(self, parquet, &mut sample)?,
        }
        let parser = sample.parser().map_err(|what| Error::failed(format!("{}: {what}", self.file)))?;
        self.times = Some(parser);
        Ok(())
    }

    /// Returns the value that the names of the file's folders give a column.
    fn constant(&self, name: &Option<String>) -> &str {
        let name = name.as_deref().unwrap_or_default();
        let value = self.file.partition.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        value.unwrap_or_default()
    }

    /// Reads the rows; returns whether the file has the columns of titles and of texts.
    fn read(&self, raw: &mut RawDataset, settings: &Settings, context: &mut ReadContext) -> Result<[bool; 2]> {
        let RawDataset { log, catalogue, .. } = raw;
        let kind = RowKind {
            log: self.log,
            rated: self.columns.rating.is_some(),
            described: self.columns.title.is_some() || self.columns.text.is_some(),
            times: self.times.as_ref(),
            settings,
        };
        let mut found = if self.format.is_objects() { [false; 2] } else { self.describes() };
        let sink = |_: &mut ReadContext, block: Block| {
            found = or_each(found, block.found);
            block.add_to(&kind, log, catalogue)
        };
        match &self.reader {
            Reader::Text(records) => text::read(self, records, &kind, context, sink)?,
            Reader::Objects => objects::read(self, &kind, context, sink)?,
            Reader::Parquet(parquet) => parquet::read(self, parquet, &kind, context, sink)?,
        }
        Ok(found)
    }

    /// Returns the name of the file's format, for people.
    fn format_name(&self, settings: &Settings) -> String {
        match (self.format, settings.delimiter()) {
            (Format::Csv | Format::Tsv, Some(byte)) if !matches!(byte, b',' | b'\t') => {
                format!("text delimited by `{}`", char::from(byte))
            }
            (Format::Csv | Format::Tsv, Some(b'\t')) | (Format::Tsv, _) => "TSV".into(),
            (Format::Csv, _) => "CSV".into(),
            (Format::Jsonl, _) => "JSON lines".into(),
            (Format::Python, _) => "Python literals".into(),
            (Format::Parquet, _) => "Parquet".into(),
        }
    }
}

fn or_each(a: [bool; 2], b: [bool; 2]) -> [bool; 2] {
    [a[0] || b[0], a[1] || b[1]]
}

/// Reads the logs in their order, then the catalogues.
pub(crate) fn read(files: &[SourceFile], options: &ReadOptions, context: &mut ReadContext) -> Result<RawDataset> {
    let mut settings = Settings::new(options)?;
    settings.format = options.format.as_deref().map(Format::parse).transpose()?;
    settings.check_names(files)?;
    let wanted = settings.columns.clone();
    let tables = files.iter().map(|file| Table::open(file, &settings)).collect::<Result<Vec<Table>>>()?;
    let (mut logs, mut catalogues): (Vec<Table>, Vec<Table>) = tables.into_iter().partition(|table| table.log);
    if logs.is_empty() {
        let user = super::fields::shorten(wanted.user.as_deref().unwrap_or_default());
        return Err(Error::usage(format!("table: no log among the inputs: a file with the column `{user}`")));
    }
    let perhaps = logs.iter().chain(&catalogues).map(Table::describes).fold([false; 2], or_each);
    check_described(&wanted, perhaps, &logs)?;
    let titles = choose_titles(&settings, &mut logs, &mut catalogues);
    for table in &mut logs {
        table.sample_times(&settings)?;
    }

    let rows = logs.iter().map(|table| table.rows).sum();
    let log = EventLog::new(rows, &options.workspace, wanted.time.is_some(), wanted.rating.is_some())?;
    let mut raw = RawDataset { log, catalogue: Catalogue::default(), format: String::new() };
    raw.catalogue.missing = if wanted.title.is_none() {
        Some(
            "no column of titles is named: add option `title` COLUMN, or give an option `config` without the step \
             `titled`",
        )
    } else {
        None
    };
    let mut found = [false; 2];
    for table in &logs {
        found = or_each(found, table.read(&mut raw, &settings, context)?);
    }
    raw.log.finish()?;
    for table in &catalogues {
        found = or_each(found, table.read(&mut raw, &settings, context)?);
    }
    // The titles of a log may not have been selected.
    let found = or_each(found, [perhaps[0] && titles.is_some(), false]);
    check_described(&wanted, found, &logs)?;
    raw.format = describe(&settings, &logs, &catalogues, titles);
    Ok(raw)
}

/// Takes the titles from the catalogues alone or from the logs alone, as the options say; without
/// such an option from catalogues, if any has titles. Returns a sentence about it if it makes a
/// difference.
fn choose_titles(settings: &Settings, logs: &mut [Table], catalogues: &mut [Table]) -> Option<&'static str> {
    let has = |tables: &[Table]| tables.iter().any(|table| table.columns.title.is_some());
    let (in_log, in_catalogue) = (has(logs), has(catalogues));
    let certain = |tables: &[Table]| tables.iter().any(|table| table.has_titles);
    let from = match settings.title_from {
        Some(from) => from,
        None if in_catalogue && (certain(catalogues) || !certain(logs)) => TitleFrom::Catalogue,
        // Later objects may have titles: they are used.
        None => return None,
    };
    let had_titles = in_log && certain(logs);
    let unused = if from == TitleFrom::Catalogue { &mut *logs } else { &mut *catalogues };
    for table in unused {
        table.columns.title = None;
    }
    match (had_titles && in_catalogue, from) {
        (false, _) => None,
        (true, TitleFrom::Catalogue) => Some("titles of the catalogue"),
        (true, TitleFrom::Log) => Some("titles of the log"),
    }
}

/// Describes in a few words what was read.
fn describe(settings: &Settings, logs: &[Table], catalogues: &[Table], titles: Option<&str>) -> String {
    let formats = |tables: &[Table]| {
        let mut names: Vec<String> = tables.iter().map(|table| table.format_name(settings)).collect();
        names.dedup();
        names.join(" and ")
    };
    let mut times: Vec<String> = logs.iter().filter_map(|table| Some(table.times.as_ref()?.describe())).collect();
    times.dedup();
    let times = if times.is_empty() { "no times".into() } else { times.join(" and ") };
    let mut text = format!("{}, {times}", formats(logs));
    if !catalogues.is_empty() {
        text += &format!("; catalogue: {}", formats(catalogues));
    }
    if let Some(titles) = titles {
        text += &format!("; {titles}");
    }
    text
}

/// Refuses columns of titles or texts that no input has.
fn check_described(wanted: &Columns, found: [bool; 2], logs: &[Table]) -> Result<()> {
    for (name, found) in [&wanted.title, &wanted.text].into_iter().zip(found) {
        if let (Some(name), false, Some(first)) = (name, found, logs.first()) {
            return Err(Error::failed(format!(
                "{}: column `{}` is missing, here as in all inputs",
                first.file,
                super::fields::shorten(name)
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
