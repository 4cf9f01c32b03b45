//! Delimited text: CSV, TSV and their dialects.

use std::ops::Range;

use memchr::{memchr, memchr_iter, memchr2, memchr3};

use super::encoding::Encoding;
use super::fields::short;
use super::input::Input;
use super::lines::{BlockReader, NOT_UTF8, ParsedBlock, RecordResult, TextBlock, whole_lines};
use super::read_context::ReadContext;
use super::source_file::SourceFile;
use crate::{Error, Result};

/// How fields are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    /// The character between fields.
    pub(super) delimiter: u8,
    /// The character around a field that may hold delimiters, line ends and, written twice, itself.
    pub(super) quote: Option<u8>,
    /// The character that takes the meaning of the one after it.
    pub(super) escape: Option<u8>,
    pub(super) encoding: Encoding,
    /// Whether a line `ID:` gives the item of the rows after it (the Netflix prize).
    pub(super) sections: bool,
}

impl Dialect {
    /// Commas, and quotes around fields.
    pub(super) const CSV: Self =
        Self { delimiter: b',', quote: Some(b'"'), escape: None, encoding: Encoding::Utf8, sections: false };
    /// Tabs, and no quotes: a `"` is a character.
    pub(super) const TSV: Self = Self { delimiter: b'\t', quote: None, ..Self::CSV };
}

/// What an open quote means, in one message: where it ends cannot be known.
const STRAY_QUOTE: &str = "a quoted field does not end, or text follows its closing quote (a quote inside one is written \
                           twice; table: --escape '\\' or --quote none where it is not)";

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
    /// A field; empty if there is none.
    pub(super) fn get(self, index: usize) -> &'a str {
        self.fields.get(index).and_then(|range| self.text.get(range.clone())).unwrap_or_default()
    }
}

/// The end of a record in a text.
enum RecordEnd {
    /// It ends before this byte.
    Complete(usize),
    /// It cannot be read; the next one begins after its first line, at this byte.
    Stray(usize),
    /// It goes on after the text.
    Incomplete,
}

impl Dialect {
    fn is_plain(&self) -> bool {
        self.quote.is_none() && self.escape.is_none()
    }

    /// Whether a text is free of quotes and escapes.
    fn is_plain_text(&self, bytes: &[u8]) -> bool {
        match (self.quote, self.escape) {
            (None, None) => true,
            (Some(a), None) | (None, Some(a)) => memchr(a, bytes).is_none(),
            (Some(a), Some(b)) => memchr2(a, b, bytes).is_none(),
        }
    }

    /// Finds the end of the record that begins at `start`.
    fn record_end(&self, bytes: &[u8], start: usize, at_end: bool) -> RecordEnd {
        let rest = bytes.get(start..).unwrap_or_default();
        let line = memchr(b'\n', rest).map(|end| start + end + 1);
        let first_line = bytes.get(start..line.unwrap_or(bytes.len())).unwrap_or_default();
        if self.is_plain_text(first_line) {
            return match line {
                Some(end) => RecordEnd::Complete(end),
                None if at_end => RecordEnd::Complete(bytes.len()),
                None => RecordEnd::Incomplete,
            };
        }
        match self.quoted_record_end(bytes, start) {
            Some(Ok(end)) => RecordEnd::Complete(end),
            Some(Err(())) => RecordEnd::Stray(line.unwrap_or(bytes.len())),
            None if !at_end => RecordEnd::Incomplete,
            None if self.ends_inside_quotes(bytes, start) => RecordEnd::Stray(line.unwrap_or(bytes.len())),
            None => RecordEnd::Complete(bytes.len()),
        }
    }

    /// The end of a record with quotes or escapes: an error where text follows a closing quote,
    /// `None` if the text ends before the record does.
    fn quoted_record_end(&self, bytes: &[u8], start: usize) -> Option<std::result::Result<usize, ()>> {
        let escape = self.escape.unwrap_or(b'\n');
        let mut at = start;
        let mut field_start = true;
        loop {
            if field_start && Some(*bytes.get(at)?) == self.quote {
                at = self.closing_quote(bytes, at + 1)? + 1;
                let next = *bytes.get(at)?;
                if next != self.delimiter && next != b'\n' && next != b'\r' {
                    return Some(Err(()));
                }
            }
            at += memchr3(self.delimiter, b'\n', escape, bytes.get(at..)?)?;
            let byte = *bytes.get(at)?;
            at += 1;
            field_start = byte == self.delimiter;
            if byte == b'\n' {
                return Some(Ok(at));
            }
            if Some(byte) == self.escape && !field_start {
                bytes.get(at)?;
                at += 1;
            }
        }
    }

    /// The position of the quote that closes a field whose text begins at `at`.
    fn closing_quote(&self, bytes: &[u8], mut at: usize) -> Option<usize> {
        let quote = self.quote?;
        loop {
            let rest = bytes.get(at..)?;
            at += match self.escape {
                Some(escape) => memchr2(quote, escape, rest)?,
                None => memchr(quote, rest)?,
            };
            if Some(*bytes.get(at)?) == self.escape {
                at += 2;
            } else if *bytes.get(at + 1)? == quote {
                at += 2;
            } else {
                return Some(at);
            }
        }
    }

    /// Whether the last record, which has no end, ends inside a quoted field.
    fn ends_inside_quotes(&self, bytes: &[u8], start: usize) -> bool {
        let closed = [bytes.get(start..).unwrap_or_default(), b"\n"].concat();
        !matches!(self.quoted_record_end(&closed, 0), Some(Ok(_)))
    }

    /// Number of bytes that are whole records.
    fn whole_records(&self, bytes: &[u8], at_end: bool) -> usize {
        if self.is_plain() || self.is_plain_text(bytes) {
            return whole_lines(bytes, at_end);
        }
        let mut start = 0;
        while start < bytes.len() {
            match self.record_end(bytes, start, at_end) {
                RecordEnd::Complete(end) | RecordEnd::Stray(end) => start = end,
                RecordEnd::Incomplete => break,
            }
        }
        start
    }

    /// Splits a record, without its line end, into fields; `unescaped` takes the text of one with
    /// quotes or escapes, and the last of `limit` fields takes what is left. Returns the text that
    /// the fields are ranges of.
    fn split<'a>(
        &self,
        record: &'a str,
        limit: usize,
        unescaped: &'a mut String,
        fields: &mut Vec<Range<usize>>,
    ) -> &'a str {
        fields.clear();
        let bytes = record.as_bytes();
        if self.is_plain_text(bytes) {
            let mut start = 0;
            for end in memchr_iter(self.delimiter, bytes).take(limit - 1) {
                fields.push(start..end);
                start = end + 1;
            }
            fields.push(start..bytes.len());
            return record;
        }
        unescaped.clear();
        let mut start = 0;
        let mut chars = record.chars().peekable();
        let (delimiter, quote) = (char::from(self.delimiter), self.quote.map(char::from));
        let escape = self.escape.map(char::from);
        let mut field_start = true;
        let mut inside = false;
        while let Some(c) = chars.next() {
            let begins = std::mem::replace(&mut field_start, false);
            if Some(c) == escape {
                unescaped.extend(chars.next());
            } else if inside && Some(c) == quote {
                if chars.peek() == Some(&c) {
                    unescaped.extend(chars.next());
                } else {
                    inside = false;
                }
            } else if !inside && begins && Some(c) == quote {
                inside = true;
            } else if !inside && c == delimiter && fields.len() + 1 < limit {
                fields.push(start..unescaped.len());
                start = unescaped.len();
                field_start = true;
            } else {
                unescaped.push(c);
            }
        }
        fields.push(start..unescaped.len());
        unescaped
    }
}

/// A line `ID:`; its id.
fn section_of(line: &[u8]) -> Option<&str> {
    let id = std::str::from_utf8(line.trim_ascii()).ok()?.strip_suffix(':')?;
    (!id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(id)
}

/// Tells whether a line gives the item of the rows after it.
pub(super) fn is_section(line: &str) -> bool {
    section_of(line.as_bytes()).is_some()
}

impl DelimitedFile {
    /// Looks at a file's header.
    pub(super) fn open(file: &SourceFile, dialect: Dialect) -> Result<Self> {
        let mut records = Self::with_names(file, dialect, Vec::new(), false);
        let mut names = None;
        records.for_each_raw(|_, _, record| {
            let fields = record.fields.iter().map(|range| record.text.get(range.clone()).unwrap_or_default());
            names = Some(fields.map(|name| name.trim().to_string()).collect());
            false
        })?;
        records.header = names.ok_or_else(|| Error::failed(format!("{file}: there is no header")))?;
        records.has_header = true;
        Ok(records)
    }

    /// A file without a header, whose columns have these names.
    ///
    /// * `last_takes_rest`: the last column takes what is left of a line.
    pub(super) fn with_names(file: &SourceFile, dialect: Dialect, names: Vec<String>, last_takes_rest: bool) -> Self {
        Self { file: file.clone(), dialect, header: names, has_header: false, last_takes_rest }
    }

    /// The index of a column in the records.
    pub(super) fn column(&self, name: &str) -> Result<usize> {
        let mut indices = self.header.iter().enumerate().filter(|(_, column)| *column == name).map(|(index, _)| index);
        let index = indices.next().ok_or_else(|| missing_column(&self.file, name, &self.header))?;
        match indices.next() {
            None => Ok(index),
            Some(second) => Err(Error::failed(format!(
                "{}: two columns are named `{}`, the {}th and the {}th: name the columns by --columns",
                self.file,
                short(name),
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

    /// Shows `each` record after record, good ones alone, until it returns false.
    pub(super) fn for_each(&self, mut each: impl FnMut(Record) -> bool) -> Result<()> {
        self.for_each_raw(|is_header, bad, record| is_header || bad || each(record))
    }

    /// Shows `each` whether the record is the header, whether it is bad, and the record.
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
                        // A header that cannot be read is an error, a row is left to the reading.
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

    /// Shows `each` the line that each record of a block begins on, and the record. Blank lines and
    /// sections are passed over.
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
            let end = if plain {
                let end = memchr(b'\n', bytes.get(start..).unwrap_or_default()).map(|end| start + end + 1);
                RecordEnd::Complete(end.unwrap_or(bytes.len()))
            } else {
                dialect.record_end(bytes, start, true)
            };
            let (end, stray) = match end {
                RecordEnd::Complete(end) => (end, false),
                RecordEnd::Stray(end) => (end, true),
                RecordEnd::Incomplete => (bytes.len(), true),
            };
            let raw = bytes.get(start..end).unwrap_or_default();
            let number = line;
            line += if plain { 1 } else { memchr_iter(b'\n', raw).count() as u64 };
            let text = match all {
                Some(text) => text.get(start..end).ok_or(NOT_UTF8),
                None => std::str::from_utf8(raw).map_err(|_| NOT_UTF8),
            };
            start = end;
            let body = raw.strip_suffix(b"\n").unwrap_or(raw);
            let body = body.strip_suffix(b"\r").unwrap_or(body);
            if body.is_empty() {
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

/// The error of a column that a file lacks.
pub(super) fn missing_column(file: &SourceFile, name: &str, present: &[String]) -> Error {
    let (name, present) = (short(name), short(&present.join(", ")));
    Error::failed(format!("{file}: column `{name}` is missing; it has {present}"))
}

#[cfg(test)]
mod tests;
