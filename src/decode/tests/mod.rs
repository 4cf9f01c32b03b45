//! Tests of the search with a prior: its limits, and its sum against enumeration. Tests of `search`
//! without a prior, and of `generate`, are in files of their own.

mod generate;
mod search;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::module::Param;
use burn::{Dispatch, DispatchDevice};
use rand::{Rng, SeedableRng};

use super::*;
use crate::config::{DecodeConfig, Precision, Scoring};
use crate::data::{Corpus, Split, synthetic};
use crate::device::BackendName;
use crate::evaluate::rank_histories;
use crate::model::{Decoder, DecoderConfig, ItemLanguageModel, Tune, Weight, open_weights};
use crate::rankers::testing::{fit, train_vectors};
use crate::rankers::{Ranker, TopK};
use crate::text::{Catalogue, Node, ROOT, Trie};

fn llama(device: &DispatchDevice) -> Decoder<Dispatch> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/llama-untied");
    let path = dir.join("config.json");
    let config = DecoderConfig::from_json(&path, &fs::read_to_string(&path).unwrap()).unwrap();
    Decoder::load(&config, open_weights(&dir, &config).unwrap(), Tune::Frozen, Precision::F32, device).unwrap()
}

/// Makes an LLM whose logits are all 0.
fn constant_llama(device: &DispatchDevice) -> ItemLanguageModel<Dispatch> {
    let mut model = llama(device);
    let head = model.lm_head.as_mut().unwrap();
    head.weight = Weight::Plain(Param::from_tensor(head.weight.dense().zeros_like()));
    model.into()
}

/// Makes the synthetic corpus, with one token for each word.
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

/// Returns a query for each prompt, without a filter.
fn queries<'a>(prompts: &'a [Vec<u32>], priors: &'a [PrefixMass]) -> Vec<Query<'a>> {
    prompts.iter().enumerate().map(|(n, prompt)| Query { prior: priors.get(n), ..prompt.into() }).collect()
}

/// Fits a ranker on the corpus, with a short training.
fn ranker(name: &str, corpus: &Corpus) -> Arc<dyn Ranker> {
    let sets: &[&str] = match name {
        "als" => &["dim=8"],
        "bpr" => &["dim=8", "epochs=2", "learning_rate=0.05"],
        "sasrec" => &["dim=8", "epochs=2", "max_len=6"],
        _ => return fit(name, corpus),
    };
    Arc::new(train_vectors(name, sets, corpus).model)
}

#[test]
fn with_a_constant_llm_the_ranking_is_the_rankers() {
    let device = BackendName::Cpu.device().unwrap();
    let model = constant_llama(&device);
    let (corpus, catalogue) = corpus();
    let items = corpus.items.len();
    let histories: Vec<&[u32]> = corpus.windows(Split::Test).iter().take(8).map(|w| corpus.history(w)).collect();
    let top_k = TopK::new(&corpus);
    for name in ["cooccurrence", "markov", "popularity", "als", "bpr", "sasrec"] {
        let ranker = ranker(name, &corpus);
        let rankings = rank_histories(&*ranker, &top_k, &histories, items);
        let linked: Vec<usize> = histories.iter().map(|history| ranker.scores(history).positive().count()).collect();
        let prior = TriePrior::new(ranker, &catalogue.trie, 1.0, 0.2);
        let priors: Vec<PrefixMass> = histories.iter().map(|history| prior.mass_for_history(history)).collect();
        let prompts: Vec<Vec<u32>> = (1..9).map(|length| vec![5; length]).collect();
        let decode = DecodeConfig { beams: items, ..DecodeConfig::default() };
        let ranked = search(&model, &catalogue, &queries(&prompts, &priors), &decode, &device).unwrap();
        // Ten beams find the same ten: the search looks ahead to the prior's best items.
        let few =
            search(&model, &catalogue, &queries(&prompts, &priors), &DecodeConfig { beams: 10, ..decode }, &device)
                .unwrap();
        for (few, all) in few.iter().zip(&ranked) {
            let log_probs = |ranked: &[RankedItem]| ranked.iter().take(10).map(|r| r.log_prob).collect::<Vec<_>>();
            log_probs(few).iter().zip(log_probs(all)).for_each(|(few, all)| assert!((few - all).abs() < 1e-9));
            assert_eq!(few.len(), 10);
        }
        let mut compared = 0;
        for (n, (found, user)) in ranked.iter().zip(&priors).enumerate() {
            assert_eq!(found.len(), items);
            for ranked in found {
                assert!(
                    (ranked.log_prob - user.mass(ranked.leaf).ln()).abs() < 1e-6,
                    "the log-probability is the ranker's"
                );
            }
            // The ranker orders ties by popularity, the search by the trie: the lists are equal up
            // to ties.
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
    let model = ItemLanguageModel::from(llama(&device));
    let (corpus, catalogue) = corpus();
    let counts = TriePrior::new(fit("cooccurrence", &corpus), &catalogue.trie, 0.0, 0.1);
    let vectors = TriePrior::new(ranker("bpr", &corpus), &catalogue.trie, 0.0, 0.1);
    let windows = &corpus.windows(Split::Test)[..4];
    let prompts: Vec<Vec<u32>> = (0..4).map(|n| vec![7 + n, 50, 3 + n]).collect();
    for scoring in [Scoring::Masked, Scoring::Full] {
        let decode = DecodeConfig { beams: 10, scoring, length_penalty: 0.5, ..DecodeConfig::default() };
        let alone = search(&model, &catalogue, &queries(&prompts, &[]), &decode, &device).unwrap();
        for prior in [&counts, &vectors] {
            let priors: Vec<PrefixMass> =
                windows.iter().map(|window| prior.mass_for_window(&corpus, Split::Test, window)).collect();
            assert_eq!(search(&model, &catalogue, &queries(&prompts, &priors), &decode, &device).unwrap(), alone);
        }
    }
}

/// Returns an item's score with a prior, computed only from the LLM's probabilities of whole items.
fn enumerate_score(
    catalogue: &Catalogue,
    alone: &[ItemScore],
    user: &PrefixMass,
    weights: PriorWeights,
    item: usize,
) -> ItemScore {
    let (trie, targets) = (&catalogue.trie, &catalogue.targets);
    let leaves: Vec<usize> =
        (0..targets.len()).filter(|&i| trie.items(trie.leaf(i as u32)).next() == Some(i as u32)).collect();
    let probability = |prefix: &[u32]| -> f64 {
        leaves.iter().filter(|&&i| targets[i].starts_with(prefix)).map(|&i| alone[i].masked.exp()).sum()
    };
    let mut masked = 0.0;
    let mut node = ROOT;
    for t in 0..targets[item].len() {
        let before = &targets[item][..t];
        let of = |child: Node| {
            let prefix = [before, &[trie.token(child)]].concat();
            let share = user.mass(child) / user.mass(node);
            (probability(&prefix) / probability(before)).powf(weights.llm) * share.powf(weights.prior)
        };
        let child = trie.child(node, targets[item][t]).unwrap();
        masked += (of(child) / trie.children(node).map(of).sum::<f64>()).ln();
        node = child;
    }
    ItemScore { masked, full: weights.llm * alone[item].full + weights.prior * user.mass(node).ln() }
}

#[test]
fn the_search_with_a_prior_equals_enumeration() {
    let device = BackendName::Cpu.device().unwrap();
    let model = ItemLanguageModel::from(llama(&device));
    let (corpus, _) = corpus();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    for round in 0..6 {
        let mut target =
            || -> Vec<u32> { (0..rng.random_range(1..5)).map(|_| rng.random_range(3..7)).chain([2]).collect() };
        let targets: Vec<Vec<u32>> = (0..corpus.items.len()).map(|_| target()).collect();
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let weights = PriorWeights { llm: [1.0, 0.3, 0.0][round % 3], prior: 0.8 };
        let prior = TriePrior::new(fit("markov", &corpus), &catalogue.trie, 1.0, 0.3).with_weights(weights);
        let user = prior.mass_for_history(corpus.history(&corpus.windows(Split::Test)[0]));
        let prompt: Vec<u32> = (0..5).map(|_| rng.random_range(3..96)).collect();
        let items: Vec<u32> = (0..catalogue.targets.len() as u32).collect();
        let alone = score(&model.llm, &catalogue, &prompt, &items, &device).unwrap();
        for scoring in [Scoring::Masked, Scoring::Full] {
            let decode = DecodeConfig { beams: items.len(), scoring, length_penalty: 0.0, ..DecodeConfig::default() };
            let priors = std::slice::from_ref(&user);
            let found = search(&model, &catalogue, &queries(std::slice::from_ref(&prompt), priors), &decode, &device)
                .unwrap()
                .remove(0);
            assert_eq!(found.len(), catalogue.trie.leaves());
            for ranked in &found {
                let item = catalogue.trie.items(ranked.leaf).next().unwrap() as usize;
                let expected = enumerate_score(&catalogue, &alone, &user, weights, item);
                let expected = if scoring == Scoring::Masked { expected.masked } else { expected.full };
                assert!(
                    (ranked.log_prob - expected).abs() < 1e-4,
                    "{scoring:?}: {} instead of {expected}",
                    ranked.log_prob
                );
            }
            assert!(found.is_sorted_by(|a, b| a.score >= b.score));
            if scoring == Scoring::Masked {
                let total: f64 = found.iter().map(|ranked| ranked.log_prob.exp()).sum();
                assert!((total - 1.0).abs() < 1e-6, "{total}");
            }
        }
    }
}

/// Returns prompts of several lengths.
fn prompts(rng: &mut rand_chacha::ChaCha8Rng) -> Vec<Vec<u32>> {
    [4, 1, 7, 2].map(|length| (0..length).map(|_| rng.random_range(3..96)).collect()).to_vec()
}

/// Returns the log-probabilities of the tokens after `sequence`, which runs alone.
fn next_token(model: &Decoder<Dispatch>, sequence: &[u32], device: &DispatchDevice) -> Vec<f64> {
    let seq = sequence.len();
    let positions: Vec<u32> = (0..seq as u32).collect();
    let tokens = model.token_ids(sequence.iter().copied()).reshape([1, seq]);
    let hidden = model.forward(model.embed(tokens), &positions, crate::model::causal_mask(seq, device), None).hidden;
    let [_, _, width] = hidden.dims();
    let logits =
        crate::tensor::to_vec(model.logits(hidden.narrow(1, seq - 1, 1).reshape([1, width]), None), "logits").unwrap();
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
}
