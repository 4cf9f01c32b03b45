//! Products in bf16 and f16, beside those in f32.

use burn::tensor::{DType, FloatDType};
use itemlm::model::open_llm;

use crate::*;

/// How far from f32, of the largest value: a few roundings of 8 and 11 bits in two blocks.
const HALVES: [(Precision, f64); 2] = [(Precision::Bf16, 8e-2), (Precision::F16, 1e-2)];

fn hidden<B: Backend<Device = DispatchDevice>>(model: &Decoder<B>, device: &DispatchDevice) -> Tensor<B, 2> {
    let input = ids(&(0..24).map(|t| 7 * t % 90 + 3).collect::<Vec<_>>(), [2, 12], device);
    let positions: Vec<u32> = (0..2).flat_map(|_| 0..12).collect();
    let output = model.forward(model.embed(input), &positions, mask(causal(12), [1, 1, 12, 12], device), None);
    output.hidden.reshape([24, model.config().hidden_size])
}

#[test]
fn half_precision_is_near_f32_and_leaves_f32_what_trains() {
    let mut on_cpu: Vec<(Precision, Vec<f32>)> = Vec::new();
    for device in devices() {
        let exact = host(hidden(&llama::<Dispatch>("llama-untied", Tune::Frozen, &device), &device));
        for (precision, tolerance) in HALVES {
            if !Dispatch::supports_dtype(&device, precision.dtype().into()) {
                continue;
            }
            let model = llama_in::<Dispatch>("llama-untied", Tune::Frozen, precision, &device);
            for linear in [model.layers[0].linear(Projection::Query), model.layers[1].linear(Projection::Down)] {
                assert_eq!(FloatDType::from(linear.weight.dense().dtype()), precision.dtype());
            }
            for table in [model.embed_tokens.val(), model.head()] {
                assert_eq!(table.dtype(), DType::F32);
            }
            let states = hidden(&model, &device);
            let logits = model.logits(states.clone(), None);
            assert_eq!([states.dtype(), logits.dtype(), model.norm.gamma.val().dtype()], [DType::F32; 3]);
            let found = host(states);
            close_to(tolerance, &precision.to_string(), &found, &exact);
            assert!(found != exact, "{precision} was rounded nowhere");
            match on_cpu.iter().find(|(p, _)| *p == precision) {
                Some((_, cpu)) => close_to(tolerance / 2.0, "beside the CPU", &found, cpu),
                None => on_cpu.push((precision, found)),
            }
        }
    }
    if cfg!(feature = "cpu") {
        assert_eq!(on_cpu.len(), 2, "the CPU computes in both");
    }
}

#[test]
fn gradients_through_halves() {
    for device in devices() {
        let _turn = AUTODIFF.lock().unwrap();
        let config = lora_config();
        // Every weight in turn as master and adapter: both train in f32.
        let gradients = |precision, tune| {
            let model = llama_in::<Training>("llama-untied", tune, precision, &device);
            let model = match tune {
                Tune::Lora(..) => load_adapter(&fixture("lora"), model, &device).unwrap(),
                _ => model,
            };
            // The norm before it leaves the mean square no gradient to speak of.
            let states = hidden(&model, &device);
            let weights = (0..states.dims().iter().product()).map(|n| (n as f32 * 0.7).sin()).collect();
            let weights = Tensor::from_data(TensorData::new(weights, states.dims()), &device);
            let found = (states * weights).sum().backward();
            let layer = &model.layers[0];
            let trained = match &layer.linear(Projection::Value).lora {
                Some(lora) => [lora.a.val(), lora.b.val()],
                None => [layer.linear(Projection::Value).weight.dense(), layer.linear(Projection::Down).weight.dense()],
            };
            trained.map(|parameter| {
                assert_eq!(parameter.dtype(), DType::F32);
                host(parameter.grad(&found).unwrap())
            })
        };
        // This random model's attention is steep, so a rounding counts; eight times finer ones
        // count an eighth.
        let cases = [(Precision::Bf16, 0.2), (Precision::F16, 0.025)];
        let cases = cases
            .into_iter()
            .flat_map(|(p, tolerance)| [(p, tolerance, Tune::Lora(&config, 1)), (p, tolerance, Tune::Full)]);
        for (precision, tolerance, tune) in cases {
            if !Dispatch::supports_dtype(&device, precision.dtype().into()) {
                continue;
            }
            let (exact, found) = (gradients(Precision::F32, tune), gradients(precision, tune));
            for (found, exact) in found.iter().zip(&exact) {
                // By norms: single numbers of a small random model are off by up to a tenth of the
                // largest.
                let norm =
                    |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                let off = norm(&mut found.iter().zip(exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
                assert!(off < tolerance, "{precision}: a gradient off by {off}");
                assert!(found != exact, "{precision} was rounded nowhere");
            }
        }
    }
}

/// Of every block format of GGUF one matrix or more, and two that are in none.
#[test]
fn matrices_that_stay_quantised_compute_what_unpacked_ones_do() {
    let path = common::fixture("gguf/tiny.gguf");
    let config = LoraConfig { rank: 2, dropout: 0.0, ..lora_config() };
    for device in devices() {
        let _turn = AUTODIFF.lock().unwrap();
        for precision in [Precision::F32, Precision::Bf16] {
            if !Dispatch::supports_dtype(&device, precision.dtype().into()) {
                continue;
            }
            let found = [false, true].map(|quantized| {
                let mut llm = open_llm(&path).unwrap();
                if quantized {
                    let size = llm.weights.keep_quantized().unwrap();
                    assert_eq!(size.matrices, 12);
                    assert!(size.bytes * 3 < size.plain_bytes, "{size:?}");
                }
                let tune = Tune::Lora(&config, 1);
                let mut model = Decoder::<Training>::load(&llm.config, llm.weights, tune, precision, &device).unwrap();
                // Adapters start where they change nothing and so have no gradient but B's.
                for layer in &mut model.layers {
                    for lora in layer.linears.iter_mut().filter_map(|linear| linear.lora.as_mut()) {
                        lora.b = lora.b.clone().map(|b| Tensor::full(b.shape(), 0.05, &device).require_grad());
                    }
                }
                let ids = ids(&(0..16).map(|t| 5 * t % 32).collect::<Vec<_>>(), [1, 16], &device);
                let positions: Vec<u32> = (0..16).collect();
                let output =
                    model.forward(model.embed(ids), &positions, mask(causal(16), [1, 1, 16, 16], &device), None);
                let gradients = (output.hidden.clone() * 0.5).powi_scalar(3).sum().backward();
                let mut numbers = vec![host(output.hidden)];
                if precision == Precision::F32 {
                    numbers
                        .extend(model.layers.iter().map(|layer| host(layer.linear(Projection::Query).merged_weight())));
                }
                for layer in &model.layers {
                    for lora in [layer.linear(Projection::Query), layer.linear(Projection::Value)]
                        .into_iter()
                        .filter_map(|linear| linear.lora.as_ref())
                    {
                        numbers.extend([&lora.a, &lora.b].map(|matrix| host(matrix.val().grad(&gradients).unwrap())));
                    }
                }
                numbers
            });
            let [plain, quantized] = found;
            assert!(plain.len() > 6 && plain.iter().flatten().all(|number| number.is_finite()));
            for (found, expected) in quantized.iter().zip(&plain) {
                // The same products of the same numbers; a GPU may order a sum otherwise.
                close_to(1e-6, &format!("quantised, {precision}"), found, expected);
            }
        }
    }
}
