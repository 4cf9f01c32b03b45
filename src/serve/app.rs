//! The state that all handlers share.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::Mutex;
use tokio::time::timeout_at;

use super::bodies::ReloadAnswer;
use super::catalogue::{Served, Slot};
use super::keys::ApiKeys;
use super::metrics::Metrics;
use super::problem::Problem;
use super::queue::{Answer, Job, Queue, Refusal, Work};
use crate::data::read_items;
use crate::run::{RankRequest, RecommendRequest};
use crate::{Error, Result};

/// A phase of the server's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The model is loaded, or answers its first request.
    Starting,
    /// Requests are answered.
    Ready,
    /// Requests that have begun are finished; new ones are refused.
    Draining,
}

/// The state of a server.
pub struct App {
    /// The engine that answers, with its catalogue.
    pub slot: Slot,
    /// Jobs that wait for the device.
    pub queue: Queue,
    /// Counters since the start.
    pub metrics: Metrics,
    /// Keys that clients must show, if they must.
    pub keys: Option<ApiKeys>,
    /// The file of the catalogue, in place of the training one.
    pub items: Option<PathBuf>,
    /// Time from a request's body to its answer.
    timeout: Duration,
    phase: AtomicU8,
    reloading: Mutex<()>,
    requests: AtomicU64,
    /// The beginning of all request ids of this process.
    process: u32,
}

impl App {
    /// Makes the state of a server that starts.
    ///
    /// * `capacity`: requests that may wait for the device.
    pub fn new(keys: Option<ApiKeys>, items: Option<PathBuf>, capacity: usize, timeout: Duration) -> Self {
        Self {
            slot: Slot::default(),
            queue: Queue::new(capacity),
            metrics: Metrics::new(),
            keys,
            items,
            timeout,
            phase: AtomicU8::new(Phase::Starting as u8),
            reloading: Mutex::new(()),
            requests: AtomicU64::new(0),
            process: rand::random(),
        }
    }

    /// Returns how far the server has come.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            phase if phase == Phase::Starting as u8 => Phase::Starting,
            phase if phase == Phase::Ready as u8 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Begins to answer requests, unless the server is about to stop.
    pub fn ready(&self) {
        let _ = self.phase.compare_exchange(Phase::Starting as u8, Phase::Ready as u8, Relaxed, Relaxed);
    }

    /// Takes no more requests; what waits is still answered.
    pub fn drain(&self) {
        self.phase.store(Phase::Draining as u8, Relaxed);
        self.queue.close();
    }

    /// Returns an id for a request.
    pub fn request_id(&self) -> String {
        format!("{:08x}-{:06x}", self.process, self.requests.fetch_add(1, Relaxed))
    }

    /// Returns what is served.
    ///
    /// # Errors
    /// 503 while the server starts or drains.
    pub fn served(&self) -> std::result::Result<Arc<Served>, Problem> {
        match (self.phase(), self.slot.get()) {
            (Phase::Ready, Some(served)) => Ok(served),
            (Phase::Draining, _) => Err(draining()),
            (Phase::Starting, _) | (Phase::Ready, None) => Err(Problem::passing(
                StatusCode::SERVICE_UNAVAILABLE,
                "the server starts: the model is not loaded yet",
                5,
            )),
        }
    }

    /// Has the device answer, and waits for that.
    ///
    /// # Errors
    /// 429 where there is no room for all of `work`, 503, and 504 past the deadline.
    pub async fn ask(&self, work: Vec<Work>) -> std::result::Result<Vec<Answer>, Problem> {
        let served = self.served()?;
        let deadline = Instant::now() + self.timeout;
        let cost = |work: &Work| match work {
            Work::Recommend(request) => served.engine.cost(request),
            // A ranking is a search with as many beams as items.
            Work::Rank(RankRequest { history, items, .. }) => {
                let (history, k) = (history.clone(), items.len());
                served.engine.cost(&RecommendRequest { history, k, ..RecommendRequest::default() })
            }
        };
        let (jobs, receivers): (Vec<Job>, Vec<_>) = work
            .into_iter()
            .map(|work| {
                let cost = cost(&work);
                Job::new(work, cost, deadline)
            })
            .unzip();
        self.queue.push(jobs).map_err(|refusal| match refusal {
            Refusal::Full => Problem::passing(StatusCode::TOO_MANY_REQUESTS, "too many requests wait already", 1),
            Refusal::Closed => draining(),
        })?;
        self.metrics.waiting.set(self.queue.len() as i64);
        let mut answers = Vec::with_capacity(receivers.len());
        for receiver in receivers {
            let late = || {
                let seconds = self.timeout.as_secs_f64();
                Problem::new(StatusCode::GATEWAY_TIMEOUT, format!("there is no answer after {seconds} s"))
            };
            let answer = timeout_at(deadline.into(), receiver).await.map_err(|_| late())?;
            // The queue drops a job whose deadline has passed, perhaps before the wait has ended.
            answers.push(answer.map_err(|_| match Instant::now() < deadline {
                true => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the device failed"),
                false => late(),
            })?);
        }
        Ok(answers)
    }

    /// Reads the catalogue's file anew and serves what it holds. Requests that run or wait
    /// meanwhile are answered, by one catalogue or the other.
    ///
    /// # Errors
    /// A server without such a file; a file that cannot be served: the old catalogue stays.
    pub async fn reload(self: &Arc<Self>) -> Result<ReloadAnswer> {
        let Some(path) = self.items.clone() else {
            return Err(Error::usage("the server recommends the training catalogue: there is no file to read anew"));
        };
        let _one_at_a_time = self.reloading.lock().await;
        let Some(old) = self.slot.get() else { return Err(Error::failed("the server starts: try again later")) };
        let app = self.clone();
        let work = move || {
            let served = Arc::new(Served::new(old.engine.with_items(read_items(&path)?)?));
            let ids =
                |served: &Served| served.engine.items().iter().map(|item| item.id.clone()).collect::<HashSet<_>>();
            let (before, now) = (ids(&old), ids(&served));
            app.metrics.reloads.inc();
            app.metrics.items.set(now.len() as i64);
            app.slot.set(served);
            Ok(ReloadAnswer {
                items: now.len(),
                added: now.difference(&before).count(),
                removed: before.difference(&now).count(),
            })
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.unwrap_or_else(|panic| Err(Error::failed(format!("internal error: {panic}"))));
        match &done {
            Ok(answer) => {
                tracing::info!(items = answer.items, added = answer.added, removed = answer.removed, "reloaded")
            }
            Err(error) => tracing::error!(%error, "the catalogue stays as it was"),
        }
        done
    }
}

fn draining() -> Problem {
    Problem::passing(StatusCode::SERVICE_UNAVAILABLE, "the server is about to stop", 5)
}
