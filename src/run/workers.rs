//! Requests answered side by side on the CPU.
//!
//! The answer to a request is the same to the bit whatever runs beside it, because each is searched
//! alone: products and sums of several prompts together are rounded in another order. On the CPU
//! the time that one pass over several prompts would save is saved by threads instead. A search has
//! many small operations, and threads that share each of them mostly wait for each other; threads
//! that search one request each do not. The operations give the same numbers on one thread as on
//! several.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::session::Session;
use crate::device::Concrete;
use crate::kernels::is_cpu_device;
use crate::{Context, Result};

/// Threads of the CPU that each answer one request at a time.
#[derive(Debug, Default)]
pub struct Workers {
    /// Pools of one thread each: operations of a search run on the thread of the search. Empty for
    /// another device than the CPU.
    pools: Vec<ThreadPool>,
}

impl Workers {
    /// Starts as many threads as operations of `session` use on the CPU; none for another device,
    /// which works on one request at a time.
    ///
    /// # Errors
    /// Threads that the system does not give.
    pub fn new(session: &Session) -> Result<Self> {
        let threads = if is_cpu_device::<Concrete>(&session.device) { rayon::current_num_threads() } else { 0 };
        let pool =
            |n| ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("itemlm-search-{n}")).build();
        let pools = (0..threads).map(pool).collect::<std::result::Result<_, _>>();
        Ok(Self { pools: pools.context("threads that answer requests")? })
    }

    /// Calls `work` once with each number below `count`, and returns when all calls have.
    ///
    /// Each call runs on one thread if there are at least half as many calls as threads, and else
    /// all threads share the operations of one call after another.
    ///
    /// # Panics
    /// If a call panics.
    pub fn for_each(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        if count < 2 || self.pools.len() < 2 || 2 * count < self.pools.len() {
            return (0..count).for_each(work);
        }
        let next = AtomicUsize::new(0);
        let work_on = || {
            let number = || Some(next.fetch_add(1, Relaxed)).filter(|number| *number < count);
            std::iter::from_fn(number).for_each(work);
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.pools.iter().map(|pool| scope.spawn(|| pool.install(work_on))).collect();
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Returns workers of `threads` threads.
    fn workers(threads: usize) -> Workers {
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        Workers { pools: (0..threads).map(pool).collect() }
    }

    #[test]
    fn each_number_comes_once_and_a_panic_is_passed_on() {
        for (threads, count) in [(0, 5), (1, 5), (2, 0), (2, 1), (2, 2), (3, 100), (16, 7), (16, 8)] {
            let seen = Mutex::new(Vec::new());
            // Operations of a call that has a thread of its own stay on it.
            let alone = count >= 2 && threads >= 2 && 2 * count >= threads;
            workers(threads).for_each(count, &|number| {
                assert!(!alone || rayon::current_num_threads() == 1);
                seen.lock().unwrap().push(number);
            });
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
        let fails =
            |threads| crate::core::panic::catch(|| workers(threads).for_each(4, &|number| assert_ne!(number, 2)));
        assert!(fails(0).is_err() && fails(2).is_err());
    }
}
