//! A LoRA training step of a Llama-family model on the CPU, with operations that have their own
//! backward and without, in turn: `cargo bench --bench step -- MODEL.gguf [ROWS TOKENS ROUNDS]`.
//! Medians; on a busy machine only processor time says much.

use std::path::Path;

use burn::DispatchDevice;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use itemlm::config::{LoraConfig, Precision};
use itemlm::device::{BackendName, Concrete, Training};
use itemlm::model::{Decoder, Tune, causal_mask, open_llm};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Returns wall and processor seconds since some beginning.
fn clocks() -> [f64; 2] {
    [libc::CLOCK_MONOTONIC, libc::CLOCK_PROCESS_CPUTIME_ID].map(|clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one timespec.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    })
}

/// Seconds forward and backward, then the same of processor time.
fn step<B: AutodiffBackend>(llm: &Decoder<B>, [rows, tokens]: [usize; 2], device: &B::Device) -> [f64; 4] {
    let ids = (0..rows * tokens).map(|i| (i * 7919 % llm.config().vocab_size) as i32).collect();
    let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [rows, tokens]), device);
    let positions: Vec<u32> = (0..rows).flat_map(|_| 0..tokens as u32).collect();
    let start = clocks();
    let hidden = llm.forward(llm.embed(ids), &positions, causal_mask(tokens, device), None).hidden;
    let loss = hidden.square().mean();
    let middle = clocks();
    let gradients = loss.backward();
    let end = clocks();
    drop(gradients);
    [middle[0] - start[0], end[0] - middle[0], middle[1] - start[1], end[1] - middle[1]]
}

fn main() {
    // SAFETY: sets one option of the allocator, as `itemlm` does: freed pages stay with the
    // process.
    unsafe { libmimalloc_sys::mi_option_set(15, -1) };
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(model) = args.first() else { return println!("which model? cargo bench --bench step -- MODEL.gguf") };
    let number = |n: usize, default| args.get(n).map_or(default, |arg| arg.parse().expect("a number"));
    let (size, rounds) = ([number(1, 4), number(2, 180)], number(3, 5));

    let device = BackendName::Cpu.device().unwrap();
    let autodiff = DispatchDevice::autodiff(device.clone());
    let lora = LoraConfig::default();
    let open = || open_llm(Path::new(model)).unwrap();
    let plain = open();
    let plain =
        Decoder::<Concrete>::load(&plain.config, plain.weights, Tune::Lora(&lora, 1), Precision::F32, &autodiff)
            .unwrap();
    let fused = open();
    let fused =
        Decoder::<Training>::load(&fused.config, fused.weights, Tune::Lora(&lora, 1), Precision::F32, &device).unwrap();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..=rounds {
        times[0].push(step(&plain, size, &autodiff));
        times[1].push(step(&fused, size, &device));
    }
    // The first round warms up.
    let [plain, fused] = times.map(|times| [0, 1, 2, 3].map(|n| median(times[1..].iter().map(|t| t[n]).collect())));
    println!("{} rows of {} tokens, {rounds} rounds      plain     fused     ratio", size[0], size[1]);
    for (n, what) in ["forward, s", "backward, s", "forward, CPU s", "backward, CPU s"].iter().enumerate() {
        println!("{what:32} {:9.3} {:9.3} {:9.2}", plain[n], fused[n], plain[n] / fused[n]);
    }
    let sum = |t: [f64; 4], n| t[n] + t[n + 1];
    for (n, what) in [(0, "step, s"), (2, "step, CPU s")] {
        println!("{what:32} {:9.3} {:9.3} {:9.2}", sum(plain, n), sum(fused, n), sum(plain, n) / sum(fused, n));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
