//! Profiler of a training step: seconds and operations of each part.
//!
//! The thread that trains has a clock that always runs for one [`Part`] of the work. [`begin`]
//! switches it to the next part; [`profile_scope`](crate::kernels::profile_scope()), put on a
//! tensor between two parts, does so in the forward and in the backward pass. At every switch the
//! device is waited for. Without [`record`] there is no clock, and none of this does anything.

use std::cell::{Cell, RefCell};
use std::ops::AddAssign;
use std::time::Instant;

use serde::Serialize;

/// A part of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Tokenising, and making batches.
    Data,
    /// Embedding table; encoder of items and users.
    Embedding,
    /// Norm, projections, rotation, mask and attention.
    Attention,
    /// Norm and feed-forward.
    Mlp,
    /// Last norm, output projection, loss.
    Loss,
    /// Clipping, and the step of the optimiser.
    Optimizer,
    /// Everything else.
    Rest,
}

impl Part {
    /// All parts, in the order of a step.
    pub const ALL: [Self; 7] =
        [Self::Data, Self::Embedding, Self::Attention, Self::Mlp, Self::Loss, Self::Optimizer, Self::Rest];
}

/// The forward or the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// Everything but [`Pass::Backward`].
    Forward,
    /// The way from the loss to the gradients.
    Backward,
}

/// A number for each part and pass.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Parts([[f64; 2]; 7]);

impl Parts {
    /// Returns the number of a part and pass.
    pub fn get(&self, part: Part, pass: Pass) -> f64 {
        self.0[part as usize][pass as usize]
    }

    /// Adds to the number of a part and pass.
    pub fn add(&mut self, part: Part, pass: Pass, value: f64) {
        self.0[part as usize][pass as usize] += value;
    }

    /// Returns the numbers of one pass, with 0 for the other.
    pub fn keep_pass(mut self, pass: Pass) -> Self {
        let other = if pass == Pass::Forward { Pass::Backward } else { Pass::Forward };
        self.0.iter_mut().for_each(|values| values[other as usize] = 0.0);
        self
    }

    /// Returns the sum over the parts of a pass.
    pub fn total(&self, pass: Pass) -> f64 {
        Part::ALL.iter().map(|&part| self.get(part, pass)).sum()
    }

    /// Returns the sum over parts and passes.
    pub fn sum(&self) -> f64 {
        self.total(Pass::Forward) + self.total(Pass::Backward)
    }
}

impl AddAssign for Parts {
    fn add_assign(&mut self, other: Self) {
        self.0.as_flattened_mut().iter_mut().zip(other.0.as_flattened()).for_each(|(sum, value)| *sum += value);
    }
}

/// The result of [`record`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProfileTotals {
    /// Seconds.
    pub seconds: Parts,
    /// Floating-point operations, as [`count`]ed.
    pub flops: Parts,
}

struct Clock {
    part: Part,
    pass: Pass,
    since: Instant,
    recorded: ProfileTotals,
    sync: Box<dyn Fn()>,
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
}

/// Runs `work` under the clock, which starts at [`Part::Rest`].
///
/// * `sync`: waits until the device has finished its queue.
pub fn record<T>(sync: impl Fn() + 'static, work: impl FnOnce() -> T) -> (T, ProfileTotals) {
    sync();
    let clock = Clock {
        part: Part::Rest,
        pass: Pass::Forward,
        since: Instant::now(),
        recorded: ProfileTotals::default(),
        sync: Box::new(sync),
    };
    CLOCK.set(Some(clock));
    ON.set(true);
    let done = work();
    begin(Part::Rest);
    ON.set(false);
    (done, CLOCK.take().map(|clock| clock.recorded).unwrap_or_default())
}

/// Returns whether this thread records.
pub fn is_on() -> bool {
    ON.get()
}

/// Switches the clock to `part`, and returns the part that it ran for.
pub fn begin(part: Part) -> Option<Part> {
    turn(|clock| std::mem::replace(&mut clock.part, part))
}

/// Runs `work` as a part of the backward pass.
pub fn backward<T>(work: impl FnOnce() -> T) -> T {
    turn(|clock| clock.pass = Pass::Backward);
    let done = work();
    turn(|clock| clock.pass = Pass::Forward);
    done
}

/// Adds to the number of operations of the step.
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
            assert!(recorded.seconds.get(part, pass) >= 0.02, "{part:?} {pass:?}");
        }
        let total = recorded.seconds.sum();
        assert!(total <= elapsed && total > 0.059, "{total} of {elapsed}");
        assert!(!is_on());
    }
}
