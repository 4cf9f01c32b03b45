//! Python literals as `repr` writes them, read with the rules of Python 3's `ast.literal_eval`: Amazon's metadata of
//! 2014 has one a line.
//!
//! Not read, because no `repr` of such data writes them: triple quotes, raw and byte strings, `\N{…}`, sets, complex
//! numbers, digits with underscores. Read although Python 3 does not: Python 2's `123L`.

use std::borrow::Cow;

/// Nested deeper than this is refused.
const MAX_DEPTH: usize = 64;

/// One literal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    /// As it is written.
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Value<'a>>),
    Tuple(Vec<Value<'a>>),
    /// In the order written; a key may come twice.
    Dict(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// Takes the value of a key out of a dict. Of equal keys the last counts, as in Python.
    pub(crate) fn take(&mut self, key: &str) -> Option<Self> {
        let Self::Dict(pairs) = self else { return None };
        let at = pairs.iter().rposition(|(k, _)| matches!(k, Self::Text(k) if k == key))?;
        Some(pairs.swap_remove(at).1)
    }
}

/// Parses one literal, with nothing but white space around it, in time linear in its length.
///
/// # Errors
/// Says the column, from 1, counted in characters, and what is wrong there.
pub(crate) fn parse(text: &str) -> Result<Value<'_>, String> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.space();
    if parser.at < text.len() { Err(parser.wrong("text after the literal")) } else { Ok(value) }
}

struct Parser<'a> {
    text: &'a str,
    /// The next byte to read.
    at: usize,
}

impl<'a> Parser<'a> {
    fn wrong(&self, what: &str) -> String {
        self.wrong_at(self.at, what)
    }

    fn wrong_at(&self, at: usize, what: &str) -> String {
        format!("column {}: {what}", self.slice(0, at).chars().count() + 1)
    }

    /// The text from one byte to before another; both are at characters.
    fn slice(&self, from: usize, to: usize) -> &'a str {
        self.text.get(from..to).unwrap_or_default()
    }

    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    /// Steps over a byte if it is next.
    fn skip(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn space(&mut self) {
        let count = self.rest().iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0c)).count();
        self.at += count;
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, String> {
        self.space();
        if self.at_text() {
            return Ok(Value::Text(self.text()?));
        }
        let Some(first) = self.peek() else { return Err(self.wrong("the literal ends where a value should be")) };
        if matches!(first, b'[' | b'(' | b'{') && depth == MAX_DEPTH {
            return Err(self.wrong(&format!("nested deeper than {MAX_DEPTH}")));
        }
        match first {
            b'[' => Ok(Value::List(self.items(b']', depth)?.0)),
            b'(' => {
                let (mut items, comma) = self.items(b')', depth)?;
                match items.pop() {
                    // Brackets around one value without a comma are only brackets.
                    Some(item) if items.is_empty() && !comma => Ok(item),
                    last => {
                        items.extend(last);
                        Ok(Value::Tuple(items))
                    }
                }
            }
            b'{' => self.dict(depth),
            b'0'..=b'9' | b'.' | b'-' | b'+' => self.number(),
            _ => self.word(),
        }
    }

    /// The values up to a closing bracket, and whether a comma follows one of them.
    fn items(&mut self, close: u8, depth: usize) -> Result<(Vec<Value<'a>>, bool), String> {
        let open = self.at;
        self.at += 1;
        let mut items = Vec::new();
        let mut comma = false;
        loop {
            self.space();
            if self.skip(close) {
                return Ok((items, comma));
            }
            if self.peek().is_none() {
                return Err(self.wrong_at(open, "a bracket is not closed"));
            }
            if !items.is_empty() && !comma {
                return Err(self.wrong("a comma or a closing bracket should be here"));
            }
            items.push(self.value(depth + 1)?);
            self.space();
            // A comma before each further value, so the last one found tells for all.
            comma = self.skip(b',');
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Value<'a>, String> {
        let open = self.at;
        self.at += 1;
        let mut pairs = Vec::new();
        let mut comma = true;
        loop {
            self.space();
            if self.skip(b'}') {
                return Ok(Value::Dict(pairs));
            }
            if self.peek().is_none() {
                return Err(self.wrong_at(open, "a bracket is not closed"));
            }
            if !comma {
                return Err(self.wrong("a comma or a closing bracket should be here"));
            }
            let key = self.value(depth + 1)?;
            self.space();
            if !self.skip(b':') {
                return Err(self.wrong("a colon should follow a key"));
            }
            pairs.push((key, self.value(depth + 1)?));
            self.space();
            comma = self.skip(b',');
        }
    }

    fn word(&mut self) -> Result<Value<'a>, String> {
        let length = self.rest().iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        let value = match self.slice(self.at, self.at + length) {
            "None" => Value::None,
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            _ => return Err(self.wrong("this begins no literal")),
        };
        self.at += length;
        Ok(value)
    }

    fn number(&mut self) -> Result<Value<'a>, String> {
        let mut last = 0;
        let length = self.rest().iter().take_while(|&&b| {
            let sign = matches!(b, b'+' | b'-') && matches!(last, 0 | b'e' | b'E');
            last = b;
            sign || b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_')
        });
        let number = self.slice(self.at, self.at + length.count());
        if !is_number(number) {
            return Err(self.wrong("not a number"));
        }
        self.at += number.len();
        Ok(Value::Number(number))
    }

    fn at_text(&self) -> bool {
        matches!(self.rest(), [b'\'' | b'"', ..] | [b'u' | b'U', b'\'' | b'"', ..])
    }

    /// A string, or several side by side, which are one.
    fn text(&mut self) -> Result<Cow<'a, str>, String> {
        let mut text = self.quoted()?;
        loop {
            self.space();
            if !self.at_text() {
                return Ok(text);
            }
            let more = self.quoted()?;
            text.to_mut().push_str(&more);
        }
    }

    fn quoted(&mut self) -> Result<Cow<'a, str>, String> {
        let open = self.at;
        if !self.skip(b'u') {
            self.skip(b'U');
        }
        let quote = self.peek().unwrap_or_default();
        self.at += 1;
        let mut from = self.at;
        let mut unescaped: Option<String> = None;
        loop {
            let end = self.rest().iter().position(|b| *b == quote || matches!(b, b'\\' | b'\n' | b'\r'));
            self.at = end.map_or(self.text.len(), |end| self.at + end);
            let run = self.slice(from, self.at);
            if self.skip(quote) {
                if run.is_empty() && unescaped.is_none() && self.peek() == Some(quote) {
                    return Err(self.wrong_at(open, "triple quotes are not read"));
                }
                return Ok(match unescaped {
                    None => Cow::Borrowed(run),
                    Some(text) => Cow::Owned(text + run),
                });
            }
            if !self.skip(b'\\') {
                return Err(self.wrong_at(open, "a string does not end"));
            }
            let text = unescaped.get_or_insert_default();
            text.push_str(run);
            self.escape(text, open)?;
            from = self.at;
        }
    }

    /// What an escape stands for; its backslash is read, `open` is where its string begins.
    fn escape(&mut self, text: &mut String, open: usize) -> Result<(), String> {
        let Some(kind) = self.peek() else { return Err(self.wrong_at(open, "a string does not end")) };
        let start = self.at - 1;
        // Python leaves an escape that it does not know as it is; what follows the backslash is read as text.
        if !matches!(kind, b'\n' | b'\r' | b'\\' | b'\'' | b'"' | b'N' | b'U' | b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'u')
            && !matches!(kind, b'v' | b'x' | b'0'..=b'7')
        {
            text.push('\\');
            return Ok(());
        }
        self.at += 1;
        text.push(match kind {
            b'\n' => return Ok(()),
            b'\r' => {
                self.skip(b'\n');
                return Ok(());
            }
            b'a' => '\x07',
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'v' => '\x0b',
            b'x' => self.character(start, 2)?,
            b'u' => self.character(start, 4)?,
            b'U' => self.character(start, 8)?,
            b'0'..=b'7' => {
                let mut code = u32::from(kind - b'0');
                for _ in 0..2 {
                    let Some(digit @ b'0'..=b'7') = self.peek() else { break };
                    code = code * 8 + u32::from(digit - b'0');
                    self.at += 1;
                }
                char::from_u32(code).unwrap_or_default()
            }
            b'N' => return Err(self.wrong_at(start, "\\N{...} is not read")),
            quote_or_backslash => char::from(quote_or_backslash),
        });
        Ok(())
    }

    /// The character of a code of so many hexadecimal digits. A surrogate takes its other half from a second escape,
    /// which Python leaves as two halves that no encoding can write.
    fn character(&mut self, start: usize, digits: usize) -> Result<char, String> {
        let mut code = self.hexadecimal(digits).ok_or_else(|| self.wrong_at(start, "an escape lacks digits"))?;
        if (0xd800..0xdc00).contains(&code) && self.rest().starts_with(b"\\u") {
            self.at += 2;
            if let Some(low @ 0xdc00..0xe000) = self.hexadecimal(4) {
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
        }
        char::from_u32(code).ok_or_else(|| self.wrong_at(start, "an escape of no character"))
    }

    fn hexadecimal(&mut self, digits: usize) -> Option<u32> {
        let text = self.text.get(self.at..self.at + digits).filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()))?;
        self.at += digits;
        u32::from_str_radix(text, 16).ok()
    }
}

fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits(text.strip_suffix(['l', 'L']).unwrap_or(text)) {
        return true;
    }
    if let Some(hexadecimal) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        return !hexadecimal.is_empty() && hexadecimal.bytes().all(|b| b.is_ascii_hexdigit());
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)));
    exponent && !(whole.is_empty() && fraction.is_empty()) && [whole, fraction].iter().all(|t| t.is_empty() || digits(t))
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn text(text: &str) -> Value<'_> {
        Value::Text(Cow::Borrowed(text))
    }

    #[test]
    fn strings() {
        for (literal, value) in [
            (r"'a'", "a"),
            (r#""it's""#, "it's"),
            (r#"'say "x"'"#, "say \"x\""),
            (r#"'it\'s \"x\" \\'"#, "it's \"x\" \\"),
            (r"'\a\b\f\n\r\t\v'", "\x07\x08\x0c\n\r\t\x0b"),
            (r"'\xe9\u2019\U0001f600\ud83d\ude00'", "é’😀😀"),
            (r"'\0\12\1011\777'", "\0\nA1ǿ"),
            (r"'\/ \q \é \8'", r"\/ \q \é \8"),
            ("'a\\\nb\\\r\nc'", "abc"),
            (r#"'a' "b"u'c'  'd'"#, "abcd"),
            ("u'é'", "é"),
            ("''", ""),
            (" ( 'a' ) ", "a"),
        ] {
            assert_eq!(parse(literal), Ok(text(value)), "{literal}");
        }
        // Nothing is copied where nothing is escaped.
        assert!(matches!(parse("'plain'"), Ok(Value::Text(Cow::Borrowed("plain")))));
    }

    #[test]
    fn other_values() {
        let number = Value::Number;
        assert_eq!(parse("[]"), Ok(Value::List(vec![])));
        assert_eq!(parse("()"), Ok(Value::Tuple(vec![])));
        assert_eq!(parse("(1,)"), Ok(Value::Tuple(vec![number("1")])));
        assert_eq!(parse("(1, 2)"), Ok(Value::Tuple(vec![number("1"), number("2")])));
        assert_eq!(parse("[True, False, None, ]"), Ok(Value::List(vec![Value::Bool(true), Value::Bool(false), Value::None])));
        for good in ["0", "-12", "+1", "3.17", ".5", "5.", "1e-05", "1E+20", "123L", "0xfF", "99999999999999999999"] {
            assert_eq!(parse(good), Ok(number(good)));
        }
        let mut dict = parse(r"{'a': 1, 2: [3], 'a': {}, }").unwrap();
        assert_eq!(dict.take("a"), Some(Value::Dict(vec![])));
        assert_eq!((dict.take("b"), number("1").take("a")), (None, None));
    }

    #[test]
    fn errors_name_the_column() {
        for (literal, what) in [
            ("", "column 1: the literal ends"),
            ("['é', x]", "column 7: this begins no literal"),
            ("'é", "column 1: a string does not end"),
            ("'a\nb'", "column 1: a string does not end"),
            (r"'\", "column 1: a string does not end"),
            (r"'ab\x4'", "column 4: an escape lacks digits"),
            (r"'\u12é4'", "column 2: an escape lacks digits"),
            (r"'\ud83d'", "column 2: an escape of no character"),
            (r"'\U00110000'", "column 2: an escape of no character"),
            (r"'\N{DASH}'", "column 2: \\N{...} is not read"),
            ("'''a'''", "column 1: triple quotes"),
            ("b'a'", "column 1: this begins no literal"),
            ("[1, 2", "column 1: a bracket is not closed"),
            ("[1 2]", "column 4: a comma or a closing bracket"),
            ("[1, 2)", "column 6: a comma or a closing bracket"),
            ("[,]", "column 2: this begins no literal"),
            ("{'a' 1}", "column 6: a colon should follow"),
            ("{1}", "column 3: a colon should follow"),
            ("{'a': 1 'b': 2}", "column 9: a comma or a closing bracket"),
            ("{'a': ", "column 7: the literal ends"),
            ("1 2", "column 3: text after the literal"),
            ("nan", "column 1: this begins no literal"),
            ("1.5j", "column 1: not a number"),
            ("1_0", "column 1: not a number"),
            ("--1", "column 1: not a number"),
        ] {
            let error = parse(literal).unwrap_err();
            assert!(error.starts_with(what), "{literal}: {error}");
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert!(parse(&nested(MAX_DEPTH + 1)).unwrap_err().contains("nested deeper than 64"));
        assert!(parse(&"({".repeat(1_000_000)).unwrap_err().contains("nested deeper"));
    }

    fn random(rng: &mut ChaCha8Rng, depth: usize) -> Value<'static> {
        let kind = rng.random_range(0..if depth < 4 { 7 } else { 4 });
        let count = rng.random_range(0..4);
        match kind {
            0 => Value::None,
            1 => Value::Bool(rng.random()),
            2 => Value::Number(["0", "-7", "3.5", "1e-05", "12345678901234567890"][rng.random_range(0..5)]),
            3 => {
                let pieces =
                    ["'", "\"", "\\", "\n", "\t", "\r", "\0", "\x7f", "é", "’", "😀", "{", "]", ",", "a", " ", "\\x", "u"];
                Value::Text((0..rng.random_range(0..9)).map(|_| pieces[rng.random_range(0..pieces.len())]).collect())
            }
            4 => Value::List((0..count).map(|_| random(rng, depth + 1)).collect()),
            5 => Value::Tuple((0..count).map(|_| random(rng, depth + 1)).collect()),
            _ => Value::Dict((0..count).map(|_| (random(rng, depth + 1), random(rng, depth + 1))).collect()),
        }
    }

    /// As Python 3's `repr`, or as Python 2's of unicode strings: non-ASCII escaped, a `u` before the quotes.
    fn repr(value: &Value, two: bool) -> String {
        let list = |items: &[Value]| items.iter().map(|v| repr(v, two)).collect::<Vec<_>>().join(", ");
        match value {
            Value::None => "None".into(),
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            Value::Number(number) => number.to_string(),
            Value::List(items) => format!("[{}]", list(items)),
            Value::Tuple(items) => format!("({}{})", list(items), if items.len() == 1 { "," } else { "" }),
            Value::Dict(pairs) => {
                let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("{}: {}", repr(k, two), repr(v, two))).collect();
                format!("{{{}}}", pairs.join(", "))
            }
            Value::Text(text) => {
                let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
                let mut out = if two { format!("u{quote}") } else { quote.to_string() };
                for c in text.chars() {
                    match c {
                        '\\' => out += "\\\\",
                        '\n' => out += "\\n",
                        '\r' => out += "\\r",
                        '\t' => out += "\\t",
                        c if c == quote => out += &format!("\\{quote}"),
                        ' '..='~' => out.push(c),
                        c if c.is_ascii() || (two && u32::from(c) < 0x100) => out += &format!("\\x{:02x}", u32::from(c)),
                        c if two && u32::from(c) < 0x10000 => out += &format!("\\u{:04x}", u32::from(c)),
                        c if two => out += &format!("\\U{:08x}", u32::from(c)),
                        c => out.push(c),
                    }
                }
                out.push(quote);
                out
            }
        }
    }

    #[test]
    fn reads_back_what_repr_writes() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..4000 {
            let value = random(&mut rng, 0);
            for two in [false, true] {
                let written = repr(&value, two);
                assert_eq!(parse(&written), Ok(value.clone()), "{written}");
            }
        }
    }

    #[test]
    fn random_text_never_panics() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let pieces = [
            "'", "\"", "\\", "{", "}", "[", "]", "(", ")", ",", ":", " ", "u", "x", "N", "U", "0", "9", "e", "-", ".", "é",
            "😀", "None", "\n", "\\u", "d83d",
        ];
        for _ in 0..50_000 {
            let length = rng.random_range(0..24);
            let text: String = (0..length).map(|_| pieces[rng.random_range(0..pieces.len())]).collect();
            let _ = parse(&text);
            let bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
