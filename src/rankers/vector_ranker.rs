//! Rankers that learn vectors of items and users from the training windows: what a method must
//! implement ([`VectorMethod`], [`VectorModel`]), and the ranker made of what it learnt.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::DispatchDevice;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::registry::{FitContext, Method};
use super::temperature::{COLDEST, HOTTEST, likeliest_temperature};
use super::training::BestEpoch;
use super::vectors_file::{About, Vectors};
use super::{Interactions, Ranker, Scores, registry};
use crate::core::files::sha256;
use crate::data::Corpus;
use crate::{Context, Error, Result};

/// A method that learns vectors, with its settings.
pub trait VectorMethod: Debug + Send + Sync {
    /// Length of a vector.
    fn dim(&self) -> usize;

    /// Returns the settings as a JSON object.
    ///
    /// # Errors
    /// Settings that JSON cannot hold.
    fn settings_json(&self) -> Result<String>;

    /// Collects what the model learns from, and with it the items that it has a row for.
    ///
    /// # Errors
    /// A corpus without training windows.
    fn interactions(&self, corpus: &Corpus) -> Result<Interactions> {
        Interactions::from_training(corpus)
    }

    /// Learns.
    ///
    /// # Errors
    /// A loss or a vector that is not finite; what `VectorTraining::validate` returns.
    fn train(&self, training: &mut VectorTraining) -> Result<BestEpoch<Arc<dyn VectorModel>>>;

    /// Rebuilds the model of a file.
    ///
    /// # Errors
    /// A network that is missing, damaged or of other sizes.
    fn restore(&self, saved: SavedModel) -> Result<Arc<dyn VectorModel>>;
}

/// Inputs and outputs of [`VectorMethod::train`].
pub struct VectorTraining<'a> {
    /// The interactions that [`VectorMethod::interactions`] collected.
    pub interactions: &'a Interactions,
    /// The corpus that they are from.
    pub corpus: &'a Corpus,
    /// The device that tensors run on.
    pub device: DispatchDevice,
    /// Judges a model after an epoch, the higher the better; `None` where there is no validation
    /// window.
    pub validate: &'a mut dyn FnMut(Arc<dyn VectorModel>) -> Result<Option<f64>>,
    /// The file that gets a line an optimiser step, if any.
    pub metrics: Option<PathBuf>,
    /// Gets a line an epoch.
    pub say: &'a mut dyn FnMut(&str),
}

/// A saved model, as [`VectorRanker::save`] writes it and [`VectorMethod::restore`] gets it.
pub struct SavedModel<'a> {
    /// `[rows, dim]`: the vectors of the items that have a row.
    pub items: Vec<f32>,
    /// `[users, dim]`.
    pub users: Vec<f32>,
    /// The file of the network, where the model has one.
    pub network: Option<&'a Path>,
    /// The device to rank on.
    pub device: &'a DispatchDevice,
}

/// A trained model of a method. Items are rows of [`Interactions`].
pub trait VectorModel: Debug + Send + Sync {
    /// Scores the items after histories of any length; 0 for all after none.
    ///
    /// # Shapes
    /// Returns `[histories, rows]`, row after row.
    fn scores(&self, histories: &[Vec<u32>]) -> Vec<f32>;

    /// Returns the items' vectors, `[rows, dim]`.
    fn item_vectors(&self) -> Vec<f32>;

    /// Returns the users' vectors, `[users, dim]`.
    fn user_vectors(&self, interactions: &Interactions) -> Vec<f32>;

    /// Writes the network that makes vectors, where the method has one; returns whether it has.
    ///
    /// # Errors
    /// A file that cannot be written.
    fn save_network(&self, _file: &Path) -> Result<bool> {
        Ok(false)
    }
}

/// Ranks by p(item) ∝ exp(score / temperature) over the items that have a row, without those of
/// the history; p is 0 for all others.
///
/// One temperature serves all histories, the one that makes the targets of the validation windows
/// likeliest: ALS's scores lie between 0 and 1, BPR's and SASRec's have no bounds.
#[derive(Clone, Debug)]
pub struct VectorRanker {
    model: Arc<dyn VectorModel>,
    interactions: Arc<Interactions>,
    dim: usize,
    temperature: f64,
}

/// Metadata of a ranker's file of vectors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RankerMetadata {
    temperature: f64,
    /// [`Interactions::digest`] of the training interactions.
    interactions: String,
    /// SHA-256 of the network's file, where there is one.
    network: Option<String>,
}

/// Returns the file of the network beside `path`.
fn network_file(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".network.safetensors");
    PathBuf::from(name)
}

impl VectorRanker {
    /// Learns from a corpus's training windows, keeps the epoch that `context.validate` finds best
    /// (the last one where there is no validation window), and chooses the temperature.
    ///
    /// # Errors
    /// A device that cannot be opened, a corpus without training windows, training that diverges.
    pub fn train(method: &dyn VectorMethod, context: &mut FitContext) -> Result<BestEpoch<Self>> {
        let device = (context.device)()?;
        let interactions = Arc::new(method.interactions(context.corpus)?);
        let ranker = |model| Self { model, interactions: interactions.clone(), dim: method.dim(), temperature: 1.0 };
        let validate = context.validate;
        let best = method.train(&mut VectorTraining {
            interactions: &interactions,
            corpus: context.corpus,
            device,
            validate: &mut |model| Ok(validate(&ranker(model))),
            metrics: context.metrics.map(Path::to_path_buf),
            say: &mut *context.say,
        })?;
        Ok(best.map(|model| ranker(model).with_likeliest_temperature(context.corpus)))
    }

    fn with_likeliest_temperature(mut self, corpus: &Corpus) -> Self {
        let scores = |history: &[u32]| {
            let has_rows = !self.interactions.rows(history).is_empty();
            has_rows.then(|| self.raw_scores(&[history]))
        };
        self.temperature = likeliest_temperature(corpus, scores).unwrap_or(1.0);
        self
    }

    /// The number that scores are divided by.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// The training interactions.
    pub fn interactions(&self) -> &Interactions {
        &self.interactions
    }

    /// Returns the model's scores of all items of the catalogue; minus infinity for items without a
    /// row.
    ///
    /// # Shapes
    /// `histories`: dense item indices, oldest first; items without a row are passed over. Returns
    /// `[histories, items]`, row after row.
    pub fn raw_scores(&self, histories: &[&[u32]]) -> Vec<f32> {
        let histories: Vec<Vec<u32>> = histories.iter().map(|history| self.interactions.rows(history)).collect();
        let scores = self.model.scores(&histories);
        let (items, catalogue) = (&self.interactions.items, self.interactions.catalogue());
        let mut all = vec![f32::NEG_INFINITY; histories.len() * catalogue];
        for (row, scores) in all.chunks_exact_mut(catalogue).zip(scores.chunks_exact(items.len())) {
            for (&item, &score) in items.iter().zip(scores) {
                row[item as usize] = score;
            }
        }
        all
    }

    /// Returns the vectors of all items and users of the corpus; zero for items without a row and
    /// for users without training interactions. A user's vector is the one that ALS and BPR learnt,
    /// and for SASRec its state after the user's last training interaction.
    pub fn vectors(&self) -> Vectors {
        let (log, dim) = (&self.interactions, self.dim);
        let (items, users) = (self.model.item_vectors(), self.model.user_vectors(log));
        let mut vectors = Vectors::zeros(log.catalogue(), log.users, dim);
        for (&item, vector) in log.items.iter().zip(items.chunks_exact(dim)) {
            vectors.items[item as usize * dim..][..dim].copy_from_slice(vector);
        }
        let rows = vectors.users.chunks_exact_mut(dim).zip(users.chunks_exact(dim));
        for ((row, vector), sequence) in rows.zip(log.last_sequences()) {
            if !sequence.is_empty() {
                row.copy_from_slice(vector);
            }
        }
        vectors
    }

    /// Writes the vectors of all items and users as [`Vectors::save`] does, with what
    /// [`VectorRanker::open`] needs beside them; returns the SHA-256 of `path`, whose metadata hold
    /// the digests of the other files.
    ///
    /// # Errors
    /// A value that is not finite; a file that cannot be written.
    pub fn save(&self, path: &Path, corpus: &Corpus, name: &str, method: &dyn VectorMethod) -> Result<String> {
        let vectors = self.vectors();
        // Before the network that an older file needs is replaced.
        vectors.check(path)?;
        let file = network_file(path);
        let network = match self.model.save_network(&file)? {
            true => Some(sha256(&fs::read(&file).context(file.display())?)),
            false => None,
        };
        let interactions = self.interactions.digest();
        let ranker = RankerMetadata { temperature: self.temperature, interactions, network };
        let settings = format!("{{\"{name}\":{}}}", method.settings_json()?);
        vectors.write(path, corpus, &settings, Some(&ranker))
    }

    /// Reads what [`VectorRanker::save`] wrote: a ranker of the registry's method `name`, learnt
    /// from this corpus's training windows.
    ///
    /// # Errors
    /// Those of [`Vectors::open`]; vectors of another method, of other training windows or without
    /// what ranks by them; a damaged network.
    pub fn open(path: &Path, name: &str, corpus: &Corpus, device: &DispatchDevice) -> Result<Self> {
        let file = path.display();
        let (vectors, about) = Vectors::read(path, corpus)?;
        let Some(About { settings, ranks: Some(ranks), .. }) = about else {
            return Err(Error::failed(format!(
                "{file}: it holds vectors, but not what ranks by them; only files that `itemlm cf` of this version \
                 writes do"
            )));
        };
        let Some((learnt_by, settings)) = settings.into_iter().next() else {
            return Err(Error::failed(format!("{file}: its metadata do not say what learnt it")));
        };
        if learnt_by != name {
            return Err(Error::failed(format!("{file}: learnt by {learnt_by}, not by {name}")));
        }
        let settings = serde_json::from_value(settings).context(format_args!("{file}: settings"))?;
        let Method::Vectors(method) =
            registry::entry(name).and_then(|entry| (entry.method)(settings)).context(&file)?
        else {
            return Err(Error::failed(format!("{file}: {name} learns no vectors")));
        };
        if method.dim() != vectors.dim {
            let (said, has) = (method.dim(), vectors.dim);
            return Err(Error::failed(format!(
                "{file}: its settings say dim = {said}, its vectors have {has} numbers"
            )));
        }
        let temperature = ranks.temperature;
        if !(COLDEST..=HOTTEST).contains(&temperature) {
            return Err(Error::failed(format!(
                "{file}: its temperature is {temperature}, not between {COLDEST} and {HOTTEST}"
            )));
        }
        let interactions = method.interactions(corpus)?;
        if interactions.digest() != ranks.interactions {
            return Err(Error::failed(format!(
                "{file}: learnt from other training windows than this corpus has; run `itemlm cf {name}` on this corpus"
            )));
        }
        let network = network_file(path);
        if let Some(digest) = &ranks.network
            && *digest != sha256(&fs::read(&network).context(network.display())?)
        {
            return Err(Error::failed(format!("{}: not the one that {file} was written with", network.display())));
        }
        let items: Vec<f32> = interactions.items.iter().flat_map(|&item| vectors.item(item)).copied().collect();
        let network = ranks.network.is_some().then_some(network.as_path());
        let model = method.restore(SavedModel { items, users: vectors.users, network, device }).context(&file)?;
        Ok(Self { model, interactions: Arc::new(interactions), dim: vectors.dim, temperature })
    }

    /// Turns the model's scores of all items after `history` into probabilities over the best
    /// one's.
    fn distribution(&self, history: &[u32], scores: &[f32]) -> Scores {
        if self.interactions.rows(history).is_empty() {
            return Scores::none();
        }
        let ranked = |item: &u32| !history.contains(item);
        let best = (0u32..).zip(scores).filter(|(item, _)| ranked(item)).map(|(_, &score)| score);
        let best = best.fold(f32::NEG_INFINITY, f32::max);
        if best == f32::NEG_INFINITY {
            return Scores::none();
        }
        let of = |&score: &f32| (f64::from(score - best) / self.temperature).exp();
        Scores::Dense(scores.iter().map(of).collect()).exclude(history)
    }
}

impl Ranker for VectorRanker {
    fn items(&self) -> usize {
        self.interactions.catalogue()
    }

    /// Probabilities relative to the best item's; 0 for all after a history of which the model
    /// knows nothing. A training window's target is among what it has learnt.
    fn scores(&self, history: &[u32]) -> Scores {
        self.distribution(history, &self.raw_scores(&[history]))
    }

    fn scores_of_all(&self, histories: &[&[u32]]) -> Vec<Scores> {
        let scores = self.raw_scores(histories);
        let rows = scores.par_chunks_exact(self.items().max(1));
        histories.par_iter().zip(rows).map(|(history, scores)| self.distribution(history, scores)).collect()
    }
}
