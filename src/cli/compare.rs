//! Comparisons as text.

use crate::evaluate::Comparison;
use crate::evaluate::statistics::{Difference, PairedTest};

/// A table with a line for each pair and group of targets.
pub(super) fn text(comparisons: &[Comparison]) -> String {
    let Some(first) = comparisons.first() else { return String::new() };
    let test = match first.test {
        PairedTest::Randomisation => "paired randomisation test",
        PairedTest::Wilcoxon => "Wilcoxon's signed-rank test",
    };
    let mut text = format!(
        "{}: a - b over the same users, 95 % bootstrap interval; p by the {test}, two-sided; Holm's correction over \
         the pairs.\n",
        first.metric
    );
    for comparison in comparisons {
        text += &format!(
            "\na: {}\nb: {}\n{:8}  {:>6}  {:>8}  {:>8}  {:>8}  {:20}  {:>7}  {:>7}  {:>6}\n",
            comparison.a, comparison.b, "targets", "users", "a", "b", "a - b", "95 %", "p", "p Holm", "d_z"
        );
        text += &line("all", &comparison.all);
        let groups = [("cold", &comparison.cold), ("warm", &comparison.warm)];
        groups.into_iter().filter_map(|(name, group)| Some(line(name, group.as_ref()?))).for_each(|line| text += &line);
    }
    text
}

fn line(targets: &str, difference: &Difference) -> String {
    let Difference { users, mean_a, mean_b, difference, low, high, p, p_holm, cohens_dz, .. } = difference;
    let interval = format!("[{low:+.4}, {high:+.4}]");
    let dz = cohens_dz.map_or("-".to_string(), |dz| format!("{dz:+.3}"));
    format!(
        "{targets:8}  {users:>6}  {mean_a:>8.4}  {mean_b:>8.4}  {difference:>+8.4}  {interval:20}  {p:>7.4}  \
         {p_holm:>7.4}  {dz:>6}\n"
    )
}
