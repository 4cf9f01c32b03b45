use super::*;

fn read(text: &[u8], skip_bad: u64) -> Result<Vec<(u64, Vec<String>)>> {
    let dir = tempfile::tempdir().unwrap();
    let file = SourceFile::new(dir.path().join("f.csv"));
    std::fs::write(file.path(), text).unwrap();
    let mut context = ReadContext::quiet();
    context.skip_bad = skip_bad;
    let mut all = Vec::new();
    DelimitedFile::open(&file, Dialect::CSV)?.read(
        &mut context,
        |line, record, rows: &mut Vec<_>| {
            if record.get(0) == "bad" {
                return Err("it is bad".to_string());
            }
            rows.push((line, [0, 1].map(|at| record.get(at).to_string()).to_vec()));
            Ok(())
        },
        |_, rows| {
            all.extend(rows);
            Ok(())
        },
    )?;
    Ok(all)
}

#[test]
fn records_know_their_lines() {
    let row = |line, fields: [&str; 2]| (line, fields.map(str::to_string).to_vec());
    for end in ["\n", "\r\n"] {
        let text = "\u{feff}a,b\n1,\"x\ny, \"\"z\"\"\"\n\n\n2,é\n\"3\",".replace('\n', end);
        let wanted = [row(2, ["1", &format!("x{end}y, \"z\"")]), row(6, ["2", "é"]), row(7, ["3", ""])];
        assert_eq!(read(text.as_bytes(), 0).unwrap(), wanted, "{end:?}");
        assert_eq!(read(format!("{text}{end}").as_bytes(), 0).unwrap(), wanted, "{end:?}");
    }
    let many: String = (0..200_000).map(|i| format!("{i},x\n")).collect();
    let rows = read(format!("a,b\n{many}").as_bytes(), 0).unwrap();
    assert!(rows.iter().zip(0..).all(|((line, row), i)| *line == i + 2 && row[0] == i.to_string()));
    assert_eq!(rows.len(), 200_000);
}

#[test]
fn bad_records_name_their_line() {
    for (text, what) in [
        (&b"a,b\n1,2\n\n3\n"[..], "line 4: 1 fields, the header has 2"),
        (b"a,b\r\n1,2\r\n\r\nbad,2\r\n", "line 4: it is bad"),
        (b"a,b\n1,2\n1,\"2\n2\"\nx,\xff\n", "line 5: not UTF-8"),
        (b"a,b\n1,2\n1,\"2\n3,4\n", "line 3: a quoted field does not end"),
        (b"a,b\n1,2\n1,\"2", "line 3: a quoted field does not end"),
        (b"\n\n", "no header"),
        (b"a\xff,b\n", "line 1: not UTF-8"),
    ] {
        let error = read(text, 0).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let kept = read(b"a,b\nbad,1\n1\nx,\xff\n1,2\n", 3).unwrap();
    assert_eq!(kept, [(5, vec!["1".to_string(), "2".to_string()])]);
    assert!(read(b"a,b\nbad,1\n1\nx,\xff\n1,2\n", 2).unwrap_err().to_string().contains("line 4: not UTF-8"));
}

/// A quote that is not closed costs only its own line.
#[test]
fn skipping_goes_on_after_a_stray_quote() {
    let rows: String = (0..60_000).map(|n| format!("{n},x\n")).collect();
    for stray in ["a,\"office chair\n", "a,\"office\" chair\n", "a,\"x\"\"y\" z\n"] {
        let text = format!("a,b\n{rows}{stray}{rows}{stray}{rows}");
        let kept = read(text.as_bytes(), 2).unwrap();
        assert_eq!(kept.len(), 180_000, "{stray}");
        assert_eq!(kept.last().unwrap().0, 180_003, "{stray}");
        let error = read(text.as_bytes(), 1).unwrap_err().to_string();
        assert!(error.contains("line 120003: a quoted field does not end"), "{error}");
        let error = read(text.as_bytes(), 0).unwrap_err().to_string();
        assert!(error.contains("line 60002: a quoted field does not end"), "{error}");
    }
}

fn fields(dialect: Dialect, names: &[&str], rest: bool, text: &str) -> Vec<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let file = SourceFile::new(dir.path().join("f"));
    std::fs::write(file.path(), text).unwrap();
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let mut all = Vec::new();
    let columns = names.len();
    DelimitedFile::with_names(&file, dialect, names, rest)
        .for_each(|record| {
            let mut row: Vec<String> = (0..columns).map(|at| record.get(at).to_string()).collect();
            row.push(record.section.to_string());
            all.push(row);
            true
        })
        .unwrap();
    all
}

#[test]
fn dialects() {
    let semicolons = Dialect { delimiter: b';', escape: Some(b'\\'), ..Dialect::CSV };
    let text = "\"1\";\"a \\\"b\\\"; c\";\"x\"\"y\"\n2;\\;d;e\r\n\"3\";\"\\\\\";\"l\nm\"\n";
    assert_eq!(
        fields(semicolons, &["i", "t", "u"], false, text),
        [["1", "a \"b\"; c", "x\"y", ""], ["2", ";d", "e", ""], ["3", "\\", "l\nm", ""]]
    );
    // A tab-separated file has no quotes.
    assert_eq!(fields(Dialect::TSV, &["i", "t"], false, "1\t\"a\n2\tb\"\n"), [["1", "\"a", ""], ["2", "b\"", ""]]);
    // The Netflix prize: sections, and titles with commas.
    let netflix = Dialect { sections: true, ..Dialect::CSV };
    assert_eq!(
        fields(netflix, &["u", "r"], false, "1:\n7,5\n8,4\n22:\n7,1\n"),
        [["7", "5", "1"], ["8", "4", "1"], ["7", "1", "22"]]
    );
    assert_eq!(
        fields(Dialect::CSV, &["i", "y", "t"], true, "72,1974,At Home, A Stranger\n73,NULL,\"x, y\", z\n"),
        [["72", "1974", "At Home, A Stranger", ""], ["73", "NULL", "x, y, z", ""]]
    );
}

/// Blocks end inside quoted fields, escapes and line ends at random; the fields do not depend on
/// it.
#[test]
fn blocks_do_not_change_records() {
    let text: String = (0..40_000).map(|n| format!("{n},\"a\"\"\n,{}\"\r\n", "b\n".repeat(n % 40))).collect();
    let rows = read(format!("a,b\n{text}").as_bytes(), 0).unwrap();
    assert_eq!(rows.len(), 40_000);
    for (n, (_, row)) in rows.iter().enumerate() {
        assert_eq!(*row, [n.to_string(), format!("a\"\n,{}", "b\n".repeat(n % 40))]);
    }
}

/// Lines of white space are blank, before the header as well; with tabs between fields they are
/// rows.
#[test]
fn lines_of_white_space_are_blank() {
    let row = |line, fields: [&str; 2]| (line, fields.map(str::to_string).to_vec());
    let rows = read(b"\n  \na,b\n1,2\n \t\n3,4\n\n", 0).unwrap();
    assert_eq!(rows, [row(4, ["1", "2"]), row(6, ["3", "4"])]);
}

#[test]
fn carriage_returns_alone_are_named() {
    let error = read(b"a,b\r1,2\r3,4\r", 0).unwrap_err().to_string();
    assert!(error.contains("line 1: lines end in carriage returns alone"), "{error}");
}
