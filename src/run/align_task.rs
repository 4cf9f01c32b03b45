//! Phase 1 of ILM as a [`Task`] of the training loop: optimiser steps on items and their texts, in
//! turn with steps on pairs of entities.
//!
//! Paper: ILM, arXiv 2406.02844; where it is silent, BLIP-2, arXiv 2301.12597 (LAVIS).

use std::path::Path;
use std::sync::PoisonError;

use burn::DispatchDevice;
use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::TensorData;
use rand::SeedableRng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::align_data::{AlignData, ItemText, Work};
use super::qformer_artifact::WEIGHTS;
use crate::batch::TextBatch;
use crate::config::AlignConfig;
use crate::device::Concrete;
use crate::evaluate::{Recall, Retrieval, retrieval};
use crate::loss::{hard_negatives, query_text_similarity};
use crate::model::{Aligner, save_module};
use crate::tensor::{AUTODIFF, scalar, to_vec};
use crate::train::{
    AdamW, Checkpoints, CosineSchedule, ItemTextWeights, MetricsLog, Progress, Score, StepReport, Task, Validation,
    WeightDecay, WeightedLoss, check_device_alive, check_finite, clip_grad_norm, item_text_losses, pair_loss,
};
use crate::{Context, Error, Result};

/// Number of held-out items that are encoded together.
const RETRIEVAL_BATCH: usize = 64;
/// The file of a run directory with the held-out items' recalls after each epoch.
pub(crate) const RETRIEVAL: &str = "retrieval.jsonl";
/// The remedy for a loss that is not finite.
const REMEDY: &str = "its last checkpoint is kept; start a new one with a lower train.learning_rate";

/// Retrieval of held-out items and texts at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetrievalScore {
    /// Recalls in both directions.
    pub retrieval: Retrieval,
}

impl Score for RetrievalScore {
    /// Compares the sums of all six recalls ("rsum"): a single one saturates where few items are
    /// held out.
    fn is_better_than(&self, other: &Self) -> bool {
        let sum = |r: &Recall| r.at_1 + r.at_5 + r.at_10;
        let all = |score: &Self| sum(&score.retrieval.text_to_item) + sum(&score.retrieval.item_to_text);
        all(self) > all(other)
    }

    fn describe(&self) -> String {
        let Retrieval { items, text_to_item: t, item_to_text: i } = &self.retrieval;
        format!(
            "{items} held-out items, recall@1/5/10  text→item {:.4} {:.4} {:.4}  item→text {:.4} {:.4} {:.4}",
            t.at_1, t.at_5, t.at_10, i.at_1, i.at_5, i.at_10
        )
    }

    fn curves(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("Recall@10 text→item", self.retrieval.text_to_item.at_10),
            ("Recall@10 item→text", self.retrieval.item_to_text.at_10),
        ]
    }
}

/// The training task of a Q-Former, on items, their texts and their pairs.
pub(crate) struct AlignTask<'a> {
    pub config: &'a AlignConfig,
    pub data: &'a AlignData,
    pub aligner: Aligner<Concrete>,
    pub optimizer: AdamW<Aligner<Concrete>, Concrete>,
    pub checkpoints: Checkpoints,
    /// The file [`RETRIEVAL`].
    pub retrievals: MetricsLog,
    /// The device, without gradients.
    pub device: DispatchDevice,
}

impl AlignTask<'_> {
    fn autodiff(&self) -> DispatchDevice {
        DispatchDevice::autodiff(self.device.clone())
    }

    fn schedule(&self) -> CosineSchedule {
        let train = &self.config.train;
        CosineSchedule {
            peak: train.learning_rate,
            floor: train.min_learning_rate,
            start: train.warmup_learning_rate,
            warmup: train.warmup_steps,
            total: self.steps_per_epoch() * train.epochs,
        }
    }

    /// Measures the retrieval of the held-out items and texts, and adds a line to [`RETRIEVAL`];
    /// `None` if no item is held out.
    ///
    /// * `epoch`: number of epochs done.
    /// * `step`: number of optimiser steps done.
    ///
    /// # Errors
    /// A device that failed, a file that cannot be written.
    pub(crate) fn measure(&self, epoch: usize, step: usize) -> Result<Option<RetrievalScore>> {
        if self.data.held_out.is_empty() {
            return Ok(None);
        }
        let found = retrieve(&self.aligner.valid(), &self.data.held_out, self.data, &self.device)?;
        check_device_alive(step)?;
        let mut line = serde_json::to_value(found).context(RETRIEVAL)?;
        line["epoch"] = json!(epoch);
        line["step"] = json!(step);
        self.retrievals.append(&line)?;
        Ok(Some(RetrievalScore { retrieval: found }))
    }

    /// Computes the losses of one step; also returns its number of samples and of tokens.
    fn losses(&self, seed: u64, work: &Work) -> Result<(Vec<WeightedLoss<Concrete>>, usize, usize)> {
        let (config, device) = (self.config, self.autodiff());
        match work {
            Work::ItemTexts(texts) => {
                let texts: Vec<&ItemText> = texts.iter().map(|&t| &self.data.texts[t]).collect();
                let (vectors, text) = lay_out(&texts, self.data, &device);
                let weights = ItemTextWeights {
                    contrastive: config.loss.item_text_contrastive,
                    generation: config.loss.item_grounded_generation,
                    matching: config.loss.item_text_matching,
                };
                let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
                let tokens: Vec<&[u32]> = texts.iter().map(|text| text.tokens.as_slice()).collect();
                let negatives = |similarity: &[f32]| hard_negatives(similarity, &tokens, &mut rng);
                let smoothing = config.loss.label_smoothing;
                let losses = item_text_losses(&self.aligner, vectors, &text, &weights, smoothing, negatives)?;
                Ok((losses, texts.len(), text.len()))
            }
            Work::Pairs { items, users } => {
                let contrast = |pairs: &[[u32; 2]]| {
                    let side = |s: usize| vectors(self.data, pairs.iter().map(|pair| pair[s]), &device);
                    pair_loss(&self.aligner, side(0), side(1), config.loss.label_smoothing)
                };
                let kinds = [("ii", config.loss.item_item, items), ("ui", config.loss.user_item, users)];
                let kinds = kinds.into_iter().filter(|(_, _, pairs)| !pairs.is_empty());
                let losses = kinds.map(|(name, weight, pairs)| (name, weight, contrast(pairs))).collect();
                Ok((losses, items.len() + users.len(), 0))
            }
        }
    }
}

impl Task for AlignTask<'_> {
    type Work = Work;
    type Score = RetrievalScore;

    fn steps_per_epoch(&self) -> usize {
        self.data.steps_per_epoch(self.config)
    }

    fn epoch(&self, epoch: usize) -> Vec<Work> {
        self.data.plan(self.config, epoch)
    }

    fn step(&mut self, number: usize, work: Work) -> Result<StepReport> {
        let _one_graph = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
        let seed = self.config.seed.wrapping_add((number as u64) << 20);
        // The seed of dropout.
        <Concrete as Backend>::seed(&self.autodiff(), seed);
        let (losses, samples, tokens) = self.losses(seed, &work)?;
        let mut metrics = Vec::new();
        for (name, _, loss) in &losses {
            metrics.push((*name, scalar(loss.clone(), name)?));
        }
        let total = losses.into_iter().map(|(_, weight, loss)| loss.mul_scalar(weight)).reduce(|a, b| a + b);
        let total = total.ok_or_else(|| Error::failed("a step without a loss"))?;
        let loss = scalar(total.clone(), "the loss")?;
        check_finite(number, "loss", loss, REMEDY)?;
        let mut grads = GradientsParams::from_grads(total.backward(), &self.aligner);
        let grad_norm = clip_grad_norm(&self.aligner, &mut grads, self.config.train.max_grad_norm)?;
        check_finite(number, "gradient norm", grad_norm, REMEDY)?;
        let learning_rate = self.schedule().learning_rate(number - 1);
        let decay = learning_rate * self.config.train.weight_decay;
        let aligner = WeightDecay::apply(self.aligner.clone(), &grads, decay);
        self.aligner = self.optimizer.step(learning_rate, aligner, grads).clamp_temperatures();
        let temperatures =
            [("temperature", &self.aligner.temperature), ("pair_temperature", &self.aligner.pair_temperature)];
        let mut log_only = Vec::new();
        for (name, temperature) in temperatures {
            log_only.push((name, json!(scalar(temperature.val(), name)?)));
        }
        Ok(StepReport { loss, learning_rate, grad_norm, samples, tokens, metrics, log_only })
    }

    fn validate(&mut self, epoch: usize, step: usize) -> Result<Validation<RetrievalScore>> {
        Ok(self.measure(epoch, step)?.map_or(Validation::None, Validation::Measured))
    }

    fn save(&mut self, progress: &Progress<RetrievalScore>) -> Result<()> {
        let weights = |dir: &Path| save_module(&dir.join(WEIGHTS), &self.aligner);
        self.checkpoints.save(progress.step, progress, &self.optimizer, weights)
    }
}

/// Returns entities' vectors as a tensor, `[n, 1, dim]`.
fn vectors(data: &AlignData, entities: impl Iterator<Item = u32>, device: &DispatchDevice) -> Tensor<Concrete, 3> {
    let values: Vec<f32> = entities.flat_map(|entity| data.vector(entity)).copied().collect();
    let n = values.len() / data.dim;
    Tensor::from_data(TensorData::new(values, [n, 1, data.dim]), device)
}

fn lay_out(texts: &[&ItemText], data: &AlignData, device: &DispatchDevice) -> (Tensor<Concrete, 3>, TextBatch) {
    let text = TextBatch::new(texts.iter().map(|text| text.tokens.as_slice()));
    (vectors(data, texts.iter().map(|text| text.item), device), text)
}

/// Measures the retrieval of items and texts among `texts`.
fn retrieve(
    aligner: &Aligner<Concrete>,
    texts: &[ItemText],
    data: &AlignData,
    device: &DispatchDevice,
) -> Result<Retrieval> {
    let texts: Vec<&ItemText> = texts.iter().collect();
    let (mut of_items, mut of_texts) = (Vec::new(), Vec::new());
    for chunk in texts.chunks(RETRIEVAL_BATCH) {
        let (vectors, text) = lay_out(chunk, data, device);
        of_items.push(aligner.query_features(aligner.qformer.encode(vectors)));
        of_texts.push(aligner.text_features(aligner.qformer.encode_text(&text)));
    }
    let of_texts = Tensor::cat(of_texts, 0);
    let mut similarity = Vec::with_capacity(texts.len() * texts.len());
    for items in of_items {
        similarity.extend(to_vec(query_text_similarity(items, of_texts.clone()), "similarities")?);
    }
    Ok(retrieval(&similarity, texts.len()))
}
