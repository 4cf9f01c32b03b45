//! Fields of text rows: ids and ratings, and texts for error lines.

/// Returns a field without white space around it, as `str::trim` does, and faster for the many
/// without any.
pub(super) fn trim(text: &str) -> &str {
    match text.as_bytes() {
        [b'!'..=b'~'] | [b'!'..=b'~', .., b'!'..=b'~'] => text,
        _ => text.trim(),
    }
}

/// Returns a field without white space around it; an empty one is an error.
pub(super) fn present<'a>(text: &'a str, what: &str) -> Result<&'a str, String> {
    let text = trim(text);
    if text.is_empty() { Err(format!("no {what}")) } else { Ok(text) }
}

/// Parses a finite number.
pub(super) fn rating(text: &str) -> Result<f32, String> {
    let number = present(text, "rating")?.parse().ok().filter(|r: &f32| r.is_finite());
    number.ok_or_else(|| format!("rating `{}` is not a finite number", shorten(text)))
}

/// Returns the beginning of a text for an error line, without characters that a terminal obeys.
pub(crate) fn shorten(text: &str) -> String {
    let mut start: String = text.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        start.push('…');
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lose_white_space() {
        for text in ["", "a", "ab", "a b", " ", " a", "a ", "\u{a0}é\u{3000}", "\u{1f}a", "~\n", "é"] {
            assert_eq!(trim(text), text.trim());
        }
    }

    #[test]
    fn ratings_are_finite() {
        assert_eq!(rating(" 4.5"), Ok(4.5));
        for text in ["", "nan", "inf", "1e99", "four", "4,5"] {
            assert!(rating(text).is_err(), "{text}");
        }
    }

    #[test]
    fn short_texts_hold_no_control_characters() {
        assert_eq!(shorten("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(shorten(&"é".repeat(61)).chars().count(), 61);
    }
}
