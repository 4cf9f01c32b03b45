//! A step on two devices, beside the same step on one: the CPU twice, and two clients of Mesa's
//! software Vulkan with memory of their own.

use std::path::Path;
use std::sync::Arc;

use burn::train::Interrupter;
use itemlm::config::TrainConfig;
use itemlm::model::{DecoderBlock, Entities, ItemEncoder, open_llm};
use itemlm::text::EntityTokens;
use itemlm::train::{Progress, Run, Samples, TrainedWeights, Ui, run};
use rand::{Rng, SeedableRng};

use crate::entities::{WIDTH, qformer};
use crate::*;

const STEPS: usize = 20;
const WINDOWS: usize = 64;
const ITEMS: u32 = 12;

/// Returns two devices of each backend.
fn pairs() -> Vec<[DispatchDevice; 2]> {
    #[allow(unused_mut)]
    let mut pairs = vec![
        #[cfg(feature = "cpu")]
        [DispatchDevice::Flex(Default::default()), DispatchDevice::Flex(Default::default())],
    ];
    // Beside a real GPU the software one is another machine, with another f32 error.
    #[cfg(feature = "wgpu")]
    if itemlm::device::BackendName::Wgpu
        .adapters()
        .unwrap()
        .iter()
        .any(|adapter| adapter.used && adapter.kind == "software")
    {
        use burn::backend::wgpu::WgpuDevice;
        pairs.push([DispatchDevice::Wgpu(WgpuDevice::DefaultDevice), DispatchDevice::Wgpu(WgpuDevice::Cpu)]);
    }
    #[cfg(feature = "cuda")]
    if itemlm::device::BackendName::Cuda.adapters().unwrap().len() > 1 {
        let devices = "cuda:0,1".parse::<itemlm::device::BackendChoice>().unwrap().devices().unwrap();
        pairs.push(devices.try_into().unwrap());
    }
    pairs
}

/// The part of the model that trains.
#[derive(Debug, Clone, Copy)]
enum TrainedPart {
    /// An adapter, with dropout.
    Lora(f64),
    Full,
    /// The encoder of vectors, under a frozen LLM that has run a part of the prompt.
    Encoder,
}

fn targets() -> Vec<Vec<u32>> {
    (0..ITEMS).map(|item| vec![10 + item % 6, 20 + item, 40 + item % 2, 2]).collect()
}

fn model(trains: TrainedPart, device: &DispatchDevice) -> (ItemLanguageModel<Training>, EntityTokens) {
    let lora = |dropout| LoraConfig { rank: 4, alpha: 8.0, dropout, ..LoraConfig::default() };
    let llm = match trains {
        TrainedPart::Lora(dropout) => llama::<Training>("llama-untied", Tune::Lora(&lora(dropout), 1), device),
        TrainedPart::Full => llama("llama-tied", Tune::Full, device),
        TrainedPart::Encoder => llama("llama-untied", Tune::Frozen, device),
    };
    let config = qformer();
    let tokens = EntityTokens::new(llm.config().vocab_size, config.queries(), ITEMS as usize, 0).unwrap();
    if !matches!(trains, TrainedPart::Encoder) {
        return (llm.into(), tokens);
    }
    let scale = ItemLanguageModel::embedding_scale(&llm);
    let encoder = ItemEncoder::new(&config, None, llm.config().hidden_size, scale, 3, device).unwrap();
    let vectors = (0..ITEMS as usize * WIDTH).map(|n| ((n * n) as f32 * 0.37).sin()).collect();
    let entities = Entities::new(encoder, vectors, WIDTH, tokens, None, device);
    (ItemLanguageModel::new(llm, Some(entities)).with_prefix_cache(&[5, 6, 7]), tokens)
}

/// Prompts that begin alike and end in some items, as tokens or as vectors; the target is the next
/// after the last.
fn examples(trains: TrainedPart, tokens: &EntityTokens) -> Vec<Example> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let mut example = || {
        let (mut prompt, mut item) = (vec![5, 6, 7, 8], 0);
        for _ in 0..rng.random_range(1..5) {
            item = rng.random_range(0..ITEMS);
            match trains {
                TrainedPart::Encoder => prompt.extend(tokens.item(item)),
                _ => prompt.extend(&targets()[item as usize][..3]),
            }
            prompt.push(9);
        }
        Example { prompt, target: Target::Item((item + 1) % ITEMS), logit_bias: vec![] }
    };
    (0..WINDOWS).map(|_| example()).collect()
}

/// Returns a training run's losses; the last one is its validation's best.
fn losses(
    trains: TrainedPart,
    loss: Loss,
    micro: MicroBatch,
    checkpointing: bool,
    devices: &[DispatchDevice],
    dir: &Path,
) -> Vec<f64> {
    let targets = targets();
    let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
    let (mut model, tokens) = model(trains, &devices[0]);
    model.gradient_checkpointing = checkpointing;
    let examples = examples(trains, &tokens);
    // A higher one makes much of the last bit, in which the order of a sum shows: tenfold a few
    // steps.
    let learning_rate = if matches!(trains, TrainedPart::Lora(_)) { 1e-2 } else { 1e-3 };
    let mut config =
        TrainConfig { epochs: 5, batch_size: 16, learning_rate, warmup_steps: 2, ..TrainConfig::default() };
    match micro {
        MicroBatch::Samples(samples) => config.micro_batch_size = Some(samples),
        MicroBatch::Tokens(tokens) => config.micro_batch_tokens = Some(tokens),
    }
    let valid = examples[..10].to_vec();
    let outcome = run(
        model,
        Run {
            other_devices: devices[1..].to_vec(),
            optimizer: adamw(0.01),
            token_loss: loss,
            logit_factor: 1.0,
            progress: Progress::default(),
            config,
            seed: 4,
            train: Samples::new(WINDOWS, 16, true, 2, move |sample| Ok(vec![examples[sample].clone()])),
            valid,
            catalogue: Arc::new(catalogue),
            validate: None,
            trained: TrainedWeights::Encoder,
            dir: dir.to_path_buf(),
            ui: Ui::None,
            max_steps: None,
            interrupter: Interrupter::new(),
        },
    );
    let best = outcome.unwrap().progress.best.unwrap();
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
    metrics.lines().map(loss).chain([best.score.loss]).collect()
}

#[test]
fn two_devices_learn_what_one_does() {
    use MicroBatch::{Samples, Tokens};
    let msl = Loss::Msl(Msl { temperature: 2.0 });
    let ats = Loss::Ats(Ats::new(Trie::build(&targets()).unwrap().valid_tokens(ROOT).len()));
    let bear = Loss::Bear(Bear { temperature: 1.0, lambda: 0.25, xi: 2.75, beams: 3 });
    let cases = [
        // The same cut: dropout is the same as well.
        (TrainedPart::Lora(0.1), msl, Samples(8), false),
        (TrainedPart::Full, ats, Samples(8), false),
        (TrainedPart::Encoder, ats, Samples(8), false),
        (TrainedPart::Lora(0.1), ats, Samples(3), false),
        (TrainedPart::Encoder, ats, Samples(4), false),
        // One micro-batch, of which two devices make two.
        (TrainedPart::Lora(0.0), ats, Tokens(2048), true),
        (TrainedPart::Full, msl, Samples(16), true),
        (TrainedPart::Lora(0.1), LML, Tokens(60), true),
        (TrainedPart::Encoder, msl, Tokens(40), true),
        (TrainedPart::Lora(0.0), bear, Samples(3), false),
    ];
    for devices in pairs() {
        // Software Vulkan takes seconds a step.
        let cases = if format!("{devices:?}").contains("Flex") { &cases[..] } else { &cases[..3] };
        for &(trains, loss, micro, checkpointing) in cases {
            let what = format!("{devices:?}, {trains:?}, {loss:?}, {micro:?}, checkpointing {checkpointing}");
            let started = std::time::Instant::now();
            let [one, two] = [&devices[..1], &devices[..]].map(|devices| {
                let dir = tempfile::tempdir().unwrap();
                losses(trains, loss, micro, checkpointing, devices, dir.path())
            });
            assert_eq!((one.len(), two.len()), (STEPS + 1, STEPS + 1), "{what}");
            let worst = one.iter().zip(&two).map(|(one, two)| (one - two).abs()).fold(0.0, f64::max);
            println!("{what}: {:.3} to {:.3}, off by {worst:.1e}; {:.1?}", one[0], one[STEPS - 1], started.elapsed());
            assert!(worst <= 1e-5, "{what}: off by {worst:e}\n{one:?}\n{two:?}");
            let mean = |steps: &[f64]| steps.iter().sum::<f64>() / steps.len() as f64;
            assert!(mean(&one[STEPS - 4..STEPS]) < mean(&one[..4]), "{what}: it learns nothing: {one:?}");
        }
    }
}

/// The copy has parameters of the same ids and numbers, of which the same train, and gradients of
/// its own.
#[test]
fn a_copy_is_the_same_model() {
    for [first, second] in pairs() {
        for trains in [TrainedPart::Lora(0.0), TrainedPart::Full, TrainedPart::Encoder] {
            let (model, _) = model(trains, &first);
            let copy = model.clone_to_device(&second);
            assert_eq!(copy.devices(), std::slice::from_ref(&second));
            let [of_model, of_copy] = [&model, &copy].map(|model| {
                let mut parameters = Parameters(Vec::new());
                model.visit(&mut parameters);
                parameters.0
            });
            assert!(!of_model.is_empty() && of_model == of_copy, "{trains:?}");
            let states = |model: &ItemLanguageModel<Training>| host(model.forward(&[&[5, 6, 7, 8, 11]], 0).hidden);
            let _turn = AUTODIFF.lock().unwrap();
            close(&format!("{trains:?}"), &states(&copy), &states(&model));
        }
        for precision in [Precision::Bf16, Precision::F16] {
            if [&first, &second].iter().all(|device| Dispatch::supports_dtype(device, precision.dtype().into())) {
                let llm = llama_in::<Dispatch>("llama-untied", Tune::Frozen, precision, &first);
                let copy = ItemLanguageModel::from(llm.clone()).clone_to_device(&second).llm.layers[0]
                    .linear(Projection::Query)
                    .weight
                    .dense();
                let weight = llm.layers[0].linear(Projection::Query).weight.dense();
                assert_eq!((copy.dtype(), host(copy)), (weight.dtype(), host(weight)));
            }
        }
        let mut opened = open_llm(&common::fixture("gguf/tiny.gguf")).unwrap();
        opened.weights.keep_quantized().unwrap();
        let llm =
            Decoder::<Dispatch>::load(&opened.config, opened.weights, Tune::Frozen, Precision::F32, &first).unwrap();
        let copy = ItemLanguageModel::from(llm.clone()).clone_to_device(&second);
        assert_eq!(copy.devices(), std::slice::from_ref(&second));
        let numbers = |layer: &DecoderBlock<Dispatch>| host(layer.linear(Projection::Down).weight.dense());
        assert_eq!(numbers(&copy.llm.layers[0]), numbers(&llm.layers[0]));
    }
}

/// Id, whether it trains, and the numbers.
struct Parameters(Vec<(u64, bool, Vec<f32>)>);

impl<B: Backend> burn::module::ModuleVisitor<B> for Parameters {
    fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<B, D>>) {
        self.0.push((param.id.val(), param.is_require_grad(), host(param.val())));
    }
}
