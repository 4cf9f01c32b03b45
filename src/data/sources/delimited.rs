//! Delimited text whose quoted fields may hold delimiters and line ends.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use csv::{ByteRecord, ReaderBuilder, StringRecord, Terminator};

use super::input::{Input, ParsedBlock, hand_on};
use super::read_context::ReadContext;
use crate::{Error, Result};

/// Records are parsed in blocks of so many.
const BLOCK: u64 = 1 << 16;
/// A longer record is none: a quote that never ends.
const MAX_RECORD: usize = 64 << 20;
/// Follows the content: if a quoted field swallows it, that field has no end.
const END: &[u8] = b"\n\0\n";

/// The records of a file after its header.
pub(super) struct DelimitedReader {
    path: PathBuf,
    reader: csv::Reader<Bounded>,
    record: ByteRecord,
    header: Vec<String>,
    /// Has the content ended?
    ended: bool,
}

/// The fields of a record.
#[derive(Clone, Copy)]
pub(super) struct Record<'a>(&'a StringRecord);

impl<'a> Record<'a> {
    /// A field; empty if there is none.
    pub(super) fn get(self, at: usize) -> &'a str {
        let field = self.0.get(at).unwrap_or_default();
        // What is left of a line end on Windows.
        if at + 1 == self.0.len() { field.strip_suffix('\r').unwrap_or(field) } else { field }
    }
}

/// The content, then [`END`]; an error if a record is too long or a quoted field goes on after its
/// closing quote, where the crate would take the text up to the next quote, however far, for a
/// field.
struct Bounded {
    input: Input,
    end: &'static [u8],
    left: usize,
    quotes: Quotes,
    /// The line of a quoted field that goes on.
    stray: Option<u64>,
}

/// Where in quoted text the content is.
struct Quotes {
    delimiter: u8,
    line: u64,
    field_start: bool,
    inside: bool,
    /// Inside, after a quote: one of two, or the last.
    after_quote: bool,
}

impl Quotes {
    /// Goes on over more content; false where text follows a closing quote.
    fn check(&mut self, bytes: &[u8]) -> bool {
        if !self.inside && !bytes.contains(&b'"') {
            self.line += bytes.iter().filter(|b| **b == b'\n').count() as u64;
            self.field_start = bytes.last().map_or(self.field_start, |b| *b == self.delimiter || *b == b'\n');
            return true;
        }
        for &byte in bytes {
            let ends = byte == self.delimiter || byte == b'\n';
            if !self.inside {
                self.inside = byte == b'"' && self.field_start;
                self.field_start = ends;
            } else if self.after_quote {
                self.after_quote = false;
                if byte != b'"' {
                    if !ends && byte != b'\r' {
                        return false;
                    }
                    self.inside = false;
                    self.field_start = ends;
                }
            } else {
                self.after_quote = byte == b'"';
            }
            self.line += u64::from(byte == b'\n');
        }
        true
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let most = buffer.len().min(self.left);
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        let mut count = self.input.content().read(buffer)?;
        if !self.quotes.check(buffer.get(..count).unwrap_or_default()) {
            self.stray = Some(self.quotes.line);
            return Err(io::ErrorKind::InvalidData.into());
        }
        if count == 0 {
            count = self.end.read(buffer)?;
        }
        self.left -= count;
        Ok(count)
    }
}

impl DelimitedReader {
    /// Opens a file and reads its header.
    pub(super) fn open(path: &Path, delimiter: u8, context: &ReadContext) -> Result<Self> {
        Self::new(path, delimiter, Input::open(path, context)?)
    }

    /// The names of the columns.
    pub(super) fn header_of(path: &Path, delimiter: u8) -> Result<Vec<String>> {
        Ok(Self::new(path, delimiter, Input::peek(path)?)?.header)
    }

    fn new(path: &Path, delimiter: u8, input: Input) -> Result<Self> {
        let quotes = Quotes { delimiter, line: 1, field_start: true, inside: false, after_quote: false };
        let bounded = Bounded { input, end: END, left: MAX_RECORD, quotes, stray: None };
        let mut builder = ReaderBuilder::new();
        // The crate's own reading of CRLF miscounts lines.
        let builder = builder.delimiter(delimiter).terminator(Terminator::Any(b'\n'));
        let builder = builder.has_headers(false).flexible(true).buffer_capacity(1 << 17);
        let reader = builder.from_reader(bounded);
        let record = ByteRecord::new();
        let mut records = Self { path: path.to_path_buf(), reader, record, header: Vec::new(), ended: false };
        let place = path.display();
        if !records.advance()? {
            return Err(Error::failed(format!("{place}: there is no header")));
        }
        let header = StringRecord::from_byte_record(records.record.clone());
        let header = header.map_err(|_| Error::failed(format!("{place}: line 1: not UTF-8")))?;
        records.header = header.iter().map(|name| name.trim().to_string()).collect();
        Ok(records)
    }

    /// The place of a column in the records.
    pub(super) fn column(&self, name: &str) -> Result<usize> {
        let place = self.header.iter().position(|n| n == name);
        place.ok_or_else(|| missing_column(&self.path, name, &self.header))
    }

    /// Reads the next record that is no blank line; false at the end of the content.
    fn advance(&mut self) -> Result<bool> {
        self.reader.get_mut().left = MAX_RECORD;
        loop {
            if !self.read_one()? {
                self.ended = true;
                return Ok(false);
            }
            if !(self.record.len() == 1 && self.record.get(0) == Some(b"\r")) {
                break;
            }
        }
        if self.reader.get_ref().end.is_empty() {
            if self.record.as_slice().ends_with(END) {
                let what = format!("line {}: a quoted field does not end", self.line() + 1);
                return Err(Error::failed(format!("{}: {what}", self.path.display())));
            }
            if self.record.len() == 1 && self.record.get(0) == Some(b"\0") {
                let line = self.line();
                self.ended = true;
                if self.read_one()? {
                    return Err(Error::failed(format!("{}: line {line} is a NUL character", self.path.display())));
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_one(&mut self) -> Result<bool> {
        let start = self.reader.position().line();
        self.reader.read_byte_record(&mut self.record).map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let what = format!("longer than {} MiB; does a quoted field not end?", MAX_RECORD >> 20);
                Error::failed(format!("{}: the record after line {start} is {what}", self.path.display()))
            }
            csv::ErrorKind::Io(error) => match self.reader.get_ref().stray {
                Some(line) => {
                    let what =
                        "text follows the closing quote of a field; a quote inside a quoted field is written twice";
                    Error::failed(format!("{}: line {line}: {what}", self.path.display()))
                }
                None => self.reader.get_ref().input.broken(&error),
            },
            kind => Error::failed(format!("{}: line {start}: {kind:?}", self.path.display())),
        })
    }

    /// The line that the record read last starts on.
    fn line(&self) -> u64 {
        let inside = self.record.as_slice().iter().filter(|b| **b == b'\n').count() as u64;
        self.reader.position().line().saturating_sub(1 + inside).max(1)
    }

    fn block<C: Default>(
        &mut self,
        parse: &mut impl FnMut(u64, Record, &mut C) -> std::result::Result<(), String>,
    ) -> Result<ParsedBlock<C>> {
        let mut parsed = ParsedBlock::default();
        let mut spare = ByteRecord::new();
        while parsed.lines < BLOCK && !self.ended {
            if !self.advance()? {
                break;
            }
            parsed.lines += 1;
            let (line, wanted) = (self.line(), self.header.len());
            let result = if self.record.len() != wanted {
                Err(format!("{} fields, the header has {wanted}", self.record.len()))
            } else {
                match StringRecord::from_byte_record(std::mem::replace(&mut self.record, spare)) {
                    Ok(record) => {
                        let result = parse(line, Record(&record), &mut parsed.values);
                        spare = std::mem::replace(&mut self.record, record.into_byte_record());
                        result
                    }
                    Err(error) => {
                        spare = std::mem::replace(&mut self.record, error.into_byte_record());
                        Err("not UTF-8".to_string())
                    }
                }
            };
            if let Err(what) = result {
                parsed.bad.push((line, what));
            }
        }
        Ok(parsed)
    }

    /// Parses the records in blocks, a block while `sink` is given the one before, as
    /// [`read_numbered_lines`](super::input::read_numbered_lines) does.
    pub(super) fn read<C: Default + Send>(
        mut self,
        context: &mut ReadContext,
        mut parse: impl FnMut(u64, Record, &mut C) -> std::result::Result<(), String> + Send,
        mut sink: impl FnMut(&mut ReadContext, C) -> Result<()> + Send,
    ) -> Result<()> {
        let path = self.path.clone();
        let mut done = None;
        loop {
            let ended = self.ended;
            let (handed, next) = rayon::join(
                || hand_on(&path, done.take(), context, &mut sink),
                || if ended { Ok(None) } else { self.block(&mut parse).map(Some) },
            );
            handed?;
            done = next?;
            if done.is_none() {
                break;
            }
        }
        context.inputs.push(self.reader.into_inner().input.finish()?);
        Ok(())
    }
}

/// The error of a column that a file lacks.
pub(super) fn missing_column(path: &Path, name: &str, present: &[String]) -> Error {
    let present = super::short(&present.join(", "));
    Error::failed(format!("{}: column `{name}` is missing; it has {present}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], skip_bad: u64) -> Result<Vec<(u64, Vec<String>)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.csv");
        std::fs::write(&path, text).unwrap();
        let mut context = ReadContext::quiet();
        context.skip_bad = skip_bad;
        let mut all = Vec::new();
        DelimitedReader::open(&path, b',', &context)?.read(
            &mut context,
            |line, record, rows: &mut Vec<_>| {
                if record.get(0) == "bad" {
                    return Err("it is bad".to_string());
                }
                rows.push((line, [0, 1].map(|at| record.get(at).to_string()).to_vec()));
                Ok(())
            },
            |_, rows| {
                all.extend(rows);
                Ok(())
            },
        )?;
        Ok(all)
    }

    #[test]
    fn records_know_their_lines() {
        let row = |line, fields: [&str; 2]| (line, fields.map(str::to_string).to_vec());
        for end in ["\n", "\r\n"] {
            let text = "\u{feff}a,b\n1,\"x\ny, \"\"z\"\"\"\n\n\n2,é\n\"3\",".replace('\n', end);
            let wanted = [row(2, ["1", &format!("x{end}y, \"z\"")]), row(6, ["2", "é"]), row(7, ["3", ""])];
            assert_eq!(read(text.as_bytes(), 0).unwrap(), wanted, "{end:?}");
            assert_eq!(read(format!("{text}{end}").as_bytes(), 0).unwrap(), wanted, "{end:?}");
        }
        let many: String = (0..200_000).map(|i| format!("{i},x\n")).collect();
        let rows = read(format!("a,b\n{many}").as_bytes(), 0).unwrap();
        assert!(rows.iter().zip(0..).all(|((line, row), i)| *line == i + 2 && row[0] == i.to_string()));
        assert_eq!(rows.len(), 200_000);
    }

    #[test]
    fn bad_records_name_their_line() {
        for (text, what) in [
            (&b"a,b\n1,2\n\n3\n"[..], "line 4: 1 fields, the header has 2"),
            (b"a,b\r\n1,2\r\n\r\nbad,2\r\n", "line 4: it is bad"),
            (b"a,b\n1,2\n1,\"2\n2\"\nx,\xff\n", "line 5: not UTF-8"),
            (b"a,b\n1,2\n1,\"2\n3,4\n", "line 3: a quoted field does not end"),
            (b"a,b\n1,2\n1,\"2", "line 3: a quoted field does not end"),
            (b"\n\n", "no header"),
            (b"a\xff,b\n", "line 1: not UTF-8"),
        ] {
            let error = read(text, 0).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let kept = read(b"a,b\nbad,1\n1\nx,\xff\n1,2\n", 3).unwrap();
        assert_eq!(kept, [(5, vec!["1".to_string(), "2".to_string()])]);
        assert!(read(b"a,b\nbad,1\n1\nx,\xff\n1,2\n", 2).unwrap_err().to_string().contains("line 4: not UTF-8"));
    }
}
