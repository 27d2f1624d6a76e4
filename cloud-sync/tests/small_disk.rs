//! A full disk and a process without file descriptors: clear, temporary errors, nothing half-written, and everything
//! continues afterwards.
//!
//! Each test starts itself again in a separate process, on a separate file system or with few descriptors.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cloud_sync::batch_status::{BatchSpec, BatchStatusStore, Created, EmbeddedBatchStatus};
use cloud_sync::blob::{BlobKey, BlobStore, DirStore};
use cloud_sync::capture::{Capture, CaptureConfig, CaptureRule, Captured};
use cloud_sync::error::SyncError;
use cloud_sync::event::ModelRef;
use cloud_sync::outbox::{Outbox, OutboxConfig};
use cloud_sync::queue::{EmbeddedQueue, EmbeddedQueueConfig, JobQueue, NewJob, ResultRecord, Settled};
use tokio::runtime::Runtime;

const DIR: &str = "WEIR_TEST_SMALL_DISK";
const SECOND: Duration = Duration::from_secs(1);

/// Runs `body` in a separate process: `prepare` is a shell command with the directory as $1, which then starts it.
fn alone(test: &str, prepare: &str, body: fn(&Path)) {
    if let Some(dir) = std::env::var_os(DIR) {
        return body(Path::new(&dir));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let status = command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!("{prepare} && exec \"$2\" --exact --nocapture \"$3\""))
        .args(["sh".as_ref(), folder.path().as_os_str()])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(DIR, folder.path())
        .status()
        .unwrap();
    assert!(status.success());
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Everything that writes below a directory.
struct Stores {
    blob: DirStore,
    queue: EmbeddedQueue,
    state: EmbeddedBatchStatus,
    dir: PathBuf,
}

impl Stores {
    fn open(dir: &Path) -> Self {
        let outbox = OutboxConfig { max_bytes: 256 << 10, ..OutboxConfig::new(dir.join("outbox")) };
        let outbox = Arc::new(Outbox::open(outbox).unwrap().0);
        let queue = EmbeddedQueueConfig { dir: dir.join("queue"), inflight: 4, max_bytes: 8 << 20 };
        Self {
            blob: DirStore::open(dir.join("blobs")).unwrap(),
            queue: EmbeddedQueue::open(queue, outbox).unwrap(),
            state: EmbeddedBatchStatus::open(dir.join("state"), 3600 * SECOND).unwrap(),
            dir: dir.to_owned(),
        }
    }

    fn capture(&self, runtime: &Runtime) -> Capture {
        let config = CaptureConfig::new(self.dir.join("capture"), CaptureRule::All, "box");
        Capture::open(config, Arc::new(self.blob.clone()), runtime.handle()).unwrap()
    }

    async fn put(&self, name: &str, bytes: usize) -> Result<(), SyncError> {
        self.blob.put(&BlobKey::new(name).unwrap(), vec![7; bytes].into(), "").await
    }

    async fn submit(&self, bytes: usize) -> Result<u64, SyncError> {
        let job = NewJob { key: "k".into(), payload: vec![b'x'; bytes].into() };
        self.queue.submit(&mut std::iter::once(Ok(job))).await
    }

    /// Files that are being written, of any store.
    fn partial(&self) -> usize {
        let mut count = 0;
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                } else if name.ends_with("partial~") || name.ends_with(".tmp") {
                    count += 1;
                }
            }
        }
        count
    }
}

fn captured(n: u8, bytes: usize) -> Captured {
    let bytes = Bytes::from(vec![n; bytes]);
    Captured {
        digest: blake3::hash(&bytes).to_hex().to_string(),
        bytes,
        format: "jpeg".into(),
        camera: None,
        species: "eel".into(),
        confidence: 0.5,
        model: ModelRef { name: "fish".into(), version: "1".into(), digest: "d".into() },
        request_id: "r".into(),
        time: SystemTime::now(),
    }
}

fn spec(id: &str) -> BatchSpec {
    BatchSpec { request_id: id.into(), total: 1, chunks: 1, digest: "d".into() }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < 60 * SECOND, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fills the disk but for `left` bytes.
fn fill(dir: &Path, left: u64) -> PathBuf {
    let filler = dir.join("filler");
    let mut file = File::create(&filler).unwrap();
    std::io::copy(&mut std::io::repeat(0), &mut file).unwrap_err();
    let length = file.metadata().unwrap().len();
    file.set_len(length - left).unwrap();
    filler
}

#[test]
fn a_full_disk_is_said_and_everything_goes_on_when_there_is_room() {
    alone(
        "a_full_disk_is_said_and_everything_goes_on_when_there_is_room",
        "mount -t tmpfs -o size=24m weir \"$1\"",
        on_a_full_disk,
    );
}

fn on_a_full_disk(disk: &Path) {
    // Otherwise this is not the small disk, and nothing here would fail.
    assert_ne!(disk.metadata().unwrap().dev(), disk.parent().unwrap().metadata().unwrap().dev());
    let runtime = Runtime::new().unwrap();
    let stores = Stores::open(&disk.join("data"));
    let capture = stores.capture(&runtime);
    runtime.block_on(async {
        stores.put("batches/1/body", 1000).await.unwrap();
        stores.submit(100).await.unwrap();
        assert_eq!(stores.state.create_batch(&spec("before")).await.unwrap(), Created::New);
    });
    let full = |what: &str, error: SyncError| {
        let text = error.in_full();
        assert!(error.is_transient() && error.is_disk_full(), "{what}: {text}");
        assert!(text.contains(disk.to_str().unwrap()), "{what} names no path: {text}");
    };
    for (round, left) in [0, 64 << 10].into_iter().enumerate() {
        let filler = fill(disk, left);
        runtime.block_on(async {
            full("an object", stores.put("batches/2/files/0", 200_000).await.unwrap_err());
            full("jobs", stores.submit(4 << 20).await.unwrap_err());
        });
        capture.offer(captured(round as u8, 300_000));
        until("an image that finds no room is left out", || capture.stats().skipped == round as u64 + 1);
        let said = capture.stats().last_error.unwrap();
        assert!(said.contains("No space left"), "{said}");
        assert_eq!(stores.partial(), 0, "half-written files");
        assert_eq!(fs::read_dir(stores.dir.join("capture/tmp")).unwrap().count(), 0);
        // Existing objects are still there.
        runtime.block_on(async {
            let object = stores.blob.get(&BlobKey::new("batches/1/body").unwrap(), 1 << 20).await.unwrap();
            assert_eq!(object.unwrap().len(), 1000);
            assert!(stores.state.batch("before").await.unwrap().is_some());
        });
        fs::remove_file(filler).unwrap();
        runtime.block_on(async {
            stores.put("batches/2/files/0", 200_000).await.unwrap();
            stores.submit(1 << 20).await.unwrap();
            stores.state.create_batch(&spec(&format!("after-{left}"))).await.unwrap();
        });
    }
    runtime.block_on(async {
        for length in [100, 1 << 20, 1 << 20] {
            let delivery = stores.queue.receive(60 * SECOND).await.unwrap().unwrap();
            assert_eq!(delivery.payload.len(), length);
            let result = ResultRecord {
                id: delivery.position.clone(),
                key: String::new(),
                payload: format!("{{\"id\":\"{}\"}}", delivery.position).into(),
            };
            assert_eq!(stores.queue.settle(&delivery, vec![result]).await.unwrap(), Settled::Done);
        }
    });
    capture.offer(captured(9, 1000));
    until("an image is sent", || capture.stats().sent == 1);
}

#[test]
fn a_process_without_descriptors_says_so_and_goes_on_when_it_has_some() {
    alone(
        "a_process_without_descriptors_says_so_and_goes_on_when_it_has_some",
        "ulimit -n 100 && mkdir \"$1/data\"",
        without_descriptors,
    );
}

fn without_descriptors(dir: &Path) {
    let runtime = Runtime::new().unwrap();
    let stores = Stores::open(&dir.join("data"));
    let capture = stores.capture(&runtime);
    runtime.block_on(async { stores.put("batches/1/body", 1000).await.unwrap() });
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    assert!(hoard.len() < 100);
    runtime.block_on(async {
        let error = stores.put("batches/2/body", 1000).await.unwrap_err();
        assert!(error.is_transient() && !error.is_disk_full(), "{}", error.in_full());
        assert!(error.in_full().contains("Too many open files"), "{}", error.in_full());
        let read = stores.blob.get(&BlobKey::new("batches/1/body").unwrap(), 1 << 20).await.unwrap_err();
        assert!(read.is_transient(), "{}", read.in_full());
        // These have their files open.
        stores.submit(100).await.unwrap();
        stores.state.create_batch(&spec("meanwhile")).await.unwrap();
    });
    // The uploader may have had a directory open until now: then the first image still finds a descriptor.
    let offered = Cell::new(0);
    until("an image is left out", || {
        let stats = capture.stats();
        if stats.skipped == 0 && stats.spooled + stats.sent == u64::from(offered.get()) {
            offered.set(offered.get() + 1);
            capture.offer(captured(100 + offered.get(), 1000));
        }
        stats.skipped == 1
    });
    let kept = u64::from(offered.get()) - 1;
    drop(hoard);
    assert_eq!(stores.partial(), 0, "half-written files");
    runtime.block_on(async {
        stores.put("batches/2/body", 1000).await.unwrap();
        let object = stores.blob.get(&BlobKey::new("batches/1/body").unwrap(), 1 << 20).await.unwrap();
        assert_eq!(object.unwrap().len(), 1000);
    });
    capture.offer(captured(2, 1000));
    until("an image is sent", || capture.stats().sent == kept + 1);
}
