//! Retrieval of items by their texts, and of texts by their items.

use serde::{Deserialize, Serialize};

/// Recall: shares of queries whose own partner is among the best 1, 5 and 10.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Share of queries whose partner is first.
    #[serde(rename = "recall@1")]
    pub at_1: f64,
    /// Share of queries whose partner is among the first 5.
    #[serde(rename = "recall@5")]
    pub at_5: f64,
    /// Share of queries whose partner is among the first 10.
    #[serde(rename = "recall@10")]
    pub at_10: f64,
}

impl Recall {
    /// Computes the recalls of queries whose partners have these ranks, from 0.
    fn from_ranks(ranks: &[usize]) -> Self {
        let at = |k| ranks.iter().filter(|&&rank| rank < k).count() as f64 / ranks.len().max(1) as f64;
        Self { at_1: at(1), at_5: at(5), at_10: at(10) }
    }
}

/// Recalls in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Number of items that are searched, each with one text.
    pub items: usize,
    /// Recall of a text's item.
    pub text_to_item: Recall,
    /// Recall of an item's text.
    pub item_to_text: Recall,
}

/// Ranks items and texts by their similarity. A rank counts the others that are at least as
/// similar, so that equal similarities, and NaN, gain nothing.
///
/// # Shapes
/// `similarity`: `[n, n]`, items by texts, partners on the diagonal.
pub fn retrieval(similarity: &[f32], n: usize) -> Retrieval {
    let rank = |own: usize, at: &dyn Fn(usize) -> f32| {
        let partner = at(own);
        (0..n).filter(|&j| j != own && at(j).partial_cmp(&partner).is_none_or(|order| order.is_ge())).count()
    };
    let text_to_item: Vec<usize> = (0..n).map(|text| rank(text, &|item| similarity[item * n + text])).collect();
    let item_to_text: Vec<usize> = (0..n).map(|item| rank(item, &|text| similarity[item * n + text])).collect();
    Retrieval {
        items: n,
        text_to_item: Recall::from_ranks(&text_to_item),
        item_to_text: Recall::from_ranks(&item_to_text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_by_hand() {
        // Text 0 has item 0 first; for text 1 items 0 and 1 are equal.
        let found = retrieval(&[0.9, 0.5, 0.1, 0.5], 2);
        assert_eq!(found.text_to_item, Recall { at_1: 0.5, at_5: 1.0, at_10: 1.0 });
        assert_eq!(found.item_to_text, Recall { at_1: 1.0, at_5: 1.0, at_10: 1.0 });
        let collapsed = retrieval(&[0.3; 400], 20);
        assert_eq!((collapsed.items, collapsed.text_to_item.at_10), (20, 0.0));
        assert_eq!(retrieval(&[f32::NAN; 400], 20).item_to_text.at_10, 0.0);
    }
}
