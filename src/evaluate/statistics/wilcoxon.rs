//! Wilcoxon's signed-rank test.

use super::interval::ROUNDING;
use statrs::distribution::{ContinuousCDF, Normal};

/// The largest number of differences with an exact distribution, as scipy's.
const EXACT: usize = 50;

/// The result of Wilcoxon's signed-rank test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignedRank {
    /// Differences that are not 0.
    pub n: usize,
    /// The smaller of the rank sums of the positive and the negative differences.
    pub statistic: f64,
    /// Two-sided p.
    pub p: f64,
}

/// Tests whether the differences are symmetric around 0 (Wilcoxon 1945).
///
/// Differences of 0 are left out. The others are ranked by their absolute values, equal ones with
/// the mean of their ranks (equal but for rounding, to 1e-12 of the largest); R⁺ and R⁻ are the
/// rank sums of the positive and of the negative ones. Without equal values and with at most 50 of
/// them p is exact: twice the share of the 2ⁿ assignments of signs whose R⁺ is at most min(R⁺, R⁻).
/// Else it is that of the normal distribution, with t the sizes of the groups of equal values and
/// without a correction for continuity:
///
/// ```text
/// z = (R⁺ - n (n + 1) / 4) / √((n (n + 1) (2 n + 1) - Σ (t³ - t) / 2) / 24)
/// ```
///
/// Without any difference p is 1.
pub fn wilcoxon(differences: &[f64]) -> SignedRank {
    let mut nonzero: Vec<f64> = differences.iter().copied().filter(|&d| d != 0.0).collect();
    let n = nonzero.len();
    if n == 0 {
        return SignedRank { n, statistic: 0.0, p: 1.0 };
    }
    nonzero.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let (mut plus, mut ties) = (0.0, 0.0);
    let mut begin = 0;
    let rounding = ROUNDING * nonzero[n - 1].abs();
    for equal in nonzero.chunk_by(|a, b| (b.abs() - a.abs()) <= rounding) {
        let size = equal.len() as f64;
        let rank = begin as f64 + (size + 1.0) / 2.0;
        plus += rank * equal.iter().filter(|&&d| d > 0.0).count() as f64;
        ties += size.powi(3) - size;
        begin += equal.len();
    }
    let count = n as f64;
    let total = count * (count + 1.0) / 2.0;
    let statistic = plus.min(total - plus);
    let p = if ties == 0.0 && n <= EXACT {
        (2.0 * share_at_most(n, statistic as usize)).min(1.0)
    } else {
        let variance = (count * (count + 1.0) * (2.0 * count + 1.0) - ties / 2.0) / 24.0;
        let z = (plus - total / 2.0) / variance.sqrt();
        (2.0 * Normal::standard().sf(z.abs())).min(1.0)
    };
    SignedRank { n, statistic, p }
}

/// Returns the share of the 2ⁿ subsets of the ranks 1 … n whose sum is at most `sum`.
fn share_at_most(n: usize, sum: usize) -> f64 {
    // Of at most 50 ranks every count is below 2^53, and so exact.
    let mut counts = vec![0.0f64; n * (n + 1) / 2 + 1];
    counts[0] = 1.0;
    for rank in 1..=n {
        for with in (rank..counts.len()).rev() {
            counts[with] += counts[with - rank];
        }
    }
    counts[..=sum.min(counts.len() - 1)].iter().sum::<f64>() / 2f64.powi(n as i32)
}
