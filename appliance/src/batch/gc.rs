//! Space in the data directory: how much of it each kind of object may take, and what is removed when it is short,
//! oldest first.
//!
//! Finishing batches frees space, so results may always be put; files and records of new batches leave some space for
//! them, and captured images leave some for both.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cloud_sync::batch_status::BatchStatusStore;
use cloud_sync::blob::{BlobInfo, BlobKey, BlobStore, DirStore, Room};
use cloud_sync::error::SyncResult;

use super::object_keys;
use super::result_store::delete_prefix;

/// Used share of the space, in percent, from which on old objects are removed.
const HIGH_WATERMARK: u64 = 80;
/// Used share, in percent, down to which they are removed.
const LOW_WATERMARK: u64 = 70;
/// Time between two passes, and before the first: the start-up comes first.
const INTERVAL: Duration = Duration::from_secs(30);
/// Objects per listing.
const PAGE_OBJECTS: usize = 4096;
/// Age from which on objects of a batch without results are orphans: no queue keeps work this long.
const ORPHAN_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Used share of the space, in percent, up to which an object of this key may be put.
#[must_use]
pub fn share(key: &str) -> u64 {
    if key.starts_with("datasets/") {
        return 50;
    }
    let of_a_new_batch =
        key.starts_with("batches/") && (key.contains("/files/") || key.ends_with("/batch.json"));
    if of_a_new_batch { 90 } else { 100 }
}

/// Frees space in the store of embedded batches.
pub struct GarbageCollector {
    /// The store, whose size is bounded.
    pub store: DirStore,
    /// The state of its batches.
    pub state: Arc<dyn BatchStatusStore>,
    /// Minimum age of results that are removed.
    pub status_ttl: Duration,
}

impl GarbageCollector {
    /// Runs a pass per [`INTERVAL`], for ever.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            match self.pass(SystemTime::now()).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed old objects from the data directory"),
                Err(error) => {
                    tracing::warn!(error = error.in_full(), "could not free space in the data directory");
                }
            }
        }
    }

    /// Removes old objects if space is short. Returns how many.
    ///
    /// # Errors
    /// When the store can't be read or an object can't be removed.
    pub async fn pass(&self, now: SystemTime) -> SyncResult<u64> {
        let mut removed = 0;
        // Measured again only then: an operator may have freed space.
        if !self.is_short(HIGH_WATERMARK, false).await? || !self.is_short(HIGH_WATERMARK, true).await? {
            return Ok(removed);
        }
        for (prefix, age) in
            [("results/", self.status_ttl), ("dead-letter/", self.status_ttl), ("batches/", ORPHAN_AGE)]
        {
            loop {
                let oldest = self.store.oldest(prefix, PAGE_OBJECTS).await?;
                let listed = oldest.len();
                let is_old = |object: &BlobInfo| {
                    object
                        .modified
                        .and_then(|at| now.duration_since(at).ok())
                        .is_some_and(|since| since > age)
                };
                let old: Vec<BlobInfo> = oldest.into_iter().take_while(is_old).collect();
                let all_old = old.len() == listed;
                for object in old {
                    removed += self.remove(&object.key).await?;
                    if !self.is_short(LOW_WATERMARK, false).await? {
                        return Ok(removed);
                    }
                }
                if listed < PAGE_OBJECTS || !all_old {
                    break;
                }
            }
        }
        Ok(removed)
    }

    async fn is_short(&self, percent: u64, again: bool) -> SyncResult<bool> {
        Ok(self.store.measure(again).await?.is_some_and(|room: Room| room.is_short(percent)))
    }

    /// Removes an object, and with the results of a batch all its other objects.
    async fn remove(&self, key: &str) -> SyncResult<u64> {
        let mut removed = 0;
        let batch = key.strip_prefix("results/").and_then(|name| name.strip_suffix(".jsonl"));
        if let Some(id) = batch {
            removed += delete_prefix(&self.store, &object_keys::batch_prefix(id)).await?;
            self.state.forget_batch(id).await?;
        }
        // A listing gives keys only.
        if let Ok(key) = BlobKey::new(key) {
            self.store.delete(&key).await?;
            removed += 1;
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests;
