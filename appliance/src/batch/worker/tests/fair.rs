//! A batch that goes slowly does not hold back one that comes later.

use std::sync::Arc;
use std::time::Duration;

use cloud_sync::batch_status::{BatchPhase, BatchStatusStore, EmbeddedBatchStatus};
use cloud_sync::blob::{BlobStore, DirStore};
use cloud_sync::outbox::{Outbox, OutboxConfig};
use cloud_sync::queue::{EmbeddedQueue, EmbeddedQueueConfig, JobQueue, NewJob};

use super::failures::silent;
use super::world::{World, messages, pictures};

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
    let day = Duration::from_secs(86_400);
    let state = EmbeddedBatchStatus::open(dir.path().join("state"), day).unwrap();
    let state: Arc<dyn BatchStatusStore> = Arc::new(state);
    let blob: Arc<dyn BlobStore> = Arc::new(DirStore::open(dir.path().join("blobs")).unwrap());

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
