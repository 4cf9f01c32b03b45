//! `[loss]` of the run file.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Problems;
use crate::{Error, Result};

/// `[loss]`
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "LossFields")]
pub struct LossConfig {
    /// Over which tokens the softmax is computed, and how tokens are weighted.
    pub kind: LossKind,
    /// `"adaptive"` (for `msl` alone, and its default) or a number (1 by default).
    pub temperature: Temperature,
    /// λ, how much the beam's edge counts; for `bear` alone. [`LossConfig::LAMBDA`] by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// ξ, how soft the beam's edge is; for `bear` alone. [`LossConfig::XI`] by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xi: Option<f64>,
}

/// `[loss]` before its defaults, which depend on `kind`, are filled in.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "loss", deny_unknown_fields)]
struct LossFields {
    #[serde(default)]
    kind: LossKind,
    temperature: Option<Temperature>,
    lambda: Option<f64>,
    xi: Option<f64>,
}

impl From<LossFields> for LossConfig {
    fn from(written: LossFields) -> Self {
        let LossFields { kind, temperature, lambda, xi } = written;
        let temperature = match (kind, temperature) {
            // Run files of earlier versions say "adaptive" for LML, which had no temperature.
            (LossKind::Lml, None | Some(Temperature::Adaptive)) => Temperature::Fixed(1.0),
            (LossKind::Bear, None) => Temperature::Fixed(1.0),
            (LossKind::Msl, None) => Temperature::Adaptive,
            (_, Some(temperature)) => temperature,
        };
        Self { kind, temperature, lambda, xi }
    }
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { kind: LossKind::Msl, temperature: Temperature::Adaptive, lambda: None, xi: None }
    }
}

impl LossConfig {
    /// λ of the released BEAR on toys.
    pub const LAMBDA: f64 = 0.25;
    /// ξ of the released BEAR on toys.
    pub const XI: f64 = 2.75;

    pub(super) fn validate(&self, problems: &mut Problems) {
        if self.kind == LossKind::Bear && self.temperature == Temperature::Adaptive {
            problems.add("loss.temperature = \"adaptive\" is for loss.kind = \"msl\": give \"bear\" a number");
        }
        if let Temperature::Fixed(temperature) = self.temperature {
            problems.add_error(check_positive("loss.temperature", temperature));
        }
        for (key, value) in [("loss.lambda", self.lambda), ("loss.xi", self.xi)] {
            match value {
                Some(_) if self.kind != LossKind::Bear => {
                    problems.add(format!("{key} is for loss.kind = \"bear\""));
                }
                Some(value) => problems.add_error(check_positive(key, value)),
                None => {}
            }
        }
    }
}

fn check_positive(key: &str, value: f64) -> Result<()> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(Error::usage(format!("{key} is {value}, it must be a finite number above 0"))),
    }
}

/// `loss.kind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Softmax over the vocabulary.
    Lml,
    /// Softmax over the trie's children.
    #[default]
    Msl,
    /// MSL whose tokens are weighted by their probability relative to the edge of the beam (BEAR).
    Bear,
}

/// `loss.temperature`
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Temperature {
    /// A temperature that the adaptive temperature strategy (ATS) sets anew each step.
    #[default]
    Adaptive,
    /// One temperature in all steps.
    Fixed(f64),
}

impl JsonSchema for Temperature {
    fn schema_name() -> Cow<'static, str> {
        "Temperature".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": "adaptive" }, { "type": "number", "exclusiveMinimum": 0 }] })
    }
}

impl Serialize for Temperature {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Adaptive => serializer.serialize_str("adaptive"),
            Self::Fixed(value) => serializer.serialize_f64(*value),
        }
    }
}

impl<'de> Deserialize<'de> for Temperature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(s) if s == "adaptive" => Ok(Self::Adaptive),
            toml::Value::Float(value) => Ok(Self::Fixed(value)),
            toml::Value::Integer(value) => Ok(Self::Fixed(value as f64)),
            other => {
                Err(serde::de::Error::custom(format!("temperature is {other}, it must be \"adaptive\" or a number")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RunConfig;
    use super::super::tests::MINIMAL;
    use super::*;

    fn parse(sets: &[&str]) -> Result<LossConfig> {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        Ok(RunConfig::parse(MINIMAL, &sets, "run.toml")?.loss)
    }

    #[test]
    fn defaults_depend_on_the_kind() {
        assert_eq!(parse(&[]).unwrap(), LossConfig::default());
        let fixed = |kind, temperature| LossConfig {
            kind,
            temperature: Temperature::Fixed(temperature),
            ..LossConfig::default()
        };
        assert_eq!(parse(&["loss.kind=lml"]).unwrap(), fixed(LossKind::Lml, 1.0));
        assert_eq!(parse(&["loss.kind=lml", "loss.temperature=2"]).unwrap(), fixed(LossKind::Lml, 2.0));
        // As earlier versions wrote it.
        assert_eq!(parse(&["loss.kind=lml", "loss.temperature=adaptive"]).unwrap(), fixed(LossKind::Lml, 1.0));
        assert_eq!(parse(&["loss.kind=bear"]).unwrap(), fixed(LossKind::Bear, 1.0));
        let bear = parse(&["loss.kind=bear", "loss.lambda=0.5", "loss.xi=3"]).unwrap();
        assert_eq!((bear.lambda, bear.xi), (Some(0.5), Some(3.0)));
    }

    #[test]
    fn keys_of_another_kind_are_refused() {
        for (sets, named) in [
            (&["loss.lambda=0.5"][..], "loss.lambda"),
            (&["loss.kind=lml", "loss.xi=1"], "loss.xi"),
            (&["loss.kind=bear", "loss.xi=0"], "loss.xi"),
            (&["loss.kind=bear", "loss.temperature=adaptive"], "loss.temperature"),
        ] {
            let error = parse(sets).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{sets:?}");
            assert!(error.to_string().contains(named), "{sets:?}: {error}");
        }
    }
}
