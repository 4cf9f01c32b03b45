//! The layout that MSL (arXiv 2504.04178) releases: `train.csv`, `test.csv`, perhaps `valid.csv`,
//! with the columns `user_id,item_ids,timestamp`, and `id2name4Rec.json` from id to title.
//!
//! A row is one window: `item_ids` is a list literal, oldest first, its last item the target and
//! `timestamp` the target's time. The interaction log itself is not released; it is put together
//! from the windows.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use polars::prelude::{CsvReadOptions, DataFrame, SerReader};
use serde::de::{Deserializer, MapAccess, Visitor};

use super::corpus::{Corpus, Item, Statistics, UserLog, Window};
use super::store::{FileDigest, Provenance, Step, Target};
use crate::{Context, Error, Result};

const TITLES: &str = "id2name4Rec.json";

/// Reads the released layout in `dir` and writes the corpus `out`, named after `dir`.
///
/// Titles stay byte for byte as released, HTML entities included, because the published evaluation
/// compares raw titles; an empty one is kept too (the released books have one). Without `valid.csv`
/// the latest tenth of train validates (see [`Corpus::new`]).
pub fn prepare_msl(dir: &Path, out: &Path) -> Result<Statistics> {
    Target::check(out)?;
    let (corpus, provenance) = read_msl(dir)?;
    corpus.save(out, &provenance)?;
    Ok(corpus.statistics(BTreeMap::new()))
}

fn read_msl(dir: &Path) -> Result<(Corpus, Provenance)> {
    let absolute = fs::canonicalize(dir).context(dir.display())?;
    let name = absolute
        .file_name()
        .map_or("corpus".into(), |n| n.to_string_lossy().into_owned());
    let mut inputs = Vec::new();
    let mut read = |file: &str| -> Result<Vec<u8>> {
        let path = dir.join(file);
        let bytes = fs::read(&path).context(path.display())?;
        inputs.push(FileDigest::of(file, &bytes));
        Ok(bytes)
    };

    let path = dir.join(TITLES);
    let items = read_titles(&path, &read(TITLES)?)?;
    let index: HashMap<&str, u32> = items
        .iter()
        .enumerate()
        .map(|(i, item)| (item.id.as_str(), i as u32))
        .collect();

    let has_valid = dir.join("valid.csv").exists();
    let files: &[&str] = if has_valid {
        &["train.csv", "valid.csv", "test.csv"]
    } else {
        &["train.csv", "test.csv"]
    };
    let mut merged = Merge::default();
    for file in files {
        let path = dir.join(file);
        merged.files.push(Vec::new());
        for row in read_rows(&path, read(file)?)? {
            merged.add(row, &index, &path)?;
        }
    }
    if merged.files.first().is_none_or(Vec::is_empty) {
        return Err(Error::failed(format!(
            "{}: no window",
            dir.join("train.csv").display()
        )));
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
        what: "the windows' items; each user's windows, by time, joined on their largest overlap"
            .into(),
    }];
    let released = train.len();
    let corpus = Corpus::new(name, items, users, train, valid, test)?;
    steps.push(Step {
        name: "validation".into(),
        before: released,
        after: corpus.windows(super::Split::Train).len(),
        what: corpus.validation.clone(),
    });
    let untitled = corpus.items.iter().filter(|i| i.title.is_empty()).count();
    if untitled > 0 {
        steps.push(Step {
            name: "titles".into(),
            before: corpus.items.len(),
            after: corpus.items.len(),
            what: format!("{untitled} of the items have an empty title, kept as released"),
        });
    }
    let source = format!("msl: released windows of {}", corpus.name);
    Ok((
        corpus,
        Provenance {
            source,
            inputs,
            steps,
        },
    ))
}

/// The catalogue in the file's order. Of equal ids the last title counts, as in Python.
fn read_titles(path: &Path, bytes: &[u8]) -> Result<Vec<Item>> {
    struct InOrder;
    impl<'de> Visitor<'de> for InOrder {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object from id to title")
        }

        fn visit_map<A: MapAccess<'de>>(
            self,
            mut map: A,
        ) -> std::result::Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(pairs)
        }
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let pairs = json.deserialize_map(InOrder).context(path.display())?;
    json.end().context(path.display())?;

    let mut items: Vec<Item> = Vec::with_capacity(pairs.len());
    let mut place: HashMap<String, usize> = HashMap::with_capacity(pairs.len());
    for (id, title) in pairs {
        let at = *place.entry(id.clone()).or_insert(items.len());
        match items.get_mut(at) {
            Some(item) => item.title = title,
            None => items.push(Item { id, title }),
        }
    }
    if items.is_empty() {
        return Err(Error::failed(format!(
            "{}: the catalogue is empty",
            path.display()
        )));
    }
    Ok(items)
}

struct Row {
    /// Line of the file, from 1.
    line: usize,
    user: String,
    items: Vec<String>,
    time: i64,
}

fn read_rows(path: &Path, bytes: Vec<u8>) -> Result<Vec<Row>> {
    if let Err(error) = std::str::from_utf8(&bytes) {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        return Err(Error::failed(format!(
            "{}: line {line}: not UTF-8",
            path.display()
        )));
    }
    let options = CsvReadOptions::default().with_infer_schema_length(Some(0));
    let frame: DataFrame = options
        .into_reader_with_file_handle(Cursor::new(bytes))
        .finish()
        .context(path.display())?;
    let column = |name: &str| {
        let column = frame.column(name).map_err(|_| {
            Error::failed(format!(
                "{}: line 1: column {name} is missing (needs user_id,item_ids,timestamp)",
                path.display()
            ))
        })?;
        column.str().context(path.display())
    };
    let (users, lists, times) = (
        column("user_id")?,
        column("item_ids")?,
        column("timestamp")?,
    );

    let mut rows = Vec::with_capacity(frame.height());
    // A quoted field may span lines.
    let mut line = 2;
    for ((user, list), time) in users.iter().zip(lists.iter()).zip(times.iter()) {
        let at = |what: String| {
            Err(Error::failed(format!(
                "{}: line {line}: {what}",
                path.display()
            )))
        };
        let (Some(user), Some(list), Some(time)) = (user, list, time) else {
            return at("a row needs user_id, item_ids and timestamp".into());
        };
        let items = match parse_list(list) {
            Ok(items) => items,
            Err(what) => return at(format!("item_ids: {what}")),
        };
        if items.len() < 2 {
            return at(format!(
                "a window needs 2 items or more, this one has {}",
                items.len()
            ));
        }
        let Ok(seconds) = time.trim().parse() else {
            return at(format!("timestamp `{time}` is not a whole number"));
        };
        rows.push(Row {
            line,
            user: user.to_string(),
            items,
            time: seconds,
        });
        line += 1 + [user, list, time]
            .iter()
            .map(|f| f.matches('\n').count())
            .sum::<usize>();
    }
    Ok(rows)
}

/// Parses a Python list literal of whole numbers and quoted strings.
fn parse_list(text: &str) -> std::result::Result<Vec<String>, String> {
    let inside = text
        .trim()
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'));
    let Some(mut rest) = inside.map(str::trim_start) else {
        return Err("a list should be in [ and ]".into());
    };
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (item, after) = parse_id(rest)?;
        items.push(item);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.is_empty() => after,
            None => return Err(format!("a comma should follow item {}", items.len())),
        };
    }
    Ok(items)
}

fn parse_id(text: &str) -> std::result::Result<(String, &str), String> {
    if let Some(quote @ ('"' | '\'')) = text.chars().next() {
        let mut item = String::new();
        let mut chars = text.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, c @ ('\\' | '"' | '\''))) => item.push(c),
                    _ => return Err("an escape other than \\\\, \\\" and \\'".into()),
                },
                c if c == quote => return Ok((item, text.get(at + 1..).unwrap_or_default())),
                c => item.push(c),
            }
        }
        return Err("a quoted id does not end".into());
    }
    let end = text
        .find([',', ' ', '\t', '\n', '\r'])
        .unwrap_or(text.len());
    let (number, after) = text.split_at(end);
    let digits = number.strip_prefix('-').unwrap_or(number);
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    if digits.is_empty() || leading_zero || !digits.bytes().all(|b| b.is_ascii_digit()) {
        let shown: String = number.chars().take(40).collect();
        return Err(format!(
            "`{shown}` is neither a whole number nor a quoted id"
        ));
    }
    Ok((number.to_string(), after))
}

/// The windows of all files on their way to users' interaction sequences.
#[derive(Default)]
struct Merge {
    users: Vec<String>,
    index: HashMap<String, u32>,
    files: Vec<Vec<Raw>>,
}

struct Raw {
    user: u32,
    items: Vec<u32>,
    time: i64,
}

impl Merge {
    /// Adds a row to the last file. Users are numbered as they first appear.
    fn add(&mut self, row: Row, catalogue: &HashMap<&str, u32>, path: &Path) -> Result<()> {
        let mut items = Vec::with_capacity(row.items.len());
        for id in &row.items {
            let Some(&item) = catalogue.get(id.as_str()) else {
                return Err(Error::failed(format!(
                    "{}: line {}: item {id} has no title in {TITLES}",
                    path.display(),
                    row.line
                )));
            };
            items.push(item);
        }
        let next = self.users.len() as u32;
        let user = *self.index.entry(row.user.clone()).or_insert(next);
        if user == next {
            self.users.push(row.user);
        }
        if let Some(file) = self.files.last_mut() {
            file.push(Raw {
                user,
                items,
                time: row.time,
            });
        }
        Ok(())
    }

    /// Joins each user's windows, by time and then by their order in the files, on the largest
    /// overlap of the sequence's tail with the window's head. A window's target is always a new
    /// interaction, the only one of the window whose time is known.
    fn finish(self) -> (Vec<UserLog>, Vec<Vec<Window>>) {
        let mut order: Vec<(usize, usize)> = Vec::new();
        for (file, rows) in self.files.iter().enumerate() {
            order.extend((0..rows.len()).map(|row| (file, row)));
        }
        order.sort_by_key(|&(file, row)| self.files[file][row].time);

        let mut sequences: Vec<(Vec<u32>, Vec<Option<i64>>)> =
            vec![Default::default(); self.users.len()];
        let mut windows: Vec<Vec<Window>> = self
            .files
            .iter()
            .map(|rows| {
                vec![
                    Window {
                        user: 0,
                        start: 0,
                        len: 0
                    };
                    rows.len()
                ]
            })
            .collect();
        for (file, row) in order {
            let Raw { user, items, time } = &self.files[file][row];
            let (sequence, times) = &mut sequences[*user as usize];
            let heads = (1..items.len()).rev().map(|n| items.split_at(n));
            let new = heads.into_iter().find(|(head, _)| sequence.ends_with(head));
            sequence.extend_from_slice(new.map_or(items.as_slice(), |(_, tail)| tail));
            times.resize(sequence.len(), None);
            if let Some(last) = times.last_mut() {
                *last = Some(*time);
            }
            windows[file][row] = Window {
                user: *user,
                start: (sequence.len() - items.len()) as u32,
                len: items.len() as u32,
            };
        }

        let mut first = Vec::with_capacity(sequences.len());
        let mut total = 0;
        for (sequence, _) in &sequences {
            first.push(total as u32);
            total += sequence.len();
        }
        for window in windows.iter_mut().flatten() {
            window.start += first[window.user as usize];
        }
        let logs = sequences
            .into_iter()
            .zip(self.users)
            .map(|((items, times), id)| UserLog {
                id,
                events: items.into_iter().zip(times).collect(),
            });
        (logs.collect(), windows)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::Split;
    use super::*;

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
        let text = read_msl(dir.path()).unwrap_err().to_string();
        assert!(!text.contains('\n'));
        text
    }

    #[test]
    fn reads_titles_as_released() {
        let train = "user_id,item_ids,timestamp\nu,\"[7, '7x', 8]\",5\nu,\"['7x', 8, 7]\",6\n";
        let dir = folder(&[("train.csv", train), ("test.csv", TEST), (TITLES, JSON)]);
        let (corpus, _) = read_msl(dir.path()).unwrap();
        let titles: Vec<&str> = corpus.items.iter().map(|i| i.title.as_str()).collect();
        assert_eq!(titles, ["A &amp; B", "D", ""]);
        assert_eq!(corpus.interactions, [0, 2, 1, 0, 1]);
        assert_eq!(corpus.timestamps, [None, None, Some(5), Some(6), Some(9)]);
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
            (
                "[7]",
                "line 3: a window needs 2 items or more, this one has 1",
            ),
            ("[]", "this one has 0"),
            ("", "line 3"),
        ] {
            let text = error(&row(list), JSON);
            assert!(
                text.contains(what) && text.contains("train.csv"),
                "{list}: {text}"
            );
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
        fs::write(
            dir.path().join("train.csv"),
            "user_id,item_ids,timestamp\nu,\"[7, 8\",1\n",
        )
        .unwrap();
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
                let log: Vec<u32> = (0..rng.random_range(2..30))
                    .map(|_| rng.random_range(0..items))
                    .collect();
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
            let kept: Vec<_> = rows
                .into_iter()
                .filter(|_| !lossy || rng.random_bool(0.8))
                .collect();
            let cut = (kept.len() * 8).div_ceil(10);
            if cut == 0 {
                continue;
            }
            let csv = |rows: &[(i64, usize, Vec<u32>)]| {
                let lines = rows.iter().map(|(t, u, w)| format!("u{u},\"{w:?}\",{t}\n"));
                format!("user_id,item_ids,timestamp\n{}", lines.collect::<String>())
            };
            let titles: BTreeMap<String, String> = (0..items)
                .map(|i| (i.to_string(), format!("t{i}")))
                .collect();
            let dir = folder(&[
                ("train.csv", &csv(&kept[..cut])),
                ("test.csv", &csv(&kept[cut..])),
                (TITLES, &serde_json::to_string(&titles).unwrap()),
            ]);
            let out = dir.path().join("out");
            let statistics = prepare_msl(dir.path(), &out).unwrap();
            assert_eq!(statistics.windows.train, cut);
            assert_eq!(statistics.windows.valid, cut / 10);
            let corpus = Corpus::open(&out).unwrap();
            let all = corpus
                .released_train
                .iter()
                .chain(corpus.windows(Split::Test));
            for (window, (time, user, items)) in all.zip(&kept) {
                let ids = corpus.interactions[window.range()].iter();
                let ids: Vec<u32> = ids
                    .map(|&i| corpus.items[i as usize].id.parse().unwrap())
                    .collect();
                assert_eq!(
                    (&ids, corpus.timestamp(window)),
                    (items, Some(*time)),
                    "seed {seed}"
                );
                assert_eq!(corpus.user_id(window.user), format!("u{user}"));
            }
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let pieces = [
            "[", "]", "\"", "'", ",", "\n", "\r\n", " ", "\\", "7", "-", "0", "é", "u", "\u{feff}",
            "\t",
        ];
        for round in 0..3000 {
            let mut text = String::new();
            for _ in 0..rng.random_range(0..40) {
                text.push_str(pieces[rng.random_range(0..pieces.len())]);
            }
            let _ = parse_list(&text);
            let mut bytes = text.into_bytes();
            if round % 3 == 0 {
                bytes.splice(0..0, *b"user_id,item_ids,timestamp\n");
            }
            if round % 5 == 0 && !bytes.is_empty() {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            let _ = read_rows(Path::new("x.csv"), bytes.clone());
            let _ = read_titles(Path::new("x.json"), &bytes);
        }
    }

    /// The counts that the README of the data promises. Needs the real data: `ITEMLM_DATA`, or
    /// `../shared/data` beside the project.
    #[test]
    fn real_counts() {
        let root = std::env::var_os("ITEMLM_DATA").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
            PathBuf::from,
        );
        for (name, items, train, valid, test) in [
            ("office", 2414, 15400, 1925, 1925),
            ("books", 6344, 35060, 3506, 4383),
            ("clothing", 22948, 44351, 4435, 5544),
        ] {
            let dir = root.join(name);
            if !dir.is_dir() {
                eprintln!("skipped: {} is absent", dir.display());
                continue;
            }
            let (corpus, _) = read_msl(&dir).unwrap();
            let statistics = corpus.statistics(BTreeMap::new());
            let w = statistics.windows;
            assert_eq!(
                (statistics.items, w.train, w.valid, w.test),
                (items, train, valid, test),
                "{name}"
            );
            if name == "office" {
                assert_eq!((statistics.users, statistics.interactions), (4895, 53149));
            }
        }
    }
}
