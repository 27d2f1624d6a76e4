//! What a worker does beside results: files of finished batches are removed, images are captured.

use std::sync::Arc;
use std::time::Duration;

use cloud_sync::blob::{BlobStore, DirStore};
use cloud_sync::capture::{Capture, CaptureConfig, CaptureRule};
use serde_json::json;
use tokio::runtime::Handle;

use super::world::{World, picture, pictures};

/// Waits for what comes after the settlement.
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
    // A message that comes again finds the results, not the files.
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
