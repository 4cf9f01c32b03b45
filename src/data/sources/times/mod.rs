//! Times of events: numbers in a unit, and dates as people write them.
//!
//! The form of a file's times is found from its rows ([`TimeSample`]) and then holds for all of
//! them ([`TimeParser`]): the unit of numbers, and whether `5/6/2014` is in May or in June.

mod dates;

use std::fmt::{self, Display};

use chrono::format::{Item, Parsed, StrftimeItems};
use clap::ValueEnum;
use serde::Deserialize;

use self::dates::{DateOrder, parse_date};
use super::fields::{present, shorten, trim};

/// The unit of Unix times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Seconds
    #[serde(alias = "s")]
    #[value(alias = "s")]
    Seconds,
    /// Milliseconds
    #[serde(alias = "ms")]
    #[value(alias = "ms")]
    Milliseconds,
    /// Microseconds
    #[serde(alias = "us")]
    #[value(alias = "us")]
    Microseconds,
    /// Nanoseconds
    #[serde(alias = "ns")]
    #[value(alias = "ns")]
    Nanoseconds,
}

/// 2100-01-01, in Unix seconds: no event is later.
const END: i64 = 4_102_444_800;
/// Numbers below it show no unit: 1973-03-03 in seconds.
const SMALL: i64 = 100_000_000;

impl Unit {
    const ALL: [Self; 4] = [Self::Seconds, Self::Milliseconds, Self::Microseconds, Self::Nanoseconds];

    fn per_second(self) -> i64 {
        match self {
            Self::Seconds => 1,
            Self::Milliseconds => 1000,
            Self::Microseconds => 1_000_000,
            Self::Nanoseconds => 1_000_000_000,
        }
    }

    /// Returns milliseconds; times before 1970 or after 2100 are refused.
    pub(crate) fn milliseconds(self, time: i64) -> Result<i64, String> {
        if time < 0 || time / self.per_second() >= END {
            return Err(format!("timestamp {time} is not between 1970 and 2100 in {self}"));
        }
        Ok(match self {
            Self::Seconds => time * 1000,
            _ => time / (self.per_second() / 1000),
        })
    }

    /// Returns the unit in which a number is a time after 1973; `None` if there is none.
    fn detect(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| (SMALL..END).contains(&(number / unit.per_second())))
    }
}

impl Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Seconds => "seconds",
            Self::Milliseconds => "milliseconds",
            Self::Microseconds => "microseconds",
            Self::Nanoseconds => "nanoseconds",
        })
    }
}

/// A time as a source stores it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum TimeValue<'a> {
    Text(&'a str),
    Whole(i64),
    Float(f64),
    /// Unix time in milliseconds.
    Date(i64),
}

/// A number: the whole part and the digits of its fraction, in billionths.
type Number = (i64, i64);

/// Parses `978300760`, `1593878903.438`, `1.4e9`.
fn number(text: &str) -> Option<Number> {
    if let Ok(whole) = text.parse() {
        return Some((whole, 0));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.bytes().all(|b| b.is_ascii_digit()) && !fraction.is_empty() {
        let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
        let whole: i64 = whole.parse().ok()?;
        let billionths = digits.parse().ok()?;
        // Negative times are refused by their whole part.
        return Some((if text.starts_with('-') { whole.min(-1) } else { whole }, billionths));
    }
    let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite() && value.fract() == 0.0)?;
    (value.abs() <= 9_007_199_254_740_992.0).then_some((value as i64, 0))
}

impl<'a> TimeValue<'a> {
    fn number(self) -> Option<Number> {
        match self {
            Self::Text(text) => number(trim(text)),
            Self::Whole(whole) => Some((whole, 0)),
            // The shortest decimal form, as it was written.
            Self::Float(value) => value.is_finite().then(|| number(&value.to_string()))?,
            Self::Date(_) => None,
        }
    }
}

/// Returns the milliseconds of a date such as 20140513 or 20140513165321.
fn compact_date(number: i64) -> Option<i64> {
    if (19_700_101_000_000..21_000_101_000_000).contains(&number) {
        let clock = number % 1_000_000;
        let (hour, minute, second) = (clock / 10_000, clock / 100 % 100, clock % 100);
        let fits = hour < 24 && minute < 60 && second < 60;
        return compact_date(number / 1_000_000)
            .filter(|_| fits)
            .map(|day| day + ((hour * 60 + minute) * 60 + second) * 1000);
    }
    if !(19_700_101..21_000_101).contains(&number) {
        return None;
    }
    let date =
        chrono::NaiveDate::from_ymd_opt((number / 10_000) as i32, (number / 100 % 100) as u32, (number % 100) as u32)?;
    Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis())
}

/// Options of the user about times.
#[derive(Clone, Debug, Default)]
pub(super) struct TimeOptions {
    pub(super) unit: Option<Unit>,
    /// A strftime pattern, parsed.
    pub(super) format: Option<(String, Vec<Item<'static>>)>,
}

impl TimeOptions {
    /// Checks a unit and a strftime pattern.
    pub(super) fn new(unit: Option<Unit>, format: Option<&str>) -> Result<Self, String> {
        let parsed = |format: &str| -> Result<(String, Vec<Item<'static>>), String> {
            let items = StrftimeItems::new(format).parse_to_owned();
            let items =
                items.map_err(|_| format!("`{}` is no strftime format such as %d/%m/%Y %H:%M", shorten(format)))?;
            Ok((format.to_string(), items))
        };
        if unit.is_some() && format.is_some() {
            return Err("a time has a unit or a format, not both".into());
        }
        Ok(Self { unit, format: format.map(parsed).transpose()? })
    }
}

/// A sample of a file's times, from which their form is found.
#[derive(Default)]
pub(super) struct TimeSample {
    options: TimeOptions,
    /// Numbers that show no unit, dates such as 20140513, and numbers of each unit.
    small: u64,
    compact: u64,
    units: [u64; 4],
    /// Dates that can be read in two ways, the day before the month or after it: how many fit each
    /// way.
    day_first: u64,
    month_first: u64,
    ambiguous: Option<String>,
    seen: u64,
}

/// Number of rows of a sample, unless it stays ambiguous.
const SAMPLE: u64 = 20_000;

impl TimeSample {
    pub(super) fn new(options: &TimeOptions) -> Self {
        Self { options: options.clone(), ..Self::default() }
    }

    /// Adds a row's time; returns false once there are enough rows.
    pub(super) fn add(&mut self, value: TimeValue) -> bool {
        if self.options.unit.is_some() || self.options.format.is_some() {
            return false;
        }
        self.seen += 1;
        if let Some((whole, _)) = value.number() {
            match Unit::detect(whole) {
                Some(unit) => self.units[unit as usize] += 1,
                None if compact_date(whole).is_some() => self.compact += 1,
                None => self.small += 1,
            }
        } else if let TimeValue::Text(text) = value {
            let [day, month] =
                [DateOrder::DayFirst, DateOrder::MonthFirst].map(|order| parse_date(text.trim(), Some(order)));
            match (day, month) {
                (Ok(day), Ok(month)) if day != month => {
                    self.ambiguous.get_or_insert_with(|| text.trim().to_string());
                }
                (Ok(_), Err(_)) => self.day_first += 1,
                (Err(_), Ok(_)) => self.month_first += 1,
                _ => {}
            }
        }
        self.seen < SAMPLE || (self.ambiguous.is_some() && self.day_first + self.month_first == 0)
    }

    /// Returns the parser of the file's times; an error if `5/6/2014` can be either.
    pub(super) fn parser(self) -> Result<TimeParser, String> {
        let stated = self.options.unit.is_some();
        let order = match (self.day_first, self.month_first, &self.ambiguous) {
            (0, 0, Some(text)) => {
                let text = shorten(text);
                return Err(format!(
                    "no row shows whether `{text}` gives the day or the month first: set option `time_format`, \
                     such as %d/%m/%Y or %m/%d/%Y"
                ));
            }
            (day, month, _) if day > month => Some(DateOrder::DayFirst),
            (_, month, _) if month > 0 => Some(DateOrder::MonthFirst),
            _ => None,
        };
        let most = Unit::ALL.into_iter().zip(self.units).rev().max_by_key(|(_, count)| *count);
        let numbers = match (self.options.unit, most) {
            (Some(unit), _) => Numbers::Unit(unit),
            (None, Some((unit, count))) if count >= self.compact.max(1) && count * 2 >= self.small => {
                Numbers::Unit(unit)
            }
            _ if self.compact > self.small => Numbers::CompactDates,
            _ => Numbers::Small,
        };
        let has_numbers = self.small + self.compact + self.units.iter().sum::<u64>() > 0;
        Ok(TimeParser { numbers, stated, order, format: self.options.format, has_numbers })
    }
}

/// The form of a file's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    Unit(Unit),
    /// Dates such as 20140513.
    CompactDates,
    /// Too small to show a unit: seconds.
    Small,
}

/// Parser of a file's times.
pub(super) struct TimeParser {
    numbers: Numbers,
    /// Whether the user gave the unit.
    stated: bool,
    order: Option<DateOrder>,
    format: Option<(String, Vec<Item<'static>>)>,
    /// Whether any time of the sample is a number.
    has_numbers: bool,
}

impl TimeParser {
    /// Returns Unix time in milliseconds.
    pub(super) fn milliseconds(&self, value: TimeValue) -> Result<i64, String> {
        if let TimeValue::Date(time) = value {
            return in_range(time).ok_or_else(|| format!("time {time} (ms) is not between 1970 and 2100"));
        }
        if let TimeValue::Text(text) = value {
            present(text, "time")?;
            if let Some((format, items)) = &self.format {
                return parse_with_format(text.trim(), format, items);
            }
        } else if let Some((format, _)) = &self.format {
            return Err(format!("the time is a number, not a text of the form {}", shorten(format)));
        }
        match value.number() {
            Some(number) => self.number_to_time(number),
            None => match value {
                TimeValue::Text(text) => self.text_to_time(text.trim()),
                _ => Err("the time is not a finite number".into()),
            },
        }
    }

    fn number_to_time(&self, (whole, billionths): Number) -> Result<i64, String> {
        let unit = match self.numbers {
            Numbers::CompactDates => {
                let date = compact_date(whole).filter(|_| billionths == 0);
                return date.ok_or_else(|| format!("time {whole} is no date such as 20140513, as the other times are"));
            }
            Numbers::Unit(unit) => unit,
            Numbers::Small => Unit::Seconds,
        };
        if !self.stated
            && whole >= 0
            && let Numbers::Unit(_) = self.numbers
        {
            let found = Unit::detect(whole);
            if let Some(other) = found.filter(|found| *found != unit) {
                return Err(format!(
                    "time {whole} is in {other}, but the other times of the file are in {unit} (option \
                     `time_unit` says otherwise)"
                ));
            }
            if found.is_none() && compact_date(whole).is_some() {
                return Err(format!("time {whole} is a date, but the other times of the file are in {unit}"));
            }
        }
        let time = unit.milliseconds(whole)?;
        Ok(if unit == Unit::Seconds { time + billionths / 1_000_000 } else { time })
    }

    fn text_to_time(&self, text: &str) -> Result<i64, String> {
        let time = parse_date(text, self.order).map_err(|what| format!("time `{}` {what}", shorten(text)))?;
        in_range(time).ok_or_else(|| format!("time `{}` is not between 1970 and 2100", shorten(text)))
    }

    /// Describes the times in a few words.
    pub(super) fn describe(&self) -> String {
        match (&self.format, self.numbers) {
            (Some((format, _)), _) => format!("times as {format}"),
            (None, Numbers::Unit(unit)) if self.has_numbers || self.stated => format!("times in {unit}"),
            (None, Numbers::Small) if self.has_numbers => "times in seconds".into(),
            _ => "times as dates".into(),
        }
    }
}

fn in_range(milliseconds: i64) -> Option<i64> {
    (0..END * 1000).contains(&milliseconds).then_some(milliseconds)
}

/// Reads a time by a strftime pattern; without a time of day it is midnight, without an offset UTC.
fn parse_with_format(text: &str, format: &str, items: &[Item<'static>]) -> Result<i64, String> {
    let mut parsed = Parsed::new();
    let wrong = || format!("time `{}` is not of the form {}", shorten(text), shorten(format));
    chrono::format::parse(&mut parsed, text, items.iter()).map_err(|_| wrong())?;
    let offset = i64::from(parsed.offset().unwrap_or(0)) * 1000;
    let time = if parsed.timestamp().is_some() {
        parsed.to_naive_datetime_with_offset(0).map_err(|_| wrong())?.and_utc().timestamp_millis()
    } else {
        let date = parsed.to_naive_date().map_err(|_| wrong())?;
        let has_hour = parsed.hour_div_12().is_some() || parsed.hour_mod_12().is_some();
        let clock = if has_hour { parsed.to_naive_time().map_err(|_| wrong())? } else { chrono::NaiveTime::MIN };
        date.and_time(clock).and_utc().timestamp_millis() - offset
    };
    in_range(time).ok_or_else(|| format!("time `{}` is not between 1970 and 2100", shorten(text)))
}

#[cfg(test)]
mod tests;
