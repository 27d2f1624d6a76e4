//! The content cache: local to the process, and in front of a cache that several processes share, where one is configured.
//!
//! The shared cache is the only remote service on the path of a request. It has a timeout of a few milliseconds; after a
//! failure it is not used for a second, and values are stored in it after the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::state::{EmbeddedState, StateStats, StateStore};
use tokio::sync::Semaphore;

/// How long the shared cache is not used after an error or a timeout.
const PAUSE: Duration = Duration::from_secs(1);
/// Concurrent writes to the shared cache; more are dropped.
const MAX_CONCURRENT_PUTS: usize = 64;

/// The content cache.
pub struct ContentCache {
    local: EmbeddedState,
    shared: Option<Shared>,
}

struct Shared {
    store: Arc<dyn StateStore>,
    timeout: Duration,
    began: Instant,
    /// End of the pause, in milliseconds since `began`.
    paused_until_ms: AtomicU64,
    puts: Arc<Semaphore>,
}

impl ContentCache {
    /// A cache in this process only.
    pub fn local(local: EmbeddedState) -> Self {
        Self { local, shared: None }
    }

    /// A cache in this process in front of a shared one, which has to answer within `timeout`.
    pub fn shared(local: EmbeddedState, store: Arc<dyn StateStore>, timeout: Duration) -> Self {
        let puts = Arc::new(Semaphore::new(MAX_CONCURRENT_PUTS));
        let shared =
            Shared { store, timeout, began: Instant::now(), paused_until_ms: AtomicU64::new(0), puts };
        Self { local, shared: Some(shared) }
    }

    /// The value in the local cache.
    pub fn get_local(&self, key: &[u8; 32]) -> Option<Bytes> {
        self.local.get(key)
    }

    /// The value in the shared cache, which is then kept locally for `ttl`.
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

    /// Stores a value locally, and in the shared cache in the background.
    pub fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) {
        self.local.put(key, value.clone(), ttl);
        let Some(shared) = self.shared.as_ref().filter(|shared| !shared.is_paused()) else { return };
        let Ok(permit) = Arc::clone(&shared.puts).try_acquire_owned() else { return };
        let (store, key) = (Arc::clone(&shared.store), *key);
        tokio::spawn(async move {
            // A value that is not stored is computed again by another process; the store's health shows the failure.
            let _ = store.put(&key, value, ttl).await;
            drop(permit);
        });
    }

    /// Statistics of the local cache.
    pub fn stats(&self) -> StateStats {
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
