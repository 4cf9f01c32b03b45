//! Holm's correction for several comparisons.

/// Returns the p of a family of m tests by Holm's step-down method (Holm 1979), in the order of
/// `p`. With p sorted ascending, i from 1:
///
/// ```text
/// p_holm(i) = max over j ≤ i of min(1, (m - j + 1) · p(j))
/// ```
///
/// To call what has p_holm ≤ 0.05 significant errs in a family of true null hypotheses at most once
/// in 20 families.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut corrected = vec![0.0; p.len()];
    let mut largest = 0.0f64;
    for (before, index) in order.into_iter().enumerate() {
        largest = largest.max(((p.len() - before) as f64 * p[index]).min(1.0));
        corrected[index] = largest;
    }
    corrected
}
