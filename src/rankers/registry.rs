//! The rankers by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Display};
use std::path::Path;
use std::sync::Arc;

use burn::DispatchDevice;

use super::mixture::{Mixture, fit_weights};
use super::{Ranker, VectorMethod, VectorRanker, als, bpr, counts, sasrec, text};
use crate::config::PriorConfig;
use crate::data::Corpus;
use crate::{Context, Error, Result};

/// All rankers, in the order in which messages list them.
pub const REGISTRY: &[Entry] =
    &[counts::POPULARITY, counts::MARKOV, counts::COOCCURRENCE, text::ENTRY, als::ENTRY, bpr::ENTRY, sasrec::ENTRY];

/// A ranker's entry in the registry.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name that command lines and run files use.
    pub name: &'static str,
    /// The ranking criterion: one sentence without its full stop.
    pub about: &'static str,
    /// Checks settings, and makes the method of them.
    pub method: fn(toml::Table) -> Result<Method>,
}

/// Way in which a ranker is made.
#[derive(Debug)]
pub enum Method {
    /// It is fitted to a corpus in seconds, so nothing of it is kept.
    Fit(Box<dyn Fit>),
    /// Its vectors are trained, and `itemlm cf` writes them. The targets of the training windows
    /// were among its training data, so it cannot be a prior in the loss.
    Vectors(Box<dyn VectorMethod>),
}

/// A ranker's settings, ready to be fitted.
pub trait Fit: Debug + Send + Sync {
    /// Fits the ranker to a corpus's training windows.
    ///
    /// # Errors
    /// A corpus or a file of the settings that cannot be used.
    fn fit(&self, context: &mut FitContext) -> Result<Arc<dyn Ranker>>;
}

/// Inputs of fitting a ranker.
pub struct FitContext<'a> {
    /// The corpus whose training windows are learnt from.
    pub corpus: &'a Corpus,
    /// Opens the device that tensors run on.
    pub device: &'a dyn Fn() -> Result<DispatchDevice>,
    /// Measures a ranker on the validation windows, the higher the better; `None` where there are
    /// none.
    pub validate: &'a dyn Fn(&dyn Ranker) -> Option<f64>,
    /// The file that gets a line an optimiser step of BPR and SASRec; no file for `None`.
    pub metrics: Option<&'a Path>,
    /// Gets lines of progress.
    pub say: &'a mut dyn FnMut(&str),
}

/// A fitted ranker.
#[derive(Clone, Debug)]
pub struct FittedRanker {
    /// The ranker.
    pub ranker: Arc<dyn Ranker>,
    /// The weight of each part of a mixture.
    pub mixture: Option<BTreeMap<String, f64>>,
}

/// Finds a ranker by name.
///
/// # Errors
/// A usage error that lists the names.
pub fn entry(name: &str) -> Result<&'static Entry> {
    REGISTRY.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let names: Vec<&str> = REGISTRY.iter().map(|entry| entry.name).collect();
        Error::usage(format!("ranker `{name}`: use {}", list(&names, "or")))
    })
}

/// Finds a method that learns vectors by name, and gives it settings.
///
/// # Errors
/// Usage errors: a ranker that is not there, or that learns no vectors; settings out of range.
pub fn vector_method(name: &str, settings: toml::Table) -> Result<Box<dyn VectorMethod>> {
    let method = entry(name).and_then(|entry| (entry.method)(settings))?;
    match method {
        Method::Vectors(method) => Ok(method),
        Method::Fit(_) => {
            Err(Error::usage(format!("{name} learns no vectors: use {}", list(&vector_method_names(), "or"))))
        }
    }
}

/// Returns the names of the rankers that learn vectors.
pub fn vector_method_names() -> Vec<&'static str> {
    let learns = |entry: &&Entry| matches!((entry.method)(toml::Table::new()), Ok(Method::Vectors(_)));
    REGISTRY.iter().filter(learns).map(|entry| entry.name).collect()
}

/// Joins names as in "a, b or c".
pub(crate) fn list(names: &[&str], and: &str) -> String {
    match names {
        [] => String::new(),
        [only] => only.to_string(),
        [others @ .., last] => format!("{} {and} {last}", others.join(", ")),
    }
}

/// A ranker of the registry with its settings, or a mixture of several.
#[derive(Debug)]
pub struct RankerSpec {
    /// At least one.
    parts: Vec<(&'static Entry, Method)>,
}

impl RankerSpec {
    /// Finds a ranker by name and gives it settings. Names joined by `+` are a mixture; each part's
    /// settings are in a table of its name.
    ///
    /// # Errors
    /// Usage errors that name the ranker or the key.
    pub fn new(names: &str, mut settings: toml::Table) -> Result<Self> {
        let names: Vec<&str> = names.split('+').collect();
        if let &[name] = names.as_slice() {
            let entry = entry(name)?;
            return Ok(Self { parts: vec![(entry, (entry.method)(settings)?)] });
        }
        let mut parts = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let entry = entry(name)?;
            if names[..index].contains(name) {
                return Err(Error::usage(format!("ranker `{}`: {name} is there twice", names.join("+"))));
            }
            let own = match settings.remove(*name) {
                None => toml::Table::new(),
                Some(toml::Value::Table(own)) => own,
                Some(_) => {
                    return Err(Error::usage(format!("settings of {}: write {name}.key=value", names.join("+"))));
                }
            };
            parts.push((entry, (entry.method)(own)?));
        }
        match settings.keys().next() {
            None => Ok(Self { parts }),
            Some(key) => Err(Error::usage(format!(
                "settings of {}: `{key}` is none of its rankers; write RANKER.key=value",
                names.join("+")
            ))),
        }
    }

    /// Finds the ranker of `[prior]`.
    ///
    /// # Errors
    /// Usage errors: a ranker that is not there, settings out of range; vectors that are missing,
    /// or of a ranker that needs none; `in_loss` with a ranker that was trained on the targets;
    /// weights that are not those of the mixture's parts.
    pub fn from_prior_config(config: &PriorConfig) -> Result<Self> {
        let spec = Self::new(&config.ranker, config.settings.clone())
            .map_err(|error| Error::usage(format!("prior.ranker: {error}")))?;
        let learnt: Vec<&str> =
            spec.parts.iter().filter(|(_, method)| method.is_learnt()).map(|(e, _)| e.name).collect();
        match (learnt.as_slice(), &config.vectors) {
            ([], None) => {}
            ([], Some(_)) => {
                return Err(Error::usage(format!(
                    "prior.vectors is for the rankers {}, not {spec}",
                    list(&vector_method_names(), "and")
                )));
            }
            ([name], None) => {
                return Err(Error::usage(format!(
                    "prior.ranker = \"{spec}\" needs prior.vectors, the file that `itemlm cf {name}` writes"
                )));
            }
            ([name], Some(_)) if config.in_loss => {
                return Err(Error::usage(format!(
                    "prior.in_loss: {name} was trained on the targets of the loss, so its prior would give them \
                     away; use a ranker that counts, or in_loss = false"
                )));
            }
            ([_], Some(_)) => {}
            ([first, second, ..], _) => {
                return Err(Error::usage(format!(
                    "prior.ranker = \"{spec}\": {first} and {second} both need vectors, and prior.vectors is one file"
                )));
            }
        }
        config.mixture.as_ref().map_or(Ok(()), |mixture| spec.check_weights(mixture))?;
        Ok(spec)
    }

    fn check_weights(&self, mixture: &BTreeMap<String, f64>) -> Result<()> {
        let names: BTreeSet<&str> = self.parts.iter().map(|(entry, _)| entry.name).collect();
        let same = self.parts.len() > 1 && mixture.keys().map(String::as_str).eq(names);
        let valid = mixture.values().all(|weight| (0.0..=1.0).contains(weight));
        match same && valid && mixture.values().sum::<f64>() > 0.0 {
            true => Ok(()),
            false => Err(Error::usage(format!(
                "prior.mixture: it must give each part of {self} a weight between 0 and 1, not all of them 0"
            ))),
        }
    }

    /// Describes what each ranker ranks by, in a line each.
    pub fn summaries(&self) -> Vec<String> {
        self.parts.iter().map(|(entry, _)| format!("{}: {}", entry.name, entry.about)).collect()
    }

    /// Fits the ranker to a corpus's training windows, the weights of a mixture to its validation
    /// windows.
    ///
    /// # Errors
    /// Those of its method.
    pub fn fit(&self, context: &mut FitContext) -> Result<FittedRanker> {
        let mut rankers: Vec<Arc<dyn Ranker>> = Vec::with_capacity(self.parts.len());
        for (_, method) in &self.parts {
            rankers.push(match method {
                Method::Fit(method) => method.fit(context)?,
                Method::Vectors(method) => Arc::new(VectorRanker::train(&**method, context)?.model),
            });
        }
        self.mix(rankers, None, context.corpus)
    }

    /// Fits the ranker of `[prior]` to a corpus's training windows, or reads it from the file of
    /// its vectors.
    ///
    /// * `kept`: the weights that a mixture had when the run was started; they are used where they
    ///   are of this mixture and `config` gives none.
    ///
    /// # Errors
    /// Those of its method and of [`VectorRanker::open`].
    pub fn open(
        &self,
        config: &PriorConfig,
        kept: Option<&BTreeMap<String, f64>>,
        corpus: &Corpus,
        device: &DispatchDevice,
    ) -> Result<FittedRanker> {
        let device_of = || Ok(device.clone());
        let mut context =
            FitContext { corpus, device: &device_of, validate: &|_| None, metrics: None, say: &mut |_| {} };
        let mut rankers: Vec<Arc<dyn Ranker>> = Vec::with_capacity(self.parts.len());
        for (entry, method) in &self.parts {
            rankers.push(match method {
                Method::Fit(method) => method.fit(&mut context)?,
                Method::Vectors(_) => {
                    let path = Path::new(config.vectors.as_deref().unwrap_or_default());
                    Arc::new(VectorRanker::open(path, entry.name, corpus, device).context("prior.vectors")?)
                }
            });
        }
        let kept = kept.filter(|kept| self.check_weights(kept).is_ok());
        self.mix(rankers, config.mixture.as_ref().or(kept), corpus)
    }

    /// Makes one ranker of the parts'; fits the weights that are not given.
    fn mix(
        &self,
        rankers: Vec<Arc<dyn Ranker>>,
        weights: Option<&BTreeMap<String, f64>>,
        corpus: &Corpus,
    ) -> Result<FittedRanker> {
        if let [only] = rankers.as_slice() {
            return Ok(FittedRanker { ranker: only.clone(), mixture: None });
        }
        let names = self.parts.iter().map(|(entry, _)| entry.name);
        let weights: Vec<f64> = match weights {
            Some(given) => names.clone().map(|name| given.get(name).copied().unwrap_or(0.0)).collect(),
            None => fit_weights(&rankers, corpus),
        };
        let mixture = names.map(String::from).zip(weights.iter().copied()).collect();
        Ok(FittedRanker { ranker: Arc::new(Mixture::new(rankers, &weights)), mixture: Some(mixture) })
    }
}

impl Method {
    /// Whether it learns vectors.
    fn is_learnt(&self) -> bool {
        matches!(self, Self::Vectors(_))
    }
}

impl Display for RankerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.parts.iter().map(|(entry, _)| entry.name).collect::<Vec<_>>().join("+"))
    }
}
