//! Rows of tasks whose answers are free text, as JSON lines:
//!
//! | key | holds |
//! |---|---|
//! | `task` | the task's name |
//! | `items` | the corpus's item ids, as many as the task is about, in the order of its template |
//! | `text` | the answer to learn |
//! | `user` | a user's id; only where the task has a template for users, and there optional |
//! | `split` | `train`, `valid` or `test`; in every row or in none |
//!
//! Where the file has no splits, every item belongs to one, by its id alone: a tenth of the items
//! to test, a tenth to valid, the others to train. A row tests if one of its items does, else it
//! validates if one of its items does. So no training row is about an item of another split, and
//! the items that test are the same in every file about these ids.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::corpus::{Corpus, FileDigest, Split};
use super::id::Id;
use super::sources::{Encoding, ReadContext, SourceFile, read_numbered_lines};
use crate::{Context, Result};

/// A task's name, and what entities its rows name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextTaskEntities {
    /// The task's name.
    pub name: String,
    /// Number of items that a row names.
    pub items: usize,
    /// Whether a row may name a user.
    pub user: bool,
}

/// A row of a task file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextTaskRow {
    /// Line in the file, from 1.
    pub line: u64,
    /// The task: its index in the list given to [`read_text_tasks`].
    pub task: usize,
    /// Dense item indices.
    pub items: Vec<u32>,
    /// Dense user index.
    pub user: Option<u32>,
    /// The answer.
    pub text: String,
    /// Whether the row is for training, validation or test.
    pub split: Split,
}

/// A task file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextTaskFile {
    /// The rows, in the file's order.
    pub rows: Vec<TextTaskRow>,
    /// Digest of the file as it is stored.
    pub digest: FileDigest,
}

/// A line of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    task: String,
    items: Vec<Id>,
    text: String,
    user: Option<Id>,
    split: Option<Split>,
}

/// Reads a task file (gzip and zstd are fine) with rows of `tasks` about the items and users of
/// `corpus`.
///
/// # Errors
/// A line that is no such row, for the first of these: unknown keys, tasks, items and users, a
/// number of items that is not the task's, a blank text. A `split` that other rows lack, once the
/// lines around it (about 1 MiB) are found good. A file without rows.
pub fn read_text_tasks(path: &Path, corpus: &Corpus, tasks: &[TextTaskEntities]) -> Result<TextTaskFile> {
    let items: HashMap<&str, u32> = corpus.items.iter().map(|item| item.id.as_str()).zip(0..).collect();
    let users: HashMap<&str, u32> = (0..corpus.users() as u32).map(|user| (corpus.user_id(user), user)).collect();
    let indices: HashMap<&str, usize> = tasks.iter().map(|task| task.name.as_str()).zip(0..).collect();
    let splits: Vec<Split> = corpus.items.iter().map(|item| split_of(&item.id)).collect();

    let parse = |number: u64, line: &str| -> std::result::Result<(TextTaskRow, bool), String> {
        let line: Line = serde_json::from_str(line).map_err(|error| {
            let text = error.to_string();
            format!("not a row of a task: {}", text.split(" at line ").next().unwrap_or_default())
        })?;
        let task = *indices.get(line.task.as_str()).ok_or_else(|| {
            let known: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
            format!("unknown task {:?}: use {}", line.task, known.join(", "))
        })?;
        let TextTaskEntities { name, items: wanted, user: takes_user } = &tasks[task];
        if line.items.len() != *wanted {
            return Err(format!("{} items, the task {name:?} is about {wanted}", line.items.len()));
        }
        let find = |known: &HashMap<&str, u32>, id: Id, what| {
            let id = id.into_text();
            known.get(id.as_str()).copied().ok_or_else(|| format!("no {what} {id:?} in the corpus: leave the row out"))
        };
        let items =
            line.items.into_iter().map(|id| find(&items, id, "item")).collect::<std::result::Result<Vec<_>, _>>()?;
        let user = line.user.map(|id| find(&users, id, "user")).transpose()?;
        if user.is_some() && !takes_user {
            return Err(format!("the task {name:?} is not about a user: leave `user` out"));
        }
        if line.text.trim().is_empty() {
            return Err("the text is empty".into());
        }
        let given = line.split.is_some();
        let split = line.split.unwrap_or_else(|| {
            let has = |split| items.iter().any(|&item| splits[item as usize] == split);
            [Split::Test, Split::Valid].into_iter().find(|&split| has(split)).unwrap_or(Split::Train)
        });
        Ok((TextTaskRow { line: number, task, items, user, text: line.text, split }, given))
    };

    let mut context = ReadContext::new(0, fs::metadata(path).context(path.display())?.len());
    let mut rows: Vec<TextTaskRow> = Vec::new();
    let mut with_split = None;
    let file = SourceFile::new(path);
    read_numbered_lines(
        &file,
        Encoding::Utf8,
        0,
        &mut context,
        |number, line, block: &mut Vec<(TextTaskRow, bool)>| {
            block.push(parse(number, line)?);
            Ok(())
        },
        |context, block| {
            for (row, given) in block {
                if *with_split.get_or_insert(given) != given {
                    context.bad_row(
                        &file,
                        row.line,
                        "some rows have a split and some have none: give it to all of them, or to none",
                    )?;
                }
                rows.push(row);
            }
            Ok(())
        },
    )?;
    if rows.is_empty() {
        return Err(crate::Error::failed(format!("{}: no row in it", path.display())));
    }
    let digest = context.inputs.pop().unwrap_or_else(|| FileDigest::from_bytes("", &[]));
    Ok(TextTaskFile { rows, digest })
}

/// Returns an item's split: by the first 8 bytes of the SHA-256 of `tasks:id`, in tenths.
fn split_of(id: &str) -> Split {
    let hash = Sha256::digest(format!("tasks:{id}"));
    let tenth = hash.iter().take(8).fold(0u64, |number, byte| (number << 8) | u64::from(*byte)) % 10;
    match tenth {
        0 => Split::Test,
        1 => Split::Valid,
        _ => Split::Train,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::corpus::small;

    fn entities() -> Vec<TextTaskEntities> {
        let of = |name: &str, items, user| TextTaskEntities { name: name.into(), items, user };
        vec![of("plot", 1, false), of("pair", 2, true)]
    }

    fn read(text: impl AsRef<[u8]>) -> Result<TextTaskFile> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        read_text_tasks(file.path(), &small(), &entities())
    }

    #[test]
    fn reads_rows() {
        let text = "{\"task\": \"plot\", \"items\": [\"i3\"], \"text\": \"a\\nb\", \"split\": \"valid\"}\n\n\
                    {\"text\": \" c\", \"items\": [\"i0\", \"i9\"], \"user\": \"b\", \
                    \"task\": \"pair\", \"split\": \"train\"}";
        let file = read(text).unwrap();
        let expected = [
            TextTaskRow { line: 1, task: 0, items: vec![3], user: None, text: "a\nb".into(), split: Split::Valid },
            TextTaskRow { line: 3, task: 1, items: vec![0, 9], user: Some(1), text: " c".into(), split: Split::Train },
        ];
        assert_eq!(file.rows, expected);
        assert_eq!((file.digest.bytes, file.digest.sha256.len()), (text.len() as u64, 64));
        assert_eq!(read(zstd::stream::encode_all(text.as_bytes(), 1).unwrap()).unwrap().rows, expected);
    }

    #[test]
    fn items_share_out_the_rows() {
        let of = |split| (0..1000).filter(|i| split_of(&format!("i{i}")) == split).count();
        assert!((70..130).contains(&of(Split::Test)) && (70..130).contains(&of(Split::Valid)));
        let mut corpus = small();
        corpus.items = (0..300).map(|i| crate::data::Item { id: i.to_string(), title: String::new() }).collect();
        let pairs = (0..300).flat_map(|i| [(i, (7 * i + 1) % 300), (i, i)]);
        let lines: String = pairs
            .map(|(a, b)| format!("{{\"task\": \"pair\", \"items\": [{a}, \"{b}\"], \"text\": \"x\"}}\n"))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), lines).unwrap();
        let rows = read_text_tasks(file.path(), &corpus, &entities()).unwrap().rows;
        let splits: Vec<Split> = corpus.items.iter().map(|item| split_of(&item.id)).collect();
        for row in &rows {
            let of: Vec<Split> = row.items.iter().map(|&item| splits[item as usize]).collect();
            let expected = if of.contains(&Split::Test) {
                Split::Test
            } else if of.contains(&Split::Valid) {
                Split::Valid
            } else {
                Split::Train
            };
            assert_eq!(row.split, expected);
        }
        for split in [Split::Train, Split::Valid, Split::Test] {
            assert!(rows.iter().any(|row| row.split == split));
        }
    }

    #[test]
    fn names_file_and_line() {
        let good = "{\"task\": \"plot\", \"items\": [\"i3\"], \"text\": \"a\"}\n";
        for (line, what) in [
            ("{\"task\": \"plot\", \"items\": [\"i3\"]", "not a row of a task: EOF"),
            ("[]", "not a row of a task"),
            ("{\"task\": \"plot\", \"items\": [\"i3\"]}", "missing field `text`"),
            ("{\"task\": \"plot\", \"items\": [1.5], \"text\": \"a\"}", "an id is text or a whole number"),
            ("{\"task\": \"plot\", \"items\": [\"i3\"], \"text\": \"a\", \"txet\": 1}", "unknown field `txet`"),
            ("{\"task\": \"plto\", \"items\": [\"i3\"], \"text\": \"a\"}", "unknown task \"plto\": use plot, pair"),
            (
                "{\"task\": \"plot\", \"items\": [\"i3\", \"i4\"], \"text\": \"a\"}",
                "2 items, the task \"plot\" is about 1",
            ),
            ("{\"task\": \"plot\", \"items\": [\"i10\"], \"text\": \"a\"}", "no item \"i10\" in the corpus"),
            ("{\"task\": \"pair\", \"items\": [\"i1\", \"i2\"], \"text\": \"a\", \"user\": 7}", "no user \"7\""),
            ("{\"task\": \"plot\", \"items\": [\"i1\"], \"text\": \"a\", \"user\": \"a\"}", "not about a user"),
            ("{\"task\": \"plot\", \"items\": [\"i1\"], \"text\": \" \"}", "the text is empty"),
            (
                "{\"task\": \"plot\", \"items\": [\"i1\"], \"text\": \"a\", \"split\": \"tset\"}",
                "unknown variant `tset`",
            ),
            (
                "{\"task\": \"plot\", \"items\": [\"i1\"], \"text\": \"a\", \"split\": \"test\"}",
                "some rows have a split",
            ),
        ] {
            let error = read(format!("{good}\n{line}\n{good}")).unwrap_err().to_string();
            assert!(error.contains(": line 3: ") && error.contains(what), "{error}");
        }
        assert!(read("\n \n").unwrap_err().to_string().contains("no row"));
        assert!(read("").unwrap_err().to_string().contains("empty"));
        assert!(read(b"\xff".as_slice()).unwrap_err().to_string().contains("line 1: not UTF-8"));
        assert!(read_text_tasks(Path::new("/nowhere"), &small(), &entities()).is_err());
    }

    /// Random damage gives an error or fewer rows, never a panic.
    #[test]
    fn survives_damage() {
        use rand::{Rng, SeedableRng};
        let good = "{\"task\": \"pair\", \"items\": [\"i3\", \"i1\"], \"text\": \"a\", \"user\": \"b\"}\n".repeat(3);
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for _ in 0..2000 {
            let mut bytes = good.clone().into_bytes();
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
            bytes.truncate(random.random_range(at..good.len()) + 1);
            let _ = read(bytes);
        }
    }
}
