//! Requests to a [`Session`]: recommendations for a history, and the ranking of given items.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::prompt_selection::PromptSelection;
use super::session::Session;
use crate::config::{DecodeConfig, SearchKind};
use crate::decode::{
    ItemFilter, ItemScore, PrefixMass, Query, RankedItem, TOKENS_PER_BEAM, check_log_probs, prompts_per_pass, score,
    search,
};
use crate::text::{PromptValue, PromptValues};
use crate::{Context, Error, Result};

/// An item of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ItemRef {
    /// An item by its id in the source.
    #[serde(rename = "item")]
    Id(String),
    /// An item by its title, or by the attribute that `items.text` names. It need not be in the
    /// catalogue, unless the run's prompts show items only by their vectors; a prior then skips it.
    #[serde(rename = "title")]
    Title(String),
}

/// A request for the best items after a history.
#[derive(Debug, Clone, Default)]
pub struct RecommendRequest {
    /// The history, oldest first.
    pub history: Vec<ItemRef>,
    /// The user's id in the source, for prompts that show users.
    pub user: Option<String>,
    /// The prompt, for a run with prompt sets.
    pub prompt: PromptSelection,
    /// Number of items to return, at least 1.
    pub k: usize,
    /// Ids of items that must not be returned.
    pub exclude: Vec<String>,
    /// Ids of the only items that may be returned; all for `None`.
    pub only: Option<Vec<String>>,
    /// Whether items with a title of the history are left out; by default as
    /// `decode.exclude_history` of the run.
    pub exclude_history: Option<bool>,
}

/// A request for the scores of given items after a history.
#[derive(Debug, Clone, Default)]
pub struct RankRequest {
    /// The history, oldest first.
    pub history: Vec<ItemRef>,
    /// The user's id in the source, for prompts that show users.
    pub user: Option<String>,
    /// The prompt, for a run with prompt sets.
    pub prompt: PromptSelection,
    /// Ids of the items to rank, at least one.
    pub items: Vec<String>,
}

/// A recommended item.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recommendation {
    /// Rank, from 1.
    pub rank: usize,
    /// The item's id in the source.
    pub item: String,
    /// The item's title.
    pub title: String,
    /// Log-probability in nats, summed over the title's tokens, under the run's scoring.
    pub log_prob: f64,
    /// `log_prob / tokens^length_penalty`, by which the items are ranked.
    pub score: f64,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recommendations {
    /// The items, best first.
    pub items: Vec<Recommendation>,
    /// Remarks for the user about how the request was understood.
    pub notes: Vec<String>,
}

/// A request that is ready for the search.
struct PreparedRequest<'a> {
    prompt: Vec<u32>,
    prior: Option<PrefixMass<'a>>,
    filter: Option<ItemFilter>,
    beams: usize,
    k: usize,
    notes: Vec<String>,
}

/// Most items of one answer: a search has as many beams.
const MOST_ITEMS: usize = 10_000;

impl Session {
    /// Returns the best items after a history.
    ///
    /// # Errors
    /// A request that the run cannot answer: usage and not-found errors; a model whose numbers are
    /// not finite; a device that died.
    pub fn recommend(&self, request: &RecommendRequest) -> Result<Recommendations> {
        self.recommend_all(std::slice::from_ref(request)).swap_remove(0)
    }

    /// Answers several requests as [`Session::recommend`] does, as many together as a forward pass
    /// takes. An error of the model or the device is the answer to all requests of the pass.
    pub fn recommend_all(&self, requests: &[RecommendRequest]) -> Vec<Result<Recommendations>> {
        let mut answers: Vec<Result<Recommendations>> = Vec::with_capacity(requests.len());
        // A search has one number of beams.
        let mut groups: BTreeMap<usize, Vec<(usize, PreparedRequest)>> = BTreeMap::new();
        for (n, request) in requests.iter().enumerate() {
            match self.run(|| self.prepare(request)) {
                Ok(prepared) => {
                    groups.entry(prepared.beams).or_default().push((n, prepared));
                    answers.push(Ok(Recommendations::default()));
                }
                Err(error) => answers.push(Err(error)),
            }
        }
        for (beams, mut group) in groups {
            let decode = DecodeConfig { beams, ..self.config.decode.clone() };
            while !group.is_empty() {
                let longest = group.iter().map(|(_, prepared)| prepared.prompt.len()).max().unwrap_or(0);
                let together = prompts_per_pass(longest + TOKENS_PER_BEAM * beams);
                let part: Vec<(usize, PreparedRequest)> = group.drain(..group.len().min(together)).collect();
                let lists = self.run(|| {
                    let queries: Vec<Query> = part.iter().map(|(_, prepared)| prepared.query()).collect();
                    self.search(&queries, &decode)
                });
                match lists {
                    Ok(lists) => {
                        for ((n, prepared), list) in part.into_iter().zip(lists) {
                            let items = self.items(&list, prepared.filter.as_ref(), prepared.k);
                            answers[n] = Ok(Recommendations { items, notes: prepared.notes });
                        }
                    }
                    Err(error) => part.into_iter().for_each(|(n, _)| answers[n] = Err(error.clone())),
                }
            }
        }
        answers
    }

    /// Returns a request that this run can answer: the best items after one item, of the corpus's
    /// first user where the prompt shows users.
    pub fn example_request(&self, k: usize) -> RecommendRequest {
        let (corpus, prompt) = (&self.context.corpus, &self.context.prompt);
        // An item of the training catalogue: prompts may show items by their vectors alone.
        let shown = (0..corpus.items.len() as u32).find(|&item| self.context.is_showable(item));
        let shown = shown.filter(|_| prompt.has_history() || self.context.prior.is_some());
        RecommendRequest {
            history: shown.map(|item| ItemRef::Id(corpus.items[item as usize].id.clone())).into_iter().collect(),
            user: prompt.has_user().then(|| corpus.user_id(0).to_string()),
            k,
            ..RecommendRequest::default()
        }
    }

    /// Returns about how many tokens a request runs: those of its prompt, and those of its beams.
    pub fn estimated_tokens(&self, request: &RecommendRequest) -> usize {
        /// Bytes of a token, about.
        const BYTES: usize = 3;
        let shown = request.history.len().min(self.context.history.unwrap_or(usize::MAX));
        let title = |item: &ItemRef| match item {
            ItemRef::Title(title) => title.len(),
            ItemRef::Id(id) => {
                let item = self.index().item(&self.context, id);
                item.map_or(0, |item| self.context.name(item).len())
            }
        };
        let history: usize = request.history.iter().rev().take(shown).map(title).sum();
        history / BYTES + TOKENS_PER_BEAM * self.config.decode.beams.max(request.k)
    }

    /// Returns the given items with their scores after a history, best first: the scores of
    /// [`Session::recommend`]. Several items of one title have the same score.
    ///
    /// # Errors
    /// Those of [`Session::recommend`]; an empty list of items.
    pub fn rank(&self, request: &RankRequest) -> Result<Recommendations> {
        if request.items.is_empty() {
            return Err(Error::usage("there is no item to rank"));
        }
        let only = RecommendRequest {
            history: request.history.clone(),
            user: request.user.clone(),
            prompt: request.prompt.clone(),
            k: request.items.len(),
            only: Some(request.items.clone()),
            exclude_history: Some(false),
            ..RecommendRequest::default()
        };
        self.run(|| {
            let prepared = self.prepare(&only)?;
            let wanted = self.item_ids(&request.items)?;
            // There are as many beams as items, so that none is pruned. Only itemlm's own search
            // returns all of them.
            let decode = DecodeConfig { beams: prepared.beams, search: SearchKind::Trie, ..self.config.decode.clone() };
            let list = self.search(&[prepared.query()], &decode)?.pop().unwrap_or_default();
            let of_leaf = |found: &RankedItem| {
                let (trie, found) = (&self.context.catalogue.trie, *found);
                wanted.iter().filter(move |&&item| trie.leaf(item) == found.leaf).map(move |&item| (item, found))
            };
            let ranked: Vec<(u32, RankedItem)> = list.iter().flat_map(of_leaf).collect();
            let items = ranked.iter().enumerate().map(|(n, &(item, found))| self.recommendation(n, item, found));
            Ok(Recommendations { items: items.collect(), notes: prepared.notes.clone() })
        })
    }

    /// Returns the log-probabilities of items after a prompt of text, under both scorings.
    ///
    /// * `items`: indices of items of the catalogue.
    ///
    /// # Errors
    /// A run whose prompts hold vectors; a prompt that is empty or leaves no room for the longest
    /// title; those of [`Session::recommend`].
    pub fn score(&self, prompt: &str, items: &[u32]) -> Result<Vec<ItemScore>> {
        if self.context.entities.is_some() {
            return Err(Error::usage("this run's prompts hold vectors; a prompt of text alone does not"));
        }
        if items.iter().any(|&item| item as usize >= self.context.corpus.items.len()) {
            return Err(Error::not_found("an item is outside the catalogue"));
        }
        self.run(|| {
            let prompt = self.context.encode_prompt(prompt)?;
            let scores = score(&self.model.llm, &self.context.catalogue, &prompt, items, &self.device)?;
            check_log_probs(scores.iter().map(|s| s.full + s.masked)).context(self.dir.display())?;
            Ok(scores)
        })
    }

    fn search(&self, queries: &[Query], decode: &DecodeConfig) -> Result<Vec<Vec<RankedItem>>> {
        // Prompts that run together are not kept: a user's next one comes alone.
        let model = match queries {
            [query] => self.prompts.prefill(&self.model, query.prompt),
            _ => self.model.clone(),
        };
        let lists = search(&model, &self.context.catalogue, queries, decode, &self.device)?;
        check_log_probs(lists.iter().flatten().map(|found| found.log_prob)).context(self.dir.display())?;
        Ok(lists)
    }

    fn prepare(&self, request: &RecommendRequest) -> Result<PreparedRequest<'_>> {
        let context = &self.context;
        if self.text_tasks.is_some() {
            return Err(Error::usage("this run writes texts and ranks no items"));
        }
        if request.k == 0 {
            return Err(Error::usage("k is 0, it must be at least 1"));
        }
        let selected = request.prompt.select_one(&self.prompt_sets)?;
        let template = selected.as_ref().map_or(&context.prompt, |selected| &selected.template);
        if request.history.is_empty() && template.has_history() {
            return Err(Error::usage("the history is empty, and this run's prompt shows it"));
        }
        if !request.history.is_empty() && !template.has_history() && context.prior.is_none() {
            return Err(Error::usage("this prompt shows no history, and the run has no prior that reads one"));
        }
        let user = self.user(request.user.as_deref(), template.has_user())?;
        let mut notes = Vec::new();
        let (shown, history) = self.history(&request.history, &mut notes)?;
        let values = PromptValues { history: shown, items: Vec::new(), user, dataset: &context.corpus.name };
        let (prompt, dropped) = context.fitting_tokens(template, values)?;
        if dropped > 0 {
            notes.push(format!("the prompt does not fit: it shows the history without its {dropped} oldest items"));
        }
        if request.k > MOST_ITEMS {
            return Err(Error::usage(format!("k is {}, it must be at most {MOST_ITEMS}", request.k)));
        }
        let beams = self.config.decode.beams.max(request.k);
        let filter = self.filter(request, &history)?;
        let prior = context.prior.as_ref().map(|prior| prior.mass_for_history(&history));
        Ok(PreparedRequest { prompt, prior, filter, beams, k: request.k, notes })
    }

    /// Returns whether a prompt shows the user.
    ///
    /// # Errors
    /// A prompt that the run does not have.
    pub(super) fn shows_user(&self, prompt: &PromptSelection) -> Result<bool> {
        let selected = prompt.select_one(&self.prompt_sets)?;
        Ok(selected.as_ref().map_or(&self.context.prompt, |selected| &selected.template).has_user())
    }

    /// Checks that a request can be answered, without running the model.
    ///
    /// # Errors
    /// Those of [`Session::recommend`] that are about the request.
    pub(super) fn check_request(&self, request: &RecommendRequest) -> Result<()> {
        self.prepare(request).map(|_| ())
    }

    fn user(&self, id: Option<&str>, wanted: bool) -> Result<PromptValue> {
        match (id, wanted) {
            (None, false) => Ok(PromptValue::default()),
            (Some(id), true) => match self.index().user(&self.context, id) {
                Some(user) => Ok(self.context.user(user)),
                None => Err(Error::not_found(format!("the corpus has no user {id}"))),
            },
            (None, true) => Err(Error::usage("this run's prompt shows the user: name one")),
            (Some(_), false) => Err(Error::usage("this run's prompt shows no user: name none")),
        }
    }

    /// Returns the history in its form in prompts, and those of its items that are in the
    /// catalogue.
    fn history(&self, history: &[ItemRef], notes: &mut Vec<String>) -> Result<(Vec<PromptValue>, Vec<u32>)> {
        let (mut shown, mut items) = (Vec::with_capacity(history.len()), Vec::new());
        for item in history {
            let item = match item {
                ItemRef::Id(id) => Some(self.item_id(id)?),
                ItemRef::Title(title) => {
                    let named = self.index().items_with_name(&self.context, title);
                    let taken = self.index().preferred_item(named);
                    if let (Some(taken), 2..) = (taken, named.len()) {
                        let id = &self.context.corpus.items[taken as usize].id;
                        let note = format!("{} items are called {title:?}; item {id} is taken", named.len());
                        if !notes.contains(&note) {
                            notes.push(note);
                        }
                    }
                    if taken.is_none() {
                        shown.push(self.context.unknown_item(title)?);
                    }
                    taken
                }
            };
            if let Some(item) = item {
                shown.push(match self.context.is_showable(item) {
                    true => self.context.item(item),
                    false => self.context.unknown_item(self.context.name(item))?,
                });
                items.push(item);
            }
        }
        Ok((shown, items))
    }

    fn filter(&self, request: &RecommendRequest, history: &[u32]) -> Result<Option<ItemFilter>> {
        let exclude_history = request.exclude_history.unwrap_or(self.config.decode.exclude_history);
        if request.only.is_none() && request.exclude.is_empty() && !exclude_history {
            return Ok(None);
        }
        let trie = &self.context.catalogue.trie;
        let only = request.only.as_ref().map(|ids| self.item_ids(ids)).transpose()?;
        let mut exclude = Vec::with_capacity(request.exclude.len());
        for id in &request.exclude {
            exclude.push(self.item_id(id)?);
        }
        exclude.retain(|&item| self.context.is_recommendable(item));
        if exclude_history {
            let in_catalogue = history.iter().filter(|&&item| self.context.is_recommendable(item));
            exclude.extend(in_catalogue.flat_map(|&item| trie.items(trie.leaf(item))));
        }
        Ok(Some(ItemFilter::new(trie, only.as_deref(), &exclude)))
    }

    fn item_id(&self, id: &str) -> Result<u32> {
        let item = self.index().item(&self.context, id);
        item.ok_or_else(|| Error::not_found(format!("the catalogue has no item {id}")))
    }

    /// Returns the items with these ids, all of which can be recommended.
    fn item_ids(&self, ids: &[String]) -> Result<Vec<u32>> {
        let item = |id: &String| match self.item_id(id)? {
            item if self.context.is_recommendable(item) => Ok(item),
            _ => Err(Error::not_found(format!("item {id} is not in today's catalogue"))),
        };
        ids.iter().map(item).collect()
    }

    /// Returns the first `k` items of a list of leaves: of each leaf the first that `filter`
    /// allows.
    fn items(&self, list: &[RankedItem], filter: Option<&ItemFilter>, k: usize) -> Vec<Recommendation> {
        let allowed = |item: &u32| filter.is_none_or(|filter| filter.allows(*item));
        let item = |found: &RankedItem| Some((self.context.catalogue.trie.items(found.leaf).find(allowed)?, *found));
        let items = list.iter().filter_map(item).take(k).enumerate();
        items.map(|(n, (item, found))| self.recommendation(n, item, found)).collect()
    }

    fn recommendation(&self, n: usize, item: u32, found: RankedItem) -> Recommendation {
        Recommendation {
            rank: n + 1,
            item: self.context.corpus.items[item as usize].id.clone(),
            title: self.context.name(item).to_string(),
            log_prob: found.log_prob,
            score: found.score,
        }
    }
}

impl PreparedRequest<'_> {
    fn query(&self) -> Query<'_> {
        Query { prompt: &self.prompt, prior: self.prior.as_ref(), filter: self.filter.as_ref() }
    }
}
