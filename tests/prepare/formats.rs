//! One log in every format gives one corpus.

use std::fs;
use std::path::Path;

use itemlm::data::{Columns, Report, Source, TableOptions, prepare};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::format::{ALL, Format};
use crate::generator::WrittenInput;
use crate::reference;
use crate::reference::{Corpus, Event, Log, Protocol, Step};
use crate::{config, options, read};

const TITLES: [&str; 6] =
    ["It's \"here\", now", "L'été à ½ prix", "Tom &amp; Jerry & Co", "Plain (1999)", "Plain (1999)", "a\\'b: c, \"d\""];

/// Makes a log that is dense enough for a 5-core, with ids that sort differently as text and as
/// numbers, and with many ties.
fn log(rng: &mut ChaCha8Rng, untitled: bool) -> Log {
    let mut log = Log::default();
    for _ in 0..1500 {
        // The later the user, the fewer events.
        let user = rng.random_range(0..8u32).pow(2) + rng.random_range(0..12);
        let item = rng.random_range(0..7u32).pow(2) + rng.random_range(0..6);
        let time = Some((900_000_000 + rng.random_range(0..200) * 86_400) * 1000);
        let rating = Some(rng.random_range(1..=5) as f32);
        log.events.push(Event { user: (user + 95).to_string(), item: (item + 990).to_string(), time, rating });
    }
    for item in 0..60 {
        if !untitled || item % 7 != 0 {
            log.titles.insert((item + 990).to_string(), format!("{} {}", TITLES[item % 6], item / 2));
        }
    }
    log
}

fn run(format: Format, log: &Log, dir: &Path, config: Option<&str>, rng: &mut ChaCha8Rng) -> (Corpus, Report) {
    fs::create_dir(dir).unwrap();
    let raw = dir.join("raw");
    fs::create_dir(&raw).unwrap();
    let mut options = options(format, format.write(log, &raw, rng), &dir.join("corpus"));
    if let Some(text) = config {
        fs::write(dir.join("config.toml"), text).unwrap();
        options.config = Some(dir.join("config.toml"));
    }
    let report = prepare(&options).unwrap_or_else(|e| panic!("{format:?}: {e}"));
    (read(&options.out), report)
}

/// Without a configuration: items without a title go, 5-core, MSL's split.
#[test]
fn all_formats_give_one_corpus() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..10 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let log = log(&mut rng, true);
        let steps = [Step::Titled, Step::KCore { user: 5, item: 5 }];
        let expected = reference::prepare(&log, &steps, Protocol::Msl { history: 10 }).0.unwrap();
        assert!(expected.items.len() > 20 && expected.windows.iter().all(|w| w.len() > 50));
        for format in ALL.into_iter().filter(|f| *f != Format::OpenP5) {
            let (found, report) = run(format, &log, &folder.path().join(format!("{seed}-{format:?}")), None, &mut rng);
            assert_eq!(found.items, expected.items, "{format:?}");
            assert!(found == expected, "{format:?}, seed {seed}");
            if seed == 0 {
                println!("{format:?}: {}", report.format);
            }
        }
    }
}

/// OpenP5's sequences tell no times and no ratings; all else is the same.
#[test]
fn openp5_gives_the_same_but_for_times() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(99);
    let log = log(&mut rng, false);
    let (openp5, report) = run(Format::OpenP5, &log, &folder.path().join("openp5"), None, &mut rng);
    println!("{}", report.format);
    let text = config(&[], Protocol::LeaveOneOut { history: 20 });
    for format in ALL.into_iter().filter(|f| *f != Format::OpenP5) {
        let (mut found, _) = run(format, &log, &folder.path().join(format!("{format:?}")), Some(&text), &mut rng);
        assert!(found.interactions.iter().all(|i| i.3.is_some()) && found.ratings.len() == found.interactions.len());
        found.ratings.clear();
        found.interactions.iter_mut().for_each(|i| i.3 = None);
        found.windows.iter_mut().flatten().for_each(|w| w.3 = None);
        assert_eq!(found.items, openp5.items, "{format:?}");
        assert!(found == openp5, "{format:?}");
    }
}

/// Entities and control characters in titles, on request.
#[test]
fn titles_are_cleaned_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut log = log(&mut rng, false);
    log.titles.insert("990".into(), "&quot;A&quot; &amp;amp; \u{7}B\n C &frac12; &#39;x&#x27;".into());
    let clean = |lines: &str| format!("[[steps]]\nstep = \"clean_titles\"\n{lines}\n[split]\nprotocol = \"msl\"\n");
    for (number, (lines, title)) in [
        ("entities = true", "\"A\" &amp; \u{7}B\n C ½ 'x'"),
        ("control = true", "&quot;A&quot; &amp;amp; B C &frac12; &#39;x&#x27;"),
        ("entities = true\ncontrol = true", "\"A\" &amp; B C ½ 'x'"),
    ]
    .into_iter()
    .enumerate()
    {
        for format in [Format::Amazon2014, Format::Amazon2018, Format::Amazon2023, Format::JsonLines, Format::Parquet] {
            let dir = folder.path().join(format!("{number}-{format:?}"));
            let (found, _) = run(format, &log, &dir, Some(&clean(lines)), &mut rng);
            assert_eq!(found.items.iter().find(|i| i.0 == "990").unwrap().1, title, "{format:?}");
        }
    }
}

/// Its prompt goes by that name, wherever the corpus is put.
#[test]
fn released_windows_keep_the_release_s_name() {
    let folder = tempfile::tempdir().unwrap();
    let release = folder.path().join("office");
    fs::create_dir(&release).unwrap();
    let windows = "user_id,item_ids,timestamp\nu,\"[7, 8]\",5\n";
    for (name, text) in [("train.csv", windows), ("test.csv", windows), ("id2name4Rec.json", r#"{"7": "A", "8": "B"}"#)]
    {
        fs::write(release.join(name), text).unwrap();
    }
    let written = WrittenInput { inputs: vec![release], table: TableOptions::default(), columns: Columns::default() };
    let mut options = options(Format::Csv, written, &folder.path().join("corpus"));
    options.source = Source::Msl;
    prepare(&options).unwrap();
    assert_eq!(itemlm::data::Corpus::open(&options.out).unwrap().name, "office");
}
