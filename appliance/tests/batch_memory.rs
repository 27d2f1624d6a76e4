//! 100,000 URLs go through a submission in bounded memory. A separate process, since it measures the process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code, unreachable_pub)]

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloud_sync::error::SyncResult;
use cloud_sync::queue::{Delivery, JobQueue, NewJob, QueueStats, ResultRecord, Settled};
use tempfile::NamedTempFile;
use weir::batch::parsing::BatchOptions;
use weir::batch::{BatchService, BatchStores};
use weir::config::Config;

#[path = "../src/batch/testing.rs"]
mod testing;

/// Counts jobs without keeping them in memory, like a queue on disk or in the network.
#[derive(Debug, Default)]
struct CountingQueue {
    jobs: AtomicU64,
    bytes: AtomicU64,
    /// Peak resident memory during submission.
    highest: AtomicU64,
}

#[async_trait]
impl JobQueue for CountingQueue {
    async fn submit(&self, jobs: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send)) -> SyncResult<u64> {
        for job in jobs {
            self.bytes.fetch_add(job?.payload.len() as u64, Ordering::Relaxed);
            self.jobs.fetch_add(1, Ordering::Relaxed);
            self.highest.fetch_max(resident(), Ordering::Relaxed);
        }
        Ok(self.jobs.load(Ordering::Relaxed))
    }

    async fn receive(&self, _: Duration) -> SyncResult<Option<Delivery>> {
        Ok(None)
    }

    async fn settle(&self, _: &Delivery, _: Vec<ResultRecord>) -> SyncResult<Settled> {
        Ok(Settled::Lost)
    }

    async fn release(&self, _: Delivery) {}

    fn stats(&self) -> QueueStats {
        QueueStats::default()
    }

    async fn close(&self) {}
}

/// Resident memory now, in bytes.
fn resident() -> u64 {
    field("VmRSS:")
}

/// Peak resident memory.
fn peak() -> u64 {
    field("VmHWM:")
}

fn field(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

const IMAGES: u64 = 100_000;

#[tokio::test]
async fn a_hundred_thousand_urls_are_never_in_memory_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().to_path_buf(), ..Config::default() };
    let queue = Arc::new(CountingQueue::default());
    let memory = testing::MemoryStores::default();
    let stores = BatchStores { queue: Arc::clone(&queue) as _, state: memory.state, blob: memory.blob };
    let service = BatchService::open(stores, &config, Box::new(|| 17)).unwrap();
    let submit = async |images: u64| {
        let (mut file, path) = service.spool().create().unwrap().into_parts();
        write_body(&mut file, images);
        let bytes = file.metadata().unwrap().len();
        let start = Instant::now();
        let intake = service.read(path, "application/json", BatchOptions::default()).await.unwrap();
        let read = start.elapsed();
        assert_eq!(service.submit(intake).await.unwrap().total, images);
        println!("{images} images, {bytes} bytes: read in {read:?}, taken in {:?}", start.elapsed());
        bytes
    };
    // First a small one, so that fixed costs are not counted.
    submit(100).await;
    let before = resident();
    queue.jobs.store(0, Ordering::Relaxed);
    queue.bytes.store(0, Ordering::Relaxed);
    let bytes = submit(IMAGES).await;
    assert!(bytes > 10_000_000, "{bytes}");
    assert_eq!(queue.jobs.load(Ordering::Relaxed), IMAGES.div_ceil(256));
    assert!(queue.bytes.load(Ordering::Relaxed) > bytes - 2 * IMAGES, "every URL is in a message");
    let grown = peak().saturating_sub(before);
    println!("resident: {} KiB more at the peak", grown >> 10);
    assert!(grown < 20 << 20, "it took {grown} bytes");
}

#[tokio::test]
async fn one_huge_string_is_not_collected() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().to_path_buf(), ..Config::default() };
    let service =
        BatchService::open(testing::MemoryStores::default().stores(), &config, Box::new(|| 17)).unwrap();
    let (file, path) = NamedTempFile::new_in(dir.path()).unwrap().into_parts();
    let mut file = std::io::BufWriter::new(file);
    file.write_all(br#"{"image_urls": [""#).unwrap();
    for _ in 0..2048 {
        file.write_all(&[b'a'; 64 << 10]).unwrap();
    }
    file.flush().unwrap();
    let before = peak();
    service.read(path, "application/json", BatchOptions::default()).await.unwrap_err();
    let grown = peak().saturating_sub(before);
    assert!(grown < 20 << 20, "it took {grown} bytes");
}

fn write_body(file: &mut std::fs::File, images: u64) {
    let mut file = std::io::BufWriter::new(file);
    file.write_all(br#"{"image_urls": ["#).unwrap();
    for i in 0..images {
        let comma = if i == 0 { "" } else { ", " };
        let name = format!(
            "{comma}\"https://cameras.example.com/dock-3/2026/05/01/morning/{i:012}-a-name-that-a-camera-could-give.jpg\""
        );
        file.write_all(name.as_bytes()).unwrap();
    }
    file.write_all(b"]}").unwrap();
    file.flush().unwrap();
}
