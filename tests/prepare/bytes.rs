//! The same input gives the same bytes, whatever the threads and the memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use itemlm::data::prepare;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::generator::Format;
use crate::reference::{Event, Log};
use crate::{names, options};

/// Enough for many blocks of lines, for several row groups, and for shards.
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

fn binary(format: Format, inputs: &[PathBuf], out: &Path, threads: &str, more: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_itemlm"));
    command.arg("prepare").arg(format.source().to_string()).args(inputs).arg("--out").arg(out).args(more);
    if format == Format::Csv {
        command.args("--user who --item what --time when --title called --rating stars".split(' '));
    }
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
        let inputs = format.write(&log, &raw, &mut ChaCha8Rng::seed_from_u64(8));
        // The corpus is named after its folder.
        let out = |run: &str| dir.join(run).join("corpus");
        binary(format, &inputs, &out("one"), "1", &[]);
        binary(format, &inputs, &out("two"), "2", &[]);
        binary(format, &inputs, &out("two-again"), "2", &["--memory", "256MB"]);
        let mut runs = vec!["two", "two-again"];
        for (run, memory) in [("64k", 64 << 10), ("8M", 8 << 20)] {
            let mut options = options(format, inputs.clone(), &out(run));
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
