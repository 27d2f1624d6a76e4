//! The same promises on the embedded stores, with a process that ends again and again in the middle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::batch_status::{BatchStatusStore, EmbeddedBatchStatus};
use cloud_sync::blob::{BlobKey, BlobStore, DirStore};
use cloud_sync::event::{Event, EventBody, ItemOutcome};
use cloud_sync::outbox::{Outbox, OutboxConfig, Reader};
use cloud_sync::queue::{EmbeddedQueue, EmbeddedQueueConfig, JobQueue, NewJob};

use super::world::{World, messages, pictures};

const IMAGES: usize = 60;

/// Opens the queue as a process does that starts while the one before is still going.
async fn open(dir: &std::path::Path, outbox: &Arc<Outbox>) -> Arc<EmbeddedQueue> {
    for _ in 0..6000 {
        let config = EmbeddedQueueConfig { dir: dir.join("queue"), inflight: 2, max_bytes: 1 << 20 };
        match EmbeddedQueue::open(config, Arc::clone(outbox)) {
            Ok(queue) => return Arc::new(queue),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("the queue can't be opened again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_stores_keep_every_result_through_many_ends() {
    let world = World::new(&pictures().await, i64::MAX);
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = Outbox::open(OutboxConfig::new(dir.path().join("outbox"))).unwrap();
    let outbox = Arc::new(outbox);
    let day = Duration::from_secs(86_400);
    let state = EmbeddedBatchStatus::open(dir.path().join("state"), day).unwrap();
    let state: Arc<dyn BatchStatusStore> = Arc::new(state);
    let blob: Arc<dyn BlobStore> = Arc::new(DirStore::open(dir.path().join("blobs")).unwrap());

    let url = |i: usize| if i % 3 == 2 { "nothing".to_owned() } else { format!("{}/{}", world.base, i % 16) };
    let urls: Vec<_> = (0..IMAGES).map(url).collect();
    let mut queue = open(dir.path(), &outbox).await;
    let job = |payload| Ok(NewJob { key: "b".into(), payload });
    queue.submit(&mut messages("b", &urls, 5).into_iter().map(job)).await.unwrap();

    // With longer and longer lives, so that the work ends on a loaded machine, too.
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
    // So many ends within milliseconds may meet one image again and again, which is given up then.
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
