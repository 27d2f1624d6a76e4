//! Power that fails at any moment takes no job and publishes no result twice.

use super::*;
use crate::durable::simulated::{SimulatedDisk, after_each_loss};

enum Promise {
    Submitted(u64),
    Settled(String),
}

#[tokio::test]
async fn jobs_and_results_outlive_a_loss_of_power_at_any_moment() {
    let root = tempfile::tempdir().unwrap();
    let disk = SimulatedDisk::watch(root.path());
    let open = |root: &Path| {
        let outbox = Arc::new(open_outbox(&root.join("data/outbox")));
        let config = EmbeddedQueueConfig { dir: root.join("data/queue"), inflight: 8, max_bytes: 1 << 20 };
        (EmbeddedQueue::open(config, Arc::clone(&outbox)).unwrap(), outbox)
    };
    let mut promises = Vec::new();
    for opening in 0..2 {
        let (queue, _outbox) = open(root.path());
        submit(&queue, &[opening + 1, opening + 1]).await.unwrap();
        promises.push(Promise::Submitted(2));
        disk.acknowledge();
        let delivery = receive(&queue).await;
        let id = format!("result-{opening}");
        assert_eq!(queue.settle(&delivery, results(&[&id])).await.unwrap(), Settled::Done);
        promises.push(Promise::Settled(id));
        disk.acknowledge();
        queue.close().await;
    }
    after_each_loss(&disk.kill_points(), |dir, acknowledged, outcome| {
        let (queue, outbox) = open(dir);
        assert_eq!(queue.quarantined(), None, "{outcome:?} after {acknowledged}");
        let ids: Vec<_> = Reader::open(outbox.dir()).unwrap().map(|e| id_in(&e.unwrap().payload)).collect();
        let (mut submitted, mut settled) = (0, 0);
        for promise in &promises[..acknowledged] {
            match promise {
                Promise::Submitted(jobs) => submitted += jobs,
                Promise::Settled(id) => {
                    assert_eq!(ids.iter().filter(|found| *found == id).count(), 1, "{outcome:?}");
                    settled += 1;
                }
            }
        }
        let waiting = queue.stats().waiting.unwrap();
        // The step under way is done or not.
        let fewest = submitted - settled - u64::from(acknowledged % 2 == 1);
        assert!((fewest..=submitted - settled + 2).contains(&waiting), "{outcome:?}: {waiting} wait");
    });
}

fn id_in(payload: &[u8]) -> String {
    serde_json::from_slice::<Value>(payload).unwrap()["id"].as_str().unwrap().to_owned()
}
