//! The routes, and what stands around all of them: limits, keys, request ids, logs and metrics.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde::Serialize;
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;

use super::app::{App, Phase};
use super::bodies::{
    AnswerBody, BODY, BatchAnswer, FOUND, FoundItem, FoundItems, HistoryItem, ItemsQuery, RankBody, RecommendBody,
    ReloadAnswer, parse, parse_batch,
};
use super::connections::Peer;
use super::engine::ModelInfo;
use super::metrics::RequestLabels;
use super::page;
use super::problem::Problem;
use super::queue::{Answer, Work};

/// Time in which a client must send a request's body.
const BODY_TIME: Duration = Duration::from_secs(15);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The routes that metrics name.
const ROUTES: [&str; 9] = [
    "/v1/recommend",
    "/v1/rank",
    "/v1/batch",
    "/v1/items",
    "/v1/models",
    "/v1/reload",
    "/health/live",
    "/health/ready",
    "/metrics",
];

type Shared = State<Arc<App>>;
type Handled = std::result::Result<Response, Problem>;

/// The id of a request.
#[derive(Clone)]
struct RequestId(String);

#[derive(OpenApi)]
#[openapi(
    info(title = "itemlm", description = "Recommendations of items."),
    paths(recommend, rank, batch, items, models, reload, live, ready, metrics),
    components(schemas(
        RecommendBody,
        RankBody,
        HistoryItem,
        AnswerBody,
        BatchAnswer,
        FoundItems,
        ModelInfo,
        Problem
    ))
)]
struct Api;

/// Returns the service.
pub fn router(app: Arc<App>) -> Router {
    let with_key = Router::new()
        .route("/v1/recommend", post(recommend))
        .route("/v1/rank", post(rank))
        .route("/v1/batch", post(batch))
        .route("/v1/items", get(items))
        .route("/v1/models", get(models))
        .route("/v1/reload", post(reload))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(app.clone(), guard));
    Router::new()
        .merge(with_key)
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/openapi.json", get(openapi))
        .route("/", get(page::html))
        .route("/page.css", get(page::css))
        .route("/page.js", get(page::js))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing here; see /openapi.json"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "not by this method; see /openapi.json")
        })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("internal error: a handler panicked");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the server's log says why").into_response()
}

/// Gives each request its id, and logs and counts it.
async fn observe(State(app): Shared, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|peer| {
        peer.0.head_has_come();
        peer.0.address
    });
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_request_id(id));
    let id = given.map_or_else(|| app.request_id(), String::from);
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    let endpoint = ROUTES.iter().find(|route| **route == path).unwrap_or(&"other").to_string();
    app.metrics.requests.get_or_create(&RequestLabels { endpoint, status }).inc();
    app.metrics.seconds.observe(started.elapsed().as_secs_f64());
    let (ms, peer) = (started.elapsed().as_secs_f64() * 1e3, peer.map(|peer| peer.to_string()));
    tracing::info!(id, %method, path, status, ms, peer, "request");
    response
}

/// Returns whether a client may name its request so.
fn is_request_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Lets a request pass that shows a key, where keys are wanted, and that no foreign page sends.
async fn guard(State(app): Shared, request: Request, next: Next) -> Handled {
    let headers = request.headers();
    if let Some(keys) = &app.keys
        && !keys.allow(headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes))
    {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "show a key: Authorization: Bearer KEY"));
    }
    if request.method() == Method::POST && is_foreign(headers) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "a page of another origin may not send this"));
    }
    Ok(next.run(request).await)
}

/// Returns whether a browser sends the request for a page of another origin.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = |origin: &str| origin.split_once("://").map(|(_, host)| host.to_string());
    headers.contains_key(header::ORIGIN) && text(header::ORIGIN).and_then(host).as_deref() != text(header::HOST)
}

/// Reads the body.
///
/// # Errors
/// 413 for one that is too large, 408 for a client that is too slow.
async fn body(request: Request) -> std::result::Result<Bytes, Problem> {
    let too_large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {BODY} bytes"));
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > BODY as u64) {
        return Err(too_large());
    }
    let slow = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    let bytes = timeout(BODY_TIME, Bytes::from_request(request, &())).await.map_err(slow)?;
    bytes.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => Problem::new(StatusCode::BAD_REQUEST, "the body broke off"),
    })
}

/// Answers with JSON.
pub fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer is no JSON");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the server's log says why").into_response()
        }
    }
}

fn answered(id: String, Answer { model, result }: Answer) -> std::result::Result<AnswerBody, Problem> {
    Ok(AnswerBody::new(id, model, result?))
}

async fn ask_one(app: &Arc<App>, id: String, work: Work) -> Handled {
    let mut answers = app.ask(vec![work]).await?;
    let failed = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the device failed");
    Ok(json(&answered(id, answers.pop().ok_or_else(failed)?)?))
}

/// The best items after a history.
#[utoipa::path(
    post, path = "/v1/recommend", request_body = RecommendBody,
    responses(
        (status = 200, body = AnswerBody),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "no JSON"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "too large"),
        (
            status = 422, body = Problem, content_type = "application/problem+json",
            description = "unknown or out of range"
        ),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "the queue is full"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "starts or drains"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "past the deadline"),
    )
)]
async fn recommend(State(app): Shared, Extension(RequestId(id)): Extension<RequestId>, request: Request) -> Handled {
    app.served()?;
    let request = parse::<RecommendBody>(&body(request).await?)?.check()?;
    ask_one(&app, id, Work::Recommend(request)).await
}

/// Given items with their scores after a history, best first.
#[utoipa::path(
    post, path = "/v1/rank", request_body = RankBody,
    responses((status = 200, body = AnswerBody), (status = "default", body = Problem))
)]
async fn rank(State(app): Shared, Extension(RequestId(id)): Extension<RequestId>, request: Request) -> Handled {
    app.served()?;
    let request = parse::<RankBody>(&body(request).await?)?.check()?;
    ask_one(&app, id, Work::Rank(request)).await
}

/// Several requests for the best items. The answers are in their order; one that is wrong has a
/// problem in the place of its answer.
#[utoipa::path(
    post, path = "/v1/batch", request_body = Vec<RecommendBody>,
    responses((status = 200, body = Vec<BatchAnswer>), (status = "default", body = Problem))
)]
async fn batch(State(app): Shared, Extension(RequestId(id)): Extension<RequestId>, request: Request) -> Handled {
    app.served()?;
    let requests = parse_batch(&body(request).await?, app.queue.capacity())?;
    let mut problems = Vec::with_capacity(requests.len());
    let mut work = Vec::with_capacity(requests.len());
    for request in requests {
        match request {
            Ok(request) => {
                work.push(Work::Recommend(request));
                problems.push(None);
            }
            Err(problem) => problems.push(Some(problem)),
        }
    }
    let mut answers = app.ask(work).await?.into_iter();
    let mut batch = Vec::with_capacity(problems.len());
    for (n, problem) in problems.into_iter().enumerate() {
        let failed = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the device failed");
        let answer = match problem {
            Some(problem) => Err(problem),
            None => answers.next().ok_or_else(failed).and_then(|answer| answered(format!("{id}-{n}"), answer)),
        };
        batch.push(answer.map_or_else(BatchAnswer::Problem, BatchAnswer::Answer));
    }
    Ok(json(&batch))
}

/// Items whose title holds some words.
#[utoipa::path(
    get, path = "/v1/items", params(ItemsQuery),
    responses((status = 200, body = FoundItems), (status = "default", body = Problem))
)]
async fn items(
    State(app): Shared,
    query: std::result::Result<Query<ItemsQuery>, axum::extract::rejection::QueryRejection>,
) -> Handled {
    let served = app.served()?;
    let unprocessable = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
    let Query(query) = query.map_err(|rejection| unprocessable(rejection.body_text()))?;
    let limit = query.limit.unwrap_or(20);
    if !(1..=FOUND).contains(&limit) {
        return Err(unprocessable(format!("limit: {limit}, it must be from 1 to {FOUND}")));
    }
    let found = served.search(&query.q, limit).into_iter();
    let items = found.map(|item| FoundItem { item: item.id.clone(), title: item.title.clone() }).collect();
    Ok(json(&FoundItems { items }))
}

/// The models that answer.
#[derive(Serialize, utoipa::ToSchema)]
struct Models {
    /// The models; there is one.
    models: Vec<ModelInfo>,
}

/// The models that answer.
#[utoipa::path(
    get, path = "/v1/models",
    responses((status = 200, body = Models), (status = "default", body = Problem))
)]
async fn models(State(app): Shared) -> Handled {
    let served = app.served()?;
    Ok(json(&Models { models: vec![served.engine.about().clone()] }))
}

/// Reads the file of `--items` anew.
#[utoipa::path(
    post, path = "/v1/reload",
    responses((status = 200, body = ReloadAnswer), (status = "default", body = Problem))
)]
async fn reload(State(app): Shared) -> Handled {
    app.served()?;
    // The file's folder is nobody's business.
    let folder = app.items.as_ref().and_then(|path| path.parent()).map(|folder| format!("{}/", folder.display()));
    let told = |error: crate::Error| {
        let detail = error.to_string();
        let detail =
            folder.filter(|folder| folder.len() > 1).map_or(detail.clone(), |folder| detail.replace(&folder, ""));
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    };
    Ok(json(&app.reload().await.map_err(told)?))
}

/// Answers that the process lives.
#[utoipa::path(get, path = "/health/live", responses((status = 200)))]
async fn live() -> Response {
    json(&serde_json::json!({ "status": "live" }))
}

/// Answers whether requests are answered: the model is loaded, and has answered a first request.
#[utoipa::path(
    get, path = "/health/ready",
    responses((status = 200), (status = 503, body = Problem, description = "it starts or drains"))
)]
async fn ready(State(app): Shared) -> Handled {
    app.served()?;
    debug_assert_eq!(app.phase(), Phase::Ready);
    Ok(json(&serde_json::json!({ "status": "ready" })))
}

/// Metrics for Prometheus.
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, content_type = "application/openmetrics-text", body = String))
)]
async fn metrics(State(app): Shared) -> Response {
    app.metrics.waiting.set(app.queue.len() as i64);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], Body::from(app.metrics.encode())).into_response()
}

async fn openapi() -> Response {
    json(&Api::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_origins_are_foreign() {
        let headers = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:8080"));
            origin.map(|origin| headers.insert(header::ORIGIN, HeaderValue::from_static(origin)));
            headers
        };
        assert!(!is_foreign(&headers(None)) && !is_foreign(&headers(Some("http://127.0.0.1:8080"))));
        for origin in ["http://127.0.0.1:8081", "https://evil.example", "null"] {
            assert!(is_foreign(&headers(Some(origin))), "{origin}");
        }
    }

    #[test]
    fn request_ids_are_short_and_plain() {
        let names = [("a-1_B.c", true), ("", false), ("a b", false), ("a\"", false)];
        assert!(names.iter().all(|(id, expected)| is_request_id(id) == *expected) && !is_request_id(&"x".repeat(65)));
    }

    #[test]
    fn the_description_has_every_route() {
        let text = serde_json::to_value(Api::openapi()).unwrap();
        assert!(ROUTES.iter().all(|route| text["paths"].get(route).is_some()), "{text}");
        let schemas = text["components"]["schemas"].as_object().unwrap();
        assert!(["RecommendBody", "RankBody", "AnswerBody", "Problem"].iter().all(|name| schemas.contains_key(*name)));
    }
}
