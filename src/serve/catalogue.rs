//! The engine that is served now, and the search for items by words.

use std::sync::{Arc, PoisonError, RwLock};

use super::engine::Engine;
use crate::data::Item;

/// An engine, and the words of its items.
pub struct Served {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// `[items]`: titles in lower case.
    folded: Vec<String>,
}

impl Served {
    /// Folds the titles of the engine's items.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        let folded = engine.items().iter().map(|item| item.title.to_lowercase()).collect();
        Self { engine, folded }
    }

    /// Returns at most `limit` items: the one whose id is `query`, then those whose title begins
    /// with it, then those whose title holds all of its words, each in the catalogue's order. An
    /// empty query finds all items.
    pub fn search(&self, query: &str, limit: usize) -> Vec<&Item> {
        let items = self.engine.items();
        let folded = query.trim().to_lowercase();
        let words: Vec<&str> = folded.split_whitespace().collect();
        let (mut found, mut beginning, mut holding) = (Vec::new(), Vec::new(), Vec::new());
        for (item, title) in items.iter().zip(&self.folded) {
            if item.id == query {
                found.push(item);
            } else if beginning.len() < limit && title.starts_with(&folded) {
                beginning.push(item);
            } else if holding.len() < limit && words.iter().all(|word| title.contains(word)) {
                holding.push(item);
            }
        }
        found.extend(beginning);
        found.extend(holding);
        found.truncate(limit);
        found
    }
}

/// The engine that is served now; none while the server starts.
#[derive(Default)]
pub struct Slot(RwLock<Option<Arc<Served>>>);

impl Slot {
    /// Returns the engine that is served now.
    pub fn get(&self) -> Option<Arc<Served>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves `served` from now on.
    pub fn set(&self, served: Arc<Served>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(served);
    }
}
