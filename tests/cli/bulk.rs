//! `recommend` for many users: `--input`, `--users all`, and going on after a kill.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use itemlm::run::{BulkRequest, BulkUsers, ItemRef, RecommendRequest, Session, recommend_users};
use polars::prelude::{Column, DataFrame, ListChunked, NamedFrom, ParquetReader, ParquetWriter, SerReader, Series};
use serde_json::json;

use crate::lab::{ITEMS, Lab, USERS};
use crate::session::session;

/// Log-probabilities of users who run together, against those of one who runs alone: sums in
/// another order.
const TOLERANCE: f64 = 1e-4;

/// User, rank, item, title and score of each row.
type Rows = Vec<(String, u32, String, String, f64)>;

fn rows(lab: &Lab, file: &str) -> Rows {
    let frame = ParquetReader::new(fs::File::open(lab.path(file)).unwrap()).finish().unwrap();
    let names: Vec<String> = frame.columns().iter().map(|column| column.name().to_string()).collect();
    assert_eq!(names, ["user", "rank", "item", "title", "score"]);
    let text = |name: &str| -> Vec<String> {
        frame.column(name).unwrap().str().unwrap().iter().map(|text| text.unwrap().to_string()).collect()
    };
    let ranks = frame.column("rank").unwrap().u32().unwrap().iter().map(Option::unwrap).collect::<Vec<_>>();
    let scores = frame.column("score").unwrap().f64().unwrap().iter().map(Option::unwrap).collect::<Vec<_>>();
    let (users, items, titles) = (text("user"), text("item"), text("title"));
    (0..ranks.len()).map(|n| (users[n].clone(), ranks[n], items[n].clone(), titles[n].clone(), scores[n])).collect()
}

/// The rows are what the session recommends to each user alone, in the users' order.
fn are_recommended(rows: &Rows, session: &Session, users: &[(String, Vec<String>)], k: usize) {
    let mut rows = rows.iter();
    for (user, history) in users {
        let history = history.iter().cloned().map(ItemRef::Id).collect();
        let expected = session.recommend(&RecommendRequest { history, k, ..RecommendRequest::default() }).unwrap();
        for item in expected.items {
            let (found, rank, id, title, score) = rows.next().unwrap();
            assert_eq!((found, *rank as usize, id, title), (user, item.rank, &item.item, &item.title));
            assert!((score - item.score).abs() < TOLERANCE);
        }
    }
    assert!(rows.next().is_none());
}

#[test]
fn users_of_the_corpus_and_of_files() {
    let lab = Lab::new();
    let session = session(&lab);
    let corpus = &session.context.corpus;
    let report = lab.json("recommend run --users all -k 3 --out all.parquet");
    assert_eq!((&report["users"], &report["rows"], &report["resumed"]), (&json!(USERS), &json!(3 * USERS), &json!(0)));
    let id = |&item: &u32| corpus.items[item as usize].id.clone();
    let users: Vec<(String, Vec<String>)> = (0..USERS as u32)
        .map(|user| (corpus.user_id(user).into(), corpus.user_interactions(user).iter().map(id).collect()))
        .collect();
    are_recommended(&rows(&lab, "all.parquet"), &session, &users, 3);
    assert!(!lab.path("all.parquet.parts").exists());

    let some: Vec<(String, Vec<String>)> =
        [("7", &["101", "119"][..]), ("new", &["100"]), ("7", &["105", "105", "106"])]
            .map(|(user, items)| (user.into(), items.iter().map(|item| item.to_string()).collect()))
            .to_vec();
    lab.write(
        "some.jsonl",
        "{\"user\": 7, \"history\": [101, \"119\"]}\n\n{\"history\": [\"100\"], \"user\": \"new\", \"age\": 3}\n\
         {\"user\": \"7\", \"history\": [105, 105, 106]}\n",
    );
    lab.ok("recommend run --input some.jsonl -k 25 --out some.parquet");
    are_recommended(&rows(&lab, "some.parquet"), &session, &some, 25);
    assert_eq!(rows(&lab, "some.parquet").len(), 3 * (ITEMS - 1));

    let users: Vec<&str> = some.iter().map(|(user, _)| user.as_str()).collect();
    let texts: Vec<Series> = some.iter().map(|(_, items)| Series::new("".into(), items)).collect();
    let numbers: Vec<Series> = some
        .iter()
        .map(|(_, items)| Series::new("".into(), items.iter().map(|id| id.parse::<i64>().unwrap()).collect::<Vec<_>>()))
        .collect();
    for histories in [texts, numbers] {
        let histories = histories.into_iter().map(Some).collect::<ListChunked>();
        let columns = vec![
            Column::new("age".into(), [1.5, 2.5, 3.5]),
            Series::new("history".into(), histories).into(),
            Column::new("user".into(), &users),
        ];
        let mut frame = DataFrame::new_infer_height(columns).unwrap();
        ParquetWriter::new(fs::File::create(lab.path("in.parquet")).unwrap()).finish(&mut frame).unwrap();
        lab.ok("recommend run --input in.parquet -k 25 --out again.parquet");
        assert!(lab.read("again.parquet") == lab.read("some.parquet"));
    }
}

#[test]
fn a_killed_call_goes_on_without_repeating_users() {
    let lab = Lab::new();
    drop(session(&lab));
    let lines: Vec<String> =
        (0..400).map(|user| json!({"user": user, "history": [100 + user % 18, 101]}).to_string()).collect();
    lab.write("users.jsonl", lines.join("\n"));
    // So many items make parts of 13 users.
    let line = |out: &str| format!("recommend run --input users.jsonl -k 10000 --out {out} --json");
    lab.ok(&line("whole.parquet"));
    let mut child = lab.command(&line("cut.parquet")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !lab.path("cut.parquet.parts/part-000002.parquet").exists() {
        assert!(started.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!lab.path("cut.parquet").exists());
    let parts = || -> BTreeMap<_, _> {
        let entries = fs::read_dir(lab.path("cut.parquet.parts")).unwrap().map(|entry| entry.unwrap().path());
        let parts = entries.filter(|path| path.extension().is_some_and(|ending| ending == "parquet"));
        parts.map(|path| (path.clone(), fs::metadata(&path).unwrap().modified().unwrap())).collect()
    };
    let before = parts();
    // Another request does not go on with these parts, and touches none.
    lab.assert_refused(
        "recommend run --input users.jsonl -k 9999 --out cut.parquet",
        2,
        &["cut.parquet.parts", "another file"],
    );
    let mut users = lines.clone();
    users[3] = json!({"user": 3, "history": [101]}).to_string();
    lab.write("other.jsonl", users.join("\n"));
    lab.assert_refused(
        "recommend run --input other.jsonl -k 10000 --out cut.parquet",
        2,
        &["cut.parquet.parts", "another file"],
    );
    assert_eq!(parts(), before);
    let report = lab.json("recommend run --input users.jsonl -k 10000 --out cut.parquet");
    assert_eq!((&report["users"], &report["resumed"]), (&json!(400), &json!(13 * before.len())));
    assert!(lab.read("cut.parquet") == lab.read("whole.parquet"), "the same file as without the kill");
    assert!(!lab.path("cut.parquet.parts").exists());
}

/// Parts that are taken by two devices make the file that one device makes, also where parts
/// between others are missing: those alone are answered again.
#[test]
fn two_devices_share_the_users() {
    let lab = Lab::new();
    let one = session(&lab);
    let lines: Vec<String> =
        (0..400).map(|user| json!({"user": user, "history": [100 + user % 18, 101]}).to_string()).collect();
    lab.write("users.jsonl", lines.join("\n"));
    let request = |out: &str| BulkRequest {
        users: BulkUsers::File(lab.path("users.jsonl")),
        prompt: Default::default(),
        k: 10_000,
        out: lab.path(out),
    };
    let two = one.clone_to_device(&one.device);
    let devices = [one, two.unwrap()];
    let report = recommend_users(&devices[..1], &request("one.parquet")).unwrap();
    assert_eq!((report.users, report.resumed), (400, 0));
    let report = recommend_users(&devices, &request("two.parquet")).unwrap();
    assert_eq!((report.users, report.resumed), (400, 0));
    assert!(lab.read("two.parquet") == lab.read("one.parquet"), "the same file");

    // A call that is killed, and lost two of its parts.
    let line = "recommend run --input users.jsonl -k 10000 --out cut.parquet";
    let mut child = lab.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let part = |number: usize| lab.path(&format!("cut.parquet.parts/part-{number:06}.parquet"));
    let started = Instant::now();
    while !part(5).exists() {
        assert!(started.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    [0, 3].into_iter().for_each(|number| fs::remove_file(part(number)).unwrap());
    let left = (0..31).filter(|&number| part(number).exists()).map(|number| if number == 30 { 10 } else { 13 });
    let left: usize = left.sum();
    let report = recommend_users(&devices, &request("cut.parquet")).unwrap();
    assert_eq!((report.users, report.resumed), (400, left));
    assert!(lab.read("cut.parquet") == lab.read("one.parquet"), "the same file");
    assert!(!lab.path("cut.parquet.parts").exists());
    // An error on any device ends the work of all.
    lab.write("users.jsonl", "{\"user\": 1, \"history\": [7]}");
    assert!(recommend_users(&devices, &request("bad.parquet")).unwrap_err().to_string().contains("no item 7"));
}

#[test]
fn bad_users_are_named_before_any_is_answered() {
    let lab = Lab::new();
    drop(session(&lab));
    for (content, named) in [
        (
            "{\"user\": \"a\", \"history\": [101]}\n{\"user\": \"b\", \"history\": [7]}\n",
            "row 2: the catalogue has no item 7",
        ),
        ("{\"user\": \"a\", \"history\": []}\n", "row 1: the history is empty"),
        ("{\"user\": \"a\"}\n", "row 1"),
        ("{\"user\": \"a\", \"history\": [1.5]}\n", "row 1"),
        ("\n\nx\n", "row 3"),
        ("", "there is no user"),
    ] {
        lab.write("in.jsonl", content);
        lab.assert_refused("recommend run --input in.jsonl --out out.parquet", 1, &["in.jsonl", named]);
    }
    lab.write("in.parquet", "no parquet");
    lab.assert_refused("recommend run --input in.parquet --out out.parquet", 1, &["in.parquet"]);
    lab.write("in.csv", "user,history\n");
    lab.assert_refused("recommend run --input in.csv --out out.parquet", 2, &["in.csv", ".jsonl"]);
    lab.assert_refused("recommend run --input nothing.jsonl --out out.parquet", 1, &["nothing.jsonl"]);
    lab.assert_refused("recommend run --input in.jsonl", 2, &["--out"]);
    lab.assert_refused("recommend run --out out.parquet", 2, &["--input", "--users"]);
    lab.assert_refused("recommend run --users all --out out.csv", 2, &["out.csv", ".parquet"]);
    lab.assert_refused("recommend run --users all --history x --out out.parquet", 2, &["--history"]);
}
