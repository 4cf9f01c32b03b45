//! The inputs of a run file: corpus, prompts, base model, vectors and prior.

use std::collections::BTreeMap;
use std::path::Path;

use burn::DispatchDevice;

use super::entities::EntityMaterial;
use super::identity::Identity;
use super::prompt_context::{PromptContext, names};
use super::prompt_selection::{PromptSelection, open_prompt_sets};
use super::text_tasks::{TextTaskData, open_text_tasks};
use crate::config::{PriorConfig, RunConfig};
use crate::core::files::sha256;
use crate::data::{Corpus, Manifest};
use crate::decode::{PriorWeights, TriePrior};
use crate::model::{DecoderConfig, QuantizedSize, Weights, open_llm_layers, open_llm_of_run};
use crate::rankers::{FittedRanker, RankerSpec};
use crate::text::{Catalogue, Prompt, PromptSet};
use crate::{Context, Error, Result};

/// The inputs that a run file names, opened; the weights are still on disk.
pub struct RunInputs {
    /// Corpus, prompt, tokenizer, catalogue.
    pub ranking: PromptContext,
    /// The run's prompt sets; empty for a run with one prompt. The ranking's prompt is then the
    /// first seen prompt of the first set.
    pub prompt_sets: Vec<PromptSet>,
    /// The base model's architecture.
    pub decoder: DecoderConfig,
    /// The base model's weights.
    pub weights: Weights,
    /// Size of the weights that stay quantised, with `llm.quantized`.
    pub quantized: Option<QuantizedSize>,
    /// Vectors and encoder of items and users.
    pub entities: Option<EntityMaterial>,
    /// Rows of text tasks, which the run is trained on in place of windows.
    pub text_tasks: Option<TextTaskData>,
    /// The identity of model, corpus, prompt, rows and vectors.
    pub identity: Identity,
}

impl RunInputs {
    /// Opens the inputs that `config` names.
    ///
    /// * `started`: the identity that a run was started with; `None` for a new run.
    /// * `device`: the device of a prior's network.
    ///
    /// # Errors
    /// Files that cannot be read, or do not belong together.
    pub fn open(config: &RunConfig, started: Option<&Identity>, device: &DispatchDevice) -> Result<Self> {
        // It is checked before a large corpus is read.
        let ranker = config.prior.as_ref().map(RankerSpec::from_prior_config).transpose()?;
        let dir = Path::new(&config.data.corpus);
        let corpus = Corpus::open(dir)?;
        let corpus_digest = Manifest::digest(dir)?;
        let path = Path::new(&config.llm.path);
        // A run keeps the tokens that it was trained with.
        let (mut llm, bos) = match started {
            Some(identity) => {
                (open_llm_of_run(path, config.llm.layers, &identity.llm)?, Some(identity.puts_bos_first()))
            }
            None => (open_llm_layers(path, config.llm.layers)?, config.data.bos.choice()),
        };
        llm.tokenizer = llm.tokenizer.with_bos(bos)?;
        let quantized = config.llm.quantized.then(|| llm.weights.keep_quantized()).transpose()?;
        let prompt_sets = open_prompt_sets(&config.data)?;
        let prompt = match PromptSelection::default().select_one(&prompt_sets)? {
            Some(prompt) => prompt.template,
            None => open_prompt(config.data.prompt.as_deref().unwrap_or(Prompt::for_corpus(&corpus.name)))?,
        };
        let names = names(&corpus, config.items.attribute())?;
        let titles = (0..corpus.items.len()).map(|item| match &names {
            Some(names) => names[item].as_str(),
            None => corpus.items[item].title.as_str(),
        });
        let catalogue = Catalogue::new(&llm.tokenizer, titles).context(dir.display())?;
        let kept = started.and_then(|identity| identity.prior_mixture.as_ref());
        let prior = ranker.iter().zip(&config.prior);
        let prior = prior.map(|(ranker, prior)| open_prior(ranker, prior, kept, &corpus, &catalogue, device)).next();
        let (prior, prior_mixture) = prior.transpose()?.unzip();
        let started = started.and_then(|identity| identity.entities.as_ref());
        let entities = EntityMaterial::open(config, &corpus, &corpus_digest, llm.config.vocab_size, started)?;
        let text_tasks = open_text_tasks(&config.data, &corpus)?;
        let templates = match (&text_tasks, prompt_sets.as_slice()) {
            (Some(tasks), _) => tasks.templates(),
            (None, []) => PromptContext::template(&prompt),
            (None, sets) => {
                sets.iter().flat_map(PromptSet::prompts).map(PromptContext::template).collect::<Vec<_>>().join("\0")
            }
        };
        let identity = Identity {
            llm: llm.fingerprint,
            corpus: corpus_digest,
            prompt: sha256(templates.as_bytes()),
            bos: Some(!llm.tokenizer.prefix().is_empty()),
            rows: text_tasks.as_ref().map(|tasks| tasks.digest.clone()),
            entities: entities.as_ref().map(|entities| entities.identity.clone()),
            prior_mixture: prior_mixture.flatten(),
        };
        let context = llm.config.max_position_embeddings;
        let ranking = PromptContext {
            corpus,
            names,
            prompt,
            tokenizer: llm.tokenizer,
            catalogue,
            context,
            history: config.data.history,
            too_long: config.data.too_long,
            prior,
            entities: entities.as_ref().map(|entities| entities.tokens),
            beside_text: config.items.beside_text,
            live: None,
        };
        Ok(Self {
            ranking,
            prompt_sets,
            text_tasks,
            decoder: llm.config,
            weights: llm.weights,
            quantized,
            entities,
            identity,
        })
    }
}

/// Opens a prompt template for windows.
///
/// # Errors
/// Those of [`Prompt::open`]; a template with `{item}`.
pub fn open_prompt(template: &str) -> Result<Prompt> {
    let prompt = Prompt::open(template)?;
    match prompt.items() {
        0 => Ok(prompt),
        _ => Err(Error::usage(format!(
            "prompt template {template}: {{item}} has no meaning where the next item is asked for; use {{history}} \
             or {{user}}"
        ))),
    }
}

fn open_prior(
    spec: &RankerSpec,
    config: &PriorConfig,
    kept: Option<&BTreeMap<String, f64>>,
    corpus: &Corpus,
    catalogue: &Catalogue,
    device: &DispatchDevice,
) -> Result<(TriePrior, Option<BTreeMap<String, f64>>)> {
    let FittedRanker { ranker, mixture } = spec.open(config, kept, corpus, device)?;
    let prior = TriePrior::new(ranker, &catalogue.trie, config.weight, config.smoothing);
    Ok((prior.with_weights(PriorWeights { llm: config.llm_weight, prior: config.weight }), mixture))
}
