//! Submissions on stores that fail at every step.

mod status;

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cloud_sync::batch_status::BatchPhase;
use cloud_sync::blob::{Bound, DirStore};
use serde_json::Value;

use super::testing::MemoryStores;
use super::*;
use crate::config::Config;

struct Bench {
    service: Arc<BatchService>,
    stores: MemoryStores,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stores = MemoryStores::default();
        let service = open(&dir, &stores, 4);
        Self { service, stores, dir }
    }

    async fn submit(&self, body: &str) -> Result<Accepted, BatchError> {
        let intake = self.read("application/json", body.as_bytes()).await?;
        self.service.submit(intake).await
    }

    async fn post_files(&self, files: &[&str]) -> Result<Accepted, BatchError> {
        let intake = self.read("multipart/form-data; boundary=b", form("files-1", files).as_bytes()).await?;
        self.service.submit(intake).await
    }

    async fn read(&self, content_type: &str, body: &[u8]) -> Result<Intake, BatchError> {
        let (mut file, path) = self.service.spool().create().unwrap().into_parts();
        file.write_all(body).unwrap();
        self.service.read(path, content_type, BatchOptions::default()).await
    }

    /// The messages in the queue.
    fn messages(&self) -> Vec<Value> {
        let jobs = self.stores.queue.jobs.lock();
        jobs.iter().map(|job| serde_json::from_slice(&job.payload).unwrap()).collect()
    }

    fn keys(&self) -> Vec<String> {
        self.stores.blob.objects.lock().keys().cloned().collect()
    }

    /// Nothing stays in the spool.
    fn assert_tidy(&self) {
        assert_eq!(std::fs::read_dir(self.dir.path().join("spool")).unwrap().count(), 0);
    }
}

fn open(dir: &tempfile::TempDir, stores: &MemoryStores, chunk: usize) -> Arc<BatchService> {
    let mut config = Config { data_dir: dir.path().to_path_buf(), ..Config::default() };
    config.batch.chunk = chunk;
    BatchService::open(stores.stores(), &config, Box::new(|| 17)).unwrap()
}

fn body(id: &str, images: usize) -> String {
    let urls: Vec<String> = (0..images).map(|i| format!("http://cameras/{i}.jpg")).collect();
    serde_json::json!({"request_id": id, "image_urls": urls, "camera": "dock-3", "top_k": 2}).to_string()
}

fn form(id: &str, files: &[&str]) -> String {
    let mut body: String = files
        .iter()
        .map(|f| {
            format!("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n{f}\r\n")
        })
        .collect();
    body += &format!("--b\r\nContent-Disposition: form-data; name=\"request_id\"\r\n\r\n{id}\r\n--b--\r\n");
    body
}

/// The messages, put together, are the batch: each image once, in its place.
fn assert_whole(messages: &[Value], images: usize) {
    let mut seen = vec![false; images];
    for message in messages {
        let first = usize::try_from(message["first"].as_u64().unwrap()).unwrap();
        for (i, url) in message["image_urls"].as_array().unwrap().iter().enumerate() {
            assert_eq!(url.as_str().unwrap(), format!("http://cameras/{}.jpg", first + i));
            seen[first + i] = true;
        }
    }
    assert!(seen.iter().all(|s| *s), "{seen:?}");
}

#[tokio::test]
async fn a_batch_becomes_messages_a_record_and_a_status() {
    let bench = Bench::new();
    let taken = bench.submit(&body("mine", 10)).await.unwrap();
    let expected =
        Accepted { request_id: "mine".into(), phase: BatchPhase::Queued, total: 10, repeated: false };
    assert_eq!(taken, expected);
    let messages = bench.messages();
    assert_eq!(messages.len(), 3, "10 images, at most 4 a message");
    assert_whole(&messages, 10);
    for (chunk, message) in messages.iter().enumerate() {
        assert_eq!((&message["request_id"], &message["camera"]), (&"mine".into(), &"dock-3".into()));
        assert_eq!((&message["total"], &message["chunks"]), (&10.into(), &3.into()));
        assert_eq!((&message["chunk"], &message["top_k"]), (&chunk.into(), &2.into()));
        assert_eq!(message["digest"].as_str().unwrap().len(), 64);
        assert!(humantime::parse_rfc3339(message["submitted_at"].as_str().unwrap()).is_ok());
    }
    let jobs: Vec<_> = bench.stores.queue.jobs.lock().iter().map(|job| job.key.clone()).collect();
    assert_eq!(jobs, ["mine/0", "mine/1", "mine/2"]);
    assert_eq!(bench.keys(), ["batches/mine/batch.json"]);
    let status = bench.service.status("mine").await.unwrap();
    assert_eq!((status.phase, status.total, status.completed), (BatchPhase::Queued, 10, 0));
    bench.assert_tidy();
}

#[tokio::test]
async fn files_are_stored_under_their_places_before_the_work_is_queued() {
    let bench = Bench::new();
    let files: Vec<String> = (0..11).map(|i| format!("image {i}")).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let taken = bench.post_files(&files).await.unwrap();
    assert_eq!((taken.request_id.as_str(), taken.total), ("files-1", 11));
    {
        let objects = bench.stores.blob.objects.lock();
        for (i, file) in files.iter().enumerate() {
            assert_eq!(objects[&format!("batches/files-1/files/{i:08}")], file.as_bytes());
        }
    }
    let urls: Vec<Value> = bench
        .messages()
        .iter()
        .flat_map(|message| message["image_urls"].as_array().unwrap().clone())
        .collect();
    assert_eq!(urls, (0..11).map(|i| Value::from(format!("blob:{i}"))).collect::<Vec<_>>());
    assert!(bench.post_files(&files).await.unwrap().repeated);
    assert!(matches!(bench.post_files(&files[1..]).await, Err(BatchError::IdTaken { .. })));
    bench.assert_tidy();
}

#[tokio::test]
async fn a_batch_without_room_is_refused_and_leaves_nothing() {
    let mut bench = Bench::new();
    // Ten blocks of the disk, nine of which are for new batches.
    let bound = Bound { max_bytes: 10 * 4096, min_free: 0, share: gc::share };
    let store = DirStore::open_bounded(bench.dir.path().join("blobs"), bound).unwrap();
    let stores = BatchStores { blob: Arc::new(store.clone()), ..bench.stores.stores() };
    let config = Config { data_dir: bench.dir.path().to_path_buf(), ..Config::default() };
    bench.service = BatchService::open(stores, &config, Box::new(|| 17)).unwrap();
    let files = ["an image"; 9];
    // Nine files leave no room for the record, and ten not for all of the files.
    for too_many in [&files[..], &["an image"; 10]] {
        let error = bench.post_files(too_many).await.unwrap_err();
        assert!(matches!(&error, BatchError::StoreFull { .. }), "{error}");
        assert!(error.to_string().contains("blobs.max_bytes"), "{error}");
        assert_eq!(store.list("", None).await.unwrap().objects, []);
        assert!(matches!(bench.service.status("files-1").await, Err(BatchError::Unknown { .. })));
    }
    assert!(!bench.post_files(&files[..8]).await.unwrap().repeated);
    let error = bench.submit(&body("urls", 1)).await.unwrap_err();
    assert!(matches!(&error, BatchError::StoreFull { .. }), "{error}");
    bench.assert_tidy();
}

#[tokio::test]
async fn the_same_id_is_the_same_batch_and_nothing_else() {
    let bench = Bench::new();
    bench.submit(&body("mine", 10)).await.unwrap();
    let again = bench.submit(&body("mine", 10)).await.unwrap();
    assert!(again.repeated);
    assert_eq!(bench.messages().len(), 3, "the work is queued once");
    let other = bench.submit(&body("mine", 9)).await.unwrap_err();
    assert!(matches!(&other, BatchError::IdTaken { request_id } if request_id == "mine"), "{other}");

    bench.stores.finish("mine", "{\"status\":\"ok\"}\n", None);
    let finished = bench.submit(&body("mine", 10)).await.unwrap();
    assert_eq!((finished.phase, finished.repeated), (BatchPhase::Completed, true));

    // The state store forgets; the record does not.
    bench.stores.state.batches.lock().clear();
    let forgotten = bench.submit(&body("mine", 10)).await.unwrap();
    assert_eq!((forgotten.phase, forgotten.repeated), (BatchPhase::Completed, true));
    bench.stores.state.batches.lock().clear();
    assert!(matches!(bench.submit(&body("mine", 9)).await, Err(BatchError::IdTaken { .. })));
    assert_eq!(bench.messages().len(), 3);

    let ids: HashSet<_> = [
        bench.submit(r#"{"image_urls": ["http://a/1"]}"#).await.unwrap().request_id,
        bench.submit(r#"{"image_urls": ["http://a/1"]}"#).await.unwrap().request_id,
    ]
    .into();
    assert_eq!(ids.len(), 2, "without an id every batch is a new one");
}

#[tokio::test]
async fn a_submission_that_broke_off_anywhere_is_finished_by_repeating_it() {
    type Break = fn(&MemoryStores);
    let breaks: [(&str, Break); 7] = [
        ("s3", |stores| stores.blob.faults.fail("get", 1)),
        ("redis", |stores| stores.state.faults.fail("create_batch", 1)),
        ("s3", |stores| stores.blob.faults.fail("put", 1)),
        ("kafka", |stores| stores.queue.breaks_after.store(1, Ordering::Relaxed)),
        ("kafka", |stores| stores.queue.breaks_after.store(3, Ordering::Relaxed)),
        ("redis", |stores| stores.state.faults.fail("batch_submitted", 1)),
        ("redis", |stores| {
            stores.queue.breaks_after.store(2, Ordering::Relaxed);
            stores.state.faults.fail("batch", 1);
        }),
    ];
    for (i, (link, break_it)) in breaks.into_iter().enumerate() {
        let bench = Bench::new();
        break_it(&bench.stores);
        let mut error = bench.submit(&body("mine", 10)).await.unwrap_err();
        if i == 6 {
            // The second submission reads the status that the first has left, and that call fails too.
            error = bench.submit(&body("mine", 10)).await.unwrap_err();
        }
        assert_eq!(error.request_id(), Some("mine"));
        assert!(error.to_string().contains(link) && !error.to_string().contains("10.20"), "{i}: {error}");
        let taken = bench.submit(&body("mine", 10)).await.unwrap_or_else(|e| panic!("{i}: {e}"));
        assert!(!taken.repeated, "{i}");
        assert_whole(&bench.messages(), 10);
        assert!(bench.stores.state.batches.lock()["mine"].submitted, "{i}");
        assert!(bench.submit(&body("mine", 10)).await.unwrap().repeated, "{i}");
        bench.assert_tidy();
    }
}

#[tokio::test]
async fn a_batch_is_cut_the_same_way_when_it_is_submitted_again() {
    let bench = Bench::new();
    bench.stores.queue.breaks_after.store(2, Ordering::Relaxed);
    bench.submit(&body("mine", 10)).await.unwrap_err();
    // Another configuration, after a restart.
    let Bench { service, stores, dir } = bench;
    drop(service);
    let bench = Bench { service: open(&dir, &stores, 100), stores, dir };
    bench.submit(&body("mine", 10)).await.unwrap();
    let messages = bench.messages();
    assert_eq!(messages.len(), 2 + 3);
    assert_eq!(messages[0], messages[2]);
    assert_eq!(messages[1], messages[3]);
}

#[tokio::test]
async fn a_full_queue_takes_nothing_and_leaves_nothing() {
    let bench = Bench::new();
    bench.stores.queue.limit.store(100, Ordering::Relaxed);
    for _ in 0..2 {
        let error = bench.submit(&body("mine", 10)).await.unwrap_err();
        assert!(
            matches!(&error, BatchError::QueueFull { request_id, .. } if request_id == "mine"),
            "{error}"
        );
        let error = bench.post_files(&["a", "b", "c", "d", "e"]).await.unwrap_err();
        assert!(matches!(error, BatchError::QueueFull { .. }), "{error}");
        assert!(bench.messages().is_empty() && bench.keys().is_empty(), "{:?}", bench.keys());
        assert!(matches!(bench.service.status("mine").await, Err(BatchError::Unknown { .. })));
    }
    // A batch accepted before stays, even if the state store has forgotten it and the queue is full.
    bench.stores.queue.limit.store(0, Ordering::Relaxed);
    bench.submit(&body("kept", 10)).await.unwrap();
    bench.stores.state.batches.lock().clear();
    bench.stores.queue.limit.store(100, Ordering::Relaxed);
    assert!(matches!(bench.submit(&body("kept", 10)).await, Err(BatchError::QueueFull { .. })));
    assert_eq!(bench.keys(), ["batches/kept/batch.json"]);
    bench.stores.blob.objects.lock().clear();
    bench.stores.queue.limit.store(50, Ordering::Relaxed);
    assert!(matches!(bench.submit(&body("mine", 10)).await, Err(BatchError::TooMuch { limit: 50 })));
    assert!(bench.keys().is_empty());
    bench.stores.queue.limit.store(0, Ordering::Relaxed);
    bench.submit(&body("mine", 9)).await.unwrap();
    bench.post_files(&["a"]).await.unwrap();
}

#[tokio::test]
async fn submissions_are_bounded_and_one_at_a_time_for_an_id() {
    let bench = Bench::new();
    let permits: Vec<_> = (0..MAX_SUBMISSIONS).map(|_| bench.service.admit().unwrap()).collect();
    assert!(matches!(bench.service.admit(), Err(BatchError::Busy { limit: MAX_SUBMISSIONS, .. })));
    drop(permits);
    assert!(bench.service.admit().is_ok());

    bench.service.submitting.lock().insert("mine".into());
    let error = bench.submit(&body("mine", 1)).await.unwrap_err();
    assert!(matches!(error, BatchError::BeingSubmitted { .. }), "{error}");
    bench.service.submitting.lock().clear();
    bench.submit(&body("mine", 1)).await.unwrap();
    assert!(bench.service.submitting.lock().is_empty());
}

#[tokio::test]
async fn results_of_a_batch_that_came_as_a_message_are_not_overwritten() {
    let bench = Bench::new();
    bench.stores.blob.objects.lock().insert("results/mine.jsonl".into(), "{}\n".into());
    assert!(matches!(bench.submit(&body("mine", 2)).await, Err(BatchError::IdTaken { .. })));
    assert!(bench.messages().is_empty() && bench.stores.state.batches.lock().is_empty());
    assert_eq!(bench.keys(), ["results/mine.jsonl"]);
    bench.submit(&body("other", 2)).await.unwrap();
    // Results of a message without an id are found under its synthetic id, which no client can choose.
    bench
        .stores
        .blob
        .objects
        .lock()
        .insert("results/~requests-0-7.jsonl".into(), "{\"status\":\"ok\"}\n".into());
    assert_eq!(bench.service.status("~requests-0-7").await.unwrap().phase, BatchPhase::Completed);
    assert_eq!(bench.service.results("~requests-0-7").await.unwrap().bytes, 16);
    let chosen = bench.submit(&body("~requests-0-8", 2)).await.unwrap_err();
    assert!(matches!(chosen, BatchError::Intake(_)), "{chosen}");
}
