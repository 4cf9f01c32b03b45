//! The temperature that turns a model's scores into a distribution.

use crate::data::{Corpus, Split};

/// Most validation windows that the temperature is chosen on.
const WINDOWS: usize = 500;
/// Most scores of items that those windows have together; fewer windows where the catalogue is
/// larger than 134,217 items.
const SCORES: usize = 1 << 26;
/// Bounds of the temperature.
pub(crate) const COLDEST: f64 = 1e-3;
pub(crate) const HOTTEST: f64 = 1e3;

/// The scores of one validation window.
struct WindowScores {
    /// Scores of the items that can be ranked; the best is 0.
    all: Vec<f32>,
    target: f64,
}

/// Returns the temperature T under which exp(score / T), normalised, gives the targets of the
/// validation windows the largest likelihood. The log-likelihood is concave in β = 1 / T; its slope
/// is the sum of score(target) − E_β score. `None` where no target can be ranked.
///
/// * `scores`: returns for a history the scores of all items, `[items]`, minus infinity for those
///   that are not ranked; `None` if the model has no scores after the history.
pub(crate) fn likeliest_temperature(corpus: &Corpus, scores: impl Fn(&[u32]) -> Option<Vec<f32>>) -> Option<f64> {
    let windows = corpus.windows(Split::Valid);
    let most = (SCORES / corpus.items.len().max(1)).clamp(1, WINDOWS);
    let step = windows.len().div_ceil(most).max(1);
    let mut scored: Vec<WindowScores> = Vec::new();
    for window in windows.iter().step_by(step) {
        let (history, target) = (corpus.history(window), corpus.target(window));
        let Some(scores) = scores(history) else { continue };
        if history.contains(&target) || !scores[target as usize].is_finite() {
            continue;
        }
        let ranked = (0u32..).zip(&scores).filter(|(item, score)| score.is_finite() && !history.contains(item));
        let best = ranked.clone().map(|(_, &score)| score).fold(f32::NEG_INFINITY, f32::max);
        let all: Vec<f32> = ranked.map(|(_, &score)| score - best).collect();
        scored.push(WindowScores { all, target: f64::from(scores[target as usize] - best) });
    }
    if scored.is_empty() {
        return None;
    }
    let slope = |temperature: f64| scored.iter().map(|window| window.slope(temperature)).sum::<f64>();
    let (mut cold, mut hot) = (COLDEST.ln(), HOTTEST.ln());
    // To a relative precision of 1e-5.
    for _ in 0..20 {
        let middle = 0.5 * (cold + hot);
        // Where the slope in β is above 0, a larger β, which is a lower temperature, has a larger
        // likelihood.
        match slope(middle.exp()) > 0.0 {
            true => hot = middle,
            false => cold = middle,
        }
    }
    Some((0.5 * (cold + hot)).exp())
}

impl WindowScores {
    /// Returns score(target) − E score at a temperature.
    fn slope(&self, temperature: f64) -> f64 {
        let (mut sum, mut mass) = (0.0, 0.0);
        for &score in &self.all {
            let score = f64::from(score);
            let weight = (score / temperature).exp();
            sum += weight * score;
            mass += weight;
        }
        self.target - sum / mass
    }
}
