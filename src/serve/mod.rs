//! The HTTP server over a run or over a ranker without a language model.
//!
//! ```text
//!   connections ─▶ handlers (tokio) ─▶ queue, bounded ─▶ one thread that owns the device
//!                  limits, keys, JSON                     batches by tokens and time
//! ```
//!
//! The thread opens the model, answers a first request, and then takes batches from the [`Queue`].
//! An [`Engine`] is a model with one catalogue; a reload puts another engine into the [`Slot`]
//! between two batches.

mod app;
mod baseline;
mod bodies;
mod catalogue;
mod connections;
mod engine;
mod keys;
mod log;
mod metrics;
mod page;
mod problem;
mod queue;
mod routes;
mod worker;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use self::app::App;
use self::connections::{HEAD_TIME, LimitedListener, Peer};
use self::keys::ApiKeys;
use self::log::Log;
use crate::{Context, Error, Result};

pub use self::baseline::BaselineEngine;
pub use self::catalogue::{Served, Slot};
pub use self::engine::{Engine, ModelInfo, RunEngine};
pub use self::queue::Queue;

/// Options of the server.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Address to listen on.
    pub host: IpAddr,
    /// The port; 0 for a free one.
    pub port: u16,
    /// A catalogue in place of the training one.
    pub items: Option<PathBuf>,
    /// Keys of which clients must show one.
    pub api_key_file: Option<PathBuf>,
    /// Requests that may wait for the device, at least 1.
    pub queue: usize,
    /// Time from a request's body to its answer.
    pub timeout: Duration,
    /// Format of the log on stderr.
    pub log_format: LogFormat,
}

/// Format of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Serves what `open` opens, until SIGTERM or SIGINT. `open` runs on the thread that owns the
/// device.
///
/// # Errors
/// An address that cannot be taken; those of `open`; a device that died.
pub fn serve(options: &ServeOptions, open: impl FnOnce() -> Result<Arc<dyn Engine>> + Send + 'static) -> Result<()> {
    let keys = options.api_key_file.as_deref().map(ApiKeys::open).transpose()?;
    let log = Log::start(options.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.context("threads of the server")?.block_on(run(options, keys, open));
    tracing::info!("stopped");
    log.flush();
    done
}

async fn run(
    options: &ServeOptions,
    keys: Option<ApiKeys>,
    open: impl FnOnce() -> Result<Arc<dyn Engine>> + Send + 'static,
) -> Result<()> {
    let address = SocketAddr::new(options.host, options.port);
    let listener = TcpListener::bind(address).await.context(address)?;
    let address = listener.local_addr().context(address)?;
    let [terminate, interrupt, hang_up] =
        [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let (terminate, interrupt, hang_up) =
        (terminate.context("signals")?, interrupt.context("signals")?, hang_up.context("signals")?);
    if keys.is_none() && !address.ip().is_loopback() {
        crate::core::log::log(format_args!(
            "warning: {address} can be reached from elsewhere, and everybody may send requests; give \
             it a file of API keys, and put a proxy with TLS before it"
        ));
    }
    announce(address)?;
    let app = Arc::new(App::new(keys, options.items.clone(), options.queue, options.timeout));
    let (stopped, mut worker) = oneshot::channel();
    let of_worker = app.clone();
    let work = move || {
        let _ = stopped.send(worker::work(&of_worker, open));
    };
    std::thread::Builder::new().name("itemlm-device".into()).spawn(work).context("a thread for the device")?;
    tokio::spawn(reload_on_signal(app.clone(), hang_up));

    let (drain, drained) = oneshot::channel::<()>();
    let service = routes::router(app.clone()).into_make_service_with_connect_info::<Peer>();
    let server =
        axum::serve(LimitedListener::new(listener), service).with_graceful_shutdown(async move { drop(drained.await) });
    let mut server = tokio::spawn(server.into_future());
    let mut failed = None;
    tokio::select! {
        () = stop_signal(terminate, interrupt) => {}
        done = &mut worker => failed = Some(worker_result(done)),
    }
    tracing::info!("draining");
    app.drain();
    if failed.is_some() {
        app.queue.clear();
    }
    let _ = drain.send(());
    // Each request has its own deadline; whoever is slower than that is cut off.
    let _ = tokio::time::timeout(options.timeout + HEAD_TIME, &mut server).await;
    match failed {
        Some(failed) => failed,
        // A model that is still being loaded is not waited for.
        None if app.slot.get().is_none() => Ok(()),
        None => tokio::time::timeout(options.timeout, worker).await.map_or(Ok(()), worker_result),
    }
}

fn worker_result(done: std::result::Result<Result<()>, oneshot::error::RecvError>) -> Result<()> {
    done.unwrap_or_else(|_| Err(Error::device("the thread of the device panicked")))
}

/// Writes the first line of stdout.
fn announce(address: SocketAddr) -> Result<()> {
    let line = serde_json::json!({ "listening": format!("http://{address}") });
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("stdout")
}

async fn stop_signal(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn reload_on_signal(app: Arc<App>, mut hang_up: Signal) {
    while hang_up.recv().await.is_some() {
        // The log tells how it went.
        let _ = app.reload().await;
    }
}
