//! The layout that MSL (arXiv 2504.04178) releases: `train.csv`, `test.csv`, perhaps `valid.csv`,
//! with the columns `user_id,item_ids,timestamp`, and `id2name4Rec.json` from id to title.
//!
//! A row is one window: `item_ids` is a list literal, oldest first, its last item the target and
//! `timestamp` the target's time. The interaction log itself is not released; it is put together
//! from the windows.

mod rows;
mod sequences;

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use self::rows::{read_rows, read_titles};
use self::sequences::SequenceBuilder;
use super::input::Input;
use super::source_file::SourceFile;
use crate::data::corpus::Corpus;
use crate::data::corpus::{Provenance, Step};
use crate::{Context, Error, Result};

const TITLES: &str = "id2name4Rec.json";
/// Memory that rows take while they are parsed, as a multiple of their bytes.
const PARSED: u64 = 16;

/// Returns the path of a file of the release, compressed or not.
fn find_file(dir: &Path, file: &str) -> PathBuf {
    // Some releases have a sample of 5,000 test windows, and name it so.
    let names: &[&str] = if file == "test.csv" { &["test.csv", "test_5000.csv"] } else { &[file] };
    let paths = names.iter().flat_map(|name| ["", ".gz", ".zst"].map(|ending| dir.join(format!("{name}{ending}"))));
    paths.into_iter().find(|path| path.exists()).unwrap_or_else(|| dir.join(file))
}

/// Reads the released layout in `dir` as a corpus with the folder's name, which says which of the
/// paper's prompts is its own. The files are read whole: together they may hold a 16th of `memory`
/// (bytes).
///
/// Titles stay byte for byte as released, HTML entities included, because the published evaluation
/// compares raw titles; an empty one is kept too (the released books have one). Without `valid.csv`
/// the latest tenth of train validates (see [`Corpus::new`]).
pub(crate) fn read_msl(dir: &Path, memory: u64) -> Result<(Corpus, Provenance)> {
    let absolute = fs::canonicalize(dir).context(dir.display())?;
    let name = absolute.file_name().map_or("corpus".into(), |n| n.to_string_lossy().into_owned());
    let mut inputs = Vec::new();
    let mut left = memory / PARSED;
    let mut read = |file: &str| -> Result<Vec<u8>> {
        let path = find_file(dir, file);
        let mut input = Input::peek(&SourceFile::new(&path))?;
        let mut bytes = Vec::new();
        input.content().take(left.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| input.read_error(&e))?;
        left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            let most = memory / PARSED;
            let what =
                format!("with it the files hold more than {most} bytes, a 16th of the memory: raise option `memory`");
            Error::failed(format!("{}: {what}", path.display()))
        })?;
        inputs.push(input.finish()?);
        Ok(bytes)
    };

    let path = dir.join(TITLES);
    let items = read_titles(&path, &read(TITLES)?)?;
    let index: HashMap<&str, u32> = items.iter().enumerate().map(|(i, item)| (item.id.as_str(), i as u32)).collect();

    let has_valid = find_file(dir, "valid.csv").exists();
    let files: &[&str] = if has_valid { &["train.csv", "valid.csv", "test.csv"] } else { &["train.csv", "test.csv"] };
    let mut merged = SequenceBuilder::default();
    for file in files {
        let path = find_file(dir, file);
        merged.files.push(Vec::new());
        for row in read_rows(&path, read(file)?)? {
            merged.add(row, &index, &path)?;
        }
    }
    if merged.files.first().is_none_or(Vec::is_empty) {
        return Err(Error::failed(format!("{}: no window", dir.join("train.csv").display())));
    }
    let window_items: usize = merged.files.iter().flatten().map(|w| w.items.len()).sum();
    let (users, mut windows) = merged.finish();

    let interactions = users.iter().map(|u| u.events.len()).sum();
    let test = windows.pop().unwrap_or_default();
    let valid = if has_valid { windows.pop() } else { None };
    let train = windows.pop().unwrap_or_default();
    let mut steps = vec![Step {
        name: "interactions".into(),
        before: window_items,
        after: interactions,
        users: Some(users.len()),
        items: None,
        what: "the windows' items; each user's windows, by time, joined on their largest overlap".into(),
    }];
    let released = train.len();
    let corpus = Corpus::new(name, items, users, train, valid, test)?;
    steps.push(Step {
        name: "validation".into(),
        before: released,
        after: corpus.windows(crate::data::Split::Train).len(),
        users: None,
        items: None,
        what: corpus.validation.clone(),
    });
    let untitled = corpus.items.iter().filter(|i| i.title.is_empty()).count();
    if untitled > 0 {
        steps.push(Step {
            name: "titles".into(),
            before: corpus.items.len(),
            after: corpus.items.len(),
            users: None,
            items: None,
            what: format!("{untitled} of the items have an empty title, kept as released"),
        });
    }
    let source = format!("msl: released windows of {}", corpus.name);
    Ok((corpus, Provenance { source, inputs, steps }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::data::Split;

    fn prepare_msl(dir: &Path, out: &Path) -> Result<()> {
        let (corpus, provenance) = read_msl(dir, 1 << 30)?;
        corpus.save(out, &provenance)
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const JSON: &str = r#"{"7": "A &amp; B", "8": "C", "7x": "", "8": "D"}"#;
    const TEST: &str = "user_id,item_ids,timestamp\nu,\"[8, 7, 8]\",9\n";

    fn error(train: &str, json: &str) -> String {
        let dir = folder(&[("train.csv", train), ("test.csv", TEST), (TITLES, json)]);
        let text = read_msl(dir.path(), 1 << 30).unwrap_err().to_string();
        assert!(!text.contains('\n'));
        text
    }

    #[test]
    fn reads_titles_as_released() {
        let train = "user_id,item_ids,timestamp\nu,\"[7, '7x', 8]\",5\nu,\"['7x', 8, 7]\",6\n";
        let dir = folder(&[("train.csv", train), ("test.csv", TEST), (TITLES, JSON)]);
        let (corpus, _) = read_msl(dir.path(), 1 << 30).unwrap();
        let titles: Vec<&str> = corpus.items.iter().map(|i| i.title.as_str()).collect();
        assert_eq!(titles, ["A &amp; B", "D", ""]);
        assert_eq!(corpus.interactions, [0, 2, 1, 0, 1]);
        assert_eq!(corpus.timestamps, [None, None, Some(5), Some(6), Some(9)]);
    }

    #[test]
    fn compressed_files() {
        let train = "user_id,item_ids,timestamp\nu,\"[7, '7x', 8]\",5\n";
        let dir = folder(&[("test.csv", TEST), (TITLES, JSON)]);
        let packed = zstd::stream::encode_all(train.as_bytes(), 1).unwrap();
        fs::write(dir.path().join("train.csv.zst"), &packed).unwrap();
        let (corpus, provenance) = read_msl(dir.path(), 1 << 30).unwrap();
        assert_eq!(corpus.released_train.len(), 1);
        assert!(provenance.inputs.iter().any(|i| i.name == "train.csv.zst" && i.bytes == packed.len() as u64));
    }

    #[test]
    fn a_sample_to_test_on() {
        let train = "user_id,item_ids,timestamp\nu,\"[7, '7x', 8]\",5\n";
        let dir = folder(&[("train.csv", train), ("test_5000.csv", TEST), (TITLES, JSON)]);
        let (corpus, provenance) = read_msl(dir.path(), 1 << 30).unwrap();
        assert_eq!(corpus.windows(Split::Test).len(), 1);
        assert!(provenance.inputs.iter().any(|input| input.name == "test_5000.csv"));
    }

    #[test]
    fn files_larger_than_the_memory_are_refused() {
        let train = format!("user_id,item_ids,timestamp\n{}", "u,\"[7, 8]\",5\n".repeat(100_000));
        let dir = folder(&[("test.csv", TEST), (TITLES, JSON)]);
        let path = dir.path().join("train.csv.zst");
        fs::write(&path, zstd::stream::encode_all(train.as_bytes(), 1).unwrap()).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 10_000);
        let size = (train.len() + TEST.len() + JSON.len()) as u64;
        assert!(read_msl(dir.path(), size * PARSED).is_ok());
        for (memory, file) in [(size * PARSED - 1, "test.csv"), (1 << 20, "train.csv.zst"), (0, TITLES)] {
            let error = read_msl(dir.path(), memory).unwrap_err().to_string();
            assert!(error.contains(&format!("{file}: with it")) && error.contains("option `memory`"), "{error}");
        }
    }

    #[test]
    fn names_file_and_line() {
        let head = "user_id,item_ids,timestamp\n";
        let row = |list: &str| format!("{head}u,\"[7, 8]\",1\nu,\"{list}\",2\n");
        for (list, what) in [
            ("[7, 8", "line 3: item_ids: a list should be in [ and ]"),
            ("[7 8]", "line 3: item_ids: a comma should follow item 1"),
            ("[7,, 8]", "line 3: item_ids: `` is neither"),
            ("[7, x]", "`x` is neither"),
            ("[7, '8]", "a quoted id does not end"),
            ("[7, 9]", "line 3: item 9 has no title"),
            ("[7]", "line 3: a window needs 2 items or more, this one has 1"),
            ("[]", "this one has 0"),
            ("", "line 3"),
        ] {
            let text = error(&row(list), JSON);
            assert!(text.contains(what) && text.contains("train.csv"), "{list}: {text}");
        }
        let text = error(&format!("{head}u,\"[7, 8]\",soon\n"), JSON);
        assert!(text.contains("line 2: timestamp `soon`"), "{text}");
        let text = error("user_id,items,timestamp\nu,\"[7, 8]\",1\n", JSON);
        assert!(text.contains("column item_ids is missing"), "{text}");
        assert!(error(head, JSON).contains("no window"));
        assert!(error("", JSON).contains("train.csv"));
        let good = row("[7, 8]");
        assert!(error(&good, "{}").contains("the catalogue is empty"));
        assert!(error(&good, "{\"7\": 3}").contains(TITLES));
        assert!(error(&good, "{\"7\": \"a\"").contains("line 1"));
        assert!(error(&good, "[]").contains("an object from id to title"));
    }

    #[test]
    fn bad_input_leaves_the_old_corpus() {
        let good = "user_id,item_ids,timestamp\nu,\"[7, 8]\",1\n";
        let dir = folder(&[("train.csv", good), ("test.csv", TEST), (TITLES, JSON)]);
        let out = dir.path().join("corpus");
        prepare_msl(dir.path(), &out).unwrap();
        let before = Corpus::open(&out).unwrap();
        fs::write(dir.path().join("train.csv"), "user_id,item_ids,timestamp\nu,\"[7, 8\",1\n").unwrap();
        prepare_msl(dir.path(), &out).unwrap_err();
        assert_eq!(Corpus::open(&out).unwrap(), before);
    }

    /// Random logs → windows → released layout → corpus: every window reads back as it was.
    #[test]
    fn windows_survive_the_merge() {
        for seed in 0..60 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let items = rng.random_range(1..30u32);
            let mut rows: Vec<(i64, usize, Vec<u32>)> = Vec::new();
            for user in 0..rng.random_range(1..8usize) {
                let log: Vec<u32> = (0..rng.random_range(2..30)).map(|_| rng.random_range(0..items)).collect();
                let width = rng.random_range(2..12usize);
                let mut time = rng.random_range(0..50i64);
                for end in width.min(log.len())..=log.len() {
                    time += rng.random_range(0..3i64);
                    rows.push((time, user, log[end.saturating_sub(width)..end].to_vec()));
                }
            }
            rows.sort_by_key(|r| r.0);
            // Some rows are lost, as the books' validation windows are.
            let lossy = seed % 2 == 1;
            let kept: Vec<_> = rows.into_iter().filter(|_| !lossy || rng.random_bool(0.8)).collect();
            let cut = (kept.len() * 8).div_ceil(10);
            if cut == 0 {
                continue;
            }
            let csv = |rows: &[(i64, usize, Vec<u32>)]| {
                let lines = rows.iter().map(|(t, u, w)| format!("u{u},\"{w:?}\",{t}\n"));
                format!("user_id,item_ids,timestamp\n{}", lines.collect::<String>())
            };
            let titles: BTreeMap<String, String> = (0..items).map(|i| (i.to_string(), format!("t{i}"))).collect();
            let dir = folder(&[
                ("train.csv", &csv(&kept[..cut])),
                ("test.csv", &csv(&kept[cut..])),
                (TITLES, &serde_json::to_string(&titles).unwrap()),
            ]);
            let out = dir.path().join("out");
            prepare_msl(dir.path(), &out).unwrap();
            let corpus = Corpus::open(&out).unwrap();
            assert_eq!(corpus.released_train.len(), cut);
            assert_eq!(corpus.windows(Split::Valid).len(), cut / 10);
            let all = corpus.released_train.iter().chain(corpus.windows(Split::Test));
            for (window, (time, user, items)) in all.zip(&kept) {
                let ids = corpus.interactions[window.range()].iter();
                let ids: Vec<u32> = ids.map(|&i| corpus.items[i as usize].id.parse().unwrap()).collect();
                assert_eq!((&ids, corpus.timestamp(window)), (items, Some(*time)), "seed {seed}");
                assert_eq!(corpus.user_id(window.user), format!("u{user}"));
            }
        }
    }

    /// The counts in the README of the data. Needs the real data: `ITEMLM_DATA`, or
    /// `../shared/data` beside the project.
    #[test]
    #[ignore = "needs the real data in ../shared/data or ITEMLM_DATA; just test-real"]
    fn real_counts() {
        let root = std::env::var_os("ITEMLM_DATA")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
        for (name, items, train, valid, test) in [
            ("office", 2414, 15400, 1925, 1925),
            ("books", 6344, 35060, 3506, 4383),
            ("clothing", 22948, 44351, 4435, 5544),
        ] {
            let dir = root.join(name);
            assert!(dir.is_dir(), "{} is absent", dir.display());
            let (corpus, _) = read_msl(&dir, 1 << 30).unwrap();
            let windows = [Split::Valid, Split::Test].map(|split| corpus.windows(split).len());
            assert_eq!(
                (corpus.items.len(), corpus.released_train.len(), windows),
                (items, train, [valid, test]),
                "{name}"
            );
            if name == "office" {
                assert_eq!((corpus.users(), corpus.interactions.len()), (4895, 53149));
            }
        }
    }
}
