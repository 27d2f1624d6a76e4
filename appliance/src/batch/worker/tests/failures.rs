//! Images that end the process, that never arrive or fail temporarily, and results that are damaged.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::world::{World, messages, pictures};
use super::{label, letters, outcomes};

/// A URL that is never answered, and a channel that reports each request for it.
pub(super) async fn silent() -> (String, mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (asked, asks) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            if stream.read(&mut head).await.is_ok_and(|read| read > 0) && asked.send(()).is_err() {
                return;
            }
            open.push(stream);
        }
    });
    (url, asks)
}

#[tokio::test]
async fn an_image_at_which_the_process_ends_fails_and_the_rest_is_completed() {
    let mut world = World::new(&pictures().await, i64::MAX);
    let (killer, mut asks) = silent().await;
    let url = |n: u8| format!("{}/{n}", world.base);
    let urls = [url(0), url(1), url(2), killer, url(4), url(5)];
    world.submit("b", &urls, 3);
    world.submit("next", &urls[..2], 2);
    let mut ends = 0;
    loop {
        let worker = world.start();
        let ended = tokio::select! {
            ask = asks.recv() => ask.is_some(),
            () = world.idle() => false,
        };
        worker.abort();
        let _ = worker.await;
        if !ended {
            break;
        }
        ends += 1;
        assert!(ends <= 6, "the message is redelivered without end");
        while asks.try_recv().is_ok() {}
        world.restart();
    }
    assert_eq!(ends, 6, "3 starts with all images at once, 3 with one at a time");
    let expected = [label(0), label(1), label(2), "worker_crashed".into(), label(4), label(5)];
    assert_eq!(outcomes(&world, "b"), expected);
    assert_eq!(outcomes(&world, "next"), [label(0), label(1)]);
    assert_eq!(world.published("b").1.len(), 1);
    let letters = letters(&world);
    assert_eq!((letters.len(), letters[0]["images"][0]["index"].as_u64()), (1, Some(3)));
}

#[tokio::test]
async fn ends_of_the_process_from_outside_fail_no_image() {
    let mut world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..12).map(|i| format!("{}/{i}", world.base)).collect();
    world.submit("b", &urls, 6);
    // Both messages are suspect, and each process ends after two more images.
    for position in ["requests-0-0", "requests-0-1"] {
        for step in 0..3 {
            world.stores.work.lock().entry(position.to_owned()).or_default().begin(None, step);
        }
    }
    let mut ends = 0;
    while !world.stores.is_idle() && ends < 6 {
        let begun = world.stores.begun.load(Ordering::SeqCst);
        let worker = world.start();
        let goes_on = async {
            while world.stores.begun.load(Ordering::SeqCst) < begun + 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = goes_on => ends += 1,
            () = world.idle() => {}
        }
        worker.abort();
        let _ = worker.await;
        world.restart();
    }
    world.work().await;
    assert!(ends > 3, "it was over after {ends}");
    assert_eq!(outcomes(&world, "b"), (0..12).map(label).collect::<Vec<_>>());
    assert!(letters(&world).is_empty());
}

#[tokio::test]
async fn a_message_that_waits_for_its_turn_is_not_started() {
    let mut world = World::new(&pictures().await, i64::MAX);
    let (killer, mut asks) = silent().await;
    world.stores.send(format!(r#"{{"request_id": "bad", "image_urls": ["{killer}"]}}"#));
    let waits = world.stores.send(format!(r#"{{"request_id": "good", "image_urls": ["{}/1"]}}"#, world.base));
    // Both are suspect: after three earlier starts, of any kind.
    for position in ["requests-0-0", &waits] {
        for step in 0..3 {
            world.stores.work.lock().entry(position.to_owned()).or_default().begin(None, step);
        }
    }
    for _ in 0..6 {
        let worker = world.start();
        tokio::time::timeout(Duration::from_secs(60), asks.recv()).await.unwrap().unwrap();
        worker.abort();
        let _ = worker.await;
        while asks.try_recv().is_ok() {}
        let work = world.stores.work.lock().clone();
        assert!(work.get(&waits).is_none_or(|starts| starts.starts == 3), "{work:?}");
        world.restart();
    }
    world.work().await;
    assert_eq!(
        (outcomes(&world, "bad"), outcomes(&world, "good")),
        (vec!["worker_crashed".into()], vec![label(1)])
    );
}

#[tokio::test]
async fn ends_of_the_process_while_a_store_is_away_fail_nothing_and_others_are_worked_on() {
    let mut world = World::new(&pictures().await, i64::MAX);
    let base = world.base.clone();
    let url = |n: usize| format!("{base}/{n}");
    let stuck = world.stores.send(format!(r#"{{"request_id": "stuck", "image_urls": ["{}"]}}"#, url(1)));
    for step in 0..3 {
        world.stores.work.lock().entry(stuck.clone()).or_default().begin(None, step);
    }
    *world.stores.refused.lock() = Some("results/stuck.jsonl".into());
    for round in 0..8 {
        let id = format!("other-{round}");
        world.stores.send(format!(r#"{{"request_id": "{id}", "image_urls": ["{}"]}}"#, url(round)));
        let worker = world.start();
        let worked = async {
            while world.published(&id).0.is_empty()
                || world.stores.work.lock().get(&stuck).is_none_or(|starts| starts.step.is_some())
            {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), worked).await.expect("the others stand still");
        worker.abort();
        let _ = worker.await;
        world.restart();
    }
    *world.stores.refused.lock() = None;
    world.work().await;
    assert_eq!(outcomes(&world, "stuck"), [label(1)]);
    assert!(letters(&world).is_empty());
}

#[tokio::test]
async fn a_batch_takes_no_longer_than_it_may() {
    let world = World::new(&pictures().await, i64::MAX);
    let (tarpit, _asks) = silent().await;
    let urls = vec![tarpit; 40];
    world.submit("slow", &urls, 10);
    let mut worker = world.worker();
    worker.config.time_limit = Duration::from_millis(300);
    let running = tokio::spawn(worker.run(std::future::pending()));
    world.idle().await;
    running.abort();
    assert_eq!(outcomes(&world, "slow"), vec!["deadline_exceeded"; 40]);
    assert_eq!(world.published("slow").1[0].1.status, "failed");
}

#[tokio::test]
async fn a_failure_that_may_pass_is_retried_with_a_limit() {
    let world = World::new(&pictures().await, i64::MAX);
    // 254 fails three times, 253 always.
    let urls = [254, 253, 1].map(|n| format!("{}/{n}", world.base));
    world.submit("b", &urls, 3);
    world.work().await;
    assert_eq!(outcomes(&world, "b"), [label(0), "inference_failed".into(), label(1)]);
    assert_eq!(world.stats.counts().retried_images, 3 + 4);
}

#[tokio::test]
async fn results_that_were_damaged_do_not_stop_the_batch() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..4).map(|n| format!("{}/{n}", world.base)).collect();
    let [first, second] = messages("b", &urls, 2).try_into().unwrap();
    world.stores.send(first);
    world.work().await;
    let part = "batches/b/parts/000000.jsonl";
    let mut damaged = world.stores.object(part).expect("no part").to_vec();
    damaged[3] = 0xff;
    world.stores.objects.lock().insert(part.into(), damaged.clone().into());
    world.stores.send(second);
    world.work().await;
    assert_eq!(outcomes(&world, "b"), ["result_damaged".into(), label(1), label(2), label(3)]);
    assert_eq!(world.published("b").1[0].1.failed, 1);
    assert_eq!(world.stores.object("dead-letter/parts/b-000000.jsonl").unwrap(), damaged);
    assert_eq!(world.stats.counts().damaged_results, 1);
}

#[tokio::test]
async fn a_results_object_that_was_damaged_is_not_read_again_and_again() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..4).map(|n| format!("{}/{n}", world.base)).collect();
    let key = "results/b.jsonl";
    world.record("b", &urls, 4);
    world.submit("b", &urls, 4);
    world.work().await;
    let good = world.results("b").unwrap();
    for damage in [0..good.len(), 3..4, good.len() - 5..good.len() - 4] {
        let mut damaged = good.to_vec();
        damaged[damage.clone()].fill(0xff);
        world.stores.objects.lock().insert(key.into(), damaged.into());
        // The state store has forgotten the batch, so that the object is all that there is.
        world.stores.batches.lock().clear();
        world.submit("b", &urls, 4);
        world.work().await;
        assert_eq!(world.results("b").as_ref(), Some(&good), "{damage:?}: they are made again");
    }
    // Without the record their owner is unknown: they stay, and the message is refused.
    world.stores.objects.lock().remove("batches/b/batch.json");
    world.stores.objects.lock().insert(key.into(), "no results".into());
    world.stores.batches.lock().clear();
    world.submit("b", &urls, 4);
    world.work().await;
    assert_eq!(world.results("b").unwrap(), "no results");
    assert_eq!(letters(&world).len(), 1);
}

#[tokio::test]
async fn what_a_refused_url_leaves_is_small() {
    let world = World::new(&pictures().await, i64::MAX);
    let url = |n: usize| format!("ftp://example.com/{n}/{}", "x".repeat(4070));
    let urls: Vec<_> = (0..4).map(url).collect();
    world.submit("b", &urls, 2);
    // The same messages again find their results.
    world.submit("b", &urls, 2);
    world.work().await;
    assert_eq!(
        (outcomes(&world, "b"), world.stats.counts().duplicates),
        (vec!["invalid_url".to_owned(); 4], 2)
    );
    let items = world.items("b");
    assert!(items[0].image_url.len() <= 256 && items[0].image_url.starts_with("ftp://example.com/0/x"));
    assert_ne!(items[0].image_url, items[1].image_url);
    let largest = world.stores.published.lock().iter().map(|record| record.payload.len()).max().unwrap();
    // 200,000 of them, the most that a batch may have, then take at most 120 MB.
    assert!(largest <= 600, "{largest} bytes");
}
