//! The settings of a ranker: read from `--set key=value` or `prior.settings`, and checked.

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads a ranker's settings; keys that are not there keep their defaults.
///
/// # Errors
/// An unknown key, or a value of the wrong type: usage errors that name the key.
pub(crate) fn read<T: DeserializeOwned>(ranker: &str, table: toml::Table) -> Result<T> {
    table.try_into().map_err(|e: toml::de::Error| Error::usage(format!("settings of {ranker}: {e}")))
}

/// Refuses settings of a ranker that has none.
///
/// # Errors
/// A usage error that names the first key.
pub(crate) fn refuse_all(ranker: &str, table: &toml::Table) -> Result<()> {
    match table.keys().next() {
        Some(key) => Err(Error::usage(format!("settings of {ranker}: `{key}`: it has no settings"))),
        None => Ok(()),
    }
}

/// Checks a setting that is a whole number.
///
/// # Errors
/// A usage error where `value` is not between 1 and `most`.
pub(crate) fn check_whole(key: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::usage(format!("{key} is {value}, it must be between 1 and {most}")))
}

/// Checks a setting that is a real number.
///
/// # Errors
/// A usage error where `value` is not between `least` and `most`.
pub(crate) fn check_number(key: &str, value: f64, least: f64, most: f64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::usage(format!("{key} is {value}, it must be between {least} and {most}")))
}
