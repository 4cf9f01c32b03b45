//! A corpus: a catalogue of titles, an interaction log, and the windows to learn and rank.

mod in_memory;
mod layout;
mod manifest;
mod output_dir;
mod parquet;
mod window;

#[cfg(test)]
pub(super) use in_memory::tests::small;
pub use in_memory::{Corpus, Item, UserLog};
pub(super) use layout::{INTERACTIONS, ITEMS, windows_file};
pub use manifest::{Counts, FileDigest, Manifest, Provenance, Step};
pub(super) use output_dir::OutputDir;
pub(crate) use parquet::parquet_bytes;
pub use window::{Split, Window, WindowCounts};
