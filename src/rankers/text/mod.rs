//! Ranking by titles: items whose titles are like those of the history, cold items too.
//!
//! score(j) = Σ_s decay^s · max(0, cos(i_s, j))^exponent over the history, its last item at s = 0,
//! where cos compares the titles' TF-IDF vectors, or their sentence vectors by a BERT. It learns
//! nothing from interactions.

mod dense;
mod svd;
mod tfidf;

use std::cell::RefCell;
use std::sync::Arc;

use serde::Deserialize;

use super::registry::{Entry, Fit, FitContext, Method};
use super::settings::{check_number, check_whole, read};
use super::training::dot;
use super::{Ranker, Scores};
use crate::{Context, Result};

pub(crate) use dense::DenseVectors;
pub(crate) use tfidf::Tfidf;

pub(super) const ENTRY: Entry = Entry {
    name: "text",
    about: "the items whose titles are like those of the history, without the history's own; it learns from no \
            interaction",
    method: |table| {
        let config: TextConfig = read("text", table)?;
        check_number("exponent", config.exponent, 1e-3, 1e3)?;
        check_number("decay", config.decay, 0.0, 1.0)?;
        check_whole("ngrams", config.ngrams, 8)?;
        Ok(Method::Fit(Box::new(config)))
    },
};

/// Settings of `text`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TextConfig {
    /// The power to which cosines are raised.
    exponent: f64,
    /// The weight of an item of the history is multiplied by this for each step back.
    decay: f64,
    /// Longest term of TF-IDF, in words.
    ngrams: usize,
    /// Directory of a BERT whose sentence vectors stand in place of TF-IDF.
    encoder: Option<String>,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self { exponent: 2.0, decay: 0.75, ngrams: 2, encoder: None }
    }
}

impl Fit for TextConfig {
    fn fit(&self, context: &mut FitContext) -> Result<Arc<dyn Ranker>> {
        let titles = context.corpus.items.iter().map(|item| item.title.as_str());
        let vectors = match &self.encoder {
            None => TitleVectors::Tfidf(Tfidf::new(titles, self.ngrams)?),
            Some(dir) => {
                let titles: Vec<&str> = titles.collect();
                let vectors = DenseVectors::from_encoder(dir, &titles, &(context.device)()?).context("encoder")?;
                TitleVectors::Dense(vectors)
            }
        };
        Ok(Arc::new(TextRanker { vectors, exponent: self.exponent, decay: self.decay }))
    }
}

/// Vectors of all titles, of length 1.
#[derive(Clone, Debug)]
enum TitleVectors {
    Tfidf(Tfidf),
    Dense(DenseVectors),
}

impl TitleVectors {
    fn items(&self) -> usize {
        match self {
            Self::Tfidf(tfidf) => tfidf.items(),
            Self::Dense(vectors) => vectors.items(),
        }
    }
}

/// A ranker over titles.
#[derive(Clone, Debug)]
struct TextRanker {
    vectors: TitleVectors,
    exponent: f64,
    decay: f64,
}

/// Sums by item, of which few are touched; kept by each thread, and all 0 between its uses.
#[derive(Default)]
struct Accumulator {
    /// `[items]`.
    cosines: Vec<f64>,
    /// The items whose cosine is not 0, once or more often each.
    touched: Vec<u32>,
}

thread_local! {
    static ACCUMULATOR: RefCell<Accumulator> = RefCell::default();
}

impl TextRanker {
    /// Appends `weight · cos(item, j)^exponent` of all titles j that share a term with the item's.
    fn add_tfidf(&self, tfidf: &Tfidf, item: u32, weight: f64, scores: &mut Vec<(u32, f64)>) {
        ACCUMULATOR.with_borrow_mut(|sums| {
            sums.cosines.resize(tfidf.items().max(sums.cosines.len()), 0.0);
            for &(term, own) in tfidf.terms(item) {
                for &(other, others) in tfidf.postings(term) {
                    let cosine = &mut sums.cosines[other as usize];
                    if *cosine == 0.0 {
                        sums.touched.push(other);
                    }
                    *cosine += f64::from(own) * f64::from(others);
                }
            }
            for other in sums.touched.drain(..) {
                let cosine = std::mem::take(&mut sums.cosines[other as usize]);
                if cosine > 0.0 {
                    scores.push((other, weight * power(cosine, self.exponent)));
                }
            }
        });
    }
}

/// Raises to a power; squares are the default and the fast case.
fn power(cosine: f64, exponent: f64) -> f64 {
    if exponent == 2.0 { cosine * cosine } else { cosine.powf(exponent) }
}

impl Ranker for TextRanker {
    fn items(&self) -> usize {
        self.vectors.items()
    }

    fn scores(&self, history: &[u32]) -> Scores {
        let weighted = history.iter().rev().scan(1.0, |weight, &item| {
            let of_item = *weight;
            *weight *= self.decay;
            Some((item, of_item))
        });
        let weighted = weighted.filter(|&(item, _)| (item as usize) < self.items());
        let scores = match &self.vectors {
            TitleVectors::Tfidf(tfidf) => {
                let mut scores = Vec::new();
                weighted.for_each(|(item, weight)| self.add_tfidf(tfidf, item, weight, &mut scores));
                Scores::from_pairs(scores)
            }
            TitleVectors::Dense(vectors) => {
                let mut scores = vec![0.0; self.items()];
                for (item, weight) in weighted {
                    let own = vectors.vector(item);
                    for (score, other) in scores.iter_mut().zip(vectors.values().chunks_exact(vectors.dim())) {
                        *score += weight * power(f64::from(dot(own, other)).max(0.0), self.exponent);
                    }
                }
                Scores::Dense(scores)
            }
        };
        scores.exclude(history)
    }
}

#[cfg(test)]
mod tests;
