//! `itemlm score --llm PATH --catalogue FILE --input FILE.jsonl`

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Encoder, Precision};
use crate::decode;
use crate::device::{BackendChoice, Concrete};
use crate::model::{Decoder, Tune, open_llm};
use crate::run::identity::check_llm;
use crate::run::precision::check_precision;
use crate::run::verified_devices::verified_device;
use crate::run::{dir, prompt_context};
use crate::text::Catalogue;
use crate::train::{Checkpoints, Trained};
use crate::{Context, Error, Result};

/// What the command line decides.
pub struct ScoreOptions {
    /// The base model.
    pub llm: PathBuf,
    /// A run whose tuned weights to use.
    pub adapter: Option<PathBuf>,
    /// One item text a line.
    pub catalogue: PathBuf,
    /// JSON lines of prompt and items.
    pub input: PathBuf,
    /// Where to run.
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

/// Writes a line of `{"full": […], "masked": […]}` for each line of the input.
///
/// # Errors
/// Bad files, and items that are not in the catalogue, by file and line.
pub fn score(options: &ScoreOptions, out: &mut dyn Write) -> Result<()> {
    let device = verified_device(&options.backend)?;
    let mut opened = open_llm(&options.llm)?;
    let place = options.catalogue.display();
    let text = std::fs::read_to_string(&options.catalogue).context(&place)?;
    let titles: Vec<&str> = text.lines().collect();
    if let Some(line) = titles.iter().position(|title| title.trim().is_empty()) {
        return Err(Error::failed(format!("{place}:{}: the line is empty, not a title", line + 1)));
    }
    let catalogue = Catalogue::new(&opened.tokenizer, titles.iter().copied()).context(place)?;
    let items: HashMap<&str, u32> = titles.iter().zip(0..).map(|(title, item)| (*title, item)).collect();

    let run = options.adapter.as_ref().map(|run_dir| Ok((run_dir, dir::read_config(run_dir)?))).transpose()?;
    if let Some((run_dir, _)) = run.as_ref().filter(|(_, config)| config.items.encoder != Encoder::None) {
        return Err(Error::usage(format!(
            "--adapter {}: its prompts hold vectors, a prompt of text alone does not",
            run_dir.display()
        )));
    }
    let tune = run.as_ref().map_or(Tune::Frozen, |(_, config)| Tune::inference(&config.llm, config.seed));
    let context = opened.config.max_position_embeddings;
    let precision = run.as_ref().map_or(Precision::F32, |(_, config)| config.llm.precision);
    check_precision(precision, &device)?;
    if run.as_ref().is_some_and(|(_, config)| config.llm.quantized) {
        opened.weights.keep_quantized()?;
    }
    let mut llm = Decoder::<Concrete>::load(&opened.config, opened.weights, tune, precision, &device)?;
    if let Some((run_dir, config)) = &run {
        check_llm(run_dir, &opened.fingerprint, &options.llm)?;
        let Some((weights, _)) = Checkpoints::open(run_dir)?.selected()? else {
            return Err(Error::failed(format!("{}: no checkpoint yet; train it first", run_dir.display())));
        };
        llm = Trained::of(&config.llm, &opened.tokenizer).load_llm(&weights, llm, &device)?;
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
        let prompt = opened.tokenizer.encode(&line.prompt).context(&place)?;
        if prompt.is_empty() {
            return Err(Error::failed(format!("{place}: the prompt is empty")));
        }
        prompt_context::check_context(prompt.len(), &catalogue, context).context(&place)?;
        let scores = decode::score(&llm, &catalogue, &prompt, &ids, &device);
        decode::check_log_probs(scores.iter().map(|s| s.full + s.masked)).context(&place)?;
        let (full, masked) = scores.iter().map(|s| (s.full, s.masked)).unzip();
        let json = serde_json::to_string(&Scores { full, masked }).context(&place)?;
        writeln!(out, "{json}").context("stdout")?;
    }
    Ok(())
}
