//! Delimited text: CSV, TSV and their dialects.

mod dialect;

use std::ops::Range;

use memchr::memchr_iter;

pub(super) use self::dialect::Dialect;
use self::dialect::RecordEnd;
use super::fields::shorten;
use super::input::Input;
use super::lines::{BlockReader, NOT_UTF8, ParsedBlock, RecordResult, TextBlock};
use super::read_context::ReadContext;
use super::source_file::SourceFile;
use crate::{Error, Result};

/// The message of an open quote: where it ends cannot be known.
const STRAY_QUOTE: &str = "a quoted field does not end, or text follows its closing quote (a quote inside one is \
                           written \
                           twice; table: option `escape` '\\' or option `quote` none where it is not)";

/// A file of records.
pub(super) struct DelimitedFile {
    file: SourceFile,
    dialect: Dialect,
    /// The names of the columns.
    pub(super) header: Vec<String>,
    /// Whether the first record is the header.
    has_header: bool,
    /// Whether the last column takes what is left of a line.
    last_takes_rest: bool,
}

/// The fields of a record.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    text: &'a str,
    fields: &'a [Range<usize>],
    /// The section it belongs to; see [`Dialect::sections`].
    pub(super) section: &'a str,
}

impl<'a> Record<'a> {
    /// Returns a field; empty if there is none.
    pub(super) fn get(self, index: usize) -> &'a str {
        self.fields.get(index).and_then(|range| self.text.get(range.clone())).unwrap_or_default()
    }
}

/// Returns the id of a line `ID:`.
fn section_of(line: &[u8]) -> Option<&str> {
    let id = std::str::from_utf8(line.trim_ascii()).ok()?.strip_suffix(':')?;
    (!id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(id)
}

/// Returns whether a line gives the item of the rows after it.
pub(super) fn is_section(line: &str) -> bool {
    section_of(line.as_bytes()).is_some()
}

impl DelimitedFile {
    /// Opens a file and reads its header.
    pub(super) fn open(file: &SourceFile, dialect: Dialect) -> Result<Self> {
        let mut records = Self::with_names(file, dialect, Vec::new(), false);
        let mut names = None;
        records.for_each_raw(|_, _, record| {
            let fields = record.fields.iter().map(|range| record.text.get(range.clone()).unwrap_or_default());
            names = Some(fields.map(|name| name.trim().to_string()).collect());
            false
        })?;
        let names: Vec<String> = names.ok_or_else(|| Error::failed(format!("{file}: there is no header")))?;
        if names.iter().any(|name| name.replace("\r\n", "").contains('\r')) {
            let what = "lines end in carriage returns alone: convert them, for example by tr '\\r' '\\n'";
            return Err(Error::failed(format!("{file}: line 1: {what}")));
        }
        records.header = names;
        records.has_header = true;
        Ok(records)
    }

    /// Opens a file without a header, whose columns have these names.
    ///
    /// * `last_takes_rest`: the last column takes what is left of a line.
    pub(super) fn with_names(file: &SourceFile, dialect: Dialect, names: Vec<String>, last_takes_rest: bool) -> Self {
        Self { file: file.clone(), dialect, header: names, has_header: false, last_takes_rest }
    }

    /// Returns the index of a column in the records.
    pub(super) fn column(&self, name: &str) -> Result<usize> {
        let mut indices = self.header.iter().enumerate().filter(|(_, column)| *column == name).map(|(index, _)| index);
        let index = indices.next().ok_or_else(|| missing_column(&self.file, name, &self.header))?;
        match indices.next() {
            None => Ok(index),
            Some(second) => Err(Error::failed(format!(
                "{}: two columns are named `{}`, the {}th and the {}th: name the columns by option `names`",
                self.file,
                shorten(name),
                index + 1,
                second + 1
            ))),
        }
    }

    /// Parses the records, in parallel, and hands the values to `sink` in their order, as
    /// [`read_numbered_lines`](super::lines::read_numbered_lines) does.
    pub(super) fn read<C: Default + Send>(
        &self,
        context: &mut ReadContext,
        parse: impl Fn(u64, Record, &mut C) -> RecordResult<()> + Sync,
        sink: impl FnMut(&mut ReadContext, C) -> Result<()> + Send,
    ) -> Result<()> {
        let input = Input::open_as(&self.file, self.dialect.encoding, context)?;
        BlockReader::new(&self.file, input).parse_all(
            context,
            |blocks| self.next_block(blocks),
            |block| self.parse_block(block, &parse),
            sink,
        )
    }

    fn next_block(&self, blocks: &mut BlockReader) -> Result<Option<TextBlock>> {
        blocks.next(
            |bytes, at_end| self.dialect.whole_records(bytes, at_end),
            |bytes, section| {
                if self.dialect.sections
                    && let Some(last) = bytes.split(|b| *b == b'\n').filter_map(section_of).next_back()
                {
                    *section = last.to_string();
                }
            },
        )
    }

    /// Passes record after record to `each`, good ones alone, until it returns false.
    pub(super) fn for_each(&self, mut each: impl FnMut(Record) -> bool) -> Result<()> {
        self.for_each_raw(|is_header, bad, record| is_header || bad || each(record))
    }

    /// Passes to `each` whether the record is the header, whether it is bad, and the record.
    fn for_each_raw(&self, mut each: impl FnMut(bool, bool, Record) -> bool) -> Result<()> {
        let input = Input::peek_as(&self.file, self.dialect.encoding)?;
        let mut blocks = BlockReader::new(&self.file, input);
        let mut is_header = self.has_header;
        while let Some(block) = self.next_block(&mut blocks)? {
            let mut going = true;
            self.records(&block, |_, record| {
                if going {
                    match record {
                        Ok(record) => {
                            let bad = self.check(record).is_err();
                            going = each(std::mem::take(&mut is_header), bad, record);
                        }
                        // A header that cannot be read is an error; a bad row is reported when it
                        // is read.
                        Err(what) if self.header.is_empty() => return Err(what),
                        Err(_) => {}
                    }
                }
                Ok(())
            })
            .map_err(|(line, what)| Error::failed(format!("{}: line {line}: {what}", self.file)))?;
            if !going {
                break;
            }
        }
        Ok(())
    }

    fn parse_block<C: Default>(
        &self,
        block: &TextBlock,
        parse: &impl Fn(u64, Record, &mut C) -> RecordResult<()>,
    ) -> ParsedBlock<C> {
        let mut parsed = ParsedBlock::default();
        let mut is_header = self.has_header && block.first_line == 1;
        let records = self.records(block, |line, record| {
            if std::mem::take(&mut is_header) {
                return Ok(());
            }
            parsed.records += 1;
            let result = record.and_then(|record| {
                self.check(record)?;
                parse(line, record, &mut parsed.values)
            });
            if let Err(what) = result {
                parsed.bad.push((line, what));
            }
            Ok(())
        });
        debug_assert!(records.is_ok());
        parsed
    }

    /// Checks the number of fields, and that the record is not the header once more.
    fn check(&self, record: Record) -> RecordResult<()> {
        let (found, wanted) = (record.fields.len(), self.header.len());
        if wanted == 0 {
            return Ok(());
        }
        if found != wanted {
            return Err(format!("{found} fields, the header has {wanted}"));
        }
        let mut names = self.header.iter().enumerate();
        if names.all(|(index, name)| record.get(index).trim() == name) {
            return Err("the header once more".into());
        }
        Ok(())
    }

    /// Passes to `each` the line that each record of a block begins on, and the record. Blank lines
    /// and sections are skipped.
    fn records(
        &self,
        block: &TextBlock,
        mut each: impl FnMut(u64, RecordResult<Record>) -> RecordResult<()>,
    ) -> std::result::Result<(), (u64, String)> {
        let dialect = &self.dialect;
        let bytes = block.bytes.as_slice();
        let all = std::str::from_utf8(bytes).ok();
        let plain = dialect.is_plain_text(bytes);
        let mut unescaped = String::new();
        let mut fields = Vec::new();
        let limit = if self.last_takes_rest { self.header.len().max(1) } else { usize::MAX };
        let mut section = block.section.clone();
        let (mut start, mut line) = (0, block.first_line);
        while start < bytes.len() {
            let rest = bytes.get(start..).unwrap_or_default();
            let in_place = match plain || limit == usize::MAX {
                true => dialect.split_in_place(rest, limit, &mut fields),
                false => None,
            };
            let (end, stray) = match in_place {
                Some((length, _)) => (start + length, false),
                None => match dialect.record_end(bytes, start, true) {
                    RecordEnd::Complete(end) => (end, false),
                    RecordEnd::Stray(end) => (end, true),
                    RecordEnd::Incomplete => (bytes.len(), true),
                },
            };
            let raw = bytes.get(start..end).unwrap_or_default();
            let number = line;
            line += in_place.map_or_else(|| memchr_iter(b'\n', raw).count() as u64, |(_, lines)| lines);
            let text = match all {
                Some(text) => text.get(start..end).ok_or(NOT_UTF8),
                None => std::str::from_utf8(raw).map_err(|_| NOT_UTF8),
            };
            start = end;
            let body = raw.strip_suffix(b"\n").unwrap_or(raw);
            let body = body.strip_suffix(b"\r").unwrap_or(body);
            if body.iter().all(|byte| byte.is_ascii_whitespace() && *byte != dialect.delimiter) {
                continue;
            }
            if dialect.sections
                && let Some(id) = section_of(body)
            {
                section = id.to_string();
                continue;
            }
            let record = match text {
                Err(what) => Err(what.to_string()),
                Ok(_) if stray => Err(STRAY_QUOTE.to_string()),
                Ok(text) if in_place.is_some() => Ok(Record { text, fields: &fields, section: &section }),
                Ok(text) => {
                    let text = text.get(..body.len()).unwrap_or(text);
                    let text = dialect.split(text, limit, &mut unescaped, &mut fields);
                    Ok(Record { text, fields: &fields, section: &section })
                }
            };
            each(number, record).map_err(|what| (number, what))?;
        }
        Ok(())
    }
}

/// Returns the error of a column that a file lacks.
pub(super) fn missing_column(file: &SourceFile, name: &str, present: &[String]) -> Error {
    // A header of numbers or times is probably the first row.
    let data = present.iter().any(|field| field.trim_matches('"').starts_with(|c: char| c.is_ascii_digit()));
    let advice = if data { "; if that is a row of data, name the columns with option `names` a,b,c" } else { "" };
    let (name, present) = (shorten(name), shorten(&present.join(", ")));
    Error::failed(format!("{file}: column `{name}` is missing; it has {present}{advice}"))
}

#[cfg(test)]
mod tests;
