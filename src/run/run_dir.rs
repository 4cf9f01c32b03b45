//! What a run directory holds, and opening one to rank with.
//!
//! `run.toml` (the resolved run file), `identity.json` (of the model and the corpus),
//! `metrics.jsonl`, `checkpoints/`, once trained, `adapter/` (PEFT), `model/` (Hugging Face) or
//! `encoder/`, and, once chosen, `prior.json` (the prior's weight).

use std::fs;
use std::path::{Path, PathBuf};

use burn::DispatchDevice;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::entities::{EntitiesIdentity, EntityMaterial};
use super::prompt_context::{PromptContext, names};
use super::prompt_selection::{PromptSelection, open_prompt_sets};
use super::text_tasks::{TextTaskData, open_text_tasks};
use crate::config::{DecodeConfig, PriorConfig, RankerName, RunConfig, TuneKind};
use crate::core::files::{sha256, write_atomic};
use crate::core::log::log;
use crate::data::Corpus;
use crate::decode::TriePrior;
use crate::device::Concrete;
use crate::model::{Decoder, DecoderConfig, ItemLanguageModel, QuantizedSize, Tune, Weights, open_llm};
use crate::rankers::Distribution;
use crate::rankers::fit;
use crate::text::{Catalogue, Prompt, PromptSet, Tokenizer};
use crate::train::{Checkpoints, Trained};
use crate::{Context, Error, Result};

pub(crate) const CONFIG: &str = "run.toml";
const IDENTITY: &str = "identity.json";
const PRIOR: &str = "prior.json";
/// Empty; whoever trains the run holds its lock.
const LOCK: &str = ".lock";

/// Which model and corpus a run was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the base model: see [`crate::model::Llm::fingerprint`].
    pub llm: String,
    /// SHA-256 of the corpus's `corpus.toml`, which holds its files' digests.
    pub corpus: String,
    /// SHA-256 of the prompt template, of all templates of the prompt sets, or of those of the text
    /// tasks.
    pub prompt: String,
    /// SHA-256 of the file of text tasks' rows, where the run learns such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
    /// Of the vectors and the encoder of items and users, where the prompt has such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entities: Option<EntitiesIdentity>,
}

/// What a run file names, opened; the weights still on disk.
pub struct RunInputs {
    /// Corpus, prompt, tokenizer, catalogue.
    pub ranking: PromptContext,
    /// The run's prompt sets; empty for a run with one prompt. The ranking's prompt is then the
    /// first seen prompt of the first set.
    pub prompt_sets: Vec<PromptSet>,
    /// The base model's sizes.
    pub llama: DecoderConfig,
    /// The base model's weights.
    pub weights: Weights,
    /// What of them stays quantised, by llm.quantized.
    pub quantized: Option<QuantizedSize>,
    /// Vectors and encoder of items and users.
    pub entities: Option<EntityMaterial>,
    /// Rows of text tasks, which the run learns in place of windows.
    pub text_tasks: Option<TextTaskData>,
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
        let prompt_sets = open_prompt_sets(&config.data)?;
        let prompt = match PromptSelection::default().one(&prompt_sets)? {
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
            rows: text_tasks.as_ref().map(|tasks| tasks.digest.clone()),
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
        Ok(Self {
            ranking,
            prompt_sets,
            text_tasks,
            llama: llm.config,
            weights: llm.weights,
            quantized,
            entities,
            identity,
        })
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

/// What a checkpoint of `config`'s run holds of the LLM.
pub fn trained(config: &RunConfig, tokenizer: &Tokenizer) -> Trained {
    match config.llm.tune {
        TuneKind::Full => Trained::Weights(Box::new(tokenizer.clone())),
        TuneKind::Lora => Trained::Adapter(config.llm.lora.clone(), config.llm.path.clone()),
        TuneKind::Frozen => Trained::Encoder,
    }
}

/// A trained run, ready to rank.
pub struct OpenRun {
    /// Its run file.
    pub config: RunConfig,
    /// Its corpus, prompt, tokenizer and catalogue.
    pub ranking: PromptContext,
    /// The run's prompt sets; empty for a run with one prompt. The ranking's prompt is then the
    /// first seen prompt of the first set.
    pub prompt_sets: Vec<PromptSet>,
    /// The rows of text tasks that the run learnt in place of windows.
    pub text_tasks: Option<TextTaskData>,
    /// The tuned model.
    pub model: ItemLanguageModel<Concrete>,
    /// The optimiser step it is of.
    pub step: usize,
    /// SHA-256 of its prior's vectors, if it has any.
    pub prior_vectors: Option<String>,
    /// How its prior's weight was chosen, if it was.
    pub chosen: Option<ChosenPrior>,
}

/// Writes `run.toml` and `identity.json` of a new run, and locks it.
///
/// # Errors
/// A usage error where another process has begun a run in `dir`.
pub fn create(dir: &Path, config: &str, identity: &impl Serialize) -> Result<fs::File> {
    fs::create_dir_all(dir).context(dir.display())?;
    let lock = lock(dir)?;
    // While the model was loaded here, another process may have been faster.
    if !is_blank(dir) {
        return Err(taken(dir));
    }
    let json = serde_json::to_string_pretty(identity).context(IDENTITY)?;
    write_atomic(&dir.join(IDENTITY), json.as_bytes())?;
    write_atomic(&dir.join(CONFIG), config.as_bytes())?;
    Ok(lock)
}

fn taken(dir: &Path) -> Error {
    Error::usage(format!("{} exists; go on with --resume, or choose another --out", dir.display()))
}

/// Whether `dir` is a directory with nothing in it but what [`create`] leaves if the process is
/// killed in it.
pub fn is_blank(dir: &Path) -> bool {
    let ours = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|e| {
            let name = e.file_name();
            name == IDENTITY || name == LOCK || name.to_string_lossy().starts_with(".tmp")
        })
    };
    fs::read_dir(dir).is_ok_and(|mut entries| entries.all(ours))
}

/// Where a run may be written: for a new one nothing is at `dir`; to resume, the run there was
/// started with the same `config`. `started` reads the run file in it, written out like `config`.
///
/// # Errors
/// Usage errors that say which line differs.
pub fn check_directory(dir: &Path, config: &str, resume: bool, started: impl FnOnce() -> Result<String>) -> Result<()> {
    let place = dir.display();
    if !resume {
        return match dir.exists() && !is_blank(dir) {
            true => Err(taken(dir)),
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
    Err(Error::usage(format!(
        "{place}: the run was started with `{was}`, not `{is}`; resume it with the same run file"
    )))
}

/// Keeps a second process from training the run, until dropped.
pub fn lock(dir: &Path) -> Result<fs::File> {
    let path = dir.join(LOCK);
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path).context(path.display())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::usage(format!("{}: another process trains this run", dir.display())))
        }
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
/// Another model, corpus, prompt, rows or vectors than the run in `dir` was trained on.
pub fn check_identity(dir: &Path, found: &Identity, config: &RunConfig) -> Result<()> {
    check_llm(dir, &found.llm, Path::new(&config.llm.path))?;
    let trained: Identity = read_identity(dir)?;
    if trained.corpus != found.corpus {
        return Err(differs(dir, "corpus", &config.data.corpus));
    }
    if trained.rows != found.rows {
        return Err(differs(dir, "file of rows", config.data.text_tasks.as_deref().unwrap_or("its run file")));
    }
    if trained.prompt != found.prompt {
        return Err(differs(dir, "prompt template", config.data.prompt.as_deref().unwrap_or("this version of itemlm")));
    }
    match trained.entities == found.entities {
        true => Ok(()),
        false => Err(differs(dir, "file of vectors", config.items.vectors.as_deref().unwrap_or("its run file"))),
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
    dir.join(match tune {
        TuneKind::Full => "model",
        TuneKind::Lora => "adapter",
        TuneKind::Frozen => "encoder",
    })
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
    /// By which task and prompt, of a run with tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
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

    /// What was chosen for the run in `dir`; `None`, and a note, where another prior or step of it
    /// was chosen for.
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

/// Opens the run in `dir` with its best validated step's weights, or else its newest checkpoint's;
/// its prior, if it has one, with the weight chosen for that step, or else the run file's.
///
/// # Errors
/// Not a run, a run without a checkpoint, or one of another model or corpus than its run file's
/// paths now hold.
pub fn open_run(dir: &Path, device: &DispatchDevice) -> Result<OpenRun> {
    open_run_as(dir, read_config(dir)?, device)
}

/// As [`open_run`], by `config` in place of its run file.
pub(crate) fn open_run_as(dir: &Path, config: RunConfig, device: &DispatchDevice) -> Result<OpenRun> {
    let started: Identity = read_identity(dir)?;
    let material = RunInputs::open(&config, Some(&started), device)?;
    check_identity(dir, &material.identity, &config)?;
    let trained = trained(&config, &material.ranking.tokenizer);
    let Some((weights, step)) = Checkpoints::open(dir)?.selected()? else {
        return Err(Error::failed(format!("{}: no checkpoint yet; train it first", dir.display())));
    };
    let tune = match config.llm.tune {
        TuneKind::Lora => Tune::Lora(&config.llm.lora, config.seed),
        TuneKind::Full | TuneKind::Frozen => Tune::Frozen,
    };
    crate::run::precision(config.llm.precision, device)?;
    let llm = Decoder::load(&material.llama, material.weights, tune, config.llm.precision, device)?;
    let model = match material.entities {
        Some(entities) => entities.blank(llm, device)?,
        None => llm.into(),
    };
    let model = trained.load(&weights, model, device)?;
    let mut ranking = material.ranking;
    let path = config.prior.as_ref().and_then(|prior| prior.vectors.as_deref());
    let prior_vectors = path.map(|path| Ok::<_, Error>(sha256(&fs::read(path).context(path)?))).transpose()?;
    let mut chosen = None;
    if let (Some(config), Some(prior)) = (&config.prior, &mut ranking.prior) {
        chosen = ChosenPrior::read(dir, config, &prior_vectors, step)?;
        prior.weight = chosen.as_ref().map_or(prior.weight, |chosen| chosen.prior.weight);
    }
    Ok(OpenRun {
        config,
        ranking,
        prompt_sets: material.prompt_sets,
        text_tasks: material.text_tasks,
        model,
        step,
        prior_vectors,
        chosen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two that found nothing at `--out` and loaded their models meanwhile.
    #[test]
    fn one_of_two_processes_begins_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let error = |config: &str| create(dir.path(), config, &"of the second").unwrap_err().to_string();
        let first = create(dir.path(), "first", &"of the first").unwrap();
        assert!(error("second").ends_with("another process trains this run"));
        drop(first);
        assert!(error("second").contains("exists; go on with --resume"));
        assert_eq!(fs::read_to_string(dir.path().join(CONFIG)).unwrap(), "first");
        assert_eq!(read_identity::<String>(dir.path()).unwrap(), "of the first");
    }
}
