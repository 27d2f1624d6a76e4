//! The same promises on the embedded stores: with a process that ends repeatedly, and with a slow batch beside others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::batch_status::{BatchPhase, BatchStatusStore, EmbeddedBatchStatus};
use cloud_sync::blob::{BlobKey, BlobStore, DirStore};
use cloud_sync::event::{Event, EventBody, ItemOutcome};
use cloud_sync::outbox::{Outbox, OutboxConfig, Reader};
use cloud_sync::queue::{EmbeddedQueue, EmbeddedQueueConfig, JobQueue, NewJob};

use super::failures::silent;
use super::world::{World, messages, pictures};

const IMAGES: usize = 60;

/// Opens the queue as a process does that starts while the previous one still runs.
async fn open(dir: &Path, outbox: &Arc<Outbox>) -> Arc<EmbeddedQueue> {
    for _ in 0..6000 {
        let config = EmbeddedQueueConfig { dir: dir.join("queue"), inflight: 2, max_bytes: 1 << 20 };
        match EmbeddedQueue::open(config, Arc::clone(outbox)) {
            Ok(queue) => return Arc::new(queue),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("the queue can't be opened again");
}

fn state_and_blobs(dir: &Path) -> (Arc<dyn BatchStatusStore>, Arc<dyn BlobStore>) {
    let day = Duration::from_secs(86_400);
    let state = EmbeddedBatchStatus::open(dir.join("state"), day).unwrap();
    let blob = DirStore::open(dir.join("blobs")).unwrap();
    (Arc::new(state), Arc::new(blob))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_stores_keep_every_result_through_many_ends() {
    let world = World::new(&pictures().await, i64::MAX);
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = Outbox::open(OutboxConfig::new(dir.path().join("outbox"))).unwrap();
    let outbox = Arc::new(outbox);
    let (state, blob) = state_and_blobs(dir.path());

    let url = |i: usize| if i % 3 == 2 { "nothing".to_owned() } else { format!("{}/{}", world.base, i % 16) };
    let urls: Vec<_> = (0..IMAGES).map(url).collect();
    let mut queue = open(dir.path(), &outbox).await;
    let job = |payload| Ok(NewJob { key: "b".into(), payload });
    queue.submit(&mut messages("b", &urls, 5).into_iter().map(job)).await.unwrap();

    // With increasing lifetimes, so that the work ends on a loaded machine, too.
    for round in 0..400 {
        let worker = world.worker_on(queue.clone(), Arc::clone(&state), Arc::clone(&blob));
        let running = tokio::spawn(worker.run(std::future::pending()));
        tokio::time::sleep(Duration::from_millis(3 + (round % 23) * (1 + round / 20))).await;
        running.abort();
        let _ = running.await;
        drop(queue);
        queue = open(dir.path(), &outbox).await;
        if queue.stats().waiting == Some(0) {
            break;
        }
    }
    assert_eq!(queue.stats().waiting, Some(0), "the work does not end");

    let mut published: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut summaries = Vec::new();
    let mut reader = Reader::open(outbox.dir()).unwrap();
    while let Some(event) = reader.try_next().unwrap() {
        match Event::from_json(&event.payload).unwrap().body {
            EventBody::BatchItem(item) => {
                let line = serde_json::to_vec(&item).unwrap();
                assert!(published.insert(item.index, line).is_none(), "image {} twice", item.index);
            }
            EventBody::Batch(summary) => summaries.push(summary),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(published.len(), IMAGES);
    let results = blob.get(&BlobKey::new("results/b.jsonl").unwrap(), 1 << 20).await.unwrap().unwrap();
    let lines: Vec<_> =
        std::str::from_utf8(&results).unwrap().lines().map(|l| l.as_bytes().to_vec()).collect();
    assert_eq!(lines, published.into_values().collect::<Vec<_>>());
    let codes = lines.iter().filter_map(|line| {
        let item: cloud_sync::event::BatchItem = serde_json::from_slice(line).unwrap();
        let ItemOutcome::Failed { code, .. } = item.outcome else { return None };
        Some(code)
    });
    // This many ends within milliseconds may hit one image repeatedly, which is given up then.
    let (crashed, failed): (Vec<_>, Vec<_>) = codes.partition(|code| code == "worker_crashed");
    assert!(
        failed.len() <= IMAGES / 3 && failed.len() + crashed.len() >= IMAGES / 3,
        "{failed:?} {crashed:?}"
    );
    let failed = (failed.len() + crashed.len()) as u64;
    let [summary] = summaries.as_slice() else { panic!("{summaries:?}") };
    assert_eq!((summary.completed, summary.failed), (IMAGES as u64 - failed, failed));
    let status = state.batch("b").await.unwrap().unwrap();
    let outcome = status.outcome.expect("no outcome");
    assert_eq!((outcome.completed, outcome.failed), (IMAGES as u64 - failed, failed));
    assert_eq!(blob.list("batches/", None).await.unwrap().objects, Vec::new());
}

async fn submit(queue: &EmbeddedQueue, id: &str, urls: &[String], chunk: usize) {
    let messages = messages(id, urls, chunk).into_iter().enumerate();
    let mut jobs = messages.map(|(n, payload)| Ok(NewJob { key: format!("{id}/{n}"), payload }));
    queue.submit(&mut jobs).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_batch_is_finished_beside_a_large_one_of_servers_that_never_answer() {
    let world = World::new(&pictures().await, i64::MAX);
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = Outbox::open(OutboxConfig::new(dir.path().join("outbox"))).unwrap();
    let config = EmbeddedQueueConfig { dir: dir.path().join("queue"), inflight: 4, max_bytes: 1 << 20 };
    let queue = Arc::new(EmbeddedQueue::open(config, Arc::new(outbox)).unwrap());
    let (state, blob) = state_and_blobs(dir.path());

    let (tarpit, mut asks) = silent().await;
    submit(&queue, "large", &vec![tarpit; 90], 5).await;
    let mut worker = world.worker_on(queue.clone(), Arc::clone(&state), blob);
    worker.config.inflight = 4;
    let running = tokio::spawn(worker.run(std::future::pending()));
    // All that the large batch may have is waiting for servers.
    for _ in 0..3 {
        asks.recv().await.unwrap();
    }
    let urls: Vec<_> = (0..20).map(|i| format!("{}/{}", world.base, i % 16)).collect();
    for id in ["small", "next"] {
        submit(&queue, id, &urls, 5).await;
        let finished = async {
            loop {
                let status = state.batch(id).await.unwrap();
                if let Some(status) = status.filter(|status| status.phase.is_final()) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let status =
            tokio::time::timeout(Duration::from_secs(120), finished).await.expect("it was held back");
        assert_eq!((status.phase, status.completed), (BatchPhase::Completed, 20));
        let large = state.batch("large").await.unwrap().unwrap();
        assert_eq!(large.phase, BatchPhase::Processing);
        assert!(large.chunks_done < 9, "half of the large batch is done");
    }
    running.abort();
}
