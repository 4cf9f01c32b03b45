use std::io::Write;

use super::*;
use crate::data::FileDigest;
use crate::data::sharded_table::{Workspace, collect, i64s, u32s};

/// User, item, time, rating.
type Event = (String, String, i64, f32);

struct Folder(tempfile::TempDir);

impl Folder {
    /// Files by name and content, gzipped if so named.
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let mut bytes = text.as_bytes().to_vec();
            if name.ends_with(".gz") {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&bytes).unwrap();
                bytes = encoder.finish().unwrap();
            }
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        Self(dir)
    }

    fn read(&self, names: &[&str], format: Option<&str>, context: &mut ReadContext) -> Result<RawDataset> {
        let files: Vec<SourceFile> = names.iter().map(|name| SourceFile::new(self.0.path().join(name))).collect();
        let options = ReadOptions {
            format: format.map(str::to_string),
            workspace: Workspace { memory: 1 << 30, scratch: std::env::temp_dir() },
            ..ReadOptions::default()
        };
        read(&files, &options, context)
    }
}

fn read_all(files: &[(&str, &str)], format: Option<&str>, skip_bad: u64) -> Result<(RawDataset, u64)> {
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let mut context = ReadContext { skip_bad, ..ReadContext::quiet() };
    let raw = Folder::new(files).read(&names, format, &mut context)?;
    Ok((raw, context.skipped))
}

fn error(files: &[(&str, &str)], format: Option<&str>) -> (String, u8) {
    let error = read_all(files, format, 0).err().unwrap();
    (error.to_string(), error.exit_code())
}

fn events(raw: &RawDataset) -> Vec<Event> {
    let frame = collect(raw.log.shards.lazy(0).unwrap()).unwrap();
    let times = i64s(&frame, "time").unwrap();
    let ratings: Vec<f32> = frame.column("rating").unwrap().f32().unwrap().into_no_null_iter().collect();
    let users = u32s(&frame, "user").unwrap().into_iter().zip(u32s(&frame, "item").unwrap());
    let id = |(user, item)| (raw.log.users.get(user).to_string(), raw.log.items.get(item).to_string());
    users.map(id).zip(times.into_iter().zip(ratings)).map(|((u, i), (t, r))| (u, i, t, r)).collect()
}

fn expected(rows: &[(&str, &str, i64, f32)]) -> Vec<Event> {
    rows.iter().map(|(u, i, t, r)| (u.to_string(), i.to_string(), *t, *r)).collect()
}

fn title<'a>(raw: &'a RawDataset, item: &str) -> Option<&'a str> {
    raw.catalogue.title(raw.log.items.find(item).unwrap())
}

const REVIEWS_2014: &str = r##"{"reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "reviewerName": "J. \"Mc\" D", "helpful": [2, 3], "reviewText": "He is {having} a \/ time. \ud83d", "overall": 5.0, "summary": "Hymns", "unixReviewTime": 1252800000, "reviewTime": "09 13, 2009"}
{"reviewerID": "A1", "asin": "B000000001", "helpful": [0, 0], "reviewText": "", "overall": 1, "summary": "", "unixReviewTime": "1252886400", "reviewTime": ""}

{"reviewerID": "#oc-R1", "asin": "B000000002", "helpful": [0, 0], "overall": "4.0", "unixReviewTime": 1252972800.0}
"##;
const META_2014: &str = r#"{'asin': '0000013714', 'related': {'also_bought': ['B1', "B'2"]}, 'title': "Girl's \"Tutu\" &amp; caf\xe9", 'price': 3.17, 'salesRank': {'Toys & Games': 211836}, 'categories': [['Sports', 'Dance']]}
{'asin': 'B000000001', 'description': 'No title here', 'price': 1e-05}
{'asin': 'B999999999', 'title': 'Nobody met it'}
{'asin': 'B000000002', 'title': u'Two\u2019s', 'brand': None}
"#;

fn events_2014() -> Vec<Event> {
    expected(&[
        ("A2SUAM1J3GNN3B", "0000013714", 1_252_800_000_000, 5.0),
        ("A1", "B000000001", 1_252_886_400_000, 1.0),
        ("#oc-R1", "B000000002", 1_252_972_800_000, 4.0),
    ])
}

#[test]
fn reads_2014() {
    // Metadata first, gzipped: reviews are read before it all the same.
    let files = [("meta_X.json.gz", META_2014), ("reviews_X_5.json", REVIEWS_2014)];
    let folder = Folder::new(&files);
    let mut context = ReadContext::quiet();
    let raw = folder.read(&["meta_X.json.gz", "reviews_X_5.json"], None, &mut context).unwrap();
    assert_eq!(raw.format, "Amazon 2014 (reviews as JSON lines, metadata as Python literals)");
    assert_eq!(events(&raw), events_2014());
    assert_eq!(title(&raw, "0000013714"), Some("Girl's \"Tutu\" &amp; café"));
    assert_eq!((title(&raw, "B000000001"), title(&raw, "B000000002")), (None, Some("Two’s")));
    assert_eq!(raw.log.items.find("B999999999"), None);
    assert!(raw.log.timed && raw.log.rated);
    assert_eq!(context.inputs[0], FileDigest::from_bytes("reviews_X_5.json", REVIEWS_2014.as_bytes()));

    let ratings =
        "A2SUAM1J3GNN3B,0000013714,5.0,1252800000\nA1,B000000001,1.0,1252886400\n#oc-R1,B000000002,4.0,1252972800";
    let (raw, _) = read_all(&[("ratings_X.csv", ratings), ("meta.json", META_2014)], None, 0).unwrap();
    assert_eq!(raw.format, "Amazon 2014 (reviews as CSV, metadata as Python literals)");
    assert_eq!(events(&raw), events_2014());
}

const REVIEWS_2018: &str = r##"{"overall": 5.0, "vote": "2", "verified": true, "reviewTime": "09 13, 2009", "reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "style": {"Size:": " Large"}, "reviewText": "x", "unixReviewTime": 1252800000}
{"overall": 1.0, "verified": false, "reviewerID": "A1", "asin": "B000000001", "unixReviewTime": 1252886400}
{"overall": 4.0, "verified": false, "reviewerID": "#oc-R1", "asin": "B000000002", "unixReviewTime": 1252972800}
"##;
const META_2018: &str = r#"{"category": ["Office"], "tech1": "", "description": [], "title": "<span id=\"x\">var getTime = 1;</span>", "also_buy": [], "asin": "B000000001"}
{"category": ["Office"], "title": "A \/ &quot;B&quot; \u2019", "also_buy": [], "asin": "0000013714"}
{"category": ["Office"], "title": "A \/ &quot;B&quot; \u2019", "also_buy": [], "asin": "0000013714"}
{"category": ["Office"], "title": " ", "also_buy": [], "asin": "0000013714"}
{"category": ["Office"], "title": null, "also_buy": [], "asin": "B000000002"}
{"category": ["Office"], "also_buy": [], "asin": "B000000002"}
"#;

#[test]
fn reads_2018() {
    let (raw, _) = read_all(&[("Office.json", REVIEWS_2018), ("meta_Office.json.gz", META_2018)], None, 0).unwrap();
    assert_eq!(raw.format, "Amazon 2018 (reviews as JSON lines, metadata as JSON lines)");
    assert_eq!(events(&raw), events_2014());
    assert_eq!(title(&raw, "0000013714"), Some("A / &quot;B&quot; ’"));
    assert_eq!((title(&raw, "B000000001"), title(&raw, "B000000002")), (None, None));

    // The other order of columns.
    let ratings = "0000013714,A2SUAM1J3GNN3B,5.0,1252800000\r\nB000000001,A1,1.0,1252886400\r\nB000000002,#oc-R1,4.0,1252972800\r\n";
    let (raw, _) = read_all(&[("Office.csv", ratings), ("meta", META_2018)], None, 0).unwrap();
    assert_eq!(raw.format, "Amazon 2018 (reviews as CSV, metadata as JSON lines)");
    assert_eq!(events(&raw), events_2014());
}

const REVIEWS_2023: &str = r#"{"rating": 5.0, "title": "Such a lovely scent", "text": "t", "images": [], "asin": "B00YQ6X8EO", "parent_asin": "0000013714", "user_id": "A2SUAM1J3GNN3B", "timestamp": 1252800000123, "helpful_vote": 0, "verified_purchase": true}
{"rating": 0.0, "title": "", "asin": "B2", "parent_asin": "B000000001", "user_id": "A1", "timestamp": 1252886400000}
"#;
const META_2023: &str = r#"{"main_category": "All Beauty", "title": "Bath \u0026 Body", "average_rating": 4.8, "price": null, "details": {"asin": "no"}, "parent_asin": "0000013714", "bought_together": null}
{"main_category": null, "title": null, "parent_asin": "B000000001"}
"#;

#[test]
fn reads_2023() {
    let (raw, _) = read_all(&[("meta.jsonl", META_2023), ("X.jsonl.gz", REVIEWS_2023)], None, 0).unwrap();
    assert_eq!(raw.format, "Amazon 2023 (reviews as JSON lines, metadata as JSON lines)");
    let rows = expected(&[
        ("A2SUAM1J3GNN3B", "0000013714", 1_252_800_000_123, 5.0),
        ("A1", "B000000001", 1_252_886_400_000, 0.0),
    ]);
    assert_eq!(events(&raw), rows);
    assert_eq!((title(&raw, "0000013714"), title(&raw, "B000000001")), (Some("Bath & Body"), None));

    let rating_only = "user_id,parent_asin,rating,timestamp\nA2SUAM1J3GNN3B,0000013714,5.0,1252800000123\nA1,B000000001,0.0,1252886400000\n";
    let history = "user_id,parent_asin,rating,timestamp,history\nA2SUAM1J3GNN3B,0000013714,5.0,1252800000123,\nA1,B000000001,0.0,1252886400000,B1 B2\n";
    let no_header = rating_only.split_once('\n').unwrap().1;
    for csv in [rating_only, history, no_header] {
        let (raw, _) = read_all(&[("X.csv", csv), ("meta.jsonl", META_2023)], None, 0).unwrap();
        assert_eq!(raw.format, "Amazon 2023 (reviews as CSV, metadata as JSON lines)");
        assert_eq!(events(&raw), rows);
    }
}

#[test]
fn files_keep_their_order() {
    let line = |user: &str| {
        format!("{{\"reviewerID\": \"{user}\", \"asin\": \"B1\", \"overall\": 3, \"unixReviewTime\": 7}}\n")
    };
    let (first, second) = (line("z"), line("a") + &line("m"));
    let files = [("2.json", first.as_str()), ("meta", META_2014), ("1.json", &second)];
    let (raw, _) = read_all(&files, None, 0).unwrap();
    assert_eq!(events(&raw).into_iter().map(|e| e.0).collect::<Vec<_>>(), ["z", "a", "m"]);
    assert_eq!(raw.format, "Amazon 2014 (reviews as JSON lines, metadata as Python literals)");
}

#[test]
fn editions_do_not_mix() {
    let (text, code) = error(&[("a", REVIEWS_2018), ("b", META_2018), ("c", META_2014)], None);
    assert!(text.contains("/a is of Amazon 2018, but ") && text.contains("/c is of Amazon 2014: "), "{text}");
    assert_eq!(code, 2);
    let (text, _) = error(&[("a", META_2023), ("b", REVIEWS_2014)], None);
    assert!(text.contains("/a is of Amazon 2023, but ") && text.contains("/b is of Amazon 2014: "), "{text}");
    // Forced: the reviews of 2014 and 2018 are the same to us.
    let (raw, _) = read_all(&[("a", REVIEWS_2014), ("b", META_2018)], Some("2018"), 0).unwrap();
    assert_eq!(events(&raw), events_2014());
    let (text, code) = error(&[("a", REVIEWS_2014), ("b", META_2014)], Some("2015"));
    assert!(text.contains("`2015` is no format") && code == 2, "{text}");
    let (text, code) = error(&[("a", REVIEWS_2014), ("b", META_2014)], Some("2023"));
    assert!(text.contains("/a: line 1: column ") && text.contains("missing field `user_id`") && code == 1, "{text}");
}

#[test]
fn csv_that_could_be_either_needs_a_format() {
    let csv = "u,i,5,1252800000\n";
    let meta = "{\"asin\": \"i\", \"title\": \"T\"}\n";
    let (text, code) = error(&[("r.csv", csv), ("m", meta)], None);
    assert!(text.contains("/r.csv: 2014's user,item") && text.contains("option `format`") && code == 2, "{text}");
    for (format, user) in [("2014", "u"), ("2018", "i")] {
        let (raw, _) = read_all(&[("r.csv", csv), ("m", meta)], Some(format), 0).unwrap();
        assert_eq!(events(&raw)[0].0, user);
    }
    // Files beside it may tell.
    let (raw, _) = read_all(&[("r.csv", csv), ("m", META_2018)], None, 0).unwrap();
    assert_eq!(events(&raw)[0].0, "i");
}

#[test]
fn wrong_files_are_named() {
    let (text, code) = error(&[("m", META_2014)], None);
    assert!(text.contains("no review file") && code == 2, "{text}");
    let (text, code) = error(&[("r", REVIEWS_2014)], None);
    assert!(text.contains("no metadata file") && text.contains("titles") && code == 2, "{text}");
    for wrong in ["userId,movieId,rating,timestamp\n1,2,3,4\n", "u;i;5;1\n", "{\"a\": 1}\n", "[1]\n", "{\"asin", "\n"] {
        let (text, code) = error(&[("r", REVIEWS_2014), ("w.x", wrong), ("m", META_2014)], None);
        assert!(text.contains("/w.x: line 1 is neither") && text.contains("expected are") && code == 1, "{text}");
        assert!(!text.contains('\n'));
    }
    let (text, code) = error(&[("r", REVIEWS_2014), ("w.x", "\u{0}\u{1}"), ("m", META_2014)], None);
    assert!(text.contains("/w.x: binary data") && code == 1, "{text}");
    let (text, code) = error(&[("r", ""), ("m", META_2014)], None);
    assert!(text.contains("/r: the file is empty") && code == 1, "{text}");
    let (text, _) = error(&[("r", "user_id,parent_asin,timestamp\n"), ("m", META_2023)], None);
    assert!(text.contains("/r: line 1: column rating is missing"), "{text}");
}

#[test]
fn bad_rows_are_named_and_counted() {
    let good = REVIEWS_2014.lines().next().unwrap();
    let review = |line: &str| format!("{good}\n\n{line}\n{good}\n");
    let json = |user: &str, item: &str, rating: &str, time: &str| {
        format!("{{\"reviewerID\": {user}, \"asin\": {item}, \"overall\": {rating}, \"unixReviewTime\": {time}}}")
    };
    for (line, what) in [
        (good[..60].to_string(), "is the line cut?"),
        (json("\"u\"", "\"i\"", "5", "1") + "}", "trailing characters"),
        ("{\"reviewerID\": \"u\", \"overall\": 5, \"unixReviewTime\": 1}".into(), "missing field `asin`"),
        (json("null", "\"i\"", "5", "1"), "invalid type: null"),
        (json("\"\"", "\"i\"", "5", "1"), "the user id is empty"),
        (json("\"u\"", "\" \"", "5", "1"), "the item id is empty"),
        (json("\"u\"", "\"i\"", "\"NaN\"", "1"), "the rating is not a finite number"),
        (json("\"u\"", "\"i\"", "1e300", "1"), "the rating is not a finite number"),
        (json("\"u\"", "\"i\"", "\"five\"", "1"), "expected a number"),
        (json("\"u\"", "\"i\"", "5", "-1"), "timestamp -1 is not between"),
        (json("\"u\"", "\"i\"", "5", "1252800000000"), "is not between 1970 and 2100 in seconds"),
        (json("\"u\"", "\"i\"", "5", "1.5"), "unixReviewTime 1.5 is not a whole number"),
        (json("\"u\"", "\"i\"", "5", "1e40"), "is not a whole number"),
        ("{'reviewerID': 'u'}".into(), "key must be a string"),
    ] {
        let text = review(&line);
        let files = [("r", text.as_str()), ("m", META_2014)];
        let (message, code) = error(&files, None);
        assert!(message.contains("/r: line 3: ") && message.contains(what) && code == 1, "{line}: {message}");
        let (raw, skipped) = read_all(&files, None, 1).unwrap();
        assert_eq!((events(&raw).len(), skipped), (2, 1), "{line}");
    }
    for (line, what) in [
        ("A1,B000000001,5.0", "3 fields between commas, not 4"),
        ("A1,B000000001,5.0,1,1", "5 fields between commas, not 4"),
        ("A1,B000000001,x,1", "rating `x` is not a number"),
        ("A1,B000000001,inf,1", "the rating is not a finite number"),
        ("A1,B000000001,5,soon", "timestamp `soon` is not a number"),
        ("A1,B000000001,5,-7", "timestamp -7 is not between"),
        (",B000000001,5,7", "the user id is empty"),
    ] {
        let text = format!("A1,B000000001,5.0,1252886400\n{line}\n");
        let (message, _) = error(&[("r", &text), ("m", META_2014)], None);
        assert!(message.contains("/r: line 2: ") && message.contains(what), "{line}: {message}");
    }
    let good = META_2014.lines().next().unwrap();
    for (line, what) in [
        ("{'asin': 'B1', 'title': 'x", "column 25: a string does not end"),
        ("{'title': 'x'}", "not a dict with a text under `asin`"),
        ("['asin']", "not a dict with a text under `asin`"),
        ("{'asin': ''}", "the item id is empty"),
        ("{'asin': 'B1', 'title': 5}", "`title` is not a text"),
        ("{'asin': '0000013714', 'title': 'Other'}", "item 0000013714: two titles for one item: `Girl's \"Tutu\""),
    ] {
        let text = format!("{good}\n{line}\n");
        let files = [("m", text.as_str()), ("r", REVIEWS_2014)];
        let (message, _) = error(&files, None);
        assert!(message.contains("/m: line 2: ") && message.contains(what), "{line}: {message}");
        let (raw, skipped) = read_all(&files, None, 1).unwrap();
        assert_eq!((title(&raw, "0000013714").unwrap().len(), skipped), (25, 1), "{line}");
    }
    for (line, what) in [
        ("{\"title\": \"x\"}", "missing field `parent_asin`"),
        ("{\"parent_asin\": \"B1\", \"title\": [1]}", "invalid type"),
        ("{\"parent_asin\": \"B1\", \"title\": \"x", "is the line cut?"),
    ] {
        let text = format!("{META_2023}{line}\n");
        let (message, _) = error(&[("m", &text), ("r", REVIEWS_2023)], None);
        assert!(message.contains("/m: line 3: ") && message.contains(what), "{line}: {message}");
    }
    // A line that is broken from the start still tells what it is.
    let cut = &REVIEWS_2018[..150];
    let (message, _) = error(&[("r", cut), ("m", META_2018)], None);
    assert!(message.contains("/r: line 1: ") && message.contains("is the line cut?"), "{message}");
}

#[test]
fn random_bytes_never_panic() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("a"), dir.path().join("b")];
    for _ in 0..400 {
        for (path, texts) in
            paths.iter().zip([[REVIEWS_2014, REVIEWS_2018, REVIEWS_2023], [META_2014, META_2018, META_2023]])
        {
            let mut bytes = texts[rng.random_range(0..3)].as_bytes().to_vec();
            for _ in 0..rng.random_range(0..4) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..3) {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes[at] = rng.random(),
                    _ => bytes.insert(at, b"'\"\\{}[]:,\n"[rng.random_range(0..10)]),
                }
            }
            std::fs::write(path, bytes).unwrap();
        }
        let format = [None, Some("2014"), Some("2018"), Some("2023")][rng.random_range(0..4)].map(str::to_string);
        let options = ReadOptions {
            format,
            workspace: Workspace { memory: 1 << 30, scratch: std::env::temp_dir() },
            ..ReadOptions::default()
        };
        let mut context = ReadContext { skip_bad: rng.random_range(0..3), ..ReadContext::quiet() };
        if let Err(error) = read(&paths.each_ref().map(SourceFile::new), &options, &mut context) {
            assert!(!error.to_string().contains('\n'));
        }
    }
}
