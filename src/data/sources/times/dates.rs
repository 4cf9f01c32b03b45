//! Dates and times of day as people write them.

use chrono::{Month, NaiveDate, NaiveTime, Weekday};

/// Order of day and month in `5/6/2014`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DateOrder {
    DayFirst,
    MonthFirst,
}

/// A value, or what is wrong with the text.
type DateResult<T> = Result<T, String>;

/// The forms that are read, for an error message.
const FORMS: &str = "is neither a number nor a date such as 2014-03-07T12:00:00Z (option `time_format` says what else \
                     it is)";

/// Returns Unix time in milliseconds. Without a time of day it is midnight, without an offset UTC.
///
/// | form | such as |
/// |---|---|
/// | ISO 8601, RFC 3339 | `2014-03-07`, `2014-03-07T12:00:00.250Z`, `2014-03-07 12:00:00+01:00`, `2014-03-07 12:00:00 UTC` |
/// | slashes, dots | `2014/03/07`, `3/7/2014 1:02:03 PM` (by `order`), `7.3.2014` (the day first) |
/// | words, RFC 2822 | `Fri, 7 Mar 2014 12:00:00 +0000`, `Fri Mar 07 12:00:00 -0000 2014`, `March 7, 2014` |
pub(super) fn parse_date(text: &str, order: Option<DateOrder>) -> DateResult<i64> {
    let wrong = || FORMS.to_string();
    let with_words = text.bytes().any(|b| b.is_ascii_alphabetic()) && words(text).is_some();
    let (date, rest) = if with_words {
        let (date, rest) = words(text).ok_or_else(wrong)??;
        return Ok(midnight(date) + clock(&rest, true).ok_or_else(wrong)?);
    } else {
        numeric(text, order)?
    };
    let Some(separator) = rest.chars().next() else { return Ok(midnight(date)) };
    let strict = separator.eq_ignore_ascii_case(&'t');
    let rest = rest
        .strip_prefix(", ")
        .or_else(|| rest.strip_prefix(['T', 't', ' ']))
        .filter(|rest| !rest.is_empty())
        .ok_or_else(wrong)?;
    Ok(midnight(date) + clock(rest, !strict).ok_or_else(wrong)?)
}

fn midnight(date: NaiveDate) -> i64 {
    date.and_time(NaiveTime::MIN).and_utc().timestamp_millis()
}

/// Parses a number of exactly `least` to `most` digits at the beginning of a text; returns it, and
/// the text after it.
fn digits(text: &str, least: usize, most: usize) -> Option<(u32, &str)> {
    let count = text.bytes().take_while(u8::is_ascii_digit).count();
    if !(least..=most).contains(&count) {
        return None;
    }
    let (number, rest) = text.split_at_checked(count)?;
    Some((number.parse().ok()?, rest))
}

/// Parses a date in numbers; returns it, and the text after it.
fn numeric(text: &str, order: Option<DateOrder>) -> DateResult<(NaiveDate, &str)> {
    let wrong = || FORMS.to_string();
    let (first, rest) = digits(text, 1, 4).ok_or_else(wrong)?;
    let first_digits = text.len() - rest.len();
    let separator = rest.chars().next().filter(|c| matches!(c, '-' | '/' | '.')).ok_or_else(wrong)?;
    // ISO 8601 has exact widths.
    let least = if separator == '-' { 2 } else { 1 };
    let part = |rest: &str, least: usize, most: usize| -> Option<(u32, usize)> {
        let (number, after) = digits(rest.strip_prefix(separator)?, least, most)?;
        Some((number, rest.len() - after.len()))
    };
    let (second, length) = part(rest, least, 2).ok_or_else(wrong)?;
    let rest = rest.get(length..).unwrap_or_default();
    let is_year_first = first_digits == 4;
    let (third, length) = if is_year_first { part(rest, least, 2) } else { part(rest, 4, 4) }.ok_or_else(wrong)?;
    let rest = rest.get(length..).unwrap_or_default();
    if is_year_first {
        return Ok((date(first, second, third).ok_or_else(wrong)?, rest));
    }
    if first_digits > 2 || first_digits < least {
        return Err(wrong());
    }
    let order = match order {
        _ if separator == '.' => DateOrder::DayFirst,
        Some(order) => order,
        None if first > 12 || first == second => DateOrder::DayFirst,
        None if second > 12 => DateOrder::MonthFirst,
        None => return Err("may give the day or the month first (option `time_format` says which)".into()),
    };
    let found = match order {
        DateOrder::DayFirst => date(third, second, first),
        DateOrder::MonthFirst => date(third, first, second),
    };
    Ok((found.ok_or_else(wrong)?, rest))
}

fn date(year: u32, month: u32, day: u32) -> Option<NaiveDate> {
    NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)
}

/// Parses a date with the name of a month; returns it, and the text of its time of day. `None`
/// without such a name.
fn words(text: &str) -> Option<DateResult<(NaiveDate, String)>> {
    let (mut year, mut month, mut day) = (None, None, None);
    let mut rest = Vec::new();
    let mut wrong = false;
    let split = |c: char| c.is_whitespace() || c == ',';
    let tokens = text.split(split).flat_map(|token| {
        // 13-May-2014
        let dashes = token.contains('-') && token.split('-').any(|part| part.parse::<Month>().is_ok());
        let parts: Vec<&str> = if dashes { token.split('-').collect() } else { vec![token] };
        parts
    });
    for token in tokens.filter(|token| !token.is_empty()) {
        let number = token.bytes().all(|b| b.is_ascii_digit()).then(|| token.parse::<u32>().ok()).flatten();
        let ordinal = ["st", "nd", "rd", "th"].iter().find_map(|end| token.strip_suffix(end)?.parse::<u32>().ok());
        let name = token.trim_end_matches('.');
        if let Ok(found) = name.parse::<Month>() {
            wrong |= month.replace(found.number_from_month()).is_some();
        } else if name.parse::<Weekday>().is_ok() {
        } else if let Some(number) = number.filter(|_| token.len() == 4) {
            wrong |= year.replace(number).is_some();
        } else if let Some(number) = number.filter(|_| token.len() <= 2).or(ordinal) {
            wrong |= day.replace(number).is_some();
        } else {
            rest.push(token);
        }
    }
    let month = month?;
    let found = year.zip(day).and_then(|(year, day)| date(year, month, day)).filter(|_| !wrong);
    Some(found.map(|date| (date, rest.join(" "))).ok_or_else(|| FORMS.to_string()))
}

/// Returns milliseconds of a time of day (`16:53`, `16:53:21.250`, `1:02:03 PM`) less its offset
/// from UTC (`Z`, `UTC`, `+01:00`, `-0800`); 0 for an empty text.
fn clock(text: &str, one_digit_hour: bool) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let (hour, rest) = digits(text, if one_digit_hour { 1 } else { 2 }, 2)?;
    let (minute, rest) = digits(rest.strip_prefix(':')?, 2, 2)?;
    let (second, rest) = match rest.strip_prefix(':') {
        Some(rest) => digits(rest, 2, 2)?,
        None => (0, rest),
    };
    let (thousandths, rest) = match rest.strip_prefix(['.', ',']) {
        Some(rest) => {
            let count = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (fraction, rest) = rest.split_at_checked(count).filter(|(fraction, _)| !fraction.is_empty())?;
            let padded: String = fraction.chars().chain("000".chars()).take(3).collect();
            (padded.parse::<i64>().ok()?, rest)
        }
        None => (0, rest),
    };
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let half = rest.get(..2).map(str::to_ascii_uppercase);
    let (hour, rest) = match half.as_deref() {
        Some("AM" | "PM") if !(1..=12).contains(&hour) => return None,
        Some("AM") => (hour % 12, rest.get(2..)?),
        Some("PM") => (hour % 12 + 12, rest.get(2..)?),
        _ => (hour, rest),
    };
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let minutes = i64::from(hour * 60 + minute) - offset_minutes(rest.strip_prefix(' ').unwrap_or(rest))?;
    Some((minutes * 60 + i64::from(second)) * 1000 + thousandths)
}

/// Returns the minutes of an offset from UTC: nothing, `Z`, `UTC`, `GMT`, `+01:00`, `+0100`, `+01`.
fn offset_minutes(text: &str) -> Option<i64> {
    if matches!(text, "" | "Z" | "z" | "UTC" | "GMT") {
        return Some(0);
    }
    let (sign, rest) = match text.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, text.strip_prefix('-')?),
    };
    let (hours, minutes) = match digits(rest, 4, 4) {
        Some((number, "")) => (number / 100, number % 100),
        Some(_) => return None,
        None => {
            let (hours, rest) = digits(rest, 2, 2)?;
            let minutes = if rest.is_empty() {
                0
            } else {
                digits(rest.strip_prefix(':')?, 2, 2).filter(|(_, rest)| rest.is_empty())?.0
            };
            (hours, minutes)
        }
    };
    (hours < 24 && minutes < 60).then(|| sign * i64::from(hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let noon = 1_394_193_600_000;
        let midnight = noon - 43_200_000;
        for (text, wanted) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400_000),
            ("2014-03-07 12:00:00", noon),
            ("2014-03-07T12:00Z", noon),
            ("2014-03-07T12:00:00.2509Z", noon + 250),
            ("2014-03-07 12:00:00,25", noon + 250),
            ("2014-03-07T13:30:00+01:30", noon),
            ("2014-03-07 11:00:00-01:00", noon),
            ("2014-03-08T11:59:00+23:59", noon),
            ("2014-03-07 12:00:00 UTC", noon),
            ("2014-03-07 12:00:00 +0000", noon),
            ("2014-03-07 12:00:00+00", noon),
            ("2014-03-07T13:00:00+0100", noon),
            ("2014-03-07 12:00:00.000000 UTC", noon),
            ("2014/03/07", midnight),
            ("2014/3/7 12:00", noon),
            ("3/7/2014 12:00:00 PM", noon),
            ("3/7/2014, 12:00:00 pm", noon),
            ("03/07/2014 12:00:00 AM", midnight),
            ("3/7/2014 1:02:03 PM", noon + 3_723_000),
            ("7.3.2014 12:00", noon),
            ("Fri Mar 07 12:00:00 -0000 2014", noon),
            ("Fri Mar  7 04:00:00 -0800 2014", noon),
            ("Fri Mar 07 12:00:00 UTC 2014", noon),
            ("Fri, 07 Mar 2014 12:00:00 +0000", noon),
            ("Fri, 7 Mar 2014 12:00:00 GMT", noon),
            ("Mar 7, 2014", midnight),
            ("March 7th, 2014 12:00 PM", noon),
            ("7 Mar 2014, 12:00", noon),
            ("07-Mar-2014", midnight),
        ] {
            assert_eq!(parse_date(text, Some(DateOrder::MonthFirst)), Ok(wanted), "{text}");
        }
        assert_eq!(parse_date("7/3/2014", Some(DateOrder::DayFirst)), Ok(midnight));
        assert_eq!(parse_date("13/3/2014", None), Ok(midnight + 6 * 86_400_000));
        assert!(parse_date("7/3/2014", None).unwrap_err().contains("the day or the month"));
        for text in [
            "",
            "soon",
            "nan",
            "2014-02-29",
            "2014-13-01",
            "2014-00-01",
            "2014-03-07T",
            "2014-03-07T25:00:00",
            "2014-03-07T12",
            "2014-03-07T12:00:00+1",
            "2014-3-7",
            "2014-3-007",
            "2014-003-7",
            "214-003-07",
            "2014-03-07T12:0:00",
            "2014-03-07T012:00:00",
            "2014-03-07T12:00:00.Z",
            "2014-03-07T12:00:00+9999:99",
            "2014-03-07T12:00:00+24:00",
            "2014-03-07T12:00:00-01:60",
            "2014-03-07T12:00:00+1:00",
            "é014-03-07x",
            "2014/03-07",
            "3/7/14",
            "13/13/2014",
            "3/7/2014 13:00 PM",
            "Mar 2014",
            "Mar 7 8 2014",
            "7 Foo 2014",
            "2014-03-07 12:00:00 PST",
            "Mar 7, 2014 noon",
            "2014-03-07x",
            "Fri Mar 07 12:00:00 2014 2014",
        ] {
            assert!(parse_date(text, Some(DateOrder::MonthFirst)).is_err(), "{text}");
        }
    }
}
