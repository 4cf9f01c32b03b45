//! Every decoder family against transformers and peft: logits from a directory and from GGUF,
//! gradients and three optimiser steps of LoRA on every projection and of all weights, adapters
//! both ways, exports, token trees and the cached search.

use burn::module::{ModuleVisitor, Param};
use burn::optim::Optimizer;
use itemlm::model::{Llm, Role, export_merged, open_llm, open_llm_layers};

use crate::*;

const NAMES: [&str; 21] = [
    "llama-bias-yarn",
    "llama-linear",
    "llama-dynamic",
    "mistral",
    "qwen2",
    "qwen2-full",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3-gguf",
    "smollm3",
    "smollm3-gguf",
    "olmo2",
    "phi3",
    "mistral-tied",
    "qwen3-window",
    "gemma2-untied",
    "gemma3-untied",
    "smollm3-window",
    "olmo2-tied",
    "phi3-tied",
];
pub(super) const SEQ: usize = 12;

fn family(name: &str) -> String {
    format!("families/{name}")
}

fn expected(name: &str) -> Tensors {
    Tensors::open(&format!("families/{name}/expected.safetensors"))
}

/// Logits `[batch · seq, vocab]` of the fixture's rows.
pub(super) fn logits<B: Backend<Device = DispatchDevice>>(
    model: &Decoder<B>,
    expected: &Tensors,
    device: &DispatchDevice,
) -> Tensor<B, 2> {
    let input = expected.ints("input_ids");
    let batch = input.len() / SEQ;
    let positions: Vec<u32> = (0..batch).flat_map(|_| 0..SEQ as u32).collect();
    let input = ids(&input, [batch, SEQ], device);
    let mask = mask(causal(SEQ), [1, 1, SEQ, SEQ], device);
    let hidden = model.forward(model.embed(input), &positions, mask, None).hidden;
    model.logits(hidden.reshape([batch * SEQ, model.config().hidden_size]), None)
}

/// Computes the mean cross-entropy of the fixture's labels.
fn loss(model: &Decoder<Training>, expected: &Tensors, device: &DispatchDevice) -> Tensor<Training, 1> {
    let rows: Vec<i32> = expected.ints("label_positions").chunks(2).map(|at| (at[0] * SEQ + at[1]) as i32).collect();
    let labels: Vec<i32> = expected.ints("label_tokens").iter().map(|&label| label as i32).collect();
    let ints = |values: Vec<i32>| {
        let count = values.len();
        Tensor::<Training, 1, Int>::from_data(TensorData::new(values, [count]), device)
    };
    let logits = logits(model, expected, device).select(0, ints(rows));
    let log_probs = burn::tensor::activation::log_softmax(logits, 1);
    log_probs.gather(1, ints(labels).unsqueeze_dim(1)).mean().neg()
}

#[test]
fn families_logits_from_directories_and_gguf() {
    for device in devices() {
        for name in NAMES {
            let expected = expected(name);
            let attention = expected.ints("attention_mask");
            let model = llama::<Dispatch>(&family(name), Tune::Frozen, &device);
            let found = real_rows(host(logits(&model, &expected, &device)), &attention);
            close(name, &found, &expected.floats("logits"));
            let path = fixture(&family(name)).join("model.gguf");
            if path.exists() {
                let opened = open_llm(&path).unwrap();
                assert_eq!(opened.config.switches, model.config().switches, "{name}");
                let model =
                    Decoder::<Dispatch>::load(&opened.config, opened.weights, Tune::Frozen, Precision::F32, &device);
                let found = real_rows(host(logits(&model.unwrap(), &expected, &device)), &attention);
                close(&format!("{name}, GGUF"), &found, &expected.floats("logits"));
            }
        }
    }
}

pub(super) fn load(llm: Llm, device: &DispatchDevice) -> Decoder<Dispatch> {
    Decoder::load(&llm.config, llm.weights, Tune::Frozen, Precision::F32, device).unwrap()
}

/// `llm.layers = 2` against transformers' model with its last blocks cut off; and exported, as an
/// ordinary directory of two blocks.
#[test]
fn families_first_blocks() {
    const KEPT: usize = 2;
    for device in devices() {
        for name in NAMES {
            let (expected, dir) = (expected(name), fixture(&family(name)));
            let attention = expected.ints("attention_mask");
            let check = |what: &str, model: &Decoder<Dispatch>| {
                assert_eq!((model.layers.len(), model.config().num_hidden_layers), (KEPT, KEPT), "{name}, {what}");
                let found = real_rows(host(logits(model, &expected, &device)), &attention);
                close(&format!("{name}, {what}"), &found, &expected.floats("first_blocks.logits"));
            };
            // The twins have no tokenizer beside them.
            let twin = tempfile::tempdir().unwrap();
            for file in ["config.json", "model.safetensors"] {
                fs::copy(dir.join(file), twin.path().join(file)).unwrap();
            }
            let tokenizer = open_llm(&fixture("families/qwen3/model.gguf")).unwrap().tokenizer;
            fs::write(twin.path().join("tokenizer.json"), tokenizer.to_json()).unwrap();
            fs::write(twin.path().join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
            let kept = open_llm_layers(twin.path(), Some(KEPT)).unwrap();
            assert_ne!(kept.fingerprint, open_llm(twin.path()).unwrap().fingerprint);
            let model = load(kept, &device);
            check("first blocks", &model);
            if dir.join("model.gguf").exists() {
                let kept = open_llm_layers(&dir.join("model.gguf"), Some(KEPT)).unwrap();
                check("first blocks of GGUF", &load(kept, &device));
            }

            let export = std::env::var_os("ITEMLM_KEEP_EXPORTS").map(PathBuf::from);
            let export = export.map_or_else(|| twin.path().join("export"), |kept| kept.join(format!("{name}-first")));
            export_merged(&export, &model, &tokenizer).unwrap();
            let config: Value = serde_json::from_slice(&fs::read(export.join("config.json")).unwrap()).unwrap();
            for key in ["layer_types", "no_rope_layers"] {
                let length = config[key].as_array().map_or(KEPT, Vec::len);
                assert_eq!((length, &config["num_hidden_layers"]), (KEPT, &KEPT.into()), "{name}: {key}");
            }
            check("first blocks, exported", &load(open_llm(&export).unwrap(), &device));
        }
        for wrong in [0, 4] {
            let error = open_llm_layers(&fixture("families/qwen3/model.gguf"), Some(wrong)).err().unwrap().to_string();
            assert!(error.ends_with(&format!("llm.layers is {wrong}; the model has 3 blocks, give 1 to 3")), "{error}");
        }
    }
}

/// Takes three steps of AdamW. Gradients of the first step are compared where the fixture has them,
/// and parameters at the end. AdamW divides by a small second moment, so that the error of a
/// gradient near 0 becomes one of the learning rate's size: 5e-4 of the largest, as in the other
/// training test.
pub(super) fn train(
    what: &str,
    model: Decoder<Training>,
    names: &[(String, burn::module::ParamId)],
    prefix: &str,
    expected: &Tensors,
    device: &DispatchDevice,
) -> Decoder<Training> {
    let _turn = AUTODIFF.lock().unwrap();
    let (mut model, mut optimizer) = (model, adamw::<Decoder<Training>, Training>(0.01));
    let losses = expected.floats(&format!("{prefix}.losses"));
    let stored = expected.names();
    for (step, expected_loss) in losses.into_iter().enumerate() {
        let loss = loss(&model, expected, device);
        near(&format!("{what}, loss {step}"), loss.clone().into_scalar().elem(), f64::from(expected_loss));
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        for (name, id) in
            names.iter().filter(|(name, _)| step == 0 && stored.contains(&format!("{prefix}.grad.{name}")))
        {
            let found = grads.get::<Dispatch, 2>(*id).map(host);
            let found = found.or_else(|| grads.get::<Dispatch, 1>(*id).map(host));
            let wanted = expected.floats(&format!("{prefix}.grad.{name}"));
            close(&format!("{what}, gradient of {name}"), &found.expect(name), &wanted);
        }
        model = optimizer.step(1e-2, model, grads);
    }
    let mut values = Values(BTreeMap::new());
    model.visit(&mut values);
    for (name, id) in names.iter().filter(|(name, _)| stored.contains(&format!("{prefix}.final.{name}"))) {
        let wanted = expected.floats(&format!("{prefix}.final.{name}"));
        close_to(5e-4, &format!("{what}, {name} after three steps"), &values.0[&id.val()], &wanted);
    }
    model
}

/// All parameters by id.
struct Values(BTreeMap<u64, Vec<f32>>);

impl ModuleVisitor<Training> for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Training, D>>) {
        self.0.insert(param.id.val(), host(param.val()));
    }
}

/// Names as in `adapter_model.safetensors`.
pub(super) fn adapter_names(model: &Decoder<Training>) -> Vec<(String, burn::module::ParamId)> {
    let projections = model.config().projections();
    let of_layer = |(l, block): (usize, &itemlm::model::DecoderBlock<Training>)| {
        let matrices = projections.iter().zip(&block.linears).flat_map(|((_, module, _), linear)| {
            let lora = linear.lora.as_ref().unwrap();
            [("A", lora.a.id), ("B", lora.b.id)]
                .map(|(x, id)| (format!("base_model.model.model.layers.{l}.{module}.lora_{x}.weight"), id))
        });
        matrices.collect::<Vec<_>>()
    };
    model.layers.iter().enumerate().flat_map(of_layer).collect()
}

/// Returns Hugging Face's names.
fn weight_names(model: &Decoder<Training>) -> Vec<(String, burn::module::ParamId)> {
    let mut names = vec![
        ("model.embed_tokens.weight".to_owned(), model.embed_tokens.id),
        ("model.norm.weight".to_owned(), model.norm.gamma.id),
    ];
    for (l, block) in model.layers.iter().enumerate() {
        let (mut linears, mut norms) = (block.linears.iter(), block.norms.iter());
        let mut last = None;
        for tensor in model.config().block_tensors() {
            let id = match tensor.role {
                Role::Weight(_) => {
                    last = linears.next();
                    list_first(last.unwrap())
                }
                Role::Bias(_) => last.unwrap().bias.as_ref().unwrap().id,
                Role::Norm(_) => norms.next().unwrap().gamma.id,
            };
            names.push((tensor.full_name(l), id));
        }
    }
    names
}

fn list_first(linear: &itemlm::model::LoraLinear<Training>) -> burn::module::ParamId {
    burn::module::list_param_ids(linear)[0]
}

#[test]
fn families_lora_on_every_projection() {
    for device in devices() {
        for name in NAMES {
            let (expected, dir) = (expected(name), fixture(&family(name)));
            let config = read_adapter_config(&dir.join("adapter")).unwrap();
            let model = llama::<Training>(&family(name), Tune::Lora(&config, 1), &device);
            let model = load_adapter(&dir.join("adapter"), model, &device).unwrap();
            let attention = expected.ints("attention_mask");
            let found = real_rows(host(logits(&model, &expected, &device)), &attention);
            close(&format!("{name}, LoRA"), &found, &expected.floats("lora.logits"));

            // peft's file and ours are the same; the merged export gives the same logits.
            let written = tempfile::tempdir().unwrap();
            save_adapter(written.path(), &model, &config, name).unwrap();
            let read = |path: PathBuf| {
                let tensors = Tensors(fs::read(path).unwrap());
                tensors.names().into_iter().map(|n| (n.clone(), tensors.floats(&n))).collect::<BTreeMap<_, _>>()
            };
            let file = "adapter_model.safetensors";
            assert_eq!(read(written.path().join(file)), read(dir.join("adapter").join(file)), "{name}");
            let tokenizer = open_llm(&fixture("families/qwen3/model.gguf")).unwrap().tokenizer;
            let export = std::env::var_os("ITEMLM_KEEP_EXPORTS").map(PathBuf::from);
            let export = export.map_or_else(|| written.path().to_owned(), |kept| kept.join(name));
            export_merged(&export, &model, &tokenizer).unwrap();
            let opened = open_llm(&export).unwrap();
            assert_eq!(&opened.config, model.config(), "{name}");
            let merged =
                Decoder::<Dispatch>::load(&opened.config, opened.weights, Tune::Frozen, Precision::F32, &device)
                    .unwrap();
            let found = real_rows(host(logits(&merged, &expected, &device)), &attention);
            close(&format!("{name}, merged"), &found, &expected.floats("lora.logits"));

            let names = adapter_names(&model);
            train(&format!("{name}, LoRA"), model, &names, "lora", &expected, &device);
        }
    }
}

#[test]
fn families_full_tuning() {
    for device in devices() {
        for name in NAMES {
            let model = llama::<Training>(&family(name), Tune::Full, &device);
            let names = weight_names(&model);
            train(&format!("{name}, full"), model, &names, "full", &expected(name), &device);
        }
    }
}

/// Token trees below a shared prefix against plain sequences: hidden states, and gradients of all
/// weights. A window is shorter than the prefix, than a branch's depth and than the row.
#[test]
fn families_token_trees_and_windows() {
    let shared = [5, 6, 7, 8, 9, 10];
    let tails: [&[u32]; 6] = [
        &[11, 12, 13, 14, 15, 16],
        &[11, 12, 13, 20, 21],
        &[11, 12, 22],
        &[11, 12, 13, 14, 23, 24, 25],
        &[30, 31, 32, 33, 34],
        &[30],
    ];
    let sequences: Vec<Vec<u32>> = tails.iter().map(|tail| [&shared[..], tail].concat()).collect();
    for device in devices() {
        for name in NAMES {
            let model = ItemLanguageModel::from(llama::<Training>(&family(name), Tune::Full, &device));
            let (trees, nodes) = TokenTreeBatch::new(&sequences, shared.len());
            assert!(trees.parents.len() < sequences.len(), "some trees branch");
            let _turn = AUTODIFF.lock().unwrap();
            let width = model.llm.config().hidden_size;
            let weight = |node: usize| (0..width).map(move |w| ((node * 31 + w * 7) as f32).sin());
            let hidden = model.forward_trees(&trees);
            let weights: Vec<f32> = nodes.iter().flatten().flat_map(|&node| weight(node)).collect();
            let count = weights.len() / width;
            let weights = Tensor::<Training, 2>::from_data(TensorData::new(weights, [count, width]), &device);
            let at: Vec<i32> = nodes.iter().flatten().map(|&node| node as i32).collect();
            let at = Tensor::<Training, 1, Int>::from_data(TensorData::new(at, [count]), &device);
            let found = hidden.select(0, at);

            let plain = sequences.iter().map(|sequence| {
                let seq = sequence.len();
                let positions: Vec<u32> = (0..seq as u32).collect();
                let mask = mask(vec![causal(seq).concat()], [1, 1, seq, seq], &device);
                let hidden = model.llm.forward(model.embed(sequence, 1, seq), &positions, mask, None).hidden;
                hidden.reshape([seq, width]).narrow(0, shared.len(), seq - shared.len())
            });
            let plain: Tensor<Training, 2> = Tensor::cat(plain.collect(), 0);
            close(name, &host(found.clone()), &host(plain.clone()));
            let grads = |hidden: Tensor<Training, 2>| {
                let grads = (hidden * weights.clone()).sum().backward();
                let grads = GradientsParams::from_grads(grads, &model.llm);
                let of = |(name, id): (String, burn::module::ParamId)| {
                    let grad = grads.get::<Dispatch, 2>(id).map(host);
                    (name, grad.or_else(|| grads.get::<Dispatch, 1>(id).map(host)).unwrap_or_default())
                };
                weight_names(&model.llm).into_iter().map(of).collect::<Vec<_>>()
            };
            for ((parameter, found), (_, expected)) in grads(found).iter().zip(grads(plain)) {
                close(&format!("{name}, {parameter}"), found, &expected);
            }
        }
    }
}

/// The cached search, of prompts of several lengths together, against each title run whole after
/// its prompt without a cache; and `score` against the same.
#[test]
fn families_cached_search_equals_enumeration() {
    let titles: [&[u32]; 8] = [
        &[10, 20],
        &[10, 20, 21],
        &[10, 20, 22, 23, 24, 25],
        &[11, 25, 26, 27, 28, 29, 30],
        &[12],
        &[12, 30, 31],
        &[13, 32, 33],
        &[13, 32, 34],
    ];
    let targets: Vec<Vec<u32>> = titles.iter().map(|title| [title, &[2][..]].concat()).collect();
    let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
    let prompts: [&[u32]; 3] = [&[5, 6, 7, 8, 9, 35, 36, 37, 38], &[5, 6, 7, 40], &[5, 6, 7, 8, 9, 41, 42]];
    let prompts = prompts.map(<[u32]>::to_vec);
    for device in devices() {
        for name in NAMES {
            let model = ItemLanguageModel::<Dispatch>::from(llama(&family(name), Tune::Frozen, &device));
            let whole = |prompt: &[u32], title: &[u32]| {
                let sequence = [prompt, title].concat();
                let seq = sequence.len();
                let positions: Vec<u32> = (0..seq as u32).collect();
                let mask = mask(vec![causal(seq).concat()], [1, 1, seq, seq], &device);
                let hidden = model.llm.forward(model.embed(&sequence, 1, seq), &positions, mask, None).hidden;
                let width = hidden.dims()[2];
                let rows = model.llm.logits(hidden.reshape([seq, width]), None);
                let rows = host(burn::tensor::activation::log_softmax(rows, 1));
                let vocabulary = rows.len() / seq;
                let row = |t: usize| (prompt.len() - 1 + t) * vocabulary;
                title.iter().enumerate().map(|(t, &token)| f64::from(rows[row(t) + token as usize])).sum::<f64>()
            };
            let queries: Vec<Query> = prompts.iter().map(Query::from).collect();
            let decode =
                DecodeConfig { beams: 8, scoring: Scoring::Full, length_penalty: 0.0, ..DecodeConfig::default() };
            // Alone, together, and after a prefix that all share.
            let cached = model.clone().with_prefix_cache(&[5, 6, 7]);
            for model in [&model, &cached] {
                let found = search(model, &catalogue, &queries, &decode, &device).unwrap();
                for (prompt, found) in prompts.iter().zip(&found) {
                    assert_eq!(found.len(), 8);
                    for ranked in found {
                        let item = catalogue.trie.items(ranked.leaf).next().unwrap() as usize;
                        near(name, ranked.log_prob, whole(prompt, &catalogue.targets[item]));
                    }
                }
            }
            let items: Vec<u32> = (0..8).collect();
            for (item, score) in score(&model.llm, &catalogue, &prompts[0], &items, &device).unwrap().iter().enumerate()
            {
                near(&format!("{name}, score"), score.full, whole(&prompts[0], &catalogue.targets[item]));
            }
        }
    }
}
