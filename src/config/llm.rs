//! `[llm]` of the run file.

use std::fmt::Display;

use burn::tensor::FloatDType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problems;
use crate::{Error, Result};

/// `[llm]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LlmConfig {
    /// A Hugging Face directory or one `.gguf` file.
    pub path: String,
    /// The weights that train.
    #[serde(default)]
    pub tune: TuneKind,
    /// The adapter, for `tune = "lora"`.
    #[serde(default)]
    pub lora: LoraConfig,
    /// A PEFT adapter directory to start from, of the same rank and targets, in place of a fresh
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// The number type of its products and of its frozen weights.
    #[serde(default)]
    pub precision: Precision,
    /// Keeps the decoder's frozen matrices in the 4- and 8-bit blocks of the `.gguf` file and
    /// unpacks each where it is multiplied with: the same numbers in less memory and more time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quantized: bool,
    /// Keeps only the first blocks of the model, this many: faster, and for recommendation often
    /// hardly worse (SLMRec, arXiv 2405.17890).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
}

impl LlmConfig {
    /// Checks that the precision is one that can be trained with.
    ///
    /// # Errors
    /// A precision that loses gradients.
    pub fn check_trainable(&self) -> Result<()> {
        match self.precision {
            Precision::F16 => Err(Error::usage(
                "llm.precision is \"f16\", whose range loses gradients: train with \"bf16\" or \"f32\" \
                 (option `max_steps` 0 makes a run of the untuned model)",
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn validate(&self, problems: &mut Problems) {
        if self.quantized && self.tune == TuneKind::Full {
            problems.add("llm.quantized is for frozen matrices: with llm.tune = \"full\" all of them train");
        }
        if self.adapter.is_some() && self.tune != TuneKind::Lora {
            problems.add("llm.adapter is only for llm.tune = \"lora\"");
        }
    }
}

/// `llm.tune`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TuneKind {
    /// LoRA adapters.
    #[default]
    Lora,
    /// All weights.
    Full,
    /// No weight of the LLM.
    Frozen,
}

/// LoRA's hyper-parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the update.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// Probability of dropping an input of the adapter while training.
    pub dropout: f64,
    /// Projections with an adapter: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`,
    /// `down_proj`; of Phi-3 `qkv_proj`, `o_proj`, `gate_up_proj`, `down_proj`.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    /// Returns the MSL paper's hyper-parameters: rank 8, alpha 16, dropout 0.05, on q_proj and
    /// v_proj.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, dropout: 0.05, targets: vec!["q_proj".into(), "v_proj".into()] }
    }
}

impl LoraConfig {
    /// The projections of a block that an adapter may be put on.
    pub const TARGETS: [&str; 9] =
        ["q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"];

    /// Checks the hyper-parameters.
    ///
    /// # Errors
    /// A rank of 0 or above 4096, a dropout outside [0, 1), an unknown or absent target.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        self.collect_problems(&mut problems);
        problems.first()
    }

    pub(super) fn collect_problems(&self, problems: &mut Problems) {
        let mut bad = |what: String| problems.add(format!("llm.lora: {what}"));
        if self.rank == 0 || self.rank > 4096 {
            bad(format!("rank is {}, it must be between 1 and 4096", self.rank));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            bad(format!("dropout is {}, it must be at least 0 and below 1", self.dropout));
        }
        if !self.alpha.is_finite() {
            bad("alpha must be a finite number".into());
        }
        if self.targets.is_empty() {
            bad("targets is empty: name at least one projection".into());
        }
        for target in &self.targets {
            if !Self::TARGETS.contains(&target.as_str()) {
                bad(format!("unknown target {target:?}; known: {}", Self::TARGETS.join(", ")));
            }
        }
    }

    /// Returns whether a projection, named as `self_attn.q_proj` or `q_proj`, has an adapter.
    pub fn adapts(&self, projection: &str) -> bool {
        let short = projection.rsplit('.').next().unwrap_or(projection);
        self.targets.iter().any(|target| target == short)
    }
}

/// The number type of an LLM's products and of its frozen weights.
///
/// Mixed precision is computed in [`crate::model::LoraLinear::forward`]: the input is cast, the
/// product's result cast back. Everything else is f32: what trains, the embeddings, the residual
/// stream, rotation, norms, softmax, the output head and the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 4 bytes a weight.
    #[default]
    F32,
    /// 2 bytes: the range of f32, 8 bits of precision.
    Bf16,
    /// 2 bytes: 11 bits of precision up to 65,504; gradients below 6e-8 vanish, so nothing trains
    /// through it.
    F16,
}

impl Precision {
    /// All precisions, the widest first.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];

    /// Returns burn's type of that precision.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }
}

impl Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}
