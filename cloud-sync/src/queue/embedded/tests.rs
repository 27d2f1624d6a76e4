//! Tests of what is specific to the queue in a file: its limit, its disk, and interrupted settlements.

mod disk;

use std::path::Path;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;

use super::file::Mark;
use super::*;
use crate::outbox::{OutboxConfig, OutboxError, Reader, WhenFull};

const SOON: Duration = Duration::from_secs(60);

struct Place {
    dir: TempDir,
    outbox: Arc<Outbox>,
}

impl Place {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut OutboxConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = OutboxConfig::new(dir.path().join("outbox"));
        change(&mut config);
        Self { outbox: Arc::new(Outbox::open(config).unwrap().0), dir }
    }

    fn config(&self) -> EmbeddedQueueConfig {
        EmbeddedQueueConfig { dir: self.dir.path().join("queue"), inflight: 8, max_bytes: 1 << 20 }
    }

    fn open(&self) -> EmbeddedQueue {
        EmbeddedQueue::open(self.config(), Arc::clone(&self.outbox)).unwrap()
    }

    fn published(&self) -> Vec<String> {
        let id = |payload: &[u8]| {
            serde_json::from_slice::<Value>(payload).unwrap()["id"].as_str().map(str::to_owned)
        };
        let events = Reader::open(self.outbox.dir()).unwrap();
        events.filter_map(|event| id(&event.unwrap().payload)).collect()
    }
}

fn job(bytes: usize) -> SyncResult<NewJob> {
    Ok(NewJob { key: "k".into(), payload: vec![b'x'; bytes].into() })
}

async fn submit(queue: &EmbeddedQueue, sizes: &[usize]) -> SyncResult<u64> {
    queue.submit(&mut sizes.iter().map(|bytes| job(*bytes))).await
}

async fn receive(queue: &EmbeddedQueue) -> Delivery {
    queue.receive(SOON).await.unwrap().unwrap()
}

fn result(id: &str, bytes: usize) -> ResultRecord {
    let payload = format!(r#"{{"id":"{id}","filler":"{}"}}"#, "x".repeat(bytes));
    ResultRecord { id: id.into(), key: String::new(), payload: payload.into() }
}

fn results(ids: &[&str]) -> Vec<ResultRecord> {
    ids.iter().map(|id| result(id, 0)).collect()
}

#[tokio::test]
async fn a_full_queue_says_so_and_takes_nothing() {
    let place = Place::new();
    let queue = place.open();
    submit(&queue, &[600_000, 400_000]).await.unwrap();
    let error = submit(&queue, &[10_000, 30_000, 10_000]).await.unwrap_err();
    assert!(error.is_transient() && error.in_full().contains("is full"), "{}", error.in_full());
    let expected = QueueFull { waiting: 1_000_000, needed: 50_000, max_bytes: 1 << 20 };
    assert_eq!(QueueFull::of(&error), Some(&expected));
    assert_eq!(queue.stats().waiting, Some(2));
    let error = submit(&queue, &[600_000, 600_000]).await.unwrap_err();
    assert!(!error.is_transient() && QueueFull::of(&error).is_some(), "{}", error.in_full());

    // A job in progress still takes its space; a settled one does not, also after a restart.
    let first = receive(&queue).await;
    assert!(submit(&queue, &[50_000]).await.is_err());
    assert_eq!(queue.settle(&first, Vec::new()).await.unwrap(), Settled::Done);
    drop(queue);
    let queue = place.open();
    submit(&queue, &[600_000, 48_576]).await.unwrap();
    assert!(QueueFull::of(&submit(&queue, &[1]).await.unwrap_err()).is_some());
    assert_eq!(queue.stats().waiting, Some(3));
}

#[tokio::test]
async fn settings_out_of_bounds_and_files_of_others_are_refused() {
    let place = Place::new();
    let refused = |config: EmbeddedQueueConfig| {
        let error = EmbeddedQueue::open(config, Arc::clone(&place.outbox)).unwrap_err();
        assert!(!error.is_transient());
        error.in_full()
    };
    assert!(refused(EmbeddedQueueConfig { inflight: 0, ..place.config() }).contains("inflight is 0"));
    assert!(refused(EmbeddedQueueConfig { max_bytes: 0, ..place.config() }).contains("max_bytes is 0"));
    let queue = place.open();
    let text = refused(place.config());
    assert!(text.contains("queue.redb is in use"), "{text}");
    drop(queue);
    std::fs::write(place.dir.path().join("queue/queue.redb"), "something else").unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_quarantined_and_a_bounded_number_is_kept() {
    let place = Place::new();
    let dir = place.dir.path().join("queue");
    drop(place.open());
    for n in 0..5 {
        let garbage = format!("something else {n}");
        std::fs::write(dir.join("queue.redb"), &garbage).unwrap();
        let queue = place.open();
        let aside = queue.quarantined().expect("nothing was quarantined").to_owned();
        assert_eq!(std::fs::read_to_string(aside).unwrap(), garbage);
        submit(&queue, &[10]).await.unwrap();
        assert!(receive(&queue).await.position.starts_with("queue-"));
    }
    assert!(place.open().quarantined().is_none());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1 + 3);
}

#[tokio::test]
async fn a_full_disk_passes_and_nothing_is_lost_or_doubled() {
    let place = Place::new();
    let queue = place.open();
    submit(&queue, &[10, 10]).await.unwrap();
    let (first, second) = (receive(&queue).await, receive(&queue).await);
    let full = Arc::clone(&queue.shared.file.database().disk_full);
    full.store(true, Ordering::SeqCst);
    for error in
        [submit(&queue, &[500_000]).await.map(drop), queue.settle(&first, results(&["a"])).await.map(drop)]
    {
        let error = error.unwrap_err();
        assert!(error.is_transient() && error.in_full().contains("queue.redb"), "{}", error.in_full());
    }
    full.store(false, Ordering::SeqCst);
    // Jobs in progress stay in progress.
    assert!(queue.receive(Duration::ZERO).await.unwrap().is_none());
    assert_eq!(queue.settle(&first, results(&["a"])).await.unwrap(), Settled::Done);
    assert_eq!(queue.settle(&second, results(&["b"])).await.unwrap(), Settled::Done);
    submit(&queue, &[500_000]).await.unwrap();
    assert_eq!(receive(&queue).await.payload.len(), 500_000);
    assert_eq!(place.published(), ["a", "b"]);
}

#[tokio::test]
async fn a_job_that_is_gone_though_its_removal_failed_is_done_and_published_once() {
    let place = Place::new();
    let queue = place.open();
    submit(&queue, &[10]).await.unwrap();
    let delivery = receive(&queue).await;
    let (file, outbox) = (&queue.shared.file, &place.outbox);
    // A settlement whose last step reached the disk, and reported an error: the job is still in progress.
    let sequence = queue.sequence(&delivery).unwrap();
    let mark = file.mark(sequence, outbox.last_sequence()).unwrap();
    let mut progress = Progress::default();
    let room = publish::room(outbox, None, &results(&["a", "b"]), &mut progress).unwrap();
    let none = || Ok(std::collections::HashSet::new());
    publish::publish(outbox, mark, results(&["a", "b"]), room, &mut progress, none).unwrap();
    file.remove(sequence).unwrap();
    assert_eq!(queue.settle(&delivery, results(&["a", "b"])).await.unwrap(), Settled::Done);
    assert_eq!(place.published(), ["a", "b"]);
}

#[tokio::test]
async fn a_full_outbox_passes_and_nothing_is_doubled() {
    let place = Place::with(|config| {
        config.max_bytes = 64 << 10;
        config.segment_bytes = 16 << 10;
        config.when_full = WhenFull::Refuse;
    });
    let mut queue = place.open();
    queue.room_wait = Duration::ZERO;
    submit(&queue, &[10]).await.unwrap();
    let delivery = receive(&queue).await;
    let ids: Vec<_> = (0..20).map(|n| format!("id-{n}")).collect();
    let results = || ids.iter().map(|id| result(id, 5000)).collect::<Vec<_>>();
    let error = queue.settle(&delivery, results()).await.unwrap_err();
    assert!(error.is_transient(), "{}", error.in_full());
    let source = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<OutboxError>());
    assert!(source.is_some_and(OutboxError::is_full), "{}", error.in_full());
    let before = place.published();
    assert!(!before.is_empty() && before.len() < 20, "{before:?}");
    assert_eq!(queue.stats().inflight, 1);

    // The uplink advances, and what it has sent frees space.
    let mut seen = before;
    let start = Instant::now();
    loop {
        place.outbox.commit(place.outbox.last_sequence()).unwrap();
        let settled = queue.settle(&delivery, results()).await;
        for id in place.published() {
            if !seen.contains(&id) {
                seen.push(id);
            }
        }
        match settled {
            Ok(settled) => break assert_eq!(settled, Settled::Done),
            Err(error) => assert!(error.is_transient() && start.elapsed() < SOON, "{}", error.in_full()),
        }
    }
    seen.sort_by_key(|id| ids.iter().position(|other| other == id));
    assert_eq!(seen, ids);
}

#[tokio::test]
async fn a_result_that_cannot_be_published_is_named_and_nothing_is_published() {
    let place = Place::new();
    let queue = place.open();
    submit(&queue, &[10]).await.unwrap();
    let delivery = receive(&queue).await;
    let bad = |id: &str, payload: &'static [u8]| ResultRecord {
        payload: Bytes::from_static(payload),
        ..result(id, 0)
    };
    for (bad, why) in [
        (result("large", 2 << 20), "\"large\" has 2097"),
        (bad("torn", b"{\"id\":\"torn\""), "\"torn\" is not a JSON object"),
        (bad("nameless", b"{}"), "\"nameless\" is not a JSON object with a field \"id\""),
        (bad("one", b"{\"id\":\"two\"}"), "\"one\" has the id \"two\""),
    ] {
        let error = queue.settle(&delivery, vec![result("good", 0), bad]).await.unwrap_err();
        assert!(!error.is_transient() && error.in_full().contains(why), "{}", error.in_full());
        assert!(error.record().is_some_and(|id| error.in_full().contains(id)), "{error:?}");
    }
    assert_eq!(place.published(), Vec::<String>::new());
    assert_eq!(queue.settle(&delivery, results(&["good", "good"])).await.unwrap(), Settled::Done);
    assert_eq!(place.published(), ["good"]);
}

/// State of a settlement that is interrupted after its second step, after `done` of its results.
async fn cut_short(place: &Place, done: &[&str]) {
    let queue = place.open();
    submit(&queue, &[10]).await.unwrap();
    let sequence = queue.sequence(&receive(&queue).await).unwrap();
    let mark = queue.shared.file.mark(sequence, place.outbox.last_sequence()).unwrap();
    assert_eq!(mark, Mark::Fresh);
    for id in done {
        place.outbox.append(result(id, 0).payload.into()).await.unwrap();
        place.outbox.append(b"{\"kind\":\"of somebody else\"}".to_vec()).await.unwrap();
    }
}

#[tokio::test]
async fn a_settlement_that_was_cut_short_publishes_what_is_missing() {
    let place = Place::new();
    // Before the mark: the same names do not count.
    place.outbox.append(result("b", 0).payload.into()).await.unwrap();
    for (done, added) in [(&[][..], &["a", "b", "c"][..]), (&["a"], &["b", "c"]), (&["a", "b", "c"], &[])] {
        cut_short(&place, done).await;
        let before = place.published().len();
        let queue = place.open();
        let delivery = receive(&queue).await;
        assert_eq!(queue.settle(&delivery, results(&["a", "b", "c"])).await.unwrap(), Settled::Done);
        assert_eq!(place.published()[before..], *added);
        assert_eq!(queue.stats(), QueueStats { waiting: Some(0), partitions: 1, ..QueueStats::default() });
    }
}

#[tokio::test]
async fn an_outbox_that_was_deleted_since_is_looked_through_from_its_start() {
    let mut place = Place::new();
    for _ in 0..20 {
        place.outbox.append(b"{\"id\":\"x\"}".to_vec()).await.unwrap();
    }
    cut_short(&place, &["a"]).await;
    drop(std::mem::replace(&mut place.outbox, Arc::new(open_outbox(&place.dir.path().join("other")))));
    place.outbox.append(result("b", 0).payload.into()).await.unwrap();
    let queue = place.open();
    let delivery = receive(&queue).await;
    assert_eq!(queue.settle(&delivery, results(&["a", "b"])).await.unwrap(), Settled::Done);
    assert_eq!(place.published(), ["b", "a"]);
}

fn open_outbox(dir: &Path) -> Outbox {
    Outbox::open(OutboxConfig::new(dir)).unwrap().0
}

#[tokio::test]
async fn a_delivery_of_an_earlier_handle_is_lost() {
    let place = Place::new();
    let queue = place.open();
    submit(&queue, &[10]).await.unwrap();
    let old = receive(&queue).await;
    queue.close().await;
    assert_eq!(queue.settle(&old, results(&["a"])).await.unwrap(), Settled::Lost);
    assert!(queue.receive(Duration::ZERO).await.unwrap_err().in_full().contains("closed"));
    assert!(submit(&queue, &[10]).await.unwrap_err().in_full().contains("closed"));
    let queue = place.open();
    let new = receive(&queue).await;
    assert_eq!((&new.position, &new.payload), (&old.position, &old.payload));
    assert_eq!(queue.settle(&old, results(&["a"])).await.unwrap(), Settled::Lost);
    queue.release(old).await;
    assert_eq!(queue.stats().inflight, 1);
    assert_eq!(queue.settle(&new, results(&["a"])).await.unwrap(), Settled::Done);
    assert_eq!(place.published(), ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settlement_that_is_given_up_happens_or_not_and_never_twice() {
    let place = Place::new();
    let queue = place.open();
    let (mut done, mut given_up) = (0, 0);
    for n in 0..40_u64 {
        submit(&queue, &[10]).await.unwrap();
        let id = format!("id-{n}");
        let timeout = Duration::from_micros(n * 97 % 4000);
        loop {
            let Some(delivery) = queue.receive(Duration::ZERO).await.unwrap() else {
                // In progress until the abandoned settlement ends, and then done or returned.
                if queue.stats() == (QueueStats { waiting: Some(0), partitions: 1, ..QueueStats::default() })
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let settling = queue.settle(&delivery, results(&[&id]));
            match tokio::time::timeout(timeout, settling).await {
                Ok(settled) => {
                    assert_eq!(settled.unwrap(), Settled::Done);
                    done += 1;
                }
                Err(_) => {
                    queue.release(delivery).await;
                    given_up += 1;
                }
            }
        }
    }
    assert_eq!(place.published(), (0..40).map(|n| format!("id-{n}")).collect::<Vec<_>>());
    assert!(given_up > 0, "{done} done, none given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submission_that_is_given_up_leaves_nothing() {
    let place = Place::new();
    let config = EmbeddedQueueConfig { max_bytes: u64::MAX, ..place.config() };
    let queue = EmbeddedQueue::open(config, Arc::clone(&place.outbox)).unwrap();
    let mut endless = std::iter::repeat_with(|| job(100));
    tokio::time::timeout(Duration::from_millis(30), queue.submit(&mut endless)).await.unwrap_err();
    assert_eq!(submit(&queue, &[7]).await.unwrap(), 1);
    assert_eq!(queue.stats().waiting, Some(1));
    assert_eq!(receive(&queue).await.payload.len(), 7);
    assert!(queue.receive(Duration::ZERO).await.unwrap().is_none());
}

async fn names(queue: &EmbeddedQueue) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(delivery) = queue.receive(Duration::ZERO).await.unwrap() {
        names.push(String::from_utf8(delivery.payload.to_vec()).unwrap());
    }
    names
}

async fn submit_batch(queue: &EmbeddedQueue, id: &str, jobs: usize) {
    let job = |n| format!("{id}/{n}");
    let mut jobs = (0..jobs).map(|n| Ok(NewJob { key: job(n), payload: job(n).into() }));
    queue.submit(&mut jobs).await.unwrap();
}

#[tokio::test]
async fn batches_take_turns_and_none_takes_all_places() {
    let place = Place::new();
    let queue =
        EmbeddedQueue::open(EmbeddedQueueConfig { inflight: 4, ..place.config() }, Arc::clone(&place.outbox))
            .unwrap();
    submit_batch(&queue, "large", 100).await;
    let large = receive(&queue).await;
    assert_eq!(large.payload, "large/0");
    assert_eq!(names(&queue).await, ["large/1", "large/2"], "one place stays free for others");
    submit_batch(&queue, "b", 2).await;
    submit_batch(&queue, "c", 1).await;
    assert_eq!(names(&queue).await, ["b/0"]);
    // A batch with none in progress goes before one with some, and a returned job before the next of its batch.
    queue.release(large).await;
    submit_batch(&queue, "d", 1).await;
    for name in ["c/0", "d/0"] {
        let next = receive(&queue).await;
        assert_eq!(next.payload, name);
        assert_eq!(queue.settle(&next, Vec::new()).await.unwrap(), Settled::Done);
    }
    assert_eq!(names(&queue).await, Vec::<String>::new(), "large has two of four, b one");
    drop(queue);

    // After a restart too; and from then on they alternate.
    let queue =
        EmbeddedQueue::open(EmbeddedQueueConfig { inflight: 1, ..place.config() }, Arc::clone(&place.outbox))
            .unwrap();
    let mut order = Vec::new();
    for n in 0..8 {
        if n == 4 {
            submit_batch(&queue, "e", 1).await;
        }
        let delivery = receive(&queue).await;
        order.push(String::from_utf8(delivery.payload.to_vec()).unwrap());
        assert_eq!(queue.settle(&delivery, Vec::new()).await.unwrap(), Settled::Done);
    }
    let expected = ["large/0", "large/1", "large/2", "large/3", "b/0", "large/4", "b/1", "e/0"];
    assert_eq!(order, expected);
}

#[tokio::test]
async fn jobs_of_a_file_without_turns_go_out_in_their_order() {
    let place = Place::new();
    let queue = place.open();
    submit_batch(&queue, "old", 3).await;
    queue.shared.file.forget_order();
    drop(queue);
    let queue = place.open();
    submit_batch(&queue, "new", 1).await;
    assert_eq!(names(&queue).await, ["old/0", "old/1", "old/2", "new/0"]);
}
