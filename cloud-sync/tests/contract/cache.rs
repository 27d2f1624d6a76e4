//! The contract of every `ContentCache`, one test per guarantee.
//!
//! A test binary has this file as `mod cache` at its root and names its harness once, `cache::suite!(MyHarness);`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::cache::ContentCache;

const LONG: Duration = Duration::from_secs(3600);
/// How much earlier a value may expire: stores count whole milliseconds, by their own clock.
const TICK: Duration = Duration::from_millis(5);

/// An isolated location for the caches of one test.
#[async_trait]
pub(crate) trait Harness: Send + Sync {
    /// An empty location.
    async fn new() -> Self;

    /// Opens a cache there. The second one is, where possible, another handle as another process would have it, else
    /// the same.
    async fn open(&self) -> [Arc<dyn ContentCache>; 2];
}

macro_rules! suite {
    ($harness:ty) => { $crate::cache::suite!($harness:
        a_cached_value_comes_back_until_its_time_is_over,
        a_cached_value_is_replaced_with_its_time,
        a_value_that_is_not_known_is_none,
    ); };
    ($harness:ty: $($promise:ident,)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let harness = <$harness as $crate::cache::Harness>::new().await;
            $crate::cache::$promise(&harness).await;
        }
    )* };
}
pub(crate) use suite;

pub(crate) async fn a_cached_value_comes_back_until_its_time_is_over<H: Harness>(harness: &H) {
    let [store, other] = harness.open().await;
    let value = Bytes::from_static(b"\x00\xff value");
    store.put(&[1; 32], value.clone(), LONG).await.unwrap();
    store.put(&[2; 32], Bytes::new(), LONG).await.unwrap();
    assert_eq!(other.get(&[1; 32]).await.unwrap(), Some(value.clone()));
    assert_eq!(other.get(&[2; 32]).await.unwrap(), Some(Bytes::new()));
    let ttl = Duration::from_millis(300);
    let start = Instant::now();
    store.put(&[3; 32], value.clone(), ttl).await.unwrap();
    loop {
        let found = store.get(&[3; 32]).await.unwrap();
        // Judged by the time after the look-up: before it the value may not have expired yet.
        match found {
            Some(found) => assert_eq!(found, value),
            None => break assert!(start.elapsed() + TICK >= ttl, "gone after {:?}", start.elapsed()),
        }
        assert!(start.elapsed() < ttl + Duration::from_secs(60), "still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.get(&[1; 32]).await.unwrap(), Some(value));
}

pub(crate) async fn a_cached_value_is_replaced_with_its_time<H: Harness>(harness: &H) {
    let [store, _] = harness.open().await;
    let (old, new) = (Bytes::from_static(b"old"), Bytes::from_static(b"new"));
    store.put(&[1; 32], old.clone(), Duration::from_millis(200)).await.unwrap();
    store.put(&[1; 32], new.clone(), LONG).await.unwrap();
    store.put(&[2; 32], old.clone(), LONG).await.unwrap();
    store.put(&[2; 32], new.clone(), Duration::from_millis(200)).await.unwrap();
    store.put(&[3; 32], old.clone(), LONG).await.unwrap();
    store.put(&[3; 32], new.clone(), Duration::ZERO).await.unwrap();
    store.put(&[4; 32], new.clone(), Duration::ZERO).await.unwrap();
    assert_eq!(store.get(&[3; 32]).await.unwrap(), None);
    assert_eq!(store.get(&[4; 32]).await.unwrap(), None);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(store.get(&[1; 32]).await.unwrap(), Some(new));
    assert_eq!(store.get(&[2; 32]).await.unwrap(), None);
}

pub(crate) async fn a_value_that_is_not_known_is_none<H: Harness>(harness: &H) {
    let [store, _] = harness.open().await;
    assert_eq!(store.get(&[9; 32]).await.unwrap(), None);
}
