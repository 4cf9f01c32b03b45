//! `itemlm serve`: answers, filters, and how it starts and stops.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use itemlm::run::{ItemRef, RankRequest, RecommendRequest, Recommendation, Recommendations, Session};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::lab::{ITEMS, Lab, succeeded, titles};
use crate::server::Server;
use crate::session::session;

/// The text of the items in the server's answer. Texts are compared: they hold every bit of a
/// number, and serde_json reads some numbers one bit off.
fn items(expected: &Recommendations) -> String {
    let item = |item: &Recommendation| {
        let [id, title] = [&item.item, &item.title].map(|text| serde_json::to_string(text).unwrap());
        let score = serde_json::to_string(&item.score).unwrap();
        format!(r#"{{"rank":{},"item":{id},"title":{title},"score":{score}}}"#, item.rank)
    };
    format!("\"items\":[{}]", expected.items.iter().map(item).collect::<Vec<_>>().join(","))
}

/// A random request, as the library and as a client has it.
fn random_request(rng: &mut ChaCha8Rng, session: &Session) -> (RecommendRequest, Value) {
    let ids: Vec<String> = session.context.corpus.items.iter().map(|item| item.id.clone()).collect();
    let mut history = Vec::new();
    for _ in 0..rng.random_range(1..6) {
        history.push(match rng.random_range(0..4) {
            0 => ItemRef::Title(titles().choose(rng).unwrap().clone()),
            1 => ItemRef::Title(format!("never seen {}", rng.random_range(0..1000))),
            _ => ItemRef::Id(ids.choose(rng).unwrap().clone()),
        });
    }
    let some = |rng: &mut ChaCha8Rng| -> Vec<String> {
        let count = rng.random_range(1..ITEMS);
        ids.choose_multiple(rng, count).cloned().collect()
    };
    let request = RecommendRequest {
        history,
        k: rng.random_range(1..ITEMS + 2),
        exclude: if rng.random_bool(0.3) { some(rng) } else { Vec::new() },
        only: rng.random_bool(0.3).then(|| some(rng)),
        exclude_history: [None, Some(false), Some(true)].choose(rng).copied().flatten(),
        ..RecommendRequest::default()
    };
    let mut body = json!({ "history": request.history, "k": request.k });
    if !request.exclude.is_empty() || rng.random_bool(0.2) {
        body["exclude"] = json!(request.exclude);
    }
    if let Some(only) = &request.only {
        body["only"] = json!(only);
    }
    if let Some(exclude) = request.exclude_history {
        body["exclude_history"] = json!(exclude);
    }
    (request, body)
}

/// Requests come alone, together and in batches, in any order: the answers are those of
/// `recommend --json` and of a session that answers each alone, to the last bit.
#[test]
fn answers_are_those_of_recommend_to_the_bit() {
    let lab = Lab::new();
    let session = session(&lab);
    let server = Server::ready(&lab, "run");
    // The command prints its keys in another order.
    let texts = |text: &str, key: &str| -> Vec<String> {
        let key = format!("\"{key}\":");
        let values = text.split(&key).skip(1);
        values.map(|value| value[..value.find([',', '}']).unwrap()].to_string()).collect()
    };
    for (title, k) in [("Red Pen 0", 5), ("never seen", 12), ("Café \"Noir\" & Co 2", 30)] {
        let line = format!("recommend run --json -k {k}");
        let printed = succeeded(&line, lab.command(&line).args(["--history", title]).output().unwrap());
        let printed = String::from_utf8(printed.stdout).unwrap();
        let answer = server.post("/v1/recommend", &json!({ "history": [{ "title": title }], "k": k }));
        for key in ["item", "rank", "score"] {
            let (found, expected) = (texts(&answer.body, key), texts(&printed, key));
            assert_eq!((answer.status, found, expected.len()), (200, expected.clone(), k.min(ITEMS - 1)));
        }
        assert_eq!(answer.json()["model"], "run");
        assert_eq!(answer.json()["id"].as_str().map(String::from), answer.header("x-request-id"));
    }

    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut cases: Vec<(Value, String)> = Vec::new();
    for _ in 0..60 {
        let (request, body) = random_request(&mut rng, &session);
        cases.push((body, items(&session.recommend(&request).unwrap())));
    }
    for _ in 0..2 {
        cases.shuffle(&mut rng);
        std::thread::scope(|scope| {
            for cases in cases.chunks(8) {
                let server = &server;
                scope.spawn(move || {
                    for (body, expected) in cases {
                        let answer = server.post("/v1/recommend", body);
                        assert!(answer.status == 200 && answer.body.contains(expected), "{answer:?} {expected}");
                    }
                });
            }
        });
    }
    let bodies: Vec<&Value> = cases.iter().map(|(body, _)| body).collect();
    let answers = server.post("/v1/batch", &json!(bodies)).body;
    let found: Vec<&str> = answers.split("\"items\":").skip(1).collect();
    let expected: Vec<&str> = cases.iter().map(|(_, items)| items.trim_start_matches("\"items\":")).collect();
    assert!(
        found.len() == expected.len() && found.iter().zip(&expected).all(|(found, items)| found.starts_with(items))
    );

    for _ in 0..10 {
        let (request, body) = random_request(&mut rng, &session);
        let ids = ["101", "117", "119", "105"];
        let rank =
            RankRequest { history: request.history, items: ids.map(String::from).to_vec(), ..RankRequest::default() };
        let answer = server.post("/v1/rank", &json!({ "history": body["history"], "items": ids }));
        let expected = items(&session.rank(&rank).unwrap());
        assert!(answer.body.contains(&expected), "{answer:?} {expected}");
    }
    server.stop();
}

/// The allowed items in the order of their scores, each of which is asked for alone.
#[test]
fn a_filtered_search_is_an_exhaustive_one() {
    let lab = Lab::new();
    let session = session(&lab);
    let server = Server::ready(&lab, "run");
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for _ in 0..12 {
        let (request, body) = random_request(&mut rng, &session);
        let (items, k) = (&session.context.corpus.items, request.k);
        let in_history = |title: &str| {
            request.history.iter().any(|item| match item {
                ItemRef::Title(name) => name == title,
                ItemRef::Id(id) => items.iter().any(|item| item.id == *id && item.title == title),
            })
        };
        let mut allowed: Vec<(f64, &str)> = Vec::new();
        for item in items {
            let is_allowed = !request.exclude.contains(&item.id)
                && request.only.as_ref().is_none_or(|only| only.contains(&item.id))
                && !(request.exclude_history == Some(true) && in_history(&item.title));
            if is_allowed && !allowed.iter().any(|(_, title)| *title == item.title) {
                let answer = server.post("/v1/rank", &json!({ "history": body["history"], "items": [item.id] }));
                allowed.push((answer.json()["items"][0]["score"].as_f64().unwrap(), &item.title));
            }
        }
        allowed.sort_by(|a, b| b.0.total_cmp(&a.0));
        allowed.truncate(k);
        let answer = server.post("/v1/recommend", &body).json();
        let found = answer["items"].as_array().unwrap();
        assert_eq!(found.len(), allowed.len(), "{body}");
        // Searches of other widths sum products in another order.
        for (found, (score, _)) in found.iter().zip(&allowed) {
            assert!((found["score"].as_f64().unwrap() - score).abs() < 1e-4, "{body}: {answer} {allowed:?}");
        }
        let titles = |title: &Value| allowed.iter().any(|(_, allowed)| title == allowed);
        assert!(found.iter().all(|item| titles(&item["title"])), "{body}");
    }
}

/// All routes, with a log of JSON and a key.
#[test]
fn routes_keys_and_logs() {
    let lab = Lab::new();
    drop(session(&lab));
    lab.write("keys", "0123456789abcdef\n");
    let server = Server::start(&lab, "run --log-format json --api-key-file keys");
    assert_eq!(server.get("/health/live").status, 200);
    let key = "Authorization: Bearer 0123456789abcdef\r\n";
    let started = Instant::now();
    loop {
        let ready = server.get("/health/ready");
        match ready.status {
            200 => break,
            _ => ready.is_problem(503, "starts"),
        }
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    for path in ["/v1/items", "/v1/models", "/metrics"] {
        let refused = server.get(path);
        refused.is_problem(401, "Bearer");
        assert_eq!(refused.header("www-authenticate").as_deref(), Some("Bearer"));
        assert_eq!(server.request("GET", path, key, b"").status, 200, "{path}");
    }
    server.request("POST", "/v1/recommend", "Authorization: Bearer 0123456789abcdee\r\n", b"{}").is_problem(401, "");
    let get = |path: &str| server.request("GET", path, key, b"");
    let model = get("/v1/models").json()["models"][0].clone();
    assert_eq!((&model["id"], &model["kind"], &model["items"]), (&json!("run"), &json!("run"), &json!(ITEMS)));
    let found = get("/v1/items?q=PEN%20blue&limit=2").json();
    assert_eq!(
        found["items"],
        json!([{"item": "101", "title": "Blue Pen 1"}, {"item": "111", "title": "Blue Pen 11"}])
    );
    assert_eq!(get("/v1/items?q=113").json()["items"][0]["title"], titles()[13].as_str());
    assert_eq!(get("/v1/items").json()["items"].as_array().unwrap().len(), ITEMS);
    get("/v1/items?limit=0").is_problem(422, "limit");
    get("/v1/items?limit=x").is_problem(422, "limit");
    get("/v1/items?query=x").is_problem(422, "query");
    let answer = server.request(
        "POST",
        "/v1/recommend",
        &format!("{key}X-Request-Id: mine-7\r\n"),
        br#"{"history": [{"item": 101}]}"#,
    );
    assert_eq!((answer.status, &answer.json()["id"]), (200, &json!("mine-7")));
    assert_eq!(answer.json()["items"].as_array().unwrap().len(), 10);
    let foreign = format!("{key}Origin: http://evil.example\r\n");
    server.request("POST", "/v1/recommend", &foreign, b"{}").is_problem(403, "origin");
    let metrics = get("/metrics").body;
    for line in [
        "itemlm_requests_total{endpoint=\"/v1/recommend\",status=\"200\"} 1",
        "itemlm_items 20",
        "itemlm_batch_size_count 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let api = server.get("/openapi.json").json();
    assert!(api["paths"]["/v1/recommend"]["post"]["responses"]["429"].is_object());
    let page = server.get("/");
    assert!(page.status == 200 && page.header("content-security-policy").is_some_and(|p| p.contains("'none'")));
    for path in ["/page.css", "/page.js"] {
        assert_eq!(server.get(path).status, 200);
    }
    // Nothing of the page comes from elsewhere.
    let all = ["/", "/page.css", "/page.js"].map(|path| server.get(path).body).concat();
    assert!(!all.contains("http://") && !all.contains("https://") && !all.contains("innerHTML"));
    server.get("/nothing").is_problem(404, "openapi.json");
    server.get("/v1/recommend").is_problem(405, "method");
    let log = server.stop();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().any(|line| line["id"] == "mine-7" && line["status"] == 200 && line["path"] == "/v1/recommend")
    );
    assert!(!log.contains("0123456789abcdef"));
}

/// What runs and waits is answered, what is new is refused, and then it exits 0.
#[test]
fn sigterm_drains() {
    let lab = Lab::new();
    drop(session(&lab));
    let server = Server::ready(&lab, "run");
    let body = json!(vec![json!({ "history": [{ "item": "101" }], "k": 20 }); 30]).to_string();
    let head = format!("POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut streams: Vec<_> = (0..5).map(|_| server.connect()).collect();
    streams.iter_mut().for_each(|stream| stream.write_all((head.clone() + &body).as_bytes()).unwrap());
    let metric = |name: &str| {
        let text = server.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse::<f64>().unwrap()
    };
    while metric("itemlm_batch_size_sum ") + metric("itemlm_waiting ") < 150.0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    server.signal(libc::SIGTERM);
    for stream in &mut streams {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 200") && text.matches("\"model\"").count() == 30, "{text}");
    }
    let address = server.address.clone();
    let (status, log) = server.wait();
    assert!(status.success(), "{log}");
    assert!(std::net::TcpStream::connect(address).is_err());
}

/// A wrong run is refused before the server listens; one that cannot be opened ends it.
#[test]
fn what_cannot_be_served_is_refused() {
    let lab = Lab::new();
    drop(session(&lab));
    lab.write("keys", "short\n");
    lab.write("items.csv", "id,title\n1,x\n1,y\n");
    lab.assert_refused("serve nothing --port 0", 2, &["nothing", "not a run directory"]);
    lab.assert_refused("serve run --port 0 --api-key-file keys", 2, &["keys", "line 1"]);
    lab.assert_refused("serve run --port 0 --backend cuda:7,8", 2, &["cuda"]);
    lab.assert_refused("serve corpus --baseline nothing --port 0", 2, &["nothing", "popularity"]);
    lab.assert_refused("serve run --baseline text --port 0", 1, &["run", "corpus.toml"]);
    lab.assert_refused("serve run --port 0 --queue 0", 2, &["--queue"]);
    let (status, log) = Server::start(&lab, "run --items items.csv").wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.lines().last().unwrap().starts_with("error: items.csv: row 2"), "{log}");
}
