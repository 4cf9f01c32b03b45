//! Ids of items and users in JSON.

use serde::Deserialize;

/// An id; MovieLens' are numbers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "an id is text or a whole number")]
pub enum Id {
    /// A text.
    Text(String),
    /// A number, which stands for its digits.
    Number(u64),
}

impl Id {
    /// Returns the id as a text.
    pub fn into_text(self) -> String {
        match self {
            Self::Text(id) => id,
            Self::Number(id) => id.to_string(),
        }
    }
}
