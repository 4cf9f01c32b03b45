//! `prepare` against a slow reference, from every kind of raw file, and on what it must refuse.

mod bytes;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod datasets;
mod dialect;
mod format;
mod formats;
mod generator;
mod random;
mod real;
mod reference;
mod refusals;
mod tasks;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use itemlm::data::{PrepareOptions, Split};
use polars::prelude::{ParquetReader, SerReader};

use format::Format;
use generator::WrittenInput;
use reference::{Corpus, Protocol, Step};

/// Returns the options that prepare `inputs` in `format` with defaults.
pub fn options(format: Format, written: WrittenInput, out: &Path) -> PrepareOptions {
    PrepareOptions {
        source: format.source(),
        inputs: written.inputs,
        out: out.to_path_buf(),
        config: None,
        format: None,
        skip_bad: 0,
        memory: None,
        columns: written.columns,
        table: written.table,
        tasks: None,
    }
}

/// Returns the configuration file of steps and a split.
pub fn config(steps: &[Step], protocol: Protocol) -> String {
    let mut text = if steps.is_empty() { "steps = []\n".to_string() } else { String::new() };
    for step in steps {
        writeln!(text, "[[steps]]\nstep = \"{}\"", step.name()).unwrap();
        match step {
            Step::Rating { min } => writeln!(text, "min = {min:?}"),
            Step::Duplicates | Step::Titled => Ok(()),
            Step::TitleLength { min, max } => writeln!(text, "min = {min}\nmax = {max}"),
            Step::SampleItems { count, seed } => writeln!(text, "count = {count}\nseed = {seed}"),
            Step::KCore { user, item } => writeln!(text, "user = {user}\nitem = {item}"),
        }
        .unwrap();
    }
    let (name, history) = match protocol {
        Protocol::Msl { history } => ("msl", history),
        Protocol::LeaveOneOut { history } => ("leave_one_out", history),
    };
    text + &format!("[split]\nprotocol = \"{name}\"\nhistory = {history}\n")
}

/// Reads the corpus that `prepare` wrote.
pub fn read(dir: &Path) -> Corpus {
    let corpus = itemlm::data::Corpus::open(dir).unwrap_or_else(|e| panic!("{e}"));
    let windows = [corpus.released_train.as_slice(), corpus.windows(Split::Valid), corpus.windows(Split::Test)];
    let mut interactions = Vec::new();
    for user in 0..corpus.users() as u32 {
        for item in corpus.user_interactions(user) {
            let time = corpus.timestamps[interactions.len()];
            interactions.push((user, corpus.user_id(user).to_string(), *item, time));
        }
    }
    let file = fs::File::open(dir.join("interactions.parquet")).unwrap();
    let frame = ParquetReader::new(file).finish().unwrap();
    let ratings =
        frame.column("rating").map_or_else(|_| vec![], |c| c.f32().unwrap().iter().map(|r| r.unwrap()).collect());
    Corpus {
        items: corpus.items.iter().map(|i| (i.id.clone(), i.title.clone())).collect(),
        interactions,
        ratings,
        windows: windows.map(|w| w.iter().map(|w| (w.user, w.start, w.len, corpus.timestamp(w))).collect()),
    }
}
