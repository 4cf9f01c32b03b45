//! Fields of text rows: ids, ratings, times.

/// The unit of a source's Unix times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    /// Milliseconds; times before 1970 or after 2100 are refused.
    pub(crate) fn milliseconds(self, time: i64) -> std::result::Result<i64, String> {
        const END: i64 = 4_102_444_800;
        let end = if self == Self::Seconds { END } else { END * 1000 };
        if !(0..end).contains(&time) {
            let unit = if self == Self::Seconds { "seconds" } else { "milliseconds" };
            return Err(format!("timestamp {time} is not between 1970 and 2100 in {unit}"));
        }
        Ok(if self == Self::Seconds { time * 1000 } else { time })
    }
}

/// The start of a text, for an error line.
pub(crate) fn short(text: &str) -> String {
    let mut start: String = text.chars().take(60).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

/// A time as a source writes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Time {
    /// Unix time in a unit that the text does not tell.
    Number(i64),
    /// A date: Unix time in milliseconds.
    Date(i64),
}

impl Time {
    /// Milliseconds. The first number sets the unit of all that follow: 10^11 and more (1973 as
    /// milliseconds, 5138 as seconds) are milliseconds.
    pub(super) fn milliseconds(self, unit: &mut Option<Unit>) -> Result<i64, String> {
        match self {
            Self::Date(time) => Unit::Milliseconds.milliseconds(time),
            Self::Number(time) => {
                let guess = if time < 100_000_000_000 { Unit::Seconds } else { Unit::Milliseconds };
                let time = unit.unwrap_or(guess).milliseconds(time)?;
                // An absurd time tells no unit.
                unit.get_or_insert(guess);
                Ok(time)
            }
        }
    }
}

/// A field that must hold something.
pub(super) fn present<'a>(text: &'a str, what: &str) -> Result<&'a str, String> {
    if text.trim().is_empty() { Err(format!("no {what}")) } else { Ok(text) }
}

/// A finite number.
pub(super) fn rating(text: &str) -> Result<f32, String> {
    let number = present(text, "rating")?.trim().parse().ok().filter(|r: &f32| r.is_finite());
    number.ok_or_else(|| format!("rating `{}` is not a finite number", short(text)))
}

/// A time: a whole number (`978300760`, `978300760.0`) or a date (`2014-03-07`,
/// `2014-03-07T12:00:00.250Z`, `2014-03-07 12:00:00+01:00`; without an offset it is UTC).
pub(super) fn time(text: &str) -> Result<Time, String> {
    let text = present(text, "time")?.trim();
    if let Ok(number) = text.parse() {
        return Ok(Time::Number(number));
    }
    let number = text.parse().ok().and_then(whole);
    number.map(Time::Number).or_else(|| date(text).map(Time::Date)).ok_or_else(|| {
        format!("time `{}` is neither a whole number nor a date such as 2014-03-07T12:00:00Z", short(text))
    })
}

/// A float that holds a whole number exactly.
pub(super) fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// Milliseconds since 1970 of an ISO 8601 date, perhaps with a time of day and an offset.
fn date(text: &str) -> Option<i64> {
    let number = |text: &str, digits: usize| -> Option<i64> {
        (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let (day, rest) = text.split_at_checked(10)?;
    let mut parts = day.splitn(3, '-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months = lengths.get(..usize::try_from(month - 1).ok()?)?;
    if !(1970..2101).contains(&year) || !(1..=*lengths.get(months.len())?).contains(&day) {
        return None;
    }
    let past = year - 1;
    let days = past * 365 + past / 4 - past / 100 + past / 400 + months.iter().sum::<i64>() + day - 1 - 719_162;
    let midnight = days * 86_400_000;
    if rest.is_empty() {
        return Some(midnight);
    }
    let clock = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, offset) = match clock.rfind(['+', '-']) {
        Some(at) => clock.split_at_checked(at)?,
        None => (clock.strip_suffix(['Z', 'z']).unwrap_or(clock), "+00:00"),
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.splitn(3, ':').map(|part| number(part, 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    if hour > 23 || minute > 59 || second > 60 || hours > 23 || minutes > 59 {
        return None;
    }
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let offset = hours * 60 + minutes;
    let offset = if rest.contains('+') { offset } else { -offset };
    let fraction = format!("0.{fraction}").parse::<f64>().ok()?;
    Some(midnight + ((hour * 60 + minute - offset) * 60 + second) * 1000 + (fraction * 1000.0) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let noon = 1_394_193_600_000;
        for (text, wanted) in [
            ("978300760", Time::Number(978_300_760)),
            (" 978300760.0 ", Time::Number(978_300_760)),
            ("1.394193600e9", Time::Number(1_394_193_600)),
            ("-1", Time::Number(-1)),
            ("1970-01-01", Time::Date(0)),
            ("2000-02-29", Time::Date(951_782_400_000)),
            ("2014-03-07 12:00:00", Time::Date(noon)),
            ("2014-03-07T12:00Z", Time::Date(noon)),
            ("2014-03-07T12:00:00.2509Z", Time::Date(noon + 250)),
            ("2014-03-07T13:30:00+01:30", Time::Date(noon)),
            ("2014-03-07 11:00:00-01:00", Time::Date(noon)),
            ("2014-03-08T11:59:00+23:59", Time::Date(noon)),
        ] {
            assert_eq!(time(text), Ok(wanted), "{text}");
        }
        for text in [
            "",
            " ",
            "soon",
            "1.5",
            "nan",
            "inf",
            "1e300",
            "99999999999999999999",
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
            "1900-01-01",
            "é014-03-07x",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_time_tells_the_unit() {
        let mut unit = None;
        assert!(Time::Number(-5).milliseconds(&mut unit).is_err());
        assert!(Time::Number(i64::MAX).milliseconds(&mut unit).is_err());
        assert_eq!((Time::Date(7).milliseconds(&mut unit), unit), (Ok(7), None));
        assert_eq!(Time::Number(1_394_193_600_000).milliseconds(&mut unit), Ok(1_394_193_600_000));
        assert_eq!(unit, Some(Unit::Milliseconds));
        let mut unit = None;
        assert_eq!(Time::Number(1_394_193_600).milliseconds(&mut unit), Ok(1_394_193_600_000));
        assert!(Time::Number(1_394_193_600_000).milliseconds(&mut unit).is_err());
    }

    #[test]
    fn ratings_are_finite() {
        assert_eq!(rating("4.5"), Ok(4.5));
        for text in ["", "nan", "inf", "1e99", "four", "4,5"] {
            assert!(rating(text).is_err(), "{text}");
        }
    }
}
