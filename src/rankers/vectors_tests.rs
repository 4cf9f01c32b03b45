//! Tests of files of vectors, and of the rankers that are kept in them.

use std::fs;
use std::path::Path;

use polars::prelude::Column;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};

use super::registry::vector_method;
use super::testing::{settings, train_vectors};
use super::tests::corpus;
use super::*;
use crate::Result;
use crate::core::files::sha256;
use crate::data::{Split, UserLog, parquet_bytes, synthetic};
use crate::device::BackendName;

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

const SHORT: [(&str, &[&str]); 4] = [
    ("als", &["dim=8"]),
    ("bpr", &["dim=8", "epochs=3", "learning_rate=0.05"]),
    ("sasrec", &["dim=8", "epochs=3", "max_len=6", "learning_rate=0.01", "text=tfidf", "text_dim=12"]),
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
