//! Values under digests, for a limited time: the cache of predictions. In this process, or in Redis
//! ([`crate::redis::RedisStore`]) for every process that shares a server.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::error::SyncResult;

/// A cache of values under digests that the caller computes. Every call is atomic, with any number of processes
/// calling, and may be repeated.
#[async_trait]
pub trait ContentCache: Send + Sync + fmt::Debug {
    /// Returns the value under a digest.
    ///
    /// # Errors
    /// When the cache cannot be reached.
    async fn get(&self, key: &[u8; 32]) -> SyncResult<Option<Bytes>>;

    /// Stores a value for `ttl`, replacing the previous one. A `ttl` of zero removes it.
    ///
    /// # Errors
    /// When the cache cannot be reached.
    async fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) -> SyncResult<()>;
}

/// Key of an entry: a digest computed by the caller.
type Key = [u8; 32];

/// Memory of an entry beside its key and value: the hash table slot, the reference-counted entry, the
/// nodes of the access order and of the timer wheel. Rounded up from the sizes of those structures.
const ENTRY_OVERHEAD: usize = 256;

/// Limits of an [`EmbeddedCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// Maximum bytes of keys, values and their bookkeeping together; 0 stores nothing.
    pub max_bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { max_bytes: 32 << 20 }
    }
}

/// Size and hit counts of an [`EmbeddedCache`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Current number of entries.
    pub entries: u64,
    /// Current bytes, including keys and bookkeeping.
    pub bytes: u64,
    /// Hits since the start.
    pub hits: u64,
    /// Misses since the start.
    pub misses: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    value: Bytes,
    ttl: Duration,
}

/// A cache in memory. Look-ups take no lock that a writer holds for long, there is no background thread, and
/// a value is never returned after its time to live.
///
/// When it is full the least recently used entry is evicted. Eviction runs in batches on the threads
/// that write, so the cache may briefly hold a few hundred entries more than its limit.
#[derive(Debug)]
pub struct EmbeddedCache {
    cache: Cache<Key, Entry>,
    max_bytes: u64,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl EmbeddedCache {
    /// An empty cache.
    #[must_use]
    pub fn new(config: CacheConfig) -> Self {
        let cache = Cache::builder()
            .max_capacity(config.max_bytes)
            .weigher(|_: &Key, entry: &Entry| u32::try_from(weight(&entry.value)).unwrap_or(u32::MAX))
            // Least recently used: a photo is repeated soon or never, so the newest must be admitted. The
            // default policy would reject it as long as the old entries were read more often.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(PerEntry)
            .build();
        Self { cache, max_bytes: config.max_bytes, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// Returns the value under `key` unless it is missing or expired.
    #[must_use]
    pub fn get(&self, key: &[u8; 32]) -> Option<Bytes> {
        let found = self.cache.get(key).map(|entry| entry.value);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Stores `value` under `key` for `ttl`, replacing the previous value and its time to live.
    ///
    /// A `ttl` of zero, or a value that alone exceeds the limit, removes the key instead: the value that the
    /// caller wanted replaced must not be returned any more.
    pub fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) {
        if ttl.is_zero() || weight(&value) as u64 > self.max_bytes {
            self.cache.invalidate(key);
        } else {
            self.cache.insert(*key, Entry { value, ttl });
        }
    }

    /// Removes `key` if present.
    pub fn remove(&self, key: &[u8; 32]) {
        self.cache.invalidate(key);
    }

    /// A snapshot. It first runs pending evictions, so call it at the rate of a metrics scrape.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.cache.run_pending_tasks();
        CacheStats {
            entries: self.cache.entry_count(),
            bytes: self.cache.weighted_size(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }
}

#[async_trait]
impl ContentCache for EmbeddedCache {
    async fn get(&self, key: &[u8; 32]) -> SyncResult<Option<Bytes>> {
        Ok(Self::get(self, key))
    }

    async fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) -> SyncResult<()> {
        Self::put(self, key, value, ttl);
        Ok(())
    }
}

fn weight(value: &Bytes) -> usize {
    size_of::<Key>() + value.len() + ENTRY_OVERHEAD
}

struct PerEntry;

impl Expiry<Key, Entry> for PerEntry {
    fn expire_after_create(&self, _: &Key, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.ttl)
    }

    // The default keeps the time to live of the replaced entry.
    fn expire_after_update(
        &self,
        _: &Key,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl)
    }
}

#[cfg(test)]
mod tests;
