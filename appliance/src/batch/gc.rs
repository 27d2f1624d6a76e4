//! Room in the data directory: who may take how much of it, and what goes when it is short, oldest first.
//!
//! Room comes back when batches are finished, so results are what may always be put; files and records of new batches
//! leave some room for them, and captured images leave some for both.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cloud_sync::batch_status::BatchStatusStore;
use cloud_sync::blob::{BlobInfo, BlobKey, BlobStore, DirStore, Room};
use cloud_sync::error::SyncResult;

use super::object_keys;

/// From this share on, in percent, what is old goes, down to the second.
const SHORT: u64 = 80;
const ENOUGH: u64 = 70;
/// Time between two looks, and before the first: a start has other things to do.
const PAUSE: Duration = Duration::from_secs(30);
/// Objects of one listing.
const AT_ONCE: usize = 4096;
/// What belongs to a batch that has no results after this time is no batch's any more: no queue keeps work so long.
const GIVEN_UP: Duration = Duration::from_secs(30 * 24 * 3600);

/// The share of the room, in percent, up to which an object of this key may be put.
#[must_use]
pub fn share(key: &str) -> u64 {
    if key.starts_with("datasets/") {
        return 50;
    }
    let of_a_new_batch =
        key.starts_with("batches/") && (key.contains("/files/") || key.ends_with("/batch.json"));
    if of_a_new_batch { 90 } else { 100 }
}

/// Keeps room in the store of embedded batches.
pub struct GarbageCollector {
    /// The store, which has a bound.
    pub store: DirStore,
    /// What knows of its batches.
    pub state: Arc<dyn BatchStatusStore>,
    /// How long the results of a batch are kept in any case.
    pub status_ttl: Duration,
}

impl GarbageCollector {
    /// Looks for room again and again; never ends.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(PAUSE).await;
            match self.pass(SystemTime::now()).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "old objects made room in the data directory"),
                Err(error) => tracing::warn!(error = error.in_full(), "no room could be made"),
            }
        }
    }

    /// Makes room if it is short. Returns how many objects had to go.
    ///
    /// # Errors
    /// When the store can't be read or an object not be removed.
    pub async fn pass(&self, now: SystemTime) -> SyncResult<u64> {
        let mut removed = 0;
        // Counted again only then: it may be that an operator has made room.
        if !self.is_short(SHORT, false).await? || !self.is_short(SHORT, true).await? {
            return Ok(removed);
        }
        for (prefix, age) in
            [("results/", self.status_ttl), ("dead-letter/", self.status_ttl), ("batches/", GIVEN_UP)]
        {
            loop {
                let oldest = self.store.oldest(prefix, AT_ONCE).await?;
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
                    if !self.is_short(ENOUGH, false).await? {
                        return Ok(removed);
                    }
                }
                if listed < AT_ONCE || !all_old {
                    break;
                }
            }
        }
        Ok(removed)
    }

    async fn is_short(&self, percent: u64, again: bool) -> SyncResult<bool> {
        Ok(self.store.measure(again).await?.is_some_and(|room: Room| room.is_short(percent)))
    }

    /// Removes an object, and with the results of a batch all else of it.
    async fn remove(&self, key: &str) -> SyncResult<u64> {
        let mut removed = 0;
        let batch = key.strip_prefix("results/").and_then(|name| name.strip_suffix(".jsonl"));
        if let Some(id) = batch {
            removed += remove_all(&self.store, &object_keys::batch_prefix(id)).await?;
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

/// Removes every object whose key begins with `prefix`. Returns how many there were.
///
/// # Errors
/// When the store is out of reach or refuses.
pub async fn remove_all(store: &dyn BlobStore, prefix: &str) -> SyncResult<u64> {
    let (mut removed, mut next) = (0, None);
    loop {
        let page = store.list(prefix, next.as_deref()).await?;
        for object in page.objects {
            // What lies there under a name that is no key of ours is not ours.
            let Ok(key) = BlobKey::new(object.key) else { continue };
            store.delete(&key).await?;
            removed += 1;
        }
        next = page.next;
        if next.is_none() {
            return Ok(removed);
        }
    }
}

#[cfg(test)]
mod tests;
