//! Differences of two methods on the same users: bootstrap interval, randomisation test, effect
//! size.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::interval::mean_and_sd;
use super::wilcoxon::wilcoxon;

/// Bootstrap resamples, and random assignments of signs.
pub const RESAMPLES: usize = 10_000;

/// The paired differences (A - B) of two methods, one entry a user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairedDifferences {
    /// `[users]`: sum of the differences over the user's windows.
    sums: Vec<f64>,
    /// `[users]`: number of the user's windows.
    windows: Vec<f64>,
}

impl PairedDifferences {
    /// Makes the differences of users with one window each.
    pub fn new(differences: Vec<f64>) -> Self {
        Self { windows: vec![1.0; differences.len()], sums: differences }
    }

    /// Makes the differences of users from those of their windows, `(user, difference)`; `user` is
    /// any number that tells users apart. Users are in the order of their first window.
    pub fn from_windows(windows: impl IntoIterator<Item = (u32, f64)>) -> Self {
        let mut index = std::collections::HashMap::new();
        let mut all = Self::default();
        for (user, difference) in windows {
            let at = *index.entry(user).or_insert(all.sums.len());
            if at == all.sums.len() {
                all.sums.push(0.0);
                all.windows.push(0.0);
            }
            all.sums[at] += difference;
            all.windows[at] += 1.0;
        }
        all
    }

    /// Returns the number of users.
    pub fn users(&self) -> usize {
        self.sums.len()
    }

    /// Returns the number of windows.
    pub fn windows(&self) -> usize {
        self.windows.iter().sum::<f64>() as usize
    }

    /// Returns the mean difference over all windows; 0 without windows.
    pub fn mean(&self) -> f64 {
        self.sums.iter().sum::<f64>() / self.windows.iter().sum::<f64>().max(1.0)
    }

    /// Returns each user's mean difference, to 12 decimals: sums of equal numbers in another order
    /// are then equal, and sums that cancel are 0.
    fn user_means(&self) -> Vec<f64> {
        self.sums.iter().zip(&self.windows).map(|(sum, windows)| rounded(sum / windows)).collect()
    }

    /// Returns the 95 % percentile interval of the mean difference: its 2.5 % and 97.5 % quantiles
    /// over `resamples` drawings of as many users, with replacement, each with all their windows.
    /// `None` without users.
    pub fn bootstrap(&self, resamples: usize, seed: u64) -> Option<[f64; 2]> {
        if self.sums.is_empty() || resamples == 0 {
            return None;
        }
        let users = self.sums.len() as u32;
        let resample = |stream: u64| {
            let mut rng = random_stream(seed, stream);
            let (mut sum, mut windows) = (0.0, 0.0);
            for _ in 0..users {
                let user = rng.random_range(0..users) as usize;
                sum += self.sums[user];
                windows += self.windows[user];
            }
            sum / windows
        };
        let mut means: Vec<f64> = (0..resamples as u64).into_par_iter().map(resample).collect();
        means.sort_unstable_by(f64::total_cmp);
        Some([percentile(&means, 0.025), percentile(&means, 0.975)])
    }

    /// Returns the two-sided p of the paired randomisation test (Fisher): the share of assignments
    /// of signs to the users' differences whose mean is at least as far from 0 as the one observed.
    ///
    /// If there are at most `resamples` assignments (2ⁿ of n users) all of them are tried, and p
    /// is exact. Else `resamples` of them are drawn, and the observed one counts as well (Phipson
    /// and Smyth 2010):
    ///
    /// ```text
    /// p = (1 + those at least as far from 0) / (1 + resamples)
    /// ```
    ///
    /// Without any difference p is 1.
    pub fn randomisation(&self, resamples: usize, seed: u64) -> f64 {
        // Signs change no difference of 0.
        let sums: Vec<f64> = self.sums.iter().copied().filter(|&sum| rounded(sum) != 0.0).collect();
        // Sums of other signs round otherwise.
        let observed = sums.iter().sum::<f64>().abs();
        let least = observed - 100.0 * f64::EPSILON * sums.iter().map(|sum| sum.abs()).sum::<f64>();
        if sums.is_empty() || rounded(observed) == 0.0 {
            return 1.0;
        }
        if sums.len() < usize::BITS as usize - 1 && 1usize << sums.len() <= resamples {
            let assignments = 1usize << sums.len();
            let far = (0..assignments as u64)
                .filter(|&signs| sum_with_random_signs(&sums, &mut || signs).abs() >= least)
                .count();
            return far as f64 / assignments as f64;
        }
        let far = (0..resamples as u64).into_par_iter().filter(|&stream| {
            let mut rng = random_stream(seed, stream);
            sum_with_random_signs(&sums, &mut || rng.next_u64()).abs() >= least
        });
        (1 + far.count()) as f64 / (1 + resamples) as f64
    }

    /// Returns the two-sided p of Wilcoxon's signed-rank test of the users' mean differences.
    pub fn wilcoxon(&self) -> f64 {
        wilcoxon(&self.user_means()).p
    }

    /// Returns Cohen's d_z, the mean of the users' differences in units of their standard
    /// deviation; `None` where that is 0 or there are fewer than two users.
    pub fn cohens_dz(&self) -> Option<f64> {
        let (mean, sd) = mean_and_sd(&self.user_means())?;
        sd.filter(|&sd| rounded(sd) > 0.0).map(|sd| mean / sd)
    }
}

/// Rounds to 12 decimals: metrics are between 0 and 1, and sums of them err by less.
fn rounded(x: f64) -> f64 {
    (x * 1e12).round() / 1e12
}

/// Returns the sum of `sums` with signs by the bits that `next` gives, 64 at a time, the lowest
/// first.
fn sum_with_random_signs(sums: &[f64], next: &mut dyn FnMut() -> u64) -> f64 {
    let mut total = 0.0;
    for chunk in sums.chunks(64) {
        let bits = next();
        for (bit, sum) in chunk.iter().enumerate() {
            total += f64::from_bits(sum.to_bits() ^ (((bits >> bit) & 1) << 63));
        }
    }
    total
}

fn random_stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// Interpolates between the order statistics, as NumPy's default.
///
/// * `sorted`: at least one value.
pub(crate) fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = p * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}
