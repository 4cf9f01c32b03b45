//! What a run file names: corpus, prompts, base model, vectors and prior.

use std::fs;
use std::path::Path;

use burn::DispatchDevice;

use super::entities::EntityMaterial;
use super::identity::Identity;
use super::prompt_context::{PromptContext, names};
use super::prompt_selection::{TaskChoice, open_prompt_sets};
use super::text_tasks::TextTasks;
use crate::config::{PriorConfig, RankerName, RunConfig};
use crate::core::files::sha256;
use crate::data::Corpus;
use crate::decode::TriePrior;
use crate::device::Concrete;
use crate::model::{DecoderConfig, QuantizedSize, Weights, open_llm};
use crate::rankers::{Distribution, fit};
use crate::text::{Catalogue, Prompt, PromptSet};
use crate::{Context, Error, Result};

/// What a run file names, opened; the weights still on disk.
pub struct RunInputs {
    /// Corpus, prompt, tokenizer, catalogue.
    pub ranking: PromptContext,
    /// The prompts of its tasks, where it has such; the ranking's prompt is then the first task's
    /// first.
    pub tasks: Vec<PromptSet>,
    /// The base model's sizes.
    pub llama: DecoderConfig,
    /// The base model's weights.
    pub weights: Weights,
    /// What of them stays quantised, by llm.quantized.
    pub quantized: Option<QuantizedSize>,
    /// Vectors and encoder of items and users.
    pub entities: Option<EntityMaterial>,
    /// Rows of tasks, where the run learns such in place of windows.
    pub rows: Option<TextTasks>,
    /// Of model, corpus, prompt, rows and vectors.
    pub identity: Identity,
}

impl RunInputs {
    /// Opens what `config` names; `started` is what a run in being was started with. A prior's
    /// network ranks on `device`.
    pub fn open(config: &RunConfig, started: Option<&Identity>, device: &DispatchDevice) -> Result<Self> {
        let dir = Path::new(&config.data.corpus);
        let corpus = Corpus::open(dir)?;
        let manifest = dir.join("corpus.toml");
        let corpus_digest = sha256(&fs::read(&manifest).context(manifest.display())?);
        let mut llm = open_llm(Path::new(&config.llm.path))?;
        let quantized = config.llm.quantized.then(|| llm.weights.keep_quantized()).transpose()?;
        let tasks = open_prompt_sets(&config.data)?;
        let prompt = match TaskChoice::default().one(&tasks)? {
            Some(asked) => asked.template,
            None => open_prompt(config.data.prompt.as_deref().unwrap_or(Prompt::for_corpus(&corpus.name)))?,
        };
        let names = names(&corpus, config.items.attribute())?;
        let titles = (0..corpus.items.len()).map(|item| match &names {
            Some(names) => names[item].as_str(),
            None => corpus.items[item].title.as_str(),
        });
        let catalogue = Catalogue::new(&llm.tokenizer, titles).context(dir.display())?;
        let started = started.and_then(|identity| identity.entities.as_ref());
        let entities = EntityMaterial::open(config, &corpus, &corpus_digest, llm.config.vocab_size, started)?;
        let rows = config.data.rows.as_ref().map(|rows| TextTasks::open(Path::new(rows), &corpus)).transpose()?;
        let templates = match (&rows, tasks.as_slice()) {
            (Some(rows), _) => rows.templates(),
            (None, []) => PromptContext::template(&prompt),
            (None, tasks) => {
                tasks.iter().flat_map(PromptSet::prompts).map(PromptContext::template).collect::<Vec<_>>().join("\0")
            }
        };
        let identity = Identity {
            llm: llm.fingerprint,
            corpus: corpus_digest,
            prompt: sha256(templates.as_bytes()),
            rows: rows.as_ref().map(|rows| rows.digest.clone()),
            entities: entities.as_ref().map(|entities| entities.identity.clone()),
        };
        let context = llm.config.max_position_embeddings;
        let prior = config.prior.as_ref().map(|prior| open_prior(prior, &corpus, &catalogue, device)).transpose()?;
        let ranking = PromptContext {
            corpus,
            names,
            prompt,
            tokenizer: llm.tokenizer,
            catalogue,
            context,
            prior,
            entities: entities.as_ref().map(|entities| entities.tokens),
            beside_text: config.items.beside_text,
        };
        Ok(Self { ranking, tasks, rows, llama: llm.config, weights: llm.weights, quantized, entities, identity })
    }
}

/// # Errors
/// Those of [`Prompt::open`]; a template with `{item}`.
pub fn open_prompt(template: &str) -> Result<Prompt> {
    let prompt = Prompt::open(template)?;
    match prompt.items() {
        0 => Ok(prompt),
        _ => Err(Error::usage(format!(
            "prompt template {template}: {{item}} has no meaning where the next item is asked for; use {{history}} or {{user}}"
        ))),
    }
}

fn open_prior(
    config: &PriorConfig,
    corpus: &Corpus,
    catalogue: &Catalogue,
    device: &DispatchDevice,
) -> Result<TriePrior> {
    let (trie, weight, smoothing) = (&catalogue.trie, config.weight, config.smoothing);
    Ok(match config.ranker {
        RankerName::Counting(baseline) => TriePrior::new(fit(baseline, corpus), trie, weight, smoothing),
        RankerName::Collaborative(method) => {
            let path = Path::new(config.vectors.as_deref().unwrap_or_default());
            let ranker = Distribution::<Concrete>::open(path, method, corpus, device).context("prior.vectors")?;
            TriePrior::new(ranker, trie, weight, smoothing)
        }
    })
}
