//! A model's distribution over the items, for a prior: what it is, and the files that it is kept
//! in.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::Ranker;
use super::collaborative::Scorer;
use super::vectors_file::{About, Vectors};
use super::{Interactions, Method, Model, Settings, als, bpr};
use crate::core::files::sha256;
use crate::data::{Corpus, Split};
use crate::model::{load_module_of, save_module};
use crate::{Context, Error, Result};

/// Validation windows that the temperature is chosen on.
const WINDOWS: usize = 500;
/// Scores of items that they may have together; fewer windows where the catalogue is larger than
/// 134,217 items.
const SCORES: usize = 1 << 26;
/// Temperatures that can be chosen.
const COLDEST: f64 = 1e-3;
const HOTTEST: f64 = 1e3;

/// p(item) ∝ exp(score / temperature) over the items that training windows hold, without those of
/// the history; 0 for all others.
///
/// One temperature for all histories, the one that makes the targets of the validation windows
/// likeliest: ALS's scores lie between 0 and 1, BPR's and SASRec's have no bounds.
#[derive(Clone, Debug)]
pub struct Distribution<B: Backend> {
    model: Model<B>,
    temperature: f64,
}

/// What else a ranker's file says, beside the vectors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ranks {
    temperature: f64,
    /// [`Interactions::digest`] of what it learnt from.
    interactions: String,
    /// SASRec: SHA-256 of the network's file.
    network: Option<String>,
}

/// The file of SASRec's network.
fn network_file(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".network.safetensors");
    PathBuf::from(name)
}

impl<B: Backend> Distribution<B> {
    /// With the temperature that `corpus`'s validation windows (at most 500, evenly drawn) choose,
    /// 1 where there are none.
    pub fn new(model: Model<B>, corpus: &Corpus) -> Self {
        let temperature = likeliest_temperature(&model, corpus).unwrap_or(1.0);
        Self { model, temperature }
    }

    /// The model.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// What scores are divided by.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// Writes the vectors of all items and users as [`Vectors::save`] does, with what
    /// [`Distribution::open`] needs beside them; returns the SHA-256 of `path`, whose metadata hold
    /// those of the other files.
    ///
    /// # Errors
    /// A value that is not finite; a file that cannot be written.
    pub fn save(&self, path: &Path, corpus: &Corpus, settings: &Settings) -> Result<String> {
        let vectors = self.model.vectors();
        // Before the network that an older file needs is replaced.
        vectors.check(path)?;
        let network = match &self.model.scorer {
            Scorer::Sasrec(sasrec) => {
                let file = network_file(path);
                save_module(&file, sasrec)?;
                Some(sha256(&fs::read(&file).context(file.display())?))
            }
            Scorer::Als(_) | Scorer::Bpr(_) => None,
        };
        let interactions = self.model.interactions.digest();
        let ranks = Ranks { temperature: self.temperature, interactions, network };
        vectors.write(path, corpus, settings, Some(ranks))
    }

    /// Reads what [`Distribution::save`] wrote, a `method` learnt from this corpus's training
    /// windows.
    ///
    /// # Errors
    /// Those of [`Vectors::open`]; vectors of another method, other training windows or without a
    /// ranker; a damaged network.
    pub fn open(path: &Path, method: Method, corpus: &Corpus, device: &B::Device) -> Result<Self> {
        let place = path.display();
        let (vectors, about) = Vectors::read(path, corpus)?;
        let Some(About { settings, ranks: Some(ranks), .. }) = about else {
            return Err(Error::failed(format!(
                "{place}: it holds vectors, but not what ranks by them; only files that `itemlm cf` of this version writes do"
            )));
        };
        if settings.method() != method {
            return Err(Error::failed(format!("{place}: learnt by {}, not by {method}", settings.method())));
        }
        settings.check().context(&place)?;
        if settings.dim() != vectors.dim {
            let (said, held) = (settings.dim(), vectors.dim);
            return Err(Error::failed(format!(
                "{place}: its settings say dim = {said}, its vectors have {held} numbers"
            )));
        }
        let temperature = ranks.temperature;
        if !(COLDEST..=HOTTEST).contains(&temperature) {
            return Err(Error::failed(format!(
                "{place}: its temperature is {temperature}, not between {COLDEST} and {HOTTEST}"
            )));
        }
        let interactions = Interactions::of_training(corpus)?;
        if interactions.digest() != ranks.interactions {
            return Err(Error::failed(format!(
                "{place}: learnt from other training windows than this corpus has; run `itemlm cf {method}` on this corpus"
            )));
        }
        let items: Vec<f32> = interactions.items.iter().flat_map(|&item| vectors.item(item)).copied().collect();
        let scorer = match &settings {
            Settings::Als(config) => Scorer::Als(als::Als::of_vectors(config, &items, &vectors.users)),
            Settings::Bpr(config) => Scorer::Bpr(bpr::Factors { dim: config.dim, items, users: vectors.users }),
            Settings::Sasrec(config) => {
                let file = network_file(path);
                if ranks.network != Some(sha256(&fs::read(&file).context(file.display())?)) {
                    return Err(Error::failed(format!(
                        "{}: not the one that {place} was written with",
                        file.display()
                    )));
                }
                let known = interactions.items.len();
                Scorer::Sasrec(load_module_of(&file, &config.sizes(known), || Ok(config.init::<B>(known, device)))?)
            }
        };
        Ok(Self { model: Model { scorer, interactions: Arc::new(interactions) }, temperature })
    }
}

impl<B: Backend> Ranker for Distribution<B> {
    fn items(&self) -> usize {
        self.model.interactions.catalogue()
    }

    /// Probabilities over the temperature; all 0 after a history of which the model knows nothing.
    /// A training window's target is among what it has learnt.
    fn scores(&self, history: &[u32]) -> Vec<f64> {
        if self.model.interactions.known(history).is_empty() {
            return vec![0.0; self.items()];
        }
        let mut scores = self.model.scores(&[history]);
        for &item in history {
            if let Some(score) = scores.get_mut(item as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if best == f32::NEG_INFINITY {
            return vec![0.0; scores.len()];
        }
        scores.into_iter().map(|score| (f64::from(score - best) / self.temperature).exp()).collect()
    }
}

/// The temperature under which the known targets of the validation windows are likeliest. The
/// log-likelihood is concave in the temperature's inverse β; its slope is the sum of score(target)
/// − E_β score. `None` where no target is known.
fn likeliest_temperature<B: Backend>(model: &Model<B>, corpus: &Corpus) -> Option<f64> {
    let windows = corpus.windows(Split::Valid);
    let most = (SCORES / model.interactions.catalogue().max(1)).clamp(1, WINDOWS);
    let step = windows.len().div_ceil(most).max(1);
    // For each window its items' scores, the best 0, and the target's.
    let mut known: Vec<(Vec<f32>, f64)> = Vec::new();
    for window in windows.iter().step_by(step) {
        let (history, target) = (corpus.history(window), corpus.target(window));
        if model.interactions.known(history).is_empty()
            || history.contains(&target)
            || model.interactions.count(target) == 0
        {
            continue;
        }
        let scores = model.scores(&[history]);
        let ranked = (0u32..).zip(&scores).filter(|(item, score)| score.is_finite() && !history.contains(item));
        let best = ranked.clone().map(|(_, &score)| score).fold(f32::NEG_INFINITY, f32::max);
        let below: Vec<f32> = ranked.map(|(_, &score)| score - best).collect();
        known.push((below, f64::from(scores[target as usize] - best)));
    }
    if known.is_empty() {
        return None;
    }
    let slope = |temperature: f64| -> f64 {
        let of = |(scores, target): &(Vec<f32>, f64)| {
            let (mut sum, mut mass) = (0.0, 0.0);
            for &score in scores {
                let score = f64::from(score);
                let weight = (score / temperature).exp();
                sum += weight * score;
                mass += weight;
            }
            target - sum / mass
        };
        known.iter().map(of).sum()
    };
    let (mut cold, mut hot) = (COLDEST.ln(), HOTTEST.ln());
    // To a relative 1e-5.
    for _ in 0..20 {
        let middle = 0.5 * (cold + hot);
        // Where the slope in β is above 0, a larger β is likelier, which is a lower temperature.
        match slope(middle.exp()) > 0.0 {
            true => hot = middle,
            false => cold = middle,
        }
    }
    Some((0.5 * (cold + hot)).exp())
}
