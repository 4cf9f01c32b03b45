//! Intervals and tests for comparisons of rankings.
//!
//! What is resampled, flipped or ranked is users, because one user's windows overlap. With n users,
//! w_u windows of user u and s_u the sum over them of (value of A - value of B):
//!
//! ```text
//! difference = Σ_u s_u / Σ_u w_u                      the difference of the two means over windows
//! d_u        = s_u / w_u                              user u's mean difference
//! d_z        = mean(d_u) / sd(d_u)                    Cohen's d_z, sd with n - 1
//! ```
//!
//! | function | computes | in scipy |
//! |---|---|---|
//! | [`MeanInterval::from_values`] | mean and 95 % t-interval over seeds | `scipy.stats.t.interval` |
//! | [`PairedDifferences::bootstrap`] | 95 % percentile interval of the difference | `scipy.stats.bootstrap(method="percentile")` |
//! | [`PairedDifferences::randomisation`] | p of the sign-flip test | `scipy.stats.permutation_test(permutation_type="samples")` |
//! | [`wilcoxon`] | p of the signed-rank test | `scipy.stats.wilcoxon` |
//! | [`holm`] | p corrected for several comparisons | (statsmodels: `multipletests(method="holm")`) |
//!
//! Differences are rounded to 12 decimals before they are ranked or told from 0: sums of equal
//! values in another order differ by less.
//!
//! All p are two-sided. Resampling is seeded; resample r draws from stream r of the seed, so the
//! numbers do not depend on the number of threads.

mod comparison;
mod holm;
mod interval;
mod paired;
mod wilcoxon;

#[cfg(test)]
mod tests;

pub use comparison::{CompareOptions, Comparison, Difference, PairedTest, RankedMethod, compare_all, correct};
pub use holm::holm;
pub use interval::MeanInterval;
pub(crate) use paired::percentile;
pub use paired::{PairedDifferences, RESAMPLES};
pub use wilcoxon::{SignedRank, wilcoxon};
