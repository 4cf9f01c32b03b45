//! The real data in `../shared/data` (or `ITEMLM_DATA`): `just test-real`.

use std::fs;
use std::path::{Path, PathBuf};

use itemlm::data::{Columns, Corpus, PrepareOptions, Report, Source, Split, TableOptions, prepare};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::common::{real_data, root};
use crate::format::Format;
use crate::options;
use crate::reference::{Event, Log};

fn published(source: Source, dir: PathBuf, out: &Path, config: Option<&str>) -> Report {
    let config = config.map(|name| root().join("configs/data").join(name));
    let (inputs, out) = (vec![dir], out.to_path_buf());
    let columns = Columns::default();
    let options = PrepareOptions {
        source,
        inputs,
        out,
        config,
        format: None,
        skip_bad: 0,
        memory: None,
        columns,
        table: TableOptions::default(),
        tasks: None,
    };
    prepare(&options).unwrap_or_else(|e| panic!("{e}"))
}

/// User, time and items of a window.
type ReleasedWindow = (u32, Option<i64>, Vec<String>);

fn windows(corpus: &Corpus) -> Vec<Vec<ReleasedWindow>> {
    let of = |split| match split {
        Split::Train => corpus.released_train.as_slice(),
        split => corpus.windows(split),
    };
    let item = |i: &u32| corpus.items[*i as usize].id.trim_start_matches('0').to_string();
    let user = |user: u32| corpus.user_id(user).trim_start_matches('0').parse().unwrap();
    [Split::Train, Split::Valid, Split::Test]
        .map(|split| {
            let all = of(split).iter();
            all.map(|w| (user(w.user), corpus.timestamp(w), corpus.interactions[w.range()].iter().map(item).collect()))
                .collect()
        })
        .into()
}

/// Office's log, put together from its released windows and written as Amazon 2014's files, gives
/// the released counts and the released windows in their order.
#[test]
#[ignore = "needs the real data in ../shared/data or ITEMLM_DATA; just test-real"]
fn office_is_rebuilt() {
    let dir = real_data("office");
    let folder = tempfile::tempdir().unwrap();
    let released = folder.path().join("released");
    published(Source::Msl, dir, &released, None);
    let released = Corpus::open(&released).unwrap();
    let mut log = Log::default();
    let mut row = 0;
    for user in 0..released.users() as u32 {
        let items = released.user_interactions(user);
        let times = &released.timestamps[row..row + items.len()];
        row += items.len();
        for (at, item) in items.iter().enumerate() {
            // Only targets have a time: an earlier event is as old as the next one that has.
            let time = times[at..].iter().find_map(|time| *time).unwrap();
            log.events.push(Event {
                // The release orders equal times by number; ids are ordered as text.
                user: format!("{:0>6}", released.user_id(user)),
                item: released.items[*item as usize].id.clone(),
                time: Some(time * 1000),
                rating: Some(5.0),
            });
        }
    }
    log.titles = released.items.iter().map(|i| (i.id.clone(), i.title.clone())).collect();

    for format in [Format::Amazon2014, Format::Amazon2018, Format::Amazon2023] {
        let raw = folder.path().join(format!("{format:?}"));
        fs::create_dir(&raw).unwrap();
        let inputs = format.write(&log, &raw, &mut ChaCha8Rng::seed_from_u64(1));
        let options = options(format, inputs, &raw.join("corpus"));
        let report = prepare(&options).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((report.users, report.items, report.interactions), (4895, 2414, 53149));
        let w = report.windows;
        assert_eq!((w.train, w.valid, w.test), (15400, 1925, 1925));
        assert!(report.dropped.is_empty(), "{:?}", report.dropped);
        assert!(windows(&Corpus::open(&options.out).unwrap()) == windows(&released), "{format:?}");
    }
}

#[test]
#[ignore = "needs the real data in ../shared/data or ITEMLM_DATA; just test-real"]
fn openp5_gives_its_published_counts() {
    let folder = tempfile::tempdir().unwrap();
    for (name, config, users, items, interactions) in [
        ("ml-1m", "openp5-ml-1m.toml", 6040, 3416, 999_611),
        ("openp5-beauty", "openp5-beauty.toml", 22_363, 12_101, 198_502),
        ("openp5-clothing", "openp5-clothing.toml", 39_387, 23_033, 278_677),
    ] {
        let dir = real_data(name);
        for (run, config) in [("default", None), ("config", Some(config))] {
            let out = folder.path().join(format!("{name}-{run}"));
            let report = published(Source::Openp5, dir.clone(), &out, config);
            assert_eq!((report.users, report.items, report.interactions), (users, items, interactions), "{name}");
            // Everyone has five events or more: one tests, one validates, the first has no history.
            let w = report.windows;
            assert_eq!((w.train, w.valid, w.test), (interactions - 3 * users, users, users), "{name}");
            println!("{name}: {:?}", report.warnings);
            assert!(!report.warnings.iter().any(|w| w.contains("expected")), "{name}: {:?}", report.warnings);
            Corpus::open(&out).unwrap();
        }
    }
}

#[test]
#[ignore = "needs the real data in ../shared/data or ITEMLM_DATA; just test-real"]
fn movielens_latest_small_works() {
    let dir = real_data("ml-latest-small");
    let folder = tempfile::tempdir().unwrap();
    let report = published(Source::Movielens, dir, &folder.path().join("corpus"), None);
    let read = &report.steps[0];
    assert_eq!((read.before, read.after), (100_004, 100_004));
    println!("{report:?}");
    assert_eq!(report.users, 671);
    let corpus = Corpus::open(&folder.path().join("corpus")).unwrap();
    let titled = |id: &str| corpus.items.iter().find(|i| i.id == id).map(|i| i.title.as_str());
    assert_eq!(titled("1"), Some("Toy Story (1995)"));
    assert_eq!(titled("11"), Some("American President, The (1995)"));
}
