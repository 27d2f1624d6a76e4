//! The contracts of the content cache and of the status of batches, for the embedded implementations.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "contract/batch_status.rs"]
mod batch_status;
#[path = "contract/cache.rs"]
mod cache;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cloud_sync::batch_status::{BatchStatusStore, EmbeddedBatchStatus};
use cloud_sync::cache::{CacheConfig, ContentCache, EmbeddedCache};
use tempfile::TempDir;

struct InFile(TempDir);

#[async_trait]
impl batch_status::Harness for InFile {
    async fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self, status_ttl: Duration) -> [Arc<dyn BatchStatusStore>; 2] {
        let store = EmbeddedBatchStatus::open(self.0.path().join("state"), status_ttl);
        let store: Arc<dyn BatchStatusStore> = Arc::new(store.unwrap());
        [Arc::clone(&store), store]
    }
}

batch_status::suite!(InFile);

struct InMemory;

#[async_trait]
impl cache::Harness for InMemory {
    async fn new() -> Self {
        Self
    }

    async fn open(&self) -> [Arc<dyn ContentCache>; 2] {
        let cache: Arc<dyn ContentCache> = Arc::new(EmbeddedCache::new(CacheConfig::default()));
        [Arc::clone(&cache), cache]
    }
}

cache::suite!(InMemory);
