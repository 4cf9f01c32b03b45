use std::fs;
use std::path::Path;

use polars::prelude::Column;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};

use super::registry::{Method, vector_method};
use super::testing::{settings, train_vectors};
use super::training::keep_best;
use super::*;
use crate::Result;
use crate::config::PriorConfig;
use crate::core::files::sha256;
use crate::data::{Item, Split, UserLog, Window, parquet_bytes, synthetic};
use crate::device::BackendName;
use crate::evaluate::{evaluate_ranker, rank_histories, summarise};

/// One training window over each user's whole log, but for users in `held`, whose window is for
/// test.
fn corpus(items: usize, logs: &[Vec<u32>], held: &[usize]) -> Corpus {
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
    let log = Interactions::of_training(&corpus).unwrap();
    // Items 0 and 3 are only in windows that validate.
    assert_eq!((log.items.as_slice(), log.counts.as_slice()), (&[1, 2, 4, 5][..], &[2, 3, 1, 2][..]));
    let sequence = |user, rows: &[u32]| UserSequence { user, rows: rows.to_vec() };
    assert_eq!(log.sequences, [sequence(0, &[3, 0, 0, 1]), sequence(0, &[2, 1]), sequence(2, &[3, 1])]);
    assert_eq!(log.by_user(), [vec![(0, 2), (1, 2), (2, 1), (3, 1)], vec![], vec![(1, 1), (3, 1)]]);
    assert_eq!(log.last_sequences(), [&[2, 1][..], &[], &[3, 1]]);
    assert_eq!((log.rows(&[3, 5, 77, 1]), log.count(5), log.count(3), log.catalogue()), (vec![3, 0], 2, 0, 6));

    let none = Corpus::new("c", corpus.items.clone(), vec![user("a", &[1, 2])], vec![], Some(vec![]), vec![]).unwrap();
    assert_eq!(Interactions::of_training(&none).unwrap_err().exit_code(), 1);
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

/// Where each item is followed by the next one, SASRec must say so; a folded-in user of ALS could
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

#[test]
fn keeps_the_best_epoch_and_stops() {
    let run = |metrics: &[Option<f64>], patience| {
        let (mut epochs, mut lines) = (0, 0);
        let epoch = |epoch: usize| {
            epochs += 1;
            Ok((epoch, 0.5))
        };
        let mut validate = |&epoch: &usize| Ok(metrics[epoch]);
        let kept = keep_best(metrics.len(), patience, epoch, |_| true, &mut validate, &mut |_| lines += 1).unwrap();
        assert_eq!((lines, kept.epoch), (epochs, kept.model + 1));
        (kept.epoch, epochs)
    };
    assert_eq!(run(&[Some(0.0), Some(0.2), Some(0.1), Some(0.2), Some(0.9)], 2), (2, 4));
    assert_eq!(run(&[Some(0.1), Some(0.0), Some(0.3), Some(0.2)], 2), (3, 4));
    assert_eq!(run(&[None, None, None], 1), (3, 3));
    for (loss, finite, named) in [(f64::NAN, true, "loss is NaN"), (0.5, false, "vector")] {
        let diverged = keep_best(3, 3, |_| Ok(((), loss)), |_| finite, &mut |_| Ok(None), &mut |_| {});
        let error = diverged.err().unwrap().to_string();
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
        smoothing: 0.5,
        in_loss,
    };
    assert!(RankerSpec::of_prior(&prior("markov", None, true)).is_ok());
    assert!(RankerSpec::of_prior(&prior("als", Some("f"), false)).is_ok());
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
        let error = RankerSpec::of_prior(&prior).unwrap_err();
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
        RankerSpec::of_prior(&PriorConfig {
            ranker: ranker.into(),
            vectors: None,
            settings: toml::Table::new(),
            mixture: Some(weights.iter().map(|&(name, weight)| (name.to_string(), weight)).collect()),
            weight: 1.0,
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

/// Vectors of a corpus of 3 items and 2 users.
fn small() -> (Corpus, Vectors) {
    let vectors = Vectors { dim: 2, items: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], users: vec![7.0, 8.0, 9.0, 10.0] };
    (corpus(3, &[vec![0, 1], vec![1, 2]], &[]), vectors)
}

#[test]
fn vectors_read_back_are_those_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.safetensors");
    let (corpus, vectors) = small();
    let settings = "{\"als\":{}}";
    let digest = vectors.save(&path, &corpus, settings).unwrap();
    assert_eq!(digest, sha256(&fs::read(&path).unwrap()));
    assert_eq!(Vectors::open(&path, &corpus).unwrap(), vectors);
    assert_eq!(vectors.save(&path, &corpus, settings).unwrap(), digest);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
    // The ids of another run are not taken for these: as many, but in another order.
    ids_by_hand(&path, "items", &[2, 1, 0], &["i2", "i1", "i0"]);
    assert!(Vectors::open(&path, &corpus).unwrap_err().to_string().contains("write the vectors again"));
}

fn ids_by_hand(path: &Path, kind: &str, rows: &[i64], ids: &[&str]) {
    let bytes = parquet_bytes(vec![Column::new("row".into(), rows), Column::new("id".into(), ids)]).unwrap();
    fs::write(format!("{}.{kind}.parquet", path.display()), bytes).unwrap();
}

fn tensors_by_hand(path: &Path, tensors: &[(&str, Vec<usize>, &[f32])]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), b)| (*name, TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn vectors_made_elsewhere_are_put_in_order_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.safetensors");
    let (corpus, vectors) = small();
    let item = [5.0, 6.0, 1.0, 2.0, 3.0, 4.0];
    let user = [7.0, 8.0, 9.0, 10.0];
    let good = || {
        tensors_by_hand(&path, &[("item", vec![3, 2], &item), ("user", vec![2, 2], &user)]);
        ids_by_hand(&path, "items", &[1, 2, 0], &["i0", "i1", "i2"]);
        ids_by_hand(&path, "users", &[0, 1], &["u0", "u1"]);
    };
    let refused = |named: &[&str]| {
        let error = Vectors::open(&path, &corpus).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        for named in named {
            assert!(error.to_string().contains(named), "{named}: {error}");
        }
        good();
    };
    good();
    assert_eq!(Vectors::open(&path, &corpus).unwrap(), vectors);

    tensors_by_hand(&path, &[("items", vec![3, 2], &item), ("user", vec![2, 2], &user)]);
    refused(&["v.safetensors", "tensor item", "not there", "items, user"]);
    tensors_by_hand(&path, &[("item", vec![6], &item), ("user", vec![2, 2], &user)]);
    refused(&["tensor item", "[6]"]);
    tensors_by_hand(&path, &[("item", vec![3, 0], &[]), ("user", vec![2, 2], &user)]);
    refused(&["tensor item", "[3, 0]"]);
    tensors_by_hand(&path, &[("item", vec![3, 2], &item), ("user", vec![2, 1], &user[..2])]);
    refused(&["vectors of 2", "user of 1"]);
    tensors_by_hand(&path, &[("item", vec![3, 2], &item), ("user", vec![2, 2], &[0.0, 1.0, f32::NAN, 0.0])]);
    refused(&["tensor user", "row 1, column 0", "NaN"]);
    fs::write(&path, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").unwrap();
    refused(&["v.safetensors", "safetensors"]);
    fs::remove_file(&path).unwrap();
    refused(&["v.safetensors"]);

    let parquet = folder.path().join("v.safetensors.items.parquet");
    for (rows, ids, named) in [
        (&[1, 2][..], &["i0", "i1"][..], "2 ids"),
        (&[1, 2, 0], &["i0", "i1", "i9"], "`i9`"),
        (&[1, 2, 0], &["i0", "i1", "i1"], "`i1`"),
        (&[1, 2, 2], &["i0", "i1", "i2"], "row 2"),
        (&[1, 2, 3], &["i0", "i1", "i2"], "row 3"),
        (&[1, 2, -1], &["i0", "i1", "i2"], "row -1"),
    ] {
        ids_by_hand(&path, "items", rows, ids);
        refused(&["v.safetensors.items.parquet", named]);
    }
    tensors_by_hand(&path, &[("item", vec![2, 2], &item[..4]), ("user", vec![2, 2], &user)]);
    ids_by_hand(&path, "items", &[1, 0], &["i0", "i2"]);
    refused(&["items.parquet", "lacks 1", "`i1`"]);
    let bytes = parquet_bytes(vec![Column::new("row".into(), [0i64, 1, 2])]).unwrap();
    fs::write(&parquet, bytes).unwrap();
    refused(&["items.parquet", "id"]);
    let bytes =
        parquet_bytes(vec![Column::new("row".into(), ["a", "b", "c"]), Column::new("id".into(), ["i0", "i1", "i2"])]);
    fs::write(&parquet, bytes.unwrap()).unwrap();
    refused(&["items.parquet", "row"]);
    fs::remove_file(&parquet).unwrap();
    refused(&["items.parquet"]);
    fs::write(&parquet, b"PAR1 no PAR1").unwrap();
    refused(&["items.parquet"]);
}

#[test]
fn vectors_that_are_not_finite_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.safetensors");
    let (corpus, mut vectors) = small();
    vectors.users[3] = f32::INFINITY;
    let error = vectors.save(&path, &corpus, "{}").unwrap_err().to_string();
    assert!(error.contains("user 1") && error.contains("inf") && !path.exists(), "{error}");
}

const SHORT: [(&str, &[&str]); 3] = [
    ("als", &["dim=8"]),
    ("bpr", &["dim=8", "epochs=3", "learning_rate=0.05"]),
    ("sasrec", &["dim=8", "epochs=3", "max_len=6", "blocks=2", "learning_rate=0.01"]),
];

/// A ranker from its file is the one that was written, at the likeliest temperature; others are
/// refused.
#[test]
fn distributions_are_kept_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.safetensors");
    let network = folder.path().join("v.safetensors.network.safetensors");
    let device = BackendName::Cpu.device().unwrap();
    let (corpus, _) = synthetic(2);
    let open = |method, corpus: &Corpus| VectorRanker::open(&path, method, corpus, &device);
    for (method, sets) in SHORT {
        let written = train_vectors(method, sets, &corpus).model;
        written.save(&path, &corpus, method, &*vector_method(method, settings(sets)).unwrap()).unwrap();
        let opened = open(method, &corpus).unwrap();
        assert!((opened.temperature() / written.temperature() - 1.0).abs() < 1e-12);
        assert_eq!(opened.vectors(), written.vectors());
        for window in &corpus.windows(Split::Test)[..5] {
            let history = corpus.history(window);
            let items = corpus.items.len();
            let (found, expected) = (opened.scores(history).to_dense(items), written.scores(history).to_dense(items));
            // ALS solves in f64 and keeps f32.
            found
                .iter()
                .zip(&expected)
                .for_each(|(f, e)| assert!((f - e).abs() < 1e-4, "{method}: {f} instead of {e}"));
            assert!(history.iter().all(|&item| found[item as usize] == 0.0));
            assert_eq!(found.iter().copied().fold(0.0, f64::max), 1.0);
        }
        assert_eq!(opened.scores(&[]), Scores::none(), "nothing is known after no item");

        let likelihood = |temperature: f64| -> f64 {
            let of = |window: &Window| {
                let (history, target) = (corpus.history(window), corpus.target(window));
                let scores = written.scores(history).to_dense(corpus.items.len());
                let mass: f64 = scores.iter().map(|score| score.powf(written.temperature() / temperature)).sum();
                let own = scores[target as usize].powf(written.temperature() / temperature) / mass;
                if own > 0.0 { own.ln() } else { 0.0 }
            };
            let windows = corpus.windows(Split::Valid);
            windows.iter().step_by(windows.len().div_ceil(500)).map(of).sum()
        };
        let best = written.temperature();
        println!("{method}: temperature {best}, ln p {}", likelihood(best));
        assert!([0.8, 1.25].iter().all(|by| likelihood(best * by) < likelihood(best)), "{method}: {best}");
    }

    let refused = |result: Result<VectorRanker>, named: &[&str]| {
        let error = result.unwrap_err();
        assert!(error.exit_code() == 1 && named.iter().all(|named| error.to_string().contains(named)), "{error}");
    };
    refused(open("als", &corpus), &["v.safetensors", "sasrec", "not by als"]);
    let users = (0..corpus.users() as u32).map(|user| {
        let events = corpus.user_interactions(user).iter().map(|&item| (item, None)).collect();
        UserLog { id: corpus.user_id(user).to_string(), events }
    });
    let fewer = corpus.windows(Split::Train)[1..].to_vec();
    let users: Vec<UserLog> = users.collect();
    let other =
        Corpus::new("c", corpus.items.clone(), users, fewer[fewer.len() / 2..].to_vec(), Some(vec![]), vec![]).unwrap();
    refused(open("sasrec", &other), &["other training windows", "itemlm cf sasrec"]);
    let bytes = fs::read(&network).unwrap();
    fs::write(&network, &bytes[..bytes.len() - 4]).unwrap();
    refused(open("sasrec", &corpus), &["network.safetensors", "v.safetensors"]);
    fs::remove_file(&network).unwrap();
    refused(open("sasrec", &corpus), &["network.safetensors"]);

    // Settings that ask for far more than the file holds.
    fs::write(&network, &bytes).unwrap();
    let file = fs::read(&path).unwrap();
    for (from, to) in [
        ("\\\"blocks\\\":2", "\\\"blocks\\\":9"),
        ("\\\"max_len\\\":6", "\\\"max_len\\\":7"),
        ("\\\"dim\\\":8", "\\\"dim\\\":9"),
    ] {
        let at = file.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        let mut edited = file.clone();
        edited[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, edited).unwrap();
        refused(open("sasrec", &corpus), &["v.safetensors"]);
    }
    let vectors = Vectors::zeros(corpus.items.len(), corpus.users(), 8);
    vectors.save(&path, &corpus, "{\"als\":{\"dim\":8}}").unwrap();
    refused(open("als", &corpus), &["v.safetensors", "itemlm cf"]);
}

/// Random damage never panics.
#[test]
fn fuzz() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.safetensors");
    let (corpus, vectors) = small();
    vectors.save(&path, &corpus, "{}").unwrap();
    for file in ["v.safetensors", "v.safetensors.users.parquet"] {
        let file = folder.path().join(file);
        let good = fs::read(&file).unwrap();
        for _ in 0..200 {
            let mut bytes = good.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            bytes.truncate(rng.random_range(bytes.len() / 2..bytes.len() * 3));
            fs::write(&file, bytes).unwrap();
            let _ = Vectors::open(&path, &corpus);
        }
        fs::write(&file, good).unwrap();
    }
    assert_eq!(Vectors::open(&path, &corpus).unwrap(), vectors);
}
