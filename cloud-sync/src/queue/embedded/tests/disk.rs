//! Results that wait for space in the outbox, and power failures at any moment: they lose no job and publish no result
//! twice.

use std::collections::BTreeSet;

use super::*;
use crate::durable::simulated::{SimulatedDisk, after_each_loss};

const MAX_BYTES: u64 = 1 << 20;

/// Of a batch whose URLs were all refused: as many results as a message has, each as large as one may be.
fn refused(job: usize) -> Vec<ResultRecord> {
    (0..64).map(|n| result(&format!("item-{job}-{n}"), 700)).collect()
}

async fn flood(queue: &EmbeddedQueue, waiting: &mut Vec<(usize, Delivery)>) -> Vec<SyncError> {
    let mut errors = Vec::new();
    for (job, delivery) in std::mem::take(waiting) {
        match queue.settle(&delivery, refused(job)).await {
            Ok(settled) => assert_eq!(settled, Settled::Done),
            Err(error) => {
                errors.push(error);
                waiting.push((job, delivery));
            }
        }
    }
    errors
}

/// A small outbox, from which what the consumer has taken is gone at once.
fn small(when_full: WhenFull) -> Place {
    Place::with(|config| {
        *config = OutboxConfig {
            max_bytes: MAX_BYTES,
            segment_bytes: 64 << 10,
            has_consumer: true,
            keep_committed: Duration::ZERO,
            when_full,
            ..config.clone()
        };
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_of_a_flood_wait_until_events_are_sent_and_predictions_do_not() {
    const JOBS: usize = 60;
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let place = small(when_full);
        let config = EmbeddedQueueConfig { inflight: JOBS, ..place.config() };
        let mut queue = EmbeddedQueue::open(config, Arc::clone(&place.outbox)).unwrap();
        // Nothing is sent while it waits.
        queue.room_wait = Duration::ZERO;
        submit(&queue, &[10; JOBS]).await.unwrap();
        let mut waiting = Vec::new();
        for job in 0..JOBS {
            waiting.push((job, receive(&queue).await));
        }
        let (mut sent, mut reader) = (Vec::new(), Reader::open(place.outbox.dir()).unwrap());
        let mut predictions = 0;
        let mut rounds = 0;
        while !waiting.is_empty() {
            rounds += 1;
            assert!(rounds < 20, "{} jobs wait for ever", waiting.len());
            let errors = flood(&queue, &mut waiting).await;
            for error in &errors {
                assert!(error.is_transient(), "{}", error.in_full());
                assert!(error.in_full().contains("bulk events take"), "{}", error.in_full());
            }
            for _ in 0..200 {
                let prediction = result(&format!("prediction-{predictions}"), 1000);
                place.outbox.append(prediction.payload.into()).await.unwrap();
                predictions += 1;
            }
            let stats = place.outbox.stats();
            assert_eq!((stats.dropped_by_size, stats.dropped_by_age), (0, 0));
            assert!(stats.bulk_bytes <= MAX_BYTES / 2, "{stats:?}");
            // Now it is.
            while let Some(event) = reader.try_next().unwrap() {
                sent.push(serde_json::from_slice::<Value>(&event.payload).unwrap()["id"].to_string());
            }
            place.outbox.commit(place.outbox.last_sequence()).unwrap();
        }
        assert!(rounds > 3, "the share was never used up");
        let distinct: BTreeSet<_> = sent.iter().collect();
        assert_eq!((sent.len(), distinct.len()), (JOBS * 64 + predictions, JOBS * 64 + predictions));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settlement_waits_for_room_and_is_done_once_there_is_some() {
    let place = Place::with(|config| {
        (config.max_bytes, config.has_consumer, config.when_full) = (64 << 10, true, WhenFull::Refuse);
    });
    let mut queue = place.open();
    queue.room_wait = Duration::from_secs(120);
    // Of the share, which is half, one takes more than half.
    let large = |id: &str| (0..4).map(|n| result(&format!("{id}{n}"), 6000)).collect::<Vec<_>>();
    submit(&queue, &[10, 10]).await.unwrap();
    let (first, second) = (receive(&queue).await, receive(&queue).await);
    assert_eq!(queue.settle(&first, large("a")).await.unwrap(), Settled::Done);
    let (settled, ()) = tokio::join!(queue.settle(&second, large("b")), async {
        // However late it comes.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(place.published(), ["a0", "a1", "a2", "a3"]);
        place.outbox.commit(4).unwrap();
    });
    assert_eq!(settled.unwrap(), Settled::Done);
    assert_eq!(place.published(), ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settlement_larger_than_the_share_goes_in_parts_and_nothing_is_published_twice() {
    const RESULTS: usize = 64;
    for (when_full, restarts) in
        [(WhenFull::Refuse, false), (WhenFull::Refuse, true), (WhenFull::DropOldest, true)]
    {
        let place = small(when_full);
        let large = || (0..RESULTS).map(|n| result(&format!("item-{n}"), 20_000)).collect::<Vec<_>>();
        let mut queue = place.open();
        queue.room_wait = Duration::ZERO;
        submit(&queue, &[10]).await.unwrap();
        let mut delivery = receive(&queue).await;
        let (mut sent, mut reader) = (Vec::new(), Reader::open(place.outbox.dir()).unwrap());
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 20, "it waits for ever");
            let settled = queue.settle(&delivery, large()).await;
            assert!(place.outbox.stats().bulk_bytes <= MAX_BYTES / 2, "{:?}", place.outbox.stats());
            // Predictions have their part.
            for n in 0..200 {
                place.outbox.append(result(&format!("prediction-{n}"), 1000).payload.into()).await.unwrap();
            }
            while let Some(event) = reader.try_next().unwrap() {
                let id = serde_json::from_slice::<Value>(&event.payload).unwrap()["id"].to_string();
                sent.extend(id.contains("item").then_some(id));
            }
            place.outbox.commit(place.outbox.last_sequence()).unwrap();
            match settled {
                Ok(settled) => break assert_eq!(settled, Settled::Done),
                Err(error) => assert!(publish::waits_for_room(&error), "{}", error.in_full()),
            }
            for n in 0.. {
                assert!(n < 5000, "sent events are kept");
                if place.published().iter().all(|id| !id.contains("item")) {
                    break;
                }
                place.outbox.append(result("prediction", 1000).payload.into()).await.unwrap();
                place.outbox.commit(place.outbox.last_sequence()).unwrap();
            }
            if restarts {
                queue.close().await;
                drop(queue);
                queue = place.open();
                queue.room_wait = Duration::ZERO;
                delivery = receive(&queue).await;
            }
        }
        assert!(rounds > 2, "all had room at once");
        assert_eq!(sent.len(), RESULTS);
        assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), RESULTS);
        assert_eq!(place.outbox.stats().dropped_by_size, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settlement_waits_also_while_other_events_have_all_of_the_outbox() {
    let place = Place::with(|config| {
        (config.max_bytes, config.has_consumer, config.when_full) = (64 << 10, true, WhenFull::Refuse);
    });
    let mut queue = place.open();
    queue.room_wait = Duration::from_secs(120);
    submit(&queue, &[10]).await.unwrap();
    let delivery = receive(&queue).await;
    while place.outbox.append(result("prediction", 4000).payload.into()).await.is_ok() {}
    let (settled, ()) = tokio::join!(queue.settle(&delivery, vec![result("a", 5000)]), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        place.outbox.commit(place.outbox.last_sequence()).unwrap();
    });
    assert_eq!(settled.unwrap(), Settled::Done);
    assert_eq!(place.published().last().map(String::as_str), Some("a"));
}

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
