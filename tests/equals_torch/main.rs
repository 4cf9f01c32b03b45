//! itemlm against numbers that torch, transformers and peft printed (`tests/reference/README.md`),
//! on every backend of the build.
//!
//! Tolerance: 1e-4 of the largest value of a tensor. The reference's own f32 error is up to 1.4e-5
//! of it (measured against f64 there); the rest is room for another order of summation. Gradients
//! after several layers and AdamW's division by a small second moment are covered by the same
//! bound.

mod alignment;
mod cf;
#[path = "../common/mod.rs"]
mod common;
mod devices;
mod entities;
mod families;
mod losses;
mod precision;
mod quantized;
mod search;
mod token_tree;
mod training;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::{Dispatch, DispatchDevice};
use itemlm::batch::{Batch, Candidates, Example, Target, TokenTreeBatch};
use itemlm::config::{DecodeConfig, LoraConfig, MicroBatch, Precision, Scoring, SearchKind};
use itemlm::decode::{Query, score, search};
use itemlm::device::Training;
use itemlm::kernels::MASKED;
use itemlm::loss::{Ats, Bear, Lml, Loss, Msl, TokenLoss, cross_entropy, linear_token_loss};
use itemlm::model::{
    Decoder, DecoderConfig, ItemLanguageModel, Projection, Tune, load_adapter, open_weights, read_adapter_config,
    save_adapter,
};
use itemlm::tensor::AUTODIFF;
use itemlm::text::{Catalogue, ROOT, Trie};
use itemlm::train::{LinearSchedule, Step, StepOutput, adamw, clip_grad_norm, train_step};
use safetensors::SafeTensors;
use serde_json::Value;

const TOLERANCE: f64 = 1e-4;

/// Returns the CPU, and a wgpu device where the build has wgpu: then there must be one (Mesa's
/// software Vulkan will do).
fn devices() -> Vec<DispatchDevice> {
    vec![
        #[cfg(feature = "cpu")]
        itemlm::device::BackendName::Cpu.device().unwrap(),
        #[cfg(feature = "wgpu")]
        {
            // burn lists them only before it uses one.
            itemlm::device::BackendName::Wgpu.adapters().unwrap();
            itemlm::device::BackendName::Wgpu.device().unwrap()
        },
        #[cfg(feature = "cuda")]
        itemlm::device::BackendName::Cuda.device().unwrap(),
    ]
}

fn fixture(path: &str) -> PathBuf {
    common::fixture("reference").join(path)
}

struct Tensors(Vec<u8>);

impl Tensors {
    fn open(path: &str) -> Self {
        Self(fs::read(fixture(path)).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).unwrap();
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ints(&self, name: &str) -> Vec<usize> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).unwrap();
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }

    fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.0).unwrap().names().into_iter().map(String::from).collect()
    }
}

fn json(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn sequences(value: &Value) -> Vec<Vec<u32>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

fn catalogue(value: &Value) -> Catalogue {
    let targets = sequences(value);
    Catalogue { trie: Trie::build(&targets).unwrap(), targets }
}

#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f32]) {
    close_to(TOLERANCE, what, found, expected);
}

#[track_caller]
fn close_to(tolerance: f64, what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs())).max(1e-6);
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
    assert!(f64::from(worst / largest) <= tolerance, "{what}: off by {worst:e} of {largest:e}");
}

#[track_caller]
fn near(what: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(1e-3), "{what}: {found} instead of {expected}");
}

fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().unwrap()
}

fn ids<B: Backend>(values: &[usize], shape: [usize; 2], device: &B::Device) -> Tensor<B, 2, Int> {
    let values: Vec<i32> = values.iter().map(|&v| v as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn mask<B: Backend>(rows: Vec<Vec<bool>>, shape: [usize; 4], device: &B::Device) -> Tensor<B, 4> {
    let values: Vec<f32> = rows.into_iter().flatten().map(|seen| if seen { 0.0 } else { MASKED }).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn llama<B: Backend<Device = DispatchDevice>>(name: &str, tune: Tune, device: &DispatchDevice) -> Decoder<B> {
    llama_in(name, tune, Precision::F32, device)
}

fn llama_in<B: Backend<Device = DispatchDevice>>(
    name: &str,
    tune: Tune,
    precision: Precision,
    device: &DispatchDevice,
) -> Decoder<B> {
    let path = fixture(name).join("config.json");
    let config = DecoderConfig::from_json(&path, &fs::read_to_string(&path).unwrap()).unwrap();
    Decoder::load(&config, open_weights(&fixture(name), &config).unwrap(), tune, precision, device).unwrap()
}

fn causal(seq: usize) -> Vec<Vec<bool>> {
    (0..seq).map(|q| (0..seq).map(|k| k <= q).collect()).collect()
}

/// Zeroes rows `[batch · seq]` that are padding.
fn real_rows(values: Vec<f32>, attention: &[usize]) -> Vec<f32> {
    let width = values.len() / attention.len();
    values.chunks(width).zip(attention).flat_map(|(row, &real)| row.iter().map(move |v| v * real as f32)).collect()
}

/// Computes an optimiser step's gradients on one device.
fn step(
    model: &ItemLanguageModel<Training>,
    batches: Vec<Batch>,
    token_loss: Loss,
    seed: u64,
) -> (GradientsParams, StepOutput) {
    train_step(std::slice::from_ref(model), Step { batches, token_loss, seed }).unwrap()
}

/// LML as the papers have it.
const LML: Loss = Loss::Lml(Lml { temperature: 1.0 });

#[test]
fn llama_logits_hidden_states_and_cached_continuation() {
    for device in devices() {
        for name in ["llama-tied", "llama-untied", "llama-scaled"] {
            let expected = Tensors::open(&format!("{name}/expected.safetensors"));
            let model = llama::<Dispatch>(name, Tune::Frozen, &device);
            let (batch, seq) = (2, 12);
            let attention = expected.ints("attention_mask");
            let positions: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
            let input = ids(&expected.ints("input_ids"), [batch, seq], &device);
            let first =
                model.forward(model.embed(input), &positions, mask(causal(seq), [1, 1, seq, seq], &device), None);
            let width = model.config().hidden_size;
            let hidden = first.hidden.clone().reshape([batch * seq, width]);
            close(name, &real_rows(host(hidden.clone()), &attention), &expected.floats("hidden"));
            let logits = real_rows(host(model.logits(hidden.clone(), None)), &attention);
            close(name, &logits, &expected.floats("logits"));

            let chosen = Tensor::<Dispatch, 1, Int>::from_data([3, 50, 95], &device);
            let gathered = host(model.logits(hidden, Some(chosen)));
            let vocab = model.config().vocab_size;
            let dense: Vec<f32> = (0..batch * seq).flat_map(|r| [3, 50, 95].map(|t| logits[r * vocab + t])).collect();
            close("gathered rows", &real_rows(gathered, &attention), &dense);

            let next = ids(&expected.ints("continuation_ids"), [batch, 3], &device);
            let positions: Vec<u32> = expected.ints("continuation_position_ids").iter().map(|&p| p as u32).collect();
            let rows = (0..batch).flat_map(|b| {
                let attention = &attention;
                (0..3).map(move |q| {
                    (0..seq + 3).map(|k| if k < seq { attention[b * seq + k] == 1 } else { k - seq <= q }).collect()
                })
            });
            let mask = mask(rows.collect(), [batch, 1, 3, seq + 3], &device);
            let more = model.forward(model.embed(next), &positions, mask, Some(first.cache.clone()));
            let logits = host(model.logits(more.hidden.reshape([batch * 3, width]), None));
            close("continuation", &logits, &expected.floats("continuation_logits"));
        }
    }
}

/// Rows that share a past, against rows that each have a copy of it; in one block and in two.
#[test]
fn a_past_of_one_row_serves_all() {
    for device in devices() {
        let model = llama::<Dispatch>("llama-untied", Tune::Frozen, &device);
        let (past, seq) = (5, 4);
        let tokens = |count: usize| (0..count).map(|t| 7 * t % 90 + 3).collect::<Vec<_>>();
        let all = mask(causal(past), [1, 1, past, past], &device);
        let begun =
            model.forward(model.embed(ids(&tokens(past), [1, past], &device)), &[0, 1, 2, 3, 4], all, None).cache;
        for batch in [1, 3] {
            let mut copies = begun.clone();
            for layer in &mut copies.layers {
                let copied = |t: &Tensor<Dispatch, 4>, at, count| t.clone().narrow(2, at, count).repeat_dim(0, batch);
                let (k, v) = layer.own.remove(0);
                layer.own = [(0, 2), (2, 3)].map(|(at, count)| (copied(&k, at, count), copied(&v, at, count))).to_vec();
            }
            let input = || model.embed(ids(&tokens(batch * seq), [batch, seq], &device));
            let positions: Vec<u32> = (0..batch).flat_map(|_| past as u32..(past + seq) as u32).collect();
            let seen = (0..seq).map(|q| (0..past + seq).map(|k| k <= past + q).collect()).collect();
            let mask = mask(seen, [1, 1, seq, past + seq], &device);
            let shared = model.forward(input(), &positions, mask.clone(), Some(begun.clone().into_shared()));
            let mut separate = model.forward(input(), &positions, mask, Some(copies));
            close("hidden states", &host(shared.hidden), &host(separate.hidden));
            separate.cache.join_grown();
            let (found, expected) = (&shared.cache.layers[1].own, &separate.cache.layers[1].own);
            assert_eq!((found.len(), expected.len()), (1, 2));
            close("keys", &host(found[0].0.clone()), &host(expected[1].0.clone().narrow(2, past - 2, seq)));
        }
    }
}

fn lora_config() -> LoraConfig {
    read_adapter_config(&fixture("lora")).unwrap()
}

#[test]
fn lora_from_peft_logits_gradients_merge_and_round_trip() {
    for device in devices() {
        let expected = Tensors::open("lora/expected.safetensors");
        let config = lora_config();
        assert_eq!(
            (config.rank, config.alpha, config.targets.clone()),
            (4, 8.0, vec!["q_proj".into(), "v_proj".into()])
        );
        let _turn = AUTODIFF.lock().unwrap();
        let model = llama::<Training>("llama-untied", Tune::Lora(&config, 1), &device);
        let model = load_adapter(&fixture("lora"), model, &device).unwrap();
        let (batch, seq) = (2, 12);
        let positions: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
        let input = ids(&expected.ints("input_ids"), [batch, seq], &device);
        let hidden =
            model.forward(model.embed(input), &positions, mask(causal(seq), [1, 1, seq, seq], &device), None).hidden;
        let logits = model.logits(hidden.reshape([batch * seq, 32]), None);
        let attention = expected.ints("attention_mask");
        close("logits", &real_rows(host(logits.clone()), &attention), &expected.floats("logits"));

        // The plain cross-entropy of seven tokens, as LML's: every row of the vocabulary competes.
        let positions = expected.ints("label_positions");
        let at: Vec<i32> = positions.chunks(2).map(|p| (p[0] * seq + p[1]) as i32).collect();
        let at = Tensor::<Training, 1, Int>::from_data(TensorData::new(at, [7]), &device);
        let predictions = expected.ints("label_tokens").into_iter().map(|label| itemlm::batch::Prediction {
            hidden_index: 0,
            label,
            valid: Vec::new(),
            logit_bias: Vec::new(),
            is_root_position: false,
        });
        let batch = Batch {
            token_trees: TokenTreeBatch::new(&[], 0).0,
            predictions: predictions.collect(),
            candidate_ids: None,
            target_tokens: 7,
            branching_tokens: 0,
            plain_tokens: 0,
            logit_factor: 1.0,
        };
        let loss = cross_entropy(logits.select(0, at), &batch, 1.0).div_scalar(7.0);
        near("loss", loss.clone().into_scalar().elem(), f64::from(expected.floats("loss")[0]));
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        assert_eq!(grads.len(), 12, "only adapters have gradients");
        for_each_adapter(&model, |name, param| {
            let grad = grads.get::<Dispatch, 2>(param.id).unwrap();
            close(name, &host(grad), &expected.floats(&format!("grad.{name}")));
        });
        for (l, layer) in model.layers.iter().enumerate() {
            for (projection, linear) in
                [("q_proj", layer.linear(Projection::Query)), ("v_proj", layer.linear(Projection::Value))]
            {
                let name = expected.names().into_iter().find(|n| {
                    n.starts_with("merged.") && n.contains(&format!("layers.{l}.")) && n.contains(projection)
                });
                close("merged", &host(linear.merged_weight()), &expected.floats(&name.unwrap()));
            }
        }

        let dir = tempfile::tempdir().unwrap();
        save_adapter(dir.path(), &model, &config, "llama-untied").unwrap();
        let read = |path: PathBuf| {
            let tensors = Tensors(fs::read(path).unwrap());
            tensors.names().into_iter().map(|n| (n.clone(), tensors.floats(&n))).collect::<BTreeMap<_, _>>()
        };
        let file = "adapter_model.safetensors";
        assert_eq!(
            read(dir.path().join(file)),
            read(fixture("lora").join(file)),
            "our file holds peft's tensors, by name"
        );
    }
}

fn for_each_adapter<B: Backend>(model: &Decoder<B>, mut visit: impl FnMut(&str, &burn::module::Param<Tensor<B, 2>>)) {
    for (l, layer) in model.layers.iter().enumerate() {
        for (projection, linear) in
            [("q_proj", layer.linear(Projection::Query)), ("v_proj", layer.linear(Projection::Value))]
        {
            let lora = linear.lora.as_ref().unwrap();
            for (matrix, param) in [("A", &lora.a), ("B", &lora.b)] {
                visit(&format!("base_model.model.model.layers.{l}.self_attn.{projection}.lora_{matrix}.weight"), param);
            }
        }
    }
}
