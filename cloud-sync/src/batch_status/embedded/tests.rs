//! Tests of what is specific to batches in a file: restarts, the limit, the disk, and the latency of a status query.

use std::sync::atomic::Ordering;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::durable::simulated::{SimulatedDisk, after_each_loss};

const HOUR: Duration = Duration::from_secs(3600);

fn open(dir: &TempDir, ttl: Duration, max_bytes: u64) -> EmbeddedBatchStatus {
    EmbeddedBatchStatus::open_bounded(dir.path().join("state"), Bounds { ttl, max_bytes }).unwrap()
}

fn spec(request_id: &str, chunks: u32) -> BatchSpec {
    BatchSpec { request_id: request_id.into(), total: u64::from(chunks) * 10, chunks, digest: "d".into() }
}

fn outcome(bytes: usize) -> BatchOutcome {
    BatchOutcome {
        phase: BatchPhase::Completed,
        completed: 10,
        failed: 0,
        results_uri: "file:///r".into(),
        results: (bytes > 0).then(|| "x".repeat(bytes)),
    }
}

async fn finish(store: &EmbeddedBatchStatus, id: &str, bytes: usize) {
    store.create_batch(&spec(id, 1)).await.unwrap();
    store.complete_chunk(&spec(id, 1), 0, "p", 10, 0).await.unwrap();
    store.finish_batch(&spec(id, 1), &outcome(bytes)).await.unwrap();
}

#[tokio::test]
async fn batches_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, HOUR, MAX_BYTES);
    store.create_batch(&spec("b", 3)).await.unwrap();
    store.batch_submitted("b").await.unwrap();
    store.complete_chunk(&spec("b", 3), 1, "p-1", 9, 1).await.unwrap();
    finish(&store, "done", 100).await;
    let before = [store.batch("b").await.unwrap().unwrap(), store.batch("done").await.unwrap().unwrap()];
    drop(store);
    let store = open(&dir, HOUR, MAX_BYTES);
    assert_eq!(
        [store.batch("b").await.unwrap().unwrap(), store.batch("done").await.unwrap().unwrap()],
        before
    );
    assert_eq!(store.start_chunk(&spec("b", 3), 1).await.unwrap().done_by.as_deref(), Some("p-1"));
    assert_eq!(store.batch("nobody").await.unwrap(), None);
}

#[tokio::test]
async fn a_chunk_that_a_batch_does_not_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, HOUR, MAX_BYTES);
    let error = store.complete_chunk(&spec("b", 3), 3, "p", 1, 0).await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("no chunk 3"), "{}", error.in_full());
    assert_eq!(store.batch("b").await.unwrap(), None);
}

#[tokio::test]
async fn what_is_forgotten_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, Duration::from_millis(300), MAX_BYTES);
    for n in 0..8 {
        finish(&store, &format!("done-{n}"), 500).await;
        store.complete_chunk(&spec(&format!("half-{n}"), 2), 0, "position", 1, 1).await.unwrap();
    }
    store.create_batch(&spec("forgotten", 4)).await.unwrap();
    store.complete_chunk(&spec("forgotten", 4), 2, "p", 1, 1).await.unwrap();
    store.forget_batch("forgotten").await.unwrap();
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(store.batch("half-3").await.unwrap(), None);
    // The next changes remove some of the expired ones.
    for n in 0..2 {
        store.create_batch(&spec(&format!("new-{n}"), 1)).await.unwrap();
    }
    let (batches, chunks, by_age, bytes) = store.file().size();
    assert!(batches <= 2 && (chunks, by_age) == (0, batches), "{batches} {chunks} {by_age}");
    for n in 0..2 {
        store.forget_batch(&format!("new-{n}")).await.unwrap();
    }
    assert_eq!((store.file().size(), bytes > 0), ((0, 0, 0, 0), true));
}

#[tokio::test]
async fn beyond_the_bound_the_oldest_finished_batches_go_first_and_then_new_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, HOUR, 100_000);
    store.create_batch(&spec("unfinished", 2)).await.unwrap();
    for n in 0..30 {
        finish(&store, &format!("b-{n}"), 10_000).await;
        // So that each is older than the next.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (batches, .., bytes) = store.file().size();
    assert!(bytes <= 100_000 && batches > 8, "{batches} {bytes}");
    assert!(store.batch("unfinished").await.unwrap().is_some());
    assert_eq!(store.batch("b-10").await.unwrap(), None);
    assert!(store.batch("b-29").await.unwrap().is_some());
    assert!(store.batch("b-24").await.unwrap().is_some());

    let mut refused = None;
    for n in 0..2000 {
        if let Err(error) = store.create_batch(&spec(&format!("{n}-{}", "n".repeat(300)), 1)).await {
            refused = Some((n, error));
            break;
        }
    }
    let (n, error) = refused.unwrap();
    assert!(n > 50 && error.is_transient(), "{n} {}", error.in_full());
    assert!(error.in_full().contains("the limit is 100000"), "{}", error.in_full());
    assert!(store.batch("b-29").await.unwrap().is_none(), "a finished one was kept");
    // Existing batches continue.
    assert!(!store.complete_chunk(&spec("unfinished", 2), 0, "p", 10, 0).await.unwrap().to_finish);
}

#[tokio::test]
async fn a_full_disk_passes_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, HOUR, MAX_BYTES);
    let spec = spec("b", 2);
    store.create_batch(&spec).await.unwrap();
    let full = Arc::clone(&store.file().database().disk_full);
    full.store(true, Ordering::SeqCst);
    let error = store.complete_chunk(&spec, 0, "p", 10, 0).await.unwrap_err();
    assert!(error.is_transient() && error.in_full().contains("batches.redb"), "{}", error.in_full());
    full.store(false, Ordering::SeqCst);
    assert_eq!(store.batch("b").await.unwrap().unwrap().chunks_done, 0);
    assert_eq!(store.complete_chunk(&spec, 0, "q", 10, 0).await.unwrap().owner, "q");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_waits_for_no_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir, HOUR, MAX_BYTES));
    store.create_batch(&spec("b", 1000)).await.unwrap();
    finish(&store, "old", 100).await;
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for chunk in 0..200 {
                store.complete_chunk(&spec("b", 1000), chunk, "p", 10, 0).await.unwrap();
            }
        }
    });
    let (mut times, mut last) = (Vec::new(), 0);
    loop {
        let start = Instant::now();
        let status = store.batch("b").await.unwrap().unwrap();
        times.push(start.elapsed());
        assert!(status.chunks_done >= last, "{} after {last}", status.chunks_done);
        last = status.chunks_done;
        assert!(store.batch("old").await.unwrap().is_some());
        if writing.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    writing.await.unwrap();
    assert_eq!(store.batch("b").await.unwrap().unwrap().chunks_done, 200);
    times.sort();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(1), "{median:?} of {} at the median", times.len());
}

#[test]
fn batches_outlive_a_loss_of_power_at_any_moment() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = tempfile::tempdir().unwrap();
    let disk = SimulatedDisk::watch(root.path());
    let open = |dir: &Path| EmbeddedBatchStatus::open(dir.join("state"), HOUR).unwrap();
    let status = |store: &EmbeddedBatchStatus| runtime.block_on(store.batch("b")).unwrap();
    let mut seen = vec![None];
    let store = open(root.path());
    let work = spec("b", 2);
    for step in 0..6 {
        runtime.block_on(async {
            match step {
                0 => drop(store.create_batch(&work).await.unwrap()),
                1 => store.batch_submitted("b").await.unwrap(),
                2 => store.begin_work("p", None, 1).await.unwrap(),
                3 => drop(store.complete_chunk(&work, 0, "p", 9, 1).await.unwrap()),
                4 => drop(store.complete_chunk(&work, 1, "p", 8, 2).await.unwrap()),
                _ => drop(store.finish_batch(&work, &outcome(10)).await.unwrap()),
            }
        });
        seen.push(status(&store));
        disk.acknowledge();
    }
    after_each_loss(&disk.kill_points(), |dir, acknowledged, lost| {
        let store = open(dir);
        assert_eq!(store.quarantined(), None, "{lost:?} after {acknowledged}");
        let (found, behind) = (status(&store), seen.get(acknowledged + 1));
        assert!(
            found == seen[acknowledged] || behind == Some(&found),
            "{lost:?} after {acknowledged}: {found:?}"
        );
        // The start of the work counts.
        let starts = runtime.block_on(store.work_starts("p")).unwrap();
        assert!(acknowledged < 3 || starts.starts >= 1, "{lost:?}: {starts:?}");
    });
}
