//! A connection's socket with timeouts: for the request's head, and for clients that read too slowly.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::connections::Connection;
use crate::pace::{Pace, Rate};

/// Maximum interval between writes to a full socket.
const MAX_TICK: Duration = Duration::from_secs(1);

/// How long a client may take between requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// From a head's first byte, or the connection's beginning, until the head is whole.
    pub(super) head: Duration,
    /// From an answer until the next head begins.
    pub(super) idle: Duration,
}

enum Clock {
    Head(Pin<Box<Sleep>>),
    Idle(Pin<Box<Sleep>>),
}

pub(super) struct Socket {
    stream: TcpStream,
    connection: Arc<Connection>,
    times: Times,
    /// Runs while no request is in flight.
    clock: Option<Clock>,
    pace: Pace,
    tick: Duration,
    retry: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, connection: Arc<Connection>, times: Times, rate: Rate) -> Self {
        Self {
            stream,
            connection,
            times,
            clock: Some(Clock::Head(Box::pin(sleep(times.head)))),
            pace: Pace::new(rate),
            tick: (rate.window / 4).min(MAX_TICK),
            retry: None,
        }
    }

    /// Checks the rate after a write of any number of bytes.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<usize>>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(Ok(count)) => self.took(count),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.wait_for_room(cx, buffer),
        }
    }

    fn took(&mut self, count: usize) -> Poll<io::Result<usize>> {
        self.retry = None;
        match self.pace.moved(count, Instant::now()) {
            Ok(()) => Poll::Ready(Ok(count)),
            Err(_) => Poll::Ready(Err(too_slow())),
        }
    }

    /// The kernel reports a socket writable again only when a large part of its buffer is free: megabytes, which takes a slow
    /// client minutes. The write is retried at intervals, so that the client's progress is seen.
    fn wait_for_room(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if self.pace.wait(Instant::now()).is_none() {
            return Poll::Pending;
        }
        loop {
            let tick = self.tick;
            let retry = self.retry.get_or_insert_with(|| Box::pin(sleep(tick)));
            ready!(retry.as_mut().poll(cx));
            self.retry = None;
            match rustix::io::write(&self.stream, buffer) {
                Ok(count) => return self.took(count),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            if self.pace.check(Instant::now()).is_err() {
                return Poll::Ready(Err(too_slow()));
            }
        }
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client reads more slowly than http.min_rate")
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if self.connection.is_busy() {
            self.clock = None;
            return outcome;
        }
        match outcome {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                if !matches!(self.clock, Some(Clock::Head(_))) {
                    self.clock = Some(Clock::Head(Box::pin(sleep(self.times.head))));
                }
            }
            Poll::Ready(_) => return outcome,
            Poll::Pending => {}
        }
        // Also while bytes arrive: a head that never ends would have no limit otherwise.
        let idle = self.times.idle;
        match self.clock.get_or_insert_with(|| Clock::Idle(Box::pin(sleep(idle)))) {
            Clock::Head(clock) => match clock.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the head did not arrive within http.header_timeout",
                ))),
                Poll::Pending => outcome,
            },
            Clock::Idle(clock) => match clock.as_mut().poll(cx) {
                // As if the client had closed.
                Poll::Ready(()) => Poll::Ready(Ok(())),
                Poll::Pending => outcome,
            },
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.written(cx, outcome, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        let first = buffers.iter().find(|buffer| !buffer.is_empty()).map_or(&[][..], |buffer| buffer);
        self.written(cx, outcome, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(outcome, Poll::Ready(Ok(()))) {
            self.connection.flushed();
        }
        outcome
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
