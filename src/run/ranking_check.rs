//! A run's own ranking on a GPU, compared with the CPU's before the first list.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Session;
use super::precision::products_round;
use super::rank_windows::rank_windows;
use super::self_check::no_cpu;
use super::trusted_devices::TrustedDevices;
use crate::core::log::log;
use crate::data::{Split, Window};
use crate::device::{BackendChoice, BackendName, Concrete};
use crate::evaluate::RankedSplit;
use crate::model::ItemLanguageModel;
use crate::{Error, Result};

/// Number of windows that are ranked, the last of the test split.
const WINDOWS: usize = 2;
/// Largest difference of the n-th best item's score that passes, as a share of the largest score.
/// Sums of f32 in another order differ by about 1e-5; items of equal score may change places.
const TOLERANCE: f64 = 1e-3;
/// Tolerance where products round their inputs to 8 or 11 bits.
const ROUNDED_TOLERANCE: f64 = 5e-2;

/// Distance of the scores of a run's lists on a device from the CPU's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct RankingCheck {
    /// The largest difference of the n-th best scores, as a share of the largest.
    difference: f64,
}

/// Ranks a few windows by the run's cached search on each device and on the CPU, unless that was
/// done before for the same devices, driver, program and run file; nothing on the CPU.
///
/// * `models`: the session's model, and its copies on the other devices.
/// * `trust`: skip the comparison.
///
/// # Errors
/// Scores that differ, in one line; a build without the CPU; a device that dies.
pub(crate) fn check_ranking(
    session: &Session,
    models: &[ItemLanguageModel<Concrete>],
    backend: &BackendChoice,
    trust: bool,
) -> Result<()> {
    let windows = session.context.corpus.windows(Split::Test);
    let first = windows.len().saturating_sub(WINDOWS);
    let windows: Vec<(u32, Window)> = (first as u32..).zip(windows[first..].iter().copied()).collect();
    if backend.name == BackendName::Cpu || trust || windows.is_empty() {
        return Ok(());
    }
    let llm = super::dir::read_identity::<super::identity::Identity>(&session.dir)?.llm;
    let verdicts = TrustedDevices::new("ranking", &session.config, backend, &llm)?;
    if verdicts.read::<RankingCheck>().is_some() {
        return Ok(());
    }
    let started = Instant::now();
    let cpu = BackendName::Cpu.device().map_err(|_| no_cpu())?;
    let cpu = Session::open(&session.dir, &cpu)?;
    let rank = |model: &ItemLanguageModel<Concrete>| {
        let decode = &session.config.decode;
        let models = std::slice::from_ref(model);
        let ranked = rank_windows(models, &session.context, Split::Test, &windows, decode, &mut |_, _| true)?;
        ranked.ok_or_else(|| Error::failed("the comparison with the CPU was interrupted"))
    };
    let expected = rank(&cpu.model)?;
    let mut worst = 0.0f64;
    for (n, model) in models.iter().enumerate() {
        let difference = difference(&rank(model)?, &expected);
        let rounds = products_round(session.config.llm.precision, &model.device());
        if difference.is_nan() || difference > if rounds { ROUNDED_TOLERANCE } else { TOLERANCE } {
            let which =
                if models.len() > 1 { format!(", device {} of {}", n + 1, models.len()) } else { String::new() };
            return Err(Error::device(format!(
                "option `backend` {backend}{which}: the scores of {} windows differ from the CPU's by {difference:.1e} \
                 of the largest; update the driver or take another device; option `trust_device` ranks nevertheless",
                windows.len()
            )));
        }
        worst = worst.max(difference);
    }
    log(format_args!(
        "scores of {} windows equal the CPU's to {worst:.0e}; compared in {:.1} s",
        windows.len(),
        started.elapsed().as_secs_f64()
    ));
    verdicts.write(&RankingCheck { difference: worst });
    Ok(())
}

/// Returns the largest difference of the n-th best scores of a list, as a share of the largest
/// score; infinite for lists of other lengths, NaN for scores that are no numbers.
fn difference(found: &RankedSplit, expected: &RankedSplit) -> f64 {
    let largest =
        expected.lists.iter().flat_map(|list| &list.scores).fold(0.0, |most: f64, score| most.max(score.abs()));
    let mut worst = 0.0f64;
    for (found, expected) in found.lists.iter().zip(&expected.lists) {
        if found.scores.len() != expected.scores.len() {
            return f64::INFINITY;
        }
        for (a, b) in found.scores.iter().zip(&expected.scores) {
            let off = (a - b).abs() / largest.max(f64::MIN_POSITIVE);
            if off.is_nan() {
                return f64::NAN;
            }
            worst = worst.max(off);
        }
    }
    if found.lists.len() == expected.lists.len() { worst } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::RankedList;

    #[test]
    fn differences_of_lists() {
        let split = |scores: &[&[f64]]| RankedSplit {
            outcomes: Vec::new(),
            lists: scores.iter().map(|s| RankedList { items: vec![0; s.len()], scores: s.to_vec() }).collect(),
        };
        let right = split(&[&[-1.0, -2.0], &[-1.5, -4.0]]);
        assert_eq!(difference(&right, &right), 0.0);
        assert_eq!(difference(&split(&[&[-1.0, -2.0], &[-1.5, -4.4]]), &right), (4.4 - 4.0) / 4.0);
        assert_eq!(difference(&split(&[&[-1.0, -2.0], &[-1.5]]), &right), f64::INFINITY);
        assert_eq!(difference(&split(&[&[-1.0, -2.0]]), &right), f64::INFINITY);
        assert!(difference(&split(&[&[-1.0, f64::NAN], &[-1.5, -4.0]]), &right).is_nan());
    }
}
