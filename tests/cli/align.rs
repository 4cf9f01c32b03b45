//! Phase 1 of ILM, end to end: vectors, a Q-Former, its run directory.

use itemlm::data::{Corpus, Item, Provenance, UserLog, Window};
use itemlm::device::BackendName;
use itemlm::rankers::Vectors;
use itemlm::run::open_aligned;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::common::fixture;
use crate::lab::Lab;

/// 18 of the 20 items are in training windows; 4 are held out, so 3 batches of texts and as many of
/// pairs an epoch.
const RUN: &str = r#"
seed = 7
[data]
corpus = "corpus"
vectors = "als.safetensors"
held_out = 0.2
[qformer]
text = "bert"
layers = 2
queries = 2
projection = 8
max_text_tokens = 8
[loss]
item_item = 0.5
user_item = 1.0
[train]
epochs = 2
batch_size = 4
learning_rate = 3e-3
warmup_steps = 2
"#;

pub fn lab() -> Lab {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("bert")).unwrap();
    for file in ["config.json", "model.safetensors", "vocab.txt"] {
        std::fs::copy(fixture("reference/bert").join(file), lab.path("bert").join(file)).unwrap();
    }
    lab.ok("cf als corpus --out als.safetensors --set dim=6");
    lab.write("align.toml", RUN);
    lab
}

/// Phase 1 divides the vectors by their root mean square, so their size teaches nothing: of 1e-4 of
/// the size they give the same losses and the same retrieval (to 1e-4, for the scaling rounds), and
/// the Q-Former keeps a scale of 1e-4 of the other.
#[test]
fn the_size_of_the_vectors_does_not_matter() {
    let lab = lab();
    let corpus = Corpus::open(&lab.path("corpus")).unwrap();
    let mut vectors = Vectors::open(&lab.path("als.safetensors"), &corpus).unwrap();
    vectors.items.iter_mut().chain(&mut vectors.users).for_each(|v| *v *= 1e-4);
    vectors.save(&lab.path("small.safetensors"), &corpus, "small").unwrap();
    lab.ok("align align.toml --out plain");
    lab.ok("align align.toml --out small --set data.vectors=small.safetensors");
    let near = |a: &Value, b: &Value, what: &str| {
        let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
        assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-3), "{what}: {a} and {b}");
    };
    for (step, (a, b)) in lab.metrics("plain").iter().zip(&lab.metrics("small")).enumerate() {
        near(&a["loss"], &b["loss"], &format!("loss of step {step}"));
    }
    let device = BackendName::Cpu.device().unwrap();
    let [plain, small] = ["plain", "small"].map(|run| {
        let (config, _) = open_aligned::<burn::Dispatch>(&lab.path(run), &device).unwrap();
        config.scale.unwrap()
    });
    near(&(plain.items * 1e-4).into(), &small.items.into(), "scale of the items");
    near(&(plain.users * 1e-4).into(), &small.users.into(), "scale of the users");
}

fn retrieval(lab: &Lab, run: &str) -> Vec<Value> {
    let text = String::from_utf8(lab.read(&format!("{run}/retrieval.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn trains_resumes_and_opens() {
    let lab = lab();
    let report = lab.json("align align.toml --out whole");
    assert_eq!((&report["steps"], &report["total_steps"], &report["texts"]), (&12.into(), &12.into(), &14.into()));
    assert_eq!(report["retrieval"]["items"], 4);
    let metrics = lab.metrics("whole");
    assert_eq!(metrics.len(), 12);
    for (step, line) in metrics.iter().enumerate() {
        let has = |name: &str| line[name].as_f64().is_some_and(f64::is_finite);
        assert!(["loss", "lr", "temperature", "tokens", "seconds", "grad_norm"].iter().all(|name| has(name)), "{line}");
        let texts = step % 2 == 0;
        assert!(["itc", "itg", "itm"].iter().all(|name| has(name) == texts), "{line}");
        assert!(["ii", "ui"].iter().all(|name| has(name) != texts), "{line}");
    }
    let epochs: Vec<_> =
        retrieval(&lab, "whole").iter().map(|line| (line["epoch"].clone(), line["step"].clone())).collect();
    assert_eq!(epochs, [(0.into(), 0.into()), (1.into(), 6.into()), (2.into(), 12.into())]);

    lab.ok("align align.toml --out parts --max-steps 0");
    for stop in [1, 4, 6, 7] {
        assert_eq!(lab.json(&format!("align align.toml --out parts --resume --max-steps {stop}"))["steps"], stop);
    }
    let resumed = lab.json("align align.toml --out parts --resume");
    for key in ["steps", "samples", "loss", "temperature", "best_step", "retrieval"] {
        assert_eq!(resumed[key], report[key], "{key}");
    }
    lab.same_run("whole", "parts", "qformer/model.safetensors");
    assert_eq!(retrieval(&lab, "whole"), retrieval(&lab, "parts"));
    assert!(lab.leftovers("parts").is_empty());

    let device = BackendName::Cpu.device().unwrap();
    let (config, aligner) = open_aligned::<burn::Dispatch>(&lab.path("whole"), &device).unwrap();
    assert_eq!(config.step as u64, report["best_step"].as_u64().unwrap());
    assert_eq!((config.qformer.queries, config.qformer.vector_width, config.qformer.text.num_hidden_layers), (2, 6, 2));
    assert_eq!(aligner.qformer.config(), &config.qformer);

    // A configuration that asks for more than the weights hold is refused before it is allocated.
    let good = String::from_utf8(lab.read("whole/qformer/config.toml")).unwrap();
    for (key, size, named) in [
        ("vocab_size", 1 << 24, "model.safetensors: "),
        ("hidden_size", 1 << 12, "model.safetensors: "),
        ("hidden_size", 1 << 16, "config.toml: its sizes make"),
        ("intermediate_size", 1 << 18, "model.safetensors: "),
        ("num_hidden_layers", 1 << 10, "model.safetensors: "),
    ] {
        let line = good.lines().find(|line| line.starts_with(key)).unwrap();
        lab.write("whole/qformer/config.toml", good.replacen(line, &format!("{key} = {size}"), 1));
        let error = open_aligned::<burn::Dispatch>(&lab.path("whole"), &device).unwrap_err().to_string();
        assert!(error.contains(named), "{key}: {error}");
    }
}

#[test]
fn each_loss_alone_and_a_random_start() {
    let lab = lab();
    let off = "--set loss.item_item=0 --set loss.user_item=0 --set loss.item_text_contrastive=0 \
               --set loss.item_grounded_generation=0 --set loss.item_text_matching=0";
    for (key, name) in [
        ("item_text_contrastive", "itc"),
        ("item_grounded_generation", "itg"),
        ("item_text_matching", "itm"),
        ("item_item", "ii"),
        ("user_item", "ui"),
    ] {
        lab.ok(&format!("align align.toml --out {name} {off} --set loss.{key}=2 --set train.epochs=1 --ui none"));
        for line in lab.metrics(name) {
            let (loss, part) = (line["loss"].as_f64().unwrap(), line[name].as_f64().unwrap());
            assert!((loss - 2.0 * part).abs() < 1e-5 * loss, "{line}");
            assert_eq!(["itc", "itg", "itm", "ii", "ui"].iter().filter(|n| line.get(n).is_some()).count(), 1);
        }
    }
    let sizes =
        "--set qformer.init=random --set qformer.layers=4 --set qformer.hidden_size=12 --set qformer.attention_heads=2";
    lab.ok(&format!("align align.toml --out random {sizes} --set train.epochs=1"));
    lab.ok("align align.toml --out all --set data.held_out=0 --set train.epochs=1");
    assert!(lab.path("all/qformer/config.toml").exists() && !lab.path("all/retrieval.jsonl").exists());
}

/// Writes 126 items whose titles are made of four words, and for each item a vector: the noisy sum
/// of its words' vectors.
fn planted_world(lab: &Lab) {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let words = [
        &["red", "blue", "green"][..],
        &["pen", "pencil", "paper", "book", "lamp", "desk", "chair"],
        &["1", "2", "3"],
        &["big", "small"],
    ];
    let meaning: Vec<Vec<[f32; 16]>> = words
        .iter()
        .map(|kind| kind.iter().map(|_| std::array::from_fn(|_| rng.random_range(-1.0..1.0))).collect())
        .collect();
    let (mut items, mut vectors) = (Vec::new(), Vec::new());
    for item in 0..3 * 7 * 3 * 2 {
        let mut rest = item;
        let (mut title, mut vector) = (String::new(), [0f32; 16]);
        for (kind, meaning) in words.iter().zip(&meaning) {
            title += &format!("{} ", kind[rest % kind.len()]);
            vector.iter_mut().zip(meaning[rest % kind.len()]).for_each(|(v, m)| *v += m + rng.random_range(-0.1..0.1));
            rest /= kind.len();
        }
        items.push(Item { id: item.to_string(), title: title.trim().to_string() });
        vectors.extend(vector);
    }
    let mut order: Vec<u32> = (0..items.len() as u32).collect();
    order.shuffle(&mut rng);
    let user = UserLog { id: "u".into(), events: order.into_iter().map(|item| (item, None)).collect() };
    let len = items.len() as u32;
    let train = vec![Window { user: 0, start: 0, len }];
    let corpus = Corpus::new("planted", items, vec![user], train, Some(vec![]), vec![]).unwrap();
    corpus.save(&lab.path("planted"), &Provenance::default()).unwrap();
    let vectors = Vectors { dim: 16, items: vectors, users: vec![0.5; 16] };
    vectors.save(&lab.path("planted.safetensors"), &corpus, "{}").unwrap();
}

/// Where vectors say what titles say, titles never trained on are found by their items' vectors,
/// and the other way round; from a drawn text branch, so that all of it is learnt here.
#[test]
fn held_out_titles_are_found() {
    let lab = lab();
    planted_world(&lab);
    let set = "--set data.corpus=planted --set data.vectors=planted.safetensors --set qformer.init=random --set \
               train.epochs=40 \
               --set train.batch_size=20 --set loss.item_item=0 --set loss.user_item=0 --set qformer.dropout=0";
    let report = lab.json(&format!("align align.toml --out planted-run --ui none {set}"));
    println!("{}", report["retrieval"]);
    let lines = retrieval(&lab, "planted-run");
    for (way, least) in [("text_to_item", 0.5), ("item_to_text", 0.5)] {
        let recall = |line: &Value| line[way]["recall@1"].as_f64().unwrap();
        println!("{way}: {:?}", lines.iter().map(recall).collect::<Vec<_>>());
        assert!(recall(&lines[0]) < 0.2, "untrained: {}", recall(&lines[0]));
        assert!(recall(&report["retrieval"]) >= least, "{way}: {}", recall(&report["retrieval"]));
    }
}

#[test]
fn refusals() {
    let lab = lab();
    lab.ok("align align.toml --out run --max-steps 1");
    lab.assert_refused("align align.toml --out run", 2, &["run", "--resume"]);
    lab.assert_refused("align align.toml --out run --resume --set train.epochs=3", 2, &["epochs = 2", "epochs = 3"]);
    lab.assert_refused("align align.toml --out new --ui tui", 2, &["--ui plain"]);
    lab.assert_refused("align align.toml --out new --set loss.clip=1", 2, &["align.toml", "clip"]);
    lab.assert_refused("align run.toml --out new", 2, &["run.toml"]);
    lab.assert_refused("align none.toml --out new", 1, &["none.toml"]);
    lab.assert_refused("align align.toml --out new --set data.corpus=none", 1, &["none", "corpus.toml"]);
    lab.assert_refused("align align.toml --out new --set data.vectors=none", 1, &["none"]);
    lab.assert_refused("align align.toml --out new --set qformer.text=none", 1, &["none", "vocab.txt"]);
    lab.assert_refused("align align.toml --out new --set qformer.text=llm", 1, &["[CLS]"]);
    lab.assert_refused("align align.toml --out new --set qformer.layers=4", 2, &["3 layers", "random"]);
    lab.assert_refused("align align.toml --out new --set qformer.max_text_tokens=25", 2, &["max_text_tokens", "24"]);
    let odd = "--set qformer.init=random --set qformer.hidden_size=30";
    lab.assert_refused(&format!("align align.toml --out new {odd}"), 2, &["hidden_size 30"]);
    let config = lab.read("bert/config.json");
    lab.edit("bert/config.json", "\"layer_norm_eps\": 1e-12", "\"layer_norm_eps\": 1e-11");
    lab.assert_refused("align align.toml --out run --resume", 1, &["Q-Former", "bert"]);
    lab.write("bert/config.json", config);
    lab.ok("cf als corpus --out als.safetensors --set dim=5");
    lab.assert_refused("align align.toml --out run --resume", 1, &["als.safetensors"]);
    assert!(open_aligned::<burn::Dispatch>(&lab.path("run"), &BackendName::Cpu.device().unwrap()).is_err());
}
