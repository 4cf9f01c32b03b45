//! The queue between the HTTP handlers and the thread that owns the device.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::Result;
use crate::run::{RankRequest, RecommendRequest, Recommendations};

/// Time that the first request of a batch waits for others.
const WINDOW: Duration = Duration::from_millis(3);
/// Tokens of a batch, those of prompts and of beams, about. One larger request runs alone.
const BATCH_TOKENS: usize = 4096;

/// The request of a job.
#[derive(Debug)]
pub enum Work {
    /// The best items.
    Recommend(RecommendRequest),
    /// The scores of given items.
    Rank(RankRequest),
}

/// The answer to a job.
#[derive(Debug)]
pub struct Answer {
    /// The name of the model that answered.
    pub model: String,
    /// The items, or the reason why there are none.
    pub result: Result<Recommendations>,
}

/// A request that waits for the device.
#[derive(Debug)]
pub struct Job {
    /// The request.
    pub work: Work,
    /// Tokens that it runs, about.
    pub cost: usize,
    /// Time after which nobody waits for the answer.
    pub deadline: Instant,
    /// Channel to the client; closed once the client has gone away.
    pub answer: oneshot::Sender<Answer>,
    arrived: Instant,
}

impl Job {
    /// Makes a job, and the channel of its answer.
    pub fn new(work: Work, cost: usize, deadline: Instant) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        (Self { work, cost, deadline, answer, arrived: Instant::now() }, receiver)
    }

    /// Returns whether somebody still waits for the answer.
    pub fn is_wanted(&self) -> bool {
        !self.answer.is_closed() && Instant::now() < self.deadline
    }
}

/// Reason why the queue took no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no room.
    Full,
    /// The server is about to stop.
    Closed,
}

/// Jobs that wait, first in, first out; no more than the capacity.
#[derive(Debug)]
pub struct Queue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    is_closed: bool,
}

/// Jobs to be done together.
#[derive(Debug)]
pub struct Batch {
    /// At least one.
    pub jobs: Vec<Job>,
    /// Jobs that were taken out of the queue before these because nobody waits for them.
    pub abandoned: usize,
}

impl Queue {
    /// Makes a queue for at most `capacity` waiting jobs.
    pub fn new(capacity: usize) -> Self {
        Self { jobs: Mutex::default(), changed: Condvar::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends jobs, all of them or none.
    ///
    /// # Errors
    /// A queue that is full or closed.
    pub fn push(&self, jobs: Vec<Job>) -> std::result::Result<(), Refusal> {
        let mut queue = self.lock();
        if queue.is_closed {
            return Err(Refusal::Closed);
        }
        if queue.waiting.len() + jobs.len() > self.capacity {
            // Clients that went away hold no place.
            queue.waiting.retain(Job::is_wanted);
        }
        if queue.waiting.len() + jobs.len() > self.capacity {
            return Err(Refusal::Full);
        }
        queue.waiting.extend(jobs);
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    /// Returns the number of jobs that may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the number of jobs that wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Returns whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes no more jobs; those that wait are still handed out.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Drops what waits: nobody will answer it.
    pub fn clear(&self) {
        self.lock().waiting.clear();
    }

    /// Waits for the next jobs to do together: those that came within the window after the oldest,
    /// up to the budget of tokens. `None` once the queue is closed and empty.
    pub fn next_batch(&self) -> Option<Batch> {
        let mut queue = self.lock();
        let mut abandoned = 0;
        loop {
            let before = queue.waiting.len();
            queue.waiting.retain(Job::is_wanted);
            abandoned += before - queue.waiting.len();
            let Some(oldest) = queue.waiting.front().map(|job| job.arrived) else {
                if queue.is_closed {
                    return None;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let tokens: usize = queue.waiting.iter().map(|job| job.cost).sum();
            let left = WINDOW.saturating_sub(oldest.elapsed());
            if tokens >= BATCH_TOKENS || left.is_zero() || queue.is_closed {
                break;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let (mut jobs, mut tokens) = (Vec::new(), 0);
        while queue.waiting.front().is_some_and(|job| tokens == 0 || tokens + job.cost <= BATCH_TOKENS) {
            let Some(job) = queue.waiting.pop_front() else { break };
            tokens += job.cost;
            jobs.push(job);
        }
        Some(Batch { jobs, abandoned })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn job(cost: usize) -> (Job, oneshot::Receiver<Answer>) {
        let work = Work::Rank(RankRequest::default());
        Job::new(work, cost, Instant::now() + Duration::from_secs(60))
    }

    fn costs(queue: &Queue) -> Vec<usize> {
        queue.next_batch().map_or_else(Vec::new, |batch| batch.jobs.iter().map(|job| job.cost).collect())
    }

    #[test]
    fn batches_keep_the_budget_and_the_order() {
        let queue = Queue::new(10);
        let (jobs, receivers): (Vec<_>, Vec<_>) = [2000, 2000, 500, 9000, 1].map(job).into_iter().unzip();
        queue.push(jobs).unwrap();
        assert_eq!(costs(&queue), [2000, 2000]);
        assert_eq!(costs(&queue), [500]);
        assert_eq!(costs(&queue), [9000]);
        queue.close();
        assert_eq!(costs(&queue), [1]);
        assert!(queue.next_batch().is_none() && queue.push(vec![job(1).0]) == Err(Refusal::Closed));
        drop(receivers);
    }

    #[test]
    fn a_full_queue_takes_none_and_forgets_who_went_away() {
        let queue = Queue::new(3);
        let (jobs, mut receivers): (Vec<_>, Vec<_>) = [1, 2, 3].map(job).into_iter().unzip();
        queue.push(jobs).unwrap();
        assert_eq!(queue.push(vec![job(4).0]), Err(Refusal::Full));
        receivers.remove(1);
        let (fourth, _waits) = job(4);
        queue.push(vec![fourth]).unwrap();
        let (late, _waits) = Job::new(Work::Rank(RankRequest::default()), 5, Instant::now());
        assert_eq!(queue.push(vec![late]), Err(Refusal::Full));
        receivers.remove(0);
        let batch = queue.next_batch().unwrap();
        assert_eq!(batch.jobs.iter().map(|job| job.cost).collect::<Vec<_>>(), [3, 4]);
        assert_eq!((batch.abandoned, queue.is_empty()), (1, true));
    }

    #[test]
    fn a_batch_waits_for_the_window() {
        let queue = Arc::new(Queue::new(3));
        let other = queue.clone();
        let taken = std::thread::spawn(move || (costs(&other), Instant::now()));
        let started = Instant::now();
        let (first, _waits) = job(1);
        queue.push(vec![first]).unwrap();
        let (costs, at) = taken.join().unwrap();
        assert_eq!(costs, [1]);
        assert!(at - started >= WINDOW);
    }
}
