//! The contract of a state store, kept by the one of this machine.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "contract/state.rs"]
mod contract;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cloud_sync::state::{EmbeddedStore, StateConfig, StateStore};
use tempfile::TempDir;

struct Embedded(TempDir);

#[async_trait]
impl contract::Harness for Embedded {
    async fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self, status_ttl: Duration) -> [Arc<dyn StateStore>; 2] {
        let store = EmbeddedStore::open(self.0.path().join("state"), StateConfig::default(), status_ttl);
        let store: Arc<dyn StateStore> = Arc::new(store.unwrap());
        [Arc::clone(&store), store]
    }
}

contract::suite!(Embedded);
