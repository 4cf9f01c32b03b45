//! `itemlm score --llm PATH --catalogue FILE --input FILE.jsonl`

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Encoder, LoraConfig, Precision, RunConfig};
use crate::decode;
use crate::device::{BackendChoice, Concrete};
use crate::model::{Decoder, Tune, load_adapter, open_llm, open_llm_of_run, read_adapter_config};
use crate::run::identity::{Identity, check_llm};
use crate::run::precision::check_precision;
use crate::run::verified_devices::verified_device;
use crate::run::{dir, prompt_context};
use crate::text::Catalogue;
use crate::train::{Checkpoints, TrainedWeights};
use crate::{Context, Error, Result};

/// Options of `score`.
pub struct ScoreOptions {
    /// The base model.
    pub llm: PathBuf,
    /// A run whose trained weights are used, or an adapter in PEFT's format.
    pub adapter: Option<PathBuf>,
    /// The catalogue: a file with one item text a line.
    pub catalogue: PathBuf,
    /// The input: JSON lines of prompt and items.
    pub input: PathBuf,
    /// The device.
    pub backend: BackendChoice,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    items: Vec<String>,
}

#[derive(Serialize)]
struct Scores {
    full: Vec<f64>,
    masked: Vec<f64>,
}

/// The directory that `--adapter` names.
enum Adapter<'a> {
    /// A run directory.
    Run { dir: &'a Path, config: Box<RunConfig>, identity: Box<Identity> },
    /// A directory in PEFT's format.
    Peft { dir: &'a Path, lora: LoraConfig },
}

impl<'a> Adapter<'a> {
    fn open(dir: &'a Path) -> Result<Self> {
        if !dir.join("run.toml").exists() && dir.join("adapter_config.json").exists() {
            return Ok(Self::Peft { dir, lora: read_adapter_config(dir)? });
        }
        let config = dir::read_config(dir)?;
        if config.items.encoder != Encoder::None {
            return Err(Error::usage(format!(
                "--adapter {}: its prompts hold vectors, a prompt of text alone does not",
                dir.display()
            )));
        }
        Ok(Self::Run { dir, config: Box::new(config), identity: Box::new(dir::read_identity(dir)?) })
    }

    fn config(&self) -> Option<&RunConfig> {
        match self {
            Self::Run { config, .. } => Some(config),
            Self::Peft { .. } => None,
        }
    }

    fn tune(&self) -> Tune<'_> {
        match self {
            Self::Run { config, .. } => Tune::inference(&config.llm, config.seed),
            Self::Peft { lora, .. } => Tune::Lora(lora, 0),
        }
    }
}

/// Writes a line of `{"full": […], "masked": […]}` for each line of the input.
///
/// # Errors
/// Bad files, and items that are not in the catalogue, by file and line.
pub fn score(options: &ScoreOptions, out: &mut dyn Write) -> Result<()> {
    let device = verified_device(&options.backend)?;
    let adapter = options.adapter.as_deref().map(Adapter::open).transpose()?;
    let mut opened = match &adapter {
        Some(Adapter::Run { config, identity, .. }) => open_llm_of_run(&options.llm, config.llm.layers, &identity.llm)?,
        _ => open_llm(&options.llm)?,
    };
    if let Some(Adapter::Run { identity, .. }) = &adapter {
        opened.tokenizer = opened.tokenizer.with_bos(Some(identity.puts_bos_first()))?;
    }
    let place = options.catalogue.display();
    let text = std::fs::read_to_string(&options.catalogue).context(&place)?;
    let titles: Vec<&str> = text.lines().collect();
    if let Some(line) = titles.iter().position(|title| title.trim().is_empty()) {
        return Err(Error::failed(format!("{place}:{}: the line is empty, not a title", line + 1)));
    }
    let catalogue = Catalogue::new(&opened.tokenizer, titles.iter().copied()).context(place)?;
    let items: HashMap<&str, u32> = titles.iter().zip(0..).map(|(title, item)| (*title, item)).collect();

    let tune = adapter.as_ref().map_or(Tune::Frozen, Adapter::tune);
    let context = opened.config.max_position_embeddings;
    let run = adapter.as_ref().and_then(Adapter::config);
    let precision = run.map_or(Precision::F32, |config| config.llm.precision);
    check_precision(precision, &device)?;
    if run.is_some_and(|config| config.llm.quantized) {
        opened.weights.keep_quantized()?;
    }
    let mut llm = Decoder::<Concrete>::load(&opened.config, opened.weights, tune, precision, &device)?;
    match &adapter {
        None => {}
        Some(Adapter::Peft { dir, .. }) => llm = load_adapter(dir, llm, &device)?,
        Some(Adapter::Run { dir, config, .. }) => {
            check_llm(dir, &opened.fingerprint, &options.llm)?;
            let Some((weights, _)) = Checkpoints::open(dir)?.selected_checkpoint()? else {
                return Err(Error::failed(format!("{}: no checkpoint yet; train it first", dir.display())));
            };
            llm = TrainedWeights::from_config(&config.llm, &opened.tokenizer).load_llm(&weights, llm, &device)?;
        }
    }

    let file = File::open(&options.input).context(options.input.display())?;
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let place = format!("{}:{}", options.input.display(), number + 1);
        let line: Line = serde_json::from_str(&line.context(&place)?).context(&place)?;
        let known = |item: &String| {
            let id = items.get(item.as_str()).copied();
            id.ok_or_else(|| Error::failed(format!("{place}: {item:?} is not in {}", options.catalogue.display())))
        };
        let ids = line.items.iter().map(known).collect::<Result<Vec<_>>>()?;
        let prompt = opened.tokenizer.encode_prompt(&line.prompt).context(&place)?;
        if prompt.len() == opened.tokenizer.prefix().len() {
            return Err(Error::failed(format!("{place}: the prompt is empty")));
        }
        prompt_context::check_context(prompt.len(), &catalogue, context).context(&place)?;
        let scores = decode::score(&llm, &catalogue, &prompt, &ids, &device).context(&place)?;
        decode::check_log_probs(scores.iter().map(|s| s.full + s.masked)).context(&place)?;
        let (full, masked) = scores.iter().map(|s| (s.full, s.masked)).unzip();
        let json = serde_json::to_string(&Scores { full, masked }).context(&place)?;
        writeln!(out, "{json}").context("stdout")?;
    }
    Ok(())
}
