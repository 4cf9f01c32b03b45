//! Dense vectors of titles.

use std::path::Path;

use burn::DispatchDevice;

use super::Tfidf;
use super::svd::truncated_svd;
use crate::Result;
use crate::device::Concrete;
use crate::model::SentenceEncoder;
use crate::rankers::training::dot;

/// Longest term of TF-IDF, in words: as `text` by default.
const NGRAMS: usize = 2;

/// A vector of length 1 for each title; of length 0 for a title without a known word.
#[derive(Clone, Debug)]
pub(crate) struct DenseVectors {
    /// `[items, dim]`.
    values: Vec<f32>,
    dim: usize,
}

impl DenseVectors {
    /// Reduces the titles' TF-IDF vectors to `dim` numbers.
    ///
    /// # Errors
    /// Those of [`Tfidf::new`].
    pub(crate) fn from_tfidf(titles: &[&str], dim: usize, seed: u64) -> Result<Self> {
        let tfidf = Tfidf::new(titles.iter().copied(), NGRAMS)?;
        Ok(Self::normalised(truncated_svd(&tfidf, dim, seed), dim))
    }

    /// Encodes the titles by the BERT in `dir`.
    ///
    /// # Errors
    /// Those of [`SentenceEncoder::open`] and [`SentenceEncoder::encode`].
    pub(crate) fn from_encoder(dir: &str, titles: &[&str], device: &DispatchDevice) -> Result<Self> {
        let encoder = SentenceEncoder::<Concrete>::open(Path::new(dir), device)?;
        Ok(Self::normalised(encoder.encode(titles)?, encoder.dim()))
    }

    /// Scales the vectors `[items, dim]` to length 1; a vector of length 0 stays.
    fn normalised(mut values: Vec<f32>, dim: usize) -> Self {
        for vector in values.chunks_exact_mut(dim) {
            let length = dot(vector, vector).sqrt();
            vector.iter_mut().filter(|_| length > 0.0).for_each(|value| *value /= length);
        }
        Self { values, dim }
    }

    /// Number of titles.
    pub(crate) fn items(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Length of a vector.
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// All vectors, `[items, dim]`.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The vector of an item, `[dim]`.
    pub(crate) fn vector(&self, item: u32) -> &[f32] {
        &self.values[item as usize * self.dim..][..self.dim]
    }
}
