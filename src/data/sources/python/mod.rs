//! Python literals as `repr` writes them, read with the rules of Python 3's `ast.literal_eval`:
//! Amazon's metadata of 2014 has one a line.
//!
//! Not read, because no `repr` of such data writes them: triple quotes, raw and byte strings,
//! `\N{…}`, sets, complex numbers, digits with underscores. Read although Python 3 does not: Python
//! 2's `123L`.

use std::borrow::Cow;

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// A literal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    /// The digits, as they are written.
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Value<'a>>),
    Tuple(Vec<Value<'a>>),
    /// Keys and values in the order written; a key may come twice.
    Dict(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// Returns the value of a key in a dict. Of equal keys the last counts, as in Python.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Dict(pairs) = self else { return None };
        pairs.iter().rev().find(|(k, _)| matches!(k, Self::Text(k) if k == key)).map(|(_, value)| value)
    }

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
/// The column, from 1, counted in characters, and what is wrong there.
pub(crate) fn parse(text: &str) -> Result<Value<'_>, String> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.space();
    if parser.at < text.len() { Err(parser.error("text after the literal")) } else { Ok(value) }
}

struct Parser<'a> {
    text: &'a str,
    /// The next byte to read.
    at: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, what: &str) -> String {
        self.error_at(self.at, what)
    }

    fn error_at(&self, at: usize, what: &str) -> String {
        format!("column {}: {what}", self.slice(0, at).chars().count() + 1)
    }

    /// Returns the text between two bytes; both are at characters.
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
        if self.is_at_text() {
            return Ok(Value::Text(self.text()?));
        }
        let Some(first) = self.peek() else { return Err(self.error("the literal ends where a value should be")) };
        if matches!(first, b'[' | b'(' | b'{') && depth == MAX_DEPTH {
            return Err(self.error(&format!("nested deeper than {MAX_DEPTH}")));
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

    /// Parses the values up to a closing bracket; returns them, and whether a comma follows one of
    /// them.
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
                return Err(self.error_at(open, "a bracket is not closed"));
            }
            if !items.is_empty() && !comma {
                return Err(self.error("a comma or a closing bracket should be here"));
            }
            items.push(self.value(depth + 1)?);
            self.space();
            // A comma stands before each further value, so the last one found tells for all.
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
                return Err(self.error_at(open, "a bracket is not closed"));
            }
            if !comma {
                return Err(self.error("a comma or a closing bracket should be here"));
            }
            let key = self.value(depth + 1)?;
            self.space();
            if !self.skip(b':') {
                return Err(self.error("a colon should follow a key"));
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
            _ => return Err(self.error("this begins no literal")),
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
            return Err(self.error("not a number"));
        }
        self.at += number.len();
        Ok(Value::Number(number))
    }

    fn is_at_text(&self) -> bool {
        matches!(self.rest(), [b'\'' | b'"', ..] | [b'u' | b'U', b'\'' | b'"', ..])
    }

    /// Parses a string, or several side by side, which are one.
    fn text(&mut self) -> Result<Cow<'a, str>, String> {
        let mut text = self.parse_quoted()?;
        loop {
            self.space();
            if !self.is_at_text() {
                return Ok(text);
            }
            let more = self.parse_quoted()?;
            text.to_mut().push_str(&more);
        }
    }

    fn parse_quoted(&mut self) -> Result<Cow<'a, str>, String> {
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
                    return Err(self.error_at(open, "triple quotes are not read"));
                }
                return Ok(match unescaped {
                    None => Cow::Borrowed(run),
                    Some(text) => Cow::Owned(text + run),
                });
            }
            if !self.skip(b'\\') {
                return Err(self.error_at(open, "a string does not end"));
            }
            let text = unescaped.get_or_insert_default();
            text.push_str(run);
            self.escape(text, open)?;
            from = self.at;
        }
    }

    /// Appends what an escape stands for; its backslash has been read, `open` is where its string
    /// begins.
    fn escape(&mut self, text: &mut String, open: usize) -> Result<(), String> {
        let Some(kind) = self.peek() else { return Err(self.error_at(open, "a string does not end")) };
        let start = self.at - 1;
        // Python leaves an escape that it does not know as it is; what follows the backslash is
        // read as text.
        if !matches!(
            kind,
            b'\n' | b'\r' | b'\\' | b'\'' | b'"' | b'N' | b'U' | b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'u'
        ) && !matches!(kind, b'v' | b'x' | b'0'..=b'7')
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
            b'N' => return Err(self.error_at(start, "\\N{...} is not read")),
            quote_or_backslash => char::from(quote_or_backslash),
        });
        Ok(())
    }

    /// Parses the character of a code of `digits` hexadecimal digits. A surrogate takes its other
    /// half from a second escape, which Python leaves as two halves that no encoding can write.
    fn character(&mut self, start: usize, digits: usize) -> Result<char, String> {
        let mut code = self.hexadecimal(digits).ok_or_else(|| self.error_at(start, "an escape lacks digits"))?;
        if (0xd800..0xdc00).contains(&code) && self.rest().starts_with(b"\\u") {
            self.at += 2;
            if let Some(low @ 0xdc00..0xe000) = self.hexadecimal(4) {
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
        }
        char::from_u32(code).ok_or_else(|| self.error_at(start, "an escape of no character"))
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
    exponent
        && !(whole.is_empty() && fraction.is_empty())
        && [whole, fraction].iter().all(|t| t.is_empty() || digits(t))
}

#[cfg(test)]
mod tests;
