//! The engines that answer requests: a trained run, or a ranker without a language model.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::data::Item;
use crate::run::{PromptTokens, RankRequest, RecommendRequest, Recommendations, Session, Workers};
use crate::{Error, Result};

/// A model that recommends items of one catalogue. A catalogue that changes is another engine.
pub trait Engine: Send + Sync {
    /// Returns the model's description.
    fn about(&self) -> &ModelInfo;

    /// Returns the items that it recommends.
    fn items(&self) -> &[Item];

    /// Returns about how many tokens a request takes; at least 1.
    fn cost(&self, request: &RecommendRequest) -> usize;

    /// Returns a request that it can answer.
    fn example_request(&self, k: usize) -> RecommendRequest;

    /// Returns the best items after a history.
    ///
    /// # Errors
    /// Those of [`Session::recommend`].
    fn recommend(&self, request: &RecommendRequest) -> Result<Recommendations>;

    /// Returns the given items with their scores, best first.
    ///
    /// # Errors
    /// Those of [`Session::rank`].
    fn rank(&self, request: &RankRequest) -> Result<Recommendations>;

    /// Calls `work`, which answers a request, once with each number below `count`: one after
    /// another, or side by side where that is quicker. Returns when all calls have.
    fn for_each(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(work);
    }

    /// Returns the numbers of prompt tokens since the last call; 0 for a model without prompts.
    fn take_prompt_tokens(&self) -> PromptTokens {
        PromptTokens { all: 0, cached: 0 }
    }

    /// Returns the same model with another catalogue.
    ///
    /// # Errors
    /// Those of [`Session::with_items`].
    fn with_items(&self, items: Vec<Item>) -> Result<Arc<dyn Engine>>;

    /// Checks that it can still answer.
    ///
    /// # Errors
    /// A device that died.
    fn check(&self) -> Result<()>;
}

/// A model as `GET /v1/models` describes it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelInfo {
    /// The name that answers have as their `model`.
    pub id: String,
    /// `run` or `baseline`.
    pub kind: String,
    /// Number of items in the catalogue that it recommends from.
    pub items: usize,
    /// The corpus's name.
    pub corpus: String,
    /// The optimiser step whose weights answer, of a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// Normalisation of the scores, of a run: `masked` or `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scoring: Option<String>,
    /// Beams of a search for at most so many items, of a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beams: Option<usize>,
    /// The ranker that takes part as a prior, of a run that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<String>,
    /// Whether items of the history are left out where the request does not say it.
    pub exclude_history: bool,
}

/// A trained run.
pub struct RunEngine {
    /// The session with the training catalogue.
    opened: Arc<Session>,
    session: Arc<Session>,
    workers: Arc<Workers>,
    about: ModelInfo,
}

impl RunEngine {
    /// Serves `session`, which has the training catalogue.
    ///
    /// # Errors
    /// Threads that the system does not give.
    pub fn new(session: Session) -> Result<Self> {
        let workers = Arc::new(Workers::new(&session)?);
        let opened = Arc::new(session);
        Ok(Self::with_session(opened.clone(), opened, workers))
    }

    fn with_session(opened: Arc<Session>, session: Arc<Session>, workers: Arc<Workers>) -> Self {
        let (config, context) = (&session.config, &session.context);
        let dir = session.dir.canonicalize().unwrap_or_else(|_| session.dir.clone());
        let about = ModelInfo {
            id: dir.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned()),
            kind: "run".into(),
            items: context.catalogue.targets.len(),
            corpus: context.corpus.name.clone(),
            step: Some(session.step),
            scoring: Some(format!("{:?}", config.decode.scoring).to_lowercase()),
            beams: Some(config.decode.beams),
            prior: config.prior.as_ref().map(|prior| prior.ranker.clone()),
            exclude_history: config.decode.exclude_history,
        };
        Self { opened, session, workers, about }
    }
}

impl Engine for RunEngine {
    fn about(&self) -> &ModelInfo {
        &self.about
    }

    fn items(&self) -> &[Item] {
        &self.session.context.corpus.items[..self.about.items]
    }

    fn cost(&self, request: &RecommendRequest) -> usize {
        self.session.estimated_tokens(request).max(1)
    }

    fn example_request(&self, k: usize) -> RecommendRequest {
        self.session.example_request(k)
    }

    fn recommend(&self, request: &RecommendRequest) -> Result<Recommendations> {
        self.session.recommend(request)
    }

    fn rank(&self, request: &RankRequest) -> Result<Recommendations> {
        self.session.rank(request)
    }

    fn take_prompt_tokens(&self) -> PromptTokens {
        self.session.take_prompt_tokens()
    }

    fn for_each(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        self.workers.for_each(count, work);
    }

    fn with_items(&self, items: Vec<Item>) -> Result<Arc<dyn Engine>> {
        let session = Arc::new(self.opened.with_items(items)?);
        // The index of ids and titles is made now, not when the first request comes.
        session.estimated_tokens(&session.example_request(1));
        Ok(Arc::new(Self::with_session(self.opened.clone(), session, self.workers.clone())))
    }

    fn check(&self) -> Result<()> {
        self.session.check()
    }
}

/// Returns the error of an engine that is asked for no item at all.
pub(super) fn check_count(what: &str, count: usize) -> Result<()> {
    match count {
        0 => Err(Error::usage(format!("{what} is 0, it must be at least 1"))),
        _ => Ok(()),
    }
}
