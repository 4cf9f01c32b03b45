//! Items and users as tokens: token ids beyond the LLM's vocabulary, which stand for vectors.

use std::ops::Range;

use crate::{Error, Result};

/// The token ids of entities. Entity e (an item, or a user after all items) has the K ids from
/// `vocabulary + e · K` on; each id stands for one of the entity's K vectors.
///
/// So a prompt with vectors is a sequence of token ids, which is padded, compared and shared as any
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntityTokens {
    vocabulary: u32,
    per_entity: u32,
    items: u32,
}

impl EntityTokens {
    /// Numbers the vectors of `items` items and `users` users.
    ///
    /// * `vocabulary`: the number of rows of the LLM's embedding table.
    /// * `per_entity`: K, the number of vectors of an item or user.
    ///
    /// # Errors
    /// More than 2^32 token ids.
    pub fn new(vocabulary: usize, per_entity: usize, items: usize, users: usize) -> Result<Self> {
        let last =
            items.checked_add(users).and_then(|n| n.checked_mul(per_entity)).and_then(|n| n.checked_add(vocabulary));
        match last.is_some_and(|last| u32::try_from(last).is_ok()) {
            true => Ok(Self { vocabulary: vocabulary as u32, per_entity: per_entity as u32, items: items as u32 }),
            false => Err(Error::usage(format!(
                "{items} items and {users} users of {per_entity} vectors each do not fit beside a vocabulary of \
                 {vocabulary}"
            ))),
        }
    }

    /// Returns K, the number of vectors of an entity.
    pub fn per_entity(&self) -> u32 {
        self.per_entity
    }

    /// Returns the number of items; users come after them.
    pub fn items(&self) -> usize {
        self.items as usize
    }

    /// Returns the token ids of an item.
    pub fn item(&self, item: u32) -> Range<u32> {
        self.entity(item)
    }

    /// Returns the token ids of a user.
    pub fn user(&self, user: u32) -> Range<u32> {
        self.entity(self.items + user)
    }

    fn entity(&self, entity: u32) -> Range<u32> {
        let first = self.vocabulary + entity * self.per_entity;
        first..first + self.per_entity
    }

    /// Returns the entity that `token` stands for, and the index of its vector; `None` for an
    /// ordinary token.
    pub fn locate(&self, token: u32) -> Option<(u32, u32)> {
        let at = token.checked_sub(self.vocabulary)?;
        Some((at / self.per_entity, at % self.per_entity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_follow_items() {
        let tokens = EntityTokens::new(100, 4, 3, 2).unwrap();
        assert_eq!((tokens.item(2), tokens.user(0)), (108..112, 112..116));
        assert_eq!((tokens.locate(99), tokens.locate(100), tokens.locate(113)), (None, Some((0, 0)), Some((3, 1))));
        assert!(EntityTokens::new(1 << 20, 1 << 10, 1 << 22, 1).unwrap_err().to_string().contains("4194304 items"));
    }
}
