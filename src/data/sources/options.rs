//! Options of the readers of raw files.

use clap::ValueEnum;
use serde::Deserialize;

use super::encoding::Encoding;
use super::times::Unit;
use crate::data::sharded_table::Workspace;

/// Options of a reader.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadOptions {
    /// The format, in place of the one detected in the files' content.
    pub(crate) format: Option<String>,
    /// Memory and disk for the event log.
    pub(crate) workspace: Workspace,
    /// Names of a table's columns.
    pub(crate) columns: Columns,
    /// Format of a table's files.
    pub(crate) table: TableOptions,
}

/// Names of the columns of a `table` source. A name such as `reviewer.user` is that of a column or
/// key, or of one inside another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// The user's id.
    pub user: Option<String>,
    /// The item's id.
    pub item: Option<String>,
    /// The time of the event.
    pub time: Option<String>,
    /// The item's title.
    pub title: Option<String>,
    /// The rating; an event may have none.
    pub rating: Option<String>,
    /// Another text about the item.
    pub text: Option<String>,
}

impl Columns {
    /// Returns these names, and those of `other` where there is none.
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

/// The files of a table whose titles count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TitleFrom {
    /// The catalogue alone
    Catalogue,
    /// The log alone
    Log,
}

/// The title that is kept of an item with several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TitleChoice {
    /// The first
    #[default]
    First,
    /// The last
    Last,
}

/// Format of the files of a `table` source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableOptions {
    /// The character between fields, or `tab`; by default the one found in the first lines.
    pub delimiter: Option<String>,
    /// The character around fields, or `none`; by default `"`, and none in tab-separated files.
    pub quote: Option<String>,
    /// The character that makes the character after it plain text, mostly `\`; by default none.
    pub escape: Option<String>,
    /// The encoding of text; UTF-8 by default. UTF-16 is recognised.
    pub encoding: Option<Encoding>,
    /// The names of the columns of files without a header, `a,b,c` for all of them or `FILE=a,b,c`
    /// for one. After a last name that ends in `...` the last column takes what is left of a line.
    pub names: Vec<String>,
    /// The name of the item's column in catalogues, where it is another than in logs.
    pub catalogue_item: Option<String>,
    /// The files whose titles count; by default the catalogues, if any has the column.
    pub title_from: Option<TitleFrom>,
    /// The title that is kept of an item with several; the first by default.
    pub title_choice: Option<TitleChoice>,
    /// The unit of times that are numbers; by default the one that fits most rows of a file.
    pub time_unit: Option<Unit>,
    /// The strftime pattern of times that are text; by default found from the rows.
    pub time_format: Option<String>,
    /// The text between several items in the item's column, each of them an event.
    pub item_separator: Option<String>,
    /// The ending of those items in such a list that were clicked; the others are no events.
    pub clicked_suffix: Option<String>,
}

impl TableOptions {
    /// Returns these options, and those of `other` where there is none.
    pub(crate) fn or(self, other: &Self) -> Self {
        Self {
            delimiter: self.delimiter.or(other.delimiter.clone()),
            quote: self.quote.or(other.quote.clone()),
            escape: self.escape.or(other.escape.clone()),
            encoding: self.encoding.or(other.encoding),
            names: if self.names.is_empty() { other.names.clone() } else { self.names },
            catalogue_item: self.catalogue_item.or(other.catalogue_item.clone()),
            title_from: self.title_from.or(other.title_from),
            title_choice: self.title_choice.or(other.title_choice),
            time_unit: self.time_unit.or(other.time_unit),
            time_format: self.time_format.or(other.time_format.clone()),
            item_separator: self.item_separator.or(other.item_separator.clone()),
            clicked_suffix: self.clicked_suffix.or(other.clicked_suffix.clone()),
        }
    }
}
