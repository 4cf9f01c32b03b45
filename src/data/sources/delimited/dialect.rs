//! Dialects of delimited text: where records end, and how they are split into fields.

use std::ops::Range;

use memchr::{memchr, memchr_iter, memchr2, memchr3, memrchr};

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
        if at_end || self.is_plain() || self.is_plain_text(bytes) {
            return whole_lines(bytes, at_end);
        }
        self.whole_quoted_records(bytes).unwrap_or_else(|| self.whole_records_one_by_one(bytes))
    }

    /// Returns the number of bytes that are whole records, by the number of quotes before a line
    /// end; `None` with escapes, and where a quote neither opens or closes a field nor is one of
    /// two inside one.
    fn whole_quoted_records(&self, bytes: &[u8]) -> Option<usize> {
        let quote = self.quote.filter(|_| self.escape.is_none())?;
        let mut quotes = Vec::with_capacity(bytes.len() / 16);
        for at in memchr_iter(quote, bytes) {
            let fits = if quotes.len() % 2 == 0 {
                let before = at.checked_sub(1).and_then(|before| bytes.get(before));
                before.is_none_or(|b| *b == self.delimiter || *b == b'\n' || *b == quote)
            } else {
                let after = bytes.get(at + 1);
                after.is_none_or(|b| *b == self.delimiter || *b == b'\n' || *b == b'\r' || *b == quote)
            };
            if !fits {
                return None;
            }
            quotes.push(at);
        }
        let mut end = bytes.len();
        while let Some(line) = memrchr(b'\n', bytes.get(..end)?) {
            let before = quotes.partition_point(|at| *at < line);
            if before % 2 == 0 {
                return Some(line + 1);
            }
            end = *quotes.get(before - 1)?;
        }
        Some(0)
    }

    fn whole_records_one_by_one(&self, bytes: &[u8]) -> usize {
        let mut start = 0;
        while start < bytes.len() {
            match self.record_end(bytes, start, false) {
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
        let bytes = record.as_bytes();
        if self.is_plain_text(bytes) {
            fields.clear();
            let mut start = 0;
            for end in memchr_iter(self.delimiter, bytes).take(limit - 1) {
                fields.push(start..end);
                start = end + 1;
            }
            fields.push(start..bytes.len());
            return record;
        }
        self.split_unescaped(record, limit, unescaped, fields);
        unescaped
    }

    /// Splits the record at the beginning of a text in place, where no quote is inside a field:
    /// `fields` takes ranges of the text. Returns the record's bytes, with its line end, and its
    /// number of lines; `None`, with `fields` of no meaning, for any other record, and with
    /// escapes. With a `limit` there may be no quotes at all.
    pub(super) fn split_in_place(
        &self,
        bytes: &[u8],
        limit: usize,
        fields: &mut Vec<Range<usize>>,
    ) -> Option<(usize, u64)> {
        if self.escape.is_some() {
            return None;
        }
        fields.clear();
        let (mut start, mut lines) = (0, 1);
        loop {
            let rest = bytes.get(start..)?;
            let last = fields.len() + 1 == limit;
            let quoted = self.quote.is_some() && rest.first().copied() == self.quote;
            let (mut field, end) = if quoted {
                let inside = rest.get(1..)?;
                let length = memchr(self.quote?, inside).filter(|_| !last)?;
                lines += memchr_iter(b'\n', inside.get(..length)?).count() as u64;
                (start + 1..start + 1 + length, start + length + 2)
            } else {
                let length = if last { memchr(b'\n', rest) } else { memchr2(self.delimiter, b'\n', rest) };
                let end = start + length.unwrap_or(rest.len());
                (start..end, end)
            };
            let next = match (bytes.get(end), bytes.get(end + 1)) {
                (Some(b'\r'), Some(b'\n') | None) => Some(&b'\n'),
                (next, _) => next,
            };
            match next {
                None | Some(b'\n') => {
                    if !quoted && bytes.get(field.clone())?.ends_with(b"\r") {
                        field.end -= 1;
                    }
                    fields.push(field);
                    let carriage_return = usize::from(bytes.get(end) == Some(&b'\r'));
                    return Some(((end + carriage_return + 1).min(bytes.len()), lines));
                }
                Some(byte) if *byte == self.delimiter => fields.push(field),
                Some(_) => return None,
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

    /// Calls `each` with every text of up to `longest` of some characters.
    fn all_texts(characters: &[char], longest: u32, mut each: impl FnMut(&str)) {
        let count = characters.len();
        for length in 0..=longest {
            for number in 0..count.pow(length) {
                let text: String = (0..length).map(|place| characters[number / count.pow(place) % count]).collect();
                each(&text);
            }
        }
    }

    /// A record is split in place as it is split one character after another, or left to that.
    #[test]
    fn splits_in_place_as_character_by_character() {
        let mut in_place = 0;
        all_texts(&['a', ',', '"', 'é', '\r', '\n'], 6, |text| {
            let bytes = text.as_bytes();
            for limit in [1, 2, usize::MAX] {
                let (mut fields, mut expected, mut unescaped) = (Vec::new(), Vec::new(), String::new());
                if limit < usize::MAX && text.contains('"') {
                    continue;
                }
                let Some((end, lines)) = Dialect::CSV.split_in_place(bytes, limit, &mut fields) else { continue };
                let RecordEnd::Complete(expected_end) = Dialect::CSV.record_end(bytes, 0, true) else {
                    panic!("{text:?} is no record");
                };
                assert_eq!(end, expected_end, "{text:?}, at most {limit}");
                assert_eq!(lines, text[..end].trim_end_matches('\n').matches('\n').count() as u64 + 1, "{text:?}");
                let body = text[..end].strip_suffix('\n').unwrap_or(&text[..end]);
                let body = body.strip_suffix('\r').unwrap_or(body);
                Dialect::CSV.split_unescaped(body, limit, &mut unescaped, &mut expected);
                let fields = fields.into_iter().map(|range| &text[range]).collect::<Vec<_>>();
                let expected = expected.into_iter().map(|range| &unescaped[range]).collect::<Vec<_>>();
                assert_eq!(fields, expected, "{text:?}, at most {limit}");
                in_place += usize::from(text.contains('"'));
            }
        });
        assert!(in_place > 5000, "{in_place} records with quotes");
    }

    /// The last record's end, where the number of quotes shows it, is the one that reading record
    /// after record finds.
    #[test]
    fn whole_records_end_as_one_by_one() {
        let mut by_quotes = 0;
        all_texts(&['a', ',', '"', '\r', '\n'], 7, |text| {
            if let Some(end) = Dialect::CSV.whole_quoted_records(text.as_bytes()) {
                assert_eq!(end, Dialect::CSV.whole_records_one_by_one(text.as_bytes()), "{text:?}");
                by_quotes += usize::from(text.contains('"') && end > 0);
            }
        });
        assert!(by_quotes > 5000, "{by_quotes} texts with quotes");
    }
}
