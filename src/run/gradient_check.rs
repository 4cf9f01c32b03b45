//! A run's own gradients on a GPU, compared with the CPU's before the first step.
//!
//! Public reports say that backward passes through frozen weights have given wrong gradients or NaN
//! on Metal and Vulkan where only an adapter is tracked, and right ones where the embedded input is
//! tracked as well (tracel-ai/burn#5162); that products on Metal were about 0 from 500 rows on
//! (#4966, #4907); and that `scatter` on wgpu writes unchecked. A small model does not show all of
//! that. So the micro-batch with most tokens of a run's first steps runs forward and backward on
//! both, with the run's own weights.

use std::time::Instant;

use burn::DispatchDevice;
use burn::train::Interrupter;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::inputs::RunInputs;
use super::precision::products_round;
use super::self_check::{no_cpu, randomize_lora_b};
use super::training::{PreparedRun, TrainOptions};
use super::trusted_devices::TrustedDevices;
use crate::config::RunConfig;
use crate::core::log::log;
use crate::core::panic::DeviceGuard;
use crate::device::{BackendChoice, BackendName};
use crate::train::{GradientProbe, TensorGradient, probe_gradients};
use crate::{Context, Error, Result};

/// Number of optimiser steps among whose micro-batches the longest is taken.
const STEPS: usize = 4;
/// Largest difference of the loss, and of a tensor's gradient in the Euclidean norm, as a share of
/// the CPU's. Sums of thousands of f32 in another order differ by about 1e-5; a gradient that is
/// lost or turned, by about 1.
const TOLERANCE: f64 = 1e-3;
/// Tolerance where products round their inputs to 8 or 11 bits.
const ROUNDED_TOLERANCE: f64 = 0.1;
/// Gradients smaller than this share of the largest are compared as if they had this size: what is
/// left of terms that cancel is noise.
const NOISE: f64 = 1e-3;
/// Bound of the random values of LoRA's B. It starts at zero, which would leave A without a
/// gradient.
const LORA_B: f32 = 0.02;

/// Distance of a run's gradients on a device from the CPU's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GradientCheck {
    /// Number of tokens of the micro-batch.
    pub tokens: usize,
    /// The difference of the losses, as a share of the CPU's.
    pub loss_difference: f64,
    /// The largest difference of a tensor's gradient, as a share of the CPU's.
    pub gradient_difference: f64,
    /// The tensor with that difference.
    pub tensor: String,
    /// Whether the embedded input must be tracked for that.
    pub tracked_input: bool,
}

/// Compares the run's gradients on each of `devices` with the CPU's, unless an earlier run on the
/// same device, driver, program and model did. Returns an entry for the log of metrics and whether
/// the embedded input must be tracked; `None` on the CPU.
///
/// * `trust`: skip the comparison.
///
/// # Errors
/// Gradients that differ, in one line; a build without the CPU; a device that dies.
pub(crate) fn check_gradients(
    config: &RunConfig,
    backend: &BackendChoice,
    llm: &str,
    devices: &[DispatchDevice],
    trust: bool,
) -> Result<Option<(serde_json::Value, bool)>> {
    if backend.name == BackendName::Cpu {
        return Ok(None);
    }
    if trust {
        log(format_args!("note: the device's gradients are not compared with the CPU's, as was asked"));
        return Ok(Some((json!("trusted"), false)));
    }
    let verdicts = TrustedDevices::new("gradients", config, backend, llm)?;
    if let Some(check) = verdicts.read::<GradientCheck>() {
        return Ok(Some((json!(check), check.tracked_input)));
    }
    let started = Instant::now();
    let mut worst: Option<GradientCheck> = None;
    let cpu = BackendName::Cpu.device().map_err(|_| no_cpu())?;
    // Where the host's memory may not do, that is noted first.
    let Some(expected) = probe(config, &BackendName::Cpu.into(), &cpu, false)? else {
        log(format_args!(
            "note: the device's gradients cannot be compared with the CPU's: a Q-Former with dropout draws other masks"
        ));
        return Ok(Some((json!("not comparable"), false)));
    };
    for device in devices {
        let check = check_device(config, backend, device, &expected)?;
        if worst.as_ref().is_none_or(|worst| {
            (check.tracked_input, check.gradient_difference) > (worst.tracked_input, worst.gradient_difference)
        }) {
            worst = Some(check);
        }
    }
    let Some(check) = worst else { return Ok(None) };
    log(format_args!(
        "gradients of a micro-batch of {} tokens equal the CPU's to {:.0e} of each tensor's norm (loss: {:.0e}); \
         compared in {:.1} s",
        check.tokens,
        check.gradient_difference,
        check.loss_difference,
        started.elapsed().as_secs_f64()
    ));
    verdicts.write(&check);
    Ok(Some((json!(check), check.tracked_input)))
}

/// Compares one device with the CPU; where they differ, with the embedded input tracked as well.
fn check_device(
    config: &RunConfig,
    backend: &BackendChoice,
    device: &DispatchDevice,
    expected: &GradientProbe,
) -> Result<GradientCheck> {
    let tolerance = if products_round(config.llm.precision, device) { ROUNDED_TOLERANCE } else { TOLERANCE };
    let mut differences = Vec::new();
    for tracked_input in [false, true] {
        let found = DeviceGuard::new().run(|| probe(config, backend, device, tracked_input))?;
        let found = found.ok_or_else(|| Error::failed("there are no gradients"))?;
        match compare(&found, expected, tolerance) {
            Ok(check) => {
                if let Some(without) = differences.first() {
                    log(format_args!(
                        "note: on this device {without}; with the embedded input tracked as well (burn#5162) they are \
                         right, and the run goes on in that way"
                    ));
                }
                return Ok(GradientCheck { tracked_input, ..check });
            }
            Err(difference) => differences.push(difference),
        }
    }
    Err(Error::device(format!(
        "option `backend` {backend}: {}; tracking the embedded input as well (burn#5162) does not help: {}. Update the \
         driver or take another device; option `trust_device` trains nevertheless",
        differences[0], differences[1]
    )))
}

/// Compares loss and gradients with the CPU's. Returns the difference where it is within the
/// tolerance, and otherwise what is wrong, in words.
fn compare(
    found: &GradientProbe,
    expected: &GradientProbe,
    tolerance: f64,
) -> std::result::Result<GradientCheck, String> {
    let loss_difference = (found.loss - expected.loss).abs() / expected.loss.abs().max(f64::MIN_POSITIVE);
    if loss_difference.is_nan() || loss_difference > tolerance {
        return Err(format!(
            "the loss of a micro-batch of {} tokens is {:.6} where the CPU's is {:.6}",
            expected.tokens, found.loss, expected.loss
        ));
    }
    let names =
        |probe: &GradientProbe| probe.gradients.iter().map(|gradient| gradient.name.clone()).collect::<Vec<_>>();
    if names(found) != names(expected) {
        let (found, expected) = (found.gradients.len(), expected.gradients.len());
        return Err(format!("{found} tensors have a gradient where on the CPU {expected} have one"));
    }
    let floor = NOISE * expected.gradients.iter().map(|gradient| norm(&gradient.values)).fold(0.0, f64::max);
    let mut worst = (0.0, String::new());
    for (found, expected) in found.gradients.iter().zip(&expected.gradients) {
        let difference = difference(found, expected, floor);
        if difference.is_nan() || difference > tolerance {
            return Err(describe(found, expected));
        }
        if difference >= worst.0 {
            worst = (difference, found.name.clone());
        }
    }
    Ok(GradientCheck {
        tokens: expected.tokens,
        loss_difference,
        gradient_difference: worst.0,
        tensor: worst.1,
        tracked_input: false,
    })
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// Returns the norm of the difference, as a share of the expected gradient's, or of `floor` where
/// that is more.
fn difference(found: &TensorGradient, expected: &TensorGradient, floor: f64) -> f64 {
    if found.values.len() != expected.values.len() {
        return f64::NAN;
    }
    let pairs = found.values.iter().zip(&expected.values);
    let squares: f64 = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    squares.sqrt() / norm(&expected.values).max(floor).max(f64::MIN_POSITIVE)
}

/// Says how a gradient differs: by values that are no numbers, or by norm and direction.
fn describe(found: &TensorGradient, expected: &TensorGradient) -> String {
    let name = &found.name;
    let wrong = found.values.iter().filter(|value| !value.is_finite()).count();
    if wrong > 0 {
        return format!("{wrong} of {} values of the gradient of {name} are no numbers", found.values.len());
    }
    let [a, b] = [norm(&found.values), norm(&expected.values)];
    let product: f64 = found.values.iter().zip(&expected.values).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    let cosine = if a * b > 0.0 { product / (a * b) } else { 0.0 };
    format!("the gradient of {name} has norm {a:.3e} where the CPU's has {b:.3e}, and their cosine is {cosine:.4}")
}

/// Computes loss and gradients of the run's longest micro-batch, without dropout; `None` where a
/// Q-Former has dropout, which each device draws differently.
fn probe(
    config: &RunConfig,
    backend: &BackendChoice,
    device: &DispatchDevice,
    track_input: bool,
) -> Result<Option<GradientProbe>> {
    let mut config = config.clone();
    config.llm.lora.dropout = 0.0;
    config.train.valid_windows = 0;
    let options = TrainOptions::dry(backend.clone(), Interrupter::new());
    let inputs = RunInputs::open(&config, None, device)?;
    if inputs.entities.as_ref().is_some_and(|entities| entities.identity.encoder.has_dropout()) {
        return Ok(None);
    }
    let PreparedRun { mut model, run, .. } =
        PreparedRun::open(&config, &options, inputs, None, std::slice::from_ref(device))?;
    model.track_input = track_input;
    randomize_lora_b(&mut model.llm, LORA_B, config.seed, device);
    probe_gradients(model, run, STEPS).map(Some).context(format_args!("option `backend` {backend}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe_of(tensors: &[&[f32]]) -> GradientProbe {
        let gradient =
            |(n, values): (usize, &&[f32])| TensorGradient { name: format!("t{n}"), values: values.to_vec() };
        GradientProbe { loss: 0.5, tokens: 90, gradients: tensors.iter().enumerate().map(gradient).collect() }
    }

    /// Each of the faults that the public reports name is found and named: a gradient that is zero,
    /// turned, scaled or NaN, one that is missing, and a wrong loss.
    #[test]
    fn planted_faults_are_named() {
        let right = probe_of(&[&[3.0, 4.0], &[0.1, -0.2, 0.3]]);
        let off = probe_of(&[&[3.0, 4.0002], &[0.1, -0.2, 0.3]]);
        let check = compare(&off, &right, TOLERANCE).unwrap();
        assert!((check.gradient_difference - 4e-5).abs() < 1e-6 && check.tensor == "t0", "{check:?}");
        assert_eq!(compare(&right, &right, TOLERANCE).unwrap().gradient_difference, 0.0);
        for (wrong, named) in [
            (probe_of(&[&[3.0, 4.0], &[0.0; 3]]), "the gradient of t1 has norm 0.000e0 where the CPU's has 3.742e-1"),
            (
                probe_of(&[&[-4.0, 3.0], &[0.1, -0.2, 0.3]]),
                "t0 has norm 5.000e0 where the CPU's has 5.000e0, and their cosine is 0.0000",
            ),
            (
                probe_of(&[&[6.0, 8.0], &[0.1, -0.2, 0.3]]),
                "t0 has norm 1.000e1 where the CPU's has 5.000e0, and their cosine is 1.0000",
            ),
            (probe_of(&[&[3.0, f32::NAN], &[0.1, -0.2, 0.3]]), "1 of 2 values of the gradient of t0 are no numbers"),
            (probe_of(&[&[3.0, 4.0]]), "1 tensors have a gradient where on the CPU 2 have one"),
            (GradientProbe { loss: f64::NAN, ..right.clone() }, "the loss of a micro-batch of 90 tokens is NaN"),
            (GradientProbe { loss: 0.6, ..right.clone() }, "is 0.600000 where the CPU's is 0.500000"),
        ] {
            let difference = compare(&wrong, &right, TOLERANCE).unwrap_err();
            assert!(difference.contains(named), "{difference}");
        }
    }

    /// The rest of terms that cancel may be anything; a lost gradient of ordinary size may not.
    #[test]
    fn noise_is_no_fault() {
        let right = probe_of(&[&[300.0], &[1e-5]]);
        assert!(compare(&probe_of(&[&[300.0], &[-1e-5]]), &right, TOLERANCE).is_ok());
        let right = probe_of(&[&[300.0], &[1.0]]);
        assert!(compare(&probe_of(&[&[300.0], &[-1.0]]), &right, TOLERANCE).is_err());
    }
}
