//! A small HTTP server for tests with one thread per connection; each test defines the exchange.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unreachable_pub, reason = "a test's module has no outside")]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A server that runs until the test ends.
pub struct Server {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
}

/// One request and its answer.
pub struct Exchange {
    stream: TcpStream,
    received: Vec<u8>,
    length: usize,
}

impl Server {
    /// Handles every exchange of every connection; an error ends that connection.
    pub fn start(handler: impl Fn(&mut Exchange) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, handler) = (connections.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
                let (stream, handler) = (stream.unwrap(), handler.clone());
                stream.set_nodelay(true).unwrap();
                std::thread::spawn(move || {
                    let mut exchange = Exchange { stream, received: Vec::new(), length: 0 };
                    while handler(&mut exchange).is_ok() {}
                });
            }
        });
        Self { port, connections }
    }
}

/// A port without a listener.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Exchange {
    fn receive(&mut self) -> io::Result<()> {
        let mut part = [0; 64 << 10];
        let count = self.stream.read(&mut part)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(&part[..count]);
        Ok(())
    }

    /// Reads the head.
    pub fn read_head(&mut self) -> io::Result<String> {
        let end = loop {
            if let Some(at) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.receive()?;
        };
        let head = String::from_utf8(self.received.drain(..end).collect()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        self.length = length.map_or(0, |length| length.parse().unwrap());
        Ok(head)
    }

    /// Reads the body that the head declared.
    pub fn read_body(&mut self) -> io::Result<Vec<u8>> {
        while self.received.len() < self.length {
            self.receive()?;
        }
        Ok(self.received.drain(..self.length).collect())
    }

    /// Reads until the client disconnects.
    pub fn read_to_end(&mut self) -> io::Result<()> {
        loop {
            self.receive()?;
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Shuts down the sending side and discards received bytes, so that the reply is not lost to a
    /// reset; then closes the connection.
    pub fn drain_and_close(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut part = [0; 64 << 10];
        while self.stream.read(&mut part)? > 0 {}
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}
