use std::fs;

use super::*;
use crate::data::sources::testing::{events, folder, options, read_folder};

const RATINGS: &str = "1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n";

#[test]
fn reads_1m_in_latin1_and_10m_in_utf8() {
    for (movies, note) in [
        (&b"10::Caf\xe9 :: Part 2 (1995)::Comedy|Drama\n20::B (1990)::War\n30::Not rated::War\n"[..], true),
        ("10::Café :: Part 2 (1995)::Comedy|Drama\r\n20::B (1990)::War\n".as_bytes(), false),
    ] {
        let dir = folder(&[
            ("ratings.dat", RATINGS.as_bytes()),
            ("movies.dat", movies),
            ("users.dat", b"1::F::1::10::48067\n"),
            ("README", b"\xff\xfe"),
            ("split_ratings.sh", b"#!/bin/sh"),
            ("tags.dat", b"1::10::so::so::1\n2::20::fun::2\n1::10::fun ::3\n9::10::fun::4\n9::10::::4\n"),
        ]);
        let raw = read_folder(dir.path(), read, &options(), 0).unwrap();
        let wanted =
            [("1", "10", 978_300_760_000, 5.0), ("1", "20", 978_302_109_000, 3.0), ("2", "10", 978_301_968_000, 4.0)];
        assert_eq!(events(&raw), wanted.map(|(u, i, t, r)| (u.to_string(), i.to_string(), t, r)));
        assert!(raw.log.timed && raw.log.rated);
        assert_eq!(raw.format.contains("ISO 8859-1"), note, "{}", raw.format);
        let titles: Vec<_> = (0..2).map(|i| raw.catalogue.title(i)).collect();
        assert_eq!(titles, [Some("Café :: Part 2 (1995)"), Some("B (1990)")]);
        let column = |name: &str| raw.catalogue.attributes[name].iter().flatten().map(|t| &**t).collect::<Vec<_>>();
        assert_eq!(column("genres"), ["Comedy|Drama", "War"]);
        assert_eq!(column("tags"), ["fun|so::so", "fun"]);
    }
}

#[test]
fn reads_100k() {
    let flags = |on: [usize; 2]| (0..19).map(|i| if on.contains(&i) { "|1" } else { "|0" }).collect::<String>();
    let items = format!(
        "10|Mis\u{e9}rables, Les (1995)|01-Jan-1995||http://x{}\n20|unknown|||{}\n",
        flags([8, 14]),
        flags([0, 0])
    );
    let latin1: Vec<u8> = items.chars().map(|c| c as u8).collect();
    let dir = folder(&[
        ("u.data", b"1\t10\t5\t881250949\n2\t20\t1\t881250950\n"),
        ("u.item", &latin1),
        ("u1.base", b"1\t10\t5\t881250949\n"),
        ("u.user", b"1|24|M|technician|85711\n"),
    ]);
    let raw = read_folder(dir.path(), read, &options(), 0).unwrap();
    assert_eq!(events(&raw)[1], ("2".to_string(), "20".to_string(), 881_250_950_000, 1.0));
    assert_eq!((raw.catalogue.title(0), raw.catalogue.title(1)), (Some("Misérables, Les (1995)"), Some("unknown")));
    let genres = &raw.catalogue.attributes["genres"];
    assert_eq!((genres[0].as_deref(), genres[1].as_deref()), (Some("Drama|Romance"), Some("unknown")));
    assert_eq!(raw.format, "MovieLens 100K (tabs), titles in ISO 8859-1");
}

#[test]
fn reads_csv_with_plots() {
    let dir = folder(&[
        ("ratings.csv", b"userId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n1,32,0.5,1260759145\r\n"),
        ("movies.csv", b"movieId,title,genres\n31,\"American President, The (1995)\",Comedy|Drama\n32,\"A \"\"B\"\"\",(no genres listed)\n"),
        ("links.csv", b"movieId,imdbId,tmdbId\n31,0114709,862\n"),
        ("genome-tags.csv", b"tagId,tag\n1,007\n"),
        ("tags.csv", b"userId,movieId,tag,timestamp\n15,31,\"a, b\",1\n15,31,c,1\n16,31,c,1\n15,32,|,1\n15,32,one|two|,1\n"),
        ("x-plots.dat", "31::T::1995::G::d::g::Ann::w::Bob, Él::A plot:: with two \
                         parts.::poster\r\n32::T::1995::G::d::g::N/A::w::::P::\r\n".as_bytes()),
    ]);
    let raw = read_folder(dir.path(), read, &options(), 0).unwrap();
    assert_eq!(events(&raw)[1], ("1".to_string(), "32".to_string(), 1_260_759_145_000, 0.5));
    assert_eq!(
        (raw.catalogue.title(0), raw.catalogue.title(1)),
        (Some("American President, The (1995)"), Some("A \"B\""))
    );
    let first = |name: &str| raw.catalogue.attributes[name][0].as_deref();
    assert_eq!((first("tags"), first("director"), first("actors")), (Some("c|a, b"), Some("Ann"), Some("Bob, Él")));
    assert_eq!(raw.catalogue.attributes["tags"][1].as_deref(), Some("one two"));
    assert_eq!(first("plot"), Some("A plot:: with two parts."));
    assert_eq!(
        (raw.catalogue.attributes["plot"][1].as_deref(), raw.catalogue.attributes["director"].len()),
        (Some("P"), 1)
    );
    assert_eq!(raw.format, "MovieLens latest/25M/32M (CSV), with plots");
}

#[test]
fn names_file_and_line() {
    for (ratings, what) in [
        ("1::10::5::978300760\n1,10,5,978300761\n", "ratings.dat: line 2: 4 fields divided by `::` expected, 1 found"),
        ("1::10::5\n", "line 1: 4 fields divided by `::` expected, 3 found"),
        ("1::10::nan::978300760\n", "rating `nan` is not a finite number"),
        ("1::10::5::-978300760\n", "line 1: timestamp -978300760 is not between"),
        ("1::10::5::978300760000000\n", "not between 1970 and 2100"),
        ("1::10::5::soon\n", "timestamp `soon` is not a whole number"),
        ("1::::5::978300760\n", "no movie"),
        (" ::1::5::978300760\n", "no user"),
    ] {
        let dir = folder(&[("ratings.dat", ratings.as_bytes())]);
        let error = read_folder(dir.path(), read, &options(), 0).err().unwrap();
        assert!(error.exit_code() == 1 && error.to_string().contains(what), "{error}");
    }
    for (movies, what) in [
        ("10::A::War\n20::B::War\n10::C::War\n", "movies.dat: line 3: two titles for one item: `A` and `C`"),
        ("10::A\n", "line 1: 3 fields divided by `::` expected, 2 found"),
    ] {
        let dir = folder(&[("ratings.dat", RATINGS.as_bytes()), ("movies.dat", movies.as_bytes())]);
        let error = read_folder(dir.path(), read, &options(), 0).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
        let raw = read_folder(dir.path(), read, &options(), 1).unwrap();
        assert_eq!(events(&raw).len(), 3);
    }
    let dir = folder(&[("ratings.csv", b"user,movieId,rating,timestamp\n1,2,3,4\n")]);
    let error = read_folder(dir.path(), read, &options(), 0).err().unwrap().to_string();
    assert!(error.contains("ratings.csv: column `userId` is missing; it has user, movieId"), "{error}");
}

#[test]
fn wrong_usage() {
    let dir = folder(&[("README", b"x")]);
    let error = read_folder(dir.path(), read, &options(), 0).err().unwrap();
    assert!(error.exit_code() == 2 && error.to_string().contains("ratings.dat"), "{error}");
    let forced = ReadOptions { format: Some("1m".into()), ..options() };
    let error = read_folder(dir.path(), read, &forced, 0).err().unwrap();
    assert!(error.exit_code() == 2 && error.to_string().contains("100k or csv"), "{error}");
    let dir = folder(&[("ratings.dat", RATINGS.as_bytes()), ("u.data", b"1\t10\t5\t881250949\n")]);
    let error = read_folder(dir.path(), read, &options(), 0).err().unwrap();
    assert!(error.exit_code() == 2 && error.to_string().contains("another format"), "{error}");
    let dir = folder(&[("ml-ratings.dat", b"1\t10\t5\t881250949\n")]);
    assert_eq!(events(&read_folder(dir.path(), read, &options(), 0).unwrap()).len(), 1);
    let forced = ReadOptions { format: Some("dat".into()), ..options() };
    let error = read_folder(dir.path(), read, &forced, 0).err().unwrap().to_string();
    assert!(error.contains("divided by `::`"), "{error}");
}

#[test]
#[ignore = "needs the real data in ../shared/data or ITEMLM_DATA; just test-real"]
fn real_counts() {
    let dir = super::super::testing::real("ml-latest-small");
    let raw = read_folder(&dir, read, &options(), 0).unwrap();
    assert_eq!((raw.log.users.len(), raw.log.shards.rows()), (671, 100_004));
    // 9,125 movies, of which 59 have no rating; of the rated ones none lacks a line.
    let all = fs::read_to_string(dir.join("movies.csv")).unwrap();
    assert_eq!((all.lines().count(), raw.log.items.len()), (9126, 9066));
    let titled = (0..9066).filter(|item| raw.catalogue.title(*item).is_some()).count();
    assert!(titled == 9066, "{titled}");
    let toy_story = raw.log.items.find("1").unwrap();
    assert_eq!(raw.catalogue.title(toy_story), Some("Toy Story (1995)"));
    assert!(raw.catalogue.attributes["tags"].iter().flatten().count() > 600);
}

#[test]
#[ignore = "needs the real data in ../shared/data or ITEMLM_DATA; just test-real"]
fn real_plots() {
    let [movies, plots] = ["ml-1m", "movie-texts"].map(super::super::testing::real);
    let dir = folder(&[("ratings.dat", RATINGS.replace("10", "2").as_bytes())]);
    let files = [dir.path().join("ratings.dat"), movies.join("movies.dat"), plots.join("ml-1m-plots.dat")];
    let files = files.map(SourceFile::new);
    let raw = read(&files, &options(), &mut ReadContext::quiet()).unwrap();
    assert_eq!(raw.catalogue.title(0), Some("Jumanji (1995)"));
    assert!(raw.catalogue.attributes["director"][0].as_deref().unwrap().contains("Johnston"));
    assert!(raw.catalogue.attributes["plot"][0].as_deref().unwrap().len() > 50);
}
