//! How a table is written: its dialect, and the form of its times, at random.

use itemlm::data::{Encoding, TableOptions, Unit};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::reference::Log;

pub struct Dialect {
    pub delimiter: char,
    pub quote: Option<char>,
    pub escape: Option<char>,
    pub encoding: Option<Encoding>,
    pub header: bool,
}

impl Dialect {
    pub fn random(tabs: bool, log: &Log, rng: &mut ChaCha8Rng) -> Self {
        let delimiter = if tabs { '\t' } else { *[',', ';', '|', '^'].choose(rng).unwrap() };
        // Without quotes a field cannot hold a delimiter; the note holds a comma.
        let texts = || log.titles.values().chain(log.events.iter().flat_map(|e| [&e.user, &e.item]));
        let plain = delimiter != ',' && texts().all(|text| !text.contains(delimiter));
        let quote =
            if tabs || (plain && rng.random_bool(0.2)) { None } else { Some(*['"', '\''].choose(rng).unwrap()) };
        let escape = (quote.is_some() && rng.random_bool(0.3)).then_some('\\');
        let latin1 = texts().all(|text| text.chars().all(|c| u32::from(c) < 256));
        let encoding = match rng.random_range(0..4) {
            0 => Some(Encoding::Utf16),
            1 if latin1 => Some(Encoding::Latin1),
            // The printable characters of both are the same.
            2 if latin1 => Some(Encoding::Windows1252),
            _ => None,
        };
        Self { delimiter, quote, escape, encoding, header: rng.random_bool(0.7) }
    }
}

/// The form of times.
pub enum Times {
    Unit(Unit),
    Fraction,
    /// A strftime pattern that is recognised, or must be said.
    Pattern {
        pattern: &'static str,
        said: bool,
    },
}

/// Patterns that are recognised; all tell seconds.
const KNOWN: [&str; 9] = [
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S UTC",
    "%Y-%m-%dT%H:%M:%S+00:00",
    "%Y/%m/%d %H:%M:%S",
    "%a %b %d %H:%M:%S -0000 %Y",
    "%a, %d %b %Y %H:%M:%S +0000",
    "%d %B %Y, %H:%M:%S",
    "%Y%m%d%H%M%S",
];
/// Patterns that are ambiguous, or unheard of.
const SAID: [&str; 4] = ["%d/%m/%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p", "%H:%M:%S on %d.%m.%y", "%s"];

impl Times {
    pub fn random(seconds: bool, rng: &mut ChaCha8Rng) -> Self {
        let units = [Unit::Seconds, Unit::Milliseconds, Unit::Microseconds, Unit::Nanoseconds];
        match rng.random_range(0..4) {
            // Random logs hold milliseconds where `seconds` is false.
            0 => Self::Unit(*units[usize::from(!seconds)..].choose(rng).unwrap()),
            1 => Self::Fraction,
            2 if seconds => Self::Pattern { pattern: SAID.choose(rng).unwrap(), said: true },
            _ if seconds => Self::Pattern { pattern: KNOWN.choose(rng).unwrap(), said: false },
            _ => Self::Unit(Unit::Milliseconds),
        }
    }

    pub fn text(&self, milliseconds: i64) -> String {
        match self {
            Self::Unit(Unit::Seconds) => milliseconds.div_euclid(1000).to_string(),
            Self::Unit(Unit::Milliseconds) => milliseconds.to_string(),
            Self::Unit(Unit::Microseconds) => format!("{milliseconds}123"),
            Self::Unit(Unit::Nanoseconds) => format!("{milliseconds}123456"),
            Self::Fraction => format!("{}.{:03}", milliseconds.div_euclid(1000), milliseconds.rem_euclid(1000)),
            Self::Pattern { pattern, .. } => {
                let time = chrono::DateTime::from_timestamp_millis(milliseconds).unwrap();
                time.format(pattern).to_string()
            }
        }
    }

    pub fn json(&self, milliseconds: i64) -> Value {
        match self {
            Self::Unit(Unit::Milliseconds) if milliseconds % 2 == 0 => json!({"$date": milliseconds}),
            Self::Fraction => json!(milliseconds as f64 / 1000.0),
            _ => serde_json::from_str(&self.text(milliseconds)).unwrap(),
        }
    }

    /// Says what must be said of the times.
    pub fn say(&self, table: &mut TableOptions) {
        if let Self::Pattern { pattern, said: true } = self {
            table.time_format = Some(pattern.to_string());
        }
    }
}
