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
        let queries: Vec<Query> = prompts.iter().map(Query::from).collect();
        let items: Vec<u32> = (0..catalogue.targets.len() as u32).collect();
        for (case, prompt) in cases.iter().zip(&prompts) {
            let scores = score(&model.llm, &catalogue, prompt, &items, &device).unwrap();
            let (full, masked): (Vec<f64>, Vec<f64>) = scores.iter().map(|s| (s.full, s.masked)).unzip();
            full.iter().zip(floats(&case["full"])).for_each(|(a, b)| near("full", *a, b));
            masked.iter().zip(floats(&case["masked"])).for_each(|(a, b)| near("masked", *a, b));
        }
        for penalty in [0.0, 1.0] {
            for scoring in [Scoring::Full, Scoring::Masked] {
                let decode = DecodeConfig { beams: 10, scoring, length_penalty: penalty, ..DecodeConfig::default() };
                let together = search(&model, &catalogue, &queries, &decode, &device).unwrap();
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
                    let alone = search(&model, &catalogue, &[prompt.into()], &decode, &device).unwrap();
                    let leaves =
                        |ranked: &[itemlm::decode::RankedItem]| ranked.iter().map(|r| r.leaf).collect::<Vec<_>>();
                    assert_eq!(leaves(&alone[0]), leaves(found));
                    // Fewer beams still return as many distinct items.
                    for beams in [1, 4, 10] {
                        let few = search(
                            &model,
                            &catalogue,
                            &[prompt.into()],
                            &DecodeConfig { beams, ..decode.clone() },
                            &device,
                        )
                        .unwrap();
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
            let scores = score(&model.llm, &catalogue, &prompt, &items, &device).unwrap();
            for (scoring, penalty) in
                [(Scoring::Full, 0.0), (Scoring::Masked, 0.0), (Scoring::Full, 1.0), (Scoring::Masked, 0.7)]
            {
                let decode = DecodeConfig { beams: 9, scoring, length_penalty: penalty, ..DecodeConfig::default() };
                let found = search(&model, &catalogue, &[(&prompt).into()], &decode, &device).unwrap().remove(0);
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

/// The lists that transformers' constrained beam search printed
/// (`tests/reference/search_reference.py`), for both scorings and four length penalties, all
/// prompts of a catalogue at once.
#[test]
fn transformers_search_equals_transformers() {
    let reference = json("decode/search.json");
    for device in devices() {
        let model = ItemLanguageModel::<Dispatch>::from(llama("llama-untied", Tune::Frozen, &device));
        let mut lists = 0;
        for case in reference["cases"].as_array().unwrap() {
            let catalogue = catalogue(&case["catalogue"]);
            let searches = case["searches"].as_array().unwrap();
            for (name, scoring) in [("full", Scoring::Full), ("masked", Scoring::Masked)] {
                for beams in [2, 5, 10] {
                    let chosen: Vec<_> =
                        searches.iter().filter(|row| row["scoring"] == name && row["beams"] == beams).collect();
                    let prompts: Vec<Vec<u32>> = chosen.iter().map(|row| numbers(&row["prompt"])).collect();
                    let queries: Vec<Query> = prompts.iter().map(Query::from).collect();
                    for (key, length_penalty) in [("0", 0.0), ("0.5", 0.5), ("1", 1.0), ("2", 2.0)] {
                        let decode = DecodeConfig {
                            beams,
                            scoring,
                            length_penalty,
                            search: SearchKind::Transformers,
                            ..DecodeConfig::default()
                        };
                        let found = search(&model, &catalogue, &queries, &decode, &device).unwrap();
                        for (row, found) in chosen.iter().zip(&found) {
                            let list = &row["lists"][key];
                            let items: Vec<u32> =
                                found.iter().map(|r| catalogue.trie.items(r.leaf).next().unwrap()).collect();
                            let what = format!("{name}, {beams} beams, penalty {key}, prompt {}", row["prompt"]);
                            assert_eq!(items, numbers(&list["items"]), "{what}");
                            found.iter().zip(floats(&list["scores"])).for_each(|(r, s)| near(&what, r.score, s));
                            lists += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(lists, 4 * 3 * 2 * 3 * 4);
    }
}
