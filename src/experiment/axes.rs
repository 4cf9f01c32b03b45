//! The axes of an experiment and their combinations.

use crate::{Error, Result};

/// A setting that varies: one value of each axis makes a cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    /// A key of the run file, or any name.
    pub name: String,
    /// At least one.
    pub variants: Vec<Variant>,
}

/// A value of an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Variant {
    /// Its part of the cell's name.
    pub label: String,
    /// The keys that it sets, with their values.
    pub set: Vec<(String, toml::Value)>,
}

impl Axis {
    /// Reads an axis; `names` are the names of all axes.
    ///
    /// # Errors
    /// Usage errors that name the axis.
    pub fn new(name: &str, value: &toml::Value, names: &[&str]) -> Result<Self> {
        let wrong = |why: &str| Error::usage(format!("axes: {name}: {why}"));
        let values = value.as_array().filter(|values| !values.is_empty());
        let values = values.ok_or_else(|| wrong("it must be a list of at least one value"))?;
        let named = values.iter().any(|value| value.as_table().is_some_and(|table| table.contains_key("name")));
        let mut variants: Vec<Variant> = Vec::new();
        for value in values {
            let variant = match named {
                true => Variant::from_table(value).map_err(|why| wrong(&why))?,
                false => Variant::from_key(name, value, names),
            };
            if variant.set.iter().any(|(key, _)| key == "seed") {
                return Err(wrong("the seeds of the runs are in `seeds`"));
            }
            if variants.iter().any(|other| other.label == variant.label) {
                return Err(wrong(&format!("{} is there twice", variant.label)));
            }
            variants.push(variant);
        }
        Ok(Self { name: name.into(), variants })
    }
}

impl Variant {
    /// Reads `{ name = "…", "key.path" = value, … }`.
    fn from_table(value: &toml::Value) -> std::result::Result<Self, String> {
        let name = value.as_table().and_then(|table| table.get("name")?.as_str()).filter(|name| !name.is_empty());
        let (Some(label), Some(table)) = (name, value.as_table()) else {
            return Err("each of its values must be a table with a name, or none".into());
        };
        let set = table.iter().filter(|(key, _)| *key != "name").map(|(key, value)| (key.clone(), value.clone()));
        Ok(Self { label: label.into(), set: set.collect() })
    }

    /// Takes a value of the key `key`. The label has the key's last part, unless that is the last
    /// part of another of `keys`, too.
    fn from_key(key: &str, value: &toml::Value, keys: &[&str]) -> Self {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
        let alone = keys.iter().filter(|other| last(other) == last(key)).count() == 1;
        let short = if alone { last(key) } else { key.to_string() };
        let text = value.as_str().map_or_else(|| value.to_string(), String::from);
        Self { label: format!("{short}={text}"), set: vec![(key.into(), value.clone())] }
    }
}

/// Returns every combination of one variant of each axis, the last axis the fastest; of no axis
/// the empty combination.
pub(super) fn combinations(axes: &[Axis]) -> Vec<Vec<&Variant>> {
    axes.iter().fold(vec![Vec::new()], |combinations, axis| {
        let extended = |start: &Vec<_>, variant| start.iter().copied().chain([variant]).collect();
        combinations
            .iter()
            .flat_map(|start| axis.variants.iter().map(move |variant| extended(start, variant)))
            .collect()
    })
}
