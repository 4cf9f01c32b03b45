use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use rand::SeedableRng;
use rand::seq::SliceRandom;

use super::registry::{Method, vector_method};
use super::testing::{settings, train_vectors};
use super::training::{BestEpoch, EpochLearner, EpochOptions, train_epochs};
use super::*;
use crate::Result;
use crate::config::PriorConfig;
use crate::data::{Item, Split, UserLog, Window};
use crate::device::{BackendName, Concrete};
use crate::evaluate::{evaluate_ranker, rank_histories, summarise};

/// One training window over each user's whole log, but for users in `held`, whose window is for
/// test.
pub(super) fn corpus(items: usize, logs: &[Vec<u32>], held: &[usize]) -> Corpus {
    let items = (0..items).map(|i| Item { id: format!("i{i}"), title: format!("title {i}") }).collect();
    let (mut users, mut train, mut test, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (user, log) in logs.iter().enumerate() {
        let window = Window { user: user as u32, start, len: log.len() as u32 };
        start += window.len;
        if held.contains(&user) {
            test.push(window)
        } else {
            train.push(window)
        }
        users.push(UserLog { id: format!("u{user}"), events: log.iter().map(|&item| (item, None)).collect() });
    }
    Corpus::new("c", items, users, train, Some(vec![]), test).unwrap()
}

#[test]
fn an_interaction_counts_once_and_only_in_training_windows() {
    let items = (0..6).map(|i| Item { id: i.to_string(), title: i.to_string() }).collect();
    let user = |id: &str, items: &[u32]| UserLog { id: id.into(), events: items.iter().map(|&i| (i, None)).collect() };
    let window = |user, start, len| Window { user, start, len };
    let users = vec![user("a", &[5, 1, 1, 2, 0, 4, 2]), user("b", &[0, 3]), user("c", &[5, 2])];
    let train = vec![window(0, 0, 3), window(0, 1, 3), window(0, 5, 2), window(2, 9, 2)];
    let held = vec![window(0, 3, 2), window(1, 7, 2)];
    let corpus = Corpus::new("c", items, users, train, Some(held), vec![]).unwrap();
    let log = Interactions::from_training(&corpus).unwrap();
    // Items 0 and 3 are only in windows that validate.
    assert_eq!((log.items.as_slice(), log.counts.as_slice()), (&[1, 2, 4, 5][..], &[2, 3, 1, 2][..]));
    let sequence = |user, rows: &[u32]| UserSequence { user, rows: rows.to_vec() };
    assert_eq!(log.sequences, [sequence(0, &[3, 0, 0, 1]), sequence(0, &[2, 1]), sequence(2, &[3, 1])]);
    assert_eq!(log.by_user(), [vec![(0, 2), (1, 2), (2, 1), (3, 1)], vec![], vec![(1, 1), (3, 1)]]);
    assert_eq!(log.last_sequences(), [&[2, 1][..], &[], &[3, 1]]);
    assert_eq!((log.rows(&[3, 5, 77, 1]), log.count(5), log.count(3), log.catalogue()), (vec![3, 0], 2, 0, 6));

    let none = Corpus::new("c", corpus.items.clone(), vec![user("a", &[1, 2])], vec![], Some(vec![]), vec![]).unwrap();
    assert_eq!(Interactions::from_training(&none).unwrap_err().exit_code(), 1);
}

/// Two circles of items that no user mixes: the vectors must tell them apart, for users they have
/// not seen as well.
#[test]
fn factors_find_the_circle_of_an_unseen_user() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    let mut log = |user: u32| -> Vec<u32> {
        let mut circle: Vec<u32> = (0..8).map(|i| user % 2 * 8 + i).collect();
        circle.shuffle(&mut rng);
        circle[..5].to_vec()
    };
    let logs: Vec<Vec<u32>> = (0..82).map(&mut log).collect();
    // Item 16 is in no training window.
    let corpus = corpus(17, &logs, &[80, 81]);
    let sets: [(&str, &[&str]); 2] = [
        ("als", &["dim=2", "regularization=0.1"]),
        ("bpr", &["dim=2", "epochs=60", "learning_rate=0.05", "batch_size=32"]),
    ];
    for (method, sets) in sets {
        let ranker = train_vectors(method, sets, &corpus).model;
        let rankings = rank_histories(&ranker, &TopK::new(&corpus), &[&[0, 3], &[8, 9, 10], &[16]], 17);
        assert!(rankings[0][..6].iter().all(|&i| i < 8), "{method}: {:?}", rankings[0]);
        assert!(rankings[1][..5].iter().all(|&i| (8..16).contains(&i)), "{method}: {:?}", rankings[1]);
        // The history is left out, the unknown comes last; of the unknown follows nothing but
        // popularity.
        assert_eq!((rankings[0].len(), rankings[1].len(), rankings[2].len()), (15, 14, 16));
        assert_eq!((rankings[0].last(), rankings[2].contains(&16)), (Some(&16), false));
        let counts: Vec<u32> = rankings[2].iter().map(|&i| ranker.interactions().count(i)).collect();
        assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");

        let vectors = ranker.vectors();
        assert_eq!((vectors.items.len(), vectors.users.len()), (17 * 2, 82 * 2));
        assert_eq!((vectors.item(16), vectors.user(81)), (&[0.0; 2][..], &[0.0; 2][..]));
        let dot = |user, item| vectors.user(user).iter().zip(vectors.item(item)).map(|(a, b)| a * b).sum::<f32>();
        assert!((0..8).all(|i| dot(2, i) > dot(2, 8 + i)), "{method}");
        assert_eq!(
            train_vectors(method, sets, &corpus).model.vectors(),
            vectors,
            "{method}: the same seed, the same vectors"
        );
    }
}

/// SASRec must say that each item is followed by the next one, which a folded-in user of ALS could
/// not.
#[test]
fn sasrec_follows_the_order() {
    let logs: Vec<Vec<u32>> = (0..60).map(|user| (0..12).map(|i| (user * 7 + i) % 15).collect()).collect();
    let corpus = corpus(16, &logs, &[58, 59]);
    let sets = ["dim=16", "max_len=5", "dropout=0.1", "epochs=30", "learning_rate=0.01", "batch_size=16", "heads=2"];
    for loss in ["loss=softmax", "loss=bce"] {
        let sets: Vec<&str> = sets.into_iter().chain([loss]).collect();
        let trained = train_vectors("sasrec", &sets, &corpus);
        assert_eq!(trained.epoch, 30);
        let top_k = TopK::new(&corpus);
        let outcomes = evaluate_ranker(&trained.model, &top_k, &corpus, Split::Test, None);
        assert_eq!(outcomes.len(), 2);
        // The last of 12 items: of the newest five the model sees four that went before it.
        let ndcg = summarise(&outcomes, 0).all.metric("ndcg@5").unwrap();
        assert!(ndcg > 0.4, "{loss}: {ndcg}");
        let ranked = rank_histories(&trained.model, &top_k, &[&[3, 4, 5, 6], &[]], 3);
        assert!(ranked[0].contains(&7), "{loss}: {ranked:?}");
        assert_eq!(ranked[1].len(), 3);

        let vectors = trained.model.vectors();
        // A user's vector is the state after the last training interaction: it scores items as the
        // same history does.
        let history = &logs[5][..];
        let scores = trained.model.raw_scores(&[history]);
        let dot = |item| vectors.user(5).iter().zip(vectors.item(item)).map(|(a, b)| a * b).sum::<f32>();
        assert!((0..15).all(|i| (dot(i) - scores[i as usize]).abs() < 1e-4));
        assert_eq!((scores[15], vectors.user(59)), (f32::NEG_INFINITY, &[0.0; 16][..]));
    }
}

/// Two circles of items whose titles tell them apart, and a cold item with a title of each: SASRec
/// over titles ranks it with its circle, and reads it in a history.
#[test]
fn sasrec_over_titles_ranks_cold_items() {
    let logs: Vec<Vec<u32>> = (0..60).map(|user| (0..6).map(|i| user % 2 * 8 + (user / 2 + i) % 8).collect()).collect();
    let mut corpus = corpus(18, &logs, &[58, 59]);
    for (index, item) in corpus.items.iter_mut().enumerate() {
        let words = if index < 8 || index == 16 { "red fountain pen" } else { "brass garden hose" };
        item.title = format!("{words} {}", ["small", "large", "deluxe", "classic"][index % 4]);
    }
    let cold: [u32; 2] = [16, 17];
    assert!(cold.iter().all(|item| Interactions::counts(&corpus)[*item as usize] == 0));
    let sets = ["dim=8", "dropout=0.1", "epochs=40", "learning_rate=0.01", "batch_size=16"];
    let titles = sets.into_iter().chain(["text=tfidf", "text_dim=8"]).collect::<Vec<_>>();
    let plain = train_vectors("sasrec", &sets, &corpus).model;
    let model = train_vectors("sasrec", &titles, &corpus).model;
    let score = |ranker: &VectorRanker, history: &[u32], item: u32| ranker.raw_scores(&[history])[item as usize];
    for (history, near, far) in [([0, 1, 2], cold[0], cold[1]), ([8, 9, 10], cold[1], cold[0])] {
        assert_eq!(score(&plain, &history, near), f32::NEG_INFINITY);
        assert!(score(&model, &history, near) > score(&model, &history, far) + 1.0);
        // After the cold item alone, the warm ones of its circle.
        let after = |circle: u32| (0..8).map(|i| score(&model, &[near], circle * 8 + i)).sum::<f32>();
        let own = u32::from(near == cold[1]);
        assert!(after(own) > after(1 - own), "{} {}", after(0), after(1));
        assert!(model.vectors().item(near).iter().any(|&value| value != 0.0));
        assert_eq!(plain.vectors().item(near), [0.0; 8]);
    }
    assert_eq!(train_vectors("sasrec", &titles, &corpus).model.vectors(), model.vectors(), "the same seed");
}

/// A learner of one number: each step moves it, and its loss is NaN from the step `spoilt` on.
struct Walk {
    spoilt: Option<usize>,
    not_finite: bool,
}

impl EpochLearner<Concrete> for Walk {
    type Module = Linear<Concrete>;
    type Batch = ();
    type Model = f32;

    fn batches(&self, _: usize) -> Vec<()> {
        vec![(); 2]
    }

    fn loss(&self, module: &Linear<Concrete>, number: usize, _: &()) -> (Tensor<Concrete, 1>, usize) {
        let factor = if self.spoilt.is_some_and(|spoilt| number >= spoilt) { f64::NAN } else { 1.0 };
        (module.weight.val().sum().mul_scalar(factor), 3)
    }

    fn model(&self, module: Linear<Concrete>) -> Result<f32> {
        Ok(module.weight.val().sum().into_scalar().elem())
    }

    fn numbers(&self, model: &f32) -> Result<Vec<f32>> {
        Ok(vec![if self.not_finite { f32::INFINITY } else { *model }])
    }
}

fn walk(learner: Walk, metrics: &[Option<f64>], patience: usize) -> Result<(BestEpoch<f32>, Vec<f32>)> {
    let device = burn::DispatchDevice::autodiff(BackendName::Cpu.device().unwrap());
    let module = LinearConfig::new(1, 1).with_bias(false).init(&device);
    let (mut models, mut lines) = (Vec::new(), 0);
    let best = train_epochs::<Concrete, _>(
        learner,
        module,
        EpochOptions {
            epochs: metrics.len(),
            patience,
            learning_rate: 0.1,
            weight_decay: 0.0,
            metrics: None,
            validate: &mut |&model: &f32| {
                models.push(model);
                Ok(metrics[models.len() - 1])
            },
            say: &mut |_| lines += 1,
        },
    )?;
    assert_eq!(lines, models.len(), "a line an epoch");
    Ok((best, models))
}

#[test]
fn keeps_the_best_epoch_and_stops() {
    let run = |metrics: &[Option<f64>], patience| {
        let (best, models) = walk(Walk { spoilt: None, not_finite: false }, metrics, patience).unwrap();
        assert_eq!(best.model, models[best.epoch - 1], "the model of that epoch");
        assert!(models.windows(2).all(|pair| pair[1] < pair[0]), "every epoch moves it: {models:?}");
        (best.epoch, models.len())
    };
    assert_eq!(run(&[Some(0.0), Some(0.2), Some(0.1), Some(0.2), Some(0.9)], 2), (2, 4));
    assert_eq!(run(&[Some(0.1), Some(0.0), Some(0.3), Some(0.2)], 2), (3, 4));
    assert_eq!(run(&[None, None, None], 1), (3, 3));
    for (spoilt, not_finite, named) in [(Some(4), false, "step 4: the loss is NaN"), (None, true, "vector is inf")] {
        let error = walk(Walk { spoilt, not_finite }, &[None; 3], 3).unwrap_err().to_string();
        assert!(error.contains("learning_rate") && error.contains(named), "{error}");
    }
}

#[test]
fn bad_settings_are_usage_errors_that_name_the_key() {
    for (ranker, set, named) in [
        ("als", "epochs=3", "epochs"),
        ("als", "dim=0", "dim"),
        ("als", "dim=1e3", "dim"),
        ("als", "alpha=nan", "alpha"),
        ("als", "regularization=0", "regularization"),
        ("bpr", "learning_rate=-1", "learning_rate"),
        ("bpr", "batch_size=0", "batch_size"),
        ("sasrec", "heads=3", "heads"),
        ("sasrec", "dropout=1", "dropout"),
        ("sasrec", "loss=mse", "mse"),
        ("sasrec", "text_dim=0", "text_dim"),
        ("sasrec", "text=1", "text"),
        ("markov", "decay=1", "decay"),
        ("svd", "dim=3", "svd"),
    ] {
        let error = RankerSpec::new(ranker, settings(&[set])).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{set}");
        assert!(error.to_string().contains(named), "{set}: {error}");
    }
    assert!(vector_method("markov", toml::Table::new()).unwrap_err().to_string().contains("als, bpr or sasrec"));
}

#[test]
fn names_are_distinct_and_settings_are_kept_as_json() {
    for entry in registry::REGISTRY {
        assert_eq!(registry::entry(entry.name).unwrap().about, entry.about);
        assert_eq!(RankerSpec::new(entry.name, toml::Table::new()).unwrap().to_string(), entry.name);
        assert_eq!(registry::REGISTRY.iter().filter(|other| other.name == entry.name).count(), 1);
        if let Method::Vectors(method) = (entry.method)(toml::Table::new()).unwrap() {
            let table = serde_json::from_str(&method.settings_json().unwrap()).unwrap();
            let Method::Vectors(again) = (entry.method)(table).unwrap() else { panic!("{}", entry.name) };
            assert_eq!(again.settings_json().unwrap(), method.settings_json().unwrap());
        }
    }
}

#[test]
fn a_prior_of_a_run_file_is_refused_by_name() {
    let prior = |ranker: &str, vectors: Option<&str>, in_loss| PriorConfig {
        ranker: ranker.into(),
        vectors: vectors.map(String::from),
        settings: toml::Table::new(),
        mixture: None,
        weight: 1.0,
        llm_weight: 1.0,
        smoothing: 0.5,
        in_loss,
    };
    assert!(RankerSpec::from_prior_config(&prior("markov", None, true)).is_ok());
    assert!(RankerSpec::from_prior_config(&prior("als", Some("f"), false)).is_ok());
    for (prior, named) in [
        (prior("lda", None, false), "lda"),
        (prior("markov+markov", None, false), "twice"),
        (prior("markov+", None, false), "ranker ``"),
        (prior("als+sasrec", Some("f"), false), "als and sasrec"),
        (prior("text+sasrec", Some("f"), true), "prior.in_loss"),
        (prior("als", None, false), "itemlm cf als"),
        (prior("markov", Some("f"), false), "prior.vectors"),
        (prior("sasrec", Some("f"), true), "prior.in_loss"),
    ] {
        let error = RankerSpec::from_prior_config(&prior).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(named), "{error}");
    }
}

#[test]
fn settings_and_weights_of_a_mixture() {
    assert!(RankerSpec::new("markov+text", settings(&["text.decay=0.5"])).is_ok());
    for (set, named) in
        [("decay=0.5", "RANKER.key"), ("text=1", "text.key"), ("text.dekay=1", "dekay"), ("markov.decay=1", "decay")]
    {
        let error = RankerSpec::new("markov+text", settings(&[set])).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(named), "{set}: {error}");
    }
    let with = |ranker: &str, weights: &[(&str, f64)]| {
        RankerSpec::from_prior_config(&PriorConfig {
            ranker: ranker.into(),
            vectors: None,
            settings: toml::Table::new(),
            mixture: Some(weights.iter().map(|&(name, weight)| (name.to_string(), weight)).collect()),
            weight: 1.0,
            llm_weight: 1.0,
            smoothing: 0.5,
            in_loss: false,
        })
    };
    assert!(with("text+markov", &[("markov", 0.4), ("text", 0.6)]).is_ok());
    for (ranker, weights) in [
        ("text", &[("text", 1.0)][..]),
        ("text+markov", &[("text", 1.0)]),
        ("text+markov", &[("text", 0.0), ("markov", 0.0)]),
        ("text+markov", &[("text", 2.0), ("markov", 0.0)]),
    ] {
        assert!(with(ranker, weights).unwrap_err().to_string().contains("prior.mixture"));
    }
}
