//! `itemlm serve` with another catalogue than the training one, and without a language model.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use itemlm::data::{Corpus, Item};
use itemlm::run::{ItemRef, RecommendRequest};
use serde_json::{Value, json};

use crate::lab::{ITEMS, Lab};
use crate::server::Server;
use crate::session::session;

fn ids(answer: &Value) -> Vec<String> {
    answer["items"].as_array().unwrap().iter().map(|item| item["item"].as_str().unwrap().to_string()).collect()
}

fn csv(items: &[(&str, &str)]) -> String {
    let rows = items.iter().map(|(id, title)| format!("{id},\"{}\"\n", title.replace('"', "\"\"")));
    "id,title\n".to_string() + &rows.collect::<String>()
}

const TODAY: [(&str, &str); 5] = [
    ("new-1", "Red Pen 21"),
    ("101", "Blue Pen 1"),
    ("104", "A5 Pad, ruled 4"),
    ("new-2", "Green \"Ink\" <b>1</b>"),
    ("119", "A5 Pad, ruled 19"),
];

/// New items are recommended and those that are gone are not; a history may hold both.
#[test]
fn todays_catalogue_is_served() {
    let lab = Lab::new();
    let session = session(&lab);
    lab.write("items.csv", csv(&TODAY));
    let server = Server::ready(&lab, "run --items items.csv");
    let history = json!([{ "item": "105" }, { "item": "new-1" }, { "item": "101" }]);
    let answer = server.post("/v1/recommend", &json!({ "history": history, "k": 20 })).json();
    let all: BTreeSet<String> = TODAY.iter().map(|(id, _)| id.to_string()).collect();
    assert_eq!(ids(&answer).into_iter().collect::<BTreeSet<_>>(), all);

    // The library says the same, and the scores are a distribution over the catalogue.
    let items = TODAY.map(|(id, title)| Item { id: id.into(), title: title.into() }).to_vec();
    let live = session.with_items(items).unwrap();
    let ids_of = ["105", "new-1", "101"].map(|id| ItemRef::Id(id.into())).to_vec();
    let expected = live.recommend(&RecommendRequest { history: ids_of, k: 20, ..RecommendRequest::default() }).unwrap();
    assert_eq!(ids(&answer), expected.items.iter().map(|item| item.item.clone()).collect::<Vec<_>>());
    let total: f64 = expected.items.iter().map(|item| item.log_prob.exp()).sum();
    assert!((total - 1.0).abs() < 1e-4, "{total}");

    let recommend = |extra: Value| {
        let mut body = json!({ "history": history, "k": 20 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post("/v1/recommend", &body)
    };
    let without: HashSet<String> = ids(&recommend(json!({ "exclude_history": true })).json()).into_iter().collect();
    assert_eq!(without, ["104", "new-2", "119"].map(String::from).into());
    assert_eq!(ids(&recommend(json!({ "only": ["new-2"] })).json()), ["new-2"]);
    // Who is gone is excluded already, and cannot be wanted.
    assert_eq!(recommend(json!({ "exclude": ["105"] })).json()["items"], answer["items"]);
    recommend(json!({ "only": ["105"] })).is_problem(422, "item 105 is not in today's catalogue");
    recommend(json!({ "exclude": ["106", "nothing"] })).is_problem(422, "no item nothing");
    assert_eq!(ids(&server.get("/v1/items?q=pen").json()), ["new-1", "101"]);

    // A file that cannot be served changes nothing.
    for (content, named) in [("id,title\n1,x\n1,y\n", "row 2"), ("id,title\n", "no item"), ("id\n1\n", "title")] {
        lab.write("items.csv", content);
        let refused = server.post("/v1/reload", &json!({}));
        refused.is_problem(422, named);
    }
    assert_eq!(recommend(json!({})).json()["items"], answer["items"]);
    lab.write("items.csv", csv(&TODAY[1..]));
    let reloaded = server.post("/v1/reload", &json!({})).json();
    assert_eq!(reloaded, json!({ "items": 4, "added": 0, "removed": 1 }));
    recommend(json!({})).is_problem(422, "no item new-1");
    let history = json!([{ "item": "105" }]);
    let answer = server.post("/v1/recommend", &json!({ "history": history, "k": 20 })).json();
    assert_eq!(ids(&answer).len(), 4);
}

/// While the catalogue changes back and forth, by request and by signal, every request is answered,
/// each by one of the two.
#[test]
fn a_reload_drops_no_request() {
    let lab = Lab::new();
    drop(session(&lab));
    lab.write("items.csv", csv(&TODAY));
    let server = Server::ready(&lab, "run --items items.csv");
    let sets: [BTreeSet<String>; 2] = [&TODAY[..], &TODAY[2..]].map(|items| items.iter().map(|i| i.0.into()).collect());
    let stop = AtomicBool::new(false);
    let answered: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let (mut answered, body) = (0, json!({ "history": [{ "item": "105" }], "k": 20 }));
                    while !stop.load(Relaxed) {
                        let answer = server.post("/v1/recommend", &body);
                        assert_eq!(answer.status, 200, "{answer:?}");
                        let found: BTreeSet<String> = ids(&answer.json()).into_iter().collect();
                        assert!(sets.contains(&found), "{found:?}");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        let items = |count: usize| {
            let started = Instant::now();
            while server.get("/v1/models").json()["models"][0]["items"] != count {
                assert!(started.elapsed() < Duration::from_secs(60));
            }
        };
        for round in 0..10 {
            let today = if round % 2 == 0 { &TODAY[2..] } else { &TODAY[..] };
            // A reader sees the old file or the new one.
            lab.write("items.new", csv(today));
            std::fs::rename(lab.path("items.new"), lab.path("items.csv")).unwrap();
            match round % 3 {
                0 => server.signal(libc::SIGHUP),
                _ => assert_eq!(server.post("/v1/reload", &json!({})).status, 200),
            }
            items(today.len());
        }
        stop.store(true, Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(answered >= 6, "{answered}");
    server.stop();
}

/// The list of a ranker is the one that `itemlm baseline` measures.
#[test]
fn a_baseline_is_served() {
    let lab = Lab::new();
    lab.write("items.jsonl", TODAY.map(|(id, title)| json!({ "id": id, "title": title }).to_string()).join("\n"));
    let server = Server::ready(&lab, "corpus --baseline cooccurrence+text");
    let corpus = Corpus::open(&lab.path("corpus")).unwrap();
    let recommend = |server: &Server, history: Value, more: Value| {
        let mut body = json!({ "history": history, "k": 20 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/recommend", &body)
    };
    let answer = recommend(&server, json!([{ "item": "101" }, { "title": "Red Pen 5" }]), json!({})).json();
    assert_eq!(answer["model"], "cooccurrence+text");
    let scores: Vec<f64> = answer["items"].as_array().unwrap().iter().map(|i| i["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores[0] > 0.0, "{scores:?}");
    assert!(!ids(&answer).contains(&"101".to_string()) && ids(&answer).len() == ITEMS - 3, "{answer}");
    let some = json!({ "only": ["119", "103", "107", "101"], "exclude": ["103"], "exclude_history": false });
    let found: BTreeSet<String> =
        ids(&recommend(&server, json!([{ "item": "101" }]), some).json()).into_iter().collect();
    assert_eq!(found, ["101", "107", "119"].map(String::from).into());
    let ranked = server.post("/v1/rank", &json!({ "history": [{ "item": "101" }], "items": ["119", "102"] })).json();
    assert_eq!(ranked["items"].as_array().unwrap().len(), 2);
    recommend(&server, json!([{ "item": "7" }]), json!({})).is_problem(422, "no item 7");
    let model = server.get("/v1/models").json()["models"][0].clone();
    assert_eq!((&model["kind"], &model["items"]), (&json!("baseline"), &json!(corpus.items.len())));

    let live = Server::ready(&lab, "corpus --baseline cooccurrence --items items.jsonl");
    let answer = recommend(&live, json!([{ "item": "105" }, { "item": "101" }]), json!({})).json();
    let found: BTreeSet<String> = ids(&answer).into_iter().collect();
    assert_eq!(found, ["new-1", "104", "new-2", "119"].map(String::from).into());
    // The scores of the training catalogue, in its order.
    let training = Server::ready(&lab, "corpus --baseline cooccurrence");
    let all = recommend(&training, json!([{ "item": "105" }, { "item": "101" }]), json!({})).json();
    let score = |answer: &Value, id: &str| {
        let items = answer["items"].as_array().unwrap();
        items.iter().find(|item| item["item"] == id).unwrap()["score"].as_f64()
    };
    for id in ["104", "119"] {
        assert_eq!(score(&answer, id), score(&all, id));
    }
    assert_eq!(score(&answer, "new-1"), Some(0.0));
    live.stop();
}
