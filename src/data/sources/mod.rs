//! Raw files → an event log and a catalogue. One file a source; a source finds its format by the
//! files' content.

pub(super) mod amazon;
mod dataset;
mod delimited;
mod encoding;
mod fields;
mod files;
mod input;
mod lines;
pub(super) mod movielens;
mod msl;
pub(super) mod openp5;
mod options;
mod parquet_columns;
mod python;
mod read_context;
mod signature;
mod source_file;
pub(super) mod table;
#[cfg(test)]
mod testing;
mod times;

pub(crate) use dataset::{Catalogue, RawDataset};
pub use encoding::Encoding;
pub(crate) use fields::shorten;
pub(crate) use files::list_files;
pub(crate) use lines::read_numbered_lines;
pub(crate) use msl::read_msl;
pub(crate) use options::ReadOptions;
pub use options::{Columns, TableOptions, TitleChoice, TitleFrom};
pub use read_context::FileRows;
pub(crate) use read_context::ReadContext;
pub(crate) use source_file::SourceFile;
pub use times::Unit;
