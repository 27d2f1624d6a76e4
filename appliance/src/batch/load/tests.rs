//! Bounds of the loader, and what is tried again and what is not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use cloud_sync::blob::{BlobInfo, BlobKey, BlobPage};
use cloud_sync::error::{Link, SyncError, SyncResult};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Has one object, `k`, and is away for the first few calls.
#[derive(Debug, Default)]
struct Store {
    away: AtomicUsize,
    calls: AtomicUsize,
    refuses: bool,
}

#[async_trait]
impl BlobStore for Store {
    async fn put(&self, _: &BlobKey, _: Bytes, _: &str) -> SyncResult<()> {
        Ok(())
    }
    async fn put_file(&self, _: &BlobKey, _: &std::path::Path, _: &str) -> SyncResult<()> {
        Ok(())
    }
    async fn get(&self, key: &BlobKey, _: u64) -> SyncResult<Option<Bytes>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.refuses {
            return Err(SyncError::permanent(Link::S3, "access denied"));
        }
        match self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(SyncError::transient(Link::S3, "connection refused")),
            Err(_) => Ok((key.as_str() == "k").then(|| Bytes::from_static(b"image"))),
        }
    }
    async fn get_file(&self, _: &BlobKey, _: &std::path::Path) -> SyncResult<Option<u64>> {
        Ok(None)
    }
    async fn head(&self, _: &BlobKey) -> SyncResult<Option<BlobInfo>> {
        Ok(None)
    }
    async fn list(&self, _: &str, _: Option<&str>) -> SyncResult<BlobPage> {
        Ok(BlobPage::default())
    }
    async fn delete(&self, _: &BlobKey) -> SyncResult<()> {
        Ok(())
    }
    fn uri(&self, key: &BlobKey) -> String {
        key.to_string()
    }
}

fn loader(store: Store, max_inflight: u64) -> (Arc<Loader>, Arc<Store>) {
    let store = Arc::new(store);
    let limits = LoadLimits {
        max_bytes: 64 << 10,
        max_inflight,
        loads: 4,
        attempts: 3,
        pause: Duration::from_millis(1),
    };
    let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let fetch = FetchConfig { allow_networks, timeout: Duration::from_secs(5), ..FetchConfig::default() };
    let patience = Arc::new(Patience::new(Duration::from_millis(1), Duration::from_millis(2)));
    let buckets = BTreeMap::from([("fish".to_owned(), store.clone() as _)]);
    (Arc::new(Loader::new(fetch, limits, store.clone(), buckets, patience)), store)
}

/// Answers the n-th request with the n-th status and a body of so many bytes; the last one again and again.
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

/// What a server answers, what comes of it, and after how many requests.
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
        assert_eq!(got.as_ref().map(|l| l.bytes.len()).map_err(|e| e.code), expected, "{answers:?}");
        assert_eq!(served.load(Ordering::SeqCst), requests, "{answers:?}");
    }
    let (loader, _) = loader(Store::default(), 1 << 20);
    let refused = loader.load("b", "http://127.0.0.1:1/").await.unwrap_err();
    assert_eq!(refused.code, "fetch_failed");
    assert!(refused.error.contains("tried 3 times"), "{}", refused.error);
}

#[tokio::test]
async fn an_own_store_that_is_away_is_waited_for() {
    let (loader, store) = loader(Store { away: AtomicUsize::new(50), ..Store::default() }, 1 << 20);
    assert_eq!(loader.load("b", "s3://fish/k").await.unwrap().bytes, "image");
    assert_eq!(store.calls.load(Ordering::SeqCst), 51);
    assert_eq!(loader.load("b", "s3://fish/other").await.unwrap_err().code, "not_found");
}

#[tokio::test]
async fn an_own_store_that_refuses_fails_the_image_at_once() {
    let (loader, store) = loader(Store { refuses: true, ..Store::default() }, 1 << 20);
    let failure = loader.load("b", "s3://fish/k").await.unwrap_err();
    assert_eq!((failure.code, failure.error.contains("access denied")), ("fetch_failed", true));
    assert_eq!(store.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn loads_and_memory_are_bounded_and_everything_arrives() {
    // Room for one image and a half, so that most must wait for others to be let go.
    let (loader, _) = loader(Store::default(), 96 << 10);
    let (url, _, most) = server(&[(200, 60 << 10)]).await;
    let held = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..24)
        .map(|_| {
            let (loader, url, held) = (Arc::clone(&loader), url.clone(), Arc::clone(&held));
            tokio::spawn(async move {
                let loaded = loader.load("b", &url).await.unwrap();
                assert_eq!(loaded.bytes.len(), 60 << 10);
                assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "two such images are over the bound");
                tokio::time::sleep(Duration::from_millis(1)).await;
                held.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    let started = Instant::now();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("they wait for each other").unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(most.load(Ordering::SeqCst) <= 4);
    assert_eq!(loader.room.available_permits(), 96, "memory is not given back");
}
