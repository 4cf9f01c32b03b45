//! The thread that owns the device.

use std::sync::Arc;
use std::time::Instant;

use super::app::App;
use super::catalogue::Served;
use super::engine::Engine;
use super::queue::{Answer, Job, Work};
use crate::data::read_items;
use crate::run::{RecommendRequest, Recommendations};
use crate::{Error, Result};

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
    engine.recommend(&[&warm_up]).into_iter().collect::<Result<Vec<Recommendations>>>()?;
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
        answer(&*served.engine, batch.jobs);
        app.metrics.device_seconds.inc_by(started.elapsed().as_secs_f64());
        served.engine.check()?;
    }
    Ok(())
}

/// Answers jobs. A client that went away meanwhile is no error.
fn answer(engine: &dyn Engine, jobs: Vec<Job>) {
    let (mut requests, mut recommend, mut rank) = (Vec::new(), Vec::new(), Vec::new());
    for Job { work, answer, .. } in jobs {
        match work {
            Work::Recommend(request) => {
                requests.push(request);
                recommend.push(answer);
            }
            Work::Rank(request) => rank.push((request, answer)),
        }
    }
    let send = |answer: tokio::sync::oneshot::Sender<Answer>, result: Result<Recommendations>| {
        let _ = answer.send(Answer { model: engine.about().id.clone(), result });
    };
    let requests: Vec<&RecommendRequest> = requests.iter().collect();
    let mut results = engine.recommend(&requests).into_iter();
    for answer in recommend {
        send(answer, results.next().unwrap_or_else(|| Err(Error::device("the device gave no answer"))));
    }
    for (request, answer) in rank {
        send(answer, engine.rank(&request));
    }
}
