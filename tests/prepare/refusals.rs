//! Bad input gives one line with file and line, exit 1 and nothing left behind; interrupts.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::{faults_of_refusal, itemlm, names};

/// A folder of raw files and the runs on them.
struct Raw {
    dir: tempfile::TempDir,
}

impl Raw {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let raw = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(raw.dir.path().join("tmp")).unwrap();
        for (name, bytes) in files {
            fs::write(raw.dir.path().join(name), bytes).unwrap();
        }
        raw
    }

    fn command(&self, line: &str) -> Command {
        let mut command = itemlm(self.dir.path());
        command.arg("prepare").args(line.split_whitespace()).args(["--out", "corpus", "--json"]);
        command.env("TMPDIR", self.dir.path().join("tmp"));
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Returns what is wrong with this refusal, if anything is; it must leave no file behind.
    fn refuses(&self, line: &str, code: i32, named: &[&str]) -> Option<String> {
        let before = names(self.dir.path());
        let output = self.run(line);
        let mut wrong = faults_of_refusal(line, &output, code, named);
        let after = names(self.dir.path());
        if before != after || !names(&self.dir.path().join("tmp")).is_empty() {
            wrong.push(format!("it leaves {after:?}"));
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        (!wrong.is_empty()).then(|| format!("{line}: {}\n    {stderr}", wrong.join("; ")))
    }

    fn json(&self, line: &str) -> Value {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns 6 users who each have 6 items: a 5-core.
fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..36).map(|i| (i / 6, i % 6))
}

fn lines(line: impl Fn((usize, usize)) -> String) -> Vec<String> {
    pairs().map(line).collect()
}

fn reviews() -> Vec<String> {
    lines(|(u, i)| {
        format!(
            r#"{{"reviewerID": "U{u}", "asin": "I{i}", "overall": 5.0, "unixReviewTime": {}, "summary": "s"}}"#,
            1_400_000_000 + i
        )
    })
}

fn meta_2014() -> Vec<String> {
    (0..6).map(|i| format!("{{'asin': 'I{i}', 'title': \"It's {i}\", 'price': 1.5}}")).collect()
}

fn meta_2018() -> Vec<String> {
    (0..6).map(|i| format!(r#"{{"asin": "I{i}", "title": "Title {i}", "category": []}}"#)).collect()
}

fn csv() -> Vec<String> {
    let mut rows = vec!["u,i,t,title,r".to_string()];
    rows.extend(lines(|(u, i)| format!("U{u},I{i},{},Title {i},4", 1_400_000_000 + i)));
    rows
}

const TABLE: &str = "--user u --item i --time t --title title --rating r";

/// Returns `lines` with line `number`, from 1, replaced.
fn with(mut lines: Vec<String>, number: usize, line: &str) -> Vec<u8> {
    lines[number - 1] = line.into();
    lines.join("\n").into_bytes()
}

fn text(lines: Vec<String>) -> Vec<u8> {
    lines.join("\n").into_bytes()
}

#[test]
fn good_files_are_taken() {
    let raw = Raw::new(&[
        ("r.json", &text(reviews())),
        ("m14.json", &text(meta_2014())),
        ("m18.json", &text(meta_2018())),
        ("t.csv", &text(csv())),
    ]);
    for line in ["amazon r.json m14.json", "amazon m18.json r.json", &format!("table t.csv {TABLE}")] {
        let json = raw.json(line);
        for (key, value) in [("users", 6), ("items", 6), ("interactions", 36)] {
            assert_eq!(json[key], value, "{line}");
        }
        assert_eq!(json["windows"], serde_json::json!({"train": 4, "valid": 1, "test": 1}));
        assert_eq!(json["dropped"], serde_json::json!({}));
    }
}

#[test]
fn bad_input_is_named() {
    let packed = gzip(&text(reviews()));
    let mut flipped = packed.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    let zstd = zstd::encode_all(&text(reviews())[..], 1).unwrap();
    let deep = |open: &str| {
        format!(r#"{{"reviewerID": "U", "asin": "I", "overall": 5, "unixReviewTime": 1, "x": {}"#, open.repeat(200_000))
    };
    let review = |what: &str, value: &str| {
        let line = r#"{"reviewerID": "U9", "asin": "I9", "overall": 5.0, "unixReviewTime": 1400000000}"#;
        assert!(line.contains(what));
        with(reviews(), 7, &line.replace(what, value))
    };
    let amazon: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("r.json.gz", packed[..packed.len() / 2].to_vec(), vec!["r.json.gz", "damaged"]),
        ("r.json.gz", flipped, vec!["r.json.gz"]),
        ("r.json.zst", zstd[..zstd.len() / 2].to_vec(), vec!["r.json.zst", "damaged"]),
        ("r.json", with(reviews(), 36, r#"{"reviewerID": "U5", "asin": "I"#), vec!["r.json", "line 36"]),
        ("r.json", with(reviews(), 7, "reviewerID,asin"), vec!["r.json", "line 7"]),
        ("r.json", review(r#""asin": "I9", "#, ""), vec!["r.json", "line 7", "asin"]),
        ("r.json", review(r#""I9""#, "9"), vec!["r.json", "line 7"]),
        ("r.json", review("1400000000", "-5"), vec!["r.json", "line 7", "-5"]),
        ("r.json", review("1400000000", "99999999999999999"), vec!["r.json", "line 7", "99999999999999999"]),
        ("r.json", review("1400000000", "1e400"), vec!["r.json", "line 7"]),
        ("r.json", review("1400000000", "\"soon\""), vec!["r.json", "line 7"]),
        ("r.json", review("5.0", "\"five\""), vec!["r.json", "line 7"]),
        ("r.json", with(reviews(), 7, &deep("[")), vec!["r.json", "line 7"]),
        ("r.json", with(reviews(), 7, &deep("{\"a\":")), vec!["r.json", "line 7"]),
        (
            "r.json",
            {
                let mut b = text(reviews());
                b[400] = 0xff;
                b
            },
            vec!["r.json", "line ", "UTF-8"],
        ),
        ("r.json", vec![], vec!["r.json", "empty"]),
        ("r.json", b"\n\n \n".to_vec(), vec!["r.json"]),
        ("r.json", (0..4000u32).map(|i| ((i * 7919) >> 3) as u8 | 0x80).collect(), vec!["r.json"]),
    ];
    let mut wrong = Vec::new();
    for (name, bytes, named) in amazon {
        let raw = Raw::new(&[(name, &bytes), ("m.json", &text(meta_2014()))]);
        wrong.extend(raw.refuses(&format!("amazon {name} m.json"), 1, &named));
    }
    let metadata: Vec<(Vec<u8>, Vec<&str>)> = vec![
        (with(meta_2014(), 3, "{'asin': 'I2', 'title': 'It's'}"), vec!["m.json", "line 3"]),
        (with(meta_2014(), 3, "{'asin': 'I2', 'title': 'cut"), vec!["m.json", "line 3"]),
        (with(meta_2014(), 3, "{'asin': 'I2', 'title': __import__('os')}"), vec!["m.json", "line 3"]),
        (with(meta_2014(), 3, "{'asin': 'I2', 'title': '\\ud800'}"), vec!["m.json", "line 3"]),
        (with(meta_2014(), 3, "{'title': 'x'}"), vec!["m.json", "line 3", "asin"]),
        (with(meta_2014(), 3, &format!("{{'asin': 'I2', 'x': {}", "[".repeat(300_000))), vec!["m.json", "line 3"]),
        (with(meta_2014(), 3, &format!("{{'asin': 'I2', 'x': {}", "{'a': ".repeat(300_000))), vec!["m.json", "line 3"]),
        (
            with(meta_2014(), 3, "{'asin': 'I1', 'title': 'Another'}"),
            vec!["m.json", "line 3", "two titles", "Another", "It's 1"],
        ),
        (
            with(meta_2018(), 3, r#"{"asin": "I1", "title": "Another"}"#),
            vec!["m.json", "line 3", "two titles", "Another"],
        ),
        (with(meta_2018(), 3, r#"{"asin": "I2", "title": "cut"#), vec!["m.json", "line 3"]),
        (with(meta_2018(), 3, r#"{"asin": "I2", "title": 5}"#), vec!["m.json", "line 3"]),
        (vec![], vec!["m.json", "empty"]),
    ];
    for (bytes, named) in metadata {
        let raw = Raw::new(&[("r.json", &text(reviews())), ("m.json", &bytes)]);
        wrong.extend(raw.refuses("amazon r.json m.json", 1, &named));
    }
    assert!(wrong.is_empty(), "{} refusals are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn bad_tables_are_named() {
    let row = |line: &str| with(csv(), 9, line);
    let mut broken_utf8 = with(csv(), 9, "U1,I2,1400000000,Title 2,4");
    let at = broken_utf8.windows(3).position(|w| w == b"I2,").unwrap();
    broken_utf8[at] = 0xe9;
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("t.csv", text(csv().iter().map(|l| l.replace(',', ";")).collect()), vec!["t.csv", "`u`"]),
        ("t.csv", with(csv(), 1, "u,item,t,title,r"), vec!["t.csv", "`i`"]),
        (
            "t.csv",
            text(
                csv()
                    .iter()
                    .map(|l| format!("{l},{}", l.replace(',', ";")))
                    .map(|l| l.replace("u;i;t;title;r", "u"))
                    .collect(),
            ),
            vec!["t.csv", "two columns", "`u`"],
        ),
        ("t.csv", row("U1,I2,1400000000,Title 2"), vec!["t.csv", "line 9"]),
        ("t.csv", row("U1,I2,1400000000,Title 2,4,5"), vec!["t.csv", "line 9"]),
        ("t.csv", row("U1,I2,-1,Title 2,4"), vec!["t.csv", "line 9", "-1"]),
        ("t.csv", row("U1,I2,99999999999999999999,Title 2,4"), vec!["t.csv", "line 9", "99999999999999999999"]),
        ("t.csv", row("U1,I2,soon,Title 2,4"), vec!["t.csv", "line 9", "soon"]),
        ("t.csv", row("U1,I2,,Title 2,4"), vec!["t.csv", "line 9"]),
        ("t.csv", row("U1,I2,1400000000,Title 2,many"), vec!["t.csv", "line 9", "many"]),
        ("t.csv", row("U1,I2,1400000000000,Title 2,4"), vec!["t.csv", "line 9", "1400000000000", "milliseconds"]),
        ("t.csv", row("u,i,t,title,r"), vec!["t.csv", "line 9", "header"]),
        ("t.csv", row("U1,I2,1400000000,\"Title 2,4"), vec!["t.csv", "9"]),
        ("t.csv", broken_utf8, vec!["t.csv", "line ", "UTF-8"]),
        ("t.csv", vec![], vec!["t.csv", "empty"]),
        ("t.csv", text(csv()[..1].to_vec()), vec!["t.csv"]),
        (
            "t.jsonl",
            b"{\"u\": \"a\", \"i\": \"b\", \"t\": 5, \"title\": \"x\", \"r\": 1}\n{\"u\": \"a\", ".to_vec(),
            vec!["t.jsonl", "line 2"],
        ),
        ("t.jsonl", b"{\"u\": \"a\", \"i\": \"b\", \"title\": \"x\", \"r\": 1}\n".to_vec(), vec!["t.jsonl", "`t`"]),
        ("t.parquet", b"PAR1 and then nothing PAR1".to_vec(), vec!["t.parquet"]),
    ];
    let mut wrong = Vec::new();
    for (name, bytes, named) in cases {
        let raw = Raw::new(&[(name, &bytes)]);
        wrong.extend(raw.refuses(&format!("table {name} {TABLE}"), 1, &named));
    }
    let raw = Raw::new(&[("t.csv", &text(csv()))]);
    wrong.extend(raw.refuses(&format!("table nowhere.csv {TABLE}"), 1, &["nowhere.csv"]));
    wrong.extend(raw.refuses(&format!("table t.csv {TABLE} --format tsv"), 1, &["t.csv", "`u`"]));
    wrong.extend(raw.refuses("table t.csv --item i --time t --title title", 2, &["columns of users"]));
    wrong.extend(raw.refuses(&format!("table t.csv {TABLE} --format jason"), 2, &["jason"]));
    wrong.extend(raw.refuses(&format!("table t.csv {TABLE} --memory 5kB"), 2, &["--memory"]));
    for (text, named) in [
        ("steps = []\n[split]\nprotocol = \"msl\"\nhistori = 5", "histori"),
        ("source = \"amazon\"\nsteps = []\n[split]\nprotocol = \"msl\"", "amazon"),
        ("steps = [{ step = \"k_core\", user = 5 }]\n[split]\nprotocol = \"msl\"", "item"),
        ("steps = ", "c.toml"),
    ] {
        fs::write(raw.dir.path().join("c.toml"), text).unwrap();
        wrong.extend(raw.refuses(&format!("table t.csv {TABLE} --config c.toml"), 2, &["c.toml", named]));
    }
    let raw = Raw::new(&[("t.csv", &text(csv()[..20].to_vec()))]);
    wrong.extend(raw.refuses(&format!("table t.csv {TABLE}"), 1, &["k_core"]));
    assert!(wrong.is_empty(), "{} refusals are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Two files of a source, by name and content.
type FilePair = [(&'static str, Vec<u8>); 2];

/// Returns the pair with another content of one file.
fn set(pair: &FilePair, index: usize, bytes: Vec<u8>) -> FilePair {
    let mut files = pair.clone();
    files[index].1 = bytes;
    files
}

/// Returns lines whose last one is not UTF-8.
fn broken(lines: &[String]) -> Vec<u8> {
    let mut bytes = text(lines.to_vec());
    let at = bytes.len() - 10;
    bytes[at] = 0xe9;
    bytes
}

/// Returns the two files as raw files, with the line that prepares them.
fn raw_pair(source: &str, files: &FilePair) -> (Raw, String) {
    let raw = Raw::new(&files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice())));
    (raw, format!("{source} {} {}", files[0].0, files[1].0))
}

/// Asserts that each of `good` is prepared, and each of `bad` refused with its words in the error.
fn check_pairs(source: &str, good: &[&FilePair], bad: Vec<(FilePair, Vec<&str>)>) {
    let mut wrong = Vec::new();
    for files in good {
        let (raw, line) = raw_pair(source, files);
        let output = raw.run(&line);
        if !output.status.success() {
            wrong.push(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    for (files, named) in bad {
        let (raw, line) = raw_pair(source, &files);
        wrong.extend(raw.refuses(&line, 1, &named));
    }
    assert!(wrong.is_empty(), "{} refusals are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn bad_movielens_is_named() {
    let ratings =
        |delimiter: &str| lines(|(u, i)| [u + 1, i + 1, 5, 978_300_760 + i].map(|n| n.to_string()).join(delimiter));
    let movies: Vec<String> = (1..7).map(|i| format!("{i}::Title {i} (1999)::Drama")).collect();
    let csv_ratings = || [vec!["userId,movieId,rating,timestamp".to_string()], ratings(",")].concat();
    let csv_movies: Vec<String> =
        ["movieId,title,genres".to_string()].into_iter().chain((1..7).map(|i| format!("{i},\"T, {i}\",A"))).collect();
    let dat = [("ratings.dat", text(ratings("::"))), ("movies.dat", text(movies.clone()))];
    let csv = [("ratings.csv", text(csv_ratings())), ("movies.csv", text(csv_movies.clone()))];
    let rating = |line: &str| set(&dat, 0, with(ratings("::"), 5, line));
    let movie = |line: &str| set(&dat, 1, with(movies.clone(), 2, line));
    let csv_rating = |number: usize, line: &str| set(&csv, 0, with(csv_ratings(), number, line));
    let bad = vec![
        (rating("1:5:5:978300760"), vec!["ratings.dat", "line 5"]),
        (set(&dat, 0, text(ratings(":"))), vec!["ratings.dat"]),
        (rating("1::5::5::-978300760"), vec!["ratings.dat", "line 5", "-978300760"]),
        (rating("1::5::good::978300760"), vec!["ratings.dat", "line 5", "good"]),
        (movie("2::Title"), vec!["movies.dat", "line 2"]),
        (movie("1::Another (1999)::Drama"), vec!["movies.dat", "line 2", "two titles"]),
        (csv_rating(1, "userId,movie,rating,timestamp"), vec!["ratings.csv", "movieId"]),
        (csv_rating(9, "1,2,3.0"), vec!["ratings.csv", "line 9"]),
        (csv_rating(9, "1,2,3.0,9e9"), vec!["ratings.csv", "line 9"]),
        (set(&csv, 1, broken(&csv_movies)), vec!["movies.csv", "line ", "UTF-8"]),
        (set(&csv, 0, vec![]), vec!["ratings.csv", "empty"]),
    ];
    check_pairs("movielens", &[&dat, &csv], bad);

    // Latin-1 titles are no error in a `.dat` file.
    let files = movie("2::Caf\u{e9} (1999)::Drama");
    let latin1 = std::str::from_utf8(&files[1].1).unwrap().chars().map(|c| c as u8).collect();
    let (raw, line) = raw_pair("movielens", &set(&files, 1, latin1));
    let output = raw.run(&line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(crate::read(&raw.dir.path().join("corpus")).items[1].1, "Café (1999)");
}

#[test]
fn bad_openp5_is_named() {
    let sequences: Vec<String> = (0..6).map(|u| format!("u{u} A B C D E")).collect();
    let titles: Vec<String> = ["A", "B", "C", "D", "E"].iter().map(|i| format!("{i}\tTitle {i}")).collect();
    let good = [("user_sequence.txt", text(sequences.clone())), ("asin_title.tsv", text(titles.clone()))];
    let sequence = |line: &str| set(&good, 0, with(sequences.clone(), 3, line));
    let title = |line: &str| set(&good, 1, with(titles.clone(), 3, line));
    let bad = vec![
        (set(&good, 0, broken(&sequences)), vec!["user_sequence.txt", "line 6", "UTF-8"]),
        (set(&good, 0, vec![]), vec!["user_sequence.txt", "empty"]),
        (sequence("u2"), vec!["user_sequence.txt", "line 3"]),
        (sequence("u1 A B"), vec!["user_sequence.txt", "line 3", "u1"]),
        (title("C Title C"), vec!["asin_title.tsv", "line 3"]),
        (title("B\tAnother"), vec!["asin_title.tsv", "line 3", "two titles"]),
        (set(&good, 1, vec![]), vec!["asin_title.tsv", "empty"]),
    ];
    check_pairs("openp5", &[&good], bad);
}

#[test]
fn bad_rows_are_tolerated_and_counted_on_request() {
    let mut rows = csv();
    rows.insert(9, "U1,I2,never,Title 2,4".into());
    rows.insert(20, "U1".into());
    let mut lines = reviews();
    lines.insert(9, "{".into());
    lines.insert(20, r#"{"reviewerID": "U1", "asin": "I1", "overall": 5.0, "unixReviewTime": -1}"#.into());
    let raw = Raw::new(&[("t.csv", &text(rows)), ("r.json", &text(lines)), ("m.json", &text(meta_2014()))]);
    for (line, file, second) in
        [(format!("table t.csv {TABLE}"), "t.csv", "line 21"), ("amazon r.json m.json".into(), "r.json", "line 21")]
    {
        let wrong = raw.refuses(&format!("{line} --skip-bad 1"), 1, &[file, second]);
        assert!(wrong.is_none(), "{wrong:?}");
        let json = raw.json(&format!("{line} --skip-bad 2"));
        assert_eq!(json["dropped"], serde_json::json!({"bad rows": 2}), "{line}");
        assert_eq!(json["interactions"], 36);
        fs::remove_dir_all(raw.dir.path().join("corpus")).unwrap();
    }
}

/// Interrupts a run at several moments.
#[test]
fn interrupting_leaves_nothing() {
    let mut bytes = b"u,i,t,title,r\n".to_vec();
    for row in 0..3_000_000u32 {
        let user = row.wrapping_mul(2_654_435_761) % 200_000;
        writeln!(bytes, "U{user},I{},{},Title {},4", user % 97 + row % 89, 1_000_000_000 + row, user % 97 + row % 89)
            .unwrap();
    }
    let raw = Raw::new(&[("t.csv", &bytes)]);
    let mut stopped = 0;
    for milliseconds in [30, 150, 400, 800, 1200, 1800, 2500] {
        let mut command = raw.command(&format!("table t.csv {TABLE} --memory 256MB"));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        // SAFETY: the child is ours and has not been waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
        let output = child.wait_with_output().unwrap();
        let left = names(raw.dir.path());
        if output.status.success() {
            assert_eq!(left, ["corpus", "t.csv", "tmp"]);
            fs::remove_dir_all(raw.dir.path().join("corpus")).unwrap();
            continue;
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        println!("after {milliseconds} ms: {}: {}", output.status, stderr.lines().last().unwrap_or_default());
        assert_eq!(left, ["t.csv", "tmp"], "after {milliseconds} ms: {stderr}");
        assert_eq!(names(&raw.dir.path().join("tmp")), [""; 0]);
        // One that comes before the handler stands, late on a busy machine, ends the process the
        // default way.
        let told = output.status.code() == Some(1) && stderr.contains("interrupted");
        assert!(
            told || output.status.signal() == Some(libc::SIGINT),
            "after {milliseconds} ms: {}: {stderr}",
            output.status
        );
        stopped += usize::from(told);
    }
    assert!(stopped > 1);
}

/// An old corpus stays when its replacement fails, and anything else is never touched.
#[test]
fn failing_keeps_the_old_corpus() {
    let raw = Raw::new(&[("t.csv", &text(csv()))]);
    let line = format!("table t.csv {TABLE}");
    raw.json(&line);
    let read = |raw: &Path| fs::read(raw.join("corpus/corpus.toml")).unwrap();
    let before = read(raw.dir.path());
    fs::write(raw.dir.path().join("t.csv"), with(csv(), 9, "U1")).unwrap();
    assert!(raw.refuses(&line, 1, &["t.csv", "line 9"]).is_none());
    assert_eq!(read(raw.dir.path()), before);
    fs::write(raw.dir.path().join("corpus/thesis.tex"), "x").unwrap();
    assert!(raw.refuses(&line, 2, &["thesis.tex"]).is_none());
}
