//! TREC's run and qrels files, which trec_eval and ranx read.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::lists::RankedSplit;
use crate::core::files::write_atomic;
use crate::data::{Corpus, Split};
use crate::rankers::first_with_same_title;
use crate::{Context, Result};

/// Writes `run-<split>.txt` (`QUERY Q0 ITEM RANK SCORE TAG` a line) and `qrels-<split>.txt`
/// (`QUERY 0 ITEM 1`) into `dir`, which is made.
///
/// A query is a window, by its index in the split. An item is the id of the first item of its
/// title, because a hit is an equal title; white space and `%` in it are percent-encoded. Both
/// programs sort by score and not by rank, so a score that is not below the one before it is
/// lowered to the next smaller f32.
///
/// # Errors
/// A directory or file that cannot be written.
pub fn write_trec(dir: &Path, ranked: &RankedSplit, corpus: &Corpus, split: Split, tag: &str) -> Result<()> {
    let first = first_with_same_title(corpus);
    let id = |item: u32| percent_encode(&corpus.items[first[item as usize] as usize].id);
    let tag = percent_encode(tag);
    let (mut run, mut qrels) = (String::new(), String::new());
    for (outcome, list) in ranked.outcomes.iter().zip(&ranked.lists) {
        let query = outcome.window;
        // Writing to a string cannot fail.
        let _ = writeln!(qrels, "{query} 0 {} 1", id(outcome.target));
        let mut last = f32::INFINITY;
        for ((rank, &item), &score) in (1..).zip(&list.items).zip(&list.scores) {
            let score = score as f32;
            last = if score < last { score } else { last.next_down() };
            let _ = writeln!(run, "{query} Q0 {} {rank} {last} {tag}", id(item));
        }
    }
    fs::create_dir_all(dir).context(dir.display())?;
    write_atomic(&dir.join(format!("run-{split}.txt")), run.as_bytes())?;
    write_atomic(&dir.join(format!("qrels-{split}.txt")), qrels.as_bytes())
}

/// Percent-encodes what would end a field.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' | ' ' => encoded += &format!("%{:02X}", c as u32),
            c if c.is_whitespace() || c.is_control() => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| encoded += &format!("%{byte:02X}"));
            }
            c => encoded.push(c),
        }
    }
    if encoded.is_empty() { "-".into() } else { encoded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Item, UserLog, Window};
    use crate::evaluate::{Outcome, RankedList};

    #[test]
    fn files_by_hand() {
        let items = [("a b", "pen"), ("b%", "ink"), ("c", "pen"), ("d", "pad")];
        let items = items.map(|(id, title)| Item { id: id.into(), title: title.into() }).to_vec();
        let log = UserLog { id: "u".into(), events: vec![(0, None), (2, None)] };
        let window = Window { user: 0, start: 0, len: 2 };
        let corpus = Corpus::new("c", items, vec![log], vec![window], Some(vec![]), vec![window]).unwrap();
        let ranked = RankedSplit {
            outcomes: vec![Outcome { window: 7, user: 0, target: 2, cold: false, rank: Some(2) }],
            lists: vec![RankedList { items: vec![1, 3, 0], scores: vec![0.5, 0.5, 0.25] }],
        };
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("trec");
        write_trec(&out, &ranked, &corpus, Split::Test, "my run").unwrap();
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        // Item 2 is called as item 0.
        assert_eq!(read("qrels-test.txt"), "7 0 a%20b 1\n");
        let below = 0.5f32.next_down();
        assert_eq!(
            read("run-test.txt"),
            format!("7 Q0 b%25 1 0.5 my%20run\n7 Q0 d 2 {below} my%20run\n7 Q0 a%20b 3 0.25 my%20run\n")
        );
    }

    #[test]
    fn white_space_is_encoded() {
        assert_eq!(
            (percent_encode("a\tb\u{a0}c"), percent_encode(""), percent_encode("é")),
            ("a%09b%C2%A0c".into(), "-".into(), "é".into())
        );
    }
}
