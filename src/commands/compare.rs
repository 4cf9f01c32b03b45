//! `itemlm compare RUN_DIR RUN_DIR…`

use std::path::PathBuf;

use crate::data::Split;
use crate::evaluate::{CompareOptions, Comparison, RankedMethod, compare_all};
use crate::run::EvaluatedRun;
use crate::{Error, Result};

/// Compares every pair of evaluated directories on the same users: the first of a pair is `a`, and
/// the difference is a - b. Of cold and warm targets, the differences are stated apart.
///
/// * `say`: gets what else differs between the evaluations.
///
/// # Errors
/// Fewer than two directories, the same one twice; directories that are not evaluated on the split,
/// or that cannot be compared ([`EvaluatedRun::check_comparable`]).
pub fn compare(
    dirs: &[PathBuf],
    split: Split,
    options: &CompareOptions,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Comparison>> {
    if dirs.len() < 2 {
        return Err(Error::usage("name at least two directories to compare"));
    }
    // The same directory may be written in several ways.
    let place = |dir: &PathBuf| dir.canonicalize().unwrap_or_else(|_| dir.clone());
    if let Some((_, twice)) = dirs.iter().enumerate().find(|(n, dir)| dirs[..*n].iter().any(|d| place(d) == place(dir)))
    {
        return Err(Error::usage(format!("{} is named twice", twice.display())));
    }
    let runs = dirs.iter().map(|dir| EvaluatedRun::open(dir, split)).collect::<Result<Vec<_>>>()?;
    for (before, b) in runs.iter().enumerate() {
        for a in &runs[..before] {
            a.check_comparable(b, options.metric)?;
        }
    }
    let notes = runs.iter().enumerate().flat_map(|(before, b)| runs[..before].iter().flat_map(|a| a.notes(b)));
    notes.for_each(|note| say(&format!("note: {note}")));
    let methods: Vec<RankedMethod> = runs.iter().map(EvaluatedRun::method).collect();
    compare_all(&methods, options)
}
