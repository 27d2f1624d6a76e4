//! A store with a small bound: what is removed first, what never is, and what is refused meanwhile.

use bytes::Bytes;
use cloud_sync::batch_status::{BatchSpec, EmbeddedBatchStatus};
use cloud_sync::blob::{Bound, StoreFull};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);
/// Of the disk's blocks, so that a store of a hundred is full in percent.
const BLOCK: usize = 4096;

struct Bench {
    gc: GarbageCollector,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bound = Bound { max_bytes: 100 * BLOCK as u64, min_free: 0, share };
        let store = DirStore::open_bounded(dir.path().join("blobs"), bound).unwrap();
        let state = EmbeddedBatchStatus::open(dir.path().join("state"), DAY).unwrap();
        Self { gc: GarbageCollector { store, state: Arc::new(state), status_ttl: DAY }, _dir: dir }
    }

    async fn put(&self, key: &str, blocks: usize) -> SyncResult<()> {
        let bytes = Bytes::from(vec![7; blocks * BLOCK]);
        self.gc.store.put(&BlobKey::new(key).unwrap(), bytes, "").await
    }

    async fn fill(&self, keys: &[(&str, usize)]) {
        for (key, blocks) in keys {
            self.put(key, *blocks).await.unwrap();
            // One after the other by the clock of the file system too.
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    async fn keys(&self) -> Vec<String> {
        let page = self.gc.store.list("", None).await.unwrap();
        page.objects.into_iter().map(|object| object.key).collect()
    }
}

#[tokio::test]
async fn the_oldest_results_go_with_their_batch_until_there_is_room() {
    let bench = Bench::new();
    bench
        .fill(&[
            ("batches/z/batch.json", 1),
            ("results/z.jsonl", 10),
            ("batches/a/batch.json", 1),
            ("batches/a/files/00000000", 5),
            ("results/a.jsonl", 30),
            ("dead-letter/2026-01-31/p.json", 10),
            ("batches/waits/files/00000000", 14),
            ("results/b.jsonl", 10),
        ])
        .await;
    let spec = BatchSpec { request_id: "z".into(), total: 1, chunks: 1, digest: "d".into() };
    bench.gc.state.create_batch(&spec).await.unwrap();
    let before = bench.keys().await;
    assert_eq!(bench.gc.pass(SystemTime::now()).await.unwrap(), 0, "all of it is young");
    assert_eq!(bench.keys().await, before);
    // 81 of 100: z and then, since that leaves 70, nothing more.
    assert_eq!(bench.gc.pass(SystemTime::now() + DAY * 2).await.unwrap(), 2);
    let kept: Vec<String> = before.iter().filter(|key| !key.contains('z')).cloned().collect();
    assert_eq!(bench.keys().await, kept);
    assert!(bench.gc.state.batch("z").await.unwrap().is_none());
    assert_eq!(bench.gc.pass(SystemTime::now() + DAY * 2).await.unwrap(), 0, "there is room");
    bench.fill(&[("results/new.jsonl", 15)]).await;
    bench.gc.pass(SystemTime::now() + DAY * 2).await.unwrap();
    let keys = bench.keys().await;
    assert!(!keys.iter().any(|key| key.starts_with("batches/a") || key == "results/a.jsonl"), "{keys:?}");
    assert!(keys.contains(&"batches/waits/files/00000000".to_owned()), "a batch that waits lost its file");
    assert_eq!(bench.gc.store.room().unwrap().bytes, 49 * BLOCK as u64);
}

#[tokio::test]
async fn what_belongs_to_no_batch_any_more_goes_last() {
    let bench = Bench::new();
    bench.fill(&[("batches/lost/files/00000000", 85), ("results/b.jsonl", 5)]).await;
    bench.gc.pass(SystemTime::now() + DAY * 2).await.unwrap();
    assert_eq!(bench.keys().await, ["batches/lost/files/00000000"]);
    bench.gc.pass(SystemTime::now() + DAY * 31).await.unwrap();
    assert_eq!(bench.keys().await, [""; 0]);
}

#[tokio::test]
async fn captures_leave_room_for_batches_and_new_batches_for_results() {
    let bench = Bench::new();
    let refused = |result: SyncResult<()>| {
        let error = result.unwrap_err();
        assert!(error.is_transient() && StoreFull::of(&error).is_some(), "{}", error.in_full());
    };
    bench.put("datasets/captured/2026-01-31/dock/a.jpg", 50).await.unwrap();
    refused(bench.put("datasets/captured/2026-01-31/dock/b.jpg", 1).await);
    bench.put("batches/a/files/00000000", 40).await.unwrap();
    refused(bench.put("batches/a/files/00000001", 1).await);
    refused(bench.put("batches/b/batch.json", 1).await);
    bench.put("batches/a/parts/000000.jsonl", 5).await.unwrap();
    bench.put("results/a.jsonl", 5).await.unwrap();
    refused(bench.put("results/b.jsonl", 1).await);
}
