//! A server of the tests, and a client without a library.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::Lab;

/// Time in which anything must have happened.
const PATIENCE: Duration = Duration::from_secs(60);

/// `itemlm serve` on a free port.
pub struct Server {
    child: Option<Child>,
    _stdout: BufReader<ChildStdout>,
    /// Reads stderr, which would fill its pipe.
    stderr: Option<JoinHandle<String>>,
    /// `127.0.0.1:port`.
    pub address: String,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.body))
    }

    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<String> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_string()).next()
    }

    /// Checks a problem: its status, its type, and what it names.
    pub fn is_problem(&self, status: u16, named: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type").as_deref(), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["detail"].as_str().unwrap().contains(named), "{problem} does not name {named}");
        for defect in ["/tmp", ".rs:", "panicked"] {
            assert!(!self.body.contains(defect), "{self:?} shows {defect}");
        }
    }
}

impl Server {
    /// Starts it with the arguments of `line`, on a free port unless they name one, and waits until
    /// it listens.
    pub fn start(lab: &Lab, line: &str) -> Self {
        let port = if line.contains("--port") { "" } else { "--port 0 " };
        let mut command = lab.command(&format!("serve {port}{line}"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        let Ok(first) = serde_json::from_str::<Value>(&first) else {
            panic!("{first:?}: {}", String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr))
        };
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let address = first["listening"].as_str().unwrap().strip_prefix("http://").unwrap().to_string();
        Self { child: Some(child), _stdout: stdout, stderr: Some(stderr), address }
    }

    /// Starts it and waits until it is ready.
    pub fn ready(lab: &Lab, line: &str) -> Self {
        let server = Self::start(lab, line);
        let started = Instant::now();
        while server.get("/health/ready").status != 200 {
            assert!(started.elapsed() < PATIENCE, "not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes and reads until the server ends the connection.
    pub fn raw(&self, bytes: &[u8]) -> Response {
        let mut stream = self.connect();
        // A server that refuses a body before it has all come may close before all is sent.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        parse(&answer)
    }

    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path, "", body.to_string().as_bytes())
    }

    /// Returns a line of the process's status, in MiB: `VmRSS` for the memory that it uses now,
    /// `VmHWM` for the most that it has used.
    pub fn memory_mib(&self, name: &str) -> f64 {
        let path = format!("/proc/{}/status", self.child.as_ref().unwrap().id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let id = self.child.as_ref().unwrap().id();
        // SAFETY: sends a signal to a process that this one has started and not yet waited for.
        assert_eq!(unsafe { libc::kill(id as i32, signal) }, 0);
    }

    /// Waits for its end. Returns how it ended, and its log.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.take().unwrap().wait().unwrap();
        (status, self.stderr.take().unwrap().join().unwrap())
    }

    /// Ends it by SIGTERM; it must end well.
    pub fn stop(self) -> String {
        self.signal(libc::SIGTERM);
        let (status, log) = self.wait();
        assert!(status.success(), "{status}: {log}");
        log
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn parse(answer: &[u8]) -> Response {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Response { status, head: head.to_string(), body: body.to_string() }
}
