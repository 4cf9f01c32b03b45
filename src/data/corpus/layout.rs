//! File names of a corpus on disk: three kinds of Parquet file and `corpus.toml`, which says what
//! they hold, where they come from and their SHA-256.
//!
//! | file | columns |
//! |---|---|
//! | `items.parquet` | `item` u32 (row number), `id`, `title`; perhaps further texts, such as `genres` |
//! | `interactions.parquet` | `user` u32, `user_id`, `item` u32, `timestamp` i64 or null, perhaps `rating` f32; by user, then time |
//! | `windows-{train,valid,test}.parquet` | `user`, `start`, `len` u32 (rows of the interactions), `timestamp` of the target |

use super::window::Split;

/// The file that describes the corpus and holds the checksums of its files.
pub(super) const MANIFEST: &str = "corpus.toml";
/// The catalogue.
pub(in crate::data) const ITEMS: &str = "items.parquet";
/// The interaction log.
pub(in crate::data) const INTERACTIONS: &str = "interactions.parquet";
/// All splits, in the order of their files.
pub(super) const SPLITS: [Split; 3] = [Split::Train, Split::Valid, Split::Test];

/// Returns the name of the file with the windows of a split.
pub(in crate::data) fn windows_file(split: Split) -> String {
    format!("windows-{split}.parquet")
}

/// Returns the names of all Parquet files of a corpus.
pub(super) fn data_files() -> [String; 5] {
    let [train, valid, test] = SPLITS.map(windows_file);
    [ITEMS.into(), INTERACTIONS.into(), train, valid, test]
}
