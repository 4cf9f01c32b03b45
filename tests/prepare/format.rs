//! The formats of raw logs, and what each of them can tell.

use itemlm::data::{Columns, Source};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Amazon2014,
    Amazon2018,
    Amazon2023,
    MovieLens1M,
    MovieLens10M,
    MovieLens100K,
    MovieLensLatest,
    OpenP5,
    Csv,
    Tsv,
    JsonLines,
    Parquet,
}

pub const ALL: [Format; 12] = [
    Format::Amazon2014,
    Format::Amazon2018,
    Format::Amazon2023,
    Format::MovieLens1M,
    Format::MovieLens10M,
    Format::MovieLens100K,
    Format::MovieLensLatest,
    Format::OpenP5,
    Format::Csv,
    Format::Tsv,
    Format::JsonLines,
    Format::Parquet,
];

impl Format {
    pub fn source(self) -> Source {
        match self {
            Self::Amazon2014 | Self::Amazon2018 | Self::Amazon2023 => Source::Amazon,
            Self::MovieLens1M | Self::MovieLens10M | Self::MovieLens100K | Self::MovieLensLatest => Source::Movielens,
            Self::OpenP5 => Source::Openp5,
            Self::Csv | Self::Tsv | Self::JsonLines | Self::Parquet => Source::Table,
        }
    }

    /// Names of a table's columns; none for other sources.
    pub fn columns(self) -> Columns {
        if self.source() != Source::Table {
            return Columns::default();
        }
        let name = |text: &str| Some(text.to_string());
        Columns {
            user: name("who"),
            item: name("what"),
            time: name("when"),
            title: name("called"),
            rating: name("stars"),
            text: None,
        }
    }

    /// Does the format tell milliseconds?
    pub fn milliseconds(self) -> bool {
        matches!(self, Self::Amazon2023 | Self::JsonLines)
    }

    /// Returns whether titles must be latin-1, and without the characters that separate fields.
    pub fn plain_titles(self) -> bool {
        self.source() == Source::Movielens && self != Self::MovieLensLatest
    }

    /// Does it tell half stars?
    pub fn half_stars(self) -> bool {
        !matches!(self, Self::MovieLens1M | Self::MovieLens100K)
    }
}
