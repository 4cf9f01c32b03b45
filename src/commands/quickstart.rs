//! `itemlm quickstart`: the whole pipeline on generated data, with its own tokenizer and model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::DispatchDevice;
use burn::train::Interrupter;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::train::train;
use crate::config::{
    DataConfig, DecodeConfig, LlmConfig, LoraConfig, LossConfig, LossKind, Precision, PriorConfig, RunConfig, Targets,
    Temperature, TrainConfig, TuneKind,
};
use crate::core::files::{write_atomic, write_json};
use crate::data::{Corpus, Manifest, Split, Window, synthetic};
use crate::device::{BackendChoice, Concrete};
use crate::evaluate::{
    CUTOFFS, CompareOptions, Comparison, ListReport, Outcome, RankedMethod, RankedSplit, RankedWindow, Summary,
    measure, rank_split, summarise,
};
use crate::experiment::RunFiles;
use crate::model::{Decoder, DecoderConfig, Tune, save_llm_dir};
use crate::rankers::{FitContext, RankerSpec, TopK};
use crate::report::runs_page;
use crate::run::inputs::RunInputs;
use crate::run::training::TrainOptions;
use crate::run::verified_devices::verified_device;
use crate::run::{ItemRef, RecommendRequest, Session, rank_windows, write_evaluation, write_rankings};
use crate::text::{Prompt, Tokenizer};
use crate::train::Ui;
use crate::{Context, Error, Result};

const SEED: u64 = 42;
const PROMPT: &str = "short";
const MARKER: &str = "quickstart.json";
/// Directories that it makes beside the marker.
const PARTS: [&str; 8] = ["corpus", "llm", "lml", "msl", "msl-ats", "mixture", BASELINES, PAGE];
/// The mixture of counts and titles that the language model is trained and ranked on.
const MIXTURE: &str = "cooccurrence+text";
const LLM_ON_MIXTURE: &str = "LLM on cooccurrence+text";
/// The directory of rankings without a run.
const BASELINES: &str = "baselines";
const PAGE: &str = "report.html";

/// The report of `quickstart --json`.
#[derive(Debug, Clone, Serialize)]
pub struct QuickstartReport {
    /// Always true: the data are generated, the metrics say nothing about real data.
    pub synthetic: bool,
    /// Users of the corpus.
    pub users: usize,
    /// Items of the corpus.
    pub items: usize,
    /// Number of ranked test windows.
    pub windows: usize,
    /// Metrics of each ranker.
    pub results: Vec<RankerResult>,
    /// The language model on the mixture against the mixture alone: NDCG@10 on the same windows.
    pub comparison: Comparison,
    /// Three users of the test split.
    pub examples: Vec<ExampleUser>,
    /// Run directories, for `evaluate` and `recommend`.
    pub runs: Vec<PathBuf>,
    /// The report on all of them, one HTML page.
    pub page: PathBuf,
    /// Time of the whole quickstart, seconds.
    pub seconds: f64,
}

/// A ranker's metrics on the test split.
#[derive(Debug, Clone, Serialize)]
pub struct RankerResult {
    /// The ranker's name.
    pub name: String,
    /// Metrics of all, cold and warm targets.
    #[serde(flatten)]
    pub summary: Summary,
    /// The windows that the metrics are of.
    #[serde(skip)]
    outcomes: Vec<Outcome>,
}

/// A user's history, and the recommendations of the language model on the mixture.
#[derive(Debug, Clone, Serialize)]
pub struct ExampleUser {
    /// The user's id in the source.
    pub user: String,
    /// Titles of the history, oldest first.
    pub history: Vec<String>,
    /// Title of the next item.
    pub target: String,
    /// Recommended titles, best first.
    pub top: Vec<String>,
}

/// Result of a ranking of the quickstart, by the keys of `evaluation-test.json`.
#[derive(Serialize)]
struct Ranking<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    #[serde(flatten)]
    lists: ListReport,
    split: Split,
    scoring: serde_json::Value,
    beams: Option<usize>,
    corpus: &'a str,
}

/// The corpus, and where rankings of it go.
struct Results<'a> {
    dir: &'a Path,
    corpus: &'a Corpus,
    digest: String,
    /// One a ranking, for the report.
    files: Vec<RunFiles>,
}

impl Results<'_> {
    /// Writes a ranking into `place` below the quickstart's directory, and summarises it.
    ///
    /// * `decode`: of a ranking by beam search.
    fn keep(
        &mut self,
        place: &Path,
        name: &str,
        ranked: &RankedSplit,
        decode: Option<&DecodeConfig>,
    ) -> Result<RankerResult> {
        let (split, out) = (Split::Test, self.dir.join(place));
        let summary = summarise(&ranked.outcomes, SEED);
        let ranking = Ranking {
            summary: &summary,
            lists: measure(ranked, self.corpus, split, &CUTOFFS)?,
            split,
            scoring: decode.map_or(Ok(name.into()), |decode| serde_json::to_value(decode.scoring)).context(name)?,
            beams: decode.map(|decode| decode.beams),
            corpus: &self.digest,
        };
        fs::create_dir_all(&out).context(out.display())?;
        write_rankings(&out, split, ranked, &ranked.outcomes, &[], self.corpus)?;
        write_evaluation(&out, split, &ranking)?;
        self.files.push(RunFiles { name: name.into(), dir: place.into(), is_baseline: place.starts_with(BASELINES) });
        Ok(RankerResult { name: name.into(), summary, outcomes: ranked.outcomes.clone() })
    }

    /// Ranks the test windows with rankers of counts and titles, and with their mixture.
    fn rank_without_llm(&mut self, device: &DispatchDevice, say: &mut dyn FnMut(&str)) -> Result<Vec<RankerResult>> {
        let top_k = TopK::new(self.corpus);
        let depth = CUTOFFS.into_iter().max().unwrap_or(1) as usize;
        let mut rank = |name: &str| {
            let device = || Ok(device.clone());
            let (corpus, device): (_, &dyn Fn() -> _) = (self.corpus, &device);
            let mut context = FitContext { corpus, device, validate: &|_| None, metrics: None, say: &mut *say };
            let fitted = RankerSpec::new(name, toml::Table::new())?.fit(&mut context)?;
            let ranked = rank_split(&*fitted.ranker, &top_k, self.corpus, Split::Test, None, depth);
            self.keep(&Path::new(BASELINES).join(name), name, &ranked, None)
        };
        ["popularity", "markov", "cooccurrence", "text", MIXTURE].into_iter().map(&mut rank).collect()
    }

    /// Writes the report on all rankings.
    fn report(&self) -> Result<PathBuf> {
        let lead = "Synthetic data, made by a seeded generator: the numbers say nothing of real users.";
        let page = runs_page(self.dir, &self.files, Split::Test, "Quickstart", lead)?;
        let path = self.dir.join(PAGE);
        write_atomic(&path, page.as_bytes())?;
        Ok(path)
    }
}

/// Compares the language model on the mixture with the mixture, on the same windows.
fn compare(corpus: &Corpus, results: &[RankerResult]) -> Result<Comparison> {
    let windows = |name: &str| -> Vec<RankedWindow> {
        let outcomes = results.iter().filter(|result| result.name == name).flat_map(|result| &result.outcomes);
        let window = |outcome: &Outcome| RankedWindow {
            window: outcome.window,
            user: corpus.user_id(outcome.user).to_string(),
            target: corpus.title(outcome.target).to_string(),
            cold: outcome.cold,
            rank: outcome.rank,
        };
        outcomes.map(window).collect()
    };
    let (with, without) = (windows(LLM_ON_MIXTURE), windows(MIXTURE));
    let (with, without) = (
        RankedMethod { name: LLM_ON_MIXTURE.into(), seeds: vec![with.as_slice()] },
        RankedMethod { name: MIXTURE.into(), seeds: vec![without.as_slice()] },
    );
    Comparison::new(&with, &without, &CompareOptions::default())
}

/// Makes data, tokenizer and model; ranks with counts and titles, with the untrained model, with
/// the model after training with each loss, and with the model on the mixture of counts and titles.
pub fn quickstart(dir: &Path, backend: BackendChoice, say: &mut dyn FnMut(&str)) -> Result<QuickstartReport> {
    let started = Instant::now();
    let device = verified_device(&backend)?;
    fresh_directory(dir)?;

    say("1. A synthetic catalogue and log (made by a seeded generator; no real people or products)");
    let (corpus, provenance) = synthetic(SEED);
    let corpus_dir = dir.join("corpus");
    corpus.save(&corpus_dir, &provenance)?;
    let windows: Vec<(u32, Window)> = (0..).zip(corpus.windows(Split::Test).iter().copied()).collect();
    say(&format!(
        "   {} users, {} items, windows {} train / {} valid / {} test",
        corpus.users(),
        corpus.items.len(),
        corpus.windows(Split::Train).len(),
        corpus.windows(Split::Valid).len(),
        windows.len()
    ));

    say("2. A byte-level BPE tokenizer of its titles and a tiny Llama with random weights");
    let llm_dir = dir.join("llm");
    tiny_llm(&corpus, &llm_dir)?;

    say("3. Rankers without a language model: counts, titles, and both");
    let digest = Manifest::digest(&corpus_dir)?;
    let mut kept = Results { dir, corpus: &corpus, digest, files: Vec::new() };
    let mut results = kept.rank_without_llm(&device, say)?;

    say("4. The language model alone: untrained, then trained with each loss");
    let mut runs = Vec::new();
    let mut examples = Vec::new();
    for (n, (run, name, config)) in trained_runs(&corpus_dir, &llm_dir).into_iter().enumerate() {
        if name == LLM_ON_MIXTURE {
            say("5. The language model on counts and titles: it learns what they do not know");
        }
        if n == 0 {
            let ranked = rank_untrained(&config, &windows, &device)?;
            let place = Path::new(BASELINES).join("untrained");
            results.push(kept.keep(&place, "LLM, untrained", &ranked, Some(&config.decode))?);
        }
        let out = dir.join(run);
        let options = TrainOptions {
            out: out.clone(),
            backend: backend.clone(),
            resume: false,
            max_steps: None,
            ui: Ui::None,
            interrupter: Interrupter::new(),
            trust_device: false,
        };
        let report = train(&config, options)?;
        let (first, last) = (mean_loss(&out, 1)?, mean_loss(&out, config.train.epochs)?);
        say(&format!(
            "   {name}: {} steps, mean loss of an epoch {first:.3} → {last:.3}, {:.0} windows/s",
            report.steps, report.samples_per_second
        ));
        let session = Session::open(&out, &device)?;
        let ranked = rank_windows(
            std::slice::from_ref(&session.model),
            &session.context,
            Split::Test,
            &windows,
            &config.decode,
            &mut |_, _| true,
        )?;
        results.push(kept.keep(Path::new(run), name, &ranked.unwrap_or_default(), Some(&config.decode))?);
        if name == LLM_ON_MIXTURE {
            examples = example_users(&session, &windows)?;
        }
        runs.push(out);
    }

    let report = QuickstartReport {
        synthetic: true,
        users: corpus.users(),
        items: corpus.items.len(),
        windows: windows.len(),
        comparison: compare(&corpus, &results)?,
        results,
        examples,
        runs,
        page: kept.report()?,
        seconds: started.elapsed().as_secs_f64(),
    };
    write_json(&dir.join(MARKER), &report)?;
    Ok(report)
}

/// Returns the mean loss of an epoch, from 1: the loss of a single step says little, above all that
/// of the last step, which may hold one window.
fn mean_loss(run: &Path, epoch: usize) -> Result<f64> {
    let path = run.join("metrics.jsonl");
    let text = fs::read_to_string(&path).context(path.display())?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let losses: Vec<f64> = lines.filter(|l| l["epoch"] == epoch).filter_map(|l| l["loss"].as_f64()).collect();
    Ok(losses.iter().sum::<f64>() / losses.len() as f64)
}

/// Makes `dir` empty: an earlier quickstart in it is replaced, anything else is left alone.
fn fresh_directory(dir: &Path) -> Result<()> {
    if dir.exists() {
        let entries = fs::read_dir(dir).context(dir.display())?.flatten().map(|e| e.file_name());
        let made =
            |name: &std::ffi::OsString| name.to_str().is_some_and(|name| name == MARKER || PARTS.contains(&name));
        let foreign = entries.into_iter().find(|name| !made(name));
        let marked = dir.join(MARKER).exists();
        if let Some(name) = foreign.or_else(|| PARTS.iter().find(|p| !marked && dir.join(p).exists()).map(|p| p.into()))
        {
            let (dir, name) = (dir.display(), name.display());
            return Err(Error::usage(format!("{dir} holds {name}, which no quickstart made; choose another --out")));
        }
        for part in PARTS.iter().map(|part| dir.join(part)).filter(|part| part.exists()) {
            let removed = if part.is_dir() { fs::remove_dir_all(&part) } else { fs::remove_file(&part) };
            removed.context(part.display())?;
        }
    }
    fs::create_dir_all(dir).context(dir.display())?;
    write_atomic(&dir.join(MARKER), b"{}")
}

/// Returns the directory, the name and the settings of each run.
fn trained_runs(corpus: &Path, llm: &Path) -> Vec<(&'static str, &'static str, RunConfig)> {
    let alone = |kind, temperature| run_config(corpus, llm, LossConfig { kind, temperature, ..LossConfig::default() });
    vec![
        ("lml", "LLM, LML", alone(LossKind::Lml, Temperature::Fixed(1.0))),
        ("msl", "LLM, MSL", alone(LossKind::Msl, Temperature::Fixed(1.0))),
        ("msl-ats", "LLM, MSL+ATS", alone(LossKind::Msl, Temperature::Adaptive)),
        ("mixture", LLM_ON_MIXTURE, with_mixture_prior(alone(LossKind::Msl, Temperature::Fixed(1.0)))),
    ]
}

/// Puts the language model on the mixture: the mixture in the loss, every item of a window as a
/// target, and, as the rankers do, no item of the history in a list.
fn with_mixture_prior(mut config: RunConfig) -> RunConfig {
    config.train.epochs = 8;
    config.train.targets = Targets::Every;
    config.decode.exclude_history = true;
    config.prior = Some(PriorConfig {
        ranker: MIXTURE.into(),
        vectors: None,
        settings: toml::Table::new(),
        mixture: None,
        weight: 1.0,
        llm_weight: 1.0,
        smoothing: 0.1,
        in_loss: true,
    });
    config
}

fn run_config(corpus: &Path, llm: &Path, loss: LossConfig) -> RunConfig {
    RunConfig {
        seed: SEED,
        data: DataConfig { corpus: corpus.display().to_string(), prompt: Some(PROMPT.into()), ..DataConfig::default() },
        llm: LlmConfig {
            path: llm.display().to_string(),
            tune: TuneKind::Full,
            lora: LoraConfig::default(),
            adapter: None,
            precision: Precision::F32,
            quantized: false,
            layers: None,
        },
        items: Default::default(),
        loss,
        train: TrainConfig {
            epochs: 5,
            batch_size: 16,
            micro_batch_size: Some(16),
            learning_rate: 3e-3,
            warmup_steps: 100,
            checkpoint_steps: 1000,
            valid_windows: 100,
            ..TrainConfig::default()
        },
        decode: DecodeConfig::default(),
        prior: None,
    }
}

/// Makes a Llama that is small enough to train from random weights in a minute, with a tokenizer of
/// the catalogue's own words.
fn tiny_llm(corpus: &Corpus, dir: &Path) -> Result<()> {
    let prompt = Prompt::open(PROMPT)?;
    let texts =
        corpus.items.iter().map(|item| prompt.render_titles([item.title.as_str(), item.title.as_str()].into_iter()));
    let tokenizer = Tokenizer::train_bpe(texts, 512)?;
    let config = DecoderConfig::tiny(tokenizer.vocab_size());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(SEED);
    let tensors: BTreeMap<String, Vec<usize>> = config.tensors().collect();
    let tensors = tensors.into_iter().map(|(name, shape)| {
        let count = shape.iter().product();
        // Norms start at one, matrices uniform with the standard deviation 0.02 of Hugging Face's
        // initialiser.
        let values = match shape.len() {
            1 => vec![1.0; count],
            _ => (0..count).map(|_| rng.random_range(-1.0f32..1.0) * 0.02 * 3f32.sqrt()).collect(),
        };
        (name, shape, values)
    });
    save_llm_dir(dir, &config, tensors.map(Ok), &tokenizer)
}

fn rank_untrained(config: &RunConfig, windows: &[(u32, Window)], device: &DispatchDevice) -> Result<RankedSplit> {
    let RunInputs { ranking, decoder, weights, .. } = RunInputs::open(config, None, device)?;
    let llm = Decoder::<Concrete>::load(&decoder, weights, Tune::Frozen, Precision::F32, device)?;
    let ranked = rank_windows(&[llm.into()], &ranking, Split::Test, windows, &config.decode, &mut |_, _| true)?;
    Ok(ranked.unwrap_or_default())
}

fn example_users(session: &Session, windows: &[(u32, Window)]) -> Result<Vec<ExampleUser>> {
    let corpus = &session.context.corpus;
    let chosen = windows.iter().step_by((windows.len() / 3).max(1)).take(3);
    chosen
        .map(|(_, window)| {
            let history = corpus.history(window);
            let request = RecommendRequest {
                history: history.iter().map(|&item| ItemRef::Id(corpus.items[item as usize].id.clone())).collect(),
                k: 5,
                ..RecommendRequest::default()
            };
            Ok(ExampleUser {
                user: corpus.user_id(window.user).to_string(),
                history: history.iter().map(|&item| corpus.title(item).to_string()).collect(),
                target: corpus.title(corpus.target(window)).to_string(),
                top: session.recommend(&request)?.items.into_iter().map(|item| item.title).collect(),
            })
        })
        .collect()
}
