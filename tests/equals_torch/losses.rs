//! The token losses, their gradients and the adaptive temperature.

use crate::*;

/// Selects from dense logits `[positions, vocabulary]` the batch's `[predictions, rows]`, as a
/// tensor that can be differentiated.
fn gathered(
    dense: &Tensor<Dispatch, 2>,
    batch: &Batch,
    children: &[usize],
    device: &DispatchDevice,
) -> Tensor<Dispatch, 2> {
    let index = |values: Vec<i32>| {
        let n = values.len();
        Tensor::<Dispatch, 1, Int>::from_data(TensorData::new(values, [n]), device)
    };
    let Some(rows) = &batch.candidate_ids else { return dense.clone() };
    let at = (0..children.len()).filter(|&p| children[p] > 1).map(|p| p as i32).collect();
    dense.clone().select(0, index(at)).select(1, index(rows.iter().map(|&r| r as i32).collect()))
}

#[test]
fn losses_gradients_and_temperatures() {
    let reference = json("loss.json");
    let tensors = Tensors::open("loss.safetensors");
    for device in devices() {
        let _turn = AUTODIFF.lock().unwrap();
        let device = DispatchDevice::autodiff(device);
        for (case, value) in reference["cases"].as_object().unwrap() {
            let catalogue = catalogue(&value["catalogue"]);
            let m = catalogue.trie.valid_tokens(ROOT).len();
            assert_eq!(m, value["root_children"].as_u64().unwrap() as usize);
            let mut ats = Loss::Ats(Ats::new(m));
            for (s, step) in value["steps"].as_array().unwrap().iter().enumerate() {
                let examples: Vec<Example> = numbers(&step["samples"])
                    .into_iter()
                    .map(|item| Example { prompt: vec![1], target: Target::Item(item), logit_bias: vec![] })
                    .collect();
                let children: Vec<usize> = numbers(&step["children"]).into_iter().map(|c| c as usize).collect();
                let positions = children.len();
                let values = tensors.floats(&format!("{case}.{s}.logits"));
                let dense =
                    Tensor::<Dispatch, 2>::from_data(TensorData::new(values, [positions, 50]), &device).require_grad();
                for (kind, mut loss) in [
                    ("lml", LML),
                    ("lml-2", Loss::Lml(Lml { temperature: 2.0 })),
                    ("msl-1", Loss::Msl(Msl { temperature: 1.0 })),
                    ("msl-4.5", Loss::Msl(Msl { temperature: 4.5 })),
                    ("bear-3", Loss::Bear(Bear { temperature: 1.0, lambda: 0.25, xi: 2.75, beams: 3 })),
                    ("bear-10", Loss::Bear(Bear { temperature: 2.0, lambda: 1.0, xi: 0.5, beams: 10 })),
                    ("ats", ats),
                ] {
                    let what = format!("{case}, step {s}, {kind}");
                    let batch = Batch::new(&examples, &catalogue, loss.candidates());
                    assert_eq!(batch.target_tokens, positions, "{what}");
                    let expected = &step[kind];
                    if batch.predictions.is_empty() {
                        assert!(children.iter().all(|&c| c == 1), "{what}");
                        continue;
                    }
                    let logits = gathered(&dense, &batch, &children, &device);
                    if kind == "ats" {
                        loss.observe(&host(logits.clone()), &batch);
                        loss.update();
                        near(&what, loss.temperature(), expected["temperature"].as_f64().unwrap());
                        ats = loss;
                    }
                    // Times the identity, logits are logits.
                    let head = Tensor::eye(logits.dims()[1], &device);
                    let sums = linear_token_loss(logits, head, false, &batch, &loss);
                    let found = match sums.weight {
                        Some(weight) => sums.loss / weight,
                        None => sums.loss.div_scalar(loss.denominator(std::slice::from_ref(&batch)) as f64),
                    };
                    near(&what, found.clone().into_scalar().elem(), expected["loss"].as_f64().unwrap());
                    let name = format!("{case}.{s}.grad.{kind}");
                    if !tensors.names().contains(&name) {
                        continue;
                    }
                    let grad = host(dense.grad(&found.backward()).unwrap());
                    let grad = match loss {
                        Loss::Lml(_) => grad,
                        _ => {
                            let paths = examples.iter().flat_map(|e| {
                                let Target::Item(item) = e.target else { unreachable!("all are items") };
                                let path = catalogue.trie.path(catalogue.trie.leaf(item));
                                std::iter::once(ROOT).chain(path[..path.len() - 1].to_vec()).collect::<Vec<_>>()
                            });
                            let row = |(p, node)| {
                                catalogue
                                    .trie
                                    .valid_tokens(node)
                                    .iter()
                                    .map(|&t| grad[p * 50 + t as usize])
                                    .collect::<Vec<_>>()
                            };
                            paths.enumerate().flat_map(row).collect()
                        }
                    };
                    close(&what, &grad, &tensors.floats(&name));
                }
            }
        }
    }
}
