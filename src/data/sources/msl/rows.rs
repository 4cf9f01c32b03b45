//! Reads the released files: titles, rows, list literals.

use std::collections::HashMap;
use std::fmt;
use std::io::Cursor;
use std::path::Path;

use polars::prelude::{CsvReadOptions, DataFrame, SerReader};
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::data::Item;
use crate::{Context, Error, Result};

/// Reads the catalogue in the file's order. Of equal ids the last title counts, as in Python.
pub(super) fn read_titles(path: &Path, bytes: &[u8]) -> Result<Vec<Item>> {
    struct OrderedPairs;
    impl<'de> Visitor<'de> for OrderedPairs {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object from id to title")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(pairs)
        }
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let pairs = json.deserialize_map(OrderedPairs).context(path.display())?;
    json.end().context(path.display())?;

    let mut items: Vec<Item> = Vec::with_capacity(pairs.len());
    let mut indices: HashMap<String, usize> = HashMap::with_capacity(pairs.len());
    for (id, title) in pairs {
        let index = *indices.entry(id.clone()).or_insert(items.len());
        match items.get_mut(index) {
            Some(item) => item.title = title,
            None => items.push(Item { id, title }),
        }
    }
    if items.is_empty() {
        return Err(Error::failed(format!("{}: the catalogue is empty", path.display())));
    }
    Ok(items)
}

pub(super) struct Row {
    /// Line of the file, from 1.
    pub(super) line: usize,
    pub(super) user: String,
    pub(super) items: Vec<String>,
    pub(super) time: i64,
}

pub(super) fn read_rows(path: &Path, bytes: Vec<u8>) -> Result<Vec<Row>> {
    if let Err(error) = std::str::from_utf8(&bytes) {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        return Err(Error::failed(format!("{}: line {line}: not UTF-8", path.display())));
    }
    let lines = record_lines(&bytes)
        .map_err(|(line, what)| Error::failed(format!("{}: line {line}: {what}", path.display())))?;
    let options = CsvReadOptions::default().with_infer_schema_length(Some(0));
    let frame: DataFrame = options.into_reader_with_file_handle(Cursor::new(bytes)).finish().context(path.display())?;
    let column = |name: &str| {
        let column = frame.column(name).map_err(|_| {
            Error::failed(format!(
                "{}: line 1: column {name} is missing (needs user_id,item_ids,timestamp)",
                path.display()
            ))
        })?;
        column.str().context(path.display())
    };
    let (users, lists, times) = (column("user_id")?, column("item_ids")?, column("timestamp")?);

    let mut rows = Vec::with_capacity(frame.height());
    if lines.len() != frame.height() + 1 {
        return Err(Error::failed(format!("{}: not a CSV file", path.display())));
    }
    let columns = users.iter().zip(lists.iter()).zip(times.iter());
    for (((user, list), time), line) in columns.zip(lines.into_iter().skip(1)) {
        let at = |what: String| Err(Error::failed(format!("{}: line {line}: {what}", path.display())));
        let (Some(user), Some(list), Some(time)) = (user, list, time) else {
            return at("a row needs user_id, item_ids and timestamp".into());
        };
        let items = match parse_list(list) {
            Ok(items) => items,
            Err(what) => return at(format!("item_ids: {what}")),
        };
        if items.len() < 2 {
            return at(format!("a window needs 2 items or more, this one has {}", items.len()));
        }
        let Ok(seconds) = time.trim().parse() else {
            return at(format!("timestamp `{time}` is not a whole number"));
        };
        rows.push(Row { line, user: user.to_string(), items, time: seconds });
    }
    Ok(rows)
}

/// Returns the line, from 1, that each record starts on. Refuses, with the line, records that the
/// CSV reader would refuse without one: open quotes, text after a closing quote, not as many fields
/// as the header.
fn record_lines(bytes: &[u8]) -> std::result::Result<Vec<usize>, (usize, String)> {
    let mut lines = Vec::new();
    let mut header = None;
    let mut line = 1;
    let mut rest = bytes.iter().copied().peekable();
    while rest.peek().is_some() {
        let start = line;
        let mut fields = 1;
        let mut field_start = true;
        while let Some(byte) = rest.next() {
            if byte == b'"' && field_start {
                loop {
                    match rest.next() {
                        Some(b'"') if rest.peek() == Some(&b'"') => _ = rest.next(),
                        Some(b'"') => break,
                        Some(byte) => line += usize::from(byte == b'\n'),
                        None => return Err((start, "a quoted field does not end".into())),
                    }
                }
                if !matches!(rest.peek(), None | Some(b',' | b'\r' | b'\n')) {
                    return Err((start, "a quoted field should end before a comma".into()));
                }
            }
            field_start = byte == b',';
            fields += usize::from(byte == b',');
            if byte == b'\n' {
                line += 1;
                break;
            }
        }
        let wanted = *header.get_or_insert(fields);
        if fields != wanted {
            return Err((start, format!("{fields} fields, the header has {wanted}")));
        }
        lines.push(start);
    }
    Ok(lines)
}

/// Parses a Python list literal of whole numbers and quoted strings.
fn parse_list(text: &str) -> std::result::Result<Vec<String>, String> {
    let inside = text.trim().strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let Some(mut rest) = inside.map(str::trim_start) else {
        return Err("a list should be in [ and ]".into());
    };
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (item, after) = parse_id(rest)?;
        items.push(item);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.is_empty() => after,
            None => return Err(format!("a comma should follow item {}", items.len())),
        };
    }
    Ok(items)
}

fn parse_id(text: &str) -> std::result::Result<(String, &str), String> {
    if let Some(quote @ ('"' | '\'')) = text.chars().next() {
        let mut item = String::new();
        let mut chars = text.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, c @ ('\\' | '"' | '\''))) => item.push(c),
                    _ => return Err("an escape other than \\\\, \\\" and \\'".into()),
                },
                c if c == quote => return Ok((item, text.get(at + 1..).unwrap_or_default())),
                c => item.push(c),
            }
        }
        return Err("a quoted id does not end".into());
    }
    let end = text.find([',', ' ', '\t', '\n', '\r']).unwrap_or(text.len());
    let (number, after) = text.split_at(end);
    let digits = number.strip_prefix('-').unwrap_or(number);
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    if digits.is_empty() || leading_zero || !digits.bytes().all(|b| b.is_ascii_digit()) {
        let shown: String = number.chars().take(40).collect();
        return Err(format!("`{shown}` is neither a whole number nor a quoted id"));
    }
    Ok((number.to_string(), after))
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn broken_records_name_their_line() {
        let good = "u,\"[7,\n8]\",5\r\n";
        for (text, what) in [
            ("u,[7, 8, 8],5\n", "line 4: 5 fields, the header has 3"),
            ("u,\"[7, 8],5\n", "line 4: a quoted field does not end"),
            ("u,\"[7, 8],5\nu,\"[7, 8]\",5\n", "line 4: a quoted field should end before a comma"),
            ("u,\"[7, 8]\",5,3\n", "line 4: 4 fields, the header has 3"),
            ("\nu,\"[7, 8]\",5\n", "line 4: 1 fields, the header has 3"),
            (",\"[7, 8]\",5\n", "line 4: a row needs user_id"),
            ("u,\"[7, 8]\",5\nu,\"[7, 8\",5", "line 5: item_ids"),
        ] {
            let text = format!("user_id,item_ids,timestamp\n{good}{text}");
            let error = read_rows(Path::new("f.csv"), text.into_bytes()).err().unwrap().to_string();
            assert!(error.starts_with("f.csv: ") && error.contains(what), "{error}");
        }
        let text = format!("user_id,item_ids,timestamp\n{good}u,\"[\"\"7\"\", 8]\",5");
        let rows = read_rows(Path::new("f.csv"), text.into_bytes()).unwrap();
        assert_eq!(rows.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(rows[1].items, ["7", "8"]);
    }

    #[test]
    fn parses_lists() {
        let parse = |text| parse_list(text).unwrap();
        assert_eq!(parse("[1, -2,'a, b' , \"it's\"]"), ["1", "-2", "a, b", "it's"]);
        assert_eq!(parse(" [ 7, ] "), ["7"]);
        assert_eq!(parse(r"['\\ \'']"), [r"\ '"]);
        for bad in ["", "[", "1, 2", "[1, 2]]", "[01]", "[1.5]", "[,]", "[1, , 2]", "['a' 'b']", r"['\n']"] {
            assert!(parse_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let pieces = ["[", "]", "\"", "'", ",", "\n", "\r\n", " ", "\\", "7", "-", "0", "é", "u", "\u{feff}", "\t"];
        for round in 0..3000 {
            let mut text = String::new();
            for _ in 0..rng.random_range(0..40) {
                text.push_str(pieces[rng.random_range(0..pieces.len())]);
            }
            let _ = parse_list(&text);
            let mut bytes = text.into_bytes();
            if round % 3 == 0 {
                bytes.splice(0..0, *b"user_id,item_ids,timestamp\n");
            }
            if round % 5 == 0 && !bytes.is_empty() {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            let _ = read_rows(Path::new("x.csv"), bytes.clone());
            let _ = read_titles(Path::new("x.json"), &bytes);
        }
    }
}
