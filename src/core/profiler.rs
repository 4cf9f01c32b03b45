//! Where a training step's time goes.
//!
//! A clock belongs to the thread that trains and always runs for one [`Part`] of the work:
//! [`begin`] turns it to the next one, and [`mark`](crate::kernels::profile_scope), put on a tensor
//! between two parts, does so forward and, when the gradient passes, backward. The device is waited
//! for at every turn. Without [`record`] there is no clock and nothing of this does anything.

use std::cell::{Cell, RefCell};
use std::ops::AddAssign;
use std::time::Instant;

use serde::Serialize;

/// A part of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Tokenising, and laying batches out.
    Data,
    /// Rows of the embedding table; the encoder of items and users.
    Embedding,
    /// Norm, projections, rotation, attention, and who sees whom.
    Attention,
    /// Norm and feed-forward.
    Mlp,
    /// Last norm, output projection, loss.
    Loss,
    /// Clipping, and the step of the optimiser.
    Optimizer,
    /// All else.
    Rest,
}

impl Part {
    /// All, in the order of a step.
    pub const ALL: [Self; 7] =
        [Self::Data, Self::Embedding, Self::Attention, Self::Mlp, Self::Loss, Self::Optimizer, Self::Rest];
}

/// Forward or backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// All but [`Pass::Backward`].
    Forward,
    /// From the loss to the gradients.
    Backward,
}

/// A number for each part, forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Parts([[f64; 2]; 7]);

impl Parts {
    /// One of them.
    pub fn of(&self, part: Part, pass: Pass) -> f64 {
        self.0[part as usize][pass as usize]
    }

    /// Adds to one of them.
    pub fn add(&mut self, part: Part, pass: Pass, value: f64) {
        self.0[part as usize][pass as usize] += value;
    }

    /// Those of one pass, 0 for the other.
    pub fn only(mut self, pass: Pass) -> Self {
        let other = if pass == Pass::Forward { Pass::Backward } else { Pass::Forward };
        self.0.iter_mut().for_each(|values| values[other as usize] = 0.0);
        self
    }

    /// Of a pass.
    pub fn total(&self, pass: Pass) -> f64 {
        Part::ALL.iter().map(|&part| self.of(part, pass)).sum()
    }

    /// Of both passes.
    pub fn sum(&self) -> f64 {
        self.total(Pass::Forward) + self.total(Pass::Backward)
    }
}

impl AddAssign for Parts {
    fn add_assign(&mut self, other: Self) {
        self.0.as_flattened_mut().iter_mut().zip(other.0.as_flattened()).for_each(|(sum, value)| *sum += value);
    }
}

/// What [`record`] found.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Recorded {
    /// Seconds.
    pub seconds: Parts,
    /// Floating-point operations, as [`count`]ed.
    pub flops: Parts,
}

struct Clock {
    part: Part,
    pass: Pass,
    since: Instant,
    recorded: Recorded,
    sync: Box<dyn Fn()>,
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
}

/// Does `work` under the clock, which starts at [`Part::Rest`].
///
/// * `sync`: waits until the device has done what it was asked for.
pub fn record<T>(sync: impl Fn() + 'static, work: impl FnOnce() -> T) -> (T, Recorded) {
    sync();
    let clock = Clock {
        part: Part::Rest,
        pass: Pass::Forward,
        since: Instant::now(),
        recorded: Recorded::default(),
        sync: Box::new(sync),
    };
    CLOCK.set(Some(clock));
    ON.set(true);
    let done = work();
    begin(Part::Rest);
    ON.set(false);
    (done, CLOCK.take().map(|clock| clock.recorded).unwrap_or_default())
}

/// Whether this thread records.
pub fn is_on() -> bool {
    ON.get()
}

/// From now on the clock runs for `part`; for which it ran until now.
pub fn begin(part: Part) -> Option<Part> {
    turn(|clock| std::mem::replace(&mut clock.part, part))
}

/// Works as a part of the backward pass.
pub fn backward<T>(work: impl FnOnce() -> T) -> T {
    turn(|clock| clock.pass = Pass::Backward);
    let done = work();
    turn(|clock| clock.pass = Pass::Forward);
    done
}

/// Adds to the operations that the step needed.
pub fn count(flops: Parts) {
    with_clock(|clock| clock.recorded.flops += flops);
}

fn turn<T>(change: impl FnOnce(&mut Clock) -> T) -> Option<T> {
    with_clock(|clock| {
        (clock.sync)();
        let now = Instant::now();
        clock.recorded.seconds.add(clock.part, clock.pass, (now - clock.since).as_secs_f64());
        clock.since = now;
        change(clock)
    })
}

fn with_clock<T>(work: impl FnOnce(&mut Clock) -> T) -> Option<T> {
    if !is_on() {
        return None;
    }
    CLOCK.with_borrow_mut(|clock| clock.as_mut().map(work))
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_goes_to_the_part_that_runs() {
        assert_eq!(begin(Part::Data), None, "no clock yet");
        let pause = || sleep(Duration::from_millis(20));
        let started = Instant::now();
        let ((), recorded) = record(
            || {},
            || {
                begin(Part::Data);
                pause();
                assert_eq!(begin(Part::Loss), Some(Part::Data));
                backward(|| {
                    pause();
                    begin(Part::Mlp);
                    pause();
                });
                begin(Part::Rest);
            },
        );
        let elapsed = started.elapsed().as_secs_f64();
        for (part, pass) in [(Part::Data, Pass::Forward), (Part::Loss, Pass::Backward), (Part::Mlp, Pass::Backward)] {
            assert!(recorded.seconds.of(part, pass) >= 0.02, "{part:?} {pass:?}");
        }
        let total = recorded.seconds.sum();
        assert!(total <= elapsed && total > 0.059, "{total} of {elapsed}");
        assert!(!is_on());
    }
}
