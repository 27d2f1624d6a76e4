//! A crash before and after every call to a store, with and without the loss of the state store's data.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::batch_status::BatchPhase;
use cloud_sync::event::ItemOutcome;

use super::stores::Trip;
use super::world::{World, messages, pictures};

const IMAGES: usize = 8;

fn submit(world: &World) {
    let url = |i: usize| if i % 3 == 2 { "nothing".to_owned() } else { format!("{}/{i}", world.base) };
    let urls: Vec<_> = (0..IMAGES).map(url).collect();
    world.submit("b", &urls, 3);
}

/// The results object and the dead letters of a run without a crash.
async fn undisturbed(base: &str) -> (Bytes, Vec<(String, Bytes)>) {
    let world = World::new(base, i64::MAX);
    submit(&world);
    world.work().await;
    (world.results("b").unwrap(), letters(&world))
}

fn letters(world: &World) -> Vec<(String, Bytes)> {
    let objects = world.stores.objects.lock();
    let letters = objects.iter().filter(|(key, _)| key.starts_with("dead-letter/"));
    letters.map(|(key, letter)| (key.clone(), letter.clone())).collect()
}

/// What happens to the state store's data in a crash.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Kept,
    Lost,
    /// As it was when the first chunk was done.
    Older,
}

impl State {
    fn befall(self, world: &World) {
        let mut batches = world.stores.batches.lock();
        match self {
            Self::Kept => {}
            Self::Lost => batches.clear(),
            Self::Older => *batches = world.stores.older.lock().clone().unwrap_or_default(),
        }
    }
}

/// Runs a worker until it crashes at a passage; false when its work was done before.
pub(super) async fn runs_into_a_crash(world: &World) -> bool {
    let worker = world.start();
    let crashed = tokio::select! {
        () = world.trip.tripped.notified() => true,
        () = world.idle() => false,
    };
    worker.abort();
    let _ = worker.await;
    crashed
}

/// Runs a worker that crashes at a passage, then another to the end. False when there is no such passage any more.
async fn crash_and_recover(world: &mut World, state: State) -> bool {
    submit(world);
    let crashed = runs_into_a_crash(world).await;
    if crashed {
        state.befall(world);
        world.restart();
        world.work().await;
    }
    crashed
}

fn check(world: &World, expected: &(Bytes, Vec<(String, Bytes)>), at: i64) {
    assert_eq!(world.results("b").as_ref(), Some(&expected.0), "results after a crash at {at}");
    assert_eq!(letters(world), expected.1, "dead letters after a crash at {at}");
    let (items, summaries) = world.published("b");
    assert_eq!(items, world.items("b"), "published after a crash at {at}: each image once");
    let ids: HashSet<_> = summaries.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 1, "summaries after a crash at {at}: {summaries:?}");
    let failed = items.iter().filter(|i| matches!(i.outcome, ItemOutcome::Failed { .. })).count() as u64;
    for (_, summary) in &summaries {
        assert_eq!((summary.completed, summary.failed), (IMAGES as u64 - failed, failed), "at {at}");
    }
    let status = world.stores.batches.lock()["b"].status.clone();
    let outcome = status.outcome.unwrap_or_else(|| panic!("no outcome after a crash at {at}"));
    assert_eq!((outcome.completed, outcome.failed), (IMAGES as u64 - failed, failed), "at {at}");
    let left: Vec<_> =
        world.stores.objects.lock().keys().filter(|k| k.starts_with("batches/")).cloned().collect();
    assert_eq!(left, Vec::<String>::new(), "left over after a crash at {at}");
}

#[tokio::test]
async fn after_a_crash_anywhere_each_image_has_one_result() {
    let base = pictures().await;
    let expected = undisturbed(&base).await;
    let mut crashes = 0;
    for at in 0.. {
        let mut world = World::new(&base, at);
        if !crash_and_recover(&mut world, State::Kept).await {
            break;
        }
        crashes += 1;
        check(&world, &expected, at);
        assert_eq!(world.published("b").1.len(), 1, "summaries after a crash at {at}");
    }
    assert!(crashes > 50, "only {crashes} places to crash at");
}

#[tokio::test]
async fn a_state_store_that_lost_its_data_costs_no_result() {
    let base = pictures().await;
    let expected = undisturbed(&base).await;
    for at in 0.. {
        let mut world = World::new(&base, at);
        let crashed = crash_and_recover(&mut world, State::Lost).await;
        // Where every message was settled before the loss, no worker is left to notice it.
        if crashed && world.stores.batches.lock().contains_key("b") {
            check(&world, &expected, at);
        }
        if !crashed {
            break;
        }
    }
}

#[tokio::test]
async fn a_state_store_that_comes_back_as_it_was_a_while_ago_costs_no_result() {
    let base = pictures().await;
    let expected = undisturbed(&base).await;
    for at in 0.. {
        let mut world = World::new(&base, at);
        submit(&world);
        let crashed = runs_into_a_crash(&world).await;
        if !crashed {
            break;
        }
        // Where every message was settled before, no worker is left to notice it: the status looks for the results then.
        let somebody_is_left = !world.stores.is_idle();
        State::Older.befall(&world);
        world.restart();
        world.work().await;
        assert!(world.results("b").is_some(), "no results after a crash at {at}");
        if somebody_is_left {
            check(&world, &expected, at);
        }
    }
}

#[tokio::test]
async fn a_state_store_that_comes_back_older_between_two_chunks_strands_no_batch() {
    let base = pictures().await;
    let urls: Vec<_> = (0..6).map(|i| format!("{base}/{i}")).collect();
    for (older, back) in (0..6).flat_map(|older| (older..6).map(move |back| (older, back))) {
        let world = World::new(&base, i64::MAX);
        let mut snapshot = None;
        for (done, message) in messages("b", &urls, 1).into_iter().enumerate() {
            if done == older {
                snapshot = Some(world.stores.batches.lock().clone());
            }
            if done == back {
                *world.stores.batches.lock() = snapshot.clone().unwrap();
            }
            world.stores.send(message);
            world.work().await;
        }
        let status = world.stores.batches.lock()["b"].status.clone();
        assert_eq!(status.phase, BatchPhase::Completed, "as after {older}, when {back} were done");
        let (items, summaries) = world.published("b");
        assert_eq!((items.len(), summaries.len()), (6, 1));
        assert_eq!(items, world.items("b"));
        let left = world.stores.objects.lock().keys().filter(|key| key.starts_with("batches/")).count();
        assert_eq!(left, 0, "parts are left over");
    }
}

#[tokio::test]
async fn a_loss_that_nobody_lived_to_note_costs_no_result() {
    let base = pictures().await;
    let expected = undisturbed(&base).await;
    for at in (0..120).step_by(5) {
        // A second crash right after the first, so that the worker that noticed the loss is gone.
        for again in 0..10 {
            let mut world = World::new(&base, at);
            submit(&world);
            let mut somebody_is_left = true;
            for next in [Some(again), None] {
                let worker = world.start();
                tokio::select! {
                    () = world.trip.tripped.notified() => {}
                    () = world.idle() => {}
                }
                worker.abort();
                let _ = worker.await;
                world.restart();
                if let Some(next) = next {
                    State::Lost.befall(&world);
                    somebody_is_left = !world.stores.is_idle();
                    world.trip = Trip::at(next);
                }
            }
            world.work().await;
            if somebody_is_left {
                check(&world, &expected, at);
            }
        }
    }
}

#[tokio::test]
async fn state_that_is_lost_while_a_worker_works_costs_no_result() {
    let base = pictures().await;
    let expected = undisturbed(&base).await;
    for pause in 0..20 {
        let world = World::new(&base, i64::MAX);
        submit(&world);
        let worker = world.start();
        tokio::time::sleep(Duration::from_micros(pause * 250)).await;
        let before = world.stores.settled.lock().len();
        world.stores.batches.lock().clear();
        world.idle().await;
        worker.abort();
        let _ = worker.await;
        if before < 3 {
            check(&world, &expected, -1);
        }
    }
}

#[tokio::test]
async fn two_workers_share_a_batch() {
    let base = pictures().await;
    let expected = undisturbed(&base).await;
    let world = World::new(&base, i64::MAX);
    submit(&world);
    let workers = [world.start(), world.start()];
    world.idle().await;
    for worker in workers {
        worker.abort();
    }
    check(&world, &expected, -1);
    assert_eq!(world.published("b").1.len(), 1);
}
