//! The same input gives the same bytes, whatever the threads and the memory.

use std::fs;
use std::path::Path;

use clap::ValueEnum;
use itemlm::data::prepare;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::{itemlm, names, root};
use crate::format::Format;
use crate::generator::WrittenInput;
use crate::options;
use crate::reference::{Event, Log};

/// Makes a log that is large enough for many blocks of lines, for several row groups, and for
/// shards.
fn log() -> Log {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut log = Log::default();
    for _ in 0..400_000 {
        let user = rng.random_range(0..180u32).pow(2) + rng.random_range(0..180);
        let item = rng.random_range(0..60u32).pow(2) + rng.random_range(0..60);
        let time = Some((1_000_000_000 + rng.random_range(0..3000) * 86_400) * 1000);
        let rating = Some(rng.random_range(1..=5) as f32);
        log.events.push(Event { user: user.to_string(), item: item.to_string(), time, rating });
    }
    for item in 0..3700 {
        if item % 11 != 0 {
            log.titles.insert(item.to_string(), format!("Title {}", item / 2));
        }
    }
    log
}

/// Returns the flags that a table needs.
fn flags(written: &WrittenInput) -> Vec<String> {
    let (columns, table) = (&written.columns, &written.table);
    let encoding = table.encoding.map(|encoding| encoding.to_possible_value().unwrap().get_name().to_string());
    let pairs = [
        ("--user", &columns.user),
        ("--item", &columns.item),
        ("--time", &columns.time),
        ("--title", &columns.title),
        ("--rating", &columns.rating),
        ("--delimiter", &table.delimiter),
        ("--quote", &table.quote),
        ("--escape", &table.escape),
        ("--encoding", &encoding),
        ("--columns", &table.names.first().cloned()),
        ("--time-format", &table.time_format),
    ];
    pairs.into_iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value.as_ref()?))).collect()
}

fn binary(format: Format, written: &WrittenInput, out: &Path, threads: &str, more: &[&str]) {
    let mut command = itemlm(root());
    command.arg("prepare").arg(format.source().to_string()).args(&written.inputs).arg("--out").arg(out).args(more);
    command.args(flags(written));
    command.env("RAYON_NUM_THREADS", threads).env("POLARS_MAX_THREADS", threads);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{format:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn bytes_do_not_depend_on_threads_or_memory() {
    let folder = tempfile::tempdir().unwrap();
    let log = log();
    for format in [Format::Csv, Format::Amazon2018, Format::MovieLensLatest] {
        let dir = folder.path().join(format!("{format:?}"));
        let raw = dir.join("raw");
        fs::create_dir_all(&raw).unwrap();
        let written = format.write(&log, &raw, &mut ChaCha8Rng::seed_from_u64(8));
        // The corpus is named after its folder.
        let out = |run: &str| dir.join(run).join("corpus");
        binary(format, &written, &out("one"), "1", &[]);
        binary(format, &written, &out("two"), "2", &[]);
        binary(format, &written, &out("two-again"), "2", &["--memory", "256MB"]);
        let mut runs = vec!["two", "two-again"];
        for (run, memory) in [("64k", 64 << 10), ("8M", 8 << 20)] {
            let mut options = options(format, written.clone(), &out(run));
            options.memory = Some(memory);
            prepare(&options).unwrap_or_else(|e| panic!("{format:?}: {e}"));
            runs.push(run);
        }
        let files = names(&out("one"));
        assert_eq!(files.len(), 6, "{files:?}");
        for run in runs {
            assert_eq!(names(&out(run)), files);
            assert_eq!(names(out(run).parent().unwrap()), ["corpus"], "{run}");
            for file in &files {
                let [a, b] = ["one", run].map(|run| fs::read(out(run).join(file)).unwrap());
                assert!(a == b, "{format:?}: {file} of {run} differs");
            }
        }
    }
}
