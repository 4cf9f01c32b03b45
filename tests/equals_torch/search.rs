//! Beam search against enumeration and transformers.

use rand::{Rng, SeedableRng};

use crate::*;

#[test]
fn search_equals_enumeration_and_transformers() {
    let reference = json("decode/decode.json");
    let catalogue = catalogue(&reference["catalogue"]);
    let trie = &catalogue.trie;
    for device in devices() {
        let model = ItemLanguageModel::<Dispatch>::from(llama("llama-untied", Tune::Frozen, &device));
        let cases = reference["prompts"].as_array().unwrap();
        let prompts: Vec<Vec<u32>> = cases.iter().map(|c| numbers(&c["prompt"])).collect();
        let items: Vec<u32> = (0..catalogue.targets.len() as u32).collect();
        for (case, prompt) in cases.iter().zip(&prompts) {
            let scores = score(&model.llm, &catalogue, prompt, &items, &device);
            let (full, masked): (Vec<f64>, Vec<f64>) = scores.iter().map(|s| (s.full, s.masked)).unzip();
            full.iter().zip(floats(&case["full"])).for_each(|(a, b)| near("full", *a, b));
            masked.iter().zip(floats(&case["masked"])).for_each(|(a, b)| near("masked", *a, b));
        }
        for penalty in [0.0, 1.0] {
            for scoring in [Scoring::Full, Scoring::Masked] {
                let decode = DecodeConfig { beams: 10, scoring, length_penalty: penalty };
                let together = search(&model, &catalogue, &prompts, &[], &decode, &device);
                for ((case, prompt), found) in cases.iter().zip(&prompts).zip(&together) {
                    let order: Vec<u32> = found.iter().map(|r| trie.items(r.leaf).next().unwrap()).collect();
                    match scoring {
                        Scoring::Full => {
                            let beam = &case[format!("beam_full_penalty_{}", penalty as u32)];
                            assert_eq!(order, numbers(&beam["items"]), "transformers' order");
                            found.iter().zip(floats(&beam["scores"])).for_each(|(r, s)| near("score", r.score, s));
                        }
                        Scoring::Masked => {
                            assert_eq!(order, numbers(&case[format!("ranked_masked_penalty_{}", penalty as u32)]));
                            let exact = floats(&case["masked"]);
                            found
                                .iter()
                                .zip(&order)
                                .for_each(|(r, &i)| near("log-prob", r.log_prob, exact[i as usize]));
                        }
                    }
                    // A user's ranking does not depend on who else is in the batch.
                    let alone = search(&model, &catalogue, std::slice::from_ref(prompt), &[], &decode, &device);
                    let leaves = |ranked: &[itemlm::decode::Ranked]| ranked.iter().map(|r| r.leaf).collect::<Vec<_>>();
                    assert_eq!(leaves(&alone[0]), leaves(found));
                    // Fewer beams still return as many distinct items.
                    for beams in [1, 4, 10] {
                        let few = search(
                            &model,
                            &catalogue,
                            std::slice::from_ref(prompt),
                            &[],
                            &DecodeConfig { beams, ..decode.clone() },
                            &device,
                        );
                        let mut distinct = leaves(&few[0]);
                        distinct.sort_unstable();
                        distinct.dedup();
                        assert_eq!(distinct.len(), beams, "{scoring:?}, {beams} beams");
                    }
                }
            }
        }
    }
}

/// On random catalogues, with as many beams as titles, the search returns what scoring every title
/// one by one gives.
#[test]
fn search_equals_enumeration_on_random_catalogues() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    for device in devices() {
        let model = ItemLanguageModel::<Dispatch>::from(llama("llama-untied", Tune::Frozen, &device));
        for _ in 0..12 {
            let mut title = || {
                let mut tokens: Vec<u32> = (0..rng.random_range(1..6)).map(|_| rng.random_range(3..7)).collect();
                tokens.push(2);
                tokens
            };
            let targets: Vec<Vec<u32>> = (0..9).map(|_| title()).collect();
            let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
            let prompt: Vec<u32> = (0..5).map(|_| rng.random_range(3..96)).collect();
            let items: Vec<u32> = (0..9).collect();
            let scores = score(&model.llm, &catalogue, &prompt, &items, &device);
            for (scoring, penalty) in
                [(Scoring::Full, 0.0), (Scoring::Masked, 0.0), (Scoring::Full, 1.0), (Scoring::Masked, 0.7)]
            {
                let decode = DecodeConfig { beams: 9, scoring, length_penalty: penalty };
                let found = search(&model, &catalogue, std::slice::from_ref(&prompt), &[], &decode, &device).remove(0);
                assert_eq!(found.len(), catalogue.trie.leaves());
                let exact = |leaf| {
                    let item = catalogue.trie.items(leaf).next().unwrap() as usize;
                    let log_prob = if scoring == Scoring::Full { scores[item].full } else { scores[item].masked };
                    log_prob / (catalogue.targets[item].len() as f64).powf(penalty)
                };
                found.iter().for_each(|r| near("score", r.score, exact(r.leaf)));
                assert!(found.windows(2).all(|w| w[0].score >= w[1].score));
            }
        }
    }
}
