//! The contract of every job queue, one test per guarantee of `cloud_sync::queue`.
//!
//! A test binary has this file as its `mod contract` and names its harness once, `contract::suite!(MyHarness);` or
//! `contract::suite!(MyHarness, shared);`.

#[path = "queue_bounds.rs"]
mod bounds;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::queue::{Delivery, JobQueue, NewJob, ResultRecord, Settled};
use futures_util::future::join_all;

/// Jobs in progress at once where a test does not care.
const MANY: usize = 32;

/// Maximum time for a job to arrive: a consumer group may have to detect that a member has died.
const ARRIVES: Duration = Duration::from_secs(90);

/// One queue of one implementation, initially empty, and its published results.
#[async_trait]
pub(crate) trait Harness: Send + Sync {
    /// A new, empty queue with a separate place for results.
    async fn new() -> Self;

    /// Opens the queue.
    async fn open(&self, inflight: usize) -> Arc<dyn JobQueue>;

    /// Drops a handle as a crash would: nothing is settled, released or announced.
    async fn crash(&self, queue: Arc<dyn JobQueue>);

    /// The ids (the JSON field `id`) of the results that consumers see, in order, once there are at least `count`.
    async fn published(&self, count: usize) -> Vec<String>;
}

macro_rules! suite {
    ($harness:ty) => {
        $crate::contract::suite!($harness:
            a_job_arrives_as_it_was_submitted,
            jobs_of_one_key_arrive_in_order,
            a_job_that_was_not_settled_comes_again_after_a_crash,
            a_job_that_was_submitted_survives_a_crash,
            a_job_that_was_released_comes_again,
            a_job_that_was_settled_never_comes_again,
            a_job_that_is_settled_twice_publishes_once,
            a_job_without_results_is_settled_too,
            jobs_are_settled_in_any_order,
            results_of_a_job_stay_in_order,
            no_more_jobs_are_out_than_allowed,
            an_empty_queue_answers_in_time,
            an_error_among_the_jobs_is_the_answer,
            jobs_are_not_held_all_at_once,
            empty_and_large_payloads_arrive,
            a_receive_that_is_given_up_loses_nothing,
            many_tasks_share_a_handle,
            closing_gives_back_what_is_out,
        );
    };
    // Where several handles may have the queue open at once.
    ($harness:ty, shared) => {
        $crate::contract::suite!($harness);
        $crate::contract::suite!($harness: several_handles_share_a_queue,);
    };
    ($harness:ty: $($promise:ident,)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let harness = <$harness as $crate::contract::Harness>::new().await;
            $crate::contract::$promise(&harness).await;
        }
    )* };
}
#[allow(unused_imports, reason = "not every queue is shared")]
pub(crate) use bounds::*;
pub(crate) use suite;

fn job(key: &str, payload: impl Into<Bytes>) -> NewJob {
    NewJob { key: key.into(), payload: payload.into() }
}

async fn submit(queue: &Arc<dyn JobQueue>, jobs: Vec<NewJob>) {
    let count = jobs.len() as u64;
    assert_eq!(queue.submit(&mut jobs.into_iter().map(Ok)).await.unwrap(), count);
}

/// Jobs named `prefix-0`, `prefix-1`, ... with different keys.
async fn submit_names(queue: &Arc<dyn JobQueue>, prefix: &str, count: usize) -> BTreeSet<String> {
    let names: Vec<_> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
    submit(queue, names.iter().map(|name| job(name, name.clone())).collect()).await;
    names.into_iter().collect()
}

async fn receive(queue: &Arc<dyn JobQueue>) -> Delivery {
    let start = Instant::now();
    while start.elapsed() < ARRIVES {
        if let Some(delivery) = queue.receive(Duration::from_secs(1)).await.unwrap() {
            return delivery;
        }
    }
    panic!("no job within {ARRIVES:?}, {:?}", queue.stats());
}

fn name(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload.to_vec()).unwrap()
}

fn result(id: &str) -> ResultRecord {
    let payload = format!(r#"{{"v":1,"id":"{id}","kind":"contract"}}"#);
    ResultRecord { id: id.into(), key: "camera".into(), payload: payload.into() }
}

/// The one result of a job is named after it.
async fn settle(queue: &Arc<dyn JobQueue>, delivery: &Delivery) -> Settled {
    queue.settle(delivery, vec![result(&name(delivery))]).await.unwrap()
}

/// Processes the queue until the job `last` has arrived, which is submitted for that, and returns the names of the
/// others in the order of their arrival: so that "nothing more arrives" needs no waiting.
async fn drain(queue: &Arc<dyn JobQueue>) -> Vec<String> {
    // One per partition, as far as keys are distributed: what was submitted before them has arrived when all of them
    // have.
    let mut last: BTreeSet<_> = (0..8).map(|n| format!("last-{n}")).collect();
    submit(queue, last.iter().map(|name| job(name, name.clone())).collect()).await;
    let mut names = Vec::new();
    while !last.is_empty() {
        let delivery = receive(queue).await;
        let name = name(&delivery);
        assert_eq!(queue.settle(&delivery, Vec::new()).await.unwrap(), Settled::Done);
        if !last.remove(&name) {
            names.push(name);
        }
    }
    names
}

async fn assert_published_once<H: Harness>(harness: &H, expected: &BTreeSet<String>) {
    let published = harness.published(expected.len()).await;
    let mut times = BTreeMap::new();
    for id in &published {
        *times.entry(id.clone()).or_insert(0) += 1;
    }
    let once = expected.iter().map(|id| (id.clone(), 1)).collect();
    assert_eq!(times, once);
}

pub(crate) async fn a_job_arrives_as_it_was_submitted<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let before = std::time::SystemTime::now() - Duration::from_secs(60);
    submit(&queue, vec![job("k", &b"\x00\xff not text"[..])]).await;
    let delivery = receive(&queue).await;
    assert_eq!(&delivery.payload[..], b"\x00\xff not text");
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    assert!(delivery.position.chars().all(allowed), "{} must do as a name", delivery.position);
    assert!(delivery.time.is_none_or(|time| time > before), "{:?}", delivery.time);
    assert_eq!(queue.stats().inflight, 1);
    assert_eq!(queue.settle(&delivery, vec![result("r")]).await.unwrap(), Settled::Done);
    assert_eq!(queue.stats().inflight, 0);
    assert_eq!(harness.published(1).await, ["r"]);
    queue.close().await;
}

pub(crate) async fn jobs_of_one_key_arrive_in_order<H: Harness>(harness: &H) {
    let queue = harness.open(4).await;
    let names: Vec<_> = (0..30).map(|n| format!("job-{n}")).collect();
    submit(&queue, names[..17].iter().map(|name| job("k", name.clone())).collect()).await;
    submit(&queue, names[17..].iter().map(|name| job("k", name.clone())).collect()).await;
    let mut positions = BTreeSet::new();
    for expected in &names {
        let delivery = receive(&queue).await;
        assert_eq!(&name(&delivery), expected);
        assert!(positions.insert(delivery.position.clone()), "{} names two jobs", delivery.position);
        assert_eq!(settle(&queue, &delivery).await, Settled::Done);
    }
    assert_eq!(harness.published(names.len()).await, names);
    queue.close().await;
}

pub(crate) async fn a_job_that_was_not_settled_comes_again_after_a_crash<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let names = submit_names(&queue, "job", 6).await;
    let mut out = BTreeMap::new();
    for n in 0..4 {
        let delivery = receive(&queue).await;
        if n == 0 {
            assert_eq!(settle(&queue, &delivery).await, Settled::Done);
        } else {
            out.insert(name(&delivery), delivery.position.clone());
        }
    }
    harness.crash(queue).await;
    let queue = harness.open(MANY).await;
    for _ in 0..5 {
        let delivery = receive(&queue).await;
        if let Some(position) = out.remove(&name(&delivery)) {
            assert_eq!(delivery.position, position, "the position of {}", name(&delivery));
        }
        assert_eq!(settle(&queue, &delivery).await, Settled::Done);
    }
    assert_eq!(out, BTreeMap::new(), "these came before the crash only");
    assert_published_once(harness, &names).await;
    queue.close().await;
}

pub(crate) async fn a_job_that_was_submitted_survives_a_crash<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let names = submit_names(&queue, "job", 50).await;
    harness.crash(queue).await;
    let queue = harness.open(MANY).await;
    assert_eq!(drain(&queue).await.into_iter().collect::<BTreeSet<_>>(), names);
    queue.close().await;
}

pub(crate) async fn a_job_that_was_released_comes_again<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let mut names = submit_names(&queue, "job", 3).await;
    let first = receive(&queue).await;
    let (position, released) = (first.position.clone(), name(&first));
    let second = receive(&queue).await;
    queue.release(first).await;
    let mut came = BTreeSet::new();
    for _ in 0..2 {
        let delivery = receive(&queue).await;
        if name(&delivery) == released {
            assert_eq!(delivery.position, position);
        }
        // The second is in progress all the while: it must not be among them.
        assert_ne!(name(&delivery), name(&second));
        assert!(came.insert(name(&delivery)));
        assert_eq!(settle(&queue, &delivery).await, Settled::Done);
    }
    assert_eq!(settle(&queue, &second).await, Settled::Done);
    assert_published_once(harness, &names).await;
    assert!(names.remove(&released) && came.contains(&released));
    assert_eq!(drain(&queue).await, Vec::<String>::new());
    queue.close().await;
}

pub(crate) async fn a_job_that_was_settled_never_comes_again<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let names = submit_names(&queue, "job", 5).await;
    for _ in 0..5 {
        let delivery = receive(&queue).await;
        assert_eq!(settle(&queue, &delivery).await, Settled::Done);
    }
    harness.crash(queue).await;
    let queue = harness.open(MANY).await;
    assert_eq!(drain(&queue).await, Vec::<String>::new());
    assert_published_once(harness, &names).await;
    queue.close().await;
}

pub(crate) async fn a_job_that_is_settled_twice_publishes_once<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let names = submit_names(&queue, "job", 2).await;
    let (first, second) = (receive(&queue).await, receive(&queue).await);
    assert_eq!(settle(&queue, &first).await, Settled::Done);
    // Its result is not specified; that it publishes nothing is.
    let _ = queue.settle(&first, vec![result(&name(&first))]).await;
    let results = || vec![result(&name(&second))];
    let both = tokio::join!(queue.settle(&second, results()), queue.settle(&second, results()));
    assert!(matches!(both.0, Ok(Settled::Done)) || matches!(both.1, Ok(Settled::Done)), "{both:?}");
    assert_eq!(queue.stats().inflight, 0);
    assert_eq!(drain(&queue).await, Vec::<String>::new());
    assert_published_once(harness, &names).await;
    queue.close().await;
}

pub(crate) async fn a_job_without_results_is_settled_too<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    submit_names(&queue, "job", 2).await;
    for _ in 0..2 {
        let delivery = receive(&queue).await;
        assert_eq!(queue.settle(&delivery, Vec::new()).await.unwrap(), Settled::Done);
    }
    harness.crash(queue).await;
    let queue = harness.open(MANY).await;
    assert_eq!(drain(&queue).await, Vec::<String>::new());
    assert_eq!(harness.published(0).await, Vec::<String>::new());
    queue.close().await;
}

pub(crate) async fn jobs_are_settled_in_any_order<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let names: BTreeSet<_> = (0..8).map(|n| format!("job-{n}")).collect();
    // One key, so one partition: the last is settled first.
    submit(&queue, names.iter().map(|name| job("k", name.clone())).collect()).await;
    let mut out = Vec::new();
    for _ in 0..8 {
        out.push(receive(&queue).await);
    }
    let settling = out.into_iter().rev().map(|delivery| {
        let queue = Arc::clone(&queue);
        async move {
            // A head start for later ones.
            tokio::task::yield_now().await;
            settle(&queue, &delivery).await
        }
    });
    // All at once: an implementation may acknowledge the later ones only with the earlier.
    assert_eq!(join_all(settling).await, vec![Settled::Done; 8]);
    assert_published_once(harness, &names).await;
    harness.crash(queue).await;
    let queue = harness.open(MANY).await;
    assert_eq!(drain(&queue).await, Vec::<String>::new());
    queue.close().await;
}

pub(crate) async fn results_of_a_job_stay_in_order<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    submit_names(&queue, "job", 1).await;
    let delivery = receive(&queue).await;
    let ids: Vec<_> = (0..200).map(|n| format!("result-{n}")).collect();
    let results = ids.iter().map(|id| result(id)).collect();
    assert_eq!(queue.settle(&delivery, results).await.unwrap(), Settled::Done);
    assert_eq!(harness.published(ids.len()).await, ids);
    queue.close().await;
}
