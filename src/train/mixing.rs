//! The order in which the rows of several text tasks come in an epoch.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Returns an epoch over tasks of these `sizes`: pairs of a task and one of its rows, shuffled.
///
/// T5's temperature-scaled mixing (arXiv 1910.10683, section 3.5.2): a task's share is proportional
/// to sizeᵅ. With `alpha` 1 tasks count by their rows, and every epoch has every row once; with 0
/// all tasks count the same; T5's temperature is 1/`alpha`. Unlike T5's, sizes are not capped
/// first, and shares are not drawn: each task has its share to a row, by the largest remainders, of
/// an epoch of as many rows as the tasks have together.
///
/// A task's rows come in passes, each in its own random order; an epoch begins where the last one
/// stopped, so no row comes twice before all have come once. The result depends on the arguments
/// alone: epoch n needs none of those before it.
pub fn mix(sizes: &[usize], alpha: f64, seed: u64, epoch: usize) -> Vec<(usize, usize)> {
    let stream = |stream: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        rng
    };
    let mut rows = Vec::with_capacity(sizes.iter().sum());
    for (task, (&size, quota)) in sizes.iter().zip(quotas(sizes, alpha)).enumerate() {
        let (mut next, end) = (epoch * quota, (epoch + 1) * quota);
        while next < end {
            let pass = next / size;
            let mut order: Vec<usize> = (0..size).collect();
            order.shuffle(&mut stream((pass * sizes.len() + task) as u64));
            let until = end.min((pass + 1) * size);
            rows.extend(order[next - pass * size..until - pass * size].iter().map(|&row| (task, row)));
            next = until;
        }
    }
    rows.shuffle(&mut stream(u64::MAX - epoch as u64));
    rows
}

/// Returns how many rows each task has in an epoch; their sum is that of the sizes.
fn quotas(sizes: &[usize], alpha: f64) -> Vec<usize> {
    let (total, largest) = (sizes.iter().sum::<usize>(), sizes.iter().copied().max().unwrap_or(0));
    // Over the largest, so that no power overflows.
    let weight = |&size: &usize| if size == 0 { 0.0 } else { (size as f64 / largest as f64).powf(alpha) };
    let weights: Vec<f64> = sizes.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    if sum == 0.0 {
        return vec![0; sizes.len()];
    }
    let exact: Vec<f64> = weights.iter().map(|weight| weight / sum * total as f64).collect();
    // Shares that are whole numbers but for rounding are those numbers.
    let mut quotas: Vec<usize> = exact.iter().map(|rows| (rows + 1e-6).floor() as usize).collect();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).filter(|&task| sizes[task] > 0).collect();
    by_remainder.sort_by(|&a, &b| (exact[b] - quotas[b] as f64).total_cmp(&(exact[a] - quotas[a] as f64)));
    let missing = total.saturating_sub(quotas.iter().sum());
    by_remainder.into_iter().take(missing).for_each(|task| quotas[task] += 1);
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rows: &[(usize, usize)], sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut counts: Vec<Vec<usize>> = sizes.iter().map(|&size| vec![0; size]).collect();
        rows.iter().for_each(|&(task, row)| counts[task][row] += 1);
        counts
    }

    #[test]
    fn shares() {
        assert_eq!(quotas(&[60, 30, 10], 1.0), [60, 30, 10]);
        assert_eq!(quotas(&[60, 30, 10], 0.0), [34, 33, 33]);
        // √90 : √10 = 3 : 1.
        assert_eq!(quotas(&[90, 0, 10], 0.5), [75, 0, 25]);
        assert_eq!(quotas(&[2, 0], 0.0), [2, 0]);
        assert_eq!(quotas(&[1_000_000, 7], 50.0), [1_000_007, 0]);
        assert_eq!(quotas(&[0, 0], 0.5), [0, 0]);
        assert!(mix(&[], 0.5, 1, 0).is_empty() && mix(&[0], 0.5, 1, 3).is_empty());
        for sizes in [vec![3, 5, 7, 11], vec![888, 1, 13], vec![123_457, 7919, 31]] {
            for alpha in [0.0, 0.3, 0.7, 1.0, 2.0] {
                assert_eq!(quotas(&sizes, alpha).iter().sum::<usize>(), sizes.iter().sum::<usize>());
            }
            assert_eq!(quotas(&sizes, 1.0), sizes);
        }
    }

    #[test]
    fn with_alpha_1_every_epoch_has_every_row_once() {
        let sizes = [5, 0, 40, 1];
        for epoch in 0..3 {
            assert!(counts(&mix(&sizes, 1.0, 4, epoch), &sizes).concat().iter().all(|&count| count == 1));
        }
    }

    #[test]
    fn no_row_comes_twice_before_all_have_come_once() {
        let sizes = [100, 7, 30];
        for alpha in [0.0, 0.4, 1.5] {
            let mut seen: Vec<Vec<usize>> = sizes.iter().map(|&size| vec![0; size]).collect();
            for epoch in 0..9 {
                let rows = mix(&sizes, alpha, 4, epoch);
                assert_eq!(rows.len(), 137);
                for (all, new) in seen.iter_mut().zip(counts(&rows, &sizes)) {
                    all.iter_mut().zip(new).for_each(|(all, new)| *all += new);
                    assert!(all.iter().max().unwrap() - all.iter().min().unwrap() <= 1);
                }
            }
        }
    }

    #[test]
    fn a_function_of_seed_and_epoch() {
        let sizes = [50, 20];
        let order = |seed, epoch| mix(&sizes, 0.5, seed, epoch);
        assert_eq!(order(1, 2), order(1, 2));
        assert!(order(1, 2) != order(1, 3) && order(1, 2) != order(2, 2));
        // The tasks alternate: the second half holds about as many rows of the smaller one as the
        // first.
        let half = order(1, 0)[..35].iter().filter(|(task, _)| *task == 1).count();
        assert!((6..22).contains(&half), "{half} of 27");
    }
}
