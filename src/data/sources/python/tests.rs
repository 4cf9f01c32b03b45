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
    assert_eq!(
        parse("[True, False, None, ]"),
        Ok(Value::List(vec![Value::Bool(true), Value::Bool(false), Value::None]))
    );
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

/// Writes a value as Python 3's `repr`, or as Python 2's of unicode strings: non-ASCII escaped, a
/// `u` before the quotes.
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
