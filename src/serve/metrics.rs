//! Metrics for Prometheus.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Route and status of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route, not the path: clients cannot make new ones.
    pub endpoint: String,
    /// The HTTP status.
    pub status: u16,
}

/// The server's metrics.
pub struct Metrics {
    registry: Registry,
    /// Requests that were answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Seconds from a request's head to its answer.
    pub seconds: Histogram,
    /// Jobs that wait for the device.
    pub waiting: Gauge,
    /// Jobs of a batch.
    pub batch_size: Histogram,
    /// Seconds that the device was busy.
    pub device_seconds: Counter<f64, AtomicU64>,
    /// Tokens of prompts after the instruction.
    pub prompt_tokens: Counter,
    /// Those of them whose keys and values were cached.
    pub cached_tokens: Counter,
    /// Jobs that nobody waited for any more when their turn came.
    pub abandoned: Counter,
    /// Times that the catalogue was read anew.
    pub reloads: Counter,
    /// Items of the catalogue.
    pub items: Gauge,
}

impl Metrics {
    /// Makes metrics that are all 0.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("itemlm"),
            requests: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            waiting: Gauge::default(),
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            device_seconds: Counter::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            abandoned: Counter::default(),
            reloads: Counter::default(),
            items: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Requests by route and status", metrics.requests.clone());
        let about = "Time from a request's head to its answer";
        registry.register_with_unit("request", about, Unit::Seconds, metrics.seconds.clone());
        registry.register("waiting", "Requests that wait for the device", metrics.waiting.clone());
        registry.register("batch_size", "Requests that the device answered together", metrics.batch_size.clone());
        let about = "Time the device was busy";
        registry.register_with_unit("device", about, Unit::Seconds, metrics.device_seconds.clone());
        let about = "Tokens of prompts after the instruction";
        registry.register("prompt_tokens", about, metrics.prompt_tokens.clone());
        let about = "Prompt tokens whose keys and values were cached";
        registry.register("cached_prompt_tokens", about, metrics.cached_tokens.clone());
        registry.register("abandoned", "Requests whose client went away or gave up", metrics.abandoned.clone());
        registry.register("reloads", "Times the catalogue was read anew", metrics.reloads.clone());
        registry.register("items", "Items of the catalogue", metrics.items.clone());
        metrics
    }

    /// Returns the metrics in OpenMetrics' text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
