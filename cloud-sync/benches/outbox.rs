//! The cost of durability: events per second of many appenders, and the latency of a single one, compared with the
//! same write and fsync without the outbox.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::outbox::{Durability, Outbox, OutboxConfig};

const PAYLOAD: usize = 500;
const APPENDERS: usize = 64;
const TIME: Duration = Duration::from_secs(3);

fn main() {
    let dir = tempfile::tempdir().unwrap();
    println!("raw write + fdatasync  {}", percentiles(raw(dir.path())));
    for durability in [Durability::Fsync, Durability::OsBuffered] {
        let dir = tempfile::tempdir().unwrap();
        let config = OutboxConfig { durability, ..OutboxConfig::new(dir.path()) };
        let outbox = Arc::new(Outbox::open(config.clone()).unwrap().0);
        println!("{durability:?}, lone append    {}", percentiles(lone(&outbox)));
        let before = outbox.stats();
        let start = Instant::now();
        let latencies = crowd(&outbox);
        let rate = latencies.len() as f64 / start.elapsed().as_secs_f64();
        let after = outbox.stats();
        let syncs = (after.syncs - before.syncs).max(1);
        println!("{durability:?}, {APPENDERS} appenders   {rate:.0} events/s, {}", percentiles(latencies));
        println!("  {:.1} events a sync", (after.appended - before.appended) as f64 / syncs as f64);
        let bytes = after.bytes;
        drop(outbox);
        let start = Instant::now();
        let found = Outbox::open(config).unwrap().1;
        println!("  opened {} events, {} MiB, in {:.0?}", found.events, bytes >> 20, start.elapsed());
    }
}

fn raw(dir: &std::path::Path) -> Vec<Duration> {
    let mut file = File::create(dir.join("raw")).unwrap();
    timed(|| {
        file.write_all(&[7; PAYLOAD + 24]).unwrap();
        file.sync_data().unwrap();
    })
}

fn lone(outbox: &Outbox) -> Vec<Duration> {
    timed(|| {
        outbox.append(vec![7; PAYLOAD]).wait().unwrap();
    })
}

fn timed(mut act: impl FnMut()) -> Vec<Duration> {
    (0..500)
        .map(|_| {
            let start = Instant::now();
            act();
            start.elapsed()
        })
        .collect()
}

fn crowd(outbox: &Arc<Outbox>) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let end = Instant::now() + TIME;
        let appenders: Vec<_> = (0..APPENDERS)
            .map(|_| {
                let outbox = Arc::clone(outbox);
                tokio::spawn(async move {
                    let mut latencies = Vec::new();
                    while Instant::now() < end {
                        let start = Instant::now();
                        outbox.append(vec![7; PAYLOAD]).await.unwrap();
                        latencies.push(start.elapsed());
                    }
                    latencies
                })
            })
            .collect();
        let mut all = Vec::new();
        for appender in appenders {
            all.extend(appender.await.unwrap());
        }
        all
    })
}

fn percentiles(mut latencies: Vec<Duration>) -> String {
    latencies.sort_unstable();
    let at = |part: usize| latencies[(latencies.len() * part / 100).min(latencies.len() - 1)];
    format!("p50 {:.2?}, p99 {:.2?}, max {:.2?}", at(50), at(99), at(100))
}
