//! The page at `/`: a search for items, a history, and what is recommended after it.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Nothing comes from elsewhere, and no other site may frame the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// Returns the page.
pub async fn html() -> Response {
    file("text/html; charset=utf-8", include_str!("../../assets/page/index.html"))
}

/// Returns its style.
pub async fn css() -> Response {
    file("text/css; charset=utf-8", include_str!("../../assets/page/page.css"))
}

/// Returns its script.
pub async fn js() -> Response {
    file("text/javascript; charset=utf-8", include_str!("../../assets/page/page.js"))
}
