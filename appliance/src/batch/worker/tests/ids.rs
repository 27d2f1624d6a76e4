//! Ids that two batches use: results stay those of the first, also when the state store has forgotten it.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::world::{World, picture, pictures};
use super::{label, letters, outcomes};

/// The status of every batch has been forgotten, as after its time to live.
fn forget(world: &World) {
    world.stores.batches.lock().clear();
}

#[tokio::test]
async fn an_id_that_looks_like_the_place_of_a_message_takes_nothing_from_it() {
    let world = World::new(&pictures().await, i64::MAX);
    let url = |i: usize| format!("{}/{i}", world.base);
    // A client that guesses the positions of future messages.
    for place in 1..4 {
        world.submit(&format!("requests-0-{place}"), &[url(5)], 1);
    }
    let bare = world.stores.send(json!({"image_url": url(3)}).to_string());
    let broken = world.stores.send("not json");
    world.work().await;
    assert_eq!((bare.as_str(), broken.as_str()), ("requests-0-3", "requests-0-4"));
    for place in 1..4 {
        assert_eq!(outcomes(&world, &format!("requests-0-{place}")), [label(5)]);
    }
    assert_eq!(outcomes(&world, "~requests-0-3"), [label(3)]);
    assert_eq!(outcomes(&world, "~requests-0-4"), ["invalid_message"]);
    let published = world.stores.published.lock().len();
    assert_eq!(published, 2 * 5, "each has its result and its summary");
}

#[tokio::test]
async fn results_outlive_their_status_and_are_not_overwritten() {
    let world = World::new(&pictures().await, i64::MAX);
    let url = |i: usize| format!("{}/{i}", world.base);
    let message = |urls: &[String]| json!({"request_id": "b", "image_urls": urls}).to_string();
    world.stores.send(message(&[url(1), url(2)]));
    world.work().await;
    let before = world.results("b").unwrap();
    // Other images, fewer of the same, more of the same, a part of a larger batch.
    let part =
        json!({"request_id": "b", "image_urls": [url(1)], "chunk": 0, "chunks": 2, "total": 2, "first": 0});
    let others = [
        message(&[url(3), url(4)]),
        message(&[url(1)]),
        message(&[url(1), url(2), url(3)]),
        part.to_string().replace("\"total\":2", "\"total\":3"),
    ];
    for other in others {
        forget(&world);
        let place = world.stores.send(other);
        let neighbour = world.stores.send(json!({"image_url": url(6)}).to_string());
        world.work().await;
        assert_eq!(world.results("b").as_ref(), Some(&before));
        assert_eq!(outcomes(&world, &format!("~{place}")), ["invalid_message"]);
        assert_eq!(outcomes(&world, &format!("~{neighbour}")), [label(6)]);
        assert!(!world.stores.batches.lock().contains_key("b"), "a refused message has left a status");
    }
    assert_eq!(letters(&world).len(), 4);
    assert!(letters(&world).iter().all(|l| l["reason"].as_str().unwrap().contains("another batch")));
    // The same images are the same batch.
    forget(&world);
    let classified = world.stats.counts().classified;
    world.stores.send(message(&[url(1), url(2)]));
    world.work().await;
    assert_eq!(world.results("b"), Some(before));
    assert_eq!(world.stats.counts().classified, classified, "it was computed again");
    assert!(world.stores.batches.lock()["b"].status.outcome.is_some());
}

#[tokio::test]
async fn a_posted_batch_is_not_taken_for_that_of_a_message() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..4).map(|i| format!("{}/{i}", world.base)).collect();
    // It waits in the queue for so long that its status is forgotten.
    world.record("b", &urls, 2);
    let stranger = world.stores.send(json!({"request_id": "b", "image_urls": [urls[3]]}).to_string());
    world.work().await;
    assert_eq!(outcomes(&world, &format!("~{stranger}")), ["invalid_message"]);
    assert_eq!(world.results("b"), None);
    world.submit("b", &urls, 2);
    world.work().await;
    assert_eq!(outcomes(&world, "b"), (0..4).map(label).collect::<Vec<_>>());
}

#[tokio::test]
async fn only_the_batch_with_which_a_file_was_posted_may_name_it() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls = ["blob:0".to_owned()];
    let put = |id: &str| {
        world.stores.objects.lock().insert(format!("batches/{id}/files/00000000"), picture(7).into());
    };
    ["mine", "orphan"].into_iter().for_each(put);
    world.record("mine", &urls, 1);
    // Without the record, with files that are left over.
    world.stores.send(json!({"request_id": "orphan", "image_urls": urls}).to_string());
    // With it, but with another digest.
    let stranger = world.stores.send(json!({"request_id": "mine", "image_urls": urls}).to_string());
    world.work().await;
    assert_eq!(outcomes(&world, "orphan"), ["not_found"]);
    assert_eq!(outcomes(&world, &format!("~{stranger}")), ["invalid_message"]);
    assert!(!world.stores.published.lock().iter().any(|r| r.payload.windows(4).any(|w| w == b"\"ok\"")));
    world.submit("mine", &urls, 1);
    world.work().await;
    assert_eq!(outcomes(&world, "mine"), [label(7)]);
}

#[tokio::test]
async fn a_message_on_which_the_work_always_breaks_off_is_given_up() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..4).map(|i| format!("{}/{i}", world.base)).collect();
    world.submit("b", &urls, 2);
    world.stores.send(json!({"request_id": "next", "image_urls": [urls[1]]}).to_string());
    // Three times beside others, and then alone: so often that it is no accident.
    world.stores.panics.store(100, Ordering::SeqCst);
    *world.stores.panics_on.lock() = Some(("b".into(), 1));
    world.work().await;
    assert_eq!(outcomes(&world, "b"), [label(0), label(1), "internal".into(), "internal".into()]);
    assert_eq!(outcomes(&world, "next"), [label(1)]);
    assert_eq!(world.published("b").1.len(), 1, "the batch ends");
    let letters = letters(&world);
    assert_eq!(letters.len(), 1);
    assert!(letters[0]["reason"].as_str().unwrap().contains("program error"));
}
