//! `[loss]` of the run file.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `[loss]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Which tokens compete.
    #[serde(default = "msl")]
    pub kind: LossKind,
    /// `"adaptive"` or a number; LML ignores it.
    #[serde(default)]
    pub temperature: Temperature,
}

fn msl() -> LossKind {
    LossKind::Msl
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { kind: LossKind::Msl, temperature: Temperature::Adaptive }
    }
}

/// `loss.kind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Softmax over the vocabulary.
    Lml,
    /// Softmax over the trie's children.
    Msl,
}

/// `loss.temperature`
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Temperature {
    /// ATS.
    #[default]
    Adaptive,
    /// Fixed.
    Fixed(f64),
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
