//! Small files with the quirks of public data sets (`tests/fixtures/data_cases`), each with the
//! corpus, or the error, that it should give.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::common::{copy_folder, faults_of_refusal, fixture, itemlm};
use crate::read;
use crate::reference::{self, Corpus, Event, Log, Protocol, Step};

/// Eleven events: user, item, rating; their times are 1 s apart.
const EVENTS: [(&str, &str, f32); 11] = [
    ("u1", "a", 5.0),
    ("u2", "b", 4.0),
    ("u1", "b", 3.0),
    ("u3", "c", 2.0),
    ("u2", "c", 5.0),
    ("u1", "c", 1.0),
    ("u3", "d", 4.0),
    ("u2", "a", 4.0),
    ("u1", "d", 5.0),
    ("u3", "a", 3.0),
    ("u3", "b", 5.0),
];
const TITLES: [(&str, &str); 4] = [("a", "Alpha"), ("b", "Beta"), ("c", "Gamma"), ("d", "Delta")];
const COLUMNS: &str = "--user user --item item --time time --title title --rating rating";
/// 2014-05-13T16:53:20Z.
const START: i64 = 1_400_000_000;

/// Returns the log of the events, with the time of the n-th, from 1, in milliseconds.
fn log(time: impl Fn(i64) -> i64) -> Log {
    let mut log = Log::default();
    for (n, (user, item, rating)) in (1..).zip(EVENTS) {
        let event = Event { user: user.into(), item: item.into(), time: Some(time(n)), rating: Some(rating) };
        log.events.push(event);
    }
    log.titles = TITLES.iter().map(|(id, title)| (id.to_string(), title.to_string())).collect();
    log
}

fn seconds() -> Log {
    log(|n| (START + n) * 1000)
}

fn unrated(mut log: Log) -> Log {
    log.events.iter_mut().for_each(|event| event.rating = None);
    log
}

fn titled(mut log: Log, id: &str, title: &str) -> Log {
    log.titles.insert(id.into(), title.into());
    log
}

/// Returns the log with other ids of users and items.
fn renamed(mut log: Log, users: [&str; 3], items: [&str; 4]) -> Log {
    let user = |id: &str| users[["u1", "u2", "u3"].iter().position(|u| *u == id).unwrap()].to_string();
    let item = |id: &str| items[TITLES.iter().position(|(i, _)| *i == id).unwrap()].to_string();
    for event in &mut log.events {
        (event.user, event.item) = (user(&event.user), item(&event.item));
    }
    log.titles = log.titles.iter().map(|(id, title)| (item(id), title.clone())).collect();
    log
}

/// Returns the log with the ids of Amazon's files.
fn amazon(log: Log) -> Log {
    let items = ["B000000001", "B000000002", "0307000003", "B000000004"];
    renamed(log, ["A1AAAAAAAAAAA1", "A2BBBBBBBBBBB2", "A3CCCCCCCCCCC3"], items)
}

struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(&fixture("data_cases").join(name), dir.path());
        Self { dir }
    }

    fn run(&self, line: &str) -> Output {
        let mut command = itemlm(self.dir.path());
        command.arg("prepare").args(line.split_whitespace()).args(["--out", "out", "--json"]);
        if self.dir.path().join("cfg.toml").exists() {
            command.args(["--config", "cfg.toml"]);
        }
        command.output().unwrap()
    }

    /// Runs `prepare` and returns its report.
    fn prepare(&self, line: &str) -> Value {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Checks that the corpus is that of a log.
    fn gives(&self, line: &str, log: &Log) -> Value {
        let report = self.prepare(line);
        let expected = reference::prepare(log, &[], Protocol::Msl { history: 10 }).0.unwrap();
        let found: Corpus = read(&self.dir.path().join("out"));
        assert_eq!(found.items, expected.items, "{line}");
        assert_eq!(found, expected, "{line}");
        report
    }

    /// Checks that the run ends in one line of error with these words.
    fn refuses(&self, line: &str, words: &[&str]) {
        let output = self.run(line);
        let faults = faults_of_refusal(line, &output, 1, words);
        assert!(faults.is_empty(), "{line}: {}\n{}", faults.join("; "), String::from_utf8_lossy(&output.stderr));
        assert!(!self.dir.path().join("out").exists());
    }
}

fn warnings(report: &Value) -> String {
    report["warnings"].to_string()
}

/// Tab-separated files have no quotes.
#[test]
fn tsv_is_not_csv() {
    let days = |n: i64| (1_398_902_400 + (n - 1) * 86_400) * 1000;
    let columns = "--user customer_id --item product_id --time review_date --title product_title --rating star_rating";
    Case::new("case-01").gives(&format!("table r.tsv {columns}"), &log(days));
    let quoted = titled(titled(seconds(), "a", "\"Alpha"), "c", "TV 32\"");
    Case::new("case-02").gives(&format!("table log.csv cat.tsv {COLUMNS}"), &quoted);
    let news = renamed(seconds(), ["u1", "u2", "u3"], ["N0", "N1", "N2", "N3"]);
    Case::new("case-04").gives(&format!("table log.csv news.tsv {COLUMNS}"), &news);
}

#[test]
fn times_of_each_file() {
    let line = format!("table l1.csv l2.csv cat.csv {COLUMNS}");
    let report = Case::new("case-05").gives(&line, &seconds());
    assert_eq!(report["steps"][0]["what"].as_str().unwrap().matches("milliseconds and times in seconds").count(), 1);
    let columns = "--user user_id --item product_id --time event_time --title title";
    Case::new("case-23").gives(&format!("table 2019-Oct.csv cat.csv {columns}"), &unrated(seconds()));
    let fractions = renamed(log(|n| (START + n) * 1000 + 438), ["1", "2", "3"], ["a", "b", "c", "d"]);
    let columns = "--user user_id --item video_id --time timestamp --title caption";
    Case::new("case-24")
        .gives(&format!("table big_matrix.csv kuairec_caption_category.csv {columns}"), &unrated(fractions));
    let report = Case::new("case-46").gives(&format!("table log.csv cat.csv {COLUMNS}"), &seconds());
    assert!(report["format"].as_str().unwrap().contains("microseconds"), "{report}");
}

#[test]
fn the_same_events_twice() {
    Case::new("case-07").refuses("amazon d", &["reviews_X.json", "reviews_X.json.gz", "twice"]);
    let case = Case::new("case-07");
    fs::remove_file(case.dir.path().join("d/reviews_X.json.gz")).unwrap();
    case.gives("amazon d", &amazon(seconds()));
    // Overlapping files are counted.
    let reviews = fs::read_to_string(case.dir.path().join("d/reviews_X.json")).unwrap();
    let first: String = reviews.lines().take(3).map(|line| format!("{line}\n")).collect();
    fs::write(case.dir.path().join("d/reviews_more.json"), first).unwrap();
    let report = case.prepare("amazon d");
    assert_eq!((report["interactions"].as_u64(), report["repeated_interactions"].as_u64()), (Some(14), Some(3)));
    assert!(warnings(&report).contains("repeats: 3 interactions"), "{report}");
}

#[test]
fn folders() {
    let line = format!("table log cat.parquet {COLUMNS}");
    let report = Case::new("case-10").gives(&line, &seconds());
    let files = report["files"].as_array().unwrap();
    assert_eq!(files.len(), 4);
    assert_eq!(files.iter().map(|file| file["rows"].as_u64().unwrap()).sum::<u64>(), 11 + 4);
    for (name, passed_over) in [("case-30", "log/_SUCCESS"), ("case-31", "log/.part-00000-x.c000.snappy.parquet.crc")] {
        let report = Case::new(name).gives(&line, &seconds());
        assert_eq!(report["passed_over"], serde_json::json!([passed_over]));
    }
    // Another folder is refused by name, a column of the folders' names is one of the table.
    let case = Case::new("case-10");
    fs::create_dir(case.dir.path().join("log/old")).unwrap();
    case.refuses(&line, &["log/old", "folder"]);
    fs::remove_dir(case.dir.path().join("log/old")).unwrap();
    fs::remove_file(case.dir.path().join("log/part-0.parquet")).unwrap();
    fs::write(case.dir.path().join("cfg.toml"), "steps = []\n[split]\nprotocol = \"leave_one_out\"\n").unwrap();
    case.prepare("table log cat.parquet --user user --item item --time time --title title --rating day");
    let ratings = read(&case.dir.path().join("out")).ratings;
    assert!(ratings.iter().all(|day| *day == 1.0 || *day == 2.0) && ratings.contains(&1.0) && ratings.contains(&2.0));
}

/// A pipe can be read only once: it is refused before it is opened, which could wait for ever.
#[test]
fn pipes_are_refused() {
    let case = Case::new("case-05");
    let path = case.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    case.refuses(&format!("table fifo cat.csv {COLUMNS}"), &["fifo: not a regular file"]);
    let mut command = itemlm(case.dir.path());
    command.args(["prepare", "table", "/dev/stdin", "cat.csv", "--out", "out"]).args(COLUMNS.split(' '));
    let output = command.stdin(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("/dev/stdin: not a regular file"), "{stderr}");
}

#[test]
fn headers() {
    let case = Case::new("case-15");
    let line = "table log.csv cat.csv --user user --item item --title title";
    case.refuses(line, &["log.csv", "line 7", "header"]);
    let report = case.prepare(&format!("{line} --skip-bad 1"));
    assert_eq!((report["interactions"].as_u64(), report["dropped"]["bad rows"].as_u64()), (Some(11), Some(1)));
    let file = "userid-timestamp-artid-artname-traid-traname.tsv";
    let line = format!("table {file} --user userid --item artid --time timestamp --title artname");
    Case::new("case-20").refuses(&line, &[file, "userid", "--columns"]);
    let mut artists = renamed(
        unrated(seconds()),
        ["user_000001", "user_000002", "user_000003"],
        ["mbid-a", "mbid-b", "mbid-c", "mbid-d"],
    );
    for (id, title) in &mut artists.titles {
        *title = id.replace("mbid-", "Artist ");
    }
    Case::new("case-20").gives(&format!("{line} --columns userid,timestamp,artid,artname,traid,traname"), &artists);
}

#[test]
fn dialects() {
    let day = |_| 1_399_939_200_000;
    let line =
        "table steam_reviews.json.gz steam_games.json.gz --user user_id --item product_id --time date --title title";
    Case::new("case-25").refuses(line, &["steam_games.json.gz", "--catalogue-item"]);
    let case = Case::new("case-25");
    case.gives(&format!("{line} --catalogue-item id"), &unrated(log(day)));
    let users = renamed(unrated(seconds()), ["1", "2", "3"], ["a", "b", "c", "d"]);
    let line = "table user_taggedartists-timestamps.dat artists.dat --user userID --item artistID --time timestamp \
                --title name";
    Case::new("case-26").refuses(line, &["artists.dat", "artistID", "--catalogue-item"]);
    Case::new("case-26").gives(&format!("{line} --catalogue-item id"), &users);
    // An event without a rating is one; the step `rating` drops it.
    let case = Case::new("case-35");
    let line = format!("table log.jsonl cat.jsonl {COLUMNS}");
    case.prepare(&line);
    let corpus = itemlm::data::Corpus::open(&case.dir.path().join("out")).unwrap();
    assert_eq!(corpus.interactions.len(), 11);
    let nulls = fs::read_to_string(case.dir.path().join("log.jsonl")).unwrap().matches("null").count();
    fs::write(
        case.dir.path().join("cfg.toml"),
        crate::config(&[Step::Rating { min: 0.5 }], Protocol::Msl { history: 10 }),
    )
    .unwrap();
    assert_eq!(case.prepare(&line)["interactions"].as_u64(), Some(11 - nulls as u64));
    Case::new("case-50").gives(&format!("table log.jsonl cat.jsonl {COLUMNS}"), &seconds());
}

#[test]
fn titles() {
    let mut reviews = amazon(seconds());
    for (n, event) in (0i64..).zip(&mut reviews.events) {
        event.time = event.time.map(|time| time + n);
    }
    Case::new("case-28").gives("amazon X.jsonl raw_meta_X", &reviews);
    let line =
        "table X.jsonl raw_meta_X --user user_id --item parent_asin --time timestamp --rating rating --title title";
    let report = Case::new("case-29").gives(line, &reviews);
    assert!(report["format"].as_str().unwrap().ends_with("titles of the catalogue"), "{report}");
    Case::new("case-29").gives(&format!("{line} --title-from catalogue"), &reviews);
    let mut own = reviews.clone();
    own.titles.values_mut().for_each(|title| *title = "Loved it".into());
    Case::new("case-29").gives(&format!("{line} --title-from log"), &own);
    // Two titles of an item cost no event.
    let line = "table log.csv --user user --item item --time time --title title";
    let report = Case::new("case-36").gives(line, &unrated(seconds()));
    assert!(warnings(&report).contains("1 items have more than one title"), "{report}");
    let last = titled(unrated(seconds()), "a", "Alpha (2nd ed.)");
    Case::new("case-36").gives(&format!("{line} --title-choice last"), &last);
}

#[test]
fn compression() {
    Case::new("case-38").refuses(
        "amazon reviews_X.json meta_Sports_and_Outdoors.json.gz",
        &["meta_Sports_and_Outdoors", "gzip inside gzip"],
    );
    Case::new("case-39").gives(&format!("table log.csv.bz2 cat.csv {COLUMNS}"), &seconds());
    Case::new("case-40").gives(&format!("table log.csv.zst cat.csv {COLUMNS}"), &seconds());
    Case::new("case-42")
        .refuses(&format!("table log.jsonl cat.jsonl {COLUMNS}"), &["log.jsonl", "line 1", "one object a line"]);
    Case::new("case-33").gives(&format!("table log.parquet cat.parquet {COLUMNS}"), &seconds());
}

#[test]
fn an_empty_join_is_explained() {
    Case::new("case-44").refuses(
        &format!("table log.parquet cat.csv {COLUMNS}"),
        &["titled", "0 of the log's 4 items", "`663713000`", "`0663713000`"],
    );
    Case::new("case-45")
        .refuses("table events.csv --user visitorid --item itemid --time timestamp", &["--title", "--config"]);
}

/// Parquet columns of all types that hold ids, times or ratings; columns of other types are left
/// alone.
#[test]
fn parquet_types() {
    let expected = renamed(seconds(), ["1", "2", "3"], ["i0", "i1", "i2", "i3"]);
    let users: Vec<String> =
        [8, 16, 32, 64].iter().flat_map(|w| [format!("user_i{w}"), format!("user_u{w}")]).collect();
    let others = ["user_text", "user_large", "user_binary", "user_dictionary", "user_decimal", "user_struct.inner.id"];
    let ratings =
        ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "f32", "f64", "decimal", "decimal_small", "text"];
    let mut times: Vec<String> = ["u32", "f64", "decimal", "text"].map(String::from).to_vec();
    for unit in ["s", "ms", "us", "ns"] {
        times.extend([unit.to_string(), format!("{unit}_zone"), format!("{unit}_number")]);
    }
    let users: Vec<String> = users.into_iter().chain(others.map(String::from)).collect();
    // Each type once, whatever the others are.
    let dir = tempfile::tempdir().unwrap();
    let file = fixture("data_cases/types.parquet");
    fs::write(dir.path().join("cfg.toml"), crate::config(&[], Protocol::Msl { history: 10 })).unwrap();
    for n in 0..users.len().max(ratings.len()).max(times.len()) {
        let name = |names: &[String]| Some(names[n % names.len()].clone());
        let columns = itemlm::data::Columns {
            user: name(&users),
            item: Some("item".into()),
            time: Some(format!("time_{}", times[n % times.len()])),
            title: Some("title".into()),
            rating: Some(format!("rating_{}", ratings[n % ratings.len()])),
            text: None,
        };
        let written = crate::generator::WrittenInput { inputs: vec![file.clone()], table: Default::default(), columns };
        let mut options = crate::options(crate::format::Format::Parquet, written, &dir.path().join("out"));
        options.config = Some(dir.path().join("cfg.toml"));
        itemlm::data::prepare(&options).unwrap_or_else(|error| panic!("{:?}: {error}", options.columns));
        let wanted = reference::prepare(&expected, &[], Protocol::Msl { history: 10 }).0.unwrap();
        assert_eq!(read(&options.out), wanted, "{:?}", options.columns);
    }
    let case = Case { dir };
    fs::copy(&file, case.dir.path().join("types.parquet")).unwrap();
    fs::remove_dir_all(case.dir.path().join("out")).unwrap();
    for (columns, what) in [
        ("--user x_list --item item", "x_list"),
        ("--user user_f9 --item item", "`user_f9` is missing"),
        ("--user rating_f32 --item item", "fractions"),
        ("--user user_i8 --item time_ms", "times"),
        ("--user user_struct --item item", "user_struct"),
    ] {
        case.refuses(&format!("table types.parquet {columns} --time time_ms"), &["types.parquet", what]);
    }
    let old = fixture("data_cases/int96.parquet");
    fs::copy(old, case.dir.path().join("int96.parquet")).unwrap();
    let mut untitled = unrated(expected);
    untitled.titles.clear();
    case.gives("table int96.parquet --user user_i64 --item item --time time_ns", &untitled);
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        archive.start_file(*name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Archives, encodings and formats by their first bytes.
#[test]
fn first_bytes() {
    let case = Case::new("case-05");
    let path = |name: &str| case.dir.path().join(name);
    let put = |name: &str, bytes: &[u8]| fs::write(path(name), bytes).unwrap();
    let csv: String =
        (1..).zip(EVENTS).map(|(n, (user, item, rating))| format!("{user},{item},{},{rating}\n", START + n)).collect();
    let csv = format!("user,item,time,rating\n{csv}");
    let titles = fs::read(path("cat.csv")).unwrap();
    let line = |name: &str| format!("table {name} cat.csv {COLUMNS}");
    put("log.zip", &zip(&[("x/log.csv", csv.as_bytes()), ("__MACOSX/x/._log.csv", b"\0"), ("x/README", b"x")]));
    let report = case.gives(&line("log.zip"), &seconds());
    assert_eq!(report["files"][0]["file"], "log.zip/x/log.csv");
    assert_eq!(report["passed_over"].as_array().unwrap().len(), 2);
    put("both.zip", &zip(&[("log.csv", csv.as_bytes()), ("cat.csv", &titles)]));
    case.gives(&format!("table both.zip {COLUMNS}"), &seconds());
    let utf16: Vec<u8> = csv.encode_utf16().flat_map(u16::to_le_bytes).collect();
    put("log.txt", &utf16);
    case.gives(&line("log.txt"), &seconds());
    fs::remove_dir_all(path("out")).unwrap();
    let mut tar = csv.repeat(2).into_bytes();
    tar.splice(257..262, *b"ustar");
    for (name, bytes, what) in [
        ("a", &b"\xfd7zXZ\x00"[..], "xz"),
        ("b", &tar, "tar"),
        ("c", b"ARROW1\0\0", "Arrow"),
        ("d", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("e", b"\x1b[2Juser,item\n", "`user` is missing"),
        ("f", b"[{\"user\": 1}]", "one object a line"),
        ("g", b"{\"user\": 1}{\"user\": 2}", "several objects on one line"),
        ("h", b"user;item;time\n1;2;3\n", "--delimiter"),
        ("i", b"PK\x03\x04 cut", "i: "),
        ("j", b"x\0y\0\0z", "binary"),
        ("k", b"<html><body>", "web page"),
        ("l", b"user,item,time,rating,user\n1,2,3,4,5\n", "two columns are named `user`"),
        ("m\x1b[2J", b"\0\0\0\0", "binary"),
    ] {
        put(name, bytes);
        case.refuses(&line(name), &[what]);
    }
    put(
        "ml.zip",
        &zip(&[
            ("ml/ratings.dat", b"1::2::5::978300760\n1::3::4::978300761\n"),
            ("ml/movies.dat", b"2::T::D\n3::U::D\n"),
        ]),
    );
    fs::write(path("cfg.toml"), "steps = []\n[split]\nprotocol = \"leave_one_out\"\n").unwrap();
    assert_eq!(case.prepare("movielens ml.zip")["interactions"], 2);
}

#[test]
fn early_times_are_a_warning() {
    let case = Case::new("case-05");
    let report = case.prepare(&format!("table l2.csv cat.csv {COLUMNS} --time-unit ms"));
    assert!(warnings(&report).contains("before 1990, the earliest at 1970-01-17T"), "{report}");
    let report = case.prepare(&format!("table l2.csv cat.csv {COLUMNS}"));
    assert!(!warnings(&report).contains("1990"), "{report}");
}
