//! A process that works off the embedded queue is killed repeatedly: every result is in the outbox exactly once, and
//! no chunk that the queue has removed is missing in the status of its batch.
//!
//! The test starts itself as the child, with the directory in the environment.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Write, stdout};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Once, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use cloud_sync::batch_status::{BatchSpec, BatchStatusStore, EmbeddedBatchStatus};
use cloud_sync::outbox::{Outbox, OutboxConfig, Reader};
use cloud_sync::queue::{EmbeddedQueue, EmbeddedQueueConfig, JobQueue, NewJob, ResultRecord, Settled};
use serde_json::Value;
use tokio::runtime::Runtime;

const DIR: &str = "EMBEDDED_CRASH_DIR";
const KILLS: u64 = 20;
const CHUNKS: u32 = 10;
const RESULTS: u32 = 3;
/// Jobs that are in the queue when a child starts: more than it can do before it is killed.
const AHEAD: usize = 1500;
static FIRST_SETTLED: Once = Once::new();

fn main() {
    match env::var_os(DIR) {
        Some(dir) => Runtime::new().unwrap().block_on(work_until_killed(Path::new(&dir))),
        None => Runtime::new().unwrap().block_on(kill_again_and_again()),
    }
}

struct Stores {
    queue: EmbeddedQueue,
    state: EmbeddedBatchStatus,
    outbox: Arc<Outbox>,
}

fn open(dir: &Path, inflight: usize) -> Stores {
    let outbox = Arc::new(Outbox::open(OutboxConfig::new(dir.join("outbox"))).unwrap().0);
    let config = EmbeddedQueueConfig { dir: dir.join("queue"), inflight, max_bytes: 64 << 20 };
    let queue = EmbeddedQueue::open(config, Arc::clone(&outbox)).unwrap();
    let hour = Duration::from_secs(3600);
    let state = EmbeddedBatchStatus::open(dir.join("state"), hour).unwrap();
    Stores { queue, state, outbox }
}

/// Job number `n` is a chunk of the batch `n / CHUNKS`.
fn chunk_of(n: u32) -> (BatchSpec, u32) {
    let request_id = format!("batch-{}", n / CHUNKS);
    (BatchSpec { request_id, total: 100, chunks: CHUNKS, digest: String::new() }, n % CHUNKS)
}

async fn work_until_killed(dir: &Path) {
    let stores = Arc::new(open(dir, 8));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let stores = Arc::clone(&stores);
            tokio::spawn(async move {
                while let Some(job) = stores.queue.receive(Duration::from_millis(200)).await.unwrap() {
                    let n: u32 = std::str::from_utf8(&job.payload).unwrap().parse().unwrap();
                    let (spec, chunk) = chunk_of(n);
                    stores.state.start_chunk(&spec, chunk).await.unwrap();
                    let done = stores.state.complete_chunk(&spec, chunk, &job.position, 10, 0).await.unwrap();
                    assert_eq!(done.owner, job.position);
                    let results = (0..RESULTS).map(|r| {
                        let id = format!("{n}-{r}");
                        let payload = format!(r#"{{"id":"{id}"}}"#).into();
                        ResultRecord { id, key: String::new(), payload }
                    });
                    assert_eq!(stores.queue.settle(&job, results.collect()).await.unwrap(), Settled::Done);
                    // The parent may have closed the pipe.
                    FIRST_SETTLED.call_once(|| drop(writeln!(stdout(), "settled")));
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

fn start_child(dir: &Path, stdout: Stdio) -> Child {
    Command::new(env::current_exe().unwrap()).env(DIR, dir).stdout(stdout).spawn().unwrap()
}

/// Starts a child and kills it `after` its first settlement.
fn kill_after_first(dir: &Path, after: Duration) {
    let mut child = start_child(dir, Stdio::piped());
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let (settled, first) = mpsc::channel();
    let reading = thread::spawn(move || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let _ = settled.send(line);
    });
    // On a loaded machine it takes long until the child settles its first job.
    assert_eq!(first.recv_timeout(Duration::from_secs(120)).unwrap(), "settled\n");
    reading.join().unwrap();
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// How often each result is in the outbox.
fn published(outbox: &Outbox) -> BTreeMap<String, u32> {
    let mut times = BTreeMap::new();
    for event in Reader::open(outbox.dir()).unwrap() {
        let event: Value = serde_json::from_slice(&event.unwrap().payload).unwrap();
        *times.entry(event["id"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    times
}

/// Checks the state after a kill, and returns how many jobs of `submitted` are left, and how many of those have
/// results in the outbox already.
async fn check(stores: &Stores, submitted: u32) -> (usize, usize) {
    let published = published(&stores.outbox);
    assert!(published.values().all(|times| *times == 1), "twice: {published:?}");
    let mut waiting = vec![false; submitted as usize];
    while let Some(job) = stores.queue.receive(Duration::ZERO).await.unwrap() {
        waiting[std::str::from_utf8(&job.payload).unwrap().parse::<usize>().unwrap()] = true;
    }
    let (mut left, mut caught) = (0, 0);
    for n in 0..submitted {
        let there = (0..RESULTS).filter(|r| published.contains_key(&format!("{n}-{r}"))).count();
        if waiting[n as usize] {
            left += 1;
            caught += usize::from(there > 0);
        } else {
            assert_eq!(there, RESULTS as usize, "job {n} is out of the queue");
            let (spec, chunk) = chunk_of(n);
            let start = stores.state.start_chunk(&spec, chunk).await.unwrap();
            assert!(start.done_by.is_some(), "job {n} is out of the queue, its chunk is not done: {start:?}");
        }
    }
    (left, caught)
}

async fn kill_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut submitted, mut between, mut worked) = (0, 0, 0);
    for round in 0..KILLS {
        {
            let stores = open(dir.path(), usize::MAX);
            let (left, caught) = check(&stores, submitted).await;
            between += caught;
            let more = (AHEAD.saturating_sub(left)) as u32;
            let mut jobs = (submitted..submitted + more).map(|n| {
                let n = n.to_string();
                Ok(NewJob { key: n.clone(), payload: n.into() })
            });
            stores.queue.submit(&mut jobs).await.unwrap();
            submitted += more;
            worked += u32::from(round > 0 && more > 0);
        }
        kill_after_first(dir.path(), Duration::from_millis(13 * round));
    }
    let mut child = start_child(dir.path(), Stdio::inherit());
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > Duration::from_secs(600) => {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(status.success(), "the last child did not come to its end: {status}");
    let stores = open(dir.path(), usize::MAX);
    assert_eq!(check(&stores, submitted).await, (0, 0));
    assert_eq!(published(&stores.outbox).len(), (submitted * RESULTS) as usize);
    for batch in 0..submitted / CHUNKS {
        let status = stores.state.batch(&format!("batch-{batch}")).await.unwrap().unwrap();
        assert_eq!((status.chunks_done, status.completed), (CHUNKS, u64::from(CHUNKS) * 10), "{status:?}");
    }
    assert!(worked > KILLS as u32 / 2, "only {worked} children did anything before they were killed");
    assert!(between > 0, "no kill hit a settlement in its middle");
    println!("{KILLS} kills, {submitted} jobs, {between} of them killed in the middle of their settlement");
}
