//! Items and users as tokens: places in a prompt that hold vectors, numbered after the LLM's
//! vocabulary.

use std::ops::Range;

use crate::{Error, Result};

/// The numbering: entity e (an item, or a user after all items) is the K tokens `vocabulary + e · K
/// ..`; each stands for one of the K vectors that the entity becomes.
///
/// So a prompt with vectors in it is a sequence of plain numbers, to be padded, compared and shared
/// as any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntityTokens {
    vocabulary: u32,
    per_entity: u32,
    items: u32,
}

impl EntityTokens {
    /// * `vocabulary`: rows of the LLM's embedding.
    /// * `per_entity`: K, vectors of an item or user.
    ///
    /// # Errors
    /// More tokens than 2^32.
    pub fn new(vocabulary: usize, per_entity: usize, items: usize, users: usize) -> Result<Self> {
        let last =
            items.checked_add(users).and_then(|n| n.checked_mul(per_entity)).and_then(|n| n.checked_add(vocabulary));
        match last.is_some_and(|last| u32::try_from(last).is_ok()) {
            true => Ok(Self { vocabulary: vocabulary as u32, per_entity: per_entity as u32, items: items as u32 }),
            false => Err(Error::usage(format!(
                "{items} items and {users} users of {per_entity} vectors each do not fit beside a vocabulary of {vocabulary}"
            ))),
        }
    }

    /// K.
    pub fn per_entity(&self) -> u32 {
        self.per_entity
    }

    /// How many items there are; users come after them.
    pub fn items(&self) -> usize {
        self.items as usize
    }

    /// The tokens of an item.
    pub fn item(&self, item: u32) -> Range<u32> {
        self.entity(item)
    }

    /// The tokens of a user.
    pub fn user(&self, user: u32) -> Range<u32> {
        self.entity(self.items + user)
    }

    fn entity(&self, entity: u32) -> Range<u32> {
        let first = self.vocabulary + entity * self.per_entity;
        first..first + self.per_entity
    }

    /// Which entity, and which of its vectors, `token` stands for; `None` for an ordinary token.
    pub fn place(&self, token: u32) -> Option<(u32, u32)> {
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
        assert_eq!((tokens.place(99), tokens.place(100), tokens.place(113)), (None, Some((0, 0)), Some((3, 1))));
        assert!(EntityTokens::new(1 << 20, 1 << 10, 1 << 22, 1).unwrap_err().to_string().contains("4194304 items"));
    }
}
