//! The contract of every `BatchStatusStore`, one test per guarantee.
//!
//! A test binary has this file as `mod batch_status` at its root and names its harness once,
//! `batch_status::suite!(MyHarness);`.

#[path = "batch_status_work.rs"]
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use cloud_sync::batch_status::{BatchOutcome, BatchPhase, BatchSpec, BatchStatus, BatchStatusStore, Created};

pub(crate) use work::{
    a_batch_that_is_cancelled_stays_so, a_repeated_start_or_end_of_the_work_counts_once,
    starts_of_the_work_on_a_message_are_counted, what_is_finished_is_not_cancelled,
};

const LONG: Duration = Duration::from_secs(3600);
/// How much earlier something may expire: stores count whole milliseconds, by their own clock.
const TICK: Duration = Duration::from_millis(5);

/// An isolated location for the stores of one test.
#[async_trait]
pub(crate) trait Harness: Send + Sync {
    /// An empty location.
    async fn new() -> Self;

    /// Opens a store there; batches expire `status_ttl` after their last change. The second one is,
    /// where possible, another handle as another process would have it, else the same.
    async fn open(&self, status_ttl: Duration) -> [Arc<dyn BatchStatusStore>; 2];
}

macro_rules! suite {
    ($harness:ty) => { $crate::batch_status::suite!($harness:
        a_batch_that_is_not_known_is_none,
        a_batch_goes_its_way,
        a_batch_is_created_once,
        a_batch_that_was_not_submitted_says_so,
        a_chunk_belongs_to_whoever_completed_it_first,
        a_batch_comes_into_being_with_any_of_its_calls,
        repeats_change_nothing,
        the_first_outcome_counts,
        every_chunk_counts_once_whoever_repeats_it,
        a_batch_is_forgotten_after_its_last_change,
        a_batch_that_was_forgotten_can_come_again,
        names_and_results_of_any_kind_come_back,
        starts_of_the_work_on_a_message_are_counted,
        a_repeated_start_or_end_of_the_work_counts_once,
        a_batch_that_is_cancelled_stays_so,
        what_is_finished_is_not_cancelled,
    ); };
    ($harness:ty: $($promise:ident,)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let harness = <$harness as $crate::batch_status::Harness>::new().await;
            $crate::batch_status::$promise(&harness).await;
        }
    )* };
}
pub(crate) use suite;

fn spec(request_id: &str, total: u64, chunks: u32) -> BatchSpec {
    BatchSpec { request_id: request_id.into(), total, chunks, digest: "0123abcd".into() }
}

fn outcome(completed: u64, failed: u64) -> BatchOutcome {
    BatchOutcome {
        phase: if completed > 0 { BatchPhase::Completed } else { BatchPhase::Failed },
        completed,
        failed,
        results_uri: "s3://fish/results/b.jsonl".into(),
        results: None,
    }
}

async fn status(store: &Arc<dyn BatchStatusStore>, request_id: &str) -> BatchStatus {
    store.batch(request_id).await.unwrap().unwrap()
}

fn counts(status: &BatchStatus) -> (BatchPhase, u64, u64, u32) {
    (status.phase, status.completed, status.failed, status.chunks_done)
}

pub(crate) async fn a_batch_that_is_not_known_is_none<H: Harness>(harness: &H) {
    let [store, _] = harness.open(LONG).await;
    assert_eq!(store.batch("b").await.unwrap(), None);
    store.batch_submitted("b").await.unwrap();
    store.forget_batch("b").await.unwrap();
    assert_eq!(store.batch("b").await.unwrap(), None);
}

pub(crate) async fn a_batch_goes_its_way<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let spec = spec("b", 30, 3);
    let before = SystemTime::now() - Duration::from_secs(2);
    assert_eq!(store.create_batch(&spec).await.unwrap(), Created::New);
    let created = status(&other, "b").await;
    assert_eq!(created.spec, spec);
    assert_eq!((counts(&created), created.submitted), ((BatchPhase::Queued, 0, 0, 0), false));
    assert!(created.created >= before && created.created <= created.updated, "{created:?}");
    assert_eq!(created.outcome, None);
    store.batch_submitted("b").await.unwrap();
    assert!(status(&other, "b").await.submitted);

    let start = other.start_chunk(&spec, 1).await.unwrap();
    assert_eq!((start.created, start.done_by, start.finished), (false, None, false));
    assert_eq!(status(&store, "b").await.phase, BatchPhase::Processing);
    let done = other.complete_chunk(&spec, 1, "p-1", 9, 1).await.unwrap();
    assert_eq!((done.owner.as_str(), done.chunks_done, done.to_finish), ("p-1", 1, false));
    assert_eq!(counts(&status(&store, "b").await), (BatchPhase::Processing, 9, 1, 1));
    let done = store.complete_chunk(&spec, 0, "p-0", 10, 0).await.unwrap();
    assert_eq!((done.owner.as_str(), done.chunks_done, done.to_finish), ("p-0", 2, false));
    let done = other.complete_chunk(&spec, 2, "p-2", 0, 10).await.unwrap();
    assert_eq!((done.owner.as_str(), done.chunks_done, done.to_finish), ("p-2", 3, true));
    assert_eq!(counts(&status(&store, "b").await), (BatchPhase::Processing, 19, 11, 3));

    let outcome = outcome(19, 11);
    other.finish_batch(&spec, &outcome).await.unwrap();
    let finished = status(&store, "b").await;
    assert_eq!(counts(&finished), (BatchPhase::Completed, 19, 11, 3));
    assert!(finished.submitted && finished.phase.is_final());
    assert_eq!(finished.outcome, Some(outcome));
    assert_eq!((finished.spec, finished.created), (spec.clone(), created.created));
    assert!(finished.updated >= created.updated);
    let start = store.start_chunk(&spec, 2).await.unwrap();
    assert_eq!((start.created, start.done_by.as_deref(), start.finished), (false, Some("p-2"), true));
    assert_eq!(status(&store, "b").await.phase, BatchPhase::Completed);
}

pub(crate) async fn a_batch_is_created_once<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let first = spec("b", 30, 3);
    let tasks: Vec<_> = (0..10)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
            let spec = first.clone();
            tokio::spawn(async move { store.create_batch(&spec).await.unwrap() })
        })
        .collect();
    let mut new = 0;
    for task in tasks {
        match task.await.unwrap() {
            Created::New => new += 1,
            Created::Existing(status) => assert_eq!(status.spec, first),
        }
    }
    assert_eq!(new, 1);
    store.complete_chunk(&first, 0, "p-0", 5, 5).await.unwrap();
    let different = BatchSpec { digest: "beef".into(), total: 7, chunks: 1, ..first.clone() };
    let Created::Existing(status) = other.create_batch(&different).await.unwrap() else {
        panic!("created twice");
    };
    assert_eq!((status.spec.clone(), counts(&status)), (first, (BatchPhase::Processing, 5, 5, 1)));
}

pub(crate) async fn a_batch_that_was_not_submitted_says_so<H: Harness>(harness: &H) {
    let [store, _] = harness.open(LONG).await;
    let spec = spec("b", 10, 1);
    store.create_batch(&spec).await.unwrap();
    // A worker may be faster than the record that all messages are in the queue.
    store.start_chunk(&spec, 0).await.unwrap();
    assert!(!status(&store, "b").await.submitted);
    store.batch_submitted("b").await.unwrap();
    store.batch_submitted("b").await.unwrap();
    let now = status(&store, "b").await;
    assert_eq!((now.submitted, now.phase), (true, BatchPhase::Processing));
}

pub(crate) async fn a_chunk_belongs_to_whoever_completed_it_first<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let spec = spec("b", 10, 2);
    store.create_batch(&spec).await.unwrap();
    store.complete_chunk(&spec, 0, "first", 4, 1).await.unwrap();
    let again = other.complete_chunk(&spec, 0, "second", 5, 0).await.unwrap();
    assert_eq!((again.owner.as_str(), again.chunks_done, again.to_finish), ("first", 1, false));
    assert_eq!(other.start_chunk(&spec, 0).await.unwrap().done_by.as_deref(), Some("first"));
    assert_eq!(other.start_chunk(&spec, 1).await.unwrap().done_by, None);
    assert_eq!(counts(&status(&store, "b").await), (BatchPhase::Processing, 4, 1, 1));
}

pub(crate) async fn a_batch_comes_into_being_with_any_of_its_calls<H: Harness>(harness: &H) {
    let [store, _] = harness.open(LONG).await;
    let started = spec("started", 4, 2);
    assert!(store.start_chunk(&started, 1).await.unwrap().created);
    assert!(!store.start_chunk(&started, 0).await.unwrap().created);
    let now = status(&store, "started").await;
    assert_eq!((now.submitted, counts(&now)), (true, (BatchPhase::Processing, 0, 0, 0)));
    assert_eq!(now.spec, started);

    let completed = spec("completed", 4, 1);
    let done = store.complete_chunk(&completed, 0, "p", 3, 1).await.unwrap();
    assert_eq!((done.owner.as_str(), done.chunks_done, done.to_finish), ("p", 1, true));
    let now = status(&store, "completed").await;
    assert_eq!((now.submitted, counts(&now)), (true, (BatchPhase::Processing, 3, 1, 1)));

    let finished = spec("finished", 4, 9);
    store.finish_batch(&finished, &outcome(0, 4)).await.unwrap();
    let now = status(&store, "finished").await;
    assert_eq!((now.submitted, now.phase, now.spec), (true, BatchPhase::Failed, finished));
    assert_eq!(now.outcome, Some(outcome(0, 4)));
}

pub(crate) async fn repeats_change_nothing<H: Harness>(harness: &H) {
    let [store, _] = harness.open(LONG).await;
    let spec = spec("b", 10, 2);
    store.create_batch(&spec).await.unwrap();
    store.complete_chunk(&spec, 0, "p-0", 4, 1).await.unwrap();
    for _ in 0..3 {
        assert_eq!(store.start_chunk(&spec, 0).await.unwrap().done_by.as_deref(), Some("p-0"));
        let done = store.complete_chunk(&spec, 0, "p-0", 4, 1).await.unwrap();
        assert_eq!((done.owner.as_str(), done.chunks_done, done.to_finish), ("p-0", 1, false));
    }
    for _ in 0..3 {
        // It has no outcome: the next caller, after a crash of the previous one, has to finish it.
        let done = store.complete_chunk(&spec, 1, "p-1", 5, 0).await.unwrap();
        assert_eq!((done.owner.as_str(), done.chunks_done, done.to_finish), ("p-1", 2, true));
    }
    assert!(store.complete_chunk(&spec, 0, "p-0", 4, 1).await.unwrap().to_finish);
    assert_eq!(counts(&status(&store, "b").await), (BatchPhase::Processing, 9, 1, 2));
    store.finish_batch(&spec, &outcome(9, 1)).await.unwrap();
    for chunk in [0, 1] {
        let done = store.complete_chunk(&spec, chunk, "late", 5, 0).await.unwrap();
        assert_eq!((done.owner, done.chunks_done, done.to_finish), (format!("p-{chunk}"), 2, false));
    }
    assert_eq!(counts(&status(&store, "b").await), (BatchPhase::Completed, 9, 1, 2));
}

pub(crate) async fn the_first_outcome_counts<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let spec = spec("b", 10, 1);
    store.complete_chunk(&spec, 0, "p", 9, 1).await.unwrap();
    let first = outcome(9, 1);
    store.finish_batch(&spec, &first).await.unwrap();
    let second = BatchOutcome { results_uri: "elsewhere".into(), ..outcome(0, 10) };
    other.finish_batch(&spec, &second).await.unwrap();
    let now = status(&store, "b").await;
    assert_eq!((counts(&now), now.outcome), ((BatchPhase::Completed, 9, 1, 1), Some(first)));
}

pub(crate) async fn every_chunk_counts_once_whoever_repeats_it<H: Harness>(harness: &H) {
    const CHUNKS: u32 = 40;
    const TASKS: usize = 20;
    let stores = harness.open(LONG).await;
    let spec = spec("b", u64::from(CHUNKS) * 10, CHUNKS);
    stores[0].create_batch(&spec).await.unwrap();
    // Every chunk three times, in random order, distributed over the tasks.
    let mut work: Vec<u32> = (0..CHUNKS).flat_map(|chunk| [chunk; 3]).collect();
    fastrand::shuffle(&mut work);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (store, spec) = (Arc::clone(&stores[task % 2]), spec.clone());
            let mine: Vec<_> = work.iter().copied().skip(task).step_by(TASKS).collect();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for chunk in mine {
                    let position = format!("task-{task}");
                    store.start_chunk(&spec, chunk).await.unwrap();
                    // Each task counts differently, so that a second count of a chunk would show.
                    let failed = task as u64 % 10;
                    let done =
                        store.complete_chunk(&spec, chunk, &position, 10 - failed, failed).await.unwrap();
                    seen.push((chunk, done));
                }
                seen
            })
        })
        .collect();
    let (mut owners, mut to_finish, mut highest) = (BTreeMap::new(), 0, 0);
    for task in tasks {
        for (chunk, done) in task.await.unwrap() {
            let owner = owners.entry(chunk).or_insert_with(|| done.owner.clone());
            assert_eq!(*owner, done.owner, "chunk {chunk} has two owners");
            assert_eq!(done.to_finish, done.chunks_done == CHUNKS);
            to_finish += usize::from(done.to_finish);
            highest = highest.max(done.chunks_done);
        }
    }
    assert!(to_finish >= 1 && highest == CHUNKS, "{to_finish} saw the end at {highest}");
    let failed = owners.values().map(|owner| owner["task-".len()..].parse::<u64>().unwrap() % 10).sum();
    let now = status(&stores[1], "b").await;
    assert_eq!(counts(&now), (BatchPhase::Processing, spec.total - failed, failed, CHUNKS));
}

pub(crate) async fn a_batch_is_forgotten_after_its_last_change<H: Harness>(harness: &H) {
    let ttl = Duration::from_secs(2);
    let [store, _] = harness.open(ttl).await;
    let spec = spec("b", 10, 2);
    store.create_batch(&spec).await.unwrap();
    store.complete_chunk(&spec, 0, "p", 5, 0).await.unwrap();
    tokio::time::sleep(ttl * 6 / 10).await;
    let changed = Instant::now();
    let done = store.complete_chunk(&spec, 1, "p", 5, 0).await.unwrap();
    // On a machine that hangs for that long it may expire before this call.
    let alive = done.chunks_done == 2;
    loop {
        let found = store.batch("b").await.unwrap();
        match found {
            Some(found) => assert_eq!(found.chunks_done, if alive { 2 } else { 1 }),
            None => break assert!(changed.elapsed() + TICK >= ttl, "gone after {:?}", changed.elapsed()),
        }
        assert!(changed.elapsed() < ttl + Duration::from_secs(60), "still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nothing of it is left, not even its chunks.
    assert_eq!(store.create_batch(&spec).await.unwrap(), Created::New);
    assert_eq!(store.start_chunk(&spec, 0).await.unwrap().done_by, None);
}

pub(crate) async fn a_batch_that_was_forgotten_can_come_again<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let (gone, stays) = (spec("b", 10, 2), spec("b2", 10, 2));
    for spec in [&gone, &stays] {
        store.create_batch(spec).await.unwrap();
        store.complete_chunk(spec, 0, "p", 5, 0).await.unwrap();
    }
    store.forget_batch("b").await.unwrap();
    assert_eq!(other.batch("b").await.unwrap(), None);
    assert_eq!(status(&other, "b2").await.chunks_done, 1);
    assert_eq!(store.create_batch(&gone).await.unwrap(), Created::New);
    assert_eq!(counts(&status(&store, "b").await), (BatchPhase::Queued, 0, 0, 0));
    assert_eq!(store.start_chunk(&gone, 0).await.unwrap().done_by, None);
}

pub(crate) async fn names_and_results_of_any_kind_come_back<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let names = ["A-b_c.9", "x", &"n".repeat(128), "b:chunks", "{b}", "ü * ? [a]"];
    for (n, name) in (0..).zip(names) {
        let spec = BatchSpec { digest: String::new(), ..spec(name, u64::MAX >> 12, 1) };
        let results = format!(r#"[{{"text":"quote \" backslash \\ ü {n}"}}]"#);
        let outcome = BatchOutcome { results: Some(results), ..outcome((1 << 50) + n, n) };
        let position = format!("queue-01JD-{n}");
        let done = store.complete_chunk(&spec, 0, &position, (1 << 50) + n, n).await.unwrap();
        assert_eq!((done.owner, done.to_finish), (position, true), "{name}");
        store.finish_batch(&spec, &outcome).await.unwrap();
        let now = status(&other, name).await;
        assert_eq!((&now.spec, now.outcome.as_ref()), (&spec, Some(&outcome)), "{name}");
        assert_eq!((now.completed, now.failed), ((1 << 50) + n, n), "{name}");
    }
}
