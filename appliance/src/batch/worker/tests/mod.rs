//! The guarantees of the worker, with stores that can be cut off at every call.

mod cancel;
mod crashes;
mod embedded;
mod failures;
mod ids;
mod stores;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cloud_sync::batch_status::BatchPhase;
use cloud_sync::blob::{BlobStore, DirStore};
use cloud_sync::capture::{Capture, CaptureConfig, CaptureRule};
use cloud_sync::event::ItemOutcome;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use world::{MODEL, World, picture, pictures};

/// The outcome of each image: its label, or the code of the failure.
fn outcomes(world: &World, id: &str) -> Vec<String> {
    let outcome = |outcome: &ItemOutcome| match outcome {
        ItemOutcome::Ok { species, .. } => species.clone(),
        ItemOutcome::Failed { code, .. } => code.clone(),
    };
    world.items(id).iter().map(|item| outcome(&item.outcome)).collect()
}

fn label(seen: usize) -> String {
    MODEL.labels[seen].clone()
}

fn letters(world: &World) -> Vec<Value> {
    let objects = world.stores.objects.lock();
    let letters = objects.iter().filter(|(key, _)| key.starts_with("dead-letter/"));
    letters.map(|(_, letter)| serde_json::from_slice(letter).unwrap()).collect()
}

#[tokio::test]
async fn every_form_of_message_is_worked_off() {
    let world = World::new(&pictures().await, i64::MAX);
    let base = &world.base;
    let bare = world.stores.send(json!({"image_url": format!("{base}/3")}).to_string());
    world.stores.send(
        json!({"request_id": "two", "image_urls": [format!("{base}/1"), format!("{base}/2")]}).to_string(),
    );
    world.stores.send(
        json!({"request_id": "old", "image_urls": [format!("{base}/4")], "timestamp": "2024-05-01T10:00:00",
               "num_images": 1, "camera": "dock", "top_k": 1})
        .to_string(),
    );
    let urls: Vec<_> = (0..5).map(|i| format!("{base}/{i}")).collect();
    world.submit("cut", &urls, 2);
    world.work().await;
    assert_eq!(outcomes(&world, &format!("~{bare}")), [label(3)]);
    assert_eq!(outcomes(&world, "two"), [label(1), label(2)]);
    assert_eq!(outcomes(&world, "old"), [label(4)]);
    assert_eq!(outcomes(&world, "cut"), (0..5).map(label).collect::<Vec<_>>());
    let bare = format!("~{bare}");
    for (id, total) in [(bare.as_str(), 1), ("two", 2), ("old", 1), ("cut", 5)] {
        let (items, summaries) = world.published(id);
        assert_eq!(items, world.items(id));
        let [(_, summary)] = summaries.as_slice() else { panic!("{id}: {summaries:?}") };
        assert_eq!((summary.total, summary.completed, summary.failed), (total, total, 0));
        assert_eq!(summary.results_uri, format!("memory://results/{id}.jsonl"));
        let status = world.stores.batches.lock()[id].status.clone();
        let outcome = status.outcome.unwrap();
        assert_eq!((status.phase, outcome.completed), (BatchPhase::Completed, total));
        let inline: Vec<cloud_sync::event::BatchItem> =
            serde_json::from_str(&outcome.results.unwrap()).unwrap();
        assert_eq!(inline, world.items(id));
    }
    let old = &world.items("old")[0];
    let ItemOutcome::Ok { predictions, confidence, image, .. } = &old.outcome else { panic!("{old:?}") };
    assert_eq!((predictions.len(), *confidence, image.bytes), (1, 0.75, 70));
    let published = world.stores.published.lock().clone();
    let key = |id: &str| {
        published.iter().find(|r| r.payload.windows(id.len()).any(|w| w == id.as_bytes())).unwrap()
    };
    assert_eq!((key("\"old\"").key.as_str(), key("\"two\"").key.as_str()), ("dock", "two"));
    assert!(letters(&world).is_empty());
    assert!(!world.stores.objects.lock().keys().any(|key| key.contains("/parts/")), "parts are left over");
}

#[tokio::test]
async fn every_third_image_is_bad_and_each_says_why() {
    let world = World::new(&pictures().await, i64::MAX);
    let base = world.base.clone();
    world.stores.objects.lock().insert("batches/mixed/files/00000001".into(), picture(5).into());
    world.stores.objects.lock().insert("fish/6.bmp".into(), picture(6).into());
    world.stores.objects.lock().insert("fish/large.bmp".into(), vec![0; 2000].into());
    let table = [
        (format!("{base}/0"), label(0)),
        (format!("{base}/1"), label(1)),
        (format!("{base}/missing"), "fetch_failed".into()),
        ("blob:1".into(), label(5)),
        ("s3://allowed/fish/6.bmp".into(), label(6)),
        (format!("{base}/text"), "unsupported_type".into()),
        (format!("{base}/2"), label(2)),
        (format!("{base}/3"), label(3)),
        (format!("{base}/busy"), "fetch_failed".into()),
        (format!("{base}/4"), label(4)),
        (format!("{base}/5"), label(5)),
        ("http://127.0.0.1:1/".into(), "fetch_failed".into()),
        (format!("{base}/6"), label(6)),
        (format!("{base}/7"), label(7)),
        ("http://10.0.0.1/".into(), "url_refused".into()),
        (format!("{base}/8"), label(8)),
        (format!("{base}/9"), label(9)),
        ("file:///etc/passwd".into(), "invalid_url".into()),
        ("s3://other/fish/6.bmp".into(), "url_refused".into()),
        ("s3://allowed/fish/none.bmp".into(), "not_found".into()),
        ("s3://allowed/fish/large.bmp".into(), "image_too_large".into()),
        ("s3://allowed".into(), "invalid_url".into()),
        ("s3://allowed/../x".into(), "invalid_url".into()),
        ("blob:x".into(), "invalid_url".into()),
        ("blob:2".into(), "not_found".into()),
        ("S3://allowed/fish/6.bmp".into(), label(6)),
        (" s3://allowed/fish/6.bmp".into(), label(6)),
        ("nothing".into(), "invalid_url".into()),
        (format!("{base}/255"), "lane_failed".into()),
    ];
    let urls: Vec<_> = table.iter().map(|(url, _)| url.clone()).collect();
    world.record("mixed", &urls, 10);
    world.submit("mixed", &urls, 10);
    world.work().await;
    let expected: Vec<_> = table.iter().map(|(_, outcome)| outcome.clone()).collect();
    assert_eq!(outcomes(&world, "mixed"), expected);
    let (items, summaries) = world.published("mixed");
    assert_eq!(items, world.items("mixed"));
    let bad = table.iter().filter(|(_, outcome)| !MODEL.labels.contains(outcome)).count() as u64;
    assert_eq!((summaries[0].1.completed, summaries[0].1.failed), (table.len() as u64 - bad, bad));
    let letters = letters(&world);
    assert_eq!(letters.len(), 3, "one a message with failures");
    let images: Vec<_> = letters.iter().flat_map(|l| l["images"].as_array().unwrap()).collect();
    assert_eq!(images.len() as u64, bad);
    assert!(images.iter().all(|i| i["error"].as_str().is_some_and(|e| !e.is_empty())));
    assert!(world.stores.object("dead-letter/2026-01-31/requests-0-0.json").is_some());
    assert_eq!(world.stats.counts().failed, bad);
}

#[tokio::test]
async fn what_others_get_to_see_of_a_url_has_no_password_in_it() {
    let world = World::new(&pictures().await, i64::MAX);
    let signed = format!("{}/missing?X-Amz-Signature=hunter3", world.base);
    let urls = [world.base.replace("//", "//user:hunter2@") + "/1", signed.clone()];
    // The same message again finds its own results, though the URL in them is not the one that was sent.
    world.submit("b", &urls, 2);
    world.submit("b", &urls, 2);
    world.work().await;
    assert_eq!(world.stats.counts().duplicates, 1);
    assert_eq!(outcomes(&world, "b"), ["invalid_url", "fetch_failed"]);
    let items = world.items("b");
    assert_eq!(items[0].image_url, format!("{}/1", world.base));
    assert_eq!(items[1].image_url, signed, "results have the URL as it was sent");
    assert_eq!(world.published("b").0, items);
    let letters = letters(&world);
    assert_eq!(letters[0]["images"][1]["image_url"], json!(format!("{}/missing…", world.base)));
    let text = serde_json::to_string(&letters).unwrap();
    assert!(!text.contains("hunter"), "{text}");
    let text = serde_json::to_string(&items).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn what_is_no_batch_work_is_kept_and_the_rest_goes_on() {
    let world = World::new(&pictures().await, i64::MAX);
    let long = "x".repeat(200_000);
    let positions = [
        world.stores.send("not json"),
        world.stores.send(r#"{"request_id": "b"}"#),
        world.stores.send(vec![0xff, 0xfe, 0x00]),
        world.stores.send(format!("\"{long}")),
    ];
    world.stores.send(json!({"request_id": "good", "image_urls": [format!("{}/1", world.base)]}).to_string());
    world.work().await;
    assert_eq!(outcomes(&world, "good"), [label(1)]);
    for position in &positions {
        let id = format!("~{position}");
        assert_eq!(outcomes(&world, &id), ["invalid_message"]);
        let (items, summaries) = world.published(&id);
        assert_eq!((items.len(), summaries.len()), (1, 1));
        assert_eq!(summaries[0].1.status, "failed");
        let key = format!("dead-letter/2023-11-14/{position}.json");
        let letter: Value = serde_json::from_slice(&world.stores.object(&key).unwrap()).unwrap();
        assert_eq!(letter["position"], json!(position));
    }
    let letters = letters(&world);
    assert_eq!(
        (&letters[0]["message"], letters[1]["reason"].as_str().unwrap().contains("image_url")),
        (&json!("not json"), true)
    );
    assert_eq!(letters[2]["message_base64"], json!("//4A"));
    assert_eq!(
        (letters[3]["message"].as_str().unwrap().len(), &letters[3]["message_bytes"]),
        (64 << 10, &json!(200_001))
    );
    assert_eq!(world.stats.counts().dead_letters, 4);
}

#[tokio::test]
async fn the_same_message_twice_is_published_once() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..6).map(|i| format!("{}/{i}", world.base)).collect();
    world.submit("b", &urls, 2);
    world.submit("b", &urls, 2);
    world.work().await;
    world.submit("b", &urls, 2);
    world.work().await;
    let (items, summaries) = world.published("b");
    assert_eq!((items.len(), summaries.len()), (6, 1));
    assert_eq!(items, world.items("b"));
    assert_eq!(world.stats.counts().duplicates, 6);
    assert!(letters(&world).is_empty());
}

#[tokio::test]
async fn another_batch_of_the_same_id_is_refused_and_spoils_nothing() {
    let world = World::new(&pictures().await, i64::MAX);
    let url = |i: usize| format!("{}/{i}", world.base);
    world.submit("b", &[url(1), url(2), url(3)], 2);
    world.work().await;
    let before = world.results("b");
    let same_size =
        world.stores.send(json!({"request_id": "b", "image_urls": [url(4), url(5), url(6)]}).to_string());
    let other_size = world.stores.send(json!({"request_id": "b", "image_urls": [url(7)]}).to_string());
    world.work().await;
    assert_eq!(world.results("b"), before);
    assert_eq!(world.published("b").0.len(), 3);
    for position in [same_size, other_size] {
        assert_eq!(outcomes(&world, &format!("~{position}")), ["invalid_message"]);
    }
    assert!(letters(&world)[0]["reason"].as_str().unwrap().contains("another batch"));
}

#[tokio::test]
async fn stores_that_are_away_are_waited_for_and_fail_nothing() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..6)
        .map(|i| if i % 2 == 0 { format!("s3://allowed/{i}") } else { format!("{}/{i}", world.base) })
        .collect();
    for i in [0_u8, 2, 4] {
        world.stores.objects.lock().insert(i.to_string(), picture(i).into());
    }
    world.submit("b", &urls, 3);
    world.trip.outage.store(40, Ordering::SeqCst);
    let worker = world.start();
    while world.trip.calls.load(Ordering::SeqCst) < 45 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.trip.outage.store(30, Ordering::SeqCst);
    world.idle().await;
    worker.abort();
    assert_eq!(world.trip.outage.load(Ordering::SeqCst), 0, "the outage was not met");
    assert_eq!(outcomes(&world, "b"), (0..6).map(label).collect::<Vec<_>>());
    assert_eq!(world.published("b").0.len(), 6);
    assert!(letters(&world).is_empty());
}

#[tokio::test]
async fn a_result_that_the_topic_refuses_does_not_hold_back_the_others() {
    let world = World::new(&pictures().await, i64::MAX);
    // The topic of this world takes 100,000 bytes, which only the record with the long URL goes beyond.
    let mut worker = world.worker();
    worker.settings.node = "n".repeat(97_000);
    let urls = [format!("{}/{}", world.base, "0".repeat(3500)), format!("{}/1", world.base)];
    world.stores.send(json!({"request_id": "b", "image_urls": urls}).to_string());
    let running = tokio::spawn(worker.run(std::future::pending()));
    world.idle().await;
    running.abort();
    assert_eq!(world.stats.counts().refused_results, 1);
    let (items, summaries) = world.published("b");
    assert_eq!((items.len(), items[0].index, summaries.len()), (1, 1, 1));
    assert_eq!(outcomes(&world, "b"), [label(0), label(1)]);
}

#[tokio::test]
async fn a_stop_finishes_or_gives_back_what_is_in_hand() {
    let world = World::new(&pictures().await, i64::MAX);
    let urls: Vec<_> = (0..6).map(|i| format!("{}/{i}", world.base)).collect();
    world.submit("b", &urls, 2);
    // The stores are away for longer than the grace period lasts.
    world.trip.outage.store(usize::MAX, Ordering::SeqCst);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(world.worker().run(async { drop(stopped.await) }));
    while world.stores.out.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(30), running).await.expect("it does not stop").unwrap();
    assert!(world.stores.out.lock().is_empty(), "a message is lost");
    assert_eq!(world.stores.jobs.lock().len(), 3);
    assert_eq!(world.stats.counts().in_hand, 0);
}

#[tokio::test]
async fn a_message_that_panicked_does_not_outlast_the_grace_period() {
    let world = World::new(&pictures().await, i64::MAX);
    world.trip.faulty.store(true, Ordering::SeqCst);
    world.submit("b", &[format!("{}/1", world.base)], 1);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // The pause after a panic would outlast the grace period by far.
    let mut worker = world.worker();
    worker.settings.fault_pause = Duration::from_secs(600);
    let running = tokio::spawn(worker.run(async { drop(stopped.await) }));
    while world.trip.calls.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let began = Instant::now();
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), running).await.expect("it does not stop").unwrap();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(world.stores.out.lock().is_empty() && world.stores.jobs.lock().len() == 1);
}

/// Waits for an effect after the settlement.
async fn until(what: &str, mut there: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if there().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn files(world: &World, id: &str) -> usize {
    let prefix = format!("batches/{id}/");
    world.stores.objects.lock().keys().filter(|key| key.starts_with(&prefix)).count()
}

#[tokio::test]
async fn files_go_when_their_batch_is_finished_where_that_is_asked_for() {
    let world = World::new(&pictures().await, i64::MAX);
    for id in ["kept", "gone", "waits"] {
        for n in 0..3 {
            let key = format!("batches/{id}/files/{n:08}");
            world.stores.objects.lock().insert(key, picture(n).into());
        }
    }
    let urls = ["blob:0", "blob:1", "blob:2"].map(str::to_owned);
    world.submit("kept", &urls, 2);
    world.work().await;
    assert_eq!((world.items("kept").len(), files(&world, "kept")), (3, 3));
    let mut worker = world.worker();
    worker.settings.remove_files = true;
    world.submit("gone", &urls, 2);
    let running = tokio::spawn(worker.run(std::future::pending()));
    until("the files are gone", async || files(&world, "gone") == 0).await;
    running.abort();
    assert_eq!((world.items("gone").len(), files(&world, "waits")), (3, 3));
    // A redelivered message finds the results, not the files.
    let results = world.results("gone");
    world.submit("gone", &urls, 2);
    world.work().await;
    assert_eq!(world.results("gone"), results);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_captured_by_rule_under_their_camera() {
    let world = World::new(&pictures().await, i64::MAX);
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(DirStore::open(dir.path().join("blobs")).unwrap());
    let config = CaptureConfig::new(dir.path().join("captured"), CaptureRule::Below(0.8), "box-1");
    let capture = Arc::new(Capture::open(config, store.clone(), &Handle::current()).unwrap());
    let mut worker = world.worker();
    worker.capture = Some(Arc::clone(&capture));
    let url = |n: u8| format!("{}/{n}", world.base);
    let urls = [url(1), url(1), format!("{}/text", world.base)];
    world.stores.send(json!({"request_id": "named", "image_urls": urls, "camera": "dock"}).to_string());
    world.stores.send(json!({"request_id": "other", "image_urls": [url(2)]}).to_string());
    let running = tokio::spawn(worker.run(std::future::pending()));
    until("both images are captured", async || capture.stats().sent == 2).await;
    world.idle().await;
    running.abort();
    let page = store.list("datasets/captured/", None).await.unwrap();
    let digest = |n: u8| blake3::hash(&picture(n)).to_hex().to_string();
    let ends: Vec<String> =
        page.objects.iter().map(|object| object.key.splitn(4, '/').last().unwrap().to_owned()).collect();
    let expected = [("batch", 2, "bmp"), ("batch", 2, "json"), ("dock", 1, "bmp"), ("dock", 1, "json")];
    assert_eq!(ends, expected.map(|(camera, n, kind)| format!("{camera}/{}.{kind}", digest(n))));
}
