//! The rankers by name.

use std::fmt::{self, Debug, Display};
use std::path::Path;
use std::sync::Arc;

use burn::DispatchDevice;

use super::{Ranker, VectorMethod, VectorRanker, als, bpr, counts, sasrec};
use crate::config::PriorConfig;
use crate::data::Corpus;
use crate::{Context, Error, Result};

/// All rankers, in the order in which messages list them.
pub const REGISTRY: &[Entry] =
    &[counts::POPULARITY, counts::MARKOV, counts::COOCCURRENCE, als::ENTRY, bpr::ENTRY, sasrec::ENTRY];

/// A ranker's entry in the registry.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name that command lines and run files use.
    pub name: &'static str,
    /// What the ranker ranks by: one sentence without its full stop.
    pub about: &'static str,
    /// Checks settings, and makes the method of them.
    pub method: fn(toml::Table) -> Result<Method>,
}

/// How a ranker comes about.
#[derive(Debug)]
pub enum Method {
    /// It is fitted to a corpus in seconds, so nothing of it is kept.
    Fit(Box<dyn Fit>),
    /// It learns vectors, which `itemlm cf` writes. It has learnt the targets of the training
    /// windows, so it cannot be a prior in the loss.
    Vectors(Box<dyn VectorMethod>),
}

/// A ranker's settings, ready to be fitted.
pub trait Fit: Debug + Send + Sync {
    /// Fits the ranker to a corpus's training windows.
    ///
    /// # Errors
    /// A corpus or a file of the settings that cannot be used.
    fn fit(&self, fitting: &mut Fitting) -> Result<Arc<dyn Ranker>>;
}

/// What rankers are fitted with.
pub struct Fitting<'a> {
    /// The corpus whose training windows are learnt from.
    pub corpus: &'a Corpus,
    /// Opens the device that tensors run on.
    pub device: &'a dyn Fn() -> Result<DispatchDevice>,
    /// Measures a ranker on the validation windows, the higher the better; `None` where there are
    /// none.
    pub validate: &'a dyn Fn(&dyn Ranker) -> Option<f64>,
    /// Gets lines of progress.
    pub say: &'a mut dyn FnMut(&str),
}

/// A fitted ranker.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The ranker.
    pub ranker: Arc<dyn Ranker>,
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

/// A ranker of the registry with its settings.
#[derive(Debug)]
pub struct RankerSpec {
    entry: &'static Entry,
    method: Method,
}

impl RankerSpec {
    /// Finds a ranker by name and gives it settings.
    ///
    /// # Errors
    /// Usage errors that name the ranker or the key.
    pub fn new(name: &str, settings: toml::Table) -> Result<Self> {
        let entry = entry(name)?;
        Ok(Self { entry, method: (entry.method)(settings)? })
    }

    /// Finds the ranker of `[prior]`.
    ///
    /// # Errors
    /// Usage errors: a ranker that is not there, settings out of range; vectors that are missing,
    /// or of a ranker that needs none; `in_loss` with a ranker that has learnt the targets.
    pub fn of_prior(config: &PriorConfig) -> Result<Self> {
        let spec = Self::new(&config.ranker, toml::Table::new())
            .map_err(|error| Error::usage(format!("prior.ranker: {error}")))?;
        let name = spec.entry.name;
        match (&spec.method, &config.vectors) {
            (Method::Vectors(_), None) => Err(Error::usage(format!(
                "prior.ranker = \"{name}\" needs prior.vectors, the file that `itemlm cf {name} CORPUS --out FILE` writes"
            ))),
            (Method::Fit(_), Some(_)) => Err(Error::usage(format!(
                "prior.vectors is for the rankers {}, not {name}",
                list(&vector_method_names(), "and")
            ))),
            (Method::Vectors(_), _) if config.in_loss => Err(Error::usage(format!(
                "prior.in_loss: {name} has learnt the very targets that the loss asks for; use a ranker that counts, or in_loss = false"
            ))),
            _ => Ok(spec),
        }
    }

    /// What the ranker ranks by, one line.
    pub fn about(&self) -> String {
        format!("{}: {}", self.entry.name, self.entry.about)
    }

    /// Fits the ranker to a corpus's training windows.
    ///
    /// # Errors
    /// Those of its method.
    pub fn fit(&self, fitting: &mut Fitting) -> Result<Fitted> {
        let ranker = match &self.method {
            Method::Fit(method) => method.fit(fitting)?,
            Method::Vectors(method) => Arc::new(VectorRanker::train(&**method, fitting)?.model),
        };
        Ok(Fitted { ranker })
    }

    /// Fits the ranker to a corpus's training windows, or reads it from the file of its vectors.
    ///
    /// # Errors
    /// Those of its method and of [`VectorRanker::open`].
    pub fn open(&self, vectors: Option<&str>, corpus: &Corpus, device: &DispatchDevice) -> Result<Fitted> {
        let mut fitting = Fitting { corpus, device: &|| Ok(device.clone()), validate: &|_| None, say: &mut |_| {} };
        match &self.method {
            Method::Fit(_) => self.fit(&mut fitting),
            Method::Vectors(_) => {
                let path = Path::new(vectors.unwrap_or_default());
                let ranker = VectorRanker::open(path, self.entry.name, corpus, device).context("prior.vectors")?;
                Ok(Fitted { ranker: Arc::new(ranker) })
            }
        }
    }
}

impl Display for RankerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.entry.name)
    }
}
