//! Texts packed in one buffer, and ids numbered by first appearance.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::{Error, Result};

/// Texts, one after another in one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StringArena {
    buffer: String,
    /// Text i is `buffer[ends[i]..ends[i + 1]]`.
    ends: Vec<usize>,
}

impl Default for StringArena {
    fn default() -> Self {
        Self { buffer: String::new(), ends: vec![0] }
    }
}

impl StringArena {
    pub(crate) fn push(&mut self, text: &str) {
        self.buffer.push_str(text);
        self.ends.push(self.buffer.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// Returns a text.
    ///
    /// # Panics
    /// If there is no such text.
    pub(crate) fn get(&self, index: usize) -> &str {
        &self.buffer[self.ends[index]..self.ends[index + 1]]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.ends.windows(2).map(|pair| &self.buffer[pair[0]..pair[1]])
    }
}

/// Ids and their dense numbers, by first appearance.
#[derive(Default)]
pub(crate) struct Interner {
    texts: StringArena,
    /// A number with 32 bits of its id's hash, so that growing and most misses need not look at the
    /// text.
    numbers: HashTable<(u32, u32)>,
    hasher: RandomState,
}

impl Interner {
    /// Returns the number of an id; a new id gets the next number.
    pub(crate) fn intern(&mut self, id: &str) -> Result<u32> {
        let bits = self.bits(id);
        let Self { texts, numbers, .. } = self;
        if let Some((_, number)) = numbers.find(spread(bits), |&(b, n)| b == bits && texts.get(n as usize) == id) {
            return Ok(*number);
        }
        let number = u32::try_from(texts.len()).ok().filter(|n| *n < u32::MAX);
        let number = number.ok_or_else(|| Error::failed("more than 2^32 - 2 different ids"))?;
        texts.push(id);
        numbers.insert_unique(spread(bits), (bits, number), |&(bits, _)| spread(bits));
        Ok(number)
    }

    /// Returns the numbers of ids, as [`Interner::intern`] does one after another.
    pub(crate) fn intern_all(&mut self, ids: &StringArena) -> Result<Vec<u32>> {
        // Two loops, because a large table's cache misses then overlap: this one looks at the
        // hashes alone, the second at the texts.
        let candidate = |id| {
            let bits = self.bits(id);
            self.numbers.find(spread(bits), |&(b, _)| b == bits).map_or(u32::MAX, |(_, number)| *number)
        };
        let mut numbers: Vec<u32> = ids.iter().map(candidate).collect();
        for (number, id) in numbers.iter_mut().zip(ids.iter()) {
            if *number == u32::MAX || self.get(*number) != id {
                *number = self.intern(id)?;
            }
        }
        Ok(numbers)
    }

    /// Returns the number of an id, if it has one.
    pub(crate) fn find(&self, id: &str) -> Option<u32> {
        let bits = self.bits(id);
        let found = self.numbers.find(spread(bits), |&(b, n)| b == bits && self.texts.get(n as usize) == id);
        found.map(|(_, number)| *number)
    }

    fn bits(&self, id: &str) -> u32 {
        (self.hasher.hash_one(id) >> 32) as u32
    }

    /// Returns the id of a number.
    ///
    /// # Panics
    /// If there is no such number.
    pub(crate) fn get(&self, number: u32) -> &str {
        self.texts.get(number as usize)
    }

    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }
}

/// Spreads 32 bits of a hash: the table looks at the highest and the lowest bits.
fn spread(bits: u32) -> u64 {
    u64::from(bits).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbered_by_first_appearance() {
        let mut ids = Interner::default();
        for i in (0..5000).chain(0..5000) {
            assert_eq!(ids.intern(&format!("id{i}")).unwrap(), i);
        }
        assert_eq!((ids.len(), ids.get(17), ids.find("id4999"), ids.find("x")), (5000, "id17", Some(4999), None));
        assert_eq!(ids.intern("").unwrap(), 5000);
        assert_eq!(ids.get(5000), "");
    }

    #[test]
    fn many_ids_are_numbered_as_one_after_another() {
        let (mut one, mut all) = (Interner::default(), Interner::default());
        for block in 0..4 {
            let mut ids = StringArena::default();
            // New ids, ids of the block before, and repeats within the block.
            (0..6000).for_each(|i| ids.push(&format!("id{}", (block * 2000 + i * 7919 % 4001) / 2)));
            let expected: Vec<u32> = ids.iter().map(|id| one.intern(id).unwrap()).collect();
            assert_eq!(all.intern_all(&ids).unwrap(), expected);
        }
        assert_eq!(all.texts, one.texts);
    }
}
