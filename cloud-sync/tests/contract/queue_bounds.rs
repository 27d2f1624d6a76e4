//! Guarantees of a job queue about its limits and about concurrent users.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::queue::{JobQueue, NewJob, Settled};
use futures_util::future::join_all;

use super::{
    ARRIVES, Harness, MANY, assert_published_once, drain, job, name, receive, result, settle, submit,
    submit_names,
};

pub(crate) async fn no_more_jobs_are_out_than_allowed<H: Harness>(harness: &H) {
    let queue = harness.open(2).await;
    let names = submit_names(&queue, "job", 7).await;
    let mut out = vec![receive(&queue).await, receive(&queue).await];
    for _ in 0..5 {
        assert!(queue.receive(Duration::from_millis(300)).await.unwrap().is_none());
        let stats = queue.stats();
        assert!(stats.inflight == 2 && stats.paused, "{stats:?}");
        let done = out.remove(0);
        assert_eq!(settle(&queue, &done).await, Settled::Done);
        out.push(receive(&queue).await);
    }
    for delivery in out {
        assert_eq!(settle(&queue, &delivery).await, Settled::Done);
    }
    assert_eq!(queue.stats().inflight, 0);
    assert_published_once(harness, &names).await;
    queue.close().await;
}

pub(crate) async fn an_empty_queue_answers_in_time<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    for wait in [50, 400] {
        let wait = Duration::from_millis(wait);
        let start = Instant::now();
        assert!(queue.receive(wait).await.unwrap().is_none());
        let took = start.elapsed();
        // Much earlier, and the caller's loop would spin.
        assert!(took > wait / 2 && took < wait + Duration::from_secs(30), "{took:?} for {wait:?}");
    }
    // A job that arrives during the wait ends it.
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.receive(ARRIVES).await.unwrap().map(|delivery| name(&delivery)) }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    submit_names(&queue, "job", 1).await;
    assert_eq!(waiting.await.unwrap().as_deref(), Some("job-0"));
    queue.close().await;
}

pub(crate) async fn an_error_among_the_jobs_is_the_answer<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let broken = || SyncError::permanent(Link::Disk, "the spool file is torn at byte 4711");
    let jobs: Vec<SyncResult<NewJob>> = vec![Ok(job("a", "job-a")), Err(broken()), Ok(job("b", "job-b"))];
    let error = queue.submit(&mut jobs.into_iter()).await.unwrap_err();
    assert!(error.in_full().contains("torn at byte 4711"), "{}", error.in_full());
    // After another submission all of them are there, some perhaps twice.
    submit(&queue, vec![job("a", "job-a"), job("b", "job-b")]).await;
    let came: BTreeSet<_> = drain(&queue).await.into_iter().collect();
    assert_eq!(came, BTreeSet::from(["job-a".into(), "job-b".into()]));
    queue.close().await;
}

pub(crate) async fn jobs_are_not_held_all_at_once<H: Harness>(harness: &H) {
    struct Counted(Vec<u8>, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::SeqCst);
        }
    }
    const JOBS: usize = 8000;
    let (alive, mut most) = (Arc::new(AtomicUsize::new(0)), 0);
    let queue = harness.open(MANY).await;
    let mut jobs = (0..JOBS).map(|n| {
        most = most.max(alive.fetch_add(1, Ordering::SeqCst) + 1);
        Ok(job(&n.to_string(), Bytes::from_owner(Counted(vec![b'x'; 1000], Arc::clone(&alive)))))
    });
    assert_eq!(queue.submit(&mut jobs).await.unwrap(), JOBS as u64);
    drop(jobs);
    assert!(most < JOBS / 2, "{most} of {JOBS} jobs were held at once");
    queue.close().await;
}

pub(crate) async fn empty_and_large_payloads_arrive<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let large: Vec<u8> = (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let payloads = [Bytes::new(), large.into(), Bytes::from_static(b"small"), Bytes::new()];
    submit(&queue, payloads.iter().map(|payload| job("k", payload.clone())).collect()).await;
    for payload in payloads {
        let delivery = receive(&queue).await;
        assert!(delivery.payload == payload, "{} bytes of {}", delivery.payload.len(), payload.len());
        assert_eq!(queue.settle(&delivery, Vec::new()).await.unwrap(), Settled::Done);
    }
    queue.close().await;
}

pub(crate) async fn a_receive_that_is_given_up_loses_nothing<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let mut missing = submit_names(&queue, "job", 20).await;
    let start = Instant::now();
    for n in 0_u64.. {
        if missing.is_empty() {
            break;
        }
        assert!(start.elapsed() < ARRIVES, "these never came: {missing:?}");
        let timeout = Duration::from_micros(n % 40 * 50);
        let receive = queue.receive(Duration::from_secs(1));
        if let Ok(delivery) = tokio::time::timeout(timeout, receive).await {
            let Some(delivery) = delivery.unwrap() else { continue };
            assert!(missing.remove(&name(&delivery)));
            assert_eq!(settle(&queue, &delivery).await, Settled::Done);
        }
        if n > 500 {
            // Enough aborted: the rest is delivered without further action.
            for _ in 0..missing.len() {
                let delivery = self::receive(&queue).await;
                assert!(missing.remove(&name(&delivery)));
                assert_eq!(settle(&queue, &delivery).await, Settled::Done);
            }
        }
    }
    assert_eq!(queue.stats().inflight, 0);
    queue.close().await;
}

/// Processes `count` jobs with several tasks on each of `queues`, every third after a release.
async fn work_off(queues: &[Arc<dyn JobQueue>], count: usize) {
    let left = Arc::new(AtomicUsize::new(count));
    let workers = queues.iter().flat_map(|queue| {
        (0..4).map(|_| {
            let (queue, left) = (Arc::clone(queue), Arc::clone(&left));
            tokio::spawn(async move {
                let (start, mut seen) = (Instant::now(), 0);
                while left.load(Ordering::SeqCst) > 0 {
                    assert!(start.elapsed() < ARRIVES, "{left:?} jobs never came");
                    let delivery = queue.receive(Duration::from_millis(100)).await.unwrap();
                    let Some(delivery) = delivery else { continue };
                    seen += 1;
                    if seen % 3 == 0 {
                        queue.release(delivery).await;
                    } else if settle(&queue, &delivery).await == Settled::Done {
                        left.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            })
        })
    });
    for worker in join_all(workers).await {
        worker.unwrap();
    }
}

pub(crate) async fn many_tasks_share_a_handle<H: Harness>(harness: &H) {
    let queue = harness.open(3).await;
    let names = submit_names(&queue, "job", 40).await;
    work_off(&[Arc::clone(&queue)], 40).await;
    assert_published_once(harness, &names).await;
    assert_eq!(queue.stats().inflight, 0);
    queue.close().await;
}

#[allow(dead_code, reason = "not every queue is shared")]
pub(crate) async fn several_handles_share_a_queue<H: Harness>(harness: &H) {
    let queues = [harness.open(4).await, harness.open(4).await];
    let names = submit_names(&queues[0], "job", 60).await;
    work_off(&queues, 60).await;
    assert_published_once(harness, &names).await;
    for queue in queues {
        queue.close().await;
    }
}

pub(crate) async fn closing_gives_back_what_is_out<H: Harness>(harness: &H) {
    let queue = harness.open(MANY).await;
    let names = submit_names(&queue, "job", 3).await;
    let (first, second) = (receive(&queue).await, receive(&queue).await);
    let settling = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { (queue.settle(&first, vec![result(&name(&first))]).await, first) }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    queue.close().await;
    let (settled, first) = settling.await.unwrap();
    drop(queue);
    let queue = harness.open(MANY).await;
    let mut came = BTreeMap::new();
    while came.len() + usize::from(matches!(settled, Ok(Settled::Done))) < 3 {
        let delivery = receive(&queue).await;
        assert_eq!(settle(&queue, &delivery).await, Settled::Done);
        came.insert(name(&delivery), delivery.position);
    }
    assert_eq!(came.get(&name(&second)), Some(&second.position));
    assert_eq!(came.contains_key(&name(&first)), !matches!(settled, Ok(Settled::Done)));
    assert_published_once(harness, &names).await;
    queue.close().await;
}
