//! Raw files → an event log and a catalogue. One file a source; a source finds its format by the
//! files' content.

pub(super) mod amazon;
mod dataset;
mod delimited;
mod fields;
mod files;
mod input;
pub(super) mod movielens;
mod msl;
pub(super) mod openp5;
mod options;
mod python;
mod read_context;
pub(super) mod table;
#[cfg(test)]
mod testing;

pub(crate) use dataset::{Catalogue, RawDataset};
pub(crate) use fields::{Unit, short};
pub(crate) use files::{at_most, list_files};
pub(crate) use input::{Encoding, Input, read_lines, read_numbered_lines};
pub(crate) use msl::read_msl;
pub use options::Columns;
pub(crate) use options::ReadOptions;
pub(crate) use read_context::ReadContext;
