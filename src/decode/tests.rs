//! The search against plainer ones, its limits with a prior and its sum against enumeration;
//! generation and log-likelihoods.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::module::Param;
use burn::{Dispatch, DispatchDevice};
use rand::{Rng, SeedableRng};

use super::*;
use super::{PrefixMass, TriePrior};
use crate::config::{DecodeConfig, Precision, Scoring};
use crate::data::{Corpus, Split, synthetic};
use crate::device::BackendName;
use crate::evaluate::rank_histories;
use crate::model::{DecoderConfig, ItemLanguageModel, Tune, Weight, open_weights};
use crate::rankers::testing::{fit, train_vectors};
use crate::rankers::{Ranker, TopK};
use crate::text::{Catalogue, ROOT};

fn llama(device: &DispatchDevice) -> Decoder<Dispatch> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/llama-untied");
    let path = dir.join("config.json");
    let config = DecoderConfig::from_json(&path, &fs::read_to_string(&path).unwrap()).unwrap();
    Decoder::load(&config, open_weights(&dir, &config).unwrap(), Tune::Frozen, Precision::F32, device).unwrap()
}

/// All logits are 0.
fn constant_llama(device: &DispatchDevice) -> ItemLanguageModel<Dispatch> {
    let mut model = llama(device);
    let head = model.lm_head.as_mut().unwrap();
    head.weight = Weight::Plain(Param::from_tensor(head.weight.dense().zeros_like()));
    model.into()
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

/// A short training on the corpus, or counts.
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
        let priors: Vec<PrefixMass> = histories.iter().map(|history| prior.after(history)).collect();
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
                assert!(
                    (ranked.log_prob - user.mass(ranked.leaf).ln()).abs() < 1e-6,
                    "the log-probability is the ranker's"
                );
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
    let model = ItemLanguageModel::from(llama(&device));
    let (corpus, catalogue) = corpus();
    let counts = TriePrior::new(fit("cooccurrence", &corpus), &catalogue.trie, 0.0, 0.1);
    let vectors = TriePrior::new(ranker("bpr", &corpus), &catalogue.trie, 0.0, 0.1);
    let windows = &corpus.windows(Split::Test)[..4];
    let prompts: Vec<Vec<u32>> = (0..4).map(|n| vec![7 + n, 50, 3 + n]).collect();
    for scoring in [Scoring::Masked, Scoring::Full] {
        let decode = DecodeConfig { beams: 10, scoring, length_penalty: 0.5 };
        let alone = search(&model, &catalogue, &prompts, &[], &decode, &device);
        for prior in [&counts, &vectors] {
            let priors: Vec<PrefixMass> =
                windows.iter().map(|window| prior.of_window(&corpus, Split::Test, window)).collect();
            assert_eq!(search(&model, &catalogue, &prompts, &priors, &decode, &device), alone);
        }
    }
}

/// What an item scores with a prior, from the LLM's probabilities of whole items alone.
fn enumerated(catalogue: &Catalogue, alone: &[ItemScore], user: &PrefixMass, weight: f64, item: usize) -> ItemScore {
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
    let model = ItemLanguageModel::from(llama(&device));
    let (corpus, _) = corpus();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    for _ in 0..6 {
        let mut target =
            || -> Vec<u32> { (0..rng.random_range(1..5)).map(|_| rng.random_range(3..7)).chain([2]).collect() };
        let targets: Vec<Vec<u32>> = (0..corpus.items.len()).map(|_| target()).collect();
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let weight = 0.8;
        let prior = TriePrior::new(fit("markov", &corpus), &catalogue.trie, weight, 0.3);
        let user = prior.after(corpus.history(&corpus.windows(Split::Test)[0]));
        let prompt: Vec<u32> = (0..5).map(|_| rng.random_range(3..96)).collect();
        let items: Vec<u32> = (0..catalogue.targets.len() as u32).collect();
        let alone = score(&model.llm, &catalogue, &prompt, &items, &device);
        for scoring in [Scoring::Masked, Scoring::Full] {
            let decode = DecodeConfig { beams: items.len(), scoring, length_penalty: 0.0 };
            let priors = std::slice::from_ref(&user);
            let found = search(&model, &catalogue, std::slice::from_ref(&prompt), priors, &decode, &device).remove(0);
            assert_eq!(found.len(), catalogue.trie.leaves());
            for ranked in &found {
                let item = catalogue.trie.items(ranked.leaf).next().unwrap() as usize;
                let expected = enumerated(&catalogue, &alone, &user, weight, item);
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

/// Prompts of several lengths.
fn prompts(rng: &mut rand_chacha::ChaCha8Rng) -> Vec<Vec<u32>> {
    [4, 1, 7, 2].map(|length| (0..length).map(|_| rng.random_range(3..96)).collect()).to_vec()
}

/// Log-probabilities of the tokens after `sequence`, run by itself.
fn next_token(model: &Decoder<Dispatch>, sequence: &[u32], device: &DispatchDevice) -> Vec<f64> {
    let seq = sequence.len();
    let positions: Vec<u32> = (0..seq as u32).collect();
    let tokens = ints(sequence.iter().map(|&t| t as usize), 1, seq, device);
    let hidden = model.forward(model.embed(tokens), &positions, crate::model::causal_mask(seq, device), None).hidden;
    let [_, _, width] = hidden.dims();
    let logits = host(model.logits(hidden.narrow(1, seq - 1, 1).reshape([1, width]), None));
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
}

#[test]
fn generating_equals_running_the_whole_sequence_each_time() {
    let device = BackendName::Cpu.device().unwrap();
    let llm = llama(&device);
    let model = ItemLanguageModel::from(llm.clone());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    let prompts = prompts(&mut rng);
    let alone = |prompt: &Vec<u32>, eos: u32| {
        let mut sequence = prompt.clone();
        while sequence.len() < prompt.len() + 12 {
            let log_probs = next_token(&llm, &sequence, &device);
            let best = (0..log_probs.len()).max_by(|&a, &b| log_probs[a].total_cmp(&log_probs[b])).unwrap() as u32;
            if best == eos {
                break;
            }
            sequence.push(best);
        }
        sequence.split_off(prompt.len())
    };
    // No end, and an end that the second text meets on its way.
    let free: Vec<Vec<u32>> = prompts.iter().map(|prompt| alone(prompt, u32::MAX)).collect();
    assert_eq!(generate(&model, &prompts, 12, u32::MAX, &device), free);
    let eos = free[1][5];
    let texts = generate(&model, &prompts, 12, eos, &device);
    assert_eq!(texts, prompts.iter().map(|prompt| alone(prompt, eos)).collect::<Vec<_>>());
    assert!(texts[1].len() <= 5 && texts.iter().all(|text| !text.contains(&eos)));
    assert_eq!(
        generate(&model, &prompts, 3, u32::MAX, &device),
        free.iter().map(|t| t[..3].to_vec()).collect::<Vec<_>>()
    );
    assert_eq!(generate(&model, &prompts, 0, eos, &device), vec![Vec::<u32>::new(); 4]);
    assert!(generate(&model, &[], 3, eos, &device).is_empty());

    // Behind a beginning that all share, run once.
    let shared = [11, 5, 40];
    let prompts: Vec<Vec<u32>> = prompts.iter().map(|prompt| [&shared[..], prompt].concat()).collect();
    let free: Vec<Vec<u32>> = prompts.iter().map(|prompt| alone(prompt, u32::MAX)).collect();
    let model = model.with_prefix_cache(&shared);
    assert_eq!(generate(&model, &prompts, 12, u32::MAX, &device), free);
    let found = log_likelihoods(&model, &prompts, &free, &device);
    let expected = log_likelihoods(&llm.into(), &prompts, &free, &device);
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} instead of {expected:?}");
}

#[test]
fn likelihoods_are_those_of_the_tokens_one_by_one() {
    let device = BackendName::Cpu.device().unwrap();
    let llm = llama(&device);
    let model = ItemLanguageModel::from(llm.clone());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    let prompts = prompts(&mut rng);
    let targets: Vec<Vec<u32>> =
        [3, 6, 1, 0].map(|length| (0..length).map(|_| rng.random_range(2..96)).collect()).to_vec();
    for ((prompt, target), found) in
        prompts.iter().zip(&targets).zip(log_likelihoods(&model, &prompts, &targets, &device))
    {
        let steps = (0..target.len()).map(|t| {
            let before = [prompt.as_slice(), &target[..t]].concat();
            next_token(&llm, &before, &device)[target[t] as usize]
        });
        let expected: f64 = steps.sum();
        assert!((found - expected).abs() < 1e-4, "{found} instead of {expected}");
    }
}

/// One user, one beam and one token at a time, each prefix run whole: what the search must equal.
fn plain_search(
    llm: &Decoder<Dispatch>,
    trie: &Trie,
    prompt: &[u32],
    decode: &DecodeConfig,
    device: &DispatchDevice,
) -> Vec<Ranked> {
    let masked = decode.scoring == Scoring::Masked;
    let end = |node: Node| if masked { trie.follow_forced(node) } else { node };
    let (mut live, mut found) = (vec![(0.0, end(ROOT))], Vec::new());
    while !live.is_empty() {
        let mut next = Vec::new();
        for (before, node) in live {
            let path: Vec<u32> = trie.path(node).into_iter().map(|n| trie.token(n)).collect();
            let log_probs = next_token(llm, &[prompt, &path].concat(), device);
            let valid = trie.valid_tokens(node).iter().map(|&token| log_probs[token as usize]);
            let shift = if masked { valid.clone().map(f64::exp).sum::<f64>().ln() } else { 0.0 };
            for (log_prob, child) in valid.map(|l| before + l - shift).zip(trie.children(node)) {
                match trie.is_leaf(end(child)) {
                    true => {
                        let tokens = trie.path(end(child)).len() as f64;
                        let score = log_prob / tokens.powf(decode.length_penalty);
                        found.push(Ranked { leaf: end(child), log_prob, score });
                    }
                    false => next.push((log_prob, end(child))),
                }
            }
        }
        found.sort_by(|a: &Ranked, b| b.score.total_cmp(&a.score));
        found.truncate(decode.beams);
        next.sort_by(|a, b| b.0.total_cmp(&a.0));
        next.truncate(decode.beams);
        let least = found.get(decode.beams - 1).map_or(f64::NEG_INFINITY, |worst| worst.score);
        next.retain(|(log_prob, _)| log_prob / (trie.depth() as f64).powf(decode.length_penalty) > least);
        live = next;
    }
    found
}

/// On tries with branchings and long chains, of which few beams drop most; all users at once, and
/// each alone, whatever their lengths.
#[test]
fn the_search_equals_the_plain_one_whatever_the_batch() {
    let device = BackendName::Cpu.device().unwrap();
    let llm = llama(&device);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(12);
    for round in 0..6 {
        let shared: Vec<u32> = (0..3).map(|_| rng.random_range(3..96)).collect();
        let prompts: Vec<Vec<u32>> = prompts(&mut rng).iter().map(|prompt| [&shared[..], prompt].concat()).collect();
        let mut title = |_| -> Vec<u32> {
            let mut token = |from, to| rng.random_range(from..to);
            let (branches, chain) = (token(0, 3), token(0, 7));
            let start: Vec<u32> = (0..branches).map(|_| token(3, 6)).collect();
            [start, (0..chain).map(|_| token(6, 96)).collect(), vec![2]].concat()
        };
        let targets: Vec<Vec<u32>> = (0..40).map(&mut title).collect();
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let model = match round % 2 {
            0 => ItemLanguageModel::from(llm.clone()),
            _ => ItemLanguageModel::from(llm.clone()).with_prefix_cache(&shared),
        };
        for (scoring, beams, length_penalty) in
            [(Scoring::Full, 2, 0.0), (Scoring::Full, 5, 1.0), (Scoring::Masked, 2, 0.0), (Scoring::Masked, 5, 0.5)]
        {
            let decode = DecodeConfig { beams, scoring, length_penalty };
            let together = search(&model, &catalogue, &prompts, &[], &decode, &device);
            for (prompt, found) in prompts.iter().zip(&together) {
                let expected = plain_search(&llm, &catalogue.trie, prompt, &decode, &device);
                let alone = search(&model, &catalogue, std::slice::from_ref(prompt), &[], &decode, &device).remove(0);
                for found in [found, &alone] {
                    assert_eq!(found.len(), expected.len());
                    for (a, b) in found.iter().zip(&expected) {
                        assert_eq!(a.leaf, b.leaf, "{scoring:?}, {beams} beams: {found:?} instead of {expected:?}");
                        assert!((a.log_prob - b.log_prob).abs() < 1e-4 && (a.score - b.score).abs() < 1e-4);
                    }
                }
            }
        }
    }
}
