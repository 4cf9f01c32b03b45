//! The hyper-parameters of each method, set by `key=value`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Method;
use super::als::AlsConfig;
use super::bpr::BprConfig;
use super::sasrec::SasRecConfig;
use crate::{Error, Result, config};

/// A method with its hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Settings {
    /// Alternating least squares.
    Als(AlsConfig),
    /// Bayesian personalised ranking.
    Bpr(BprConfig),
    /// Self-attention.
    Sasrec(SasRecConfig),
}

impl Settings {
    /// The method's defaults with `key=value` overrides, in order.
    ///
    /// # Errors
    /// An unknown key, a value of the wrong kind or out of range: usage errors that name the key.
    pub fn parse(method: Method, overrides: &[String]) -> Result<Self> {
        let mut table = toml::Table::new();
        for assignment in overrides {
            config::set(&mut table, assignment)?;
        }
        let settings = match method {
            Method::Als => Self::Als(read(method, table)?),
            Method::Bpr => Self::Bpr(read(method, table)?),
            Method::Sasrec => Self::Sasrec(read(method, table)?),
        };
        settings.check()?;
        Ok(settings)
    }

    /// Which method they are of.
    pub fn method(&self) -> Method {
        match self {
            Self::Als(_) => Method::Als,
            Self::Bpr(_) => Method::Bpr,
            Self::Sasrec(_) => Method::Sasrec,
        }
    }

    /// Length of a vector.
    pub fn dim(&self) -> usize {
        match self {
            Self::Als(config) => config.dim,
            Self::Bpr(config) => config.dim,
            Self::Sasrec(config) => config.dim,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Als(c) => {
                whole("dim", c.dim, 4096)?;
                whole("iterations", c.iterations, 1 << 20)?;
                number("alpha", c.alpha, 0.0, 1e9)?;
                // Without it the system of an item or user with few interactions has no one
                // solution.
                number("regularization", c.regularization, 1e-9, 1e9)
            }
            Self::Bpr(c) => {
                whole("dim", c.dim, 4096)?;
                whole("batch_size", c.batch_size, 1 << 24)?;
                whole("epochs", c.epochs, 1 << 20)?;
                whole("patience", c.patience, 1 << 20)?;
                number("learning_rate", c.learning_rate, 0.0, 1e3)?;
                number("regularization", c.regularization, 0.0, 1e9)
            }
            Self::Sasrec(c) => {
                whole("dim", c.dim, 4096)?;
                whole("heads", c.heads, 4096)?;
                whole("blocks", c.blocks, 64)?;
                whole("max_len", c.max_len, 4096)?;
                whole("batch_size", c.batch_size, 1 << 20)?;
                whole("epochs", c.epochs, 1 << 20)?;
                whole("patience", c.patience, 1 << 20)?;
                number("learning_rate", c.learning_rate, 0.0, 1e3)?;
                number("weight_decay", c.weight_decay, 0.0, 1e3)?;
                number("dropout", c.dropout, 0.0, 0.99)?;
                if !c.dim.is_multiple_of(c.heads) {
                    return Err(Error::usage(format!(
                        "dim is {}, it must be a multiple of heads ({})",
                        c.dim, c.heads
                    )));
                }
                Ok(())
            }
        }
    }
}

fn read<T: DeserializeOwned>(method: Method, table: toml::Table) -> Result<T> {
    table.try_into().map_err(|e: toml::de::Error| Error::usage(format!("--set, settings of {method}: {e}")))
}

fn whole(key: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::usage(format!("{key} is {value}, it must be between 1 and {most}")))
}

fn number(key: &str, value: f64, least: f64, most: f64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::usage(format!("{key} is {value}, it must be between {least} and {most}")))
}
