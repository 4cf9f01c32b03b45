//! Errors as `application/problem+json` (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Error, ErrorKind};

/// Reason why a request has no answer, as RFC 9457 has it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the status says it all.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The fault of this request.
    pub detail: String,
    /// Seconds after which the request may be sent again.
    #[serde(skip)]
    retry_after: Option<u64>,
}

impl Problem {
    /// Makes a problem.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// Makes a problem that passes.
    pub fn passing(status: StatusCode, detail: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(status, detail) }
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<Error> for Problem {
    /// Errors that are about the request are told to the client; others, which may name files, to
    /// the log.
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Usage | ErrorKind::NotFound | ErrorKind::Failed => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            ErrorKind::Device => {
                tracing::error!(%error, "the device failed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "the device failed; the server's log says why")
            }
            ErrorKind::Io | ErrorKind::Model => {
                tracing::error!(%error, "a request failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the model failed; the server's log says why")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
