//! What the user says about the raw files.

use serde::Deserialize;

use crate::data::sharded_table::Workspace;

/// What the user asked of a source.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadOptions {
    /// The format, rather than the one found in the files' content.
    pub(crate) format: Option<String>,
    /// Memory and disk for the event log.
    pub(crate) workspace: Workspace,
    /// Names of a table's columns.
    pub(crate) columns: Columns,
}

/// Names of the columns of a `table` source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// Who.
    pub user: Option<String>,
    /// What.
    pub item: Option<String>,
    /// When: Unix seconds, or milliseconds.
    pub time: Option<String>,
    /// The item's title.
    pub title: Option<String>,
    /// A rating.
    pub rating: Option<String>,
    /// More text on the item.
    pub text: Option<String>,
}

impl Columns {
    /// These names, and for want of one the other's.
    pub(crate) fn or(self, other: &Self) -> Self {
        Self {
            user: self.user.or(other.user.clone()),
            item: self.item.or(other.item.clone()),
            time: self.time.or(other.time.clone()),
            title: self.title.or(other.title.clone()),
            rating: self.rating.or(other.rating.clone()),
            text: self.text.or(other.text.clone()),
        }
    }
}
