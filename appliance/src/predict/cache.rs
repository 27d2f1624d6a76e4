//! The content cache: in this process first, then the one that several processes share, if there is one.
//!
//! The shared one is the only part of the cloud on the path of a request, so it gets a few milliseconds and no more; after a
//! failure nobody asks it for a moment, and what is put there is put behind the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::cache::{CacheStats, ContentCache, EmbeddedCache};
use tokio::sync::Semaphore;

/// How long the shared cache is left alone after it failed or was late.
const PAUSE: Duration = Duration::from_secs(1);
/// Most values on their way to the shared cache; more are not sent.
const MAX_CONCURRENT_PUTS: usize = 64;

/// The content cache.
pub struct PredictionCache {
    local: EmbeddedCache,
    shared: Option<Shared>,
}

struct Shared {
    store: Arc<dyn ContentCache>,
    timeout: Duration,
    began: Instant,
    /// Until when it is left alone, in milliseconds since `began`.
    paused_until_ms: AtomicU64,
    puts: Arc<Semaphore>,
}

impl PredictionCache {
    /// A cache in this process alone.
    pub fn local(local: EmbeddedCache) -> Self {
        Self { local, shared: None }
    }

    /// A cache in this process before one that others share, which gets `timeout` to answer.
    pub fn shared(local: EmbeddedCache, store: Arc<dyn ContentCache>, timeout: Duration) -> Self {
        let puts = Arc::new(Semaphore::new(MAX_CONCURRENT_PUTS));
        let shared =
            Shared { store, timeout, began: Instant::now(), paused_until_ms: AtomicU64::new(0), puts };
        Self { local, shared: Some(shared) }
    }

    /// The value in this process.
    pub fn get_local(&self, key: &[u8; 32]) -> Option<Bytes> {
        self.local.get(key)
    }

    /// The value that another process has shared; it is kept here for `ttl` then.
    pub async fn get_shared(&self, key: &[u8; 32], ttl: Duration) -> Option<Bytes> {
        let shared = self.shared.as_ref().filter(|shared| !shared.is_paused())?;
        match tokio::time::timeout(shared.timeout, shared.store.get(key)).await {
            Ok(Ok(found)) => {
                let value = found?;
                self.local.put(key, value.clone(), ttl);
                Some(value)
            }
            Ok(Err(_)) | Err(_) => {
                shared.pause();
                None
            }
        }
    }

    /// Keeps a value here, and sends it to the shared cache behind the caller's back.
    pub fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) {
        self.local.put(key, value.clone(), ttl);
        let Some(shared) = self.shared.as_ref().filter(|shared| !shared.is_paused()) else { return };
        let Ok(permit) = Arc::clone(&shared.puts).try_acquire_owned() else { return };
        let (store, key) = (Arc::clone(&shared.store), *key);
        tokio::spawn(async move {
            // A value that is not shared is computed once more elsewhere; the store's health tells of the failure.
            let _ = store.put(&key, value, ttl).await;
            drop(permit);
        });
    }

    /// How the part in this process fares.
    pub fn stats(&self) -> CacheStats {
        self.local.stats()
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_paused(&self) -> bool {
        self.now_ms() < self.paused_until_ms.load(Ordering::Relaxed)
    }

    fn pause(&self) {
        let pause = u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX);
        self.paused_until_ms.store(self.now_ms().saturating_add(pause), Ordering::Relaxed);
    }
}
