//! Rankers without a language model as engines.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::engine::{Engine, ModelInfo, check_count};
use crate::data::{Corpus, Item};
use crate::device::BackendChoice;
use crate::evaluate::valid_ndcg;
use crate::rankers::{FitContext, Ranker, RankerSpec, TopK};
use crate::run::verified_devices::verified_device;
use crate::run::{ItemRef, RankRequest, RecommendRequest, Recommendation, Recommendations, rank_live_items};
use crate::{Context, Error, Result};

/// A ranker of the registry, or a mixture of several.
pub struct BaselineEngine {
    /// The corpus that the ranker was fitted to, and the ranker.
    fitted: Arc<(Corpus, Arc<dyn Ranker>)>,
    /// The corpus under the numbers of the catalogue, whose items come first.
    corpus: Corpus,
    ranker: Arc<dyn Ranker>,
    top_k: TopK,
    by_id: HashMap<String, u32>,
    /// The first item of each title.
    by_title: HashMap<String, u32>,
    about: ModelInfo,
}

impl BaselineEngine {
    /// Fits a ranker to the corpus in `dir`.
    ///
    /// # Errors
    /// Those of [`Corpus::open`] and [`RankerSpec::fit`].
    pub fn fit(spec: &RankerSpec, dir: &Path, backend: &BackendChoice, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let corpus = Corpus::open(dir)?;
        let top_k = TopK::new(&corpus);
        let mut fitting = FitContext {
            corpus: &corpus,
            device: &|| verified_device(backend),
            validate: &|ranker| valid_ndcg(ranker, &top_k, &corpus),
            metrics: None,
            say,
        };
        let ranker = spec.fit(&mut fitting).context(dir.display())?.ranker;
        let fitted = Arc::new((corpus.clone(), ranker.clone()));
        Ok(Self::new(fitted, corpus, ranker, spec.to_string()))
    }

    fn new(fitted: Arc<(Corpus, Arc<dyn Ranker>)>, corpus: Corpus, ranker: Arc<dyn Ranker>, name: String) -> Self {
        let numbered = || corpus.items.iter().zip(0..);
        let mut by_title = HashMap::new();
        for (item, number) in numbered() {
            by_title.entry(item.title.clone()).or_insert(number);
        }
        let about = ModelInfo {
            id: name,
            kind: "baseline".into(),
            items: ranker.items(),
            corpus: corpus.name.clone(),
            step: None,
            scoring: None,
            beams: None,
            prior: None,
            exclude_history: ranker.excludes_history(),
        };
        let by_id = numbered().map(|(item, number)| (item.id.clone(), number)).collect();
        Self { fitted, top_k: TopK::new(&corpus), by_id, by_title, corpus, ranker, about }
    }

    fn item(&self, id: &str) -> Result<u32> {
        let item = self.by_id.get(id).copied();
        item.ok_or_else(|| Error::not_found(format!("the catalogue has no item {id}")))
    }

    /// Returns an item that can be recommended.
    fn recommendable(&self, id: &str) -> Result<u32> {
        match self.item(id)? {
            item if (item as usize) < self.about.items => Ok(item),
            _ => Err(Error::not_found(format!("item {id} is not in today's catalogue"))),
        }
    }

    /// Returns the items of a history; a title that no item has is left out, with a note.
    fn history(&self, history: &[ItemRef], notes: &mut Vec<String>) -> Result<Vec<u32>> {
        let mut items = Vec::with_capacity(history.len());
        for item in history {
            match item {
                ItemRef::Id(id) => items.push(self.item(id)?),
                ItemRef::Title(title) => match self.by_title.get(title) {
                    Some(&item) => items.push(item),
                    None => notes.push(format!("no item is called {title:?}; this model passes over it")),
                },
            }
        }
        Ok(items)
    }

    fn ranked(&self, items: impl Iterator<Item = (u32, f64)>) -> Vec<Recommendation> {
        let item = |(n, (item, score)): (usize, (u32, f64))| Recommendation {
            rank: n + 1,
            item: self.corpus.items[item as usize].id.clone(),
            title: self.corpus.title(item).to_string(),
            log_prob: score.ln(),
            score,
        };
        items.enumerate().map(item).collect()
    }
}

impl Engine for BaselineEngine {
    fn about(&self) -> &ModelInfo {
        &self.about
    }

    fn items(&self) -> &[Item] {
        &self.corpus.items[..self.about.items]
    }

    fn cost(&self, _: &RecommendRequest) -> usize {
        1
    }

    fn example_request(&self, k: usize) -> RecommendRequest {
        let history = self.fitted.0.items.first().map(|item| ItemRef::Id(item.id.clone())).into_iter().collect();
        RecommendRequest { history, k, ..RecommendRequest::default() }
    }

    fn recommend(&self, request: &RecommendRequest) -> Result<Recommendations> {
        check_count("k", request.k)?;
        if request.user.is_some() {
            return Err(Error::usage("this model knows no users: name none"));
        }
        let mut notes = Vec::new();
        let history = self.history(&request.history, &mut notes)?;
        let only = match &request.only {
            None => None,
            Some(ids) => Some(ids.iter().map(|id| self.recommendable(id)).collect::<Result<HashSet<u32>>>()?),
        };
        let mut exclude = request.exclude.iter().map(|id| self.item(id)).collect::<Result<HashSet<u32>>>()?;
        let mut titles: HashSet<&str> = HashSet::new();
        if request.exclude_history.unwrap_or(self.about.exclude_history) {
            exclude.extend(&history);
            titles.extend(history.iter().map(|&item| self.corpus.title(item)));
        }
        let allowed = |item: u32| {
            (item as usize) < self.about.items
                && only.as_ref().is_none_or(|only| only.contains(&item))
                && !exclude.contains(&item)
                && !titles.contains(self.corpus.title(item))
        };
        let scores = self.ranker.scores(&history);
        let items = self.top_k.rank_allowed(&scores, &allowed, request.k);
        let items = items.into_iter().map(|item| (item, scores.get(item)));
        Ok(Recommendations { items: self.ranked(items), notes })
    }

    fn rank(&self, request: &RankRequest) -> Result<Recommendations> {
        check_count("the number of items to rank", request.items.len())?;
        if request.user.is_some() {
            return Err(Error::usage("this model knows no users: name none"));
        }
        let mut notes = Vec::new();
        let scores = self.ranker.scores(&self.history(&request.history, &mut notes)?);
        let items = request.items.iter().map(|id| self.recommendable(id)).collect::<Result<Vec<u32>>>()?;
        let mut items: Vec<(u32, f64)> = items.into_iter().map(|item| (item, scores.get(item))).collect();
        items.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(Recommendations { items: self.ranked(items.into_iter()), notes })
    }

    fn with_items(&self, items: Vec<Item>) -> Result<Arc<dyn Engine>> {
        let (ranker, corpus) = rank_live_items(self.fitted.1.clone(), &self.fitted.0, items)?;
        Ok(Arc::new(Self::new(self.fitted.clone(), corpus, ranker, self.about.id.clone())))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}
