//! Items by id and by name, and users by id.

use super::prompt_context::PromptContext;
use crate::data::Split;

/// Index from ids and names of requests to items and users.
#[derive(Debug)]
pub(crate) struct ItemIndex {
    /// Items, sorted by id.
    by_id: Vec<u32>,
    /// Items, sorted by name and, of one name, by number.
    by_name: Vec<u32>,
    /// Users, sorted by id.
    users: Vec<u32>,
    /// Whether an item is in no training window.
    cold: Vec<bool>,
}

impl ItemIndex {
    /// Sorts the items and users of `context`.
    pub fn new(context: &PromptContext) -> Self {
        let corpus = &context.corpus;
        let mut by_id: Vec<u32> = (0..corpus.items.len() as u32).collect();
        let mut by_name = by_id.clone();
        by_id.sort_by_key(|&item| corpus.items[item as usize].id.as_str());
        by_name.sort_by_key(|&item| (context.name(item), item));
        let mut users: Vec<u32> = (0..corpus.users() as u32).collect();
        users.sort_by_key(|&user| corpus.user_id(user));
        Self { by_id, by_name, users, cold: corpus.cold_items(Split::Test) }
    }

    /// Returns the item with this id in the source.
    pub fn item(&self, context: &PromptContext, id: &str) -> Option<u32> {
        let at = self.by_id.binary_search_by_key(&id, |&item| context.corpus.items[item as usize].id.as_str()).ok()?;
        Some(self.by_id[at])
    }

    /// Returns the user with this id in the source.
    pub fn user(&self, context: &PromptContext, id: &str) -> Option<u32> {
        let at = self.users.binary_search_by_key(&id, |&user| context.corpus.user_id(user)).ok()?;
        Some(self.users[at])
    }

    /// Returns the items with this name, in the order of their numbers.
    pub fn items_with_name(&self, context: &PromptContext, name: &str) -> &[u32] {
        let start = self.by_name.partition_point(|&item| context.name(item) < name);
        let end = self.by_name.partition_point(|&item| context.name(item) <= name);
        &self.by_name[start..end]
    }

    /// Returns the item that a name means: of several the first that is in a training window.
    pub fn preferred_item(&self, items: &[u32]) -> Option<u32> {
        items.iter().copied().find(|&item| !self.cold[item as usize]).or(items.first().copied())
    }
}
