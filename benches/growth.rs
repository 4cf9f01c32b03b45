//! How time grows with catalogue, batch, beams and history: the trie, the loss, the tree attention,
//! the search.
//!
//! `cargo bench --bench growth [-- trie|loss|attention|search]`. Titles, tokens and the Llama (2
//! layers of width 64) are random, from seeds.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use burn::DispatchDevice;
use burn::prelude::*;
use burn::tensor::{Distribution, TensorData};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use itemlm::batch::{Batch, Candidates, Example, Target};
use itemlm::config::{DecodeConfig, Precision, Scoring};
use itemlm::decode::{Query, search};
use itemlm::device::{BackendName, Concrete, Training};
use itemlm::kernels::{AttentionMask, LayerCache, Mask, ScoreScaling, attention};
use itemlm::loss::{Msl, linear_token_loss};
use itemlm::model::{Decoder, DecoderConfig, ItemLanguageModel, Tune, open_weights, save_llm_dir};
use itemlm::tensor::AUTODIFF;
use itemlm::text::{Catalogue, ROOT, Tokenizer, Trie};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Allocator that counts.
struct CountingAllocator;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: mimalloc's own, with counters beside it.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { mimalloc::MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { mimalloc::MiMalloc.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const VOCABULARY: usize = 8192;
const EOS: u32 = 0;
const CATALOGUES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// Sizes that are not varied.
const ITEMS: usize = 10_000;
const PROMPT: usize = 150;

/// Titles of 4 to 16 tokens, small ids more often than large ones, so that they share beginnings.
fn titles(count: usize) -> Vec<Vec<u32>> {
    let mut rng = StdRng::seed_from_u64(count as u64);
    let mut token = |_| (rng.random::<f64>().powi(3) * (VOCABULARY - 1) as f64) as u32 + 1;
    (0..count).map(|item| (0..4 + item % 13).map(&mut token).chain([EOS]).collect()).collect()
}

fn catalogue(count: usize) -> Catalogue {
    let targets = titles(count);
    Catalogue { trie: Trie::build(&targets).unwrap(), targets }
}

fn prompts(count: usize, tokens: usize) -> Vec<Vec<u32>> {
    let mut rng = StdRng::seed_from_u64(3);
    (0..count).map(|_| (0..tokens).map(|_| rng.random_range(1..VOCABULARY as u32)).collect()).collect()
}

fn llama<B: Backend<Device = DispatchDevice>>() -> Decoder<B> {
    let tokenizer = Tokenizer::train_bpe(std::iter::empty(), 257).unwrap();
    let config = DecoderConfig { max_position_embeddings: 2048, ..DecoderConfig::tiny(VOCABULARY) };
    let mut rng = StdRng::seed_from_u64(1);
    let tensors: Vec<_> = config
        .tensors()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product()).map(|_| rng.random_range(-0.2..0.2));
            (name, shape.clone(), values.collect())
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    save_llm_dir(dir.path(), &config, tensors.into_iter().map(Ok), &tokenizer).unwrap();
    let weights = open_weights(dir.path(), &config).unwrap();
    Decoder::load(&config, weights, Tune::Frozen, Precision::F32, &BackendName::Cpu.device().unwrap()).unwrap()
}

fn trie(c: &mut Criterion) {
    let mut group = c.benchmark_group("trie");
    group.sampling_mode(SamplingMode::Flat);
    for count in CATALOGUES {
        let titles = titles(count);
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let trie = Trie::build(&titles).unwrap();
        let [kept, most] =
            [LIVE.load(Relaxed), PEAK.load(Relaxed)].map(|bytes| (bytes - before) as f64 / f64::from(1 << 20));
        println!(
            "trie of {count} titles: {} nodes, {kept:.1} MiB, {most:.1} MiB at most while it is built",
            trie.len()
        );
        group.throughput(Throughput::Elements(count as u64));
        group.bench_with_input(BenchmarkId::new("build", count), &titles, |b, titles| {
            b.iter(|| Trie::build(titles).unwrap())
        });
        // Every child of every node on the way, as a search reads them.
        let walked: Vec<&Vec<u32>> = titles.iter().step_by(count / 1000).collect();
        group.throughput(Throughput::Elements(walked.len() as u64));
        group.bench_function(BenchmarkId::new("walk 1000 titles", count), |b| {
            b.iter(|| {
                let walk = |title: &Vec<u32>| {
                    title.iter().fold((ROOT, 0), |(node, sum), &token| {
                        let children: u32 = trie.valid_tokens(node).iter().fold(sum, |sum, token| sum ^ token);
                        (trie.child(node, token).unwrap(), children)
                    })
                };
                walked.iter().map(|title| walk(title).1).fold(0, |a, b| a ^ b)
            })
        });
    }
}

/// Measures the output projection, the masked softmax and their backward pass, with one target a
/// window.
fn loss(c: &mut Criterion) {
    let mut group = c.benchmark_group("loss");
    group.sampling_mode(SamplingMode::Flat);
    let llm = llama::<Training>();
    let device = BackendName::Cpu.device().unwrap();
    let mut measure = |name: &str, catalogue: &Catalogue, windows: usize, value: usize| {
        let items = (0..windows as u32).map(|n| n * 37 % catalogue.targets.len() as u32);
        let example = |item| Example { prompt: vec![1, 2, 3], target: Target::Item(item), logit_bias: vec![] };
        let examples: Vec<Example> = items.map(example).collect();
        let batch = Batch::new(&examples, catalogue, Candidates::Children);
        let index = batch.candidate_ids.iter().flatten().map(|&row| row as i32).collect::<Vec<_>>();
        let rows = Tensor::<Training, 1, Int>::from_data(TensorData::new(index.clone(), [index.len()]), &device);
        let head = llm.head().select(0, rows);
        let shape = [batch.predictions.len(), llm.config().hidden_size];
        let hidden = Tensor::<Training, 2>::random(shape, Distribution::Default, &device).require_grad();
        group.throughput(Throughput::Elements(windows as u64));
        group.bench_function(BenchmarkId::new(name, value), |b| {
            b.iter(|| {
                let _turn = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
                linear_token_loss(hidden.clone(), head.clone(), false, &batch, &Msl { temperature: 1.0 })
                    .loss
                    .backward()
            })
        });
    };
    for count in CATALOGUES {
        measure("titles", &catalogue(count), 32, count);
    }
    let catalogue = catalogue(ITEMS);
    for windows in [8, 32, 128, 512] {
        measure("windows", &catalogue, windows, windows);
    }
}

/// Measures attention, forward and backward, of 9 query heads over 3 key heads of width 64, below a
/// shared chain of 70 tokens. Each tree is a history with a branch of 12 tokens after every 12.
fn tree_attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    group.sampling_mode(SamplingMode::Flat);
    let device = BackendName::Cpu.device().unwrap();
    let random =
        |shape: [usize; 4]| Tensor::<Training, 4>::random(shape, Distribution::Default, &device).require_grad();
    let mut measure = |name: &str, rows: usize, nodes: usize, value: usize| {
        let parent = |node: usize| match (node / 12 % 2, node % 12, node / 24 * 24) {
            // A history's next piece hangs on its last one, a branch on the piece before it.
            (0, 0, start) => start.checked_sub(13),
            _ => node.checked_sub(1),
        };
        let parents: Vec<Option<usize>> = (0..nodes).map(parent).collect();
        let mask = Mask::new(AttentionMask::trees(&vec![parents; rows]), 70, &device);
        let (q, k, v) = (random([rows, 9, nodes, 64]), random([rows, 3, nodes, 64]), random([rows, 3, nodes, 64]));
        let past = (random([1, 3, 70, 64]), random([1, 3, 70, 64]));
        group.throughput(Throughput::Elements((rows * nodes) as u64));
        group.bench_function(BenchmarkId::new(name, value), |b| {
            b.iter(|| {
                let _turn = AUTODIFF.lock().unwrap_or_else(PoisonError::into_inner);
                let cache = LayerCache { shared: Some(past.clone()), own: vec![(k.clone(), v.clone())] };
                attention(q.clone(), cache, &mask, ScoreScaling::for_head_dim(64)).0.sum().backward()
            })
        });
    };
    for rows in [1, 4, 16, 64] {
        measure("trees", rows, 120, rows);
    }
    for nodes in [60, 120, 240, 480, 960] {
        measure("nodes", 4, nodes, nodes);
    }
}

fn beam_search(c: &mut Criterion) {
    let mut group = c.benchmark_group("search");
    group.sampling_mode(SamplingMode::Flat);
    let model = ItemLanguageModel::from(llama::<Concrete>());
    let device = BackendName::Cpu.device().unwrap();
    let mut measure =
        |name: &str, catalogue: &Catalogue, (users, tokens): (usize, usize), decode: DecodeConfig, value: usize| {
            let prompts = prompts(users, tokens);
            let queries: Vec<Query> = prompts.iter().map(Query::from).collect();
            group.throughput(Throughput::Elements(users as u64));
            group.bench_function(BenchmarkId::new(name, value), |b| {
                b.iter(|| search(&model, catalogue, &queries, &decode, &device).unwrap())
            });
        };
    let decode = |beams, scoring| DecodeConfig { beams, scoring, ..DecodeConfig::default() };
    let ten = decode(10, Scoring::Masked);
    for count in CATALOGUES {
        measure("titles", &catalogue(count), (8, PROMPT), ten.clone(), count);
    }
    let catalogue = catalogue(ITEMS);
    for beams in [1, 5, 10, 20, 50] {
        measure("beams, masked", &catalogue, (8, PROMPT), decode(beams, Scoring::Masked), beams);
        measure("beams, full", &catalogue, (8, PROMPT), decode(beams, Scoring::Full), beams);
    }
    for users in [1, 4, 16, 64] {
        measure("users", &catalogue, (users, PROMPT), ten.clone(), users);
    }
    for tokens in [50, 100, 200, 400, 800] {
        measure("prompt tokens", &catalogue, (8, tokens), ten.clone(), tokens);
    }
}

fn quick() -> Criterion {
    // SAFETY: sets one option of the allocator, as `itemlm` does: freed pages stay with the
    // process.
    unsafe { libmimalloc_sys::mi_option_set(15, -1) };
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = growth; config = quick(); targets = trie, loss, tree_attention, beam_search }
criterion_main!(growth);
