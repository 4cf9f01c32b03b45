//! Scores of a ranker after one history.

/// Scores of the items of a catalogue: at least 0, the higher the better.
#[derive(Clone, Debug, PartialEq)]
pub enum Scores {
    /// Items that score above 0, ascending by item; all others score 0.
    Sparse(Vec<(u32, f64)>),
    /// `[items]`: one score for each item.
    Dense(Vec<f64>),
}

impl Scores {
    /// Returns scores of 0 for all items.
    pub fn none() -> Self {
        Self::Sparse(Vec::new())
    }

    /// Sums `(item, score)` pairs by item; the pairs of an item are added in their order.
    pub fn from_pairs(mut pairs: Vec<(u32, f64)>) -> Self {
        pairs.sort_by_key(|&(item, _)| item);
        pairs.dedup_by(|next, sum| {
            let same = next.0 == sum.0;
            if same {
                sum.1 += next.1;
            }
            same
        });
        Self::Sparse(pairs)
    }

    /// Iterates over the items that score above 0, ascending by item. NaN counts as 0.
    pub fn positive(&self) -> impl Iterator<Item = (u32, f64)> {
        let (sparse, dense): (&[(u32, f64)], &[f64]) = match self {
            Self::Sparse(scores) => (scores, &[]),
            Self::Dense(scores) => (&[], scores),
        };
        sparse.iter().copied().chain((0..).zip(dense.iter().copied())).filter(|&(_, score)| score > 0.0)
    }

    /// Returns an item's score.
    pub fn get(&self, item: u32) -> f64 {
        match self {
            Self::Sparse(scores) => {
                scores.binary_search_by_key(&item, |&(item, _)| item).map_or(0.0, |index| scores[index].1)
            }
            Self::Dense(scores) => scores.get(item as usize).copied().unwrap_or(0.0),
        }
    }

    /// Returns one score for each item, `[items]`.
    pub fn to_dense(&self, items: usize) -> Vec<f64> {
        let mut dense = vec![0.0; items];
        for (item, score) in self.positive() {
            dense[item as usize] = score;
        }
        dense
    }

    /// Sets the scores of `items` to 0.
    #[must_use]
    pub fn exclude(mut self, items: &[u32]) -> Self {
        match &mut self {
            Self::Sparse(scores) => scores.retain(|(item, _)| !items.contains(item)),
            Self::Dense(scores) => {
                for &item in items {
                    scores.get_mut(item as usize).into_iter().for_each(|score| *score = 0.0);
                }
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_and_dense_say_the_same() {
        let sparse = Scores::from_pairs(vec![(4, 1.0), (1, 0.5), (4, 2.0), (1, 0.25)]);
        assert_eq!(sparse, Scores::Sparse(vec![(1, 0.75), (4, 3.0)]));
        let dense = Scores::Dense(sparse.to_dense(6));
        assert_eq!(dense, Scores::Dense(vec![0.0, 0.75, 0.0, 0.0, 3.0, 0.0]));
        for scores in [sparse, dense] {
            assert_eq!(scores.positive().collect::<Vec<_>>(), [(1, 0.75), (4, 3.0)]);
            assert_eq!((scores.get(4), scores.get(2), scores.get(9)), (3.0, 0.0, 0.0));
            assert_eq!(scores.exclude(&[4, 77]).positive().collect::<Vec<_>>(), [(1, 0.75)]);
        }
        assert_eq!(Scores::Dense(vec![f64::NAN, -1.0]).positive().count(), 0);
    }
}
