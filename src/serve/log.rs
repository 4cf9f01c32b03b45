//! The log on stderr, which never keeps a request waiting.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::LogFormat;

/// Lines that wait for stderr; further ones are lost while nobody reads it.
const LINES: usize = 4096;
/// Time that the last lines have at the end of the process.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// A line, or a wish to hear when all lines before it are written.
enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Writer of log lines.
#[derive(Clone)]
pub(super) struct Log(SyncSender<Message>);

impl Log {
    /// Logs to stderr from a thread of its own; `RUST_LOG` says what, `info` by default.
    pub fn start(format: LogFormat) -> Self {
        let (sender, lines) = sync_channel(LINES);
        // Without the thread nothing is logged, and the server works all the same.
        let _ = std::thread::Builder::new().name("itemlm-log".into()).spawn(move || write(&lines));
        let log = Self(sender);
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).with_target(false);
        // A process has one log; a second server in it goes on with the first one's.
        let _ = match format {
            LogFormat::Text => events.with_ansi(false).try_init(),
            LogFormat::Json => events.json().flatten_event(true).try_init(),
        };
        log
    }

    /// Waits until what was logged so far is written, not for long.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.0.try_send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIME);
        }
    }
}

fn write(lines: &Receiver<Message>) {
    for message in lines {
        match message {
            // A log that cannot be written is no reason to stop.
            Message::Line(line) => drop(io::stderr().write_all(&line)),
            Message::Flush(done) => drop(done.try_send(())),
        }
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.try_send(Message::Line(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
