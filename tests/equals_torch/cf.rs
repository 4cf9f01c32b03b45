//! First optimiser steps of BPR and SASRec.

use burn::module::Param;
use burn::nn::Linear;
use burn::optim::Optimizer;
use itemlm::rankers::bpr::{Bpr, BprConfig};
use itemlm::rankers::sasrec::{SasRec, SasRecConfig, SasRecLoss, Sequences};
use serde_json::Value;

use crate::*;

/// After AdamW the reference's own f32 error is larger (see `training.rs`).
const AFTER_ADAM: f64 = 5e-4;

fn set<const D: usize>(param: &mut Param<Tensor<Dispatch, D>>, values: Vec<f32>) {
    let tensor = Tensor::from_data(TensorData::new(values, param.dims()), &param.val().device());
    *param = Param::initialized(param.id, tensor.require_grad());
}

#[test]
fn bpr() {
    let reference = &json("cf/cf.json")["bpr"];
    let expected = Tensors::open("cf/bpr.safetensors");
    let number = |key: &str| reference[key].as_f64().unwrap();
    for device in devices() {
        let config = BprConfig { dim: number("dim") as usize, ..BprConfig::default() };
        let mut model: Bpr<Dispatch> = config.init(5, 8, &DispatchDevice::autodiff(device));
        set(&mut model.users, expected.floats("start.users"));
        set(&mut model.items, expected.floats("start.items"));
        let mut optimizer = adamw::<Bpr<Dispatch>, Dispatch>(0.0);
        let batches = reference["batches"].as_array().unwrap();
        for (s, (batch, loss)) in batches.iter().zip(floats(&reference["losses"])).enumerate() {
            let columns = sequences(batch);
            let _one_graph = AUTODIFF.lock().unwrap();
            let found = model.loss(&columns[0], &columns[1], &columns[2], number("regularization"));
            near(&format!("step {s}"), found.clone().into_scalar().elem(), loss);
            let grads = GradientsParams::from_grads(found.backward(), &model);
            if s == 0 {
                for (name, param) in [("users", &model.users), ("items", &model.items)] {
                    let grad = grads.get::<Dispatch, 2>(param.id).unwrap();
                    close(name, &host(grad), &expected.floats(&format!("grad.{name}")));
                }
            }
            model = optimizer.step(number("learning_rate"), model, grads);
        }
        close_to(AFTER_ADAM, "users", &host(model.users.val()), &expected.floats("final.users"));
        close_to(AFTER_ADAM, "items", &host(model.items.val()), &expected.floats("final.items"));
    }
}

type Matrix = Param<Tensor<Dispatch, 2>>;

/// Calls `matrix` and `vector` with each parameter and its name in the fixture. Torch keeps a
/// linear layer's weight as [out, in], burn as [in, out]; `true` says so.
fn for_each_parameter(
    model: &mut SasRec<Dispatch>,
    matrix: &mut dyn FnMut(&str, &mut Matrix, bool),
    vector: &mut dyn FnMut(&str, &mut Param<Tensor<Dispatch, 1>>),
) {
    matrix("items", &mut model.items, false);
    if let Some(text) = &mut model.text {
        matrix("text.weight", &mut text.weight, false);
    }
    matrix("positions", &mut model.positions, false);
    for (b, block) in model.blocks.iter_mut().enumerate() {
        let linears: [(&str, &mut Linear<Dispatch>); 6] = [
            ("query", &mut block.query),
            ("key", &mut block.key),
            ("value", &mut block.value),
            ("output", &mut block.output),
            ("inner", &mut block.inner),
            ("outer", &mut block.outer),
        ];
        for (name, linear) in linears {
            matrix(&format!("blocks.{b}.{name}.weight"), &mut linear.weight, true);
            vector(&format!("blocks.{b}.{name}.bias"), linear.bias.as_mut().unwrap());
        }
        for (name, norm) in [("attention_norm", &mut block.attention_norm), ("forward_norm", &mut block.forward_norm)] {
            vector(&format!("blocks.{b}.{name}.weight"), &mut norm.gamma);
            vector(&format!("blocks.{b}.{name}.bias"), norm.beta.as_mut().unwrap());
        }
    }
    vector("norm.weight", &mut model.norm.gamma);
    vector("norm.bias", model.norm.beta.as_mut().unwrap());
}

fn transpose(values: &[f32], turn: bool) -> Vec<f32> {
    let n = values.len().isqrt();
    if turn { (0..n * n).map(|i| values[i % n * n + i / n]).collect() } else { values.to_vec() }
}

/// Takes the reference's optimiser steps; compares losses, the first step's gradients and the
/// parameters after them with the tensors that begin with `prefix`.
fn check_steps(
    mut model: SasRec<Dispatch>,
    batches: &[Sequences],
    (loss, losses): (SasRecLoss, &Value),
    (expected, prefix): (&Tensors, &str),
    parameters: usize,
) {
    let learning_rate = json("cf/cf.json")["sasrec"]["learning_rate"].as_f64().unwrap();
    let mut optimizer = adamw::<SasRec<Dispatch>, Dispatch>(0.0);
    for (s, (batch, known)) in batches.iter().zip(floats(losses)).enumerate() {
        let _one_graph = AUTODIFF.lock().unwrap();
        let found = model.loss(batch, loss);
        near(&format!("{prefix}step {s}"), found.clone().into_scalar().elem(), known);
        let grads = GradientsParams::from_grads(found.backward(), &model);
        assert_eq!(grads.len(), parameters, "every parameter has a gradient");
        if s == 0 {
            for_each_parameter(
                &mut model,
                &mut |name, param, turn| {
                    let grad = host(grads.get::<Dispatch, 2>(param.id).unwrap());
                    close(name, &transpose(&grad, turn), &expected.floats(&format!("{prefix}grad.{name}")));
                },
                &mut |name, param| {
                    let grad = host(grads.get::<Dispatch, 1>(param.id).unwrap());
                    match name.ends_with("key.bias") {
                        // It shifts all scores of a query alike.
                        true => assert!(grad.iter().all(|g| g.abs() < 1e-6), "{name}: {grad:?}"),
                        false => close(name, &grad, &expected.floats(&format!("{prefix}grad.{name}"))),
                    }
                },
            );
        }
        model = optimizer.step(learning_rate, model, grads);
    }
    for_each_parameter(
        &mut model,
        &mut |name, param, turn| {
            let (found, known) =
                (transpose(&host(param.val()), turn), expected.floats(&format!("{prefix}final.{name}")));
            close_to(AFTER_ADAM, &format!("{prefix}{name}"), &found, &known);
        },
        &mut |name, param| {
            // Adam makes steps of the rounding error in a gradient that is zero.
            if !name.ends_with("key.bias") {
                let known = expected.floats(&format!("{prefix}final.{name}"));
                close_to(AFTER_ADAM, &format!("{prefix}{name}"), &host(param.val()), &known);
            }
        },
    );
}

fn set_start(model: &mut SasRec<Dispatch>, expected: &Tensors) {
    for_each_parameter(
        model,
        &mut |name, param, turn| set(param, transpose(&expected.floats(&format!("start.{name}")), turn)),
        &mut |name, param| set(param, expected.floats(&format!("start.{name}"))),
    );
}

fn batches(reference: &Value) -> Vec<Sequences> {
    let rows = |batch: &Value, key: &str| batch.get(key).map_or(Vec::new(), sequences);
    let batches = reference["batches"].as_array().unwrap().iter();
    batches
        .map(|batch| Sequences {
            inputs: rows(batch, "inputs"),
            targets: rows(batch, "targets"),
            negatives: rows(batch, "negatives"),
        })
        .collect()
}

fn config(reference: &Value) -> SasRecConfig {
    let number = |key: &str| reference[key].as_u64().unwrap() as usize;
    SasRecConfig {
        dim: number("dim"),
        heads: number("heads"),
        blocks: number("blocks"),
        max_len: number("max_len"),
        dropout: 0.0,
        ..SasRecConfig::default()
    }
}

#[test]
fn sasrec() {
    let reference = &json("cf/cf.json")["sasrec"];
    let expected = Tensors::open("cf/sasrec.safetensors");
    let (config, batches) = (config(reference), batches(reference));
    for device in devices() {
        for (kind, loss) in [("softmax", SasRecLoss::Softmax), ("bce", SasRecLoss::Bce)] {
            let autodiff = DispatchDevice::autodiff(device.clone());
            let mut model: SasRec<Dispatch> =
                config.init(reference["items"].as_u64().unwrap() as usize, None, &autodiff);
            set_start(&mut model, &expected);
            for (s, batch) in batches.iter().enumerate() {
                let states = burn::module::AutodiffModule::valid(&model).forward(&batch.inputs);
                close(&format!("states {s}"), &host(states), &expected.floats(&format!("states.{s}")));
            }
            let losses = (loss, &reference["losses"][kind]);
            check_steps(model, &batches, losses, (&expected, &format!("{kind}.")), 2 + 2 * 16 + 2);
        }
    }
}

/// Items' vectors that are projected from vectors of their titles, plus vectors of their own.
#[test]
fn sasrec_over_titles() {
    let all = json("cf/cf.json");
    let reference = &all["sasrec_text"];
    let expected = Tensors::open("cf/sasrec_text.safetensors");
    let (config, batches) = (config(&all["sasrec"]), batches(reference));
    let shape = [all["sasrec"]["items"].as_u64().unwrap() as usize, reference["text_dim"].as_u64().unwrap() as usize];
    for device in devices() {
        let autodiff = DispatchDevice::autodiff(device);
        let text = Tensor::from_data(TensorData::new(expected.floats("text"), shape), &autodiff);
        let mut model: SasRec<Dispatch> = config.init(shape[0], Some(text), &autodiff);
        set_start(&mut model, &expected);
        close("table", &host(model.item_table()), &expected.floats("table"));
        check_steps(model, &batches, (SasRecLoss::Softmax, &reference["losses"]), (&expected, ""), 3 + 2 * 16 + 2);
    }
}
