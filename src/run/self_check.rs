//! Self-check of a device: one small random Llama on the device and on the CPU: hidden states,
//! gradients through LoRA, cached decoding.

use burn::DispatchDevice;
use burn::module::{AutodiffModule, Param};
use burn::prelude::*;
use burn::tensor::TensorData;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::operations::{Operation, operations};
use crate::batch::{Batch, Candidates, Example, Target};
use crate::config::{DecodeConfig, LoraConfig, Precision, Scoring};
use crate::core::panic::{DeviceGuard, acknowledge};
use crate::decode::{Query, search};
use crate::device::{BackendName, Concrete, Training, rounds_to_tf32};
use crate::loss::{Loss, Msl};
use crate::model::{Decoder, DecoderConfig, ItemLanguageModel, Tune, causal_mask, open_weights, save_llm_dir};
use crate::text::{Catalogue, Node, ROOT, Tokenizer, Trie};
use crate::train::{Step, train_step};
use crate::{Context, Error, Result};

/// Largest difference that passes, as a share of the largest value compared: the tolerance of the
/// tests against torch, for every backend. f32 in another order of summation differs by about 1e-6.
const TOLERANCE: f64 = 1e-4;
/// Tolerance of a device that rounds the inputs of its products to TF32: f16, which has as many
/// bits, differs on the CPU by a quarter of it.
const TF32_TOLERANCE: f64 = 2e-2;
const SEED: u64 = 42;
/// Lengths of the prompts, in tokens; they differ, so that there is padding.
const PROMPTS: [usize; 3] = [5, 11, 17];
const ITEMS: usize = 16;
const EOS: u32 = 0;
const SCORINGS: [Scoring; 2] = [Scoring::Masked, Scoring::Full];

/// A part of the self-check.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Check {
    /// Name of the numbers that were compared.
    pub name: &'static str,
    /// Numbers that they were compared with.
    pub against: &'static str,
    /// The largest difference; null where a value is missing or not a number.
    pub max_difference: f64,
    /// The largest difference as a share of the largest expected value.
    pub max_relative_difference: f64,
    /// The largest relative difference that passes.
    pub tolerance: f64,
    /// Whether the largest relative difference is within the tolerance.
    pub passed: bool,
}

impl Check {
    fn new(name: &'static str, against: &'static str, found: &[f64], expected: &[f64], tolerance: f64) -> Self {
        let largest = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        let difference = |(found, expected): (&f64, &f64)| (found - expected).abs();
        let worst =
            found.iter().zip(expected).map(difference).fold(0.0, |most: f64, difference| match difference.is_nan() {
                true => f64::INFINITY,
                false => most.max(difference),
            });
        let complete = found.len() == expected.len() && largest > 0.0;
        let max_difference = if complete { worst } else { f64::INFINITY };
        let max_relative_difference = max_difference / largest;
        let passed = max_relative_difference <= tolerance;
        Self { name, against, max_difference, max_relative_difference, tolerance, passed }
    }

    /// Returns what is wrong, in words.
    pub(crate) fn failure(&self) -> String {
        let Self { name, against, max_relative_difference: off, tolerance, .. } = self;
        match off.is_finite() {
            true => format!("{name} differs from {against} by {off:.1e} of the largest value, more than {tolerance:e}"),
            false => format!("{name} lacks values, or some are no numbers"),
        }
    }
}

/// Numbers that a backend computes with the model.
pub(crate) struct Numbers {
    /// Hidden states of the prompts' real tokens.
    hidden: Vec<f64>,
    /// Gradient of the masked softmax loss with respect to LoRA's A and B on every block's q_proj
    /// and v_proj.
    gradient: Vec<f64>,
    /// Log-probability of every item after every prompt under both scorings, from the cached
    /// search; NaN if it did not return the item.
    decoded: Vec<f64>,
}

impl Numbers {
    /// Compares the device's numbers with the CPU's; `tf32` says that its products round.
    pub(crate) fn checks(&self, cpu: &Self, tf32: bool) -> Vec<Check> {
        let check = |name, found: &[f64], expected: &[f64]| {
            Check::new(name, "the CPU", found, expected, if tf32 { TF32_TOLERANCE } else { TOLERANCE })
        };
        vec![
            check("forward", &self.hidden, &cpu.hidden),
            check("gradient", &self.gradient, &cpu.gradient),
            check("decoding", &self.decoded, &cpu.decoded),
        ]
    }
}

/// A small model on disk, with prompts and items to check it on.
pub(crate) struct SelfCheck {
    dir: tempfile::TempDir,
    config: DecoderConfig,
    lora: LoraConfig,
    catalogue: Catalogue,
    prompts: Vec<Vec<u32>>,
}

impl SelfCheck {
    /// Makes the model, prompts and items.
    ///
    /// # Errors
    /// The temporary directory cannot be written.
    pub(crate) fn new() -> Result<Self> {
        let tokenizer = Tokenizer::train_bpe(std::iter::empty(), 257)?;
        let config = DecoderConfig { tie_word_embeddings: false, ..DecoderConfig::tiny(tokenizer.vocab_size()) };
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let targets: Vec<Vec<u32>> = (0..ITEMS)
            .map(|_| (0..rng.random_range(1..5)).map(|_| rng.random_range(1..6)).chain([EOS]).collect())
            .collect();
        let vocabulary = config.vocab_size as u32;
        let prompts =
            PROMPTS.map(|length| (0..length).map(|_| rng.random_range(1..vocabulary)).collect::<Vec<u32>>()).to_vec();
        let catalogue = Catalogue { trie: Trie::build(&targets)?, targets };

        let dir = tempfile::tempdir().context("the temporary directory")?;
        // Every product keeps the size of its input, so that all parts of a block count.
        let tensors = config.tensors().map(|(name, shape)| {
            let bound = shape.get(1).map_or(0.5, |&columns| (3.0 / columns as f32).sqrt());
            let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
            let count = shape.iter().product::<usize>();
            (name, shape, (0..count).map(|_| centre + rng.random_range(-bound..bound)).collect())
        });
        save_llm_dir(dir.path(), &config, tensors.map(Ok), &tokenizer)?;
        let lora = LoraConfig { rank: 4, dropout: 0.0, ..LoraConfig::default() };
        Ok(Self { dir, config, lora, catalogue, prompts })
    }

    /// Returns rows and inner width of its projections' products, forward and backward.
    pub(crate) fn products(&self) -> [[usize; 2]; 3] {
        let (tokens, hidden) = (PROMPTS.iter().sum(), self.config.hidden_size);
        [[tokens, hidden], [hidden, tokens], [tokens, self.config.intermediate_size]]
    }

    /// Computes all numbers on one device.
    pub(crate) fn run(&self, device: &DispatchDevice) -> Result<Numbers> {
        self.run_with_precision(Precision::F32, device)
    }

    fn run_with_precision(&self, precision: Precision, device: &DispatchDevice) -> Result<Numbers> {
        let model = self.model(precision, device)?;
        let gradient = self.gradient(&model)?;
        let model = model.valid();
        Ok(Numbers { hidden: self.hidden(&model.llm, device), gradient, decoded: self.decode_scores(&model, device)? })
    }

    /// Computes the gradient of the masked softmax loss with respect to every A and B.
    fn gradient(&self, model: &ItemLanguageModel<Training>) -> Result<Vec<f64>> {
        let examples: Vec<Example> =
            self.prompts.iter().zip([0, 3, 7]).map(|(prompt, item)| example(prompt.clone(), item)).collect();
        let batches = vec![Batch::new(&examples, &self.catalogue, Candidates::Children)];
        let step = Step { batches, token_loss: Loss::Msl(Msl { temperature: 1.0 }), seed: SEED };
        let (grads, _) = train_step(std::slice::from_ref(model), step)?;
        let mut gradient = Vec::new();
        for linear in model.llm.layers.iter().flat_map(|layer| &layer.linears) {
            let Some(lora) = &linear.lora else { continue };
            for part in [&lora.a, &lora.b] {
                let part = grads.get::<Concrete, 2>(part.id);
                gradient.extend(host(part.ok_or_else(|| Error::failed("a gradient is missing"))?));
            }
        }
        Ok(gradient)
    }

    /// Compares the search, which keeps keys and values, with a whole forward pass for every item.
    pub(crate) fn cpu_with_itself(&self, numbers: &Numbers, device: &DispatchDevice) -> Result<Vec<Check>> {
        let uncached = self.uncached_scores(&self.model(Precision::F32, device)?.valid());
        Ok(vec![Check::new("decoding", "the CPU without its cache", &numbers.decoded, &uncached, TOLERANCE)])
    }

    /// Opens the model with a random adapter.
    fn model(&self, precision: Precision, device: &DispatchDevice) -> Result<ItemLanguageModel<Training>> {
        let weights = open_weights(self.dir.path(), &self.config)?;
        let mut llm =
            Decoder::<Training>::load(&self.config, weights, Tune::Lora(&self.lora, SEED), precision, device)?;
        randomize_lora_b(&mut llm, 0.1, SEED, device);
        Ok(llm.into())
    }

    fn hidden(&self, llm: &Decoder<Concrete>, device: &DispatchDevice) -> Vec<f64> {
        let (batch, seq) = (PROMPTS.len(), PROMPTS.into_iter().max().unwrap_or(0));
        let padded = self.prompts.iter().flat_map(|prompt| (0..seq).map(|t| prompt.get(t).map_or(0, |&token| token)));
        let tokens = llm.token_ids(padded).reshape([batch, seq]);
        let positions: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
        let hidden = host(llm.forward(llm.embed(tokens), &positions, causal_mask(seq, device), None).hidden);
        let width = self.config.hidden_size;
        let rows = hidden.chunks(seq * width).zip(PROMPTS);
        rows.flat_map(|(row, length)| row.iter().take(length * width)).copied().collect()
    }

    fn decode_scores(&self, model: &ItemLanguageModel<Concrete>, device: &DispatchDevice) -> Result<Vec<f64>> {
        let queries: Vec<Query> = self.prompts.iter().map(Query::from).collect();
        let mut log_probs = Vec::new();
        for scoring in SCORINGS {
            let decode = DecodeConfig { beams: ITEMS, scoring, ..DecodeConfig::default() };
            for found in search(model, &self.catalogue, &queries, &decode, device)? {
                let of_leaf = |leaf: Node| {
                    found.iter().find(|ranked| ranked.leaf == leaf).map_or(f64::NAN, |ranked| ranked.log_prob)
                };
                log_probs.extend((0..ITEMS as u32).map(|item| of_leaf(self.catalogue.trie.leaf(item))));
            }
        }
        Ok(log_probs)
    }

    /// Computes the scores of [`Self::decode_scores`] from the logits of prompt and target in one
    /// pass.
    fn uncached_scores(&self, model: &ItemLanguageModel<Concrete>) -> Vec<f64> {
        let trie = &self.catalogue.trie;
        let mut log_probs = [Vec::new(), Vec::new()];
        for prompt in &self.prompts {
            let examples: Vec<Example> = (0..ITEMS as u32).map(|item| example(prompt.clone(), item)).collect();
            let logits = host(model.batch_logits(&Batch::new(&examples, &self.catalogue, Candidates::Vocabulary)));
            let mut predictions = logits.chunks(self.config.vocab_size);
            for item in 0..ITEMS as u32 {
                let (mut masked, mut full) = (0.0, 0.0);
                let mut node = ROOT;
                for child in trie.path(trie.leaf(item)) {
                    let logits = predictions.next().unwrap_or_default();
                    let of = |token: u32| logits.get(token as usize).copied().unwrap_or(f64::NAN);
                    let label = of(trie.token(child));
                    masked += label - log_sum_exp(trie.valid_tokens(node).iter().map(|&token| of(token)));
                    full += label - log_sum_exp(logits.iter().copied());
                    node = child;
                }
                log_probs[0].push(masked);
                log_probs[1].push(full);
            }
        }
        log_probs.concat()
    }
}

/// Runs the single operations that have been wrong on some device ([`operations`]).
///
/// # Errors
/// A device that fails.
pub(crate) fn operation_checks(device: &DispatchDevice) -> Result<Vec<Check>> {
    let check = |Operation { name, against, found, expected }: Operation| {
        Check::new(name, against, &found, &expected, TOLERANCE)
    };
    Ok(operations(device)?.into_iter().map(check).collect())
}

/// Runs the self-check on `device`, and on the CPU for comparison.
///
/// # Errors
/// A build without the CPU, a device that dies; a temporary directory that cannot be written.
pub(crate) fn checks(device: &DispatchDevice) -> Result<Vec<Check>> {
    let self_check = SelfCheck::new()?;
    let cpu = self_check.run(&BackendName::Cpu.device().map_err(|_| no_cpu())?)?;
    let run = || DeviceGuard::new().run(|| Ok(compare(&self_check, &self_check.run(device)?, &cpu, device)));
    // CubeCL leaves out a kernel that panics while it is timed, and does not time it again.
    let checks = run().or_else(|_| run())?;
    acknowledge();
    Ok(checks)
}

/// Gives LoRA's B random values within `bound`, the same on every device: it starts at zero, which
/// would leave A without a gradient.
pub(crate) fn randomize_lora_b(llm: &mut Decoder<Training>, bound: f32, seed: u64, device: &DispatchDevice) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for linear in llm.layers.iter_mut().flat_map(|layer| &mut layer.linears) {
        let Some(lora) = &mut linear.lora else { continue };
        let shape = lora.b.dims();
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| rng.random_range(-bound..bound)).collect();
        let b = Tensor::from_data(TensorData::new(values, shape), device).require_grad();
        lora.b = Param::initialized(lora.b.id, b);
    }
}

/// Returns the error of a build that has no CPU backend to compare with.
pub(crate) fn no_cpu() -> Error {
    Error::failed("this build has no CPU backend to compare with; build with the feature cpu")
}

/// Compares a device's numbers with the CPU's. Tuned kernels of one size may round where those of
/// another do not.
pub(crate) fn compare(self_check: &SelfCheck, numbers: &Numbers, cpu: &Numbers, device: &DispatchDevice) -> Vec<Check> {
    numbers.checks(cpu, self_check.products().into_iter().any(|[rows, width]| rounds_to_tf32(device, rows, width)))
}

fn example(prompt: Vec<u32>, item: u32) -> Example {
    Example { prompt, target: Target::Item(item), logit_bias: Vec::new() }
}

/// Computes log Σ exp. The logits of this model are small: no shift is needed.
fn log_sum_exp(logits: impl Iterator<Item = f64>) -> f64 {
    logits.map(f64::exp).sum::<f64>().ln()
}

fn host<const D: usize>(tensor: Tensor<Concrete, D>) -> Vec<f64> {
    let values = tensor.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
    values.into_iter().map(f64::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes_and_a_wrong_number_does_not() {
        let device = BackendName::Cpu.device().unwrap();
        let self_check = SelfCheck::new().unwrap();
        let mut numbers = self_check.run(&device).unwrap();
        for check in self_check.cpu_with_itself(&numbers, &device).unwrap() {
            assert!(check.passed && check.max_difference > 0.0, "{check:?}");
        }
        let again = self_check.run(&device).unwrap();
        assert!(numbers.checks(&again, false).iter().all(|check| check.passed && check.max_difference == 0.0));
        let tokens: usize = PROMPTS.iter().sum();
        assert_eq!(again.hidden.len(), tokens * 64);
        // A [4, 64] and B [64 and 32, 4] in two blocks; nothing of it is zero throughout.
        assert_eq!(again.gradient.len(), 2 * (4 * 64 + 64 * 4 + 4 * 64 + 32 * 4));
        assert!(again.gradient.chunks(128).all(|part| part.iter().any(|&value| value != 0.0)));
        assert_eq!(again.decoded.len(), 2 * PROMPTS.len() * ITEMS);

        numbers.gradient[7] += 0.01;
        numbers.decoded[3] = f64::NAN;
        numbers.hidden.pop();
        let checks = numbers.checks(&again, false);
        assert!(checks.iter().all(|check| !check.passed), "{checks:?}");
        assert!(checks[1].failure().starts_with("gradient differs from the CPU by "), "{}", checks[1].failure());
        assert!(checks[2].failure().contains("are no numbers"));
        assert_eq!(serde_json::to_value(checks[2]).unwrap()["max_difference"], serde_json::Value::Null);
    }

    /// A tracked input changes which gradients are computed, and none of them.
    #[test]
    fn a_tracked_input_changes_no_gradient() {
        let device = BackendName::Cpu.device().unwrap();
        let self_check = SelfCheck::new().unwrap();
        let mut model = self_check.model(Precision::F32, &device).unwrap();
        let untracked = self_check.gradient(&model).unwrap();
        model.track_input = true;
        assert_eq!(self_check.gradient(&model).unwrap(), untracked);
        model.gradient_checkpointing = true;
        let checkpointed = self_check.gradient(&model).unwrap();
        // The blocks run again in another order of sums.
        checkpointed.iter().zip(&untracked).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} and {b}"));
    }

    #[test]
    fn eleven_bits_are_told_from_24_and_pass_as_tf32() {
        let device = BackendName::Cpu.device().unwrap();
        let self_check = SelfCheck::new().unwrap();
        let [exact, rounded] =
            [Precision::F32, Precision::F16].map(|p| self_check.run_with_precision(p, &device).unwrap());
        for (f32, tf32) in rounded.checks(&exact, false).into_iter().zip(rounded.checks(&exact, true)) {
            println!("{tf32:?}");
            assert!(!f32.passed && tf32.passed, "{tf32:?}");
            assert!(tf32.max_relative_difference < TF32_TOLERANCE / 4.0, "{tf32:?}");
        }
    }
}
