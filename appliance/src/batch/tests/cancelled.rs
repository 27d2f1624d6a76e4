//! Batches that are cancelled while something of them is missing: their work in the queue, or their end in the state store.

use std::time::{Duration, SystemTime};

use super::*;

#[tokio::test]
async fn a_batch_that_is_cancelled_before_its_work_is_queued_is_still_queued_and_stays_cancelled() {
    // It breaks off before the record is there, and with a part of the work in the queue; then the state store forgets.
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
    // Perhaps it is just about to be noted.
    assert_eq!(ask().await.results_uri, None);
    bench.stores.state.batches.lock().get_mut("b").unwrap().updated =
        SystemTime::now() - Duration::from_secs(3600);
    for _ in 0..2 {
        let view = ask().await;
        assert_eq!((view.phase, view.completed, view.failed), (BatchPhase::Cancelled, 2, 0));
        assert_eq!(view.results_uri.as_deref(), Some("memory://results/b.jsonl"));
    }
}
