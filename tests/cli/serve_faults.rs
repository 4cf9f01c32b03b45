//! `itemlm serve` under bad, slow and too many requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::lab::{ITEMS, Lab};
use crate::server::{Response, Server};
use crate::session::session;

fn good() -> Value {
    json!({ "history": [{ "item": "101" }, { "title": "Red Pen 0" }], "k": 3 })
}

/// The server still gives the right answer.
fn is_well(server: &Server, expected: &str) {
    let answer = server.post("/v1/recommend", &good());
    assert!(answer.status == 200 && answer.body.ends_with(expected), "{answer:?} {expected}");
}

/// The items of the answer to [`good`].
fn expected(server: &Server) -> String {
    let body = server.post("/v1/recommend", &good()).body;
    body[body.find("\"items\"").unwrap()..].to_string()
}

#[test]
fn every_error_has_its_status() {
    let lab = Lab::new();
    drop(session(&lab));
    let server = Server::ready(&lab, "run");
    let expected = expected(&server);
    let post = |body: &[u8]| server.request("POST", "/v1/recommend", "", body);
    post(b"{\"history\": [").is_problem(400, "JSON");
    post(b"\xff\xfe").is_problem(400, "UTF-8");
    post(b"").is_problem(400, "JSON");
    for (body, named) in [
        (json!({ "history": [{ "item": "nothing" }] }), "no item nothing"),
        (json!({ "history": [] }), "history is empty"),
        (json!({ "history": [{ "item": "101" }], "user": "u1" }), "user"),
        (json!({ "history": [{ "item": "101" }], "only": ["7"] }), "no item 7"),
        (json!({ "history": [{ "item": "101" }], "exclude": ["7"] }), "no item 7"),
        (json!({ "history": [{ "item": "101" }], "k": 0 }), "k: 0"),
        (json!({ "history": [{ "item": "101" }], "k": 501 }), "k: 501"),
        (json!({ "history": [{ "item": "101" }], "beams": 3 }), "beams"),
        (json!({ "k": 3 }), "history"),
        (json!({ "history": vec![json!({ "item": "101" }); 1001] }), "1001, at most 1000"),
    ] {
        server.post("/v1/recommend", &body).is_problem(422, named);
    }
    let rank = |items: Value| server.post("/v1/rank", &json!({ "history": [{ "item": "101" }], "items": items }));
    rank(json!([])).is_problem(422, "no item to rank");
    rank(json!(["7"])).is_problem(422, "no item 7");
    rank(json!(vec!["101"; 501])).is_problem(422, "501, at most 500");
    server.post("/v1/batch", &json!({})).is_problem(422, "");
    server.post("/v1/reload", &json!({})).is_problem(422, "no file");
    let batch = server.post("/v1/batch", &json!([{ "history": 3 }, good(), { "history": [{ "item": "7" }] }])).json();
    let statuses: Vec<Option<u64>> = batch.as_array().unwrap().iter().map(|answer| answer["status"].as_u64()).collect();
    assert_eq!(statuses, [Some(422), None, Some(422)]);

    // Bodies that are too large: one that says so, and one that does not.
    let head = "POST /v1/recommend HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    server.raw(format!("{head}Content-Length: 1000000000\r\n\r\n{{").as_bytes()).is_problem(413, "bytes");
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 0x10_0000], b"\r\n"].concat();
    let chunked = [format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes(), &chunk.repeat(5)].concat();
    let answer = server.raw(&chunked);
    // A client that is still sending may see the connection end before it has read the answer.
    assert!([0, 413].contains(&answer.status), "{answer:?}");
    is_well(&server, &expected);
    server.stop();
}

#[test]
fn malformed_requests_do_no_harm() {
    let lab = Lab::new();
    drop(session(&lab));
    let server = Server::ready(&lab, "run");
    let expected = expected(&server);
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let pieces: [&[u8]; 14] = [
        b"{",
        b"}",
        b"[",
        b"\"history\"",
        b":",
        b"1e999",
        b"-1",
        b"null",
        b"\"\\ud800\"",
        b"\xff",
        b"\"k\"",
        b",",
        b"99999999999999999999",
        b"\0",
    ];
    let (mut seen, mut memory) = ([0; 600], 0.0);
    for n in 0..10_000 {
        if n == 2000 {
            memory = server.memory_mib("VmRSS");
        }
        let mut body = good().to_string().into_bytes();
        for _ in 0..rng.random_range(1..5) {
            let at = rng.random_range(0..=body.len());
            match rng.random_range(0..3) {
                0 => body.truncate(at),
                1 => drop(body.splice(at..at, pieces.choose(&mut rng).unwrap().iter().copied())),
                _ => drop(body.splice(at..(at + 3).min(body.len()), [rng.random::<u8>()])),
            }
        }
        let path = ["/v1/recommend", "/v1/rank", "/v1/batch"].choose(&mut rng).unwrap();
        let answer = match n % 10 {
            // No HTTP at all.
            0 => server.raw(&[b"{", &body[..], b"\r\n\r\n"].concat()),
            _ => server.request("POST", path, "", &body),
        };
        assert!([0, 200, 400, 422, 431].contains(&answer.status), "{answer:?}");
        seen[answer.status as usize] += 1;
    }
    assert!(seen[400] > 1000 && seen[422] > 500, "{} {}", seen[400], seen[422]);
    // A KiB left behind by each request would be 8 MiB; allocators keep some pages.
    let grown = server.memory_mib("VmRSS") - memory;
    assert!(grown < 8.0, "the last 8000 requests took {grown} MiB");
    is_well(&server, &expected);
    let log = server.stop();
    assert!(!log.contains("panicked") && !log.contains("internal error"), "{log}");
}

/// A log that nobody reads keeps no request waiting: far more than a pipe holds.
#[test]
fn a_log_that_nobody_reads() {
    let lab = Lab::new();
    drop(session(&lab));
    let mut command = lab.command("serve run --port 0 --log-format json");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("http://").nth(1).unwrap().split('"').next().unwrap().to_string();
    for _ in 0..2000 {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Many requests at once, of which the queue holds few.
#[test]
fn a_full_queue_refuses() {
    let lab = Lab::new();
    drop(session(&lab));
    let server = Server::ready(&lab, "run --queue 2");
    let expected = expected(&server);
    server.post("/v1/batch", &json!([good(), good(), good()])).is_problem(422, "3, at most 2");
    let body = json!([good(), good()]);
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..24).map(|_| scope.spawn(|| server.post("/v1/batch", &body))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let refused: Vec<&Response> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!refused.is_empty() && refused.len() < answers.len(), "{} refused", refused.len());
    for answer in refused {
        answer.is_problem(429, "wait");
        assert_eq!(answer.header("retry-after").as_deref(), Some("1"));
    }
    is_well(&server, &expected);
}

/// More work than fits into the deadline: what comes too late is given up, also by the device.
#[test]
fn a_deadline_is_kept() {
    let lab = Lab::new();
    drop(session(&lab));
    let server = Server::ready(&lab, "run --timeout 1 --queue 100000");
    let expected = expected(&server);
    let body = json!(vec![json!({ "history": vec![json!({ "item": "101" }); 30], "k": ITEMS }); 128]);
    let started = Instant::now();
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..48).map(|_| scope.spawn(|| server.post("/v1/batch", &body))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(started.elapsed() < Duration::from_secs(20));
    let late: Vec<&Response> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!late.is_empty(), "all in time");
    late.iter().for_each(|answer| answer.is_problem(504, "1 s"));
    // On a busy machine the batch that runs may take longer than the deadline.
    let started = Instant::now();
    while server.post("/v1/recommend", &good()).status == 504 {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    is_well(&server, &expected);
    let metrics = server.get("/metrics").body;
    let abandoned = metrics.lines().find_map(|line| line.strip_prefix("itemlm_abandoned_total ")).unwrap();
    assert!(abandoned.parse::<u64>().unwrap() > 0, "{metrics}");
}

/// Clients that send half a request, or go away, keep nobody else from an answer; the former are
/// cut off.
#[test]
fn slow_clients_and_those_that_go_away() {
    let lab = Lab::new();
    drop(session(&lab));
    let server = Server::ready(&lab, "run");
    let expected = expected(&server);
    let mut slow: Vec<_> = (0..40).map(|_| server.connect()).collect();
    let half = "POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n";
    for (n, stream) in slow.iter_mut().enumerate() {
        stream.write_all(if n % 2 == 0 { half.as_bytes() } else { b"" }).unwrap();
    }
    // These have sent all of the head and none of the body.
    let mut without_body: Vec<_> = (0..20).map(|_| server.connect()).collect();
    without_body.iter_mut().for_each(|stream| stream.write_all(format!("{half}\r\n").as_bytes()).unwrap());
    let body = json!(vec![good(); 100]).to_string();
    for _ in 0..10 {
        let mut stream = server.connect();
        let head = format!("POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).unwrap();
    }
    is_well(&server, &expected);
    let started = Instant::now();
    for stream in slow.iter_mut().chain(&mut without_body) {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");
    }
    assert!(started.elapsed() < Duration::from_secs(40));
    is_well(&server, &expected);
    server.stop();
}
