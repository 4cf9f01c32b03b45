//! Rotary position embedding: its base, and the scalings for contexts longer than a model was
//! trained on.
//!
//! Reference: transformers, modeling_rope_utils.py.

use std::f64::consts::PI;

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{DecoderConfig, refuse};
use crate::Result;
use crate::kernels::RotaryFrequencies;

/// A change of RoPE's angles, by `rope_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// `llama3`: Llama 3.1 and later.
    Llama3(Llama3RopeScaling),
    /// `linear`: all angles divided by this factor (arXiv 2306.15595).
    Linear(f64),
    /// `dynamic`: a larger base for sequences longer than `max_position_embeddings`. No prompt is
    /// that long, so the angles are those without scaling; the factor is kept for export.
    Dynamic(f64),
    /// `yarn` (arXiv 2309.00071).
    Yarn(YarnRopeScaling),
}

/// RoPE scaling of Llama 3.1 and later.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama3RopeScaling {
    /// Stretch of long wavelengths.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context length before scaling, tokens.
    pub original_max_position_embeddings: usize,
}

impl Llama3RopeScaling {
    /// Returns the stretch of each of the `head_dim / 2` wavelengths (llama.cpp stores it as
    /// `rope_freqs.weight`; the formula is transformers' `_compute_llama3_parameters`).
    pub fn stretch(&self, rope_theta: f64, head_dim: usize) -> Vec<f64> {
        let context = self.original_max_position_embeddings as f64;
        let pairs = (0..head_dim / 2).map(|i| 2.0 * i as f64 / head_dim as f64);
        pairs
            .map(|exponent| {
                let wavelength = 2.0 * PI * rope_theta.powf(exponent);
                if wavelength < context / self.high_freq_factor {
                    1.0
                } else if wavelength > context / self.low_freq_factor {
                    self.factor
                } else {
                    let smooth =
                        (context / wavelength - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
                    1.0 / ((1.0 - smooth) / self.factor + smooth)
                }
            })
            .collect()
    }
}

/// YaRN: short wavelengths are kept, long ones stretched, and the rotated numbers scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct YarnRopeScaling {
    /// Stretch of long wavelengths.
    pub factor: f64,
    /// Context length before scaling, tokens.
    pub original_max_position_embeddings: usize,
    /// Wavelengths that turn more often than this in the original context are kept.
    pub beta_fast: f64,
    /// Wavelengths that turn less often than this in the original context are stretched fully.
    pub beta_slow: f64,
    /// Factor of the rotated numbers.
    pub attention_factor: f64,
    /// Whether the range between the two is widened to whole pairs of numbers.
    pub truncate: bool,
}

impl YarnRopeScaling {
    /// Returns the stretch of each of the `dim / 2` wavelengths: transformers'
    /// `_compute_yarn_parameters`.
    fn stretch(&self, rope_theta: f64, dim: usize) -> Vec<f64> {
        let context = self.original_max_position_embeddings as f64;
        let pair = |turns: f64| dim as f64 * (context / (turns * 2.0 * PI)).ln() / (2.0 * rope_theta.ln());
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        (0..dim / 2)
            .map(|i| {
                let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / (stretched / self.factor + 1.0 - stretched)
            })
            .collect()
    }
}

impl RopeScaling {
    /// Returns the stretch of each of the `dim / 2` wavelengths.
    fn stretch(&self, rope_theta: f64, dim: usize) -> Vec<f64> {
        match self {
            Self::Llama3(scaling) => scaling.stretch(rope_theta, dim),
            Self::Linear(factor) => vec![*factor; dim / 2],
            Self::Dynamic(_) => vec![1.0; dim / 2],
            Self::Yarn(scaling) => scaling.stretch(rope_theta, dim),
        }
    }

    /// Returns the scaling's positive numbers, by key.
    pub(super) fn numbers(&self) -> Vec<(&'static str, f64)> {
        match self {
            Self::Linear(factor) | Self::Dynamic(factor) => vec![("rope_scaling.factor", *factor)],
            Self::Llama3(scaling) => vec![
                ("rope_scaling.factor", scaling.factor),
                ("rope_scaling.low_freq_factor", scaling.low_freq_factor),
                ("rope_scaling.high_freq_factor", scaling.high_freq_factor),
            ],
            Self::Yarn(scaling) => vec![
                ("rope_scaling.factor", scaling.factor),
                ("rope_scaling.beta_fast", scaling.beta_fast),
                ("rope_scaling.beta_slow", scaling.beta_slow),
                ("rope_scaling.attention_factor", scaling.attention_factor),
            ],
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// The first key out of range.
    pub(super) fn check(&self) -> Result<()> {
        let original = match self {
            Self::Llama3(scaling) => {
                if scaling.high_freq_factor <= scaling.low_freq_factor {
                    return refuse("rope_scaling.high_freq_factor must be above low_freq_factor");
                }
                scaling.original_max_position_embeddings
            }
            Self::Yarn(scaling) => scaling.original_max_position_embeddings,
            Self::Linear(_) | Self::Dynamic(_) => 1,
        };
        match (1..=1 << 24).contains(&original) {
            true => Ok(()),
            false => refuse("rope_scaling.original_max_position_embeddings is out of range"),
        }
    }

    /// Returns the scaling as transformers writes it.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Linear(factor) => json!({"rope_type": "linear", "factor": factor}),
            Self::Dynamic(factor) => json!({"rope_type": "dynamic", "factor": factor}),
            Self::Llama3(scaling) => json!({
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            }),
            Self::Yarn(scaling) => json!({
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate,
            }),
        }
    }
}

/// RoPE's keys of a `config.json`.
pub(super) struct Rope {
    pub(super) theta: Option<f64>,
    pub(super) scaling: Option<RopeScaling>,
    /// The base of windowed layers, where they have their own.
    pub(super) window_theta: Option<f64>,
    /// Share of a head's numbers that are rotated.
    pub(super) partial: Option<f64>,
}

/// Reads RoPE's bases and scaling. transformers 5 writes all of it as `rope_parameters`, with an
/// object for each kind of layer where kinds differ; transformers 4 as `rope_theta`,
/// `rope_local_base_freq` and `rope_scaling`.
pub(super) fn read(keys: &Keys<'_>, max_position_embeddings: usize) -> Result<Rope> {
    let old = keys.child("rope_scaling", "rope_scaling.")?;
    let mut new = keys.child("rope_parameters", "rope_parameters.")?;
    let mut rope = Rope {
        theta: keys.number("rope_theta")?,
        scaling: None,
        window_theta: keys.number("rope_local_base_freq")?,
        partial: keys.number("partial_rotary_factor")?,
    };
    let is_written = |scaling: &Keys<'_>| !scaling.object.is_empty();
    // Of two flat objects transformers reads `rope_scaling` alone, and no base of the other.
    if old.as_ref().is_some_and(is_written) && new.as_ref().is_some_and(|new| new.get("full_attention").is_none()) {
        new = None;
    }
    if let Some(parameters) = new.take_if(|parameters| parameters.get("full_attention").is_some()) {
        if let Some(windowed) = parameters.child("sliding_attention", "rope_parameters.sliding_attention.")? {
            match windowed.text("rope_type")? {
                None | Some("default") => {}
                Some(other) => {
                    return refuse(format!("{}rope_type {other:?} is not supported for windows", windowed.prefix));
                }
            }
            windowed.only_number("partial_rotary_factor", 1.0)?;
            rope.window_theta = windowed.number("rope_theta")?.or(rope.window_theta);
        }
        new = parameters.child("full_attention", "rope_parameters.full_attention.")?;
    }
    for child in [&new, &old].into_iter().flatten() {
        rope.theta = child.number("rope_theta")?.or(rope.theta);
        rope.partial = child.number("partial_rotary_factor")?.or(rope.partial);
    }
    if let Some(parameters) = old.filter(|parameters| !parameters.object.is_empty()).or(new) {
        // As transformers has it: phi3's key beside `rope_scaling` comes before the one in it.
        let original = match keys.optional_size("original_max_position_embeddings")? {
            Some(original) => original,
            None => parameters.size("original_max_position_embeddings", max_position_embeddings)?,
        };
        rope.scaling = scaling(&parameters, original, max_position_embeddings)?;
    }
    Ok(rope)
}

/// Reads a scaling. `original` is the context before it, tokens.
fn scaling(rope: &Keys<'_>, original: usize, max_position_embeddings: usize) -> Result<Option<RopeScaling>> {
    let kind = match rope.text("rope_type")? {
        Some(kind) => Some(kind),
        None => rope.text("type")?,
    };
    Ok(Some(match kind {
        None | Some("default") => {
            return match rope.number("factor")?.filter(|factor| *factor != 1.0) {
                Some(factor) => refuse(format!("{}factor is {factor}, and no rope_type uses it", rope.prefix)),
                None => Ok(None),
            };
        }
        Some("linear") => RopeScaling::Linear(rope.required_number("factor")?),
        Some("dynamic") => RopeScaling::Dynamic(rope.required_number("factor")?),
        Some("llama3") => RopeScaling::Llama3(Llama3RopeScaling {
            factor: rope.required_number("factor")?,
            low_freq_factor: rope.required_number("low_freq_factor")?,
            high_freq_factor: rope.required_number("high_freq_factor")?,
            original_max_position_embeddings: original,
        }),
        Some("yarn") => yarn(rope, original, max_position_embeddings)?,
        Some(other) => {
            return refuse(format!(
                "{}rope_type {other:?} is not supported, only \"default\", \"linear\", \"dynamic\", \"yarn\" and \
                 \"llama3\" are",
                rope.prefix
            ));
        }
    }))
}

fn yarn(rope: &Keys<'_>, original: usize, max_position_embeddings: usize) -> Result<RopeScaling> {
    let factor = match rope.number("factor")? {
        Some(factor) => factor,
        None => max_position_embeddings as f64 / original as f64,
    };
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let attention_factor =
        match (rope.number("attention_factor")?, rope.number("mscale")?, rope.number("mscale_all_dim")?) {
            (Some(attention_factor), _, _) => attention_factor,
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => scale(mscale) / scale(all),
            _ => scale(1.0),
        };
    let beta = |key: &str, default| Ok(rope.number(key)?.filter(|beta| *beta != 0.0).unwrap_or(default));
    Ok(RopeScaling::Yarn(YarnRopeScaling {
        factor,
        original_max_position_embeddings: original,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        attention_factor,
        truncate: rope.flag("truncate")?.unwrap_or(true),
    }))
}

/// Writes RoPE's keys, in the form that transformers 4 and 5 both read.
pub(super) fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    object.insert("rope_theta".into(), json!(config.rope_theta));
    object.insert("rope_scaling".into(), config.rope_scaling.as_ref().map_or(Value::Null, RopeScaling::to_json));
    if let Some(theta) = config.switches.window_rope_theta {
        object.insert("rope_local_base_freq".into(), json!(theta));
    }
    if config.rotary_dim() != config.head_dim {
        let share = config.rotary_dim() as f64 / config.head_dim as f64;
        object.insert("partial_rotary_factor".into(), json!(share));
    }
}

impl DecoderConfig {
    /// Returns the number of a head's numbers that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.switches.rotary_dim.unwrap_or(self.head_dim)
    }

    /// Returns the angles of layers that see all of the context.
    pub(crate) fn rotary(&self) -> RotaryFrequencies {
        self.frequencies(self.rope_theta, self.rope_scaling.as_ref())
    }

    /// Returns the angles of windowed layers, where they have their own.
    pub(crate) fn window_rotary(&self) -> Option<RotaryFrequencies> {
        self.switches.window_rope_theta.map(|theta| self.frequencies(theta, None))
    }

    /// Computes `theta^(-2i / dim)`, over the stretch of each wavelength.
    fn frequencies(&self, theta: f64, scaling: Option<&RopeScaling>) -> RotaryFrequencies {
        let dim = self.rotary_dim();
        let stretch = scaling.map_or_else(|| vec![1.0; dim / 2], |scaling| scaling.stretch(theta, dim));
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / dim as f64);
        let factor = match scaling {
            Some(RopeScaling::Yarn(scaling)) => scaling.attention_factor as f32,
            _ => 1.0,
        };
        RotaryFrequencies { frequencies: (0..dim / 2).map(|i| (frequency(i) / stretch[i]) as f32).collect(), factor }
    }
}
