//! `itemlm align RUN.toml`: phase 1 of ILM.
//!
//! Paper: ILM, arXiv 2406.02844; BLIP-2, arXiv 2301.12597 (LAVIS) where it is silent. Steps on
//! items and their texts alternate with steps on pairs of entities; an epoch is a pass over the
//! texts. The run directory is `train`'s; see [`crate::run::qformer_artifact`] for the result.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Instant;

use burn::DispatchDevice;
use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::TensorData;
use rand::SeedableRng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::batch::TextBatch;
use crate::config::{AlignConfig, Init};
use crate::core::log::log;
use crate::device::Concrete;
use crate::evaluate::{Recall, Retrieval, retrieval};
use crate::loss::{hard_negatives, query_text_similarity};
use crate::model::{Aligner, load_module, save_module};
use crate::run::align_data::{AlignData, AlignIdentity, ItemText, Work};
use crate::run::dir as run_dir;
use crate::run::qformer_artifact::{AlignedConfig, WEIGHTS};
use crate::run::training::{FirstLast, TrainOptions};
use crate::run::verified_devices::verified_device;
use crate::tensor::AUTODIFF;
use crate::train::{
    AdamW, Checkpoints, CosineSchedule, ItemTextWeights, Ui, WeightDecay, adamw, check_device_alive, clip_grad_norm,
    item_text_losses, pair_loss, truncate_metrics,
};
use crate::{Context, Error, Result};

/// Held-out items that are encoded together.
const TOGETHER: usize = 64;
const METRICS: &str = "metrics.jsonl";
const RETRIEVAL: &str = "retrieval.jsonl";

/// What `align --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct AlignReport {
    /// The run directory.
    pub run: PathBuf,
    /// Optimiser steps of the run so far.
    pub steps: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
    /// Items with a text and pairs trained on so far.
    pub samples: usize,
    /// Spent in optimiser steps so far.
    pub seconds: f64,
    /// Of this call's optimiser steps.
    pub samples_per_second: f64,
    /// Of this process.
    pub peak_memory_bytes: u64,
    /// First and last step's; null if there was none.
    pub loss: FirstLast,
    /// Of item and text, learned.
    pub temperature: f64,
    /// Items whose text is learnt from.
    pub texts: usize,
    /// The step whose weights are kept: the epoch with the best sum of recalls; null before an
    /// epoch has ended.
    pub best_step: Option<usize>,
    /// On the held-out items, of that step; null without any.
    pub retrieval: Option<Retrieval>,
}

/// Where a run is, and what it has found so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Progress {
    step: usize,
    epoch: usize,
    position: usize,
    first_loss: Option<f64>,
    samples: usize,
    seconds: f64,
    best: Option<Best>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Best {
    step: usize,
    retrieval: Retrieval,
}

impl Best {
    /// The sum of all six recalls ("rsum"): a single one saturates where few items are held out.
    fn quality(&self) -> f64 {
        let sum = |r: &Recall| r.at_1 + r.at_5 + r.at_10;
        sum(&self.retrieval.text_to_item) + sum(&self.retrieval.item_to_text)
    }
}

/// Trains a Q-Former, or goes on training it.
///
/// # Errors
/// A run directory that exists (without `resume`) or belongs to another run file or other data; a
/// loss or gradient that is not finite; a file that cannot be read or written. The last good
/// checkpoint stays.
pub fn align(config: &AlignConfig, options: TrainOptions) -> Result<AlignReport> {
    let dir = options.out.as_path();
    let started = || AlignConfig::open(&dir.join(run_dir::CONFIG), &[])?.to_toml();
    run_dir::check_directory(dir, &config.to_toml()?, options.resume, started)?;
    let held = if options.resume { Some(run_dir::lock(dir)?) } else { None };
    let device = verified_device(&options.backend)?;
    let autodiff = DispatchDevice::autodiff(device.clone());
    let (data, qformer, identity) = AlignData::open(config)?;

    let bert = (config.qformer.init == Init::Pretrained).then(|| Path::new(&config.qformer.text));
    let (width, temperature) = (config.qformer.projection, config.loss.temperature);
    let mut aligner = Aligner::<Concrete>::new(&qformer, width, temperature, bert, config.seed, &autodiff)?;
    let mut optimizer = adamw(0.0);
    let mut progress = Progress::default();
    let _lock = match held {
        Some(lock) => {
            check_identity(dir, &identity, config)?;
            lock
        }
        None => run_dir::create(dir, &config.to_toml()?, &identity)?,
    };
    let checkpoints = Checkpoints::recovered(dir)?;
    // A new run has none.
    if let Some((checkpoint, found)) = checkpoints.latest()? {
        aligner = load_module(&checkpoint.join(WEIGHTS), aligner)?;
        optimizer = Checkpoints::load_optimizer(&checkpoint, optimizer, &device)?;
        progress = found;
    }
    truncate_metrics(&dir.join(METRICS), progress.step)?;
    truncate_metrics(&dir.join(RETRIEVAL), progress.step)?;

    let steps_per_epoch = data.plan(config, 0).len();
    let total_steps = steps_per_epoch * config.train.epochs;
    let stop_at = options.max_steps.unwrap_or(usize::MAX).min(total_steps);
    let schedule = CosineSchedule {
        peak: config.train.learning_rate,
        floor: config.train.min_learning_rate,
        start: config.train.warmup_learning_rate,
        warmup: config.train.warmup_steps,
        total: total_steps,
    };
    let plain = options.ui == Ui::Plain;
    if plain {
        log(format_args!(
            "{} items with a text to learn from, {} held out; {} item-item and {} user-item pairs; {steps_per_epoch} steps an epoch",
            data.texts.len(),
            data.held_out.len(),
            data.item_pairs.len(),
            data.user_pairs.len()
        ));
    }
    let untrained_is_known = std::fs::metadata(dir.join(RETRIEVAL)).is_ok_and(|file| file.len() > 0);
    if progress.step == 0 && !untrained_is_known && !data.held_out.is_empty() {
        report_retrieval(dir, 0, 0, &retrieve(&aligner.valid(), &data.held_out, &data, &device), plain)?;
    }

    let (mut last_loss, mut seconds, mut samples) = (None, 0.0, 0);
    let mut interrupted = false;
    'epochs: while progress.epoch < config.train.epochs {
        let plan = data.plan(config, progress.epoch);
        for work in plan.iter().skip(progress.position) {
            if progress.step >= stop_at || options.interrupter.should_stop() {
                interrupted = true;
                break 'epochs;
            }
            let began = Instant::now();
            let lr = schedule.at(progress.step);
            let done = Step { config, data: &data, work, number: progress.step + 1, lr, device: &autodiff };
            let (trained, done) = done.run(aligner, &mut optimizer)?;
            aligner = trained;
            let took = began.elapsed().as_secs_f64();
            progress.step += 1;
            progress.position += 1;
            progress.first_loss.get_or_insert(done.loss);
            progress.samples += done.samples;
            progress.seconds += took;
            (last_loss, seconds, samples) = (Some(done.loss), seconds + took, samples + done.samples);
            let mut line = json!({
                "step": progress.step, "epoch": progress.epoch + 1, "loss": done.loss, "lr": lr, "grad_norm": done.grad_norm,
                "temperature": scalar(&aligner.temperature.val()), "pair_temperature": scalar(&aligner.pair_temperature.val()),
                "tokens": done.tokens, "seconds": took,
            });
            let mut parts = String::new();
            for (name, value) in &done.parts {
                line[name] = json!(value);
                parts += &format!("  {name} {value:.4}");
            }
            append(&dir.join(METRICS), &line)?;
            if plain {
                let (step, epoch, norm) = (progress.step, progress.epoch + 1, done.grad_norm);
                log(format_args!(
                    "step {step}/{total_steps}  epoch {epoch}  loss {:.4}{parts}  lr {lr:.2e}  gradient norm {norm:.3}  {took:.2} s",
                    done.loss
                ));
            }
        }
        if !data.held_out.is_empty() {
            let found = retrieve(&aligner.valid(), &data.held_out, &data, &device);
            check_device_alive(progress.step)?;
            report_retrieval(dir, progress.epoch + 1, progress.step, &found, plain)?;
            let found = Best { step: progress.step, retrieval: found };
            if progress.best.is_none_or(|best| found.quality() > best.quality()) {
                progress.best = Some(found);
            }
        }
        progress.epoch += 1;
        progress.position = 0;
        let weights = |dir: &Path| save_module(&dir.join(WEIGHTS), &aligner);
        checkpoints.save(progress.step, &progress, &optimizer, weights)?;
    }
    if interrupted {
        let weights = |dir: &Path| save_module(&dir.join(WEIGHTS), &aligner);
        checkpoints.save(progress.step, &progress, &optimizer, weights)?;
    } else if let Some((best, step)) = checkpoints.selected()? {
        AlignedConfig { format: 1, step, projection: width, identity, qformer }.publish(dir, &best)?;
    }
    Ok(AlignReport {
        run: dir.to_path_buf(),
        steps: progress.step,
        total_steps,
        samples: progress.samples,
        seconds: progress.seconds,
        samples_per_second: if seconds > 0.0 { samples as f64 / seconds } else { 0.0 },
        peak_memory_bytes: crate::core::system::peak_bytes(),
        loss: FirstLast { first: progress.first_loss, last: last_loss },
        temperature: scalar(&aligner.temperature.val()),
        texts: data.texts.len(),
        best_step: progress.best.map(|best| best.step),
        retrieval: progress.best.map(|best| best.retrieval),
    })
}

/// One optimiser step to take.
struct Step<'a> {
    config: &'a AlignConfig,
    data: &'a AlignData,
    work: &'a Work,
    number: usize,
    lr: f64,
    device: &'a DispatchDevice,
}

/// What it found.
struct Done {
    loss: f64,
    parts: Vec<(&'static str, f64)>,
    grad_norm: f64,
    samples: usize,
    tokens: usize,
}

type AlignerAdamW = AdamW<Aligner<Concrete>, Concrete>;

impl Step<'_> {
    fn run(&self, aligner: Aligner<Concrete>, optimizer: &mut AlignerAdamW) -> Result<(Aligner<Concrete>, Done)> {
        let _one_graph = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
        let (config, loss) = (self.config, &self.config.loss);
        let seed = config.seed.wrapping_add((self.number as u64) << 20);
        // Of dropout.
        <Concrete as Backend>::seed(self.device, seed);
        let (tokens, samples);
        let losses = match self.work {
            Work::ItemTexts(texts) => {
                let texts: Vec<&ItemText> = texts.iter().map(|&t| &self.data.texts[t]).collect();
                let (vectors, text) = lay_out(&texts, self.data, self.device);
                (tokens, samples) = (text.len(), texts.len());
                let weights = ItemTextWeights {
                    contrastive: loss.item_text_contrastive,
                    generation: loss.item_grounded_generation,
                    matching: loss.item_text_matching,
                };
                let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
                let tokens: Vec<&[u32]> = texts.iter().map(|text| text.tokens.as_slice()).collect();
                let negatives = |similarity: &[f32]| hard_negatives(similarity, &tokens, &mut rng);
                item_text_losses(&aligner, vectors, &text, &weights, loss.label_smoothing, negatives)
            }
            Work::Pairs { items, users } => {
                (tokens, samples) = (0, items.len() + users.len());
                let contrast = |pairs: &[[u32; 2]]| {
                    let side = |s: usize| vectors(self.data, pairs.iter().map(|pair| pair[s]), self.device);
                    pair_loss(&aligner, side(0), side(1), loss.label_smoothing)
                };
                let kinds = [("ii", loss.item_item, items), ("ui", loss.user_item, users)];
                let kinds = kinds.into_iter().filter(|(_, _, pairs)| !pairs.is_empty());
                kinds.map(|(name, weight, pairs)| (name, weight, contrast(pairs))).collect()
            }
        };
        let value = |tensor: &Tensor<Concrete, 1>| tensor.clone().into_scalar().elem::<f64>();
        let parts = losses.iter().map(|(name, _, loss)| (*name, value(loss))).collect();
        let total = losses.into_iter().map(|(_, weight, loss)| loss.mul_scalar(weight)).reduce(|a, b| a + b);
        let total = total.ok_or_else(|| Error::failed("a step without a loss"))?;
        let loss = value(&total);
        self.finite("loss", loss)?;
        let mut grads = GradientsParams::from_grads(total.backward(), &aligner);
        let grad_norm = clip_grad_norm(&aligner, &mut grads, config.train.max_grad_norm);
        self.finite("gradient norm", grad_norm)?;
        let aligner = WeightDecay::apply(aligner, &grads, self.lr * config.train.weight_decay);
        let aligner = optimizer.step(self.lr, aligner, grads).clamp_temperatures();
        check_device_alive(self.number)?;
        Ok((aligner, Done { loss, parts, grad_norm, samples, tokens }))
    }

    fn finite(&self, what: &str, value: f64) -> Result<()> {
        match value.is_finite() {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "step {}: the {what} is {value}; the run stopped before using it and its last checkpoint is kept; start a new one with a \
                 lower train.learning_rate",
                self.number
            ))),
        }
    }
}

/// Entities' vectors, `[n, 1, dim]`.
fn vectors(data: &AlignData, entities: impl Iterator<Item = u32>, device: &DispatchDevice) -> Tensor<Concrete, 3> {
    let values: Vec<f32> = entities.flat_map(|entity| data.vector(entity)).copied().collect();
    let n = values.len() / data.dim;
    Tensor::from_data(TensorData::new(values, [n, 1, data.dim]), device)
}

fn lay_out(texts: &[&ItemText], data: &AlignData, device: &DispatchDevice) -> (Tensor<Concrete, 3>, TextBatch) {
    let text = TextBatch::new(texts.iter().map(|text| text.tokens.as_slice()));
    (vectors(data, texts.iter().map(|text| text.item), device), text)
}

/// How well items and texts find one another among `texts`.
fn retrieve(aligner: &Aligner<Concrete>, texts: &[ItemText], data: &AlignData, device: &DispatchDevice) -> Retrieval {
    let texts: Vec<&ItemText> = texts.iter().collect();
    let (mut of_items, mut of_texts) = (Vec::new(), Vec::new());
    for together in texts.chunks(TOGETHER) {
        let (vectors, text) = lay_out(together, data, device);
        of_items.push(aligner.query_features(aligner.qformer.encode(vectors)));
        of_texts.push(aligner.text_features(aligner.qformer.encode_text(&text)));
    }
    let of_texts = Tensor::cat(of_texts, 0);
    let rows =
        of_items.into_iter().map(|items| query_text_similarity(items, of_texts.clone()).into_data().convert::<f32>());
    let similarity: Vec<f32> = rows.flat_map(|rows| rows.to_vec::<f32>().unwrap_or_default()).collect();
    retrieval(&similarity, texts.len())
}

fn report_retrieval(dir: &Path, epoch: usize, step: usize, found: &Retrieval, plain: bool) -> Result<()> {
    let mut line = serde_json::to_value(found).context(RETRIEVAL)?;
    line["epoch"] = json!(epoch);
    line["step"] = json!(step);
    append(&dir.join(RETRIEVAL), &line)?;
    if plain {
        let (t, i) = (&found.text_to_item, &found.item_to_text);
        log(format_args!(
            "epoch {epoch}  {} held-out items, recall@1/5/10  text→item {:.4} {:.4} {:.4}  item→text {:.4} {:.4} {:.4}",
            found.items, t.at_1, t.at_5, t.at_10, i.at_1, i.at_5, i.at_10
        ));
    }
    Ok(())
}

fn append(path: &Path, line: &serde_json::Value) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).context(path.display())
}

fn scalar(tensor: &Tensor<Concrete, 1>) -> f64 {
    tensor.clone().into_scalar().elem()
}

fn check_identity(dir: &Path, found: &AlignIdentity, config: &AlignConfig) -> Result<()> {
    let trained: AlignIdentity = run_dir::read_identity(dir)?;
    for (what, was, is, place) in [
        ("corpus", &trained.corpus, &found.corpus, &config.data.corpus),
        ("set of vectors", &trained.vectors, &found.vectors, &config.data.vectors),
        ("set of ids", &trained.ids, &found.ids, &config.data.vectors),
        ("tokenizer", &trained.tokenizer, &found.tokenizer, &config.qformer.text),
        ("Q-Former", &trained.qformer, &found.qformer, &config.qformer.text),
    ] {
        if was != is {
            return Err(run_dir::differs(dir, what, place));
        }
    }
    Ok(())
}
