//! `train --plan` against what training allocates.

mod common;
#[path = "cli/lab.rs"]
#[allow(dead_code)]
mod lab;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use itemlm::commands::{plan, train};
use itemlm::config::RunConfig;
use itemlm::device::BackendName;
use itemlm::run::TrainOptions;
use itemlm::train::Ui;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counted.
struct CountingAllocator;

fn add(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn measured(config: &RunConfig, out: std::path::PathBuf, steps: usize) -> usize {
    let options = TrainOptions {
        out,
        backend: BackendName::Cpu.into(),
        resume: false,
        max_steps: Some(steps),
        ui: Ui::None,
        interrupter: Default::default(),
        trust_device: false,
    };
    MOST.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
    train(config, options).unwrap();
    MOST.load(Ordering::Relaxed)
}

/// What two settings differ by, planned and found: the program, the corpus and the tests' own
/// memory are the same in both.
#[test]
fn a_plan_is_what_is_allocated() {
    let lab = lab::Lab::new();
    lab::write_llm_as(&lab.path("llm"), 3, |config| {
        (config.hidden_size, config.intermediate_size, config.num_hidden_layers) = (128, 384, 6);
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (8, 4, 16);
    });
    std::env::set_current_dir(lab.path("")).unwrap();
    let mut runs = 0;
    let mut of = |sets: &[&str]| {
        let common = ["train.batch_size=16", "train.valid_windows=0", "train.epochs=1"];
        let sets: Vec<String> = common.iter().chain(sets).map(|set| set.to_string()).collect();
        let config = RunConfig::open("run.toml".as_ref(), &sets).unwrap();
        let planned = plan(&config, BackendName::Cpu.into()).unwrap();
        let held = planned.weights.total() + planned.optimizer_bytes;
        runs += 1;
        let found = measured(&config, lab.path(&format!("run-{runs}")), 2);
        ((held + planned.step.total().max(planned.between_steps_bytes)) as f64, found as f64)
    };
    let small = of(&["train.micro_batch_tokens=60"]);
    let close = |name: &str, (planned, found): (f64, f64), tolerance: f64| {
        let (planned, found) = (planned - small.0, found - small.1);
        println!("{name}: planned {planned:.0} more bytes, found {found:.0}");
        assert!((planned / found - 1.0).abs() < tolerance, "{name}: planned {planned} more bytes, found {found}");
    };
    let large = "train.micro_batch_tokens=500";
    close("more tokens", of(&[large]), 0.1);
    // Counted with a block more than is there at once.
    close("more tokens, gradient checkpointing", of(&[large, "train.gradient_checkpointing=true"]), 0.25);
    close("no dropout", of(&[large, "llm.lora.dropout=0.0"]), 0.1);
    let every =
        "llm.lora.targets=[\"q_proj\",\"k_proj\",\"v_proj\",\"o_proj\",\"gate_proj\",\"up_proj\",\"down_proj\"]";
    close("every projection adapted", of(&[large, every]), 0.1);
}
