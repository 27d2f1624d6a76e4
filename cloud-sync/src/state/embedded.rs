//! The state store of this machine: the content cache in memory, batches in a file.

mod batches;
mod record;
mod store;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

pub use store::EmbeddedStore;

/// Key of an entry: a digest made by the caller.
type Key = [u8; 32];

/// What an entry costs beside its key and value: the hash table slot, the reference-counted entry, the
/// nodes of the access order and of the timer wheel. Rounded up from the sizes of those structures.
const ENTRY_OVERHEAD: usize = 256;

/// How an [`EmbeddedState`] is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateConfig {
    /// Most bytes that keys, values and their bookkeeping may take together; 0 keeps nothing.
    pub max_bytes: u64,
}

impl Default for StateConfig {
    fn default() -> Self {
        Self { max_bytes: 32 << 20 }
    }
}

/// What an [`EmbeddedState`] holds and how it fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateStats {
    /// Entries held now.
    pub entries: u64,
    /// Bytes held now, keys and bookkeeping included.
    pub bytes: u64,
    /// Look-ups answered since the start.
    pub hits: u64,
    /// Look-ups not answered since the start.
    pub misses: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    value: Bytes,
    ttl: Duration,
}

/// A cache in memory. Look-ups take no lock that a writer holds for long, no thread runs behind it, and
/// a value is never given out after its time to live.
///
/// When it is full the entry that was used longest ago goes. Eviction runs in batches on the threads
/// that write, so for a moment the store may hold a few hundred entries more than its bound.
#[derive(Debug)]
pub struct EmbeddedState {
    cache: Cache<Key, Entry>,
    max_bytes: u64,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl EmbeddedState {
    /// An empty store.
    #[must_use]
    pub fn new(config: StateConfig) -> Self {
        let cache = Cache::builder()
            .max_capacity(config.max_bytes)
            .weigher(|_: &Key, entry: &Entry| u32::try_from(weight(&entry.value)).unwrap_or(u32::MAX))
            // Least recently used: a photo comes again soon or never, so the newest must get in. The
            // default policy would refuse it as long as the old entries were asked for more often.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(PerEntry)
            .build();
        Self { cache, max_bytes: config.max_bytes, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// The value under `key`, unless it is missing or its time is over.
    #[must_use]
    pub fn get(&self, key: &[u8; 32]) -> Option<Bytes> {
        let found = self.cache.get(key).map(|entry| entry.value);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps `value` under `key` for `ttl`, in place of what was there, whose time is forgotten.
    ///
    /// A `ttl` of zero, or a value that alone is over the bound, removes the key instead: what the
    /// caller wanted replaced must not be answered any more.
    pub fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) {
        if ttl.is_zero() || weight(&value) as u64 > self.max_bytes {
            self.cache.invalidate(key);
        } else {
            self.cache.insert(*key, Entry { value, ttl });
        }
    }

    /// Removes `key`, if it is there.
    pub fn remove(&self, key: &[u8; 32]) {
        self.cache.invalidate(key);
    }

    /// A snapshot. It first runs the evictions that wait, so call it at the pace of a metrics scrape.
    #[must_use]
    pub fn stats(&self) -> StateStats {
        self.cache.run_pending_tasks();
        StateStats {
            entries: self.cache.entry_count(),
            bytes: self.cache.weighted_size(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
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

    // The default keeps the time of the entry that was replaced.
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
