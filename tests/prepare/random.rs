//! Thousands of random small logs, in every format: the corpus is the reference's.

use std::collections::BTreeMap;
use std::fs;

use itemlm::data::{Source, prepare};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::names;
use crate::format::{ALL, Format};
use crate::reference;
use crate::reference::{Event, Log, Protocol, Step};
use crate::{config, options, read};

/// A source.
const LOGS: u64 = 1000;

/// Titles that every format can write.
const PLAIN: [&str; 12] = [
    "x",
    "Toy Story (1995)",
    "It's \"quoted\", isn't it",
    "He said \"no\"",
    "Don't",
    "Tom & Jerry &amp; Co, &quot;12&quot;",
    "Café Müller: ½",
    "back\\slash \\n \\x41 \\",
    "'",
    "\"",
    "Colon: one; {brace} [list], 'end'",
    "1999",
];
/// And some that only UTF-8 can, or that need quotes.
const WIDE: [&str; 4] = ["日本 😀 ’", "a::b|c", "ﬁ\u{301}", "naïve — dash"];

pub fn log(rng: &mut ChaCha8Rng, format: Format) -> Log {
    let users = *[1, 2, 5, 12].choose(rng).unwrap();
    let items = *[1, 3, 8, 20].choose(rng).unwrap();
    let events = *[1, 4, 20, 60, 200].choose(rng).unwrap();
    let span = *[1i64, 3, 50, 100_000].choose(rng).unwrap();
    let numeric = format.source() == Source::Movielens || rng.random_bool(0.3);
    let scale = rng.random_range(1..40);
    let id = |prefixes: [&str; 3], n: usize| {
        if numeric { (1 + n * scale).to_string() } else { format!("{}{n}", prefixes[n % 3]) }
    };
    let mut log = Log::default();
    for _ in 0..rng.random_range(1..=events) {
        let seconds = 1_000_000_000 + rng.random_range(0..span);
        let milliseconds = if format.milliseconds() { rng.random_range(0..3) * 499 } else { 0 };
        let half = f32::from(rng.random_range(2..=10u8)) / 2.0;
        let event = Event {
            user: id(["A", "é", "a"], rng.random_range(0..users)),
            item: id(["B00", "Z-", "00"], rng.random_range(0..items)),
            time: Some(seconds * 1000 + milliseconds),
            rating: Some(if format.half_stars() { half } else { half.floor() }),
        };
        let again = Event { rating: Some(1.0), ..event.clone() };
        log.events.push(event);
        if rng.random_bool(0.1) {
            log.events.push(again);
        }
    }
    let mut ids: Vec<String> = log.events.iter().map(|e| e.item.clone()).collect();
    ids.sort();
    ids.dedup();
    for id in ids {
        let title = if format.plain_titles() || rng.random_bool(0.7) { PLAIN.choose(rng) } else { WIDE.choose(rng) };
        if rng.random_bool(0.85) {
            log.titles.insert(id, title.unwrap().to_string());
        }
    }
    if format == Format::OpenP5 {
        log.events.sort_by_key(|e| e.time);
        for event in &mut log.events {
            (event.time, event.rating) = (None, None);
        }
    }
    log
}

fn steps(rng: &mut ChaCha8Rng, format: Format) -> Vec<Step> {
    let mut steps = vec![
        Step::Duplicates,
        Step::Titled,
        Step::TitleLength { min: rng.random_range(0..3), max: rng.random_range(5..60) },
        Step::SampleItems { count: rng.random_range(1..12), seed: rng.random() },
        Step::KCore { user: rng.random_range(1..5), item: rng.random_range(1..5) },
        Step::KCore { user: rng.random_range(1..3), item: rng.random_range(1..3) },
    ];
    if let Step::SampleItems { seed, .. } = &mut steps[3] {
        *seed >>= 1; // TOML's integers are i64.
    }
    if format != Format::OpenP5 {
        steps.push(Step::Rating { min: rng.random_range(1..=4) as f32 });
    }
    steps.retain(|_| rng.random_bool(0.25));
    // Its sequences tell no times.
    steps.retain(|step| format != Format::OpenP5 || !matches!(step, Step::Duplicates));
    steps.shuffle(rng);
    steps
}

#[test]
fn amazon_equals_the_reference() {
    equals_the_reference(Source::Amazon);
}

#[test]
fn movielens_equals_the_reference() {
    equals_the_reference(Source::Movielens);
}

#[test]
fn openp5_equals_the_reference() {
    equals_the_reference(Source::Openp5);
}

#[test]
fn tables_equal_the_reference() {
    equals_the_reference(Source::Table);
}

/// Returns a temporary folder, in memory if the system has one there: a corpus is synced to disk,
/// and a thousand times that takes long.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn equals_the_reference(source: Source) {
    let formats: Vec<Format> = ALL.into_iter().filter(|f| f.source() == source).collect();
    let (mut corpora, mut refused, mut sharded) = (0, 0, 0);
    for seed in 0..LOGS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let format = *formats.choose(&mut rng).unwrap();
        let log = log(&mut rng, format);
        let steps = steps(&mut rng, format);
        let history = rng.random_range(1..12);
        let protocol = if format == Format::OpenP5 || rng.random_bool(0.4) {
            Protocol::LeaveOneOut { history }
        } else {
            Protocol::Msl { history }
        };
        let what = format!("seed {seed}, {format:?}, {steps:?}, {protocol:?}");

        let folder = in_memory();
        let raw = folder.path().join("raw");
        fs::create_dir(&raw).unwrap();
        let mut options = options(format, format.write(&log, &raw, &mut rng), &folder.path().join("out"));
        fs::write(folder.path().join("config.toml"), config(&steps, protocol)).unwrap();
        options.config = Some(folder.path().join("config.toml"));
        if rng.random_bool(0.3) {
            // So little that the log is cut into shards.
            options.memory = Some(rng.random_range(1000..20_000));
            sharded += 1;
        }
        let (expected, dropped) = reference::prepare(&log, &steps, protocol);
        match (prepare(&options), expected) {
            (Ok(report), Some(expected)) => {
                let found = read(&options.out);
                assert_eq!(found.items, expected.items, "{what}");
                assert_eq!(found, expected, "{what}");
                let mut sums = BTreeMap::new();
                for (name, rows) in dropped.into_iter().filter(|(_, rows)| *rows > 0) {
                    *sums.entry(name.to_string()).or_default() += rows;
                }
                assert_eq!(report.dropped, sums, "{what}");
                assert_eq!(report.interactions, expected.interactions.len(), "{what}");
                assert_eq!(names(folder.path()), ["config.toml", "out", "raw"], "{what}");
                corpora += 1;
            }
            (Err(error), None) => {
                assert_eq!(error.exit_code(), 1, "{what}: {error}");
                assert_eq!(names(folder.path()), ["config.toml", "raw"], "{what}");
                refused += 1;
            }
            (Ok(_), None) => panic!("{what}: nothing should be left"),
            (Err(error), Some(_)) => panic!("{what}: {error}"),
        }
    }
    println!("{source}, {LOGS} logs: {corpora} corpora, {refused} with nothing left, {sharded} with little memory");
    assert!(corpora > LOGS / 2 && refused > LOGS / 50);
}
