//! Tests of capture on a store that can be made to fail.

mod store;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::Value;
use tempfile::{TempDir, tempdir};
use tokio::runtime::Handle;

use super::*;
use crate::blob::DirStore;
use crate::event::ModelRef;
use store::MemoryStore;

const BOUND: Duration = Duration::from_secs(20);

fn photo(n: u32) -> Captured {
    let bytes = Bytes::from(format!("photo {n} ").repeat(200));
    Captured {
        digest: Digest::of(&bytes).hex(),
        bytes,
        format: "jpeg".into(),
        camera: Some("dock-3".into()),
        species: "tench".into(),
        confidence: 0.4,
        model: ModelRef { name: "fish".into(), version: "1".into(), digest: "d".into() },
        request_id: format!("request-{n}"),
        // 2026-01-02T03:04:05.678Z
        time: UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
    }
}

fn config(dir: &Path, rule: CaptureRule) -> CaptureConfig {
    CaptureConfig {
        backoff_initial: Duration::from_millis(20),
        backoff_max: Duration::from_millis(100),
        ..CaptureConfig::new(dir, rule, "box-1")
    }
}

fn start() -> (TempDir, Arc<MemoryStore>, Capture) {
    let dir = tempdir().unwrap();
    let store = Arc::new(MemoryStore::default());
    let capture = open(dir.path(), &store);
    (dir, store, capture)
}

fn open(dir: &Path, store: &Arc<MemoryStore>) -> Capture {
    let store: Arc<dyn BlobStore> = Arc::<MemoryStore>::clone(store);
    Capture::open(config(dir, CaptureRule::All), store, &Handle::current()).unwrap()
}

async fn until(capture: &Capture, what: impl Fn(&CaptureStats) -> bool) -> CaptureStats {
    let start = Instant::now();
    loop {
        let stats = capture.stats();
        if what(&stats) {
            return stats;
        }
        assert!(start.elapsed() < BOUND, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An image is counted as sent before it is removed from the spool, so tests that look there wait for this.
fn empty(stats: &CaptureStats) -> bool {
    (stats.spooled, stats.bytes) == (0, 0)
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_and_what_the_model_said_arrive_under_day_and_camera() {
    let (dir, store, capture) = start();
    let image = photo(1);
    capture.offer(image.clone());
    capture.offer(Captured { camera: None, ..photo(2) });
    let stats = until(&capture, |stats| stats.sent == 2).await;
    let folder = "datasets/captured/2026-01-02";
    let other = photo(2).digest;
    let mut expected = vec![
        format!("{folder}/dock-3/{}.jpg", image.digest),
        format!("{folder}/dock-3/{}.json", image.digest),
        format!("{folder}/unknown/{other}.jpg"),
        format!("{folder}/unknown/{other}.json"),
    ];
    expected.sort();
    assert_eq!(store.keys(), expected);
    let objects = store.objects.lock().clone();
    assert_eq!(objects[&format!("{folder}/dock-3/{}.jpg", image.digest)], image.bytes);
    let sidecar: Value =
        serde_json::from_slice(&objects[&format!("{folder}/dock-3/{}.json", image.digest)]).unwrap();
    let expected = serde_json::json!({
        "digest": image.digest, "format": "jpeg", "bytes": image.bytes.len(), "camera": "dock-3",
        "species": "tench", "confidence": 0.4, "model": {"name": "fish", "version": "1", "digest": "d"},
        "node": "box-1", "request_id": "request-1", "time": "2026-01-02T03:04:05.678Z",
    });
    assert_eq!(sidecar, expected);
    let stats = CaptureStats { last_error: None, ..stats };
    assert_eq!((stats.skipped, stats.deduplicated, stats.dead), (0, 0, 0));
    until(&capture, empty).await;
    assert_eq!(files(&dir.path().join("spool")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_is_sent_once_in_this_run_and_the_next() {
    let (dir, store, capture) = start();
    store.set_away(true);
    for _ in 0..5 {
        capture.offer(photo(1));
    }
    // In the spool once, although it was offered five times while the storage was unavailable.
    until(&capture, |stats| stats.deduplicated == 4 && stats.spooled == 1).await;
    store.set_away(false);
    until(&capture, |stats| stats.sent == 1 && stats.spooled == 0).await;
    // The same image on another day, from another camera, is still the same image.
    let again = Captured { camera: Some("dock-4".into()), time: UNIX_EPOCH, ..photo(1) };
    capture.offer(again.clone());
    assert_eq!(capture.stats().deduplicated, 5);
    capture.close(BOUND).await;
    let capture = open(dir.path(), &store);
    capture.offer(again);
    capture.offer(photo(2));
    let stats = until(&capture, |stats| stats.sent == 1).await;
    assert_eq!((stats.deduplicated, store.puts.lock().len()), (1, 4));
    // The storage still has what the memory has lost.
    capture.close(BOUND).await;
    fs::remove_file(dir.path().join("sent")).unwrap();
    let capture = open(dir.path(), &store);
    capture.offer(photo(1));
    let stats = until(&capture, |stats| stats.deduplicated == 1).await;
    assert_eq!((stats.sent, store.puts.lock().len()), (0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_is_away_is_waited_for_and_the_spool_outlives_the_process() {
    let (dir, store, capture) = start();
    store.set_away(true);
    // Offered at the rate of a box's responses: the writer keeps up.
    for n in 0..60 {
        capture.offer(photo(n));
    }
    let stats = until(&capture, |stats| stats.spooled == 60 && stats.last_error.is_some()).await;
    assert_eq!((stats.sent, stats.dead, stats.skipped), (0, 0, 0));
    assert_eq!(stats.last_error.as_deref(), Some("s3: cannot connect"));
    assert!(stats.bytes > 60 * 1000);
    capture.close(BOUND).await;
    let bytes = stats.bytes;
    let capture = open(dir.path(), &store);
    assert_eq!((capture.stats().spooled, capture.stats().bytes), (60, bytes));
    store.set_away(false);
    let stats = until(&capture, |stats| stats.sent == 60 && stats.spooled == 0).await;
    assert_eq!((stats.bytes, stats.last_error, store.keys().len()), (0, None, 120));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_is_bounded_and_an_offer_never_waits() {
    let dir = tempdir().unwrap();
    let store = Arc::new(MemoryStore::default());
    store.set_away(true);
    let config = CaptureConfig { max_bytes: 20_000, ..config(dir.path(), CaptureRule::All) };
    let capture = Capture::open(config, Arc::<MemoryStore>::clone(&store), &Handle::current()).unwrap();
    let start = Instant::now();
    for n in 0..1000 {
        capture.offer(photo(n));
    }
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    let stats = until(&capture, |stats| stats.spooled + stats.skipped == 1000).await;
    assert!(stats.spooled > 3 && stats.bytes < 20_000 + 5_000, "{stats:?}");
    store.set_away(false);
    until(&capture, |stats| stats.spooled == 0).await;
    capture.offer(photo(2000));
    until(&capture, |now| now.sent == stats.spooled + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_image_goes_to_the_dead_and_the_rest_goes_on() {
    let (dir, store, capture) = start();
    let bad = photo(3).digest;
    store.refuse(&bad);
    for n in 0..10 {
        capture.offer(photo(n));
    }
    let stats = until(&capture, |stats| stats.dead == 1 && stats.sent == 9).await;
    assert_eq!(stats.dead_kept, 1);
    assert_eq!(files(&dir.path().join("dead")), [format!("{bad}.jpg"), format!("{bad}.json")]);
    let json = fs::read(dir.path().join("dead").join(format!("{bad}.json"))).unwrap();
    let sidecar: Value = serde_json::from_slice(&json).unwrap();
    assert!(sidecar["refused"].as_str().unwrap().contains("access denied"), "{sidecar}");
    assert_eq!(sidecar["request_id"], "request-3");
    until(&capture, empty).await;
    // It is not captured again, only to be refused again.
    capture.offer(photo(3));
    assert_eq!(capture.stats().deduplicated, 1);
    capture.close(BOUND).await;
    assert_eq!(open(dir.path(), &store).stats().dead_kept, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_refuses_everything_kills_nothing() {
    let (_dir, store, capture) = start();
    store.refuse_all(true);
    for n in 0..20 {
        capture.offer(photo(n));
    }
    let stats = until(&capture, |stats| stats.spooled == 20 && stats.last_error.is_some()).await;
    assert!(stats.last_error.unwrap().contains("access denied"));
    // Long enough for every one of them to have been refused.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((capture.stats().dead, capture.stats().spooled), (0, 20));
    store.refuse_all(false);
    let stats = until(&capture, |stats| stats.sent == 20).await;
    assert_eq!((stats.dead, stats.last_error), (0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_half_done_is_never_sent() {
    let (dir, store, capture) = start();
    store.set_away(true);
    for n in 0..5 {
        capture.offer(photo(n));
    }
    until(&capture, |stats| stats.spooled == 5).await;
    capture.close(BOUND).await;
    let spool = dir.path().join("spool");
    let path = |n: u32, extension: &str| spool.join(format!("{}.{extension}", photo(n).digest));
    // Killed between the two renames; while writing; and what a loss of power makes of files.
    fs::remove_file(path(0, "json")).unwrap();
    fs::write(dir.path().join("tmp").join("half.jpg"), "ha").unwrap();
    fs::write(path(1, "jpg"), "photo 1").unwrap();
    fs::write(path(2, "json"), "").unwrap();
    fs::remove_file(path(3, "jpg")).unwrap();
    store.set_away(false);
    let capture = open(dir.path(), &store);
    let stats = until(&capture, |stats| stats.sent == 1 && stats.skipped == 3 && empty(stats)).await;
    assert_eq!(stats.dead, 0);
    let good = photo(4).digest;
    assert!(store.keys().iter().all(|key| key.contains(&good)), "{:?}", store.keys());
    assert_eq!((files(&spool), files(&dir.path().join("tmp"))), (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_takes_them_as_well() {
    let (dir, out) = (tempdir().unwrap(), tempdir().unwrap());
    let store: Arc<dyn BlobStore> = Arc::new(DirStore::open(out.path()).unwrap());
    let config = config(dir.path(), CaptureRule::Below(0.5));
    let capture = Capture::open(config, Arc::clone(&store), &Handle::current()).unwrap();
    for n in 0..20 {
        let confidence = if n % 2 == 0 { 0.4 } else { 0.9 };
        capture.offer(Captured { confidence, camera: Some("камера/1".into()), ..photo(n) });
    }
    until(&capture, |stats| stats.sent == 10 && stats.spooled == 0).await;
    let page = store.list("datasets/captured/2026-01-02/", None).await.unwrap();
    assert_eq!((page.objects.len(), page.next), (20, None));
    let image = page.objects.iter().find(|o| o.key.ends_with(&format!("{}.jpg", photo(6).digest))).unwrap();
    let key = crate::blob::BlobKey::new(image.key.clone()).unwrap();
    assert_eq!(store.get(&key, 1 << 20).await.unwrap(), Some(photo(6).bytes));
}

#[tokio::test]
async fn rules_take_what_they_say() {
    let takes = |rule: CaptureRule, n: u32, confidence: f32| {
        rule.matches(Digest::parse(&photo(n).digest).unwrap(), confidence)
    };
    assert!(takes(CaptureRule::All, 1, 1.0));
    assert!(takes(CaptureRule::Below(0.6), 1, 0.599) && takes(CaptureRule::Below(0.6), 1, f32::NAN));
    assert!(!takes(CaptureRule::Below(0.6), 1, 0.6));
    let sampled = (0..2000).filter(|n| takes(CaptureRule::Sample(0.1), *n, 0.5)).count();
    assert!((150..250).contains(&sampled), "{sampled}");
    assert!((0..100).all(|n| takes(CaptureRule::Sample(1.0), n, 0.5)));
    assert!((0..100).all(|n| !takes(CaptureRule::Sample(0.0), n, 0.5)));

    let dir = tempdir().unwrap();
    let store: Arc<dyn BlobStore> = Arc::new(MemoryStore::default());
    for (rule, words) in [
        (CaptureRule::Below(1.5), "capture setting below is 1.5, it must be 0 to 1"),
        (CaptureRule::Sample(-0.5), "capture setting sample is -0.5, it must be 0 to 1"),
        (CaptureRule::Sample(f64::NAN), "capture setting sample is NaN, it must be 0 to 1"),
    ] {
        let config = config(dir.path(), rule);
        let error = Capture::open(config, Arc::clone(&store), &Handle::current()).unwrap_err();
        assert_eq!(error.to_string(), words);
    }
}
