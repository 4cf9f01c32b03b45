//! The modules that an adapter in PEFT's format is on.
//!
//! Reference: peft/tuners/tuners_utils.py, `check_target_module_exists`: `target_modules` is a list
//! of names or of their ends (`q_proj`, `self_attn.q_proj`, `model.layers.1.self_attn.q_proj`), or
//! a regular expression; `layers_to_transform` and `exclude_modules` take some away. The tensors'
//! names say what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Weights;
use crate::model::formats::safetensors::open_file;
use crate::{Error, Result};

/// `target_modules` of `adapter_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum TargetModules {
    /// Names of modules, or ends of names.
    Names(Vec<String>),
    /// A regular expression of whole names.
    Expression(String),
}

/// Keys that exclude modules of some layers.
pub(super) const SELECTING_KEYS: [&str; 3] = ["layers_to_transform", "layers_pattern", "exclude_modules"];

impl TargetModules {
    /// Returns whether every layer's modules of these names have an adapter: the names are the last
    /// parts of modules' names, and no other key excludes modules.
    pub(super) fn is_plain(&self, others: &BTreeMap<String, Value>) -> bool {
        let set = |key: &&str| match others.get(*key) {
            None | Some(Value::Null) => false,
            Some(Value::Array(values)) => !values.is_empty(),
            Some(_) => true,
        };
        match self {
            Self::Names(names) => names.iter().all(|name| !name.contains('.')) && !SELECTING_KEYS.iter().any(set),
            Self::Expression(_) => false,
        }
    }
}

/// Returns the last parts of the names of the modules that the adapter's tensors are on, such as
/// `q_proj`, in the order of `projections`.
///
/// # Errors
/// A damaged file, or one without an adapter.
pub(super) fn targets_of_tensors(path: &Path, projections: &[&str]) -> Result<Vec<String>> {
    let weights = open_file(path)?;
    let modules: BTreeSet<&str> = weights.names().filter_map(module).collect();
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let known: Vec<String> = projections.iter().map(|projection| last(projection)).collect();
    let found: BTreeSet<String> = modules.iter().map(|module| last(module)).collect();
    if let Some(other) = found.iter().find(|name| !known.contains(name)) {
        return Err(Error::failed(format!(
            "{}: it holds an adapter on {other}; only {} can have one",
            path.display(),
            known.join(", ")
        )));
    }
    match found.is_empty() {
        true => Err(Error::failed(format!("{}: it holds no LoRA matrix", path.display()))),
        false => Ok(known.into_iter().filter(|name| found.contains(name)).collect()),
    }
}

/// Returns whether the file holds a matrix of the adapter on `module`.
pub(super) fn holds(weights: &Weights, tensor: &str) -> bool {
    module(tensor).is_some_and(|wanted| weights.names().any(|name| module(name) == Some(wanted)))
}

/// Returns the module that a LoRA matrix is on.
fn module(tensor: &str) -> Option<&str> {
    tensor.split_once(".lora_").map(|(module, _)| module)
}
