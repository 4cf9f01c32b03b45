//! `[llm]` of the run file.

use serde::{Deserialize, Serialize};

use crate::model::{LoraConfig, Precision};
use crate::{Error, Result};

/// `[llm]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmConfig {
    /// A Hugging Face directory or one `.gguf` file.
    pub path: String,
    /// What trains.
    #[serde(default)]
    pub tune: TuneKind,
    /// The adapter, for `tune = "lora"`.
    #[serde(default)]
    pub lora: LoraConfig,
    /// A PEFT adapter directory to start from, of the same rank and targets, in place of a fresh
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// What its products are computed in, and its frozen weights kept in.
    #[serde(default)]
    pub precision: Precision,
    /// Keeps the decoder's frozen matrices in the 4- and 8-bit blocks of the `.gguf` file and
    /// unpacks each where it is multiplied with: the same numbers in less memory and more time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quantized: bool,
}

impl LlmConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.quantized && self.tune == TuneKind::Full {
            return Err(Error::usage(
                "llm.quantized is for frozen matrices: with llm.tune = \"full\" all of them train",
            ));
        }
        if self.adapter.is_some() && self.tune != TuneKind::Lora {
            return Err(Error::usage("llm.adapter is only for llm.tune = \"lora\""));
        }
        Ok(())
    }
}

/// `llm.tune`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TuneKind {
    /// Adapters.
    #[default]
    Lora,
    /// Every weight.
    Full,
    /// Nothing of the LLM.
    Frozen,
}
