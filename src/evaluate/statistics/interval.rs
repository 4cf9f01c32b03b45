//! Mean and t-interval over seeds.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Values that differ by no more than this part of the largest are equal: sums of the same numbers
/// in another order differ by less.
pub(super) const ROUNDING: f64 = 1e-12;

/// A mean over seeds and its 95 % t-interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanInterval {
    /// Mean of the values.
    pub mean: f64,
    /// Lower end of the interval; `None` of one value, which tells nothing about the spread.
    pub low: Option<f64>,
    /// Upper end of the interval; `None` of one value.
    pub high: Option<f64>,
    /// Standard deviation of the values, with n - 1; `None` of one value.
    pub sd: Option<f64>,
}

impl MeanInterval {
    /// Returns the mean of n values and the interval
    ///
    /// ```text
    /// mean ± t(0.975, n - 1) · sd / √n
    /// ```
    ///
    /// where t is the quantile of Student's distribution; `None` without values.
    pub fn from_values(values: &[f64]) -> Option<Self> {
        let (mean, sd) = mean_and_sd(values)?;
        let half = sd.and_then(|sd| {
            let t = StudentsT::new(0.0, 1.0, values.len() as f64 - 1.0).ok()?;
            Some(t.inverse_cdf(0.975) * sd / (values.len() as f64).sqrt())
        });
        Some(Self { mean, low: half.map(|half| mean - half), high: half.map(|half| mean + half), sd })
    }
}

/// Returns the mean and the standard deviation with n - 1 (`None` of one value); `None` without
/// values. The standard deviation of values that are equal but for rounding is 0.
pub(super) fn mean_and_sd(values: &[f64]) -> Option<(f64, Option<f64>)> {
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let sd = (squares / (n - 1.0)).sqrt();
    // The mean of equal values is rounded, so they are not all at it.
    let largest = values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let sd = if sd <= ROUNDING * largest { 0.0 } else { sd };
    Some((mean, (values.len() > 1).then_some(sd)))
}
