//! Against scipy's and statsmodels' numbers (`tests/reference/statistics_reference.py`), by hand,
//! and by simulation.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::*;
use crate::evaluate::{Metric, RankedWindow};

#[derive(Deserialize)]
struct Reference {
    intervals: Vec<IntervalCase>,
    wilcoxon: Vec<WilcoxonCase>,
    paired: Vec<PairedCase>,
    holm: Vec<HolmCase>,
}

#[derive(Deserialize)]
struct IntervalCase {
    values: Vec<f64>,
    mean: f64,
    sd: f64,
    low: f64,
    high: f64,
}

#[derive(Deserialize)]
struct WilcoxonCase {
    differences: Vec<f64>,
    method: String,
    statistic: f64,
    p: f64,
}

#[derive(Deserialize)]
struct PairedCase {
    differences: Vec<f64>,
    exact: bool,
    p: f64,
    low: f64,
    high: f64,
    dz: f64,
}

#[derive(Deserialize)]
struct HolmCase {
    p: Vec<f64>,
    corrected: Vec<f64>,
}

fn reference() -> Reference {
    let text = include_str!("../../../tests/fixtures/reference/statistics/statistics.json");
    serde_json::from_str(text).unwrap()
}

/// Within `tolerance` of the larger absolute value, or of 1.
fn close(got: f64, expected: f64, tolerance: f64, what: &str) {
    let scale = got.abs().max(expected.abs()).max(1.0);
    assert!((got - expected).abs() <= tolerance * scale, "{what}: {got}, not {expected}");
}

/// Both compute in f64; 1e-9 leaves room for another way to the quantile of Student's distribution.
#[test]
fn t_intervals_equal_scipys() {
    for case in reference().intervals {
        let interval = MeanInterval::from_values(&case.values).unwrap();
        close(interval.mean, case.mean, 1e-12, "mean");
        close(interval.sd.unwrap(), case.sd, 1e-12, "sd");
        close(interval.low.unwrap(), case.low, 1e-9, "low");
        close(interval.high.unwrap(), case.high, 1e-9, "high");
    }
    assert_eq!(MeanInterval::from_values(&[]), None);
    assert_eq!(MeanInterval::from_values(&[0.5]), Some(MeanInterval { mean: 0.5, low: None, high: None, sd: None }));
    let equal = MeanInterval::from_values(&[0.5, 0.5, 0.5]).unwrap();
    assert_eq!((equal.low, equal.high), (Some(0.5), Some(0.5)));
    // 0.1 three times has the mean 0.10000000000000002, and no spread.
    let equal = MeanInterval::from_values(&[0.1; 3]).unwrap();
    assert_eq!((equal.sd, equal.low, equal.high), (Some(0.0), Some(equal.mean), Some(equal.mean)));
    // By the formula: of 0 and 1, t(0.975, 1) = tan(0.475 π) = 12.706, sd / √2 = 0.5.
    let pair = MeanInterval::from_values(&[0.0, 1.0]).unwrap();
    close(pair.high.unwrap(), 0.5 + 0.5 * (0.475 * std::f64::consts::PI).tan(), 1e-9, "of two");
}

#[test]
fn signed_ranks_equal_scipys() {
    for case in reference().wilcoxon {
        let found = wilcoxon(&case.differences);
        close(found.statistic, case.statistic, 1e-12, &case.method);
        // The normal distribution's tail: statrs and scipy approximate erfc in other ways.
        close(found.p, case.p, if case.method == "exact" { 1e-12 } else { 1e-9 }, &case.method);
    }
    // By hand: of the 8 assignments of signs to 1, 2, 3 one has R⁺ = 0, so p = 2 / 8.
    assert_eq!(wilcoxon(&[0.3, 0.1, 0.0, 0.2]), SignedRank { n: 3, statistic: 0.0, p: 0.25 });
    assert_eq!(wilcoxon(&[0.0, 0.0]).p, 1.0);
    // 0.1 + 0.2 is tied with 0.3, so of the ranks 1.5, 1.5 and 3 R⁻ is 1.5.
    assert_eq!(wilcoxon(&[0.1 + 0.2, -0.3, 0.5]).statistic, 1.5);
}

#[test]
fn holm_equals_statsmodels() {
    for case in reference().holm {
        for (got, expected) in holm(&case.p).into_iter().zip(case.corrected) {
            close(got, expected, 1e-12, "Holm");
        }
    }
    assert!(holm(&[]).is_empty());
}

/// Up to 2¹³ assignments of signs p is exact. Of more, both draw: the tolerance is five standard
/// errors of both numbers of drawings (100,000 and 200,000). An end of a bootstrap interval has a
/// standard error of 0.0085 and 0.006 of that of the mean, which is about a quarter of the
/// interval.
#[test]
fn paired_tests_equal_scipys() {
    for case in reference().paired {
        let paired = PairedDifferences::new(case.differences.clone());
        let p = paired.randomisation(100_000, 1);
        let error = (case.p * (1.0 - case.p) * (1.0 / 1e5 + 1.0 / 2e5)).sqrt();
        close(p, case.p, if case.exact { 1e-12 } else { 5.0 * error + 1e-5 }, "p");
        let [low, high] = paired.bootstrap(100_000, 1).unwrap();
        let tolerance = 0.015 * (case.high - case.low);
        close(low, case.low, tolerance, "low");
        close(high, case.high, tolerance, "high");
        close(paired.cohens_dz().unwrap(), case.dz, 1e-12, "d_z");
        assert_eq!(p, paired.randomisation(100_000, 1));
    }
}

#[derive(Deserialize)]
struct RanxCase {
    a: RanxRun,
    b: RanxRun,
    student: f64,
    randomisation: f64,
}

#[derive(Deserialize)]
struct RanxRun {
    ranks: Vec<Option<u32>>,
    means: std::collections::BTreeMap<String, f64>,
}

/// `tests/reference/ranking_reference.py`: ranx's means, equal but for rounding; its randomisation
/// test, which draws as ours does (five standard errors of 200,000 and 100,000 draws); and
/// Student's paired test of the same differences, whose p is that of d_z: t = d_z √n with n - 1
/// degrees of freedom.
#[test]
fn metrics_and_tests_equal_ranxs() {
    use statrs::distribution::{ContinuousCDF, StudentsT};

    let text = include_str!("../../../tests/fixtures/reference/statistics/ranx.json");
    for case in serde_json::from_str::<Vec<RanxCase>>(text).unwrap() {
        for run in [&case.a, &case.b] {
            for (name, expected) in &run.means {
                let metric: Metric = name.parse().unwrap();
                let sum: f64 = run.ranks.iter().map(|rank| metric.value(*rank)).sum();
                close(sum / run.ranks.len() as f64, *expected, 1e-12, name);
            }
        }
        let ndcg: Metric = "ndcg@10".parse().unwrap();
        let differences: Vec<f64> =
            case.a.ranks.iter().zip(&case.b.ranks).map(|(a, b)| ndcg.value(*a) - ndcg.value(*b)).collect();
        let paired = PairedDifferences::new(differences);
        let n = paired.users() as f64;
        let t = paired.cohens_dz().unwrap().abs() * n.sqrt();
        // Differences are rounded to 12 decimals; p's slope by t is at most 0.4.
        close(2.0 * StudentsT::new(0.0, 1.0, n - 1.0).unwrap().sf(t), case.student, 1e-9, "Student's p");
        let p = case.randomisation;
        let error = (p * (1.0 - p) * (1.0 / 1e5 + 1.0 / 2e5)).sqrt();
        close(paired.randomisation(100_000, 1), p, 5.0 * error + 1e-5, "p of the randomisation test");
    }
}

#[test]
fn paired_differences_by_hand() {
    // Signs of 1, 2, 3 in 8 ways: only +++ and --- are as far from 0 as 6.
    let paired = PairedDifferences::new(vec![1.0, 2.0, 3.0]);
    assert_eq!((paired.mean(), paired.randomisation(8, 1), paired.cohens_dz()), (2.0, 0.25, Some(2.0)));
    // Zeros change p of nothing.
    let with_zeros = PairedDifferences::new(vec![1.0, 0.0, 2.0, 0.0, 3.0]);
    assert_eq!(with_zeros.randomisation(8, 1), 0.25);
    let none = PairedDifferences::new(vec![0.0; 5]);
    assert_eq!((none.randomisation(1000, 1), none.wilcoxon(), none.cohens_dz()), (1.0, 1.0, None));
    assert_eq!(none.bootstrap(1000, 1), Some([0.0, 0.0]));
    assert_eq!(PairedDifferences::default().bootstrap(1000, 1), None);
    assert_eq!(PairedDifferences::default().mean(), 0.0);

    // A user's windows stay together: ten equal ones tell no more than one.
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let values: Vec<f64> = (0..40).map(|_| rng.random_range(-1.0..1.5)).collect();
    let single = PairedDifferences::new(values.clone());
    let of_ten = (0..).zip(&values).flat_map(|(user, &value)| std::iter::repeat_n((user, value), 10));
    let repeated = PairedDifferences::from_windows(of_ten);
    assert_eq!((repeated.users(), repeated.windows()), (40, 400));
    close(repeated.mean(), single.mean(), 1e-12, "mean");
    assert_eq!(repeated.randomisation(1000, 5), single.randomisation(1000, 5));
    let [a, b] = [&repeated, &single].map(|paired| paired.bootstrap(1000, 5).unwrap());
    close(a[0], b[0], 1e-12, "low");
    // What rounding leaves of sums that cancel is no difference, and equal differences have no
    // spread: 0.1 ten times has a mean of 0.09999999999999999.
    let cancelling = PairedDifferences::from_windows((0..9).flat_map(|user| [0.1, 0.2, -0.3].map(|d| (user, d))));
    assert!(cancelling.mean() != 0.0 && cancelling.mean().abs() < 1e-15);
    assert_eq!((cancelling.randomisation(1000, 1), cancelling.wilcoxon(), cancelling.cohens_dz()), (1.0, 1.0, None));
    assert_eq!(PairedDifferences::new(vec![0.1; 10]).cohens_dz(), None);
    // Differences that are equal but for their rounding are ties.
    let ties = [0.1 + 0.2, 0.3, -0.3, 0.6, 0.3, 0.1 + 0.2];
    assert_eq!(PairedDifferences::new(ties.to_vec()).wilcoxon(), wilcoxon(&[0.3, 0.3, -0.3, 0.6, 0.3, 0.3]).p);
    // One user tells nothing.
    let one = PairedDifferences::from_windows([(7, 0.5), (7, 0.25)]);
    assert_eq!((one.randomisation(1000, 1), one.wilcoxon(), one.cohens_dz()), (1.0, 1.0, None));
    assert_eq!(one.bootstrap(1000, 1), Some([0.375, 0.375]));
    // A user's mean weighs as many as their windows.
    let uneven = PairedDifferences::from_windows([(7, 1.0), (3, -1.0), (7, 1.0), (7, 1.0)]);
    assert_eq!((uneven.mean(), uneven.users(), uneven.windows()), (0.5, 2, 4));
}

/// NDCG@10 of a user of a method that finds a share of the targets.
fn ndcg(rng: &mut ChaCha8Rng, found: f64) -> f64 {
    let rank = rng.random_bool(found).then(|| rng.random_range(0..10));
    "ndcg@10".parse::<Metric>().unwrap().value(rank)
}

/// 2,000 comparisons of two equally good methods on 60 users: 5 ± 1 % are significant (p ≤ 0.05),
/// for the test's p are uniform. 1 % is two standard errors of a share of 2,000.
#[test]
fn without_a_difference_one_comparison_in_20_is_significant() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut flips, mut ranks, mut intervals) = (0, 0, 0);
    for comparison in 0..2000 {
        let differences = (0..60).map(|_| ndcg(&mut rng, 0.5) - ndcg(&mut rng, 0.5));
        let paired = PairedDifferences::new(differences.collect());
        flips += usize::from(paired.randomisation(999, comparison) <= 0.05);
        ranks += usize::from(paired.wilcoxon() <= 0.05);
        let [low, high] = paired.bootstrap(400, comparison).unwrap();
        intervals += usize::from(low > 0.0 || high < 0.0);
    }
    println!("of 2,000: randomisation {flips}, Wilcoxon {ranks}, bootstrap interval without 0 {intervals}");
    assert!((80..=120).contains(&flips), "{flips} of 2,000");
    assert!((80..=120).contains(&ranks), "{ranks} of 2,000");
    // The percentile interval is a little too narrow for 60 users.
    assert!((80..=150).contains(&intervals), "{intervals} of 2,000");
}

/// A difference that is there is found: a method that finds 50 % beats one that finds 20 %.
#[test]
fn a_difference_is_significant() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let differences: Vec<f64> = (0..200).map(|_| ndcg(&mut rng, 0.5) - ndcg(&mut rng, 0.2)).collect();
    let paired = PairedDifferences::new(differences);
    assert!(paired.randomisation(10_000, 1) < 0.001 && paired.wilcoxon() < 0.001);
    assert!(paired.bootstrap(1000, 1).unwrap()[0] > 0.0 && paired.cohens_dz().unwrap() > 0.2);
}

fn ranked(ranks: &[Option<u32>]) -> Vec<RankedWindow> {
    let row = |(window, &rank): (u32, &Option<u32>)| RankedWindow {
        window,
        user: format!("u{}", window / 2),
        target: "Pen".into(),
        cold: window == 0,
        rank,
    };
    (0..).zip(ranks).map(row).collect()
}

#[test]
fn comparisons_by_hand() {
    let a = ranked(&[Some(0), Some(2), None, Some(1)]);
    let (b, c) = (ranked(&[Some(2), Some(2), None, None]), ranked(&[None, Some(2), Some(0), None]));
    let method = |name: &str, seeds: Vec<&'static [RankedWindow]>| RankedMethod { name: name.into(), seeds };
    let [a, b, c]: [&'static [RankedWindow]; 3] = [a, b, c].map(|rows| &*rows.leak());
    let options = CompareOptions { metric: "hr@2".parse().unwrap(), ..CompareOptions::default() };
    // b's window values are means of its two seeds: 0, 0, 0.5, 0.
    let compared = Comparison::new(&method("a", vec![a]), &method("b", vec![b, c]), &options).unwrap();
    assert_eq!((compared.all.mean_a, compared.all.mean_b, compared.all.difference), (0.5, 0.125, 0.375));
    assert_eq!((compared.all.users, compared.all.windows), (2, 4));
    // Users differ by 1 and 0.5: of 4 assignments of signs two are as far.
    assert_eq!(compared.all.p, 0.5);
    let cold = compared.cold.as_ref().unwrap();
    assert_eq!((cold.windows, cold.difference, cold.low, cold.high, cold.p), (1, 1.0, 1.0, 1.0, 1.0));
    assert_eq!(compared.warm.as_ref().unwrap().windows, 3);

    let methods = [method("a", vec![a]), method("b", vec![b]), method("c", vec![c])];
    let all = compare_all(&methods, &options).unwrap();
    let pairs: Vec<(&str, &str)> = all.iter().map(|c| (c.a.as_str(), c.b.as_str())).collect();
    assert_eq!(pairs, [("a", "b"), ("a", "c"), ("b", "c")]);
    let p: Vec<f64> = all.iter().map(|c| c.all.p).collect();
    assert_eq!(all.iter().map(|c| c.all.p_holm).collect::<Vec<_>>(), holm(&p));

    let json = serde_json::to_value(&all[0]).unwrap();
    for key in ["a", "b", "metric", "difference", "low", "high", "p", "p_holm", "cohens_dz", "users", "cold", "warm"] {
        assert!(json.get(key).is_some(), "{key}: {json}");
    }
    assert_eq!((&json["metric"], &json["test"]), (&"hr@2".into(), &"randomisation".into()));
    assert_eq!(serde_json::from_value::<Comparison>(json).unwrap(), all[0]);

    let error = Comparison::new(&methods[0], &method("d", vec![&a[..2]]), &options).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().contains("a and d ranked other windows")), (2, true));
}
