//! The JSON of requests and answers, and the limits of what a request may hold.

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use crate::data::Id;
use crate::run::{ItemRef, RankRequest, RecommendRequest, Recommendation, Recommendations};

/// Bytes of a body.
pub const BODY: usize = 4 << 20;
/// Items of a history.
pub const HISTORY: usize = 1000;
/// Items of an answer.
pub const K: usize = 500;
/// Items to rank.
pub const RANKED: usize = 500;
/// Ids in `exclude` and in `only`.
pub const FILTER: usize = 20_000;
/// Characters of a title or an id.
pub const TEXT: usize = 2000;
/// Requests of a batch.
pub const BATCH: usize = 128;
/// Items that a search for items returns.
pub const FOUND: usize = 100;

type Checked<T> = std::result::Result<T, Problem>;

fn unprocessable(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

/// Reads a body.
///
/// # Errors
/// 400 for what is no JSON, 422 for JSON of another shape.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Checked<T> {
    if let Err(error) = std::str::from_utf8(body) {
        let at = error.valid_up_to();
        return Err(Problem::new(StatusCode::BAD_REQUEST, format!("the body is not UTF-8, from byte {at} on")));
    }
    // Two kinds in one item of a history are told as bad syntax, where JSON is in order.
    let is_json = || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    serde_json::from_slice(body).map_err(|error| match error.is_data() || is_json() {
        true => unprocessable(error.to_string()),
        false => Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")),
    })
}

fn at_most(what: &str, count: usize, limit: usize) -> Checked<()> {
    match count <= limit {
        true => Ok(()),
        false => Err(unprocessable(format!("{what}: {count}, at most {limit}"))),
    }
}

fn text(what: &str, text: String) -> Checked<String> {
    at_most(&format!("{what}: number of characters"), text.chars().count(), TEXT)?;
    Ok(text)
}

fn ids(what: &str, ids: Vec<Id>, limit: usize) -> Checked<Vec<String>> {
    at_most(&format!("{what}: number of ids"), ids.len(), limit)?;
    ids.into_iter().map(|id| text(what, id.into_text())).collect()
}

/// An item of a history.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum HistoryItem {
    /// By its id.
    #[schema(value_type = String)]
    Item(Id),
    /// By its title, which need not be in the catalogue.
    Title(String),
}

fn history(items: Vec<HistoryItem>) -> Checked<Vec<ItemRef>> {
    at_most("history: number of items", items.len(), HISTORY)?;
    let item = |item| match item {
        HistoryItem::Item(id) => text("history", id.into_text()).map(ItemRef::Id),
        HistoryItem::Title(title) => text("history", title).map(ItemRef::Title),
    };
    items.into_iter().map(item).collect()
}

/// A request for the best items after a history.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecommendBody {
    /// The user's interactions, oldest first.
    #[schema(max_items = 1000)]
    history: Vec<HistoryItem>,
    /// The user's id, for a run whose prompt shows users.
    #[schema(value_type = Option<String>)]
    user: Option<Id>,
    /// Number of items; 10 by default.
    #[schema(minimum = 1, maximum = 500)]
    k: Option<usize>,
    /// Ids of items that are not to be recommended.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    exclude: Vec<Id>,
    /// Ids of the only items that may be recommended.
    #[schema(value_type = Option<Vec<String>>)]
    only: Option<Vec<Id>>,
    /// Whether items with a title of the history are left out; by default as the model says.
    exclude_history: Option<bool>,
}

impl RecommendBody {
    /// Checks the limits.
    ///
    /// # Errors
    /// 422 that names what is out of range.
    pub fn check(self) -> Checked<RecommendRequest> {
        let k = self.k.unwrap_or(10);
        if !(1..=K).contains(&k) {
            return Err(unprocessable(format!("k: {k}, it must be from 1 to {K}")));
        }
        Ok(RecommendRequest {
            history: history(self.history)?,
            user: self.user.map(|user| text("user", user.into_text())).transpose()?,
            k,
            exclude: ids("exclude", self.exclude, FILTER)?,
            only: self.only.map(|only| ids("only", only, FILTER)).transpose()?,
            exclude_history: self.exclude_history,
            ..RecommendRequest::default()
        })
    }
}

/// A request for the scores of given items after a history.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RankBody {
    /// The user's interactions, oldest first.
    #[schema(max_items = 1000)]
    history: Vec<HistoryItem>,
    /// The user's id, for a run whose prompt shows users.
    #[schema(value_type = Option<String>)]
    user: Option<Id>,
    /// Ids of the items to rank.
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 500)]
    items: Vec<Id>,
}

impl RankBody {
    /// Checks the limits.
    ///
    /// # Errors
    /// 422 that names what is out of range.
    pub fn check(self) -> Checked<RankRequest> {
        Ok(RankRequest {
            history: history(self.history)?,
            user: self.user.map(|user| text("user", user.into_text())).transpose()?,
            items: ids("items", self.items, RANKED)?,
            ..RankRequest::default()
        })
    }
}

/// Reads a batch; each request for itself.
///
/// * `limit`: number of requests that the queue takes.
///
/// # Errors
/// 400 and 422 of the batch as a whole; a request that is wrong is an error in the list.
pub fn parse_batch(body: &[u8], limit: usize) -> Checked<Vec<Checked<RecommendRequest>>> {
    let requests: Vec<serde_json::Value> = parse(body)?;
    at_most("the batch: number of requests", requests.len(), BATCH.min(limit))?;
    let request = |request| {
        let body: RecommendBody = serde_json::from_value(request).map_err(|error| unprocessable(error.to_string()))?;
        body.check()
    };
    Ok(requests.into_iter().map(request).collect())
}

/// A recommended item.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnswerItem {
    /// Rank, from 1.
    rank: usize,
    /// The item's id.
    item: String,
    /// The item's title.
    title: String,
    /// Score of the ranking: of a run a log-probability, of a baseline its own.
    score: f64,
}

impl From<Recommendation> for AnswerItem {
    fn from(item: Recommendation) -> Self {
        Self { rank: item.rank, item: item.item, title: item.title, score: item.score }
    }
}

/// The answer to a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnswerBody {
    /// The request's id, as in the header `x-request-id`.
    id: String,
    /// The name of the model that answered.
    model: String,
    /// The items, best first.
    items: Vec<AnswerItem>,
    /// Remarks on the interpretation of the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

impl AnswerBody {
    /// Makes the answer to the request `id`.
    pub fn new(id: String, model: String, recommendations: Recommendations) -> Self {
        let Recommendations { items, notes } = recommendations;
        Self { id, model, items: items.into_iter().map(AnswerItem::from).collect(), notes }
    }
}

/// An answer of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum BatchAnswer {
    /// Of a request that was answered.
    Answer(AnswerBody),
    /// Of a request that was not.
    Problem(Problem),
}

/// Query of `GET /v1/items`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ItemsQuery {
    /// Words that the title holds, or an id.
    #[serde(default)]
    pub q: String,
    /// Number of items; 20 by default.
    #[param(minimum = 1, maximum = 100)]
    pub limit: Option<usize>,
}

/// An item of the catalogue.
#[derive(Debug, Serialize, ToSchema)]
pub struct FoundItem {
    /// The item's id.
    pub item: String,
    /// The item's title.
    pub title: String,
}

/// Result of a search for items.
#[derive(Debug, Serialize, ToSchema)]
pub struct FoundItems {
    /// The items.
    pub items: Vec<FoundItem>,
}

/// Result of `POST /v1/reload`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReloadAnswer {
    /// Number of items that are served now.
    pub items: usize,
    /// Number of them that were not there before.
    pub added: usize,
    /// Number of items that are not there any more.
    pub removed: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(body: &str) -> (u16, String) {
        let checked = parse::<RecommendBody>(body.as_bytes()).and_then(RecommendBody::check);
        checked.map_or_else(|problem| (problem.status().as_u16(), problem.detail), |_| (200, String::new()))
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(TEXT + 1);
        let many = vec![r#"{"item": "1"}"#; HISTORY + 1].join(",");
        for (body, expected, named) in [
            (r#"{"history": []}"#, 200, ""),
            (r#"{"history": [{"item": "1"}, {"item": 2}, {"title": "x"}], "k": 500, "only": []}"#, 200, ""),
            ("{", 400, "line 1"),
            ("", 400, "JSON"),
            (r#"{"history": []} x"#, 400, "JSON"),
            ("[]", 422, "RecommendBody"),
            ("{}", 422, "history"),
            (r#"{"history": [], "K": 3}"#, 422, "`K`"),
            (r#"{"history": [{"id": 3}]}"#, 422, "`id`"),
            (r#"{"history": [{"item": 3, "title": "x"}]}"#, 422, "line 1"),
            (r#"{"history": ["x"]}"#, 422, "`x`"),
            (r#"{"history": [], "k": 0}"#, 422, "k: 0"),
            (r#"{"history": [], "k": 501}"#, 422, "k: 501"),
            (r#"{"history": [], "k": -1}"#, 422, "-1"),
            (r#"{"history": [], "k": 1.5}"#, 422, "1.5"),
            (r#"{"history": [], "exclude": [1.5]}"#, 422, "an id is text or a whole number"),
            (&format!(r#"{{"history": [{{"title": "{long}"}}]}}"#), 422, "2001, at most 2000"),
            (&format!(r#"{{"history": [{many}]}}"#), 422, "1001, at most 1000"),
        ] {
            let (found, detail) = status(body);
            assert!(found == expected && detail.contains(named), "{body:.60}: {found} {detail}");
        }
        assert_eq!(parse::<RecommendBody>(b"\xff{}").err().map(|problem| problem.status().as_u16()), Some(400));
    }

    #[test]
    fn a_batch_keeps_the_good_requests() {
        let batch = parse_batch(br#"[{"history": []}, {"history": 3}, {"history": [], "k": 2}]"#, 9).unwrap();
        assert_eq!(batch.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert!(parse_batch(b"{}", 9).is_err() && parse_batch(b"[", 9).is_err());
        assert!(parse_batch(b"[{}, {}]", 2).is_ok() && parse_batch(b"[{}, {}]", 1).is_err());
        let many = format!("[{}]", vec!["{}"; BATCH + 1].join(","));
        assert!(parse_batch(many.as_bytes(), 999).is_err());
    }
}
