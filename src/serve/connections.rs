//! Connections: how many there may be, and how long a client may take to send a request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Connections at the same time; further ones wait in the system's queue.
const CONNECTIONS: usize = 1024;
/// Time from the opening of a connection, or from the last answer on it, until the head of the next
/// request has come.
pub const HEAD_TIME: Duration = Duration::from_secs(15);
/// Time in which a client must take a part of its answer.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// A listener with a limited number of connections.
pub struct LimitedListener {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl LimitedListener {
    /// Limits the connections of `listener`.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, free: Arc::new(Semaphore::new(CONNECTIONS)) }
    }
}

impl Listener for LimitedListener {
    type Io = TimedStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (TimedStream, Peer) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = self.free.clone().acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let _ = stream.set_nodelay(true);
                    let peer = Peer { address, reads_head: Arc::new(AtomicBool::new(true)) };
                    return (TimedStream::new(stream, peer.reads_head.clone(), place), peer);
                }
                // As of a connection that ended meanwhile, or too many open files.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { address: self.listener.local_addr()?, reads_head: Arc::default() })
    }
}

/// The client of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address.
    pub address: SocketAddr,
    /// Whether the connection waits for the head of a request.
    reads_head: Arc<AtomicBool>,
}

impl Peer {
    /// Notes that the head of a request has come: from now on the request's own deadline counts.
    pub fn head_has_come(&self) {
        self.reads_head.store(false, Relaxed);
    }
}

impl Connected<IncomingStream<'_, LimitedListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, LimitedListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A connection that ends if the client is too slow.
pub struct TimedStream {
    stream: TcpStream,
    reads_head: Arc<AtomicBool>,
    head_deadline: Pin<Box<Sleep>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl TimedStream {
    fn new(stream: TcpStream, reads_head: Arc<AtomicBool>, place: OwnedSemaphorePermit) -> Self {
        let head_deadline = Box::pin(sleep(HEAD_TIME));
        Self { stream, reads_head, head_deadline, write_deadline: None, _permit: place }
    }

    /// Notes what came of a write: an answer has begun, after which the next head may come.
    fn after_write<T>(&mut self, context: &mut Context, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            self.reads_head.store(true, Relaxed);
            self.head_deadline.as_mut().reset(Instant::now() + HEAD_TIME);
            return written;
        }
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + WRITE_TIME)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(too_slow())),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client is too slow")
}

impl AsyncRead for TimedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        if self.reads_head.load(Relaxed) && self.head_deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(too_slow()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.after_write(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        bytes: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.after_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
