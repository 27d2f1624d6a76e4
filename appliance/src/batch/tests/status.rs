//! Statuses, also of batches that the state store has forgotten, and of cancelled ones.

use std::time::{Duration, SystemTime};

use super::*;

#[tokio::test]
async fn a_status_is_one_call_to_the_state_store() {
    let bench = Bench::new();
    bench.submit(&body("mine", 2)).await.unwrap();
    for call in ["get", "get_file", "head", "list"] {
        bench.stores.blob.faults.fail(call, u32::MAX);
    }
    let before = bench.stores.state.calls.load(Ordering::Relaxed);
    bench.service.status("mine").await.unwrap();
    assert_eq!(bench.stores.state.calls.load(Ordering::Relaxed), before + 1);
    let error = bench.service.status("other").await.unwrap_err();
    assert!(matches!(error, BatchError::Link { .. }), "whether it exists is unknown: {error}");
    bench.stores.state.faults.fail("batch", 1);
    assert!(matches!(bench.service.status("mine").await, Err(BatchError::Link { .. })));
}

#[tokio::test]
async fn a_status_that_was_lost_is_put_together_from_the_blobs() {
    let bench = Bench::new();
    bench.submit(&body("mine", 10)).await.unwrap();
    let known = bench.service.status("mine").await.unwrap();
    let lose = || bench.stores.state.batches.lock().clear();
    let put = |key: &str, lines: &str| {
        bench.stores.blob.objects.lock().insert(key.to_owned(), lines.to_owned().into());
    };
    lose();
    let queued = bench.service.status("mine").await.unwrap();
    assert_eq!((queued.phase, queued.total, queued.completed), (BatchPhase::Queued, 10, 0));
    let millis = |t: Option<SystemTime>| rfc3339_text(t.unwrap());
    assert_eq!(millis(queued.created)[..19], millis(known.created)[..19]);

    let line = |status: &str| format!("{{\"index\":0,\"status\":\"{status}\",\"image_url\":\"status\"}}\n");
    // More parts than a page of the listing has.
    for chunk in 0..7 {
        put(&format!("batches/mine/parts/{chunk:06}.jsonl"), &line("ok"));
    }
    put("batches/mine/parts/000007.jsonl", &(line("failed") + &line("ok")));
    let processing = bench.service.status("mine").await.unwrap();
    assert_eq!(processing.phase, BatchPhase::Processing);
    assert_eq!((processing.total, processing.completed, processing.failed), (10, 8, 1));
    assert!(processing.results_uri.is_none());
    assert!(bench.stores.state.batches.lock().is_empty(), "a worker records the outcome while there is work");

    put("results/mine.jsonl", &(line("ok").repeat(7) + &line("failed").repeat(3)));
    let finished = bench.service.status("mine").await.unwrap();
    assert_eq!(finished.phase, BatchPhase::Completed);
    assert_eq!((finished.total, finished.completed, finished.failed), (10, 7, 3));
    assert_eq!(finished.results_uri.as_deref(), Some("memory://results/mine.jsonl"));
    bench.stores.blob.objects.lock().clear();
    let kept = bench.service.status("mine").await.unwrap();
    assert_eq!((kept.phase, kept.completed), (BatchPhase::Completed, 7), "it is counted once");

    // A batch of another producer has results and no record.
    put("results/foreign.jsonl", &line("failed"));
    let foreign = bench.service.status("foreign").await.unwrap();
    assert_eq!((foreign.phase, foreign.total, foreign.failed), (BatchPhase::Failed, 1, 1));
    for id in ["none", "../etc", "", "a b"] {
        assert!(matches!(bench.service.status(id).await, Err(BatchError::Unknown { .. })), "{id}");
    }
    bench.assert_tidy();
}

#[tokio::test]
async fn a_batch_whose_end_the_state_store_has_forgotten_is_told_by_its_results() {
    let bench = Bench::new();
    bench.submit(&body("mine", 3)).await.unwrap();
    let lines = "{\"status\":\"ok\"}\n{\"status\":\"failed\"}\n{\"status\":\"ok\"}\n";
    let put = |lines: &str| {
        bench.stores.blob.objects.lock().insert("results/mine.jsonl".into(), lines.to_owned().into());
    };
    let quiet = Duration::from_secs(60);
    let age = || bench.stores.state.batches.lock().get_mut("mine").unwrap().updated -= quiet;
    put(lines);
    // While the batch is active the worker records its outcome.
    assert_eq!(bench.service.status("mine").await.unwrap().phase, BatchPhase::Queued);
    age();
    // Some results are missing, or the blob store is away or at its limit: then the state store's status is the answer.
    put(&lines[..16]);
    assert_eq!(bench.service.status("mine").await.unwrap().phase, BatchPhase::Queued);
    put(lines);
    bench.stores.blob.faults.fail("head", 1);
    assert_eq!(bench.service.status("mine").await.unwrap().phase, BatchPhase::Queued);
    let permits = bench.service.recoveries.acquire_many(MAX_RECOVERIES as u32).await.unwrap();
    assert_eq!(bench.service.status("mine").await.unwrap().phase, BatchPhase::Queued);
    drop(permits);

    let finished = bench.service.status("mine").await.unwrap();
    assert_eq!(finished.phase, BatchPhase::Completed);
    assert_eq!((finished.total, finished.completed, finished.failed), (3, 2, 1));
    assert_eq!(finished.results_uri.as_deref(), Some("memory://results/mine.jsonl"));
    assert!(bench.stores.state.batches.lock()["mine"].outcome.is_some(), "it is counted at every look");
    bench.assert_tidy();
}

#[tokio::test]
async fn who_asks_for_forgotten_batches_does_not_wait_without_end() {
    let bench = Bench::new();
    let permits = bench.service.recoveries.acquire_many(MAX_RECOVERIES as u32).await.unwrap();
    let asked = std::time::Instant::now();
    let error = bench.service.status("invented").await.unwrap_err();
    assert!(matches!(error, BatchError::Busy { limit: MAX_RECOVERIES, .. }), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    drop(permits);
    assert!(matches!(bench.service.status("invented").await, Err(BatchError::Unknown { .. })));
}

#[tokio::test]
async fn a_batch_that_is_cancelled_before_its_work_is_queued_is_still_queued_and_stays_cancelled() {
    // The submission is interrupted before the record is written, and with part of the work queued; then the state store
    // forgets.
    for (queued, forgotten) in [(0, false), (1, false), (1, true)] {
        let bench = Bench::new();
        match queued {
            0 => bench.stores.blob.faults.fail("put", 1),
            jobs => bench.stores.queue.breaks_after.store(jobs, Ordering::Relaxed),
        }
        bench.submit(&body("b", 10)).await.unwrap_err();
        let cancelled = bench.service.cancel("b").await.unwrap();
        assert_eq!(cancelled.phase, BatchPhase::Cancelled);
        if forgotten {
            bench.stores.state.batches.lock().clear();
        }
        let accepted = bench.submit(&body("b", 10)).await.unwrap();
        assert_eq!(
            (accepted.phase, accepted.repeated),
            (BatchPhase::Cancelled, false),
            "{queued} {forgotten}"
        );
        assert_eq!(bench.messages().len() as u64, queued + 3);
        assert_whole(&bench.messages(), 10);
        assert_eq!(bench.service.status("b").await.unwrap().phase, BatchPhase::Cancelled);
        let again = bench.submit(&body("b", 10)).await.unwrap();
        assert_eq!((again.phase, again.repeated), (BatchPhase::Cancelled, true));
        assert_eq!(bench.messages().len() as u64, queued + 3);
    }
}

#[tokio::test]
async fn a_cancelled_batch_whose_end_the_state_store_has_lost_is_told_by_its_results() {
    let bench = Bench::new();
    bench.submit(&body("b", 10)).await.unwrap();
    bench.service.cancel("b").await.unwrap();
    let lines = "{\"index\":0,\"status\":\"ok\"}\n{\"index\":4,\"status\":\"ok\"}\n";
    bench.stores.blob.objects.lock().insert("results/b.jsonl".into(), lines.into());
    let ask = async || bench.service.status("b").await.unwrap();
    // The worker may be about to record it.
    assert_eq!(ask().await.results_uri, None);
    bench.stores.state.batches.lock().get_mut("b").unwrap().updated =
        SystemTime::now() - Duration::from_secs(3600);
    for _ in 0..2 {
        let view = ask().await;
        assert_eq!((view.phase, view.completed, view.failed), (BatchPhase::Cancelled, 2, 0));
        assert_eq!(view.results_uri.as_deref(), Some("memory://results/b.jsonl"));
    }
}
