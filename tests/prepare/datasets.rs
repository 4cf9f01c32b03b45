//! The commands of `docs/guide/datasets.md`, each on small files of the shape of its data set.

use std::collections::BTreeMap;
use std::fs;

use crate::common::{itemlm, root};

/// Users 1 and 2 meet items 1 to 5 one after the other.
fn rows(row: impl Fn(usize, usize, usize) -> String) -> String {
    (0..10).map(|n| row(1 + n % 2, 1 + n / 2, 10 + n)).collect()
}

fn items(row: impl Fn(usize) -> String) -> String {
    (1..=5).map(row).collect()
}

/// Beginnings of files, as they are published. Each has users 1 and 2 (or u1, u2) and items 1 to 5.
fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let gz = |text: String| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let with = |header: &str, rows: String| format!("{header}\n{rows}").into_bytes();
    let latin1 = |text: String| text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect::<Vec<u8>>();
    let day = |n: usize| format!("2014-05-{n}");
    BTreeMap::from([
        ("yelp_academic_dataset_review.json", rows(|u, i, n| format!("{{\"review_id\":\"r\",\"user_id\":\"u{u}\",\"business_id\":\"{i}\",\"stars\":4.0,\"useful\":0,\"text\":\"\\\"x\\\"\\n\",\"date\":\"{} 16:53:21\"}}\n", day(n))).into_bytes()),
        ("yelp_academic_dataset_business.json", items(|i| format!("{{\"business_id\":\"{i}\",\"name\":\"Café {i}\",\"attributes\":{{\"x\":\"{{'a': True}}\"}},\"hours\":null}}\n")).into_bytes()),
        ("goodreads_interactions.json.gz", gz(rows(|u, i, n| format!("{{\"user_id\": \"u{u}\", \"book_id\": \"{i}\", \"review_id\": \"r\", \"is_read\": true, \"rating\": 3, \"date_added\": \"Tue May {n} 16:53:21 -0700 2014\", \"read_at\": \"\"}}\n").replace("Tue", ["Sat", "Sun", "Mon", "Tue", "Wed", "Thu", "Fri"][(n - 10) % 7])))),
        ("goodreads_books.json.gz", gz(items(|i| format!("{{\"isbn\": \"\", \"series\": [], \"book_id\": \"{i}\", \"title\": \"Book {i}\", \"title_without_series\": \"x\"}}\n")))),
        ("goodreads_interactions.csv", with("user_id,book_id,is_read,rating,is_reviewed", rows(|u, i, _| format!("{u},{i},1,0,0\n")))),
        ("big_matrix.csv", with("user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio", rows(|u, i, n| format!("{u},{i},1,2,2020-07-05 00:08:23.438,20200705,15938789{n}.438,1.27\n")))),
        ("kuairec_caption_category.csv", with("video_id,manual_cover_text,caption,topic_tag", items(|i| format!("{i},UNKNOWN,\"#x, {i}\",[]\n")))),
        ("userid-timestamp-artid-artname-traid-traname.tsv", rows(|u, i, n| format!("user_00000{u}\t{}T16:53:21Z\ta{i}\tThe \"Artist {i}\t\tSong\n", day(n))).into_bytes()),
        ("user_taggedartists-timestamps.dat", with("userID\tartistID\ttagID\ttimestamp", rows(|u, i, n| format!("{u}\t{i}\t13\t12385369000{n}\n")))),
        ("artists.dat", with("id\tname\turl\tpictureURL", items(|i| format!("{i}\tMALICE {i}\thttp://x\thttp://y\n")))),
        ("steam_reviews.json.gz", gz(rows(|u, i, n| format!("{{u'username': u'u{u}', u'hours': 1.0, u'product_id': u'{i}', u'date': u'{}', u'text': u'It\\'s \\u2019'}}\n", day(n))))),
        ("steam_games.json.gz", gz(items(|i| format!("{{u'publisher': u'P', u'genres': [u'Action'], u'app_name': u'Game {i}', u'id': u'{i}', u'price': 4.99}}\n")))),
        ("steam-200k.csv", rows(|u, i, _| format!("{u},\"Game, {i}\",play,2.0,0\n")).into_bytes()),
        ("2019-Oct.csv", with("event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session", rows(|u, i, n| format!("2019-10-{n} 00:00:00 UTC,view,{i},2103807459595387724,electronics.{i},,35.79,{u},s\n")))),
        ("ta_feng_all_months_merged.csv", with("\"TRANSACTION_DT\",\"CUSTOMER_ID\",\"AGE_GROUP\",\"PIN_CODE\",\"PRODUCT_SUBCLASS\",\"PRODUCT_ID\",\"AMOUNT\",\"ASSET\",\"SALES_PRICE\"", rows(|u, i, n| format!("\"11/{n}/2000\",\"0110485{u}\",\"45-49\",\"115\",\"11041{i}\",\"471019941220{i}\",\"2\",\"24\",\"30\"\n")))),
        ("BX-Book-Ratings.csv", latin1(format!("\"User-ID\";\"ISBN\";\"Book-Rating\"\n{}", rows(|u, i, _| format!("\"{u}\";\"034545104{i}\";\"0\"\n"))))),
        ("BX-Books.csv", latin1(format!("\"ISBN\";\"Book-Title\";\"Book-Author\";\"Year\"\n{}", items(|i| format!("\"034545104{i}\";\"Café; \\\"{i}\\\" &amp; more\";\"A\";\"2002\"\n"))))),
        ("transactions_train.csv", with("t_dat,customer_id,article_id,price,sales_channel_id", rows(|u, i, n| format!("2018-09-{n},0000{u}dbacae5abe,066371300{i},0.0508,2\n")))),
        ("articles.csv", with("article_id,product_code,prod_name,detail_desc", items(|i| format!("066371300{i},663713,Top {i},\"Strap, \"\"x\"\".\"\n")))),
        ("behaviors.tsv", rows(|u, i, n| format!("{n}\tU{u}\t11/{n}/2019 9:05:58 AM\tN9 N8\tN{i}-1 N7-0\n")).into_bytes()),
        ("news.tsv", items(|i| format!("N{i}\tnews\tx\t\"Quoted, {i}, and so on\tAn abstract, with, commas\thttps://x\t[{{\"Label\": \"A\", \"Type\": \"P\"}}]\t[]\n")).into_bytes()),
        ("yoochoose-clicks.dat", rows(|u, i, n| format!("{u},{}T10:51:09.277Z,21453650{i},0\n", day(n))).into_bytes()),
        ("loc-gowalla_totalCheckins.txt.gz", gz(rows(|u, i, n| format!("{u}\t{}T23:55:27Z\t30.2359091167\t-97.7951395833\t2284{i}\n", day(n))))),
        ("combined_data_1.txt", (1..=5).map(|i| format!("{i}:\n1,3,2005-09-{0}\n2,5,2005-09-{0}\n", 10 + i)).collect::<String>().into_bytes()),
        ("movie_titles.csv", latin1(items(|i| format!("{i},2003,Dinosaur Pl\u{e4}net, \"{i}\", The\n")))),
        ("rating.csv", with("user_id,anime_id,rating", rows(|u, i, _| format!("{u},{i},-1\n")))),
        ("anime.csv", with("anime_id,name,genre,type,episodes,rating,members", items(|i| format!("{i},Kimi no Na wa {i}.,\"Drama, Romance\",Movie,1,9.37,200630\n")))),
        ("ratings.csv", with("user_id,book_id,rating", rows(|u, i, _| format!("{u},{i},5\n")))),
        ("books.csv", with("book_id,goodreads_book_id,authors,title", items(|i| format!("{i},27670{i},\"A, B\",\"The \
                                                                                         Games, #{i}\"\n")))),
        ("events.csv", with("timestamp,visitorid,event,itemid,transactionid", rows(|u, i, n| format!("14332217{n}000,{u},view,{i},\n")))),
    ])
}

/// Splits a command as a shell does: blanks between words, single quotes around some.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn published_data_sets_are_read() {
    let page = fs::read_to_string(root().join("docs/guide/datasets.md")).unwrap();
    let commands: Vec<&str> = page.split('`').filter(|part| part.starts_with("itemlm prepare ")).collect();
    assert_eq!(commands.len(), 19);
    let files = files();
    let mut used = 0;
    for command in commands {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        // Two users of five events each, and five items of two: smaller than the page's 5-core.
        put("loo.toml", b"steps = [{ step = \"titled\" }]\nsplit = { protocol = \"leave_one_out\" }\n");
        put("msl.toml", b"steps = [{ step = \"titled\" }]\nsplit = { protocol = \"msl\" }\n");
        let mut words = words(command);
        for word in &words {
            if let Some(bytes) = files.get(word.as_str()) {
                put(word, bytes);
                used += 1;
            }
        }
        if !words.iter().any(|word| word == "--config") {
            words.extend(["--config".into(), "msl.toml".into()]);
        }
        let output = itemlm(dir.path()).args(&words[1..]).arg("--json").output().unwrap();
        assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let counts = ["users", "items", "interactions"].map(|key| report[key].as_u64().unwrap());
        assert_eq!(counts, [2, 5, 10], "{command}\n{report}");
        assert!(!report["warnings"].to_string().contains("1990"), "{command}\n{report}");
    }
    assert_eq!(used, files.len());
}
