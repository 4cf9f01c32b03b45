use std::path::Path;

use serde_json::Value;

use super::*;
use crate::data::{Corpus, Item};
use crate::rankers::testing::{fit, fit_with};

fn corpus(titles: &[String]) -> Corpus {
    let items = titles.iter().enumerate();
    let items = items.map(|(i, title)| Item { id: i.to_string(), title: title.clone() }).collect();
    Corpus::new("c", items, vec![], vec![], Some(vec![]), vec![]).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// Weights, cosines and scores of scikit-learn, within 1e-5: we keep weights as f32.
#[test]
fn equals_scikit_learn() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/text/text.json");
    let reference: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let titles: Vec<String> = numbers(&reference["titles"]);
    let histories: Vec<Vec<u32>> = numbers(&reference["histories"]);
    let corpus = corpus(&titles);
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
    for case in reference["cases"].as_array().unwrap() {
        let ngrams = case["ngrams"].as_u64().unwrap() as usize;
        let tfidf = Tfidf::new(titles.iter().map(String::as_str), ngrams).unwrap();
        assert_eq!(tfidf.vocabulary() as u64, case["vocabulary"].as_u64().unwrap());
        let (weights, cosines): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (numbers(&case["weights"]), numbers(&case["cosines"]));
        for (item, (expected, cosines)) in (0u32..).zip(weights.iter().zip(&cosines)) {
            let mut found: Vec<f64> = tfidf.terms(item).iter().map(|&(_, weight)| f64::from(weight)).collect();
            found.sort_by(f64::total_cmp);
            assert_eq!(found.len(), expected.len(), "{}", titles[item as usize]);
            found.iter().zip(expected).for_each(|(&found, &expected)| close(found, expected));
            let set = [format!("ngrams={ngrams}"), "exponent=1".into(), "decay=1".into()];
            let sets: Vec<&str> = set.iter().map(String::as_str).collect();
            let found = fit_with("text", &sets, &corpus).scores(&[item]).to_dense(titles.len());
            for (other, (&found, &expected)) in found.iter().zip(cosines).enumerate() {
                close(found, if other == item as usize { 0.0 } else { expected });
            }
        }
        let set = [
            format!("ngrams={ngrams}"),
            format!("exponent={:?}", case["exponent"].as_f64().unwrap()),
            format!("decay={:?}", case["decay"].as_f64().unwrap()),
        ];
        let ranker = fit_with("text", &set.iter().map(String::as_str).collect::<Vec<_>>(), &corpus);
        let expected: Vec<Vec<f64>> = numbers(&case["scores"]);
        for (history, expected) in histories.iter().zip(expected) {
            let Scores::Sparse(scores) = ranker.scores(history) else { panic!("they are sparse") };
            assert!(scores.iter().all(|&(_, score)| score > 0.0));
            let found = Scores::Sparse(scores).to_dense(titles.len());
            found.iter().zip(&expected).for_each(|(&found, &expected)| close(found, expected));
        }
    }
    assert_eq!(fit("text", &corpus).scores(&[]), Scores::none());
    assert_eq!(fit("text", &corpus).scores(&[9, 77]), Scores::none(), "neither words nor an item");
}

/// Sentence vectors: the cosines of the tiny encoder of the fixtures.
#[test]
fn sentence_vectors_rank_like_titles_first() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/bert");
    let titles = ["a red pen", "blue ink", "a red pen", "red"].map(String::from);
    let corpus = corpus(&titles);
    let set = [format!("encoder={}", dir.display()), "exponent=1".into()];
    let ranker = fit_with("text", &set.iter().map(String::as_str).collect::<Vec<_>>(), &corpus);
    let scores = ranker.scores(&[0]).to_dense(4);
    assert!((scores[2] - 1.0).abs() < 1e-5 && scores[0] == 0.0, "{scores:?}");
    assert!(scores[1] < 1.0 && scores[3] < 1.0);
}
