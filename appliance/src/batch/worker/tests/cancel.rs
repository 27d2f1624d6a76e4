//! Batches that are cancelled: before the work, in the middle of it, and with a crash at any point.

use std::collections::HashSet;
use std::time::Duration;

use cloud_sync::batch_status::{BatchPhase, BatchStatus, BatchStatusStore};

use super::crashes::runs_into_a_crash;
use super::failures::silent;
use super::stores::{Reach, Trip};
use super::world::{World, messages, pictures, spec};
use super::{label, letters, outcomes};

/// Cancels as the API does.
async fn cancel(world: &World, id: &str, urls: &[String], chunk: usize) {
    let reach = Reach { stores: world.stores.clone(), trip: Trip::at(i64::MAX) };
    reach.cancel_batch(&spec(id, urls, chunk)).await.unwrap();
    world.stores.objects.lock().insert(format!("batches/{id}/cancelled.json"), "{}".into());
}

fn status(world: &World, id: &str) -> BatchStatus {
    world.stores.batches.lock()[id].status.clone()
}

fn parts(world: &World) -> Vec<String> {
    world.stores.objects.lock().keys().filter(|key| key.contains("/parts/")).cloned().collect()
}

#[tokio::test]
async fn a_batch_that_is_cancelled_in_the_queue_is_never_begun() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..8).map(|i| format!("{}/{i}", world.base)).collect();
    world.submit("b", &urls, 3);
    world.submit("one", &urls[..2], 2);
    world.submit("next", &urls[..2], 2);
    cancel(&world, "b", &urls, 3).await;
    cancel(&world, "one", &urls[..2], 2).await;
    world.work().await;
    for id in ["b", "one"] {
        assert_eq!(world.results(id).unwrap(), "", "it has results, of no image");
        let (items, summaries) = world.published(id);
        assert_eq!((items.len(), summaries.len()), (0, 1));
        assert_eq!((summaries[0].1.status.as_str(), summaries[0].1.completed), ("cancelled", 0));
        let status = status(&world, id);
        assert_eq!((status.phase, status.outcome.unwrap().completed), (BatchPhase::Cancelled, 0));
    }
    assert_eq!(outcomes(&world, "next"), [label(0), label(1)]);
    let counts = world.stats.counts();
    assert_eq!((counts.classified, counts.cancelled, counts.batches), (2, 2, 3));
    assert!(letters(&world).is_empty() && parts(&world).is_empty());
}

#[tokio::test]
async fn work_that_is_under_way_stops_and_what_is_done_stays() {
    let world = World::new(&pictures().await, i64::MAX);
    let (tarpit, mut asks) = silent().await;
    let url = |i: usize| format!("{}/{i}", world.base);
    let mut urls = vec![url(0), url(1), tarpit.clone(), url(3), tarpit.clone(), url(5)];
    // More that would be started later.
    urls.extend((0..30).map(|_| tarpit.clone()));
    let mut messages = messages("b", &urls, 6).into_iter();
    world.stores.send(messages.next().unwrap());
    let worker = world.start();
    for _ in 0..2 {
        asks.recv().await.unwrap();
    }
    let done = async {
        while world.stats.counts().classified < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done).await.unwrap();
    cancel(&world, "b", &urls, 6).await;
    for message in messages {
        world.stores.send(message);
    }
    world.idle().await;
    worker.abort();
    let items = world.items("b");
    assert_eq!(items.iter().map(|item| item.index).collect::<Vec<_>>(), [0, 1, 3, 5]);
    assert_eq!(outcomes(&world, "b"), [0, 1, 3, 5].map(label));
    let (published, summaries) = world.published("b");
    assert_eq!((published, summaries.len()), (items, 1));
    assert_eq!((summaries[0].1.completed, summaries[0].1.failed, summaries[0].1.total), (4, 0, 36));
    assert_eq!(status(&world, "b").phase, BatchPhase::Cancelled);
    assert!(letters(&world).is_empty() && parts(&world).is_empty());
    assert!(world.stores.work.lock().is_empty(), "the work on a message counts as not ended");
}

#[tokio::test]
async fn after_a_crash_anywhere_a_cancelled_batch_ends_with_what_was_done() {
    let base = pictures().await;
    let urls: Vec<_> = (0..7).map(|i| format!("{base}/{i}")).collect();
    for lost in [false, true] {
        let mut crashes = 0;
        for at in 0.. {
            let mut world = World::new(&base, i64::MAX);
            let [first, second, third] = messages("b", &urls, 3).try_into().unwrap();
            world.stores.send(first);
            world.work().await;
            cancel(&world, "b", &urls, 3).await;
            world.stores.send(second);
            world.stores.send(third);
            world.trip = Trip::at(at);
            let crashed = runs_into_a_crash(&world).await;
            let somebody_is_left = !world.stores.is_idle();
            if lost && crashed {
                world.stores.batches.lock().clear();
            }
            world.restart();
            world.work().await;
            if somebody_is_left || !lost {
                assert_eq!(outcomes(&world, "b"), [0, 1, 2].map(label), "after a crash at {at}");
                let (items, summaries) = world.published("b");
                assert_eq!(items, world.items("b"), "published after a crash at {at}");
                let ids: HashSet<_> = summaries.iter().map(|(id, _)| id).collect();
                assert_eq!(ids.len(), 1, "summaries after a crash at {at}");
                assert!(summaries.iter().all(|(_, s)| s.status == "cancelled" && s.completed == 3));
                assert_eq!(status(&world, "b").phase, BatchPhase::Cancelled);
                assert!(parts(&world).is_empty(), "left over after a crash at {at}");
            }
            if !crashed {
                break;
            }
            crashes += 1;
        }
        assert!(crashes > 20, "only {crashes} places to crash at");
    }
}

#[tokio::test]
async fn a_cancellation_that_left_no_mark_is_marked_at_the_end_of_the_batch() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..4).map(|i| format!("{}/{i}", world.base)).collect();
    for (id, chunk) in [("one", 4), ("two", 2)] {
        world.submit(id, &urls, chunk);
        cancel(&world, id, &urls, chunk).await;
        let mark = format!("batches/{id}/cancelled.json");
        world.stores.objects.lock().remove(&mark);
        world.work().await;
        assert_eq!(status(&world, id).phase, BatchPhase::Cancelled);
        assert!(world.stores.object(&mark).is_some(), "{id}");
    }
}

#[tokio::test]
async fn what_is_published_of_a_cancelled_batch_is_what_its_results_say() {
    let base = pictures().await;
    let urls: Vec<_> = (0..2).map(|i| format!("{base}/{i}")).collect();
    let whole = World::new(&base, i64::MAX);
    whole.submit("b", &urls, 2);
    whole.work().await;
    let results = whole.results("b").unwrap();
    let first = results.iter().position(|byte| *byte == b'\n').unwrap() + 1;

    let world = World::new(&base, i64::MAX);
    world.submit("b", &urls, 2);
    cancel(&world, "b", &urls, 2).await;
    // Another delivery of the message had completed one image when it saw the cancellation.
    *world.stores.overwritten.lock() = Some(("results/b.jsonl".into(), results.slice(..first)));
    world.work().await;
    let (items, summaries) = world.published("b");
    assert_eq!((items.len(), &items), (1, &world.items("b")));
    assert_eq!((summaries[0].1.completed, status(&world, "b").outcome.unwrap().completed), (1, 1));
}
