//! Token trees compute what their sequences compute one by one, side by side and whole:
//! loss and every gradient, with LoRA and with vectors of items.

use burn::module::list_param_ids;
use itemlm::model::{Entities, ItemEncoder, ItemEncoderConfig, LoraLinear};
use itemlm::text::EntityTokens;
use rand::{Rng, SeedableRng};

use crate::*;

const WIDTH: usize = 4;

fn model(device: &DispatchDevice) -> (ItemLanguageModel<Training>, EntityTokens) {
    let config = LoraConfig { rank: 4, dropout: 0.0, ..LoraConfig::default() };
    let mut llm: Decoder<Training> = llama("llama-untied", Tune::Lora(&config, 1), device);
    // B starts at zero, which would leave A without a gradient.
    for linear in llm.layers.iter_mut().flat_map(|layer| &mut layer.linears) {
        let Some(lora) = linear.lora.as_mut() else { continue };
        let shape = lora.b.dims();
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|n| (n as f32).sin() * 0.2).collect();
        let b = Tensor::from_data(TensorData::new(values, shape), device).require_grad();
        lora.b = burn::module::Param::initialized(lora.b.id, b);
    }
    let encoder = ItemEncoderConfig::Linear { queries: 2, vector_width: WIDTH };
    let tokens = EntityTokens::new(llm.config().vocab_size, 2, 4, 1).unwrap();
    let vectors = (0..5 * WIDTH).map(|n| (n as f32 * 1.3).cos()).collect();
    let encoder = ItemEncoder::new(&encoder, None, llm.config().hidden_size, 0.5, 2, device).unwrap();
    (ItemLanguageModel::new(llm, Some(Entities::new(encoder, vectors, WIDTH, tokens, None, device))), tokens)
}

/// Computes the loss of an example that runs alone and whole under a plain causal mask.
fn plain(
    model: &ItemLanguageModel<Training>,
    example: &Example,
    catalogue: &Catalogue,
    candidates: Candidates,
    device: &DispatchDevice,
) -> Tensor<Training, 1> {
    let Target::Item(item) = example.target else { unreachable!("all are items") };
    let target = &catalogue.targets[item as usize];
    let sequence = [example.prompt.as_slice(), target].concat();
    let (seq, first) = (sequence.len(), example.prompt.len() - 1);
    let causal = mask(vec![causal(seq).concat()], [1, 1, seq, seq], device);
    let positions: Vec<u32> = (0..seq as u32).collect();
    let embeddings = model.embed(&sequence, 1, seq);
    let hidden = model.llm.forward(embeddings, &positions, causal, None).hidden;
    let width = hidden.dims()[2];
    let logits = model.llm.logits(hidden.reshape([seq, width]), None);
    let vocabulary = logits.dims()[1];
    let mut node = ROOT;
    let mut sum = Tensor::zeros([1], device);
    for (t, &token) in target.iter().enumerate() {
        let row = logits.clone().slice([first + t..first + t + 1, 0..vocabulary]).reshape([vocabulary]);
        let valid: Vec<i32> = match candidates {
            Candidates::Children => catalogue.trie.valid_tokens(node).iter().map(|&t| t as i32).collect(),
            Candidates::Vocabulary => (0..vocabulary as i32).collect(),
        };
        let valid = Tensor::<Training, 1, Int>::from_data(TensorData::new(valid.clone(), [valid.len()]), device);
        let chosen = row.clone().narrow(0, token as usize, 1);
        sum = sum + row.select(0, valid).exp().sum().log() - chosen;
        node = catalogue.trie.child(node, token).unwrap();
    }
    sum
}

#[test]
fn token_trees_equal_plain_sequences() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    for device in devices() {
        let host_device = format!("{device:?}").contains("Flex");
        let (model, numbers) = model(&device);
        let sizes: &[usize] = if host_device { &[1, 2, 3, 5, 8, 20, 64] } else { &[1, 6] };
        for (round, &count) in sizes.iter().enumerate() {
            let targets: Vec<Vec<u32>> = (0..6)
                .map(|_| (0..rng.random_range(1..4)).map(|_| rng.random_range(10..13)).chain([2]).collect())
                .collect();
            let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
            let mut examples: Vec<Example> = Vec::new();
            for n in 0..count {
                // A common prefix, then a new prompt or a branch of the one before.
                let mut prompt = vec![5, 6, 7];
                if n > 0 && rng.random_bool(0.6) {
                    let before = &examples[n - 1].prompt;
                    prompt = before[..rng.random_range(3..=before.len())].to_vec();
                }
                for _ in 0..rng.random_range(1..5) {
                    match rng.random_bool(0.3) {
                        true => prompt.extend(numbers.item(rng.random_range(0..4))),
                        false => prompt.push(rng.random_range(20..60)),
                    }
                }
                examples.push(Example { prompt, target: Target::Item(rng.random_range(0..6)), logit_bias: vec![] });
            }
            let candidates = if round % 2 == 0 { Candidates::Children } else { Candidates::Vocabulary };
            let batch = Batch::new(&examples, &catalogue, candidates);
            if batch.predictions.is_empty() {
                continue;
            }
            if count > 10 {
                assert!(batch.token_trees.run_tokens() < batch.plain_tokens, "something is shared");
                assert!(batch.token_trees.tree_count() < count, "some trees branch");
            }
            let turn = AUTODIFF.lock().unwrap();
            let found = cross_entropy(model.batch_logits(&batch), &batch, 1.0);
            let losses = examples.iter().map(|example| plain(&model, example, &catalogue, candidates, &device));
            let expected = losses.reduce(|a, b| a + b).unwrap();
            let value = |loss: &Tensor<Training, 1>| loss.clone().into_scalar().elem::<f64>();
            near(&format!("{count} sequences"), value(&found), value(&expected));
            let found = GradientsParams::from_grads(found.backward(), &model);
            let plain_loss = expected.clone();
            let expected = GradientsParams::from_grads(expected.backward(), &model);
            for_each_adapter(&model.llm, |name, param| {
                let of = |grads: &GradientsParams| host(grads.get::<Dispatch, 2>(param.id).unwrap());
                close(&format!("{count} sequences, {name}"), &of(&found), &of(&expected));
            });
            let projection = &model.entities.as_ref().unwrap().encoder.projection().weight;
            let of = |grads: &GradientsParams| grads.get::<Dispatch, 2>(projection.id).map(host);
            match (of(&found), of(&expected)) {
                (Some(found), Some(expected)) => close("projection", &found, &expected),
                (found, expected) => assert_eq!(found.is_some(), expected.is_some()),
            }

            // The same in micro-batches after a prefix that is run once, with the blocks' graphs
            // kept and made again.
            drop(turn);
            let tokens = batch.target_tokens as f64;
            let cuts = [MicroBatch::Samples(1), MicroBatch::Samples(3), MicroBatch::Tokens(40)];
            for (micro, checkpointing) in cuts.into_iter().flat_map(|cut| [(cut, false), (cut, true)]) {
                let mut model = model.clone();
                model.gradient_checkpointing = checkpointing;
                let samples = examples.iter().map(|example| vec![example.clone()]).collect();
                let batches = micro.batches(samples, &catalogue, candidates);
                let (grads, output) = step(&model, batches, LML, 0);
                let what = format!("{count} sequences, {micro:?}, checkpointing {checkpointing}");
                near(&what, output.loss * tokens, value(&plain_loss));
                for_each_adapter(&model.llm, |name, param| {
                    let grad = grads.get::<Dispatch, 2>(param.id).unwrap();
                    close(
                        &format!("{what}, {name}"),
                        &host(grad.mul_scalar(tokens)),
                        &host(expected.get::<Dispatch, 2>(param.id).unwrap()),
                    );
                });
                let found = grads.get::<Dispatch, 2>(projection.id).map(|grad| host(grad.mul_scalar(tokens)));
                match (found, of(&expected)) {
                    (Some(found), Some(expected)) => close(&format!("{what}, projection"), &found, &expected),
                    (found, expected) => assert_eq!(found.is_some(), expected.is_some()),
                }
            }
        }
    }
}

/// With tied embeddings the table's gradient comes from the prompt's tokens, the targets' and the
/// output projection, over several backward passes.
#[test]
fn full_tuning_of_tied_embeddings() {
    let targets = vec![vec![10, 11, 2], vec![10, 12, 2], vec![13, 14, 2]];
    let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
    let prompts: [&[u32]; 4] = [&[5, 6, 7, 21, 22], &[5, 6, 7, 21, 22, 23], &[5, 6, 30], &[5, 6, 31, 10, 11]];
    let example = |(n, prompt): (usize, &&[u32])| Example {
        prompt: prompt.to_vec(),
        target: Target::Item(n as u32 % 3),
        logit_bias: vec![],
    };
    let examples: Vec<Example> = prompts.iter().enumerate().map(example).collect();
    for device in devices() {
        let model = ItemLanguageModel::from(llama::<Training>("llama-tied", Tune::Full, &device));
        let of = |grads: &GradientsParams| {
            let (llm, layer) = (&model.llm, &model.llm.layers[0]);
            let id = |linear: &LoraLinear<Training>| list_param_ids(linear)[0];
            let matrices =
                [llm.embed_tokens.id, id(layer.linear(Projection::Value)), id(layer.linear(Projection::Down))];
            let mut found = matrices.map(|id| host(grads.get::<Dispatch, 2>(id).unwrap())).to_vec();
            found.push(host(grads.get::<Dispatch, 1>(llm.norm.gamma.id).unwrap()));
            found
        };
        for candidates in [Candidates::Children, Candidates::Vocabulary] {
            let turn = AUTODIFF.lock().unwrap();
            let losses = examples.iter().map(|example| plain(&model, example, &catalogue, candidates, &device));
            let expected = losses.reduce(|a, b| a + b).unwrap();
            let expected = of(&GradientsParams::from_grads(expected.backward(), &model));
            drop(turn);
            for (size, checkpointing) in [(4, false), (4, true), (2, false), (2, true), (1, false)] {
                let mut model = model.clone();
                model.gradient_checkpointing = checkpointing;
                let samples = examples.iter().map(|example| vec![example.clone()]).collect();
                let batches = MicroBatch::Samples(size).batches(samples, &catalogue, candidates);
                let tokens = batches.iter().map(|batch| batch.target_tokens).sum::<usize>() as f32;
                let found = of(&step(&model, batches, LML, 0).0);
                for (found, expected) in found.iter().zip(&expected) {
                    let found: Vec<f32> = found.iter().map(|g| g * tokens).collect();
                    close(
                        &format!("{candidates:?}, {size} at a time, checkpointing {checkpointing}"),
                        &found,
                        expected,
                    );
                }
            }
        }
    }
}

/// Run again, a block drops what it dropped before: only then is what comes out the gradient of the
/// loss, as its slope shows.
#[test]
fn checkpointed_blocks_drop_alike() {
    let targets = vec![vec![10, 11, 2], vec![10, 12, 2], vec![13, 14, 2]];
    let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
    for device in devices() {
        let (mut model, numbers) = model(&device);
        model.gradient_checkpointing = true;
        let linears = model.llm.layers.iter_mut().flat_map(|layer| &mut layer.linears);
        linears.filter_map(|linear| linear.lora.as_mut()).for_each(|lora| lora.dropout.prob = 0.5);
        let samples = (0..3).map(|item| {
            let prompt = [vec![5, 6, 7, 21, 22], numbers.item(item).collect(), vec![8]].concat();
            vec![Example { prompt, target: Target::Item(item), logit_bias: vec![] }]
        });
        let batches = MicroBatch::Samples(2).batches(samples.collect(), &catalogue, Candidates::Children);
        let msl = Loss::Msl(Msl { temperature: 1.0 });
        let step = |model: &ItemLanguageModel<Training>| step(model, batches.clone(), msl, 3);
        let norm = clip_grad_norm(&model, &mut step(&model).0, 1.0).unwrap();
        let moved = |by: f64| {
            let mut grads = step(&model).0;
            clip_grad_norm(&model, &mut grads, 1.0).unwrap();
            let mut sgd = burn::optim::SgdConfig::new().init();
            step(&burn::optim::Optimizer::step(&mut sgd, by, model.clone(), grads)).1.loss
        };
        // Along the gradient, of norm 1 where it was clipped.
        let slope = (moved(-0.01) - moved(0.01)) / (0.02 * norm.min(1.0));
        assert!((slope - norm).abs() < 0.02 * norm, "a slope of {slope} along a gradient of norm {norm}");
    }
}

/// Twenty runs of as many micro-batches as examples: each has the gradient of the run without
/// checkpointing. A graph of the embeddings that lives while blocks run backward would lose a part
/// of the tied table's gradient in some of them.
#[test]
fn checkpointing_loses_no_gradient_of_tied_embeddings() {
    let targets = vec![vec![10, 11, 2], vec![10, 12, 2], vec![13, 14, 2]];
    let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
    let examples: Vec<Example> = (0..10)
        .map(|n| Example {
            prompt: [vec![5, 6, 7], (0..=n % 4).map(|t| 20 + 3 * n + t).collect()].concat(),
            target: Target::Item(n % 3),
            logit_bias: vec![],
        })
        .collect();
    for device in devices() {
        let runs = if format!("{device:?}").contains("Flex") { 20 } else { 2 };
        let gradient = |checkpointing: bool| {
            let mut model = ItemLanguageModel::from(llama::<Training>("llama-tied", Tune::Full, &device));
            model.gradient_checkpointing = checkpointing;
            let samples = examples.iter().map(|example| vec![example.clone()]).collect();
            let batches = MicroBatch::Samples(1).batches(samples, &catalogue, Candidates::Vocabulary);
            assert_eq!(batches.len(), examples.len());
            let table = model.llm.embed_tokens.id;
            let mut optimizer = adamw::<ItemLanguageModel<Training>, Training>(0.0);
            let mut found = Vec::new();
            // Two optimiser steps, so that the parameters' nodes are new ones in the second.
            for _ in 0..2 {
                let (mut grads, _) = step(&model, batches.clone(), LML, 0);
                found.extend(host(grads.get::<Dispatch, 2>(table).unwrap()));
                clip_grad_norm(&model, &mut grads, 1.0).unwrap();
                model = burn::optim::Optimizer::step(&mut optimizer, 1e-4, model, grads);
            }
            found
        };
        let expected = gradient(false);
        for run in 0..runs {
            close(&format!("run {run}"), &gradient(true), &expected);
        }
    }
}

/// The real SmolLM2 with every weight tuned: six runs of ten micro-batches with checkpointing have
/// the gradient of the tied table without it.
#[test]
#[ignore = "needs models/smollm2-135m.gguf of `just llm`; just test-real"]
fn smollm2_checkpointing_loses_no_gradient() {
    let path = crate::common::root().join("models/smollm2-135m.gguf");
    let titles = ["Blue ink pen, 12 pack", "Blue paper folder", "Desk lamp"];
    let device = &devices()[0];
    let llm = itemlm::model::open_llm(&path).unwrap();
    let catalogue = Catalogue::new(&llm.tokenizer, titles.into_iter()).unwrap();
    let examples: Vec<Vec<Example>> = (0..10)
        .map(|n| {
            let prompt = format!("A user bought {} things and {}. Next comes", n + 2, titles[n % 3]);
            let prompt = llm.tokenizer.encode(&prompt).unwrap();
            vec![Example { prompt, target: Target::Item((n as u32 + 1) % 3), logit_bias: vec![] }]
        })
        .collect();
    let decoder = Decoder::<Training>::load(&llm.config, llm.weights, Tune::Full, Precision::F32, device).unwrap();
    let mut model = ItemLanguageModel::from(decoder);
    let mut gradient = |checkpointing: bool| {
        model.gradient_checkpointing = checkpointing;
        let batches = MicroBatch::Samples(1).batches(examples.clone(), &catalogue, Candidates::Vocabulary);
        let (grads, output) = step(&model, batches, LML, 0);
        (output.loss, host(grads.get::<Dispatch, 2>(model.llm.embed_tokens.id).unwrap()))
    };
    let (loss, expected) = gradient(false);
    for run in 0..6 {
        let (again, table) = gradient(true);
        near(&format!("loss of run {run}"), again, loss);
        close(&format!("run {run}"), &table, &expected);
    }
}
