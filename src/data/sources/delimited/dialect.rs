//! Dialects of delimited text: where records end, and how they are split into fields.

use std::ops::Range;

use memchr::{memchr, memchr_iter, memchr2, memchr3};

use crate::data::sources::encoding::Encoding;
use crate::data::sources::lines::whole_lines;

/// Characters of a dialect of delimited text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Dialect {
    /// The character between fields.
    pub(in super::super) delimiter: u8,
    /// The character around a field that may hold delimiters, line ends and, written twice, itself.
    pub(in super::super) quote: Option<u8>,
    /// The character that makes the character after it plain text.
    pub(in super::super) escape: Option<u8>,
    pub(in super::super) encoding: Encoding,
    /// Whether a line `ID:` gives the item of the rows after it (as in the Netflix prize).
    pub(in super::super) sections: bool,
}

impl Dialect {
    /// Commas, and quotes around fields.
    pub(in super::super) const CSV: Self =
        Self { delimiter: b',', quote: Some(b'"'), escape: None, encoding: Encoding::Utf8, sections: false };
    /// Tabs, and no quotes: a `"` is an ordinary character.
    pub(in super::super) const TSV: Self = Self { delimiter: b'\t', quote: None, ..Self::CSV };
}

/// The end of a record in a text.
pub(super) enum RecordEnd {
    /// The record ends before this byte.
    Complete(usize),
    /// The record cannot be read; the next one begins after its first line, at this byte.
    Stray(usize),
    /// The record goes on after the text.
    Incomplete,
}

impl Dialect {
    fn is_plain(&self) -> bool {
        self.quote.is_none() && self.escape.is_none()
    }

    /// Returns whether a text is free of quotes and escapes.
    pub(super) fn is_plain_text(&self, bytes: &[u8]) -> bool {
        match (self.quote, self.escape) {
            (None, None) => true,
            (Some(a), None) | (None, Some(a)) => memchr(a, bytes).is_none(),
            (Some(a), Some(b)) => memchr2(a, b, bytes).is_none(),
        }
    }

    /// Finds the end of the record that begins at `start`.
    pub(super) fn record_end(&self, bytes: &[u8], start: usize, at_end: bool) -> RecordEnd {
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

    /// Returns the end of a record with quotes or escapes: an error where text follows a closing
    /// quote, `None` if the text ends before the record does.
    fn quoted_record_end(&self, bytes: &[u8], start: usize) -> Option<std::result::Result<usize, ()>> {
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
            let rest = bytes.get(at..)?;
            at += match self.escape {
                Some(escape) => memchr3(self.delimiter, b'\n', escape, rest)?,
                None => memchr2(self.delimiter, b'\n', rest)?,
            };
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

    /// Returns the position of the quote that closes a field whose text begins at `at`.
    fn closing_quote(&self, bytes: &[u8], mut at: usize) -> Option<usize> {
        let quote = self.quote?;
        loop {
            let rest = bytes.get(at..)?;
            at += match self.escape {
                Some(escape) => memchr2(quote, escape, rest)?,
                None => memchr(quote, rest)?,
            };
            if Some(*bytes.get(at)?) == self.escape || *bytes.get(at + 1)? == quote {
                at += 2;
            } else {
                return Some(at);
            }
        }
    }

    /// Returns whether the last record, which has no end, ends inside a quoted field.
    fn ends_inside_quotes(&self, bytes: &[u8], start: usize) -> bool {
        let closed = [bytes.get(start..).unwrap_or_default(), b"\n"].concat();
        !matches!(self.quoted_record_end(&closed, 0), Some(Ok(_)))
    }

    /// Returns the number of bytes that are whole records.
    pub(super) fn whole_records(&self, bytes: &[u8], at_end: bool) -> usize {
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

    /// Splits a record, without its line end, into fields. `unescaped` takes the text of a record
    /// with quotes or escapes, and the last of `limit` fields takes what is left. Returns the text
    /// that the fields are ranges of.
    pub(super) fn split<'a>(
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
        if self.escape.is_none() && self.split_in_place(bytes, limit, fields) {
            return record;
        }
        self.split_unescaped(record, limit, unescaped, fields);
        unescaped
    }

    /// Splits a record whose quotes stand only around fields: the fields are ranges of the record
    /// itself. Returns false, with `fields` of no meaning, for any other record.
    fn split_in_place(&self, bytes: &[u8], limit: usize, fields: &mut Vec<Range<usize>>) -> bool {
        let mut start = 0;
        loop {
            let rest = bytes.get(start..).unwrap_or_default();
            let last = fields.len() + 1 == limit;
            let (range, end) = if self.quote.is_some() && rest.first().copied() == self.quote {
                let Some(closing) = self.quote.and_then(|quote| memchr(quote, rest.get(1..)?)) else { return false };
                let end = start + 1 + closing + 1;
                if last || bytes.get(end).is_some_and(|byte| *byte != self.delimiter) {
                    return false;
                }
                (start + 1..end - 1, end)
            } else {
                let end = match last {
                    true => bytes.len(),
                    false => memchr(self.delimiter, rest).map_or(bytes.len(), |end| start + end),
                };
                (start..end, end)
            };
            fields.push(range);
            if end == bytes.len() {
                return true;
            }
            start = end + 1;
        }
    }

    /// Splits any record; `unescaped` takes its text without quotes and escapes.
    fn split_unescaped(&self, record: &str, limit: usize, unescaped: &mut String, fields: &mut Vec<Range<usize>>) {
        fields.clear();
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every record of up to six of these characters is split in place as it is split one character
    /// after another, or left to that.
    #[test]
    fn splits_in_place_as_character_by_character() {
        let mut in_place = 0;
        for length in 0..=6u32 {
            for number in 0..4usize.pow(length) {
                let record: String =
                    (0..length).map(|place| ['a', ',', '"', 'é'][number / 4usize.pow(place) % 4]).collect();
                for limit in [1, 2, usize::MAX] {
                    let (mut fields, mut expected, mut text) = (Vec::new(), Vec::new(), String::new());
                    if Dialect::CSV.split_in_place(record.as_bytes(), limit, &mut fields) {
                        Dialect::CSV.split_unescaped(&record, limit, &mut text, &mut expected);
                        let fields = fields.into_iter().map(|range| &record[range]).collect::<Vec<_>>();
                        let expected = expected.into_iter().map(|range| &text[range]).collect::<Vec<_>>();
                        assert_eq!(fields, expected, "{record:?}, at most {limit}");
                        in_place += usize::from(record.contains('"'));
                    }
                }
            }
        }
        assert!(in_place > 500, "{in_place} records with quotes");
    }
}
