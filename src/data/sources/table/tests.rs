use std::fs::File;
use std::io::Write;
use std::path::Path;

use polars::prelude::{Column, DataFrame, DataType, ParquetWriter, TimeUnit};

use super::*;
use crate::data::sources::options::TableOptions;
use crate::data::sources::testing::{events, folder, options, read_folder};

fn named(names: [&str; 6]) -> ReadOptions {
    let [user, item, time, rating, title, text] =
        names.map(|name| Some(name.to_string()).filter(|name| !name.is_empty()));
    ReadOptions { columns: Columns { user, item, time, title, rating, text }, ..options() }
}

fn error(files: &[(&str, &[u8])], options: &ReadOptions) -> String {
    let error = read_folder(folder(files).path(), read, options, 0).err().unwrap().to_string();
    assert!(!error.contains('\n'));
    error
}

fn write(path: &Path, columns: Vec<Column>) {
    let mut frame = DataFrame::new_infer_height(columns).unwrap();
    ParquetWriter::new(File::create(path).unwrap()).with_row_group_size(Some(50_000)).finish(&mut frame).unwrap();
}

/// A field that begins with a quote must not swallow the rows up to the next one.
#[test]
fn stray_quotes_are_errors() {
    let options = named(["u", "i", "t", "", "title", ""]);
    let rows: String = (0..40_000).map(|n| format!("u{n},i{n},{n},T{n}\n")).collect();
    for (what, stray) in [("a", "\"office chair"), ("b", "\"office\" chair"), ("c", "\"a\"\"b\" c")] {
        let csv = format!("u,i,t,title\n{rows}a,b,1,{stray}\n{rows}a,b,1,\"lamp\n{rows}");
        let message = error(&[("log.csv", csv.as_bytes())], &options);
        assert!(message.contains("log.csv: line 40002: ") && message.contains("closing quote"), "{what}: {message}");
        // They cost their own lines alone.
        let raw = read_folder(folder(&[("log.csv", csv.as_bytes())]).path(), read, &options, 2).unwrap();
        assert_eq!(events(&raw).len(), 120_000, "{what}");
        // A tab-separated file has no quotes.
        let tsv = csv.replace(',', "\t");
        let raw = read_folder(folder(&[("log.tsv", tsv.as_bytes())]).path(), read, &options, 0).unwrap();
        assert_eq!(events(&raw).len(), 120_002, "{what}");
    }
    let good = format!("u,i,t,title\n{rows}a,b,1,\"a\"\"b\"\r\n{rows}a,d,1,\"l\namp\"\nc,5\" nail,2,x\"y");
    let dir = folder(&[("log.csv", good.as_bytes())]);
    assert_eq!(events(&read_folder(dir.path(), read, &options, 0).unwrap()).len(), 80_003);
}

/// The same log and catalogue in all formats.
#[test]
fn formats_agree() {
    let options = named(["u", "i", "t", "r", "title", "text"]);
    let wanted = [("a", "1", 978_300_760_000, 4.5), ("b", "2", 978_300_761_000, 3.0), ("a", "2", 978_300_762_000, 1.0)]
        .map(|(user, item, time, rating)| (user.to_string(), item.to_string(), time, rating));
    let csv = "x,u,i,t,r\n0,a,1,978300760,4.5\n\n0,b,2,978300761.0,3\n0,\"a\",2,2000-12-31T22:12:42Z,1\n";
    let json = r#"{"u":"a","i":1,"t":978300760,"r":4.5,"x":{"y":[1,"z"]}}
{"r":"3","t":"978300761","i":"2","u":"\u0062","x":null}
{"u":"a","i":2,"t":978300762.0,"r":1,"u":"a"}
"#;
    let items = "i,title,text\n1,\"One,\n\"\"é\"\"\",about\n2, ,\n3,Three,x\n";
    let json_items = r#"{"i":1,"title":"One,\n\"é\"","text":"about"}
{"i":2,"title":null}"#;
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(csv.as_bytes()).unwrap();
    let (gz, zst) = (gz.finish().unwrap(), zstd::stream::encode_all(json.as_bytes(), 1).unwrap());
    let tsv = csv.replace(',', "\t").replace('"', "");
    let parquet = folder(&[]);
    let path = parquet.path().join("log[1].parquet");
    write(
        &path,
        vec![
            Column::new("u".into(), ["a", "b", "a"]),
            Column::new("i".into(), [1i32, 2, 2]),
            Column::new("t".into(), [978_300_760i64, 978_300_761, 978_300_762]),
            Column::new("r".into(), [4.5f32, 3.0, 1.0]),
        ],
    );
    let parquet = std::fs::read(&path).unwrap();
    for (name, log, format) in [
        ("1.csv", csv.as_bytes(), "CSV"),
        ("1.csv.gz", &gz, "CSV"),
        ("1.tsv", tsv.as_bytes(), "TSV"),
        ("1.json", json.as_bytes(), "JSON lines"),
        ("1.json.zst", &zst, "JSON lines"),
        ("log[1].parquet", &parquet, "Parquet"),
    ] {
        for (kind, items) in [("CSV", items), ("JSON lines", json_items)] {
            // The catalogue comes first by name, yet is read last.
            let dir = folder(&[("0.txt", items.as_bytes()), (name, log)]);
            let raw = read_folder(dir.path(), read, &options, 0).unwrap();
            assert_eq!(events(&raw), wanted, "{name}");
            assert_eq!((raw.log.timed, raw.log.rated), (true, true));
            assert_eq!((raw.catalogue.title(0), raw.catalogue.title(1)), (Some("One,\n\"é\""), None), "{name}");
            assert_eq!(raw.catalogue.attributes["text"], [Some("about".into())]);
            assert_eq!(raw.format, format!("{format}, times in seconds; catalogue: {kind}"));
        }
    }
}

#[test]
fn a_log_may_tell_titles() {
    let options = named(["u", "i", "", "", "title", ""]);
    let csv = b"u,i,title\na,1,One\na,2,\nb,1,One\nb,2,Two\nb,1,Other\nc,2,Two\n";
    let dir = folder(&[("f", csv)]);
    let raw = read_folder(dir.path(), read, &options, 0).unwrap();
    let users: String = events(&raw).iter().map(|(user, ..)| user.as_str()).collect();
    // A second title costs no event.
    assert_eq!((users.as_str(), raw.catalogue.title(0), raw.catalogue.title(1)), ("aabbbc", Some("One"), Some("Two")));
    assert_eq!(raw.catalogue.retitled_items(), 1);
    assert_eq!((raw.format.as_str(), raw.log.timed, raw.log.rated), ("CSV, no times", false, false));
    // A catalogue tells all titles, if there is one.
    let dir = folder(&[("f", b"u,i,title\na,1,One\na,3,Three\n"), ("g", b"i,title\n2,x\n1,Uno\n")]);
    let titles = |from: Option<TitleFrom>| {
        let table = TableOptions { title_from: from, ..TableOptions::default() };
        let raw = read_folder(dir.path(), read, &ReadOptions { table, ..options.clone() }, 0).unwrap();
        [0, 1].map(|item| raw.catalogue.title(item).map(str::to_string))
    };
    assert_eq!(titles(None), [Some("Uno".into()), None]);
    assert_eq!(titles(Some(TitleFrom::Catalogue)), [Some("Uno".into()), None]);
    assert_eq!(titles(Some(TitleFrom::Log)), [Some("One".into()), Some("Three".into())]);
}

#[test]
fn bad_rows_are_named() {
    let options = named(["u", "i", "t", "r", "", ""]);
    for (row, what) in [
        ("a,1,978300760", "line 3: 3 fields, the header has 4"),
        ("a;1;978300760;4", "line 3: 1 fields, the header has 4"),
        (",1,978300760,4", "line 3: no user"),
        ("a, ,978300760,4", "line 3: no item"),
        ("a,1,,4", "line 3: no time"),
        ("a,1,978300760,inf", "line 3: rating `inf` is not a finite number"),
        ("a,1,-5,4", "line 3: timestamp -5 is not between 1970 and 2100 in seconds"),
        ("u,i,t,r", "line 3: the header once more"),
        ("a,1,978300760,\"4", "line 3: a quoted field does not end"),
    ] {
        let text = error(&[("f", format!("u,i,t,r\nb,2,978300760,1\n{row}\n").as_bytes())], &options);
        assert!(text.contains(what), "{text}");
    }
    for (row, what) in [
        (
            r#"{"u":"a","i":1,"t":978300760,"r":4"#,
            "line 2: not a JSON object: EOF while parsing an object at column 34",
        ),
        (r#"[1]"#, "line 2: not a JSON object: invalid type: sequence, expected an object"),
        (r#"{"i":1,"t":978300760,"r":4}"#, "line 2: no user"),
        (r#"{"u":"","i":1,"t":978300760,"r":4}"#, "line 2: no user"),
        (r#"{"u":"a","i":1.5,"t":978300760,"r":4}"#, "line 2: the item is neither text nor a whole number"),
        (r#"{"u":"a","i":[1],"t":978300760,"r":4}"#, "line 2: the item is neither"),
        (r#"{"u":"a","i":1,"t":true,"r":4}"#, "line 2: the time is neither"),
        (r#"{"u":"a","i":1,"t":null,"r":4}"#, "line 2: no time"),
        (r#"{"u":"a","i":1,"t":978300760,"r":1e300}"#, "line 2: rating inf is not finite"),
    ] {
        let first = r#"{"u":18446744073709551615,"i":1,"t":978300760,"r":4}"#;
        let text = error(&[("f", format!("{first}\n{row}\n").as_bytes())], &options);
        assert!(text.contains(what), "{text}");
    }
}

/// Numbers of another unit than most of the file's, wherever they stand.
#[test]
fn mixed_units_are_errors() {
    let options = named(["u", "i", "t", "r", "", ""]);
    for (times, line, what) in [
        (["978300760", "978300761", "978300760000"], 4, "978300760000 is in milliseconds"),
        (["978300760", "978300761000", "978300760000"], 2, "978300760 is in seconds"),
    ] {
        let rows: String = times.iter().map(|time| format!("a,1,{time},\n")).collect();
        let text = error(&[("f", format!("u,i,t,r\n{rows}").as_bytes())], &options);
        assert!(text.contains(&format!("f: line {line}: time {what}")), "{text}");
        let rows: String =
            times.iter().map(|time| format!("{{\"u\":\"a\",\"i\":1,\"t\":{time},\"r\":null}}\n")).collect();
        let text = error(&[("f", rows.as_bytes())], &options);
        assert!(text.contains(&format!("f: line {}: time {what}", line - 1)), "{text}");
    }
    // Seconds and fractions of them; events without a rating are events.
    let csv = b"u,i,t,r\na,1,978300760.5,\nb,1,978300761,NULL\n";
    let json = b"{\"u\":\"a\",\"i\":1,\"t\":978300760.5,\"r\":null}\n{\"u\":\"b\",\"i\":1,\"t\":978300761}\n";
    for bytes in [&csv[..], json] {
        let json_needs_a_rating = [bytes, b"{\"u\":\"b\",\"i\":1,\"t\":978300762,\"r\":1}\n"].concat();
        let bytes = if bytes.starts_with(b"{") { &json_needs_a_rating } else { bytes };
        let raw = read_folder(folder(&[("f", bytes)]).path(), read, &options, 0).unwrap();
        let all = events(&raw);
        assert_eq!(
            all[..2],
            [("a".into(), "1".into(), 978_300_760_500, -1.0), ("b".into(), "1".into(), 978_300_761_000, -1.0)]
        );
    }
}

#[test]
fn parquet_times_types_and_rows() {
    let options = named(["u", "i", "t", "", "", ""]);
    let dir = folder(&[]);
    let path = dir.path().join("f.parquet");
    let rows = 200_000i64;
    let ids: Vec<i64> = (0..rows).collect();
    let seconds: Vec<i64> = ids.iter().map(|i| 978_300_760 + i).collect();
    let scaled = |by: i64| seconds.iter().map(|s| s * by).collect::<Vec<i64>>();
    let times = |values: Vec<i64>| Column::new("t".into(), values);
    let dates = |by: i64, unit| times(scaled(by)).cast(&DataType::Datetime(unit, None)).unwrap();
    for (time, format) in [
        (times(seconds.clone()), "Parquet, times in seconds"),
        (times(scaled(1000)), "Parquet, times in milliseconds"),
        (Column::new("t".into(), seconds.iter().map(|s| *s as f64).collect::<Vec<_>>()), "Parquet, times in seconds"),
        (Column::new("t".into(), seconds.iter().map(i64::to_string).collect::<Vec<_>>()), "Parquet, times in seconds"),
        (dates(1000, TimeUnit::Milliseconds), "Parquet, times as dates"),
        (dates(1_000_000, TimeUnit::Microseconds), "Parquet, times as dates"),
        (dates(1_000_000_000, TimeUnit::Nanoseconds), "Parquet, times as dates"),
    ] {
        write(&path, vec![Column::new("u".into(), &ids), Column::new("i".into(), &ids), time]);
        let raw = read_folder(dir.path(), read, &options, 0).unwrap();
        assert_eq!(raw.format, format);
        let all = events(&raw);
        assert_eq!(all.len(), rows as usize);
        for at in [0, 1, 49_999, 65_536, 199_999] {
            assert_eq!(all[at], (at.to_string(), at.to_string(), (978_300_760 + at as i64) * 1000, -1.0));
        }
    }
    let mut late = seconds.clone();
    late[150_000] = -1;
    write(&path, vec![Column::new("u".into(), &ids), Column::new("i".into(), &ids), times(late)]);
    let text = read_folder(dir.path(), read, &options, 0).err().unwrap().to_string();
    assert!(text.contains("f.parquet: row 150001: timestamp -1 is not between"), "{text}");
    assert_eq!(events(&read_folder(dir.path(), read, &options, 1).unwrap()).len(), 199_999);

    write(
        &path,
        vec![Column::new("u".into(), [Some("a"), None]), Column::new("i".into(), [1i64, 2]), times(vec![1, 2])],
    );
    let text = read_folder(dir.path(), read, &options, 0).err().unwrap().to_string();
    assert!(text.contains("row 2: no user"), "{text}");
    write(&path, vec![Column::new("u".into(), [1.5f64]), Column::new("i".into(), [1i64]), times(vec![1])]);
    let text = read_folder(dir.path(), read, &options, 0).err().unwrap().to_string();
    assert!(text.contains("column `u` holds fractions, but should hold text or whole numbers"), "{text}");
    write(&path, vec![Column::new("u".into(), [1i64]), Column::new("i".into(), [1i64])]);
    let text = read_folder(dir.path(), read, &options, 0).err().unwrap().to_string();
    assert!(text.contains("f.parquet: column `t` is missing; it has u, i"), "{text}");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let text = read_folder(dir.path(), read, &options, 0).err().unwrap().to_string();
    assert!(text.contains("f.parquet: "), "{text}");
}

#[test]
fn columns_and_usage() {
    let options = named(["u", "i", "t", "", "", ""]);
    let text = error(&[("f", b"user,i,t\na,1,2\n")], &options);
    assert!(text.contains("f: column `u` is missing; it has user, i, t"), "{text}");
    let text = error(&[("f", b"{\"u\":1,\"i\":2}\n")], &options);
    assert!(text.contains("f: column `t` is missing; it has i, u"), "{text}");
    let titled = named(["u", "i", "", "", "name", ""]);
    let text = error(&[("f", b"u,i,t\na,1,2\n")], &titled);
    assert!(text.contains("f: column `name` is missing, here as in all inputs"), "{text}");
    // No JSON object has the key; a blank title is one.
    let described = named(["u", "i", "", "", "name", "note"]);
    let lines: &[u8] = b"{\"u\":1,\"i\":2,\"name\":\"x\"}\n{\"u\":1,\"i\":3}\n";
    for (files, column) in [
        (vec![("f", lines)], "note"),
        (vec![("f", &b"u,i\na,2\n"[..]), ("items", &b"{\"i\":2,\"note\":\"x\"}\n"[..])], "name"),
    ] {
        let text = error(&files, &described);
        assert!(text.contains(&format!("f: column `{column}` is missing, here as in all inputs")), "{text}");
    }
    let blank = folder(&[("f", lines), ("items", b"{\"i\":2}\n{\"i\":3,\"note\":null}\n")]);
    let raw = read_folder(blank.path(), read, &described, 0).unwrap();
    assert_eq!((raw.catalogue.title(0), raw.catalogue.attributes.len()), (Some("x"), 0));
    for (files, format, columns, what) in [
        (vec![("f", &b"i,name\n1,x\n"[..])], None, &titled, "no log among the inputs"),
        (vec![("f", b"u,i\na,1\n")], Some("xml"), &titled, "use csv, tsv, jsonl, python or parquet"),
        (vec![("f", b"u,i\na,1\n")], None, &named(["u", "", "", "", "", ""]), "name the columns"),
    ] {
        let dir = folder(&files);
        let options = ReadOptions { format: format.map(str::to_string), ..columns.clone() };
        let error = read_folder(dir.path(), read, &options, 0).err().unwrap();
        assert!(error.exit_code() == 2 && error.to_string().contains(what), "{error}");
    }
    // A header with more commas than tabs, read as what the user says it is.
    let forced = ReadOptions { format: Some("tsv".into()), ..named(["u,,", "i", "", "", "", ""]) };
    assert_eq!(events(&read_folder(folder(&[("f", b"u,,\ti\na\t1\n")]).path(), read, &forced, 0).unwrap()).len(), 1);
}
