//! One log, written as its owners would have published it, quirks included.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use itemlm::data::{Columns, Encoding, Source, TableOptions};
use polars::prelude::{Column, DataFrame, ParquetWriter};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::dialect::{Dialect, Times};
use crate::format::Format;
use crate::reference::{Event, Log};

impl Format {
    /// Writes the log to files of `dir`; the inputs to name on the command line, and what to say of
    /// a table.
    pub fn write(self, log: &Log, dir: &Path, rng: &mut ChaCha8Rng) -> WrittenInput {
        let (mut table, mut columns) = (TableOptions::default(), self.columns());
        let mut files = Files { dir, rng, written: Vec::new(), table: &mut table, columns: &mut columns };
        match self {
            Self::Amazon2014 | Self::Amazon2018 | Self::Amazon2023 => files.amazon(log, self),
            Self::MovieLens1M | Self::MovieLens10M => files.movielens_dat(log, self == Self::MovieLens1M),
            Self::MovieLens100K => files.movielens_100k(log),
            Self::MovieLensLatest => files.movielens_csv(log),
            Self::OpenP5 => files.openp5(log),
            Self::Csv => files.table(log, false),
            Self::Tsv => files.table(log, true),
            Self::JsonLines => files.table_json(log),
            Self::Parquet => files.table_parquet(log),
        }
        let inputs = match self.source() {
            Source::Movielens | Source::Openp5 => vec![dir.to_path_buf()],
            _ => files.written,
        };
        WrittenInput { inputs, table, columns }
    }
}

/// The written files, and the options to read them.
#[derive(Clone)]
pub struct WrittenInput {
    pub inputs: Vec<PathBuf>,
    pub table: TableOptions,
    pub columns: Columns,
}

struct Files<'a> {
    dir: &'a Path,
    rng: &'a mut ChaCha8Rng,
    written: Vec<PathBuf>,
    table: &'a mut TableOptions,
    columns: &'a mut Columns,
}

impl Files<'_> {
    fn yes(&mut self) -> bool {
        self.rng.random_bool(0.5)
    }

    fn put(&mut self, name: &str, bytes: &[u8]) {
        let path = self.dir.join(name);
        fs::write(&path, bytes).unwrap();
        self.written.push(path);
    }

    /// Writes a file plain, as gzip (of one or two members) or as zstd, whatever its name says.
    fn packed(&mut self, name: &str, bytes: &[u8]) {
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        match self.rng.random_range(0..4) {
            0 => self.put(name, bytes),
            1 => self.put(&format!("{name}.gz"), &gzip(bytes)),
            2 => {
                let (a, b) = bytes.split_at(bytes.len() / 3);
                self.put(&format!("{name}.gz"), &[gzip(a), gzip(b)].concat());
            }
            _ => self.put(&format!("{name}.zst"), &zstd::encode_all(bytes, 1).unwrap()),
        }
    }

    /// Lines with either line end, the last one perhaps without.
    fn lines(&mut self, lines: &[String]) -> Vec<u8> {
        let end = if self.yes() { "\n" } else { "\r\n" };
        let mut text = lines.join(end);
        if self.yes() {
            text += end;
        }
        text.into_bytes()
    }

    /// Returns the catalogue in a random order, with items that no event has.
    fn catalogue(&mut self, log: &Log, numeric: bool) -> Vec<(String, Option<String>)> {
        let mut ids: Vec<String> = log.events.iter().map(|e| e.item.clone()).collect();
        ids.sort();
        ids.dedup();
        let mut items: Vec<(String, Option<String>)> =
            ids.into_iter().map(|id| (id.clone(), log.titles.get(&id).cloned())).collect();
        let unmet = if numeric { "987654" } else { "UNMET" };
        items.push((unmet.into(), Some("Nobody met this (1901)".into())));
        items.shuffle(self.rng);
        items
    }

    fn amazon(&mut self, log: &Log, format: Format) {
        let review = |e: &Event, number: usize| {
            let seconds = e.time.unwrap().div_euclid(1000);
            match format {
                Format::Amazon2014 => json!({
                    "reviewerID": e.user, "asin": e.item, "reviewerName": "J. \"Doe\" \u{fc}", "helpful": [0, number],
                    "reviewText": "title: 'no', \"asin\": \"not this\" \\ \n {\"unixReviewTime\": 5}", "overall": e.rating,
                    "summary": "no title of the item", "unixReviewTime": seconds, "reviewTime": "09 13, 2009"
                }),
                Format::Amazon2018 => json!({
                    "overall": e.rating, "vote": "1,204", "verified": true, "reviewTime": "09 1, 2016", "reviewerID": e.user,
                    "asin": e.item, "style": {"Format:": " Hardcover", "asin": "B0"}, "reviewerName": "N",
                    "reviewText": "5 stars \u{2605}", "summary": "no title", "unixReviewTime": seconds, "image": ["https://x/y.jpg"]
                }),
                _ => json!({
                    "rating": e.rating, "title": format!("review {number}, no title of the item"), "text": "t", "images": [],
                    "asin": format!("VARIANT{number}"), "parent_asin": e.item, "user_id": e.user, "timestamp": e.time,
                    "helpful_vote": 0, "verified_purchase": true
                }),
            }
        };
        let reviews: Vec<String> = log.events.iter().enumerate().map(|(i, e)| review(e, i).to_string()).collect();
        let mut metadata = Vec::new();
        for (id, title) in self.catalogue(log, false) {
            let line = match (format, &title) {
                // Some items are not described at all, some without a title.
                (_, None) if self.yes() => continue,
                (Format::Amazon2014, _) => self.python_metadata(&id, title.as_deref()),
                (Format::Amazon2018, _) => json!({
                    "category": ["A"], "tech1": "", "description": ["title"], "fit": "", "title": title.unwrap_or_default(),
                    "also_buy": [], "brand": "", "rank": ["1"], "details": {"title": "x"}, "price": "$1", "asin": id, "main_cat": "B"
                })
                .to_string(),
                _ => json!({
                    "main_category": "Books", "title": title, "average_rating": 4.5, "rating_number": 3, "features": [],
                    "description": [], "price": null, "images": [{"title": "an image"}], "store": null, "categories": ["C"],
                    "details": {"title": "x"}, "parent_asin": id, "bought_together": null
                })
                .to_string(),
            };
            metadata.push(line.clone());
            if self.yes() {
                metadata.push(line); // 2018's metadata have thousands of lines twice.
            }
        }
        let metadata_first = self.yes();
        let metadata = self.lines(&metadata);
        if metadata_first {
            self.packed("meta_Toys.json", &metadata);
        }
        let cut = self.rng.random_range(0..reviews.len());
        for (name, part) in [("reviews_a.json", &reviews[..cut]), ("reviews_b.json", &reviews[cut..])] {
            if !part.is_empty() {
                let bytes = self.lines(part);
                self.packed(name, &bytes);
            }
        }
        if !metadata_first {
            self.packed("meta_Toys.json", &metadata);
        }
    }

    /// Returns a line as Python 2's `str` of a dictionary wrote it.
    fn python_metadata(&mut self, id: &str, title: Option<&str>) -> String {
        let mut entries = vec![
            format!("'asin': {}", self.python(id)),
            format!("'categories': [['Toys & Games', {}], ['B']]", self.python("It's")),
            "'salesRank': {'Toys & Games': 211836}, 'price': 9.99, 'new': True, 'none': None, 't': (1, -2.5e-3)"
                .to_string(),
            format!("'description': {}", self.python("Three\nlines, \"title\": 'no'\t\\")),
            "'related': {'also_bought': ['0000031895', 'B00JHONN1S'], 'title': 'no'}".to_string(),
        ];
        if let Some(title) = title {
            entries.push(format!("'title': {}", self.python(title)));
        }
        entries.shuffle(self.rng);
        format!("{{{}}}", entries.join(", "))
    }

    /// Returns Python's `repr` of a text, with characters outside of ASCII escaped in one of
    /// Python's ways, or as they are.
    fn python(&mut self, text: &str) -> String {
        let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
        let mut literal = String::from(quote);
        for c in text.chars() {
            match c {
                '\n' => literal += "\\n",
                '\t' => literal += "\\t",
                '\\' => literal += "\\\\",
                c if c == quote => literal.extend(['\\', c]),
                c if c.is_ascii() => literal.push(c),
                c => match self.rng.random_range(0..3) {
                    0 if (c as u32) < 256 => literal += &format!("\\x{:02x}", c as u32),
                    0 | 1 if (c as u32) < 65536 => literal += &format!("\\u{:04x}", c as u32),
                    0 | 1 => literal += &format!("\\U{:08x}", c as u32),
                    _ => literal.push(c),
                },
            }
        }
        literal.push(quote);
        literal
    }

    fn movielens_dat(&mut self, log: &Log, one_million: bool) {
        // 1M is latin-1, 10M is UTF-8 and has half stars and tags.
        let encode = |bytes: Vec<u8>| if one_million { latin1(&String::from_utf8(bytes).unwrap()) } else { bytes };
        let rating = |e: &Event| format!("{}::{}::{}::{}", e.user, e.item, stars(e), e.time.unwrap().div_euclid(1000));
        let ratings = self.lines(&log.events.iter().map(rating).collect::<Vec<_>>());
        self.put("ratings.dat", &ratings);
        let catalogue = self.catalogue(log, true).into_iter();
        let movies: Vec<String> =
            catalogue.filter_map(|(id, t)| Some(format!("{id}::{}::Drama|Children's", t?))).collect();
        let movies = self.lines(&movies);
        self.put("movies.dat", &encode(movies));
        if one_million {
            self.put("users.dat", b"1::F::1::10::48067\n");
        } else {
            self.put("tags.dat", b"15::4973::excellent!::1215184630\n");
        }
        self.put("README", b"SUMMARY\n");
    }

    fn movielens_100k(&mut self, log: &Log) {
        let rating = |e: &Event| format!("{}\t{}\t{}\t{}", e.user, e.item, stars(e), e.time.unwrap().div_euclid(1000));
        let ratings = self.lines(&log.events.iter().map(rating).collect::<Vec<_>>());
        self.put("u.data", &ratings);
        let flags = ["0"; 19].join("|");
        let catalogue = self.catalogue(log, true).into_iter();
        let movie = |(id, t): (String, Option<String>)| {
            Some(format!("{id}|{}|01-Jan-1995||http://us.imdb.com/M/?a|{flags}", t?))
        };
        let movies = self.lines(&catalogue.filter_map(movie).collect::<Vec<_>>());
        self.put("u.item", &latin1(&String::from_utf8(movies).unwrap()));
        self.put("u.user", b"1|24|M|technician|85711\n");
        self.put("u.genre", b"unknown|0\nAction|1\n");
    }

    fn movielens_csv(&mut self, log: &Log) {
        let mut ratings = vec!["userId,movieId,rating,timestamp".to_string()];
        let seconds = |e: &Event| e.time.unwrap().div_euclid(1000);
        ratings.extend(log.events.iter().map(|e| format!("{},{},{:.1},{}", e.user, e.item, stars(e), seconds(e))));
        let ratings = self.lines(&ratings);
        self.put("ratings.csv", &ratings);
        let mut movies = vec!["movieId,title,genres".to_string()];
        for (id, title) in self.catalogue(log, true) {
            let Some(title) = title else { continue };
            let field = self.csv_field(&title, b',');
            movies.push(format!("{id},{field},Comedy|Sci-Fi"));
        }
        let movies = self.lines(&movies);
        self.put("movies.csv", &movies);
        let item = log.events[0].item.as_str();
        let tags = format!("userId,movieId,tag,timestamp\n15,{item},\"sandra 'boring' \"\"b\"\", x\",1138537770\n");
        self.put("tags.csv", tags.as_bytes());
        self.put("links.csv", format!("movieId,imdbId,tmdbId\n{item},0114709,\n").as_bytes());
    }

    /// Sequences are in time order already.
    fn openp5(&mut self, log: &Log) {
        let mut events: Vec<&Event> = log.events.iter().collect();
        events.sort_by_key(|e| e.time);
        let mut users: Vec<&str> = events.iter().map(|e| e.user.as_str()).collect();
        users.sort_unstable();
        users.dedup();
        users.shuffle(self.rng);
        let mut sequences = Vec::new();
        for user in users {
            let own = events.iter().filter(|e| e.user == user).map(|e| e.item.as_str());
            sequences.push(format!("{user} {}", own.collect::<Vec<_>>().join(" ")));
        }
        let sequences = self.lines(&sequences);
        self.put("user_sequence.txt", &sequences);
        let catalogue = self.catalogue(log, false);
        let named = |f: &dyn Fn(usize, &str) -> String| {
            catalogue.iter().enumerate().map(|(i, (id, _))| f(i, id)).collect::<Vec<_>>()
        };
        let random = named(&|i, id| format!("{id} {}", 1001 + i));
        let collaborative = named(&|i, id| format!("{id} <CI{}><CI{i}>", i % 3));
        let titles = catalogue.iter().filter_map(|(id, title)| Some(format!("{id}\t{}", title.as_deref()?)));
        let titles = self.lines(&titles.collect::<Vec<_>>());
        self.put("asin_title.tsv", &titles);
        let (random, collaborative) = (self.lines(&random), self.lines(&collaborative));
        self.put("item_random_indexing.txt", &random);
        self.put("item_sequential_indexing_original.txt", &random);
        self.put("item_collaborative_indexing_500_20_sequential.txt", &collaborative);
    }

    fn csv_field(&mut self, text: &str, delimiter: u8) -> String {
        let needed = text.contains([char::from(delimiter), '"', '\n', '\r']);
        if needed || self.yes() { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
    }

    /// Writes a field of a dialect: in quotes, with escapes, or as it is.
    fn field(&mut self, text: &str, dialect: &Dialect) -> String {
        let special = [dialect.delimiter, dialect.quote.unwrap_or('\n'), '\n', '\r', dialect.escape.unwrap_or('\n')];
        match (dialect.quote, dialect.escape) {
            (None, _) => text.to_string(),
            (Some(quote), None) if text.contains(special) || self.yes() => {
                format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")))
            }
            (Some(quote), Some(escape)) if text.contains(special) || self.yes() => {
                let escaped = text.replace(escape, &format!("{escape}{escape}"));
                format!("{quote}{}{quote}", escaped.replace(quote, &format!("{escape}{quote}")))
            }
            _ => text.to_string(),
        }
    }

    /// Writes a table of a random dialect, with times of a random form, and the options that it
    /// needs.
    fn table(&mut self, log: &Log, tabs: bool) {
        let dialect = Dialect::random(tabs, log, self.rng);
        let times = Times::random(true, self.rng);
        let d = dialect.delimiter;
        let mut lines = Vec::new();
        if dialect.header {
            lines.push(["what", "note", "who", "stars", "called", "when"].join(&d.to_string()));
        } else {
            self.table.names = vec!["what,note,who,stars,called,when".into()];
        }
        for e in &log.events {
            let title = log.titles.get(&e.item).map_or("", String::as_str);
            let when = times.text(e.time.unwrap());
            // Ids may have spaces around them.
            let user = if self.yes() { e.user.clone() } else { format!(" {} ", e.user) };
            let [user, item, note, title, when] =
                [&user, &e.item, "a note, \"quoted\"", title, &when].map(|text: &str| self.field(text, &dialect));
            lines.push(format!("{item}{d}{note}{d}{user}{d}{}{d}{title}{d}{when}", stars(e)));
        }
        let text = String::from_utf8(self.lines(&lines)).unwrap();
        let bytes = match dialect.encoding {
            None if self.yes() => [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            None => text.into_bytes(),
            Some(Encoding::Utf16) => {
                let mark = self.yes().then_some(0xfeff);
                mark.into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
            }
            Some(_) => latin1(&text),
        };
        self.table.encoding = dialect.encoding;
        if !tabs && d != ',' {
            self.table.delimiter = Some(d.to_string());
        }
        self.table.escape = dialect.escape.map(String::from);
        match dialect.quote {
            Some('"') if !tabs => {}
            None if tabs => {}
            quote => self.table.quote = Some(quote.map_or("none".into(), String::from)),
        }
        times.say(self.table);
        self.packed(if tabs { "log.tsv" } else { "log.csv" }, &bytes);
    }

    fn table_json(&mut self, log: &Log) {
        let times = Times::random(false, self.rng);
        let nested = self.yes();
        let wrapped = self.yes();
        let row = |e: &Event| {
            let title = log.titles.get(&e.item);
            let item = if wrapped { json!({"$oid": e.item}) } else { json!(e.item) };
            let when = times.json(e.time.unwrap());
            let mut row = json!({"x": {"who": 1}, "what": item, "when": when, "called": title, "stars": e.rating});
            let user = if nested { ("by", json!({"who": e.user, "n": [1]})) } else { ("who", json!(e.user)) };
            row[user.0] = user.1;
            row
        };
        let rows: Vec<String> = log.events.iter().map(|e| row(e).to_string()).collect();
        let bytes = self.lines(&rows);
        times.say(self.table);
        if nested {
            self.columns.user = Some("by.who".into());
        }
        self.packed("log.jsonl", &bytes);
    }

    fn table_parquet(&mut self, log: &Log) {
        let texts = |of: &dyn Fn(&Event) -> String| log.events.iter().map(of).collect::<Vec<String>>();
        let titles: Vec<Option<&str>> =
            log.events.iter().map(|e| log.titles.get(&e.item).map(String::as_str)).collect();
        let times: Vec<i64> = log.events.iter().map(|e| e.time.unwrap().div_euclid(1000)).collect();
        let columns = vec![
            Column::new("who".into(), texts(&|e| e.user.clone())),
            Column::new("what".into(), texts(&|e| e.item.clone())),
            Column::new("when".into(), times),
            Column::new("called".into(), titles),
            Column::new("stars".into(), log.events.iter().map(|e| e.rating).collect::<Vec<Option<f32>>>()),
        ];
        let mut bytes = Vec::new();
        ParquetWriter::new(&mut bytes).finish(&mut DataFrame::new_infer_height(columns).unwrap()).unwrap();
        self.put("log.parquet", &bytes);
    }
}

fn stars(event: &Event) -> f32 {
    event.rating.unwrap()
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c as u32).expect("a latin-1 text")).collect()
}
