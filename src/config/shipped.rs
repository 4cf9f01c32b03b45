//! The run files and data sets that come with the program: those of `configs/`.

use serde::Serialize;

/// A file of `configs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShippedConfig {
    /// Its path below `configs/`, without `.toml`.
    pub name: &'static str,
    /// Its content.
    #[serde(skip)]
    pub text: &'static str,
}

impl ShippedConfig {
    /// Returns the first line, a comment that says what the file is for, without `# `.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches("# ")
    }
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(ShippedConfig { name: $name, text: include_str!(concat!("../../configs/", $name, ".toml")) }),*]
    };
}

/// All of them, by name. `tests/configs.rs` checks that none is missing.
pub const SHIPPED: &[ShippedConfig] = shipped![
    "books",
    "books-smoke",
    "clothing",
    "clothing-smoke",
    "data/books",
    "data/clothing",
    "data/office",
    "data/openp5-beauty",
    "data/openp5-clothing",
    "data/openp5-ml-1m",
    "data/toys",
    "elm24",
    "elm24-smoke",
    "experiments/ilm-ablation",
    "experiments/ilm-ablation-smoke",
    "experiments/ilm-queries",
    "experiments/ilm-queries-smoke",
    "experiments/msl-losses",
    "experiments/msl-losses-smoke",
    "experiments/msl-temperatures",
    "experiments/msl-temperatures-smoke",
    "experiments/priors",
    "experiments/priors-smoke",
    "ilm-it",
    "ilm-it-ii",
    "ilm-it-ii-smoke",
    "ilm-it-smoke",
    "ilm-it-ui",
    "ilm-it-ui-smoke",
    "office",
    "office-ilm",
    "office-ilm-smoke",
    "office-smoke",
    "openp5-ml-1m",
    "openp5-ml-1m-smoke",
    "toys",
    "toys-smoke",
];
