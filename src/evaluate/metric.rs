//! A ranking metric of one window: NDCG, HR and MRR at k.

use std::fmt::{self, Display};
use std::str::FromStr;

use crate::{Error, Result};

/// Kind of a metric of the first k items of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MetricKind {
    /// Normalised discounted cumulative gain.
    Ndcg,
    /// Hit rate. With one relevant item a window it equals recall.
    Hr,
    /// Mean reciprocal rank.
    Mrr,
}

/// A metric such as `ndcg@10`.
///
/// Its value for a window, with the target at the 0-based rank r:
///
/// ```text
/// NDCG@k = 1 / log2(r + 2)   if r < k, else 0 (the ideal ranking's DCG is 1)
/// HR@k   = 1                 if r < k, else 0 (recall@k: there is one relevant item)
/// MRR@k  = 1 / (r + 1)       if r < k, else 0
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Metric {
    /// The kind.
    pub kind: MetricKind,
    /// Items of the list that count, at least 1.
    pub k: u32,
}

impl Metric {
    /// All kinds of metric.
    pub const KINDS: [MetricKind; 3] = [MetricKind::Ndcg, MetricKind::Hr, MetricKind::Mrr];

    /// Returns every metric at every cutoff, the cutoffs in their order.
    pub fn all(cutoffs: &[u32]) -> Vec<Self> {
        cutoffs.iter().flat_map(|&k| Self::KINDS.map(|kind| Self { kind, k })).collect()
    }

    /// Returns the value for a window whose target has this 0-based rank; `None` if it is not in
    /// the list.
    pub fn value(self, rank: Option<u32>) -> f64 {
        match (self.kind, rank.filter(|&rank| rank < self.k)) {
            (_, None) => 0.0,
            (MetricKind::Ndcg, Some(rank)) => 1.0 / (f64::from(rank) + 2.0).log2(),
            (MetricKind::Hr, Some(_)) => 1.0,
            (MetricKind::Mrr, Some(rank)) => 1.0 / (f64::from(rank) + 1.0),
        }
    }
}

impl Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            MetricKind::Ndcg => "ndcg",
            MetricKind::Hr => "hr",
            MetricKind::Mrr => "mrr",
        };
        write!(f, "{kind}@{}", self.k)
    }
}

impl FromStr for Metric {
    type Err = Error;

    /// Reads `ndcg@10`, `hr@10` (also `recall@10`) or `mrr@10`.
    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('@').and_then(|(kind, k)| {
            let kind = match kind.to_ascii_lowercase().as_str() {
                "ndcg" => MetricKind::Ndcg,
                "hr" | "recall" => MetricKind::Hr,
                "mrr" => MetricKind::Mrr,
                _ => return None,
            };
            let k = k.parse().ok().filter(|&k: &u32| k > 0)?;
            Some(Self { kind, k })
        });
        parsed.ok_or_else(|| Error::usage(format!("no metric {text:?}; there are ndcg@K, hr@K and mrr@K, as ndcg@10")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let value = |name: &str, rank| name.parse::<Metric>().unwrap().value(rank);
        assert_eq!((value("ndcg@5", Some(0)), value("ndcg@5", Some(2))), (1.0, 0.5));
        assert_eq!((value("hr@5", Some(4)), value("hr@5", Some(5)), value("hr@5", None)), (1.0, 0.0, 0.0));
        assert_eq!((value("mrr@10", Some(3)), value("mrr@3", Some(3))), (0.25, 0.0));
        assert_eq!("recall@20".parse::<Metric>().unwrap().to_string(), "hr@20");
        for bad in ["ndcg", "ndcg@0", "ndcg@-1", "map@5", "@5", "ndcg@ 5"] {
            assert_eq!(bad.parse::<Metric>().unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
