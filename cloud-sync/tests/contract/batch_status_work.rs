//! Guarantees about cancelled batches, and about work that did not end.

use cloud_sync::batch_status::{BatchOutcome, BatchPhase};

use super::{Harness, LONG, counts, outcome, spec, status};

pub(crate) async fn a_batch_that_is_cancelled_stays_so<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let spec = spec("b", 30, 3);
    store.create_batch(&spec).await.unwrap();
    store.start_chunk(&spec, 0).await.unwrap();
    assert!(!other.start_chunk(&spec, 0).await.unwrap().cancelled);
    for _ in 0..2 {
        let now = other.cancel_batch(&spec).await.unwrap();
        assert_eq!((now.spec.clone(), counts(&now)), (spec.clone(), (BatchPhase::Cancelled, 0, 0, 0)));
        assert_eq!(now, status(&store, "b").await);
    }
    store.batch_submitted("b").await.unwrap();
    let start = store.start_chunk(&spec, 1).await.unwrap();
    assert_eq!((start.created, start.finished, start.cancelled), (false, false, true));
    // Chunks in progress count, and the last one ends the batch.
    store.complete_chunk(&spec, 0, "p-0", 4, 1).await.unwrap();
    store.complete_chunk(&spec, 1, "p-1", 0, 0).await.unwrap();
    assert_eq!(counts(&status(&other, "b").await), (BatchPhase::Cancelled, 4, 1, 2));
    assert!(other.complete_chunk(&spec, 2, "p-2", 0, 0).await.unwrap().to_finish);
    let completed = outcome(4, 1);
    assert_eq!(completed.phase, BatchPhase::Completed);
    assert_eq!(other.finish_batch(&spec, &completed).await.unwrap(), BatchPhase::Cancelled);
    let now = status(&store, "b").await;
    assert_eq!(counts(&now), (BatchPhase::Cancelled, 4, 1, 3));
    assert_eq!(now.outcome, Some(BatchOutcome { phase: BatchPhase::Cancelled, ..completed }));
    assert!(store.start_chunk(&spec, 2).await.unwrap().cancelled);
    assert_eq!(counts(&store.cancel_batch(&spec).await.unwrap()), (BatchPhase::Cancelled, 4, 1, 3));

    // A batch that the store does not know.
    let unknown = super::spec("unknown", 7, 1);
    let now = store.cancel_batch(&unknown).await.unwrap();
    assert_eq!((now.submitted, now.phase, now.spec), (true, BatchPhase::Cancelled, unknown));
}

pub(crate) async fn what_is_finished_is_not_cancelled<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let spec = spec("b", 10, 1);
    store.complete_chunk(&spec, 0, "p", 0, 10).await.unwrap();
    assert_eq!(store.finish_batch(&spec, &outcome(0, 10)).await.unwrap(), BatchPhase::Failed);
    assert_eq!(counts(&other.cancel_batch(&spec).await.unwrap()), (BatchPhase::Failed, 0, 10, 1));
    assert!(!store.start_chunk(&spec, 0).await.unwrap().cancelled);
    assert_eq!(store.finish_batch(&spec, &outcome(10, 0)).await.unwrap(), BatchPhase::Failed);
}

pub(crate) async fn starts_of_the_work_on_a_message_are_counted<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let (bad, good) = ("requests-0-7", "requests-0-8");
    assert_eq!(store.work_starts(bad).await.unwrap().starts, 0);
    for starts in 1..=3 {
        [&store, &other][starts as usize % 2].begin_work(bad, None, u64::from(starts)).await.unwrap();
        let seen = store.work_starts(bad).await.unwrap();
        assert_eq!((seen.starts, seen.ended_elsewhere()), (starts, starts));
        // A start that ended normally does not count.
        store.begin_work(good, Some(7), u64::MAX).await.unwrap();
        store.end_work(good, Some(u64::MAX)).await.unwrap();
    }
    assert_eq!(store.work_starts(good).await.unwrap().starts, 0);
    store.begin_work(bad, Some(41), 4).await.unwrap();
    store.end_work(bad, Some(4)).await.unwrap();
    for ends in 1..=2 {
        store.begin_work(bad, Some(42), 10 + u64::from(ends)).await.unwrap();
        // Reading changes nothing.
        for _ in 0..2 {
            let seen = other.work_starts(bad).await.unwrap();
            assert_eq!((seen.starts, seen.ended_at(42), seen.ended_at(41)), (3 + ends, ends, 0));
            assert_eq!(seen.ended_elsewhere(), 3);
        }
    }
    store.begin_work(bad, None, 20).await.unwrap();
    let seen = store.work_starts(bad).await.unwrap();
    assert_eq!((seen.starts, seen.ended_at(42), seen.ended_elsewhere()), (6, 2, 4));
    store.end_work(bad, None).await.unwrap();
    assert_eq!(other.work_starts(bad).await.unwrap().starts, 0);
}

pub(crate) async fn a_repeated_start_or_end_of_the_work_counts_once<H: Harness>(harness: &H) {
    let [store, other] = harness.open(LONG).await;
    let counts = async || {
        let seen = store.work_starts("p").await.unwrap();
        (seen.starts, seen.ended_at(7))
    };
    // The response to each call is lost a few times.
    for _ in 0..3 {
        store.begin_work("p", None, 1).await.unwrap();
    }
    assert_eq!(counts().await, (1, 0));
    for _ in 0..3 {
        other.begin_work("p", Some(7), 2).await.unwrap();
    }
    assert_eq!(counts().await, (2, 1));
    // The end of another start reverts nothing, nor does a repeated one.
    store.end_work("p", Some(1)).await.unwrap();
    assert_eq!(counts().await, (2, 1));
    for _ in 0..3 {
        other.end_work("p", Some(2)).await.unwrap();
        assert_eq!(counts().await, (1, 0));
    }
}
