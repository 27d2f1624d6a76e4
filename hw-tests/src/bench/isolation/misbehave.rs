//! Misbehaving clients, each with bounded connections, requests per second and duration.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::load::{Spec, Target};

/// Source address of a misbehaving client, which differs from that of the well-behaved one.
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
/// Largest number of requests per second of all connections of a client, except for floods.
const MAX_RATE: u64 = 200;
/// Requests per second of a flood: several times the capacity of two cores.
const FLOOD_RATE: f64 = 2000.0;
/// Longest flood; it is stopped earlier.
const FLOOD_TIME: Duration = Duration::from_secs(600);
/// Longest wait for a response, and longest lifetime of a connection that is kept open.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between the bytes of a slow upload.
const TRICKLE: Duration = Duration::from_millis(500);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misbehaviour {
    /// Small images that would decode to many pixels.
    Bombs,
    /// Bodies of 16 MiB that arrive at two bytes per second.
    SlowUploads,
    /// Requests whose responses are never read.
    StoppedReaders,
    /// Connections that are opened and left idle.
    IdleConnections,
    /// Unique frames from many connections in an open loop, several times the server's capacity.
    Flood,
    /// Refused requests at the rate limit.
    RefusedRequests,
    /// Images on a server that never completes a response.
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

/// Counters of a misbehaving client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Connections opened or refused; of a flood, requests.
    pub(super) attempts: u64,
    /// Of these, ended by the server or by an error; of a flood, refused or failed.
    pub(super) ended: u64,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attempts, {} ended or refused by the server", self.attempts, self.ended)
    }
}

/// A misbehaving client that runs until it is stopped.
pub(super) struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Sent>>,
}

struct Shared {
    kind: Misbehaviour,
    target: Target,
    request: Vec<u8>,
    attempts: AtomicU64,
    ended: AtomicU64,
}

/// Starts a client of this kind. `load` posts unique frames to the server.
pub(super) fn start(kind: Misbehaviour, load: Spec, tarpit: &Tarpit) -> anyhow::Result<Running> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::Builder::new().name("misbehaving".to_owned());
    let thread = if kind == Misbehaviour::Flood {
        thread.spawn(move || flood(Spec { stop: stopped, ..load }))?
    } else {
        let request = request(kind, &load.target, tarpit);
        let (attempts, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Shared { kind, target: load.target, request, attempts, ended };
        thread.spawn(move || many(shared, &stopped))?
    };
    Ok(Running { stop, thread })
}

impl Running {
    pub(super) fn stop(self) -> anyhow::Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the misbehaving client panicked"))?
    }
}

fn flood(load: Spec) -> anyhow::Result<Sent> {
    let report = Spec {
        source: Some(SOURCE),
        concurrency: Misbehaviour::Flood.connections() as usize,
        rate: Some(FLOOD_RATE),
        warmup: Duration::ZERO,
        duration: FLOOD_TIME,
        watch: None,
        ..load
    }
    .run()?;
    Ok(Sent { attempts: report.requests, ended: report.requests - report.successes })
}

/// Connections that repeat the same action.
fn many(shared: Shared, stop: &AtomicBool) -> anyhow::Result<Sent> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shared = Arc::new(shared);
    runtime.block_on(async {
        for _ in 0..shared.kind.connections() {
            tokio::spawn(connect_again(Arc::clone(&shared)));
        }
        while !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20)).await;
        }
    });
    // Drops every task, and with it every connection.
    drop(runtime);
    Ok(Sent {
        attempts: shared.attempts.load(Ordering::Relaxed),
        ended: shared.ended.load(Ordering::Relaxed),
    })
}

/// Complete requests; for a slow upload only the part that is sent immediately.
fn request(kind: Misbehaviour, target: &Target, tarpit: &Tarpit) -> Vec<u8> {
    let host = &target.host;
    let post = |path: &str, kind: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let whole =
        |path: &str, kind: &str, body: &[u8]| [post(path, kind, body.len()).as_bytes(), body].concat();
    match kind {
        Misbehaviour::Bombs => whole("/predict", "image/tiff", &strip_bomb()),
        Misbehaviour::SlowUploads => post("/predict", "image/jpeg", 16 << 20).into_bytes(),
        Misbehaviour::StoppedReaders => {
            format!("GET /openapi.json HTTP/1.1\r\nHost: {host}\r\n\r\n").repeat(1000).into_bytes()
        }
        // A flood is made by the load generator.
        Misbehaviour::IdleConnections | Misbehaviour::Flood => Vec::new(),
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

/// Opens one connection after another. All connections together are limited to [`MAX_RATE`].
async fn connect_again(shared: Arc<Shared>) {
    let pause = Duration::from_millis((1000 * shared.kind.connections() / MAX_RATE).max(5));
    let mut restarts = restart_markers(if shared.kind == Misbehaviour::Bombs { 4 << 20 } else { 0 });
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: {}\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n",
        shared.target.host,
        restarts.len()
    );
    restarts.splice(0..0, head.into_bytes());
    let mut number = 0u64;
    loop {
        shared.attempts.fetch_add(1, Ordering::Relaxed);
        number += 1;
        // Every eighth bomb is the large one, which causes another kind of work.
        let is_large = shared.kind == Misbehaviour::Bombs && number.is_multiple_of(8);
        let body = if is_large { &restarts } else { &shared.request };
        let _ = timeout(TIMEOUT, one(&shared, body)).await;
        shared.ended.fetch_add(1, Ordering::Relaxed);
        sleep(pause).await;
    }
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
                // A response or the end of the connection ends this upload.
                if let Ok(read) = timeout(TRICKLE, stream.read(&mut buffer)).await {
                    return read.map(drop);
                }
            }
        }
        Misbehaviour::StoppedReaders => {
            stream.write_all(request).await?;
            // Nothing is read. Only a write shows that the server has closed the connection.
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

/// A server that begins a response and does not complete it.
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

/// A TIFF of 8 x 1 pixels whose JPEG-compressed strip declares 16384 x 16384.
fn strip_bomb() -> Vec<u8> {
    tiff(8, 1, &jpeg_header(16_384, 16_384))
}

/// A JPEG of 640 x 480 pixels with only restart markers after its header, of this many bytes in total.
fn restart_markers(bytes: usize) -> Vec<u8> {
    let mut jpeg = jpeg_header(640, 480);
    while jpeg.len() < bytes {
        let marker = 0xD0 + (jpeg.len() / 2 % 8) as u8;
        jpeg.extend([0xFF, marker]);
    }
    jpeg
}

/// A baseline JPEG up to its first entropy-coded byte, with a restart interval of one unit.
fn jpeg_header(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = vec![0xFF, 0xD8];
    let mut segment = |code: u8, body: &[u8]| {
        jpeg.extend([0xFF, code]);
        jpeg.extend((body.len() as u16 + 2).to_be_bytes());
        jpeg.extend_from_slice(body);
    };
    segment(0xDB, &[&[0u8][..], &[16; 64]].concat());
    let ([h1, h0], [w1, w0]) = (height.to_be_bytes(), width.to_be_bytes());
    segment(0xC0, &[8, h1, h0, w1, w0, 1, 1, 0x11, 0]);
    // One code of one bit, for the value 0: the smallest valid table.
    let table = |class: u8| [&[class, 1][..], &[0; 15], &[0]].concat();
    segment(0xC4, &table(0x00));
    segment(0xC4, &table(0x10));
    segment(0xDD, &[0, 1]);
    segment(0xDA, &[1, 1, 0, 0, 63, 0]);
    jpeg
}

/// A grey TIFF with one strip, compressed as JPEG (7).
fn tiff(width: u32, height: u32, strip: &[u8]) -> Vec<u8> {
    let entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 7),
        (262, 1),
        (273, 0),
        (277, 1),
        (278, height),
        (279, strip.len() as u32),
    ];
    let data = 8 + 2 + 12 * entries.len() as u32 + 4;
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    tiff.extend((entries.len() as u16).to_le_bytes());
    for (tag, value) in entries {
        tiff.extend((tag as u16).to_le_bytes());
        tiff.extend(4u16.to_le_bytes());
        tiff.extend(1u32.to_le_bytes());
        tiff.extend(if tag == 273 { data } else { value }.to_le_bytes());
    }
    tiff.extend([0; 4]);
    tiff.extend_from_slice(strip);
    tiff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_as_intended() {
        let limits = gpu_kernels::DecodeLimits::default();
        let header = gpu_kernels::inspect(&restart_markers(4096), &limits).unwrap();
        assert_eq!((header.width, header.height), (640, 480));
        let bomb = strip_bomb();
        assert!(bomb.len() < 500, "{}", bomb.len());
        assert!(bomb.starts_with(b"II*\0"));
    }
}
