//! The search with a prior: its limits, and its sum against enumeration.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::{Dispatch, DispatchDevice};
use rand::{Rng, SeedableRng};

use super::*;
use crate::backend::BackendName;
use crate::cf::{Distribution, Method, Settings, train};
use crate::config::{DecodeConfig, Scoring};
use crate::data::{Corpus, Split, synthetic};
use crate::evaluate::rank_collaborative;
use crate::model::{LlamaConfig, Tune, Weights};
use crate::prior::{Baseline, ItemScores, Prior, UserPrior, fit};
use crate::text::{Catalogue, ROOT};

fn llama(device: &DispatchDevice) -> Llama<Dispatch> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/llama-untied");
    let path = dir.join("config.json");
    let config = LlamaConfig::from_json(&path, &fs::read_to_string(&path).unwrap()).unwrap();
    Llama::load(&config, Weights::open(&dir, &config).unwrap(), Tune::Frozen, device).unwrap()
}

/// All logits are 0.
fn constant_llama(device: &DispatchDevice) -> Llama<Dispatch> {
    let mut model = llama(device);
    let head = model.lm_head.as_mut().unwrap();
    head.weight = head.weight.clone().map(|weight| weight.zeros_like());
    model
}

/// The synthetic corpus, with a token a word.
fn corpus() -> (Corpus, Catalogue) {
    let (corpus, _) = synthetic(3);
    let mut words: HashMap<&str, u32> = HashMap::new();
    let mut target = |title: &'static str| -> Vec<u32> {
        let tokens = title.split(' ').map(|word| {
            let next = 3 + words.len() as u32;
            *words.entry(word).or_insert(next)
        });
        tokens.chain([2]).collect()
    };
    let targets: Vec<Vec<u32>> = corpus.items.iter().map(|item| target(item.title.clone().leak())).collect();
    (corpus, Catalogue { trie: Trie::build(&targets).unwrap(), targets })
}

fn linked(ranker: &dyn ItemScores, history: &[u32]) -> usize {
    ranker.scores(history).iter().filter(|&&score| score > 0.0).count()
}

/// A short training on the corpus.
fn distribution(method: Method, corpus: &Corpus) -> Distribution<Dispatch> {
    let sets: &[&str] = match method {
        Method::Als => &["dim=8"],
        Method::Bpr => &["dim=8", "epochs=2", "learning_rate=0.05"],
        Method::Sasrec => &["dim=8", "epochs=2", "max_len=6"],
    };
    let settings = Settings::parse(method, &sets.iter().map(|set| set.to_string()).collect::<Vec<_>>()).unwrap();
    let device = DispatchDevice::autodiff(BackendName::Cpu.device().unwrap());
    let trained = train::<Dispatch>(&settings, corpus, &device, &mut |_| Ok(None), &mut |_| {}).unwrap();
    Distribution::new(trained.model, corpus)
}

#[test]
fn with_a_constant_llm_the_ranking_is_the_rankers() {
    let device = BackendName::Cpu.device().unwrap();
    let model = constant_llama(&device);
    let (corpus, catalogue) = corpus();
    let items = corpus.items.len();
    let histories: Vec<&[u32]> = corpus.windows(Split::Test).iter().take(8).map(|w| corpus.history(w)).collect();
    // The prior, and for each history how many items the ranker knows of and its ranking.
    let mut rankers: Vec<(String, Prior, Vec<usize>, Vec<Vec<u32>>)> = Vec::new();
    for baseline in [Baseline::Cooccurrence, Baseline::Markov, Baseline::Popularity] {
        let ranker = fit(baseline, &corpus);
        let rankings = histories.iter().map(|history| ranker.rank(history, items)).collect();
        let linked = histories.iter().map(|history| linked(&ranker, history)).collect();
        let prior = Prior::new(ranker, &catalogue.trie, 1.0, 0.2);
        rankers.push((baseline.to_string(), prior, linked, rankings));
    }
    for method in [Method::Als, Method::Bpr, Method::Sasrec] {
        let ranker = distribution(method, &corpus);
        let rankings = rank_collaborative(ranker.model(), &corpus, &histories, items);
        let linked = histories.iter().map(|history| linked(&ranker, history)).collect();
        let prior = Prior::new(ranker, &catalogue.trie, 1.0, 0.2);
        rankers.push((method.to_string(), prior, linked, rankings));
    }
    for (name, prior, linked, rankings) in rankers {
        let priors: Vec<UserPrior> = histories.iter().map(|history| prior.after(history)).collect();
        let prompts: Vec<Vec<u32>> = (1..9).map(|length| vec![5; length]).collect();
        let decode = DecodeConfig { beams: items, scoring: Scoring::Masked, length_penalty: 0.0 };
        let ranked = search(&model, &catalogue, &prompts, &priors, &decode, &device);
        // Ten beams find the same ten: the search looks ahead to the prior's best items.
        let few = search(&model, &catalogue, &prompts, &priors, &DecodeConfig { beams: 10, ..decode }, &device);
        for (few, all) in few.iter().zip(&ranked) {
            let log_probs = |ranked: &[Ranked]| ranked.iter().take(10).map(|r| r.log_prob).collect::<Vec<_>>();
            log_probs(few).iter().zip(log_probs(all)).for_each(|(few, all)| assert!((few - all).abs() < 1e-9));
            assert_eq!(few.len(), 10);
        }
        let mut compared = 0;
        for (n, (found, user)) in ranked.iter().zip(&priors).enumerate() {
            assert_eq!(found.len(), items);
            for ranked in found {
                assert!((ranked.log_prob - user.mass(ranked.leaf).ln()).abs() < 1e-6, "the log-probability is the ranker's");
            }
            // The ranker breaks ties by popularity, the search by the trie: equal up to ties.
            compared += linked[n];
            for (ranked, &item) in found.iter().zip(&rankings[n]).take(linked[n]) {
                let (found, expected) = (user.mass(ranked.leaf), user.mass(catalogue.trie.leaf(item)));
                assert!((found - expected).abs() < 1e-9, "{name}: {found} instead of {expected}");
            }
        }
        assert!(compared > 0, "{name}: nothing was linked");
    }
}

#[test]
fn with_weight_zero_the_ranking_is_the_llms_to_the_bit() {
    let device = BackendName::Cpu.device().unwrap();
    let model = llama(&device);
    let (corpus, catalogue) = corpus();
    let counts = Prior::new(fit(Baseline::Cooccurrence, &corpus), &catalogue.trie, 0.0, 0.1);
    let vectors = Prior::new(distribution(Method::Bpr, &corpus), &catalogue.trie, 0.0, 0.1);
    let windows = &corpus.windows(Split::Test)[..4];
    let prompts: Vec<Vec<u32>> = (0..4).map(|n| vec![7 + n, 50, 3 + n]).collect();
    for scoring in [Scoring::Masked, Scoring::Full] {
        let decode = DecodeConfig { beams: 10, scoring, length_penalty: 0.5 };
        let alone = search(&model, &catalogue, &prompts, &[], &decode, &device);
        for prior in [&counts, &vectors] {
            let priors: Vec<UserPrior> = windows.iter().map(|window| prior.of_window(&corpus, Split::Test, window)).collect();
            assert_eq!(search(&model, &catalogue, &prompts, &priors, &decode, &device), alone);
        }
    }
}

/// What an item scores with a prior, from the LLM's probabilities of whole items alone.
fn enumerated(catalogue: &Catalogue, alone: &[ItemScore], user: &UserPrior, weight: f64, item: usize) -> ItemScore {
    let (trie, targets) = (&catalogue.trie, &catalogue.targets);
    let leaves: Vec<usize> = (0..targets.len()).filter(|&i| trie.items(trie.leaf(i as u32)).next() == Some(i as u32)).collect();
    let probability = |prefix: &[u32]| -> f64 {
        leaves.iter().filter(|&&i| targets[i].starts_with(prefix)).map(|&i| alone[i].masked.exp()).sum()
    };
    let mut masked = 0.0;
    let mut node = ROOT;
    for t in 0..targets[item].len() {
        let before = &targets[item][..t];
        let of = |child: Node| {
            let prefix = [before, &[trie.token(child)]].concat();
            probability(&prefix) / probability(before) * (user.mass(child) / user.mass(node)).powf(weight)
        };
        let child = trie.child(node, targets[item][t]).unwrap();
        masked += (of(child) / trie.children(node).map(of).sum::<f64>()).ln();
        node = child;
    }
    ItemScore { masked, full: alone[item].full + weight * user.mass(node).ln() }
}

#[test]
fn the_search_with_a_prior_equals_enumeration() {
    let device = BackendName::Cpu.device().unwrap();
    let model = llama(&device);
    let (corpus, _) = corpus();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    for _ in 0..6 {
        let mut target = || -> Vec<u32> { (0..rng.random_range(1..5)).map(|_| rng.random_range(3..7)).chain([2]).collect() };
        let targets: Vec<Vec<u32>> = (0..corpus.items.len()).map(|_| target()).collect();
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let weight = 0.8;
        let prior = Prior::new(fit(Baseline::Markov, &corpus), &catalogue.trie, weight, 0.3);
        let user = prior.after(corpus.history(&corpus.windows(Split::Test)[0]));
        let prompt: Vec<u32> = (0..5).map(|_| rng.random_range(3..96)).collect();
        let items: Vec<u32> = (0..catalogue.targets.len() as u32).collect();
        let alone = score(&model, &catalogue, &prompt, &items, &device);
        for scoring in [Scoring::Masked, Scoring::Full] {
            let decode = DecodeConfig { beams: items.len(), scoring, length_penalty: 0.0 };
            let priors = std::slice::from_ref(&user);
            let found = search(&model, &catalogue, std::slice::from_ref(&prompt), priors, &decode, &device).remove(0);
            assert_eq!(found.len(), catalogue.trie.leaves());
            for ranked in &found {
                let item = catalogue.trie.items(ranked.leaf).next().unwrap() as usize;
                let expected = enumerated(&catalogue, &alone, &user, weight, item);
                let expected = if scoring == Scoring::Masked { expected.masked } else { expected.full };
                assert!((ranked.log_prob - expected).abs() < 1e-4, "{scoring:?}: {} instead of {expected}", ranked.log_prob);
            }
            assert!(found.is_sorted_by(|a, b| a.score >= b.score));
            if scoring == Scoring::Masked {
                let total: f64 = found.iter().map(|ranked| ranked.log_prob.exp()).sum();
                assert!((total - 1.0).abs() < 1e-6, "{total}");
            }
        }
    }
}
