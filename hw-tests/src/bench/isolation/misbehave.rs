//! Clients that a server must bear: each with bounded connections, bounded requests per second, and an end.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::bodies;
use crate::frames::{Frame, TAG_LEN, tag_segment};
use crate::load::Target;

/// Where a misbehaving client comes from: another address than the well-behaved one's.
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
/// What a client of another kind than a flood sends per second at most, all its connections together.
const MAX_RATE: u64 = 200;
/// Longest wait for an answer, and longest life of a connection that is kept open.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between the bytes of a slow upload.
const TRICKLE: Duration = Duration::from_millis(500);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misbehaviour {
    /// Images whose headers are small and whose pixels would not be.
    Bombs,
    /// Bodies of 16 MiB that arrive at two bytes per second.
    SlowUploads,
    /// Requests whose responses are never read.
    StoppedReaders,
    /// Connections that are opened and left idle.
    IdleConnections,
    /// Unique frames from many connections, each as soon as the one before is answered.
    Flood,
    /// Refused requests as fast as the bound lets it.
    RefusedRequests,
    /// Images at addresses that never finish to answer.
    Tarpits,
    /// Batches of such addresses.
    TarpitBatches,
}

impl Misbehaviour {
    pub(super) const ALL: [Self; 8] = [
        Self::Bombs,
        Self::SlowUploads,
        Self::StoppedReaders,
        Self::IdleConnections,
        Self::Flood,
        Self::RefusedRequests,
        Self::Tarpits,
        Self::TarpitBatches,
    ];

    /// Connections at the same time.
    fn connections(self) -> u64 {
        match self {
            Self::Bombs | Self::RefusedRequests => 8,
            Self::TarpitBatches => 2,
            Self::Flood => 32,
            Self::SlowUploads | Self::StoppedReaders | Self::Tarpits => 64,
            Self::IdleConnections => 2000,
        }
    }
}

impl fmt::Display for Misbehaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bombs => "decompression bombs",
            Self::SlowUploads => "slow uploads",
            Self::StoppedReaders => "stopped readers",
            Self::IdleConnections => "idle connections",
            Self::Flood => "flood of frames",
            Self::RefusedRequests => "refused requests",
            Self::Tarpits => "tarpit URLs",
            Self::TarpitBatches => "batches of tarpit URLs",
        })
    }
}

/// What a misbehaving client did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Connections opened, or refused.
    pub(super) attempts: u64,
    /// Of these, ended by the server or by an error.
    pub(super) ended: u64,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attempts, {} ended by the server", self.attempts, self.ended)
    }
}

/// A misbehaving client that runs until it is stopped.
pub(super) struct Running {
    shared: Arc<Shared>,
    thread: JoinHandle<anyhow::Result<()>>,
}

struct Shared {
    kind: Misbehaviour,
    target: Target,
    request: Vec<u8>,
    stop: AtomicBool,
    attempts: AtomicU64,
    ended: AtomicU64,
}

/// Starts a client of this kind.
pub(super) fn start(
    kind: Misbehaviour,
    target: Target,
    tarpit: &Tarpit,
    frame: &Frame,
) -> anyhow::Result<Running> {
    let request = request(kind, &target, tarpit, frame);
    let shared = Arc::new(Shared {
        kind,
        target,
        request,
        stop: AtomicBool::new(false),
        attempts: AtomicU64::new(0),
        ended: AtomicU64::new(0),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Arc::clone(&shared);
    let thread = std::thread::Builder::new().name("misbehaving".to_owned()).spawn(move || {
        runtime.block_on(async {
            for _ in 0..client.kind.connections() {
                tokio::spawn(connect_again(Arc::clone(&client)));
            }
            while !client.stop.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(20)).await;
            }
        });
        // Drops every task, and with it every connection.
        drop(runtime);
        Ok(())
    })?;
    Ok(Running { shared, thread })
}

impl Running {
    pub(super) fn stop(self) -> anyhow::Result<Sent> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the misbehaving client panicked"))??;
        Ok(Sent {
            attempts: self.shared.attempts.load(Ordering::Relaxed),
            ended: self.shared.ended.load(Ordering::Relaxed),
        })
    }
}

/// Whole requests; of a slow upload only what is sent at once.
fn request(kind: Misbehaviour, target: &Target, tarpit: &Tarpit, frame: &Frame) -> Vec<u8> {
    let host = &target.host;
    let post = |path: &str, kind: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let whole =
        |path: &str, kind: &str, body: &[u8]| [post(path, kind, body.len()).as_bytes(), body].concat();
    match kind {
        Misbehaviour::Bombs => whole("/predict", "image/tiff", &bodies::strip_bomb()),
        Misbehaviour::SlowUploads => post("/predict", "image/jpeg", 16 << 20).into_bytes(),
        Misbehaviour::StoppedReaders => {
            format!("GET /openapi.json HTTP/1.1\r\nHost: {host}\r\n\r\n").repeat(1000).into_bytes()
        }
        Misbehaviour::IdleConnections => Vec::new(),
        // Each sends another tag in front of the rest of the frame.
        Misbehaviour::Flood => frame.bytes[2..].to_vec(),
        Misbehaviour::RefusedRequests => whole("/predict?top_k=none", "image/jpeg", b"no image"),
        Misbehaviour::Tarpits => {
            let body = format!("{{\"image_url\": \"http://{}/1.jpg\"}}", tarpit.address);
            whole("/predict", "application/json", body.as_bytes())
        }
        Misbehaviour::TarpitBatches => {
            let urls: Vec<String> =
                (0..1000).map(|n| format!("\"http://{}/{n}.jpg\"", tarpit.address)).collect();
            let body = format!("{{\"image_urls\": [{}]}}", urls.join(","));
            whole("/batch/predict", "application/json", body.as_bytes())
        }
    }
}

/// One connection after another. All connections together keep to [`MAX_RATE`].
async fn connect_again(shared: Arc<Shared>) {
    let pause = match shared.kind {
        Misbehaviour::Flood => Duration::ZERO,
        kind => Duration::from_millis((1000 * kind.connections() / MAX_RATE).max(5)),
    };
    let mut restarts = bodies::restart_markers(if shared.kind == Misbehaviour::Bombs { 4 << 20 } else { 0 });
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: {}\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n",
        shared.target.host,
        restarts.len()
    );
    restarts.splice(0..0, head.into_bytes());
    let mut number = 0u64;
    loop {
        let attempt = shared.attempts.fetch_add(1, Ordering::Relaxed);
        number += 1;
        // Of the bombs every eighth is the large one: each is another kind of work.
        let tagged;
        let body = match shared.kind {
            Misbehaviour::Bombs if number.is_multiple_of(8) => &restarts,
            Misbehaviour::Flood => {
                tagged = unique_post(&shared, attempt);
                &tagged
            }
            _ => &shared.request,
        };
        let _ = timeout(TIMEOUT, one(&shared, body)).await;
        shared.ended.fetch_add(1, Ordering::Relaxed);
        sleep(pause).await;
    }
}

/// A post of the frame that no cache can answer.
fn unique_post(shared: &Shared, number: u64) -> Vec<u8> {
    let length = 2 + TAG_LEN + shared.request.len();
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: {}\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n",
        shared.target.host,
    );
    // The well-behaved client's tags have its own run.
    let tag = tag_segment(u64::MAX, number);
    [head.as_bytes(), &[0xFF, 0xD8], &tag, &shared.request].concat()
}

async fn one(shared: &Shared, request: &[u8]) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((SOURCE, 0)))?;
    let mut stream = socket.connect(shared.target.address).await?;
    let mut buffer = [0; 4096];
    match shared.kind {
        Misbehaviour::SlowUploads => {
            stream.write_all(request).await?;
            loop {
                stream.write_all(&[0xFF]).await?;
                // An answer, or the end of the connection, ends this upload.
                if let Ok(read) = timeout(TRICKLE, stream.read(&mut buffer)).await {
                    return read.map(drop);
                }
            }
        }
        Misbehaviour::StoppedReaders => {
            stream.write_all(request).await?;
            // Nothing is read. Only a write tells that the server has closed the connection.
            loop {
                sleep(Duration::from_secs(1)).await;
                stream.write_all(b"\r\n").await?;
            }
        }
        Misbehaviour::IdleConnections => stream.read(&mut buffer).await.map(drop),
        _ => {
            let (mut read, mut write) = stream.split();
            let sending = async {
                write.write_all(request).await?;
                std::future::pending::<std::io::Result<()>>().await
            };
            tokio::select! {
                sent = sending => sent,
                answer = read.read(&mut buffer) => answer.map(drop),
            }
        }
    }
}

/// A server that begins an answer and does not end it.
pub(super) struct Tarpit {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tarpit {
    pub(super) fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("tarpit".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(trickle(stream));
                    }
                });
                while !stopped.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(20)).await;
                }
            });
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

async fn trickle(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await?;
    loop {
        stream.write_all(b"x").await?;
        sleep(TRICKLE).await;
    }
}

impl Drop for Tarpit {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
