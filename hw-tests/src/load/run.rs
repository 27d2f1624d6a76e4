//! Runs load: clients on one thread, in a closed loop or at a fixed rate, for a bounded time.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, ensure};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::{sleep, sleep_until, timeout};

use super::connection::{Answer, Connection, Failure};
use super::pace::Schedule;
use super::report::{Report, Run, Usage};
use super::request::Request;
use super::response::Reply;
use super::tally::Tally;
use super::target::Target;
use crate::process;

/// A client waits this long after a failure, and in a closed loop after a refusal (429, 503): without it the
/// loop would flood a server that is overloaded.
const BACK_OFF: Duration = Duration::from_millis(10);
/// How long the rest of a request is sent to a server that has already answered it. Longer than any server should read
/// on: one that stops closes the connection, which ends the wait.
const FINISH: Duration = Duration::from_secs(10);

/// Called with every response, on the load's thread.
pub type OnReply = Arc<dyn Fn(&Reply) + Send + Sync>;

/// The load to generate.
#[derive(Clone)]
pub struct Spec {
    /// The server.
    pub target: Target,
    /// The address to connect from; the system's choice if there is none.
    pub source: Option<IpAddr>,
    /// The requests, sent in turn.
    pub requests: Arc<[Request]>,
    /// How many clients, each with one connection and one request at a time.
    pub concurrency: usize,
    /// Requests per second in an open loop; none is a closed loop.
    pub rate: Option<f64>,
    /// Duration of the warm-up, which is not counted.
    pub warmup: Duration,
    /// Duration of the measurement after that.
    pub duration: Duration,
    /// At most this many requests, warm-up included.
    pub max_requests: Option<u64>,
    /// How long a client waits for a response.
    pub timeout: Duration,
    /// The server's process and whether its children count as well, to report what it uses.
    pub watch: Option<Watch>,
    /// Ends the run early when set.
    pub stop: Arc<AtomicBool>,
    /// Called with every response.
    pub on_reply: Option<OnReply>,
}

/// A process whose CPU time and memory are reported.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// The process.
    pub pid: u32,
    /// Whether its child processes count too.
    pub children: bool,
}

impl Watch {
    fn cpu_time(self) -> anyhow::Result<Duration> {
        if self.children { process::tree_cpu_time(self.pid) } else { process::cpu_time(self.pid) }
    }
}

impl Spec {
    /// A closed loop of eight clients, one second of warm-up and ten that count.
    #[must_use]
    pub fn new(target: Target, requests: Arc<[Request]>) -> Self {
        Self {
            target,
            source: None,
            requests,
            concurrency: 8,
            rate: None,
            warmup: Duration::from_secs(1),
            duration: Duration::from_secs(10),
            max_requests: None,
            timeout: Duration::from_secs(30),
            watch: None,
            stop: Arc::default(),
            on_reply: None,
        }
    }

    /// Runs the load and waits until the last request is answered or has failed.
    ///
    /// # Errors
    /// When there is nothing to send, or the watched process does not exist at the start.
    pub fn run(self) -> anyhow::Result<Report> {
        ensure!(!self.requests.is_empty(), "there is nothing to send");
        ensure!(self.concurrency > 0, "load needs at least one client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, drive(self))
    }
}

struct Shared {
    spec: Spec,
    end: Instant,
    /// Distinguishes this run's unique bodies from those of other runs.
    nonce: u64,
    taken: Cell<u64>,
    /// Open loop: when requests are due, and one permit for each that is.
    schedule: Option<Schedule>,
    released: Arc<Semaphore>,
    tally: RefCell<Tally>,
}

async fn drive(spec: Spec) -> anyhow::Result<Report> {
    let start = Instant::now();
    let counted = start + spec.warmup..start + spec.warmup + spec.duration;
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let shared = Rc::new(Shared {
        end: counted.end,
        nonce: since_epoch.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_right(16),
        taken: Cell::new(0),
        schedule: spec.rate.map(|rate| Schedule {
            start,
            end: counted.end,
            rate,
            most: spec.max_requests.unwrap_or(u64::MAX),
        }),
        released: Arc::new(Semaphore::new(0)),
        tally: RefCell::new(Tally::new(counted.clone())?),
        spec,
    });
    let pacer = shared.schedule.clone().map(|schedule| {
        let (clients, stop) = (shared.spec.concurrency, shared.spec.stop.clone());
        schedule.release(shared.released.clone(), clients, stop)
    });
    let watching = tokio::task::spawn_local(watch(shared.clone(), counted.start));
    let clients: Vec<_> = (0..shared.spec.concurrency)
        .map(|index| tokio::task::spawn_local(client(shared.clone(), index)))
        .collect();
    for client in clients {
        client.await.context("a client ended badly")?;
    }
    // The clients end when the schedule has ended, so that this does not block.
    let due =
        pacer.map_or(Ok(0), JoinHandle::join).map_err(|_| anyhow!("the open loop's clock ended badly"))?;
    let ended = Instant::now().min(shared.end);
    if ended < shared.end {
        watching.abort();
    }
    let usage = match watching.await {
        Ok(usage) => usage?,
        Err(_) => None,
    };
    let seconds = ended.saturating_duration_since(counted.start).as_secs_f64();
    let run = Run { seconds, requests: shared.taken.get(), due, usage };
    Ok(Report::new(&shared.spec, &shared.tally.borrow(), run))
}

impl Shared {
    /// The number and due time of this client's next request; none when the run is over.
    async fn next(&self) -> Option<(u64, Instant)> {
        if self.schedule.is_some() {
            self.released.acquire().await.ok()?.forget();
        }
        let number = self.taken.get();
        let (due, over) = match &self.schedule {
            Some(schedule) => (schedule.due(number), schedule.is_over(number)),
            None => {
                let now = Instant::now();
                (now, now >= self.end || self.spec.max_requests.is_some_and(|most| number >= most))
            }
        };
        if over || self.spec.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.taken.set(number + 1);
        Some((number, due))
    }

    async fn connect(&self, first: &mut bool) -> Result<Connection, Failure> {
        if !std::mem::take(first) {
            self.tally.borrow_mut().reconnects += 1;
        }
        Connection::open(self.spec.target.address, self.spec.source, self.spec.timeout).await
    }
}

/// Client `index`. They begin one after the other, over the first half of the warm-up: connections that are opened
/// at the same time are often all accepted by one of several workers of a server, which is rare with real clients.
async fn client(shared: Rc<Shared>, index: usize) {
    sleep(shared.spec.warmup / 2 * index as u32 / shared.spec.concurrency as u32).await;
    let mut connection = None;
    let mut first = true;
    let mut prefix = Vec::new();
    while let Some((number, due)) = shared.next().await {
        let request = &shared.spec.requests[(number % shared.spec.requests.len() as u64) as usize];
        request.fill(&mut prefix, shared.nonce, number);
        let open = connection.take().filter(|open: &Connection| !open.is_stale());
        let outcome = async {
            let mut open = match open {
                Some(open) => open,
                None => shared.connect(&mut first).await?,
            };
            let answer = timeout(shared.spec.timeout, open.exchange(&prefix, request.rest())).await;
            Ok((answer.unwrap_or(Err(Failure::Timeout))?, open))
        };
        match outcome.await {
            Ok((Answer { reply, unsent }, mut open)) => {
                shared.tally.borrow_mut().response(due, Instant::now(), reply.status, unsent > 0);
                if let Some(on_reply) = &shared.spec.on_reply {
                    on_reply(&reply);
                }
                if reply.keep_alive && (unsent == 0 || open.finish(request.rest(), unsent, FINISH).await) {
                    connection = Some(open);
                }
                if shared.schedule.is_none() && matches!(reply.status, 429 | 503) {
                    sleep(BACK_OFF).await;
                }
            }
            Err(failure) => {
                shared.tally.borrow_mut().failure(due, &failure);
                sleep(BACK_OFF).await;
            }
        }
    }
}

/// Reads the watched process's CPU time at both ends of the counted window.
async fn watch(shared: Rc<Shared>, from: Instant) -> anyhow::Result<Option<Usage>> {
    let Some(watch) = shared.spec.watch else { return Ok(None) };
    sleep_until(from.into()).await;
    let (cpu, rig, ok) = (watch.cpu_time()?, process::own_cpu_time(), shared.tally.borrow().ok_ever);
    sleep_until(shared.end.into()).await;
    let ok = shared.tally.borrow().ok_ever - ok;
    Ok(Some(Usage {
        cpu_s: (watch.cpu_time()? - cpu).as_secs_f64(),
        rig_cpu_s: (process::own_cpu_time() - rig).as_secs_f64(),
        ok,
        memory: process::memory(watch.pid)?,
    }))
}
