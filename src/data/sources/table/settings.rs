//! The options of a table, checked.

use super::Format;
use crate::data::sources::delimited::Dialect;
use crate::data::sources::encoding::Encoding;
use crate::data::sources::fields::shorten;
use crate::data::sources::options::{Columns, ReadOptions, TableOptions, TitleChoice, TitleFrom};
use crate::data::sources::source_file::SourceFile;
use crate::data::sources::times::TimeOptions;
use crate::{Error, Result};

/// Names for the columns of files without a header.
struct FileNames {
    /// The file; `None` for all files.
    file: Option<String>,
    names: Vec<String>,
    last_takes_rest: bool,
}

impl FileNames {
    /// Returns whether these are the names for a file: by its path, the end of it, or its base
    /// name.
    fn is_for(&self, file: &SourceFile) -> bool {
        self.file.as_deref().is_some_and(|name| {
            name == file.name() || name == file.base_name() || file.name().ends_with(&format!("/{name}"))
        })
    }
}

/// The options of a table, checked.
pub(super) struct Settings {
    pub(super) columns: Columns,
    /// The item's column in catalogues.
    pub(super) catalogue_item: Option<String>,
    pub(super) format: Option<Format>,
    delimiter: Option<u8>,
    /// `Some(None)` for no quotes.
    quote: Option<Option<u8>>,
    escape: Option<u8>,
    pub(super) encoding: Encoding,
    names: Vec<FileNames>,
    pub(super) title_from: Option<TitleFrom>,
    pub(super) title_choice: TitleChoice,
    pub(super) times: TimeOptions,
    pub(super) item_separator: Option<String>,
    pub(super) clicked_suffix: Option<String>,
}

/// Parses one ASCII character, or one of two words for it.
fn character(flag: &str, text: &str, words: &[(&str, u8)]) -> Result<u8> {
    if let Some((_, byte)) = words.iter().find(|(word, _)| text.eq_ignore_ascii_case(word)) {
        return Ok(*byte);
    }
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | 0) => Ok(*byte),
        _ => Err(Error::usage(format!("table: {flag} `{}` is not one ASCII character", shorten(text)))),
    }
}

impl Settings {
    pub(super) fn new(options: &ReadOptions) -> Result<Self> {
        let columns = options.columns.clone();
        if columns.user.is_none() || columns.item.is_none() {
            return Err(Error::usage(
                "table: name the columns of users and of items (option `user` COLUMN option `item` COLUMN)",
            ));
        }
        let TableOptions { delimiter, quote, escape, encoding, names, .. } = &options.table;
        let delimiter =
            delimiter.as_deref().map(|text| character("option `delimiter`", text, &[("tab", b'\t'), ("\\t", b'\t')]));
        let quote = quote.as_deref().map(|text| match text {
            "none" | "" => Ok(None),
            text => character("option `quote`", text, &[]).map(Some),
        });
        let escape = escape.as_deref().map(|text| character("option `escape`", text, &[]));
        let (delimiter, quote, escape) = (delimiter.transpose()?, quote.transpose()?, escape.transpose()?);
        if delimiter.is_some() && (quote.flatten() == delimiter || escape == delimiter) {
            return Err(Error::usage(
                "table: option `delimiter` is the character of option `quote` or option `escape`",
            ));
        }
        let options = &options.table;
        if options.clicked_suffix.is_some() && options.item_separator.is_none() {
            return Err(Error::usage(
                "table: option `clicked_suffix` is for the items of a list (option `item_separator`)",
            ));
        }
        Ok(Self {
            catalogue_item: options.catalogue_item.clone().or_else(|| columns.item.clone()),
            columns,
            format: None,
            delimiter,
            quote,
            // A quote that escapes itself is a quote written twice.
            escape: escape.filter(|escape| Some(*escape) != quote.unwrap_or(Some(b'"'))),
            encoding: encoding.unwrap_or_default(),
            names: names.iter().map(|text| file_names(text)).collect::<Result<_>>()?,
            title_from: options.title_from,
            title_choice: options.title_choice.unwrap_or_default(),
            times: TimeOptions::new(options.time_unit, options.time_format.as_deref())
                .map_err(|what| Error::usage(format!("table: {what}")))?,
            item_separator: options.item_separator.clone().filter(|text| !text.is_empty()),
            clicked_suffix: options.clicked_suffix.clone().filter(|text| !text.is_empty()),
        })
    }

    /// Returns the delimiter of the options.
    pub(super) fn delimiter(&self) -> Option<u8> {
        self.delimiter
    }

    /// Returns how the fields of a format are written.
    pub(super) fn dialect(&self, format: Format) -> Dialect {
        let usual = if format == Format::Tsv { Dialect::TSV } else { Dialect::CSV };
        let delimiter = self.delimiter.unwrap_or(usual.delimiter);
        let usual_quote = if delimiter == b'\t' { None } else { Some(b'"') };
        Dialect {
            delimiter,
            quote: self.quote.unwrap_or(usual_quote),
            escape: self.escape,
            encoding: self.encoding,
            sections: false,
        }
    }

    /// Returns the names for a file's columns, whether its last column takes what is left of a
    /// line, and whether the names are for this file alone.
    pub(super) fn names_of(&self, file: &SourceFile) -> Option<(&[String], bool, bool)> {
        let names = self
            .names
            .iter()
            .find(|names| names.is_for(file))
            .or_else(|| self.names.iter().find(|names| names.file.is_none()))?;
        Some((&names.names, names.last_takes_rest, names.file.is_some()))
    }

    /// Refuses names for files that are not among the inputs.
    pub(super) fn check_names(&self, files: &[SourceFile]) -> Result<()> {
        for names in &self.names {
            if let Some(name) = &names.file
                && !files.iter().any(|file| names.is_for(file))
            {
                return Err(Error::usage(format!("table: option `names` {name}=…: no input is named so")));
            }
        }
        Ok(())
    }
}

/// Reads `a,b,c` or `FILE=a,b,c`.
fn file_names(text: &str) -> Result<FileNames> {
    let (file, names) = match text.split_once('=') {
        Some((file, names)) => (Some(file.trim().to_string()), names),
        None => (None, text),
    };
    let (names, last_takes_rest) = match names.strip_suffix("...") {
        Some(names) => (names, true),
        None => (names, false),
    };
    let names: Vec<String> = names.split(',').map(|name| name.trim().to_string()).collect();
    if names.iter().all(String::is_empty) {
        return Err(Error::usage("table: option `names` takes names such as user,item,time"));
    }
    Ok(FileNames { file, names, last_takes_rest })
}
