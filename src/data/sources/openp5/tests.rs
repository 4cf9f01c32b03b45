use super::*;
use crate::data::sources::testing::{events, folder, options, read_folder, real};

#[test]
fn reads_sequences_titles_and_indexings() {
    let dir = folder(&[
        ("user_sequence.txt", b"u1 A B A\r\nu2 C B\n"),
        ("asin_title.tsv", "B\tThe \"é\", B\nA\t \nX\tnot met\n".as_bytes()),
        ("item_random_indexing.txt", b"A 1001\nB 1002\nX 1003\n"),
        ("item_sequential_indexing_original.txt", b"A 1001\nB 1002\nC 1003\n"),
        ("item_collaborative_indexing_500_20_sequential.txt", b"C <CI0><CI1>\n"),
        ("users.dat", b"1::F::1::10::48067\n"),
    ]);
    let raw = read_folder(dir.path(), read, &options(), 0).unwrap();
    let wanted = [("u1", "A"), ("u1", "B"), ("u1", "A"), ("u2", "C"), ("u2", "B")];
    assert_eq!(events(&raw), wanted.map(|(user, item)| (user.to_string(), item.to_string(), 0, -1.0)));
    assert!(!raw.log.timed && !raw.log.rated);
    let titles: Vec<_> = (0..3).map(|item| raw.catalogue.title(item)).collect();
    assert_eq!(titles, [None, Some("The \"é\", B"), None]);
    let of = |name: &str, item: usize| raw.catalogue.attributes[name].get(item).and_then(|t| t.as_deref());
    assert_eq!((of("random_id", 0), of("random_id", 2)), (Some("1001"), None));
    assert_eq!((of("sequential_id", 2), of("collaborative_id", 2)), (Some("1003"), Some("<CI0><CI1>")));
    assert_eq!(raw.format, "OpenP5, titles by ASIN");
}

#[test]
fn titles_may_come_from_movielens() {
    let dir = folder(&[("user_sequence.txt", b"1 31\n"), ("movies.dat", b"31::Caf\xe9::War|Drama\n")]);
    let raw = read_folder(dir.path(), read, &options(), 0).unwrap();
    assert_eq!(raw.catalogue.title(0), Some("Café"));
    assert_eq!(raw.catalogue.attributes["genres"][0].as_deref(), Some("War|Drama"));
    assert_eq!(raw.format, "OpenP5, titles of MovieLens in ISO 8859-1");
}

#[test]
fn names_file_and_line() {
    for (sequences, what) in [
        ("u1 A\nu2\n", "user_sequence.txt: line 2: a user and items divided by spaces expected, one field found"),
        ("u1,A,B\n", "line 1: a user and items"),
        ("u1 A\nu2 A\nu1 B\n", "line 3: user u1 has a sequence already"),
    ] {
        let dir = folder(&[("user_sequence.txt", sequences.as_bytes())]);
        let error = read_folder(dir.path(), read, &options(), 0).err().unwrap();
        assert!(error.exit_code() == 1 && error.to_string().contains(what), "{error}");
    }
    let dir = folder(&[("user_sequence.txt", b"u1 A\nu1 A\nu1\nu2 A\n\xff A\n")]);
    assert_eq!(events(&read_folder(dir.path(), read, &options(), 3).unwrap()).len(), 2);
    for (name, text, what) in [
        ("asin_title.tsv", "A B\n", "asin_title.tsv: line 1: 2 fields divided by `\\t` expected, 1 found"),
        ("asin_title.tsv", "A\tB\nA\tC\n", "line 2: two titles for one item"),
        ("item_random_indexing.txt", "A\t1 2\n", "line 1: 2 fields divided by ` ` expected, 3 found"),
    ] {
        let dir = folder(&[("user_sequence.txt", b"u1 A\n"), (name, text.as_bytes())]);
        let error = read_folder(dir.path(), read, &options(), 0).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn wrong_usage() {
    let sequences: (&str, &[u8]) = ("user_sequence.txt", b"u1 A\n");
    let collaborative: [(&str, &[u8]); 2] =
        [("item_collaborative_indexing_1.txt", b"A 1\n"), ("item_collaborative_indexing_2.txt", b"A 1\n")];
    for (files, format, what) in [
        (vec![("asin_title.tsv", &b"A\tB\n"[..])], None, "no user_sequence.txt"),
        (vec![sequences], Some("csv"), "its only one is openp5"),
        ([&[sequences][..], &collaborative].concat(), None, "a second item_collaborative_indexing_"),
    ] {
        let dir = folder(&files);
        let options = ReadOptions { format: format.map(str::to_string), ..options() };
        let error = read_folder(dir.path(), read, &options, 0).err().unwrap();
        assert!(error.exit_code() == 2 && error.to_string().contains(what), "{error}");
    }
}

#[test]
#[ignore = "needs the real data in ../shared/data or ITEMLM_DATA; just test-real"]
fn real_counts() {
    for (name, users, items, count, titled) in [
        ("ml-1m", 6040, 3416, 999_611, 3416),
        ("openp5-beauty", 22_363, 12_101, 198_502, 12_094),
        ("openp5-clothing", 39_387, 23_033, 278_677, 22_948),
    ] {
        let dir = real(name);
        let raw = read_folder(&dir, read, &options(), 0).unwrap();
        assert_eq!((raw.log.users.len(), raw.log.items.len(), raw.log.shards.rows()), (users, items, count), "{name}");
        let found = (0..items as u32).filter(|item| raw.catalogue.title(*item).is_some()).count();
        assert_eq!(found, titled, "{name}");
        assert!(raw.catalogue.attributes["random_id"].iter().flatten().count() == items, "{name}");
    }
}
