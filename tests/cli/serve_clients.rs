//! `itemlm serve` with clients that send too much or too slowly, or read nothing, and after a kill.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::Lab;
use crate::server::Server;
use crate::session::session;

/// Bytes that are sent at a time.
const BLOCK: usize = 1 << 20;
/// A gigabyte, in blocks.
const BLOCKS: usize = 1 << 10;

/// The answer to a good request.
fn good(server: &Server) -> String {
    let started = Instant::now();
    let answer = server.post("/v1/recommend", &json!({ "history": [{ "item": "101" }], "k": 5 }));
    assert!(answer.status == 200 && started.elapsed() < Duration::from_secs(10), "{answer:?}");
    answer.body[answer.body.find("\"items\"").unwrap()..].to_string()
}

/// Sends `part` again and again while the server takes it. Returns the number of parts it took, and
/// what it answered.
fn pour(stream: &mut TcpStream, part: &[u8], most: usize) -> (usize, String) {
    let sent = (0..most).take_while(|_| stream.write_all(part).is_ok()).count();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    (sent, String::from_utf8_lossy(&answer).into_owned())
}

/// A body of a gigabyte is refused after its head, or after the first 4 MiB where the head does not
/// say how long it is; the rest is not read.
#[test]
fn a_gigabyte_is_not_read() {
    let lab = Lab::new();
    drop(session(&lab));
    let server = Server::ready(&lab, "run");
    let expected = good(&server);
    let before = server.memory_mib("VmHWM");
    let head = "POST /v1/recommend HTTP/1.1\r\nHost: x\r\n";
    let chunk = [format!("{BLOCK:x}\r\n").as_bytes(), &vec![b' '; BLOCK], b"\r\n"].concat();
    for (length, part) in [
        (format!("Content-Length: {}\r\n\r\n", BLOCK * BLOCKS), &vec![b' '; BLOCK]),
        ("Transfer-Encoding: chunked\r\n\r\n".to_string(), &chunk),
    ] {
        let mut stream = server.connect();
        stream.write_all(format!("{head}{length}").as_bytes()).unwrap();
        let (sent, answer) = pour(&mut stream, part, BLOCKS);
        // What the server read, and the buffers of the two sockets.
        assert!(sent < 32, "{sent} MiB were taken");
        // A client that is still sending may see the connection end before it has read the answer.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    let grown = server.memory_mib("VmHWM") - before;
    assert!(grown < 32.0, "{grown} MiB");
    assert_eq!(good(&server), expected);
    server.stop();
}

/// Clients that send a byte a second and those that read no answer keep nobody waiting, and are cut
/// off.
#[test]
fn clients_that_drip_or_do_not_read() {
    let lab = Lab::new();
    drop(session(&lab));
    let server = Server::ready(&lab, "run");
    let expected = good(&server);
    let mut heads: Vec<_> = (0..10).map(|_| server.connect()).collect();
    let mut bodies: Vec<_> = (0..10).map(|_| server.connect()).collect();
    let head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
    bodies.iter_mut().for_each(|stream| stream.write_all(head).unwrap());
    // Requests whose answers nobody reads: once the buffers are full, the server takes no more.
    let mut deaf = server.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let stopped = (0..10_000).find_map(|_| deaf.write_all(&request).err()).expect("the server takes no end");
    assert!([ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&stopped.kind()), "{stopped}");

    let started = Instant::now();
    let (mut heads_end, mut bodies_end) = (None, None);
    let drip =
        |streams: &mut [TcpStream], byte: &[u8]| streams.iter_mut().all(|stream| stream.write_all(byte).is_err());
    while heads_end.is_none() || bodies_end.is_none() {
        assert!(started.elapsed() < Duration::from_secs(60), "{heads_end:?} {bodies_end:?}");
        if drip(&mut heads, b"G") {
            heads_end.get_or_insert(started.elapsed());
        }
        if drip(&mut bodies, b" ") {
            bodies_end.get_or_insert(started.elapsed());
        }
        assert_eq!(good(&server), expected);
        std::thread::sleep(Duration::from_secs(1));
    }
    // The server's 15 s, and the seconds in which a write to a closed connection shows it.
    assert!(heads_end.max(bodies_end) < Some(Duration::from_secs(40)), "{heads_end:?} {bodies_end:?}");
    // 30 s without a byte read, and the connection is gone: what is left in the buffers, and no
    // more.
    std::thread::sleep(Duration::from_secs(45).saturating_sub(started.elapsed()));
    let mut left = Vec::new();
    let end = deaf.read_to_end(&mut left);
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert!(left.len() < 64 << 20);
    assert_eq!(good(&server), expected);
    server.stop();
}

/// A server that is killed amid requests can be started again on its port at once.
#[test]
fn killed_and_started_again() {
    let lab = Lab::new();
    drop(session(&lab));
    let mut server = Server::ready(&lab, "run");
    let expected = good(&server);
    let port = server.address.rsplit(':').next().unwrap().to_string();
    for _ in 0..3 {
        let body = json!(vec![json!({ "history": [{ "item": "101" }], "k": 20 }); 100]).to_string();
        let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
        for stream in &mut clients {
            let head = format!("POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).unwrap();
        }
        server.signal(libc::SIGKILL);
        assert!(!server.wait().0.success());
        for stream in &mut clients {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let text = String::from_utf8_lossy(&answer);
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 200"), "{text}");
        }
        server = Server::ready(&lab, &format!("run --port {port}"));
        assert_eq!(good(&server), expected);
    }
    server.stop();
}
