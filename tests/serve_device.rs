//! A server whose device fails. It runs in this process, and so in a test of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use itemlm::data::Item;
use itemlm::run::{RankRequest, RecommendRequest, Recommendations};
use itemlm::serve::{Engine, LogFormat, ModelInfo, ServeOptions, serve};
use itemlm::{Error, ErrorKind, Result};

/// A request for so many items panics.
const PANIC: usize = 13;
/// A request for so many items finds the device dead.
const DEATH: usize = 14;
const PATIENCE: Duration = Duration::from_secs(30);

struct Fragile {
    about: ModelInfo,
    /// Whether requests of a batch are answered side by side: by more than one.
    threads: usize,
    is_dead: AtomicBool,
}

impl Engine for Fragile {
    fn about(&self) -> &ModelInfo {
        &self.about
    }

    fn items(&self) -> &[Item] {
        &[]
    }

    fn cost(&self, _: &RecommendRequest) -> usize {
        1
    }

    fn example_request(&self, k: usize) -> RecommendRequest {
        RecommendRequest { k, ..RecommendRequest::default() }
    }

    fn recommend(&self, request: &RecommendRequest) -> Result<Recommendations> {
        std::thread::sleep(Duration::from_millis(100));
        match request.k {
            PANIC => panic!("a kernel broke"),
            DEATH => {
                self.is_dead.store(true, Relaxed);
                Err(Error::device("out of memory at address 7"))
            }
            _ => Ok(Recommendations::default()),
        }
    }

    fn rank(&self, _: &RankRequest) -> Result<Recommendations> {
        Ok(Recommendations::default())
    }

    fn for_each(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        if self.threads == 1 {
            return (0..count).for_each(work);
        }
        std::thread::scope(|scope| (0..count).for_each(|n| drop(scope.spawn(move || work(n)))));
    }

    fn with_items(&self, _: Vec<Item>) -> Result<Arc<dyn Engine>> {
        Err(Error::usage("one catalogue"))
    }

    fn check(&self) -> Result<()> {
        if self.is_dead.load(Relaxed) { Err(Error::device("the device died")) } else { Ok(()) }
    }
}

/// The status and the text of an answer; 0 for none.
fn ask(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return (0, String::new()) };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let _ = stream.write_all((head + body).as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    (answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), answer)
}

/// Requests that run and those that wait get a problem and no hang, no new one is taken, and the
/// server ends with an error.
fn fails(k: usize, threads: usize, named: &str) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let options = ServeOptions {
        host: Ipv4Addr::LOCALHOST.into(),
        port,
        items: None,
        api_key_file: None,
        queue: 64,
        timeout: PATIENCE,
        log_format: LogFormat::Text,
    };
    let about = ModelInfo {
        id: "fragile".into(),
        kind: "run".into(),
        items: 0,
        corpus: "none".into(),
        step: None,
        scoring: None,
        beams: None,
        prior: None,
        exclude_history: false,
    };
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let engine = Fragile { about, threads, is_dead: AtomicBool::new(false) };
        let _ = ended.send(serve(&options, move || Ok(Arc::new(engine) as Arc<dyn Engine>)));
    });
    let started = Instant::now();
    while ask(port, "GET", "/health/ready", "").0 != 200 {
        assert!(started.elapsed() < PATIENCE, "not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    let recommend = |k: usize| ask(port, "POST", "/v1/recommend", &format!("{{\"history\": [], \"k\": {k}}}"));
    assert_eq!(recommend(3).0, 200);
    let started = Instant::now();
    // Those before the failure, that one, and those that run beside it or wait behind it.
    let answers: Vec<(u16, String)> = std::thread::scope(|scope| {
        let clients: Vec<_> = [3, 3, k, 3, 3, 3, 3, 3]
            .map(|k| {
                let client = scope.spawn(move || recommend(k));
                std::thread::sleep(Duration::from_millis(20));
                client
            })
            .into_iter()
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert!(started.elapsed() < PATIENCE / 3, "{:?}", started.elapsed());
    assert_eq!(answers[2].0, 503, "{answers:?}");
    for (status, answer) in &answers {
        assert!([200, 503].contains(status), "{answer}");
        assert!(*status == 200 || answer.contains("application/problem+json"), "{answer}");
        assert!(!answer.contains("kernel") && !answer.contains("address 7"), "{answer}");
    }
    let error = end.recv_timeout(PATIENCE).expect("the server ends").unwrap_err();
    assert!(error.kind() == ErrorKind::Device && error.to_string().contains(named), "{error}");
    assert_eq!(ask(port, "GET", "/health/live", "").0, 0);
}

#[test]
fn a_device_that_fails_ends_the_server() {
    for threads in [1, 2] {
        fails(PANIC, threads, "panicked");
        fails(DEATH, threads, "died");
    }
}
