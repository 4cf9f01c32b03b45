//! What a run directory holds, and opening one to rank with.
//!
//! `run.toml` (the resolved run file), `identity.json` (of the model and the corpus), `metrics.jsonl`, `checkpoints/`, once
//! trained, `adapter/` (PEFT) or `model/` (Hugging Face), and, once chosen, `prior.json` (the prior's weight).

use std::fs;
use std::path::{Path, PathBuf};

use burn::DispatchDevice;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::Concrete;
use crate::cf::Distribution;
use crate::config::{DecodeConfig, PriorConfig, RankerName, RunConfig, TuneKind};
use crate::data::Corpus;
use crate::files::{sha256, write_atomic};
use crate::log::log;
use crate::model::{Llama, LlamaConfig, Tune, Weights, open_llm};
use crate::prior::{Prior, fit};
use crate::text::{Catalogue, Prompt, Tokenizer};
use crate::train::{Checkpoints, Trained};
use crate::{Context, Error, Result};

pub(super) const CONFIG: &str = "run.toml";
const IDENTITY: &str = "identity.json";
const PRIOR: &str = "prior.json";
/// Stands for any history in the template's digest.
const HISTORY: &str = "history";

/// Which model and corpus a run was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the base model: see [`crate::model::Llm::fingerprint`].
    pub llm: String,
    /// SHA-256 of the corpus's `corpus.toml`, which holds its files' digests.
    pub corpus: String,
    /// SHA-256 of the prompt template.
    pub prompt: String,
}

/// What turns a window into a prompt and a leaf into an item.
#[derive(Clone)]
pub struct Ranking {
    /// The corpus.
    pub corpus: Corpus,
    /// The prompt template.
    pub prompt: Prompt,
    /// The base model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Target tokens and trie.
    pub catalogue: Catalogue,
    /// Tokens that the model was made for.
    pub context: usize,
    /// The run file's, fitted on the corpus's training windows; with the run file's weight.
    pub prior: Option<Prior>,
}

/// # Errors
/// A prompt that leaves no room for the longest title.
pub fn check_context(prompt: usize, catalogue: &Catalogue, context: usize) -> Result<()> {
    let needed = prompt + catalogue.trie.depth();
    match needed <= context {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "a prompt of {prompt} tokens and the longest title need {needed}, the model's max_position_embeddings is {context}; shorten the history"
        ))),
    }
}

impl Ranking {
    /// The prompt's tokens for a history of titles, oldest first.
    pub fn prompt_tokens<'a>(&self, history: impl Iterator<Item = &'a str>) -> Result<Vec<u32>> {
        let tokens = self.tokenizer.encode(&self.prompt.render(history))?;
        if tokens.is_empty() {
            return Err(Error::usage("the prompt template gives no token at all"));
        }
        check_context(tokens.len(), &self.catalogue, self.context)?;
        Ok(tokens)
    }

    /// The items of the titles that are in the catalogue, the first of those of equal title.
    pub fn items_of(&self, titles: &[String]) -> Vec<u32> {
        let items = &self.corpus.items;
        let find = |title: &String| items.iter().position(|item| item.title == *title).map(|item| item as u32);
        titles.iter().filter_map(find).collect()
    }
}

/// What a run file names, opened; the weights still on disk.
pub struct Material {
    /// Corpus, prompt, tokenizer, catalogue.
    pub ranking: Ranking,
    /// The base model's sizes.
    pub llama: LlamaConfig,
    /// The base model's weights.
    pub weights: Weights,
    /// Of model and corpus.
    pub identity: Identity,
}

impl Material {
    /// Opens what `config` names; a prior's network ranks on `device`.
    pub fn open(config: &RunConfig, device: &DispatchDevice) -> Result<Self> {
        let dir = Path::new(&config.data.corpus);
        let corpus = Corpus::open(dir)?;
        let manifest = dir.join("corpus.toml");
        let corpus_digest = sha256(&fs::read(&manifest).context(manifest.display())?);
        let llm = open_llm(Path::new(&config.llm.path))?;
        let prompt = Prompt::open(config.data.prompt.as_deref().unwrap_or(Prompt::for_corpus(&corpus.name)))?;
        let titles = corpus.items.iter().map(|item| item.title.as_str());
        let catalogue = Catalogue::new(&llm.tokenizer, titles).context(dir.display())?;
        let identity = Identity {
            llm: llm.fingerprint,
            corpus: corpus_digest,
            prompt: sha256(prompt.render([HISTORY].into_iter()).as_bytes()),
        };
        let context = llm.config.max_position_embeddings;
        let prior = config.prior.as_ref().map(|prior| open_prior(prior, &corpus, &catalogue, device)).transpose()?;
        let ranking = Ranking { corpus, prompt, tokenizer: llm.tokenizer, catalogue, context, prior };
        Ok(Self { ranking, llama: llm.config, weights: llm.weights, identity })
    }
}

fn open_prior(config: &PriorConfig, corpus: &Corpus, catalogue: &Catalogue, device: &DispatchDevice) -> Result<Prior> {
    let (trie, weight, smoothing) = (&catalogue.trie, config.weight, config.smoothing);
    Ok(match config.ranker {
        RankerName::Counting(baseline) => Prior::new(fit(baseline, corpus), trie, weight, smoothing),
        RankerName::Collaborative(method) => {
            let path = Path::new(config.vectors.as_deref().unwrap_or_default());
            let ranker = Distribution::<Concrete>::open(path, method, corpus, device).context("prior.vectors")?;
            Prior::new(ranker, trie, weight, smoothing)
        }
    })
}

/// What a checkpoint of `config`'s run holds.
pub fn trained(config: &RunConfig, tokenizer: &Tokenizer) -> Trained {
    match config.llm.tune {
        TuneKind::Full => Trained::Weights(Box::new(tokenizer.clone())),
        TuneKind::Lora | TuneKind::Frozen => Trained::Adapter(config.llm.lora.clone(), config.llm.path.clone()),
    }
}

/// A trained run, ready to rank.
pub struct OpenRun {
    /// Its run file.
    pub config: RunConfig,
    /// Its corpus, prompt, tokenizer and catalogue.
    pub ranking: Ranking,
    /// The tuned model.
    pub llm: Llama<Concrete>,
    /// The optimiser step it is of.
    pub step: usize,
    /// SHA-256 of its prior's vectors, if it has any.
    pub prior_vectors: Option<String>,
    /// How its prior's weight was chosen, if it was.
    pub chosen: Option<ChosenPrior>,
}

/// Writes `run.toml` and `identity.json` of a new run.
pub fn create(dir: &Path, config: &str, identity: &impl Serialize) -> Result<fs::File> {
    fs::create_dir_all(dir).context(dir.display())?;
    let json = serde_json::to_string_pretty(identity).context(IDENTITY)?;
    write_atomic(&dir.join(IDENTITY), json.as_bytes())?;
    write_atomic(&dir.join(CONFIG), config.as_bytes())?;
    lock(dir)
}

/// Whether `dir` is a directory with nothing in it but what [`create`] leaves if the process is killed in it.
pub fn is_blank(dir: &Path) -> bool {
    let ours = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|e| e.file_name() == IDENTITY || e.file_name().to_string_lossy().starts_with(".tmp"))
    };
    fs::read_dir(dir).is_ok_and(|mut entries| entries.all(ours))
}

/// Where a run may be written: for a new one nothing is at `dir`; to resume, the run there was started with the same `config`.
/// `started` reads the run file in it, written out like `config`.
///
/// # Errors
/// Usage errors that say which line differs.
pub fn check_directory(dir: &Path, config: &str, resume: bool, started: impl FnOnce() -> Result<String>) -> Result<()> {
    let place = dir.display();
    if !resume {
        return match dir.exists() && !is_blank(dir) {
            true => Err(Error::usage(format!("{place} exists; go on with --resume, or choose another --out"))),
            false => Ok(()),
        };
    }
    if !is_run(dir) {
        return Err(not_a_run(dir));
    }
    let started = started()?;
    if started == config {
        return Ok(());
    }
    let line = started.lines().zip(config.lines()).find(|(a, b)| a != b);
    let (was, is) = line.unwrap_or((&started, config));
    Err(Error::usage(format!("{place}: the run was started with `{was}`, not `{is}`; resume it with the same run file")))
}

/// Keeps a second process from training the run, until dropped.
pub fn lock(dir: &Path) -> Result<fs::File> {
    let path = dir.join(CONFIG);
    let file = fs::File::open(&path).context(path.display())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::usage(format!("{}: another process trains this run", dir.display()))),
        // A file system without locks.
        Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// Whether `dir` holds a run.
pub fn is_run(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

/// The run file of the run in `dir`.
pub fn read_config(dir: &Path) -> Result<RunConfig> {
    if !is_run(dir) {
        return Err(not_a_run(dir));
    }
    RunConfig::open(&dir.join(CONFIG), &[])
}

fn not_a_run(dir: &Path) -> Error {
    Error::usage(format!("{}: not a run directory (it holds no {CONFIG})", dir.display()))
}

/// # Errors
/// Another model than the run in `dir` was trained on.
pub fn check_llm(dir: &Path, fingerprint: &str, llm: &Path) -> Result<()> {
    match read_identity::<Identity>(dir)?.llm == fingerprint {
        true => Ok(()),
        false => Err(differs(dir, "model", &llm.display().to_string())),
    }
}

/// # Errors
/// Another model or corpus than the run in `dir` was trained on.
pub fn check_identity(dir: &Path, found: &Identity, config: &RunConfig) -> Result<()> {
    check_llm(dir, &found.llm, Path::new(&config.llm.path))?;
    let trained: Identity = read_identity(dir)?;
    if trained.corpus != found.corpus {
        return Err(differs(dir, "corpus", &config.data.corpus));
    }
    match trained.prompt == found.prompt {
        true => Ok(()),
        false => Err(differs(dir, "prompt template", config.data.prompt.as_deref().unwrap_or("this version of itemlm"))),
    }
}

/// What the run in `dir` was trained on.
pub fn read_identity<T: DeserializeOwned>(dir: &Path) -> Result<T> {
    let path = dir.join(IDENTITY);
    let text = fs::read_to_string(&path).context(path.display())?;
    serde_json::from_str(&text).context(path.display())
}

/// The error that the run was trained on another `what`.
pub fn differs(dir: &Path, what: &str, place: &str) -> Error {
    Error::failed(format!("{}: this run was trained on another {what} than {place} holds", dir.display()))
}

/// Where the finished run's weights are.
pub fn trained_dir(dir: &Path, tune: TuneKind) -> PathBuf {
    dir.join(if tune == TuneKind::Full { "model" } else { "adapter" })
}

/// `prior.json`: the prior's weight that ranked the validation windows best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChosenPrior {
    /// The run file's, with the chosen weight.
    pub prior: PriorConfig,
    /// SHA-256 of its vectors, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<String>,
    /// The optimiser step whose weights ranked.
    pub step: usize,
    /// How they ranked.
    pub decode: DecodeConfig,
    /// Windows ranked.
    pub windows: usize,
    /// All weights that were tried.
    pub tried: Vec<TriedWeight>,
}

/// A weight of the prior, and how the validation windows were ranked with it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedWeight {
    /// The weight.
    pub weight: f64,
    /// Over the ranked windows.
    #[serde(rename = "ndcg@10")]
    pub ndcg_at_10: f64,
}

impl ChosenPrior {
    /// Writes it into the run in `dir`, which from then on ranks with it.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context(PRIOR)?;
        write_atomic(&dir.join(PRIOR), json.as_bytes())
    }

    /// What was chosen for the run in `dir`; `None`, and a note, where another prior or step of it was chosen for.
    fn read(dir: &Path, prior: &PriorConfig, vectors: &Option<String>, step: usize) -> Result<Option<Self>> {
        let path = dir.join(PRIOR);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).context(path.display())?;
        let chosen: Self = serde_json::from_str(&text).context(path.display())?;
        PriorConfig::check_weight(chosen.prior.weight, "prior.weight").context(path.display())?;
        let same = chosen.step == step && chosen.vectors == *vectors;
        if same && (PriorConfig { weight: prior.weight, ..chosen.prior.clone() }) == *prior {
            return Ok(Some(chosen));
        }
        log(format_args!(
            "note: {} was chosen for another prior, other vectors or another step than the run's; its weight {} is not used but run.toml's, {}",
            path.display(),
            chosen.prior.weight,
            prior.weight
        ));
        Ok(None)
    }
}

/// Opens the run in `dir` with its best validated step's weights, or else its newest checkpoint's; its prior, if it has one, with the
/// weight chosen for that step, or else the run file's.
///
/// # Errors
/// Not a run, a run without a checkpoint, or one of another model or corpus than its run file's paths now hold.
pub fn open_run(dir: &Path, device: &DispatchDevice) -> Result<OpenRun> {
    let config = read_config(dir)?;
    let material = Material::open(&config, device)?;
    check_identity(dir, &material.identity, &config)?;
    let trained = trained(&config, &material.ranking.tokenizer);
    let Some((weights, step)) = Checkpoints::open(dir)?.selected()? else {
        return Err(Error::failed(format!("{}: no checkpoint yet; train it first", dir.display())));
    };
    let tune = match config.llm.tune {
        TuneKind::Lora => Tune::Lora(&config.llm.lora, config.seed),
        TuneKind::Full | TuneKind::Frozen => Tune::Frozen,
    };
    let llm = Llama::load(&material.llama, material.weights, tune, device)?;
    let llm = trained.load(&weights, llm, device)?;
    let mut ranking = material.ranking;
    let path = config.prior.as_ref().and_then(|prior| prior.vectors.as_deref());
    let prior_vectors = path.map(|path| Ok::<_, Error>(sha256(&fs::read(path).context(path)?))).transpose()?;
    let mut chosen = None;
    if let (Some(config), Some(prior)) = (&config.prior, &mut ranking.prior) {
        chosen = ChosenPrior::read(dir, config, &prior_vectors, step)?;
        prior.weight = chosen.as_ref().map_or(prior.weight, |chosen| chosen.prior.weight);
    }
    Ok(OpenRun { config, ranking, llm, step, prior_vectors, chosen })
}
