//! Bounds of the loader, and what is retried and what is not.

use std::collections::BTreeMap;
use std::time::Instant;

use async_trait::async_trait;
use cloud_sync::blob::{BlobInfo, BlobKey, BlobPage};
use cloud_sync::error::{Link, SyncError, SyncResult};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Has one object, `k`, which is also the first file of each batch.
#[derive(Debug, Default)]
struct Store {
    /// Remaining reads that don't reach it.
    away: AtomicUsize,
    /// Remaining reads that are refused.
    refuses: AtomicUsize,
    /// Remaining listings that are refused.
    closed: AtomicUsize,
    calls: AtomicUsize,
    /// Bytes of the object.
    bytes: usize,
    /// Bytes that the current reads may return, and their maximum so far.
    reading: AtomicUsize,
    most: AtomicUsize,
}

/// Takes one off a count, unless it is zero.
fn one_of(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl BlobStore for Store {
    async fn put(&self, _: &BlobKey, _: Bytes, _: &str) -> SyncResult<()> {
        Ok(())
    }
    async fn put_file(&self, _: &BlobKey, _: &std::path::Path, _: &str) -> SyncResult<()> {
        Ok(())
    }
    async fn get(&self, key: &BlobKey, bound: u64) -> SyncResult<Option<Bytes>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if one_of(&self.refuses) {
            return Err(SyncError::permanent(Link::S3, "access denied"));
        }
        if one_of(&self.away) {
            return Err(SyncError::transient(Link::S3, "connection refused"));
        }
        if key.as_str() != "k" && !key.as_str().ends_with("/files/00000000") {
            return Ok(None);
        }
        if self.bytes as u64 > bound {
            let large = TooLarge { bytes: self.bytes as u64, bound };
            return Err(SyncError::permanent(Link::S3, "it can't be read").because(large));
        }
        let reading = self.reading.fetch_add(bound as usize, Ordering::SeqCst) + bound as usize;
        self.most.fetch_max(reading, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.reading.fetch_sub(bound as usize, Ordering::SeqCst);
        Ok(Some(vec![7; self.bytes].into()))
    }
    async fn get_file(&self, _: &BlobKey, _: &std::path::Path) -> SyncResult<Option<u64>> {
        Ok(None)
    }
    async fn head(&self, _: &BlobKey) -> SyncResult<Option<BlobInfo>> {
        Ok(None)
    }
    async fn list(&self, _: &str, _: Option<&str>) -> SyncResult<BlobPage> {
        match one_of(&self.closed) {
            true => Err(SyncError::permanent(Link::S3, "the keys are refused")),
            false => Ok(BlobPage::default()),
        }
    }
    async fn delete(&self, _: &BlobKey) -> SyncResult<()> {
        Ok(())
    }
    fn uri(&self, key: &BlobKey) -> String {
        key.to_string()
    }
}

/// A loader with `max_inflight` bytes of memory.
fn loader(store: Store, max_inflight: usize) -> (Arc<Loader>, Arc<Store>) {
    loader_of(store, 64 << 10, max_inflight)
}

fn loader_of(store: Store, max_bytes: usize, max_inflight: usize) -> (Arc<Loader>, Arc<Store>) {
    let store = Arc::new(store);
    // Batch loads get half.
    let memory = BodyMemory::new(2 * max_inflight, max_bytes);
    let limits =
        LoadLimits { max_bytes, memory, concurrent_fetches: 4, attempts: 3, pause: Duration::from_millis(1) };
    let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let fetch = FetchConfig { allow_networks, timeout: Duration::from_secs(5), ..FetchConfig::default() };
    let retry = Arc::new(RetryPolicy::new(Duration::from_millis(1), Duration::from_millis(2)));
    let own = OwnBucket {
        name: "own".into(),
        prefix: String::new(),
        allow_prefixes: Vec::new(),
        store: store.clone(),
    };
    let stores = BTreeMap::from(["fish", "own"].map(|name| (name.to_owned(), store.clone() as _)));
    let buckets = Buckets { stores, own: Some(own) };
    (Arc::new(Loader::new(fetch, limits, store.clone(), buckets, retry)), store)
}

/// Answers the n-th request with the n-th status and a body of that length; from the last one on always with the last.
async fn server(answers: &'static [(u16, usize)]) -> (String, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    let (served, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, peak, now) = (Arc::clone(&served), Arc::clone(&most), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (count, peak, now) = (Arc::clone(&count), Arc::clone(&peak), Arc::clone(&now));
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let (status, length) = answers[count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
                tokio::time::sleep(Duration::from_millis(2)).await;
                let head =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                now.fetch_sub(1, Ordering::SeqCst);
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&vec![7; length]).await;
            });
        }
    });
    (url, served, most)
}

/// What a server answers, the expected result, and the expected number of requests.
type Case = (&'static [(u16, usize)], Result<usize, &'static str>, usize);

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_stays_is_not() {
    let table: [Case; 7] = [
        (&[(200, 5)], Ok(5), 1),
        (&[(503, 0), (429, 0), (200, 7)], Ok(7), 3),
        (&[(500, 0)], Err("fetch_failed"), 3),
        (&[(404, 0)], Err("fetch_failed"), 1),
        (&[(401, 0)], Err("fetch_failed"), 1),
        (&[(200, 65 << 10)], Err("image_too_large"), 1),
        (&[(200, 0)], Ok(0), 1),
    ];
    for (answers, expected, requests) in table {
        let (loader, _) = loader(Store::default(), 1 << 20);
        let (url, served, _) = server(answers).await;
        let got = loader.load("b", &url).await;
        assert_eq!(got.as_ref().map(Bytes::len).map_err(|e| e.code), expected, "{answers:?}");
        assert_eq!(served.load(Ordering::SeqCst), requests, "{answers:?}");
    }
    let (loader, _) = loader(Store::default(), 1 << 20);
    let refused = loader.load("b", "http://127.0.0.1:1/").await.unwrap_err();
    assert_eq!(refused.code, "fetch_failed");
    assert!(refused.error.contains("tried 3 times"), "{}", refused.error);
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for() {
    for url in ["s3://fish/k", "s3://own/k", "blob:0"] {
        let (loader, store) =
            loader(Store { away: AtomicUsize::new(50), bytes: 5, ..Store::default() }, 1 << 20);
        assert_eq!(loader.load("b", url).await.unwrap().len(), 5);
        assert_eq!(store.calls.load(Ordering::SeqCst), 51);
    }
    let (loader, _) = loader(Store::default(), 1 << 20);
    for url in ["s3://fish/other", "s3://own/other", "blob:1"] {
        assert_eq!(loader.load("b", url).await.unwrap_err().code, "not_found");
    }
}

#[tokio::test]
async fn what_is_refused_to_an_object_alone_fails_its_image() {
    for url in ["s3://fish/k", "s3://own/k"] {
        let refuses = AtomicUsize::new(usize::MAX);
        let (loader, store) = loader(Store { refuses, ..Store::default() }, 1 << 20);
        let failure = loader.load("b", url).await.unwrap_err();
        assert_eq!((failure.code, failure.error.contains("access denied")), ("fetch_failed", true));
        assert_eq!(store.calls.load(Ordering::SeqCst), 2, "once more, after the storage was seen to serve");
    }
}

#[tokio::test]
async fn what_is_refused_to_the_appliance_as_a_whole_is_waited_for() {
    // Credentials are being rotated: everything is refused for some time. The appliance has put its own files there
    // itself, so that no refusal is about one of them.
    for (url, closed) in [("s3://fish/k", 30), ("s3://own/k", 30), ("blob:0", 0)] {
        let store =
            Store { refuses: AtomicUsize::new(30), closed: AtomicUsize::new(closed), ..Store::default() };
        let (loader, store) = loader(Store { bytes: 5, ..store }, 1 << 20);
        assert_eq!(loader.load("b", url).await.map(|loaded| loaded.len()), Ok(5), "{url}");
        assert_eq!(store.calls.load(Ordering::SeqCst), 31, "{url}");
    }
    // They are valid again between the read and the check of the storage.
    let (loader, _) = loader(Store { refuses: AtomicUsize::new(1), bytes: 5, ..Store::default() }, 1 << 20);
    assert_eq!(loader.load("b", "s3://own/k").await.unwrap().len(), 5);
}

#[tokio::test]
async fn the_appliances_own_objects_are_no_images_to_others() {
    let (loader, store) = loader(Store { bytes: 5, ..Store::default() }, 1 << 20);
    let url = "s3://own/batches/other/files/00000000";
    let failure = loader.load("b", url).await.unwrap_err();
    assert_eq!((failure.code, failure.error.contains("s3.allow_prefixes")), ("url_refused", true));
    assert_eq!(store.calls.load(Ordering::SeqCst), 0);
    for url in ["S3://own/k", " s3://own/k", "s3://fish/batches/other/files/00000000"] {
        assert_eq!(loader.load("b", url).await.unwrap().len(), 5, "{url}");
    }
    let failure = loader.load("b", "gopher://fish/k").await.unwrap_err();
    assert!(failure.error.contains("http, https or s3"), "{}", failure.error);
}

#[tokio::test]
async fn an_object_takes_no_more_room_than_it_needs_and_has_it_before_it_is_read() {
    let (loader, store) = loader_of(Store { bytes: 200 << 10, ..Store::default() }, 256 << 10, 1 << 20);
    // Small images until now: the first large one is requested twice.
    (0..1000).for_each(|_| loader.size_estimate.record(0));
    for calls in [2, 3] {
        let loaded = loader.load("b", "s3://fish/k").await.unwrap();
        assert_eq!(loader.limits.memory.used(), 200 << 10);
        drop(loaded);
        assert_eq!(loader.limits.memory.used(), 0);
        assert_eq!(store.calls.load(Ordering::SeqCst), calls);
    }
    for (bytes, expected) in [(64 << 10, Ok(64 << 10)), ((64 << 10) + 1, Err("image_too_large"))] {
        let (loader, _) = self::loader(Store { bytes, ..Store::default() }, 1 << 20);
        for url in ["s3://fish/k", "s3://own/k", "blob:0"] {
            let loaded = loader.load("b", url).await;
            let got = loaded.as_ref().map(Bytes::len).map_err(|failure| failure.code);
            assert_eq!(got, expected, "{url}");
        }
    }
}

/// Loads images of 60 KiB, `count` in all and from each of the URLs in turn, into room for less than two.
async fn load_one_at_a_time(loader: &Arc<Loader>, urls: &[&str], count: usize) {
    let held = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..count)
        .map(|i| {
            let (loader, url, held) =
                (Arc::clone(loader), urls[i % urls.len()].to_owned(), Arc::clone(&held));
            tokio::spawn(async move {
                let loaded = loader.load("b", &url).await.unwrap();
                assert_eq!(loaded.len(), 60 << 10);
                assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "two such images are over the bound");
                tokio::time::sleep(Duration::from_millis(1)).await;
                held.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("they wait for each other").unwrap();
    }
}

#[tokio::test]
async fn stores_and_web_servers_share_slots_and_memory_and_none_waits_for_ever() {
    // Room for one image and a half, and four slots.
    let (loader, store) = loader(Store { bytes: 60 << 10, ..Store::default() }, 96 << 10);
    let (web, _, _) = server(&[(200, 60 << 10)]).await;
    load_one_at_a_time(&loader, &[web.as_str(), "s3://fish/k", "blob:0"], 60).await;
    let most = store.most.load(Ordering::SeqCst);
    assert!(most <= 96 << 10, "{most} bytes were on their way at once");
    assert_eq!(loader.limits.memory.used(), 0, "memory is not given back");
}

#[tokio::test]
async fn loads_and_memory_are_bounded_and_everything_arrives() {
    // Room for one image and a half, so that most must wait until others are dropped.
    let (loader, _) = loader(Store::default(), 96 << 10);
    let (url, _, most) = server(&[(200, 60 << 10)]).await;
    let started = Instant::now();
    load_one_at_a_time(&loader, &[url.as_str()], 24).await;
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(most.load(Ordering::SeqCst) <= 4);
    assert_eq!(loader.limits.memory.used(), 0, "memory is not given back");
}

#[test]
fn the_size_estimate_goes_up_at_once_and_down_slowly() {
    let estimate = SizeEstimate::default();
    estimate.record(4 << 20);
    assert_eq!(estimate.bytes(), 5 << 20);
    estimate.record(100_000);
    assert!(estimate.bytes() > 4 << 20);
    (0..1000).for_each(|_| estimate.record(100_000));
    assert_eq!(estimate.bytes(), 125_000);
    (0..1000).for_each(|_| estimate.record(0));
    assert_eq!(estimate.bytes(), MIN_ESTIMATE);
}
