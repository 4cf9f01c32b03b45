//! The thread that owns the device, and the threads that answer a batch for it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::app::App;
use super::catalogue::Served;
use super::engine::Engine;
use super::queue::{Answer, Job, Work};
use crate::Result;
use crate::data::read_items;

/// Opens the model, answers a first request, and then all of the queue, until that is closed and
/// empty.
///
/// # Errors
/// Those of `open` and of the first request; a device that died.
pub fn work(app: &Arc<App>, open: impl FnOnce() -> Result<Arc<dyn Engine>>) -> Result<()> {
    let started = Instant::now();
    let mut engine = open()?;
    if let Some(path) = &app.items {
        engine = engine.with_items(read_items(path)?)?;
    }
    let warm_up = engine.example_request(10);
    engine.recommend(&warm_up)?;
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(model = engine.about().id, items = engine.about().items, seconds, "ready");
    app.metrics.items.set(engine.about().items as i64);
    app.slot.set(Arc::new(Served::new(engine)));
    app.ready();
    while let Some(batch) = app.queue.next_batch() {
        let Some(served) = app.slot.get() else { continue };
        let started = Instant::now();
        app.metrics.abandoned.inc_by(batch.abandoned as u64);
        app.metrics.batch_size.observe(batch.jobs.len() as f64);
        let late = answer(&*served.engine, batch.jobs);
        app.metrics.abandoned.inc_by(late);
        app.metrics.device_seconds.inc_by(started.elapsed().as_secs_f64());
        let tokens = served.engine.take_prompt_tokens();
        app.metrics.prompt_tokens.inc_by(tokens.all);
        app.metrics.cached_tokens.inc_by(tokens.cached);
        served.engine.check()?;
    }
    Ok(())
}

/// Answers jobs, side by side where the engine does so. Returns how many of them nobody waited for
/// any more when their turn came. A client that goes away later is no error.
///
/// # Panics
/// If the engine does.
fn answer(engine: &dyn Engine, jobs: Vec<Job>) -> u64 {
    let jobs: Vec<Mutex<Option<Job>>> = jobs.into_iter().map(|job| Mutex::new(Some(job))).collect();
    let abandoned = AtomicU64::new(0);
    engine.for_each(jobs.len(), &|n| {
        let Some(job) = jobs[n].lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if !job.is_wanted() {
            abandoned.fetch_add(1, Relaxed);
            return;
        }
        let result = match &job.work {
            Work::Recommend(request) => engine.recommend(request),
            Work::Rank(request) => engine.rank(request),
        };
        let _ = job.answer.send(Answer { model: engine.about().id.clone(), result });
    });
    abandoned.into_inner()
}
