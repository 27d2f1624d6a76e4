//! One keep-alive connection, which sends a request and reads its response at the same time, and a client with one request at a time.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::request::{Options, Request};
use super::response::{ParseError, Reply, ResponseReader};
use super::target::Target;
use crate::frames::Frame;

/// Largest write. On loopback one call lasts for as long as the receiver keeps up, and no response is
/// read during that time.
const MAX_READ: usize = 256 << 10;

/// Why a request got no response.
#[derive(Debug)]
pub enum Failure {
    /// The connection could not be opened.
    Connect(io::Error),
    /// The connection ended or broke before a complete response was received.
    Reset(String),
    /// No complete response within the timeout.
    Timeout,
    /// The reply was not an HTTP response.
    Malformed(ParseError),
}

impl Failure {
    /// The kind, in one word, for counters.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Reset(_) => "reset",
            Self::Timeout => "timeout",
            Self::Malformed(_) => "malformed",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "connecting: {error}"),
            Self::Reset(what) => f.write_str(what),
            Self::Timeout => f.write_str("no response in the time allowed"),
            Self::Malformed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

impl From<ParseError> for Failure {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Truncated => Self::Reset(error.to_string()),
            _ => Self::Malformed(error),
        }
    }
}

/// A response, and how much of the request had not been sent.
#[derive(Debug)]
pub struct Answer {
    /// The response.
    pub reply: Reply,
    /// Bytes of the request that were not yet sent when the response was complete.
    pub unsent: usize,
}

/// A connection and the bytes read of the next response.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    reader: ResponseReader,
}

impl Connection {
    /// Connects, from `source` if it is given.
    ///
    /// # Errors
    /// `Failure::Connect`, also when it takes longer than `limit`.
    pub async fn open(address: SocketAddr, source: Option<IpAddr>, limit: Duration) -> Result<Self, Failure> {
        let connecting = timeout(limit, connect(address, source)).await;
        let stream = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        Ok(Self { stream: stream.map_err(Failure::Connect)?, reader: ResponseReader::default() })
    }

    /// Whether the server has closed the connection, or sent unsolicited bytes, since the last response.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        let mut byte = [0];
        !matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends `prefix` and `rest` and reads the response. A response that comes before everything is sent
    /// ends the exchange: `Answer::unsent` says how much was left.
    ///
    /// # Errors
    /// `Failure::Reset` or `Failure::Malformed`. The connection must not be used after an error.
    pub async fn exchange(&mut self, prefix: &[u8], rest: &[u8]) -> Result<Answer, Failure> {
        let total = prefix.len() + rest.len();
        let mut sent = 0;
        // A server that has answered may close its receiving side while it still sends: a failed write
        // is not a failure as long as a response can be read.
        let mut write_error = None;
        loop {
            if sent < total && write_error.is_none() {
                match send(&self.stream, prefix, rest, sent) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.ready(Interest::READABLE | Interest::WRITABLE).await?;
                    }
                    Err(error) => write_error = Some(error),
                }
                if sent < total {
                    // Lets the runtime poll the socket: a server that accepts everything that is sent must not
                    // prevent an available response from being read.
                    yield_now().await;
                }
            } else {
                self.ready(Interest::READABLE).await?;
            }
            let buffer = self.reader.buffer();
            buffer.reserve(4096);
            let reply = match self.stream.try_read_buf(buffer) {
                Ok(0) => Some(self.reader.end().map_err(|error| broken(error, write_error.as_ref()))?),
                Ok(_) => self.reader.next_reply()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) => return Err(Failure::Reset(error.to_string())),
            };
            if let Some(reply) = reply {
                return Ok(Answer { reply, unsent: total - sent });
            }
        }
    }

    async fn ready(&self, interest: Interest) -> Result<(), Failure> {
        self.stream.ready(interest).await.map(drop).map_err(|error| Failure::Reset(error.to_string()))
    }

    /// Sends the last `unsent` bytes of a request that was answered early, so that the connection can be
    /// reused; false if the server does not accept them.
    pub async fn finish(&mut self, rest: &[u8], unsent: usize, limit: Duration) -> bool {
        let Some(mut sent) = rest.len().checked_sub(unsent) else { return false };
        let sending = async {
            while sent < rest.len() {
                self.stream.writable().await?;
                match self.stream.try_write(&rest[sent..]) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            io::Result::Ok(())
        };
        matches!(timeout(limit, sending).await, Ok(Ok(())))
    }
}

async fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source {
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    socket.connect(address).await
}

fn send(stream: &TcpStream, prefix: &[u8], rest: &[u8], sent: usize) -> io::Result<usize> {
    let left = prefix.get(sent..).unwrap_or_default();
    let rest = &rest[sent.saturating_sub(prefix.len())..];
    let rest = &rest[..rest.len().min(MAX_READ)];
    if left.is_empty() {
        stream.try_write(rest)
    } else {
        stream.try_write_vectored(&[IoSlice::new(left), IoSlice::new(rest)])
    }
}

fn broken(error: ParseError, write_error: Option<&io::Error>) -> Failure {
    match write_error {
        Some(write_error) => Failure::Reset(format!("sending: {write_error}")),
        None => error.into(),
    }
}

/// A client with one connection, opened when it is needed.
#[derive(Debug)]
pub struct Client {
    target: Target,
    limit: Duration,
    runtime: Runtime,
    connection: Option<Connection>,
}

impl Client {
    /// A client of the target's server; every request may take `limit`.
    ///
    /// # Errors
    /// When the runtime cannot be created.
    pub fn new(target: Target, limit: Duration) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { target, limit, runtime, connection: None })
    }

    /// GETs a path.
    ///
    /// # Errors
    /// When there is no response.
    pub fn get(&mut self, path: &str) -> Result<Reply, Failure> {
        self.send(&Request::get(&self.target.with_path(path)))
    }

    /// Posts a file unchanged to the target.
    ///
    /// # Errors
    /// When there is no response.
    pub fn post(&mut self, frame: &Frame) -> anyhow::Result<Reply> {
        let request = Request::post(&self.target, frame, &Options::default())?;
        Ok(self.send(&request)?)
    }

    /// Sends a request and waits for its response.
    ///
    /// # Errors
    /// When there is none.
    pub fn send(&mut self, request: &Request) -> Result<Reply, Failure> {
        let mut prefix = Vec::new();
        request.fill(&mut prefix, 0, 0);
        let Self { target, limit, runtime, connection } = self;
        runtime.block_on(async {
            let mut open = match connection.take().filter(|open| !open.is_stale()) {
                Some(open) => open,
                None => Connection::open(target.address, None, *limit).await?,
            };
            let exchange = timeout(*limit, open.exchange(&prefix, request.rest())).await;
            let answer = exchange.unwrap_or(Err(Failure::Timeout))?;
            if answer.reply.keep_alive && answer.unsent == 0 {
                *connection = Some(open);
            }
            Ok(answer.reply)
        })
    }
}
